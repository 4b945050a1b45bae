"""`mailchute errors`: every code and reason explained; what the other commands do is in tests/e2e."""

from __future__ import annotations

import pytest
from typer.testing import CliRunner, Result

from app import __version__
from app.cli import commands
from app.mail.codes import CODE_OF, ErrorCode, Reason
from app.mail.explain import CODES, EXPLANATIONS, NODEMAILER, cure, reasons_of


def errors(*words: str) -> Result:
    return CliRunner().invoke(commands, ["errors", *words])


def test_the_version_is_told() -> None:
    said = CliRunner().invoke(commands, ["--version"])
    assert (said.exit_code, said.stdout) == (0, f"mailchute {__version__}\n")


def test_without_a_word_every_code_is_listed_with_its_meaning() -> None:
    said = errors()
    assert (said.exit_code, said.stderr) == (0, "")
    lines = said.stdout.splitlines()
    assert [tuple(line.split(maxsplit=1)) for line in lines[: len(ErrorCode)]] == [(c, CODES[c]) for c in ErrorCode]
    assert lines[-1] == "mailchute errors CODE tells more."


@pytest.mark.parametrize("code", ErrorCode)
def test_a_code_is_explained_with_all_its_reasons(code: ErrorCode) -> None:
    said = errors(code)
    assert (said.exit_code, said.stderr) == (0, "")
    assert said.stdout.startswith(f"{code}: {CODES[code]}\n")
    assert (f"nodemailer: {NODEMAILER.get(code)}\n" in said.stdout) == (code in NODEMAILER)
    blocks = said.stdout.split("\n\n")[1:]
    assert [block.partition(" ")[0] for block in blocks] == list(reasons_of(code))


@pytest.mark.parametrize("reason", Reason)
def test_a_reason_is_explained_alone_under_its_code(reason: Reason) -> None:
    said, known = errors(reason), EXPLANATIONS[reason]
    assert (said.exit_code, said.stderr) == (0, "")
    head, block = said.stdout.split("\n\n")
    assert head.startswith(f"{CODE_OF[reason]}: ")
    assert block.splitlines() == [
        f"{reason} ({', '.join(known.classes)})",
        f"  {known.meaning}",
        f"  Usual causes: {'; '.join(known.causes)}.",
        f"  Cure: {cure(reason)}",
    ]


@pytest.mark.parametrize(
    ("word", "same"),
    [("eauth", "EAUTH"), ("Eauth", "EAUTH"), ("AUTH_REJECTED", "auth_rejected"), ("Auth_Rejected", "auth_rejected")],
)
def test_case_is_of_no_matter(word: str, same: str) -> None:
    assert errors(word).stdout == errors(same).stdout != ""


@pytest.mark.parametrize(
    ("word", "cure"),
    [
        ("EAUHT", "do you mean EAUTH?"),
        ("eauht", "do you mean EAUTH?"),
        ("auth_reject", "do you mean auth_rejected?"),
        ("AUTH_REJECT", "do you mean auth_rejected?"),
        ("x", "mailchute errors lists them"),
        ("x" * 500, "mailchute errors lists them"),
    ],
)
def test_an_unknown_word_is_2_with_the_nearest(word: str, cure: str) -> None:
    said = errors(word)
    assert (said.exit_code, said.stdout) == (2, "")
    assert said.stderr.startswith("mailchute: there is no error code or reason ")
    assert said.stderr.endswith(f"; {cure}\n")
    assert len(said.stderr) < 200
