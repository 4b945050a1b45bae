"""Writes docs/errors.md from the code: every code and reason with its hint, in both dialects where they differ."""

from __future__ import annotations

from pathlib import Path

from app.mail.codes import CODE_OF, Reason
from app.mail.hints import hint
from app.mail.profile import AuthMode, Dialect, Profile, TlsMode

_HEAD = """# Errors

Codes keep nodemailer's spelling; `reason` is the fine grain. Where ours is truer than nodemailer's, ours wins: a
certificate is `ETLS` (there `ESOCKET`), 530 at MAIL is `EAUTH` (there `EENVELOPE`), and no reply after the final dot is
`EINDOUBT` (there `ECONNECTION` or `ETIMEDOUT`). The hint below is for a profile of `mailchute.toml`; for one of the
environment it names the variable (`SMTP_AUTH=none`).

Written by `python -m scripts.errors_page`; a test keeps it so.

| code | reason | hint |
|---|---|---|
"""


def page() -> str:
    """Give the whole page."""
    profile = Profile(
        name="default",
        host="mail.example.org",
        port=587,
        tls=TlsMode.STARTTLS,
        auth=AuthMode.AUTO,
        dialect=Dialect.FILE,
    )
    order = sorted(Reason, key=lambda reason: (CODE_OF[reason], list(Reason).index(reason)))
    return _HEAD + "".join(f"| `{CODE_OF[r]}` | `{r}` | {hint(r, profile)} |\n" for r in order)


if __name__ == "__main__":
    Path("docs/errors.md").write_text(page(), "utf-8")
