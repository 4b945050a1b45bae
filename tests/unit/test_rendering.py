"""What the commands show: tables that fit, times in the reader's zone, faults by the option's name."""

from __future__ import annotations

import re
import time
from collections.abc import Iterator
from typing import Any

import pytest
from typer.testing import CliRunner

from app.cli import commands
from app.options import fault_text, instant
from app.rendering import attempt_table, local, local_with_zone, message_table

ID = "01a22c67-553b-7ffe-a0dc-fe1d893313ca"
MESSAGE = {
    "id": ID,
    "state": "in_doubt",
    "profile": "default",
    "created_at": "2026-07-01T22:30:00.000Z",
    "error_code": "EINDOUBT",
    "to": ["ann@example.org"],
    "recipient_count": 3,
    "subject": "Your order 4711",
}
ATTEMPT = {
    "id": ID,
    "number": 2,
    "profile": "default",
    "started_at": "2026-07-01T22:30:00.000Z",
    "duration_ms": 5.0,
    "phase": "rcpt",
    "error_code": "EENVELOPE",
    "reason": "mailbox_unknown",
    "reply": "550 5.1.1 no such user",
    "message": None,
}
SUBJECTS = {
    "short": "Hello",
    "none": "",
    "long": "x" * 2000,
    "wide": "見積書" * 300,
    "hostile": "\x1b[2J\u202egpj.exe\nforged",
    "combining": "e\u0301" * 500,
}


