"""Whatever the commands print, a terminal shows it and obeys none of it."""

import io
import json
import sys
from collections.abc import Callable

import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from app.terminal import complain, note, set_up_streams, write, write_json, write_source

HOSTILE = 'a\x1b[2J\x9b31m\u202eb\u200b\u2028c\ud800\x7f\r\nmailchute: forged\x00"\\'

texts = st.text(st.characters()) | st.just(HOSTILE)
on_this_capture = settings(suppress_health_check=[HealthCheck.function_scoped_fixture])


@on_this_capture
@given(lines=st.lists(texts, min_size=1))
@example(lines=[HOSTILE])
def test_lines_are_printable_and_as_many_as_were_written(lines: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    write(*lines)
    shown = capsys.readouterr().out
    assert shown.endswith("\n")
    assert len(shown.removesuffix("\n").split("\n")) == len(lines)
    assert all(line.isprintable() for line in shown.removesuffix("\n").split("\n"))


@on_this_capture
@given(key=texts, value=texts)
def test_json_is_one_line_of_printable_ascii_and_keeps_the_value(
    key: str, value: str, capsys: pytest.CaptureFixture[str]
) -> None:
    write_json({key: [value]})
    shown = capsys.readouterr().out.removesuffix("\n")
    assert shown.isascii()
    assert shown.isprintable()
    assert json.loads(shown) == {key: [value]}


@pytest.mark.parametrize("say", [note, complain])
def test_stderr_is_escaped_too(say: Callable[[str], None], capsys: pytest.CaptureFixture[str]) -> None:
    say(HOSTILE)
    shown = capsys.readouterr().err.removesuffix("\n")
    assert shown.isprintable()


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


SOURCE = "Subject: x\r\n folded\r\n\r\nan\tend \x1b[2J\x9b\r\n"


def test_a_source_goes_into_a_file_as_it_is(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "stdout", stream := io.StringIO())
    write_source(SOURCE)
    assert stream.getvalue() == SOURCE


def test_a_source_at_a_terminal_keeps_its_lines_and_nothing_that_is_obeyed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "stdout", stream := Terminal())
    write_source(SOURCE)
    assert stream.getvalue() == "Subject: x\n folded\n\nan    end \\x1b[2J\\x9b\n"


@pytest.mark.parametrize("encoding", ["ascii", "latin-1", "utf-8"])
def test_what_the_locale_cannot_write_is_escaped(encoding: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "stdout", stream := io.TextIOWrapper(io.BytesIO(), encoding))
    set_up_streams()
    write("Müller … 注文")
    stream.flush()
    shown = stream.buffer.getvalue().decode(encoding)
    assert shown in ("M\\xfcller \\u2026 \\u6ce8\\u6587\n", "Müller \\u2026 \\u6ce8\\u6587\n", "Müller … 注文\n")
