"""Logs and metrics: how they are set up, and the definition of every figure.

Logs are an event name and fields, one JSON object a line (or coloured for a terminal), on stderr. Metric labels
come from closed sets: profiles, states, codes, routes; never an address.
"""

from __future__ import annotations

import json
import logging
import sys
import time
from collections.abc import Iterable, Mapping, MutableMapping
from contextvars import ContextVar
from functools import cache
from typing import Any

import structlog
from prometheus_client import (
    CollectorRegistry,
    Counter,
    Gauge,
    Histogram,
    ProcessCollector,
    disable_created_metrics,
    generate_latest,
)
from pydantic_core import to_json

from app.mail.codes import CODE_OF
from app.mail.escaping import escape
from app.mail.outcome import MessageState, Phase

CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"


# The id of the request that this task works for. A task that outlives the request begins in a context of its own.
REQUEST_ID: ContextVar[str | None] = ContextVar("request_id", default=None)


def set_up_logs(*, as_json: bool, level: str = "info") -> None:
    """Send our events, and what libraries log, to stderr; `level` = info, warning or error."""
    render: Any = (
        structlog.processors.JSONRenderer(serializer=lambda event, **_: _json_line(event))
        if as_json
        else structlog.dev.ConsoleRenderer(
            colors=sys.stderr.isatty(), exception_formatter=structlog.dev.plain_traceback
        )
    )
    structlog.configure(
        processors=[
            _with_request_id,
            structlog.processors.add_log_level,
            structlog.processors.TimeStamper(fmt="iso", utc=True),
            structlog.processors.format_exc_info,
            *(() if as_json else (_printable,)),
            render,
        ],
        wrapper_class=structlog.make_filtering_bound_logger(level),
        logger_factory=structlog.WriteLoggerFactory(sys.stderr),
        cache_logger_on_first_use=True,
    )
    logging.basicConfig(level=logging.WARNING, handlers=[_Forward()], force=True)


def _with_request_id(_logger: object, _name: str, event: MutableMapping[str, Any]) -> MutableMapping[str, Any]:
    if (id_ := REQUEST_ID.get()) is not None:
        event.setdefault("request_id", id_)
    return event


def _json_line(event: Mapping[str, Any]) -> str:
    """Write one line of printable ASCII where it is not that anyway: no byte of a peer's reaches a terminal."""
    try:
        text = to_json(event, fallback=str).decode()
    except ValueError:  # a lone surrogate, or bytes that are no text
        text = ""
    return text if text and text.isascii() and text.isprintable() else json.dumps(event, default=str)


def _printable(_logger: object, _name: str, event: MutableMapping[str, Any]) -> Mapping[str, Any]:
    """Escape every value, so that none of a peer's reaches a terminal; a traceback keeps its lines, indented."""
    return {
        name: "\n".join(f"  {escape(line)}" for line in value.split("\n")) if name == "exception" else _shown(value)
        for name, value in event.items()
    }


def _shown(value: object) -> object:
    if isinstance(value, str):
        return escape(value)
    return value if repr(value).isprintable() else escape(repr(value))


class _Forward(logging.Handler):
    """Passes what libraries log into our one stream, so that every line has one form."""

    def emit(self, record: logging.LogRecord) -> None:
        log = structlog.get_logger()
        log.log(
            record.levelno,
            "library",
            logger=record.name,
            message=record.getMessage(),
            exc_info=record.exc_info,
        )


class _Process(ProcessCollector):
    """process_*, also where /proc/stat is hidden (systemd's ProcSubset=pid), from which the library takes this."""

    def _boot_time(self) -> float:
        return time.clock_gettime(time.CLOCK_REALTIME) - time.clock_gettime(time.CLOCK_BOOTTIME)


# What an attempt leaves a message in.
_ENDS = (
    MessageState.SENT,
    MessageState.PARTIAL,
    MessageState.DEFERRED,
    MessageState.FAILED,
    MessageState.IN_DOUBT,
    MessageState.QUEUED,
)


class Metrics:
    """Every figure of this process, in a registry of its own.

    `messages`, `attempts`, `smtp_phase` and `http_request` are called with their labels. They remember what they
    give: the hot path uses each several times a mail, and the library looks it up under a lock.
    """

    def __init__(self, version: str) -> None:
        disable_created_metrics()  # type: ignore[no-untyped-call]  # a second series for each counter, which nobody reads
        self.registry = CollectorRegistry()
        r = self.registry
        _Process(registry=r)
        self.messages = cache(
            Counter(
                "mailchute_messages_total",
                "Messages by the state that an attempt left them in, or that an open circuit did.",
                ["profile", "state"],
                registry=r,
            ).labels
        )
        self.attempts = cache(
            Counter(
                "mailchute_attempts_total",
                "Attempts by how they ended; no error code = sent.",
                ["profile", "error_code", "reason"],
                registry=r,
            ).labels
        )
        self.queue_messages = Gauge("mailchute_queue_messages", "Messages that wait.", ["profile", "state"], registry=r)
        self.queue_oldest = Gauge("mailchute_queue_oldest_seconds", "Age of the oldest message that waits.", registry=r)
        self.in_doubt = Gauge("mailchute_in_doubt", "Messages whose outcome nobody knows.", registry=r)
        self.log_bytes = Gauge("mailchute_store_log_bytes", "Size of the database's write-ahead log.", registry=r)
        self.free_bytes = Gauge("mailchute_disk_free_bytes", "Free on the database's disk.", registry=r)
        self.circuit_open = Gauge(
            "mailchute_circuit_open",
            "1 while a profile's circuit is open, by why; the series without a reason is always 0.",
            ["profile", "reason"],
            registry=r,
        )
        self.smtp_phase = cache(
            Histogram(
                "mailchute_smtp_phase_seconds",
                "Time spent in each phase of an attempt.",
                ["profile", "phase"],
                registry=r,
                buckets=(0.001, 0.005, 0.02, 0.1, 0.5, 2, 10, 60, 300),
            ).labels
        )
        self.http_request = cache(
            Histogram(
                "mailchute_http_request_seconds",
                "Time to answer, waiting for a verdict included.",
                ["route", "status"],
                registry=r,
                buckets=(0.001, 0.005, 0.02, 0.1, 0.5, 2, 10, 30),
            ).labels
        )
        for status in ("200", "202", "424", "401", "413", "422", "503"):
            self.http_request("/send", status)  # at 0, for increase() to see the first one
        Gauge("mailchute_build_info", "Always 1.", ["version"], registry=r).labels(version).set(1)

    def begin(self, profiles: Iterable[str]) -> None:
        """Let every series of these profiles begin at 0, so that increase() sees the first event; repeat it at will."""
        for profile in profiles:
            for state in _ENDS:
                self.messages(profile, state.value)
            self.attempts(profile, "", "")
            for reason, code in CODE_OF.items():
                self.attempts(profile, code.value, reason.value)
            for phase in Phase:
                self.smtp_phase(profile, phase.value)
            self.circuit_open.labels(profile, "")

    def render(self) -> bytes:
        """Write all figures in Prometheus' text format."""
        return generate_latest(self.registry)