@pytest.fixture
def zone(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setenv("TZ", "CET-1CEST,M3.5.0,M10.5.0/3")
    time.tzset()
    yield
    monkeypatch.undo()
    time.tzset()


def columns(text: str) -> int:
    from rich.cells import cell_len

    return cell_len(text)


@pytest.mark.parametrize("width", [80, 100, 120, 200, None])
@pytest.mark.parametrize("subject", SUBJECTS.values(), ids=SUBJECTS)
@pytest.mark.parametrize("to", ["a@b.test", f"{'x' * 64}@{'y' * 63}.test"], ids=["short to", "long to"])
def test_a_table_fits_the_terminal_and_never_cuts_an_id(to: str, subject: str, width: int | None) -> None:
    found: list[dict[str, Any]] = [MESSAGE, {**MESSAGE, "subject": subject, "to": [to], "recipient_count": 1}]
    lines = list(message_table(found, width=width))
    assert len(lines) == 3
    assert all(line.isprintable() for line in lines)
    for line in lines[1:]:
        assert ID in line
        assert width is None or columns(line) <= width
    wide = width is None or width >= 110
    assert ("PROFILE" in lines[0], "ERROR" in lines[0]) == (wide, wide)
    if width is None:
        assert "…" not in "".join(lines)


def test_columns_begin_where_their_header_does(zone: None) -> None:
    header, line = message_table([MESSAGE], width=None)
    assert header.startswith("ACCEPTED (CEST)      STATE ")
    for name, value in (
        ("STATE", "in_doubt"),
        ("ID", ID),
        ("TO", "ann@example.org +2"),
        ("SUBJECT", "Your order 4711"),
    ):
        assert line[re.search(rf"\b{name}\b", header).start() :].startswith(value)  # type: ignore[union-attr]
    assert line.startswith("2026-07-02 00:30:00  ")


@pytest.mark.parametrize("width", [80, 120, None])
def test_attempts_have_a_table_of_their_own(width: int | None) -> None:
    found: list[dict[str, Any]] = [
        ATTEMPT,
        {**ATTEMPT, "error_code": None, "reason": None, "reply": "250 Ok"},
        {**ATTEMPT, "error_code": None, "reason": None, "reply": None, "phase": None, "duration_ms": None},
    ]
    _, failed, sent, running = attempt_table(found, width=width)
    assert "EENVELOPE" in failed
    assert " sent" in sent
    assert "under way" in running
    assert all(width is None or len(line) <= width for line in (failed, sent, running))


def test_an_empty_table_has_no_header() -> None:
    assert list(message_table([], width=80)) == list(attempt_table([], width=80)) == []


def test_instants_are_shown_in_the_readers_zone(zone: None) -> None:
    assert local("2026-12-24T17:00:00.000Z") == "2026-12-24 18:00:00"
    assert local_with_zone("2026-07-01T22:30:00.000Z") == "2026-07-02 00:30:00 CEST"


@pytest.mark.parametrize(
    ("written", "meant"),
    [
        ("2026-12-24", "2026-12-23T23:00:00+00:00"),
        ("2026-07-24", "2026-07-23T22:00:00+00:00"),
        ("2026-12-24T18:00", "2026-12-24T17:00:00+00:00"),
        ("2026-12-24 18:00:30", "2026-12-24T17:00:30+00:00"),
        ("2026-12-24T18:00:00Z", "2026-12-24T18:00:00Z"),
        ("2026-12-24T18:00:00-05:00", "2026-12-24T18:00:00-05:00"),
        ("24h", "24h"),
        ("soon", "soon"),
        ("0001-01-01", "0001-01-01"),
        ("", ""),
        (None, None),
    ],
)
def test_a_time_without_a_zone_is_the_readers(written: str | None, meant: str | None, zone: None) -> None:
    assert instant(written) == meant


@pytest.mark.parametrize(
    ("pointer", "detail", "told"),
    [
        ("/to", "give one", "--to: give one"),
        ("/to/17", "no address", "--to: no address"),
        ("/from/email", "no address", "--from: no address"),
        ("/reply_to/0", "no address", "--reply-to: no address"),
        ("/attachments/0/content", "no base64", "--attach: no base64"),
        ("/tags/3", "too long", "--tag: too long"),
        ("/headers/X-A", "not this", "--header X-A: not this"),
        ("/headers", "too many", "--header: too many"),
        ("/send_at", "too late", "--send-at: too late"),
        ("/expires_in", "too long", "--expires-in: too long"),
        ("/idempotency_key", "used", "--idempotency-key: used"),
        ("/metadata", "odd", "metadata: odd"),
        ("", "sender: no address", "--from: no address"),
        ("", "recipient: no address", "--to: no address"),
        ("", "error_code is one of EAUTH", "--error-code is one of EAUTH"),
        ("", "q has no word in it", "--search has no word in it"),
        ("", "stateless machines", "stateless machines"),
        ("", "The message is too large", "The message is too large"),
    ],
)
def test_a_fault_is_told_by_the_option_that_caused_it(pointer: str, detail: str, told: str) -> None:
    assert fault_text(pointer, detail) == told


def names() -> list[str]:
    listed = CliRunner().invoke(commands, ["--help"]).stdout.partition("Commands:\n")[2]
    return re.findall(r"^  (\w+) ", listed, re.MULTILINE)


def test_every_command_is_told_in_one_whole_sentence() -> None:
    assert len(names()) >= 20
    assert "..." not in CliRunner().invoke(commands, ["--help"]).stdout.partition("Commands:\n")[2]


@pytest.mark.parametrize("name", names())
def test_the_help_of_a_command_has_examples_and_its_options_have_no_types_in_angle_brackets(name: str) -> None:
    said = CliRunner().invoke(commands, [name, "--help"])
    assert said.exit_code == 0
    assert not re.search(r"^ +-.*<[a-z]", said.stdout.partition("Examples:")[0], re.MULTILINE)
    assert "Examples:\n  " in said.stdout or name == "openapi"
    assert f"mailchute {name}" in said.stdout


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_a_shell_completes_commands_and_states(shell: str) -> None:
    environ = {
        "_MAILCHUTE_COMPLETE": f"complete_{shell}",
        "COMP_WORDS": "mailchute list --state de",
        "COMP_CWORD": "3",
        "_TYPER_COMPLETE_ARGS": "mailchute list --state de",
        "_TYPER_COMPLETE_FISH_ACTION": "get-args",
    }
    said = CliRunner().invoke(commands, [], prog_name="mailchute", env=environ)
    assert "deferred" in said.stdout
    assert "queued" not in said.stdout
