"""Writes docs/errors.md from the code: every code and reason with its meaning, causes and cure."""

from __future__ import annotations

from pathlib import Path

from app.mail.codes import ErrorCode
from app.mail.explain import CODES, EXPLANATIONS, NODEMAILER, cure, reasons_of

_HEAD = """# Errors

Codes keep nodemailer's spelling; `reason` is the fine grain; where ours is truer than nodemailer's, ours wins, and it
says so below. The class says whose turn it is: *permanent* (this message or recipient: final), *temporary* (tried again
by the schedule), *configuration* (this profile, until somebody mends it), *unknown* (in doubt). The cure is what a
profile of `mailchute.toml` gets as its hint; one of the environment gets the variable (`SMTP_AUTH=none`), and a relay
that we know gets its own.

The same by `GET /errors`, `GET /errors/{code}` and `mailchute errors CODE`. Written by `python -m scripts.errors_page`;
a test keeps it so.
"""


def page() -> str:
    """Give the whole page."""
    return _HEAD + "".join(_section(code) for code in ErrorCode)


def _section(code: ErrorCode) -> str:
    there = f" nodemailer: {NODEMAILER[code]}" if code in NODEMAILER else ""
    rows = []
    for reason in reasons_of(code):
        said = EXPLANATIONS[reason]
        classes, causes = ", ".join(said.classes), "; ".join(said.causes)
        rows.append(f"| `{reason}` | {classes} | {said.meaning} | {causes} | {cure(reason)} |\n")
    head = "| reason | class | meaning | usual causes | cure |\n|---|---|---|---|---|\n"
    return f"\n## `{code}`\n\n{CODES[code]}{there}\n\n{head}" + "".join(rows)


if __name__ == "__main__":
    Path("docs/errors.md").write_text(page(), "utf-8")
