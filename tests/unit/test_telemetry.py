"""Whatever is logged is one JSON object a line; metrics have labels of closed sets."""

from __future__ import annotations

import json
import logging
from collections.abc import Iterator
from io import StringIO

import pytest
import structlog
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from app.telemetry import Metrics, set_up_logs

HOSTILE = '"} \n{"event": "forged"}\r\n\x1b[2J\x00\x85\u2028\u202e'


@pytest.fixture
def logs(monkeypatch: pytest.MonkeyPatch) -> Iterator[StringIO]:
    """Log as the service does; give what would be on stderr."""
    before, root = structlog.get_config(), logging.getLogger()
    handlers, level = root.handlers[:], root.level
    monkeypatch.setattr("sys.stderr", stream := StringIO())
    set_up_logs(as_json=True)
    structlog.configure(cache_logger_on_first_use=False)  # or a logger would go on writing to this stream
    yield stream
    structlog.configure(**before)
    root.handlers[:] = handlers
    root.setLevel(level)


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
    assert not any(ord(c) < 0x20 or 0x80 <= ord(c) < 0xA0 or c in "\u2028\u2029" for c in line)


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
