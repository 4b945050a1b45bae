"""Whatever is logged is one JSON object a line; metrics have labels of closed sets."""

from __future__ import annotations

import json
import logging
from collections.abc import Iterator
from contextlib import contextmanager
from io import StringIO
from pathlib import Path

import pytest
import structlog
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from app.telemetry import Metrics, set_up_logs

HOSTILE = '"} \n{"event": "forged"}\r\n\x1b[2J\x00\x85\u2028\u202e\x7f'


@contextmanager
def set_up(monkeypatch: pytest.MonkeyPatch, *, as_json: bool) -> Iterator[StringIO]:
    before, root = structlog.get_config(), logging.getLogger()
    handlers, level = root.handlers[:], root.level
    monkeypatch.setattr("sys.stderr", stream := StringIO())
    set_up_logs(as_json=as_json)
    structlog.configure(cache_logger_on_first_use=False)  # or a logger would go on writing to this stream
    yield stream
    structlog.configure(**before)
    root.handlers[:] = handlers
    root.setLevel(level)


@pytest.fixture
def logs(monkeypatch: pytest.MonkeyPatch) -> Iterator[StringIO]:
    """Log as the service does, and return what would be on stderr."""
    with set_up(monkeypatch, as_json=True) as stream:
        yield stream


@pytest.fixture
def console(monkeypatch: pytest.MonkeyPatch) -> Iterator[StringIO]:
    """Log as the service does for people."""
    with set_up(monkeypatch, as_json=False) as stream:
        yield stream


_any_value = st.one_of(st.text(), st.integers(), st.floats(), st.none(), st.binary(max_size=9), st.dates())


def _lines(logs: StringIO) -> list[str]:
    text = logs.getvalue()
    assert text.endswith("\n")
    return text.removesuffix("\n").split("\n")


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(subject=st.text(), value=_any_value, reply=st.text())
@example(subject=HOSTILE, value=HOSTILE, reply=HOSTILE)
@example(subject="\ud800", value=b"\xff", reply="\udfff")
def test_whatever_is_logged_is_one_json_object_a_line(subject: str, value: object, reply: str, logs: StringIO) -> None:
    logs.seek(0)
    logs.truncate()
    structlog.get_logger().info("delivery.deferred", subject=subject, value=value, reply=reply)
    (line,) = _lines(logs)
    said = json.loads(line)
    assert said["event"] == "delivery.deferred"
    assert said["level"] == "info"
    assert line.isascii()
    assert line.isprintable()


def test_what_a_library_logs_has_the_same_form(logs: StringIO) -> None:
    logging.getLogger("some.library").warning("it said %s", HOSTILE)
    (line,) = _lines(logs)
    said = json.loads(line)
    assert (said["event"], said["logger"], said["level"]) == ("library", "some.library", "warning")
    assert said["message"] == f"it said {HOSTILE}"


def test_an_exception_is_part_of_its_line(logs: StringIO) -> None:
    try:
        raise ValueError(HOSTILE)
    except ValueError:
        structlog.get_logger().exception("delivery.unexpected")
    (line,) = _lines(logs)
    assert "ValueError" in json.loads(line)["exception"]


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(subject=st.text(), value=_any_value, reply=st.text(st.characters()))
@example(subject=HOSTILE, value=HOSTILE, reply=HOSTILE)
@example(subject="\x1b[2J", value=["\x9b31m"], reply="\ud800")
@example(subject="", value=Path("\x1b[2J"), reply="\u202e")
def test_whatever_is_logged_for_people_is_one_printable_line(
    subject: str, value: object, reply: str, console: StringIO
) -> None:
    console.seek(0)
    console.truncate()
    structlog.get_logger().info("delivery.deferred", subject=subject, value=value, reply=reply)
    logging.getLogger("some.library").warning("it said %s", subject)
    assert len(lines := _lines(console)) == 2
    assert all(line.isprintable() for line in lines)
    assert "delivery.deferred" in lines[0]


@pytest.mark.filterwarnings("error")
def test_an_exception_for_people_is_indented_below_its_line(console: StringIO) -> None:
    class Odd(Exception):
        def __repr__(self) -> str:
            return HOSTILE

    try:
        raise Odd(HOSTILE)
    except Odd as error:
        structlog.get_logger().exception("delivery.unexpected", error=error)
    first, *trace = _lines(console)
    assert "delivery.unexpected" in first
    assert trace[0] == "  Traceback (most recent call last):"
    assert all(line.startswith("  ") for line in trace)
    assert all(line.isprintable() for line in (first, *trace))


def test_metrics_are_named_with_their_units_and_without_addresses() -> None:
    metrics = Metrics("1.2.3")
    metrics.messages("corp", "sent").inc()
    metrics.attempts("corp", "EAUTH", "auth_rejected").inc()
    metrics.smtp_phase("corp", "mail").observe(0.1)
    metrics.http_request("/send", "200").observe(0.1)
    text = metrics.render().decode()
    assert 'mailchute_messages_total{profile="corp",state="sent"} 1.0' in text
    assert 'mailchute_attempts_total{error_code="EAUTH",profile="corp",reason="auth_rejected"} 1.0' in text
    assert 'mailchute_build_info{version="1.2.3"} 1.0' in text
    for name in (
        "mailchute_queue_messages",
        "mailchute_queue_oldest_seconds",
        "mailchute_circuit_open",
        "mailchute_smtp_phase_seconds",
        "mailchute_in_doubt",
        "mailchute_http_request_seconds",
    ):
        assert f"# TYPE {name} " in text
