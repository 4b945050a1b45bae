"""For whoever runs the service: is it alive, is it ready, is all well, and the figures.

`/livez` and `/readyz` are open to all and say nothing of mail; `/readyz` never asks a remote relay, since a relay
that is down is no reason to take the service away. `/health` follows draft-inadarei-api-health-check-06.
"""

from __future__ import annotations

import sqlite3
from typing import Any, Literal

from fastapi import APIRouter, Depends, Request, Response
from pydantic import BaseModel

from app import __version__
from app.api.document import KEYS, problems
from app.api.edge import Answer, answer_json
from app.api.routes import caller_of, runtime_of, to_response
from app.mail.errors import StoreUnavailable
from app.mail.outcome import MessageState
from app.mail.profile import SANDBOX_PROFILE, TlsMode
from app.runtime import Runtime
from app.store.census import WAITING
from app.store.journal import LOG_BYTES
from app.telemetry import CONTENT_TYPE

CHECKED_WITHIN = 3.0  # seconds; less than a probe's, and than `mailchute health` waits
_WAL_BUG_ENDS = (3, 51, 3)  # sqlite.org/wal.html#walresetbug

router = APIRouter(tags=["operation"])


class Alive(BaseModel):
    """The process answers."""

    status: Literal["pass", "fail"]


class Health(BaseModel):
    """health+json: the worst of its checks decides."""

    status: Literal["pass", "warn", "fail"]
    version: str
    checks: dict[str, list[dict[str, Any]]]


_HEALTH_JSON = {"application/health+json": {"schema": {"$ref": "#/components/schemas/Health"}}}


@router.get("/livez", operation_id="isAlive", summary="Is the process alive?", response_model=Alive)
async def livez() -> Response:
    """Always 200 while the process answers."""
    return to_response(answer_json({"status": "pass"}))


@router.get(
    "/readyz",
    operation_id="isReady",
    summary="Can it take messages?",
    response_model=Alive,
    responses={503: {"model": Alive, "description": "A message cannot be taken, or should not: it is being stopped"}},
)
async def readyz(request: Request) -> Response:
    """200 where the store takes writes, has room, and is not being stopped; never asks a remote relay."""
    runtime = runtime_of(request)
    try:
        await runtime.outbox.check(within=CHECKED_WITHIN)
    except StoreUnavailable:
        return to_response(answer_json({"status": "fail"}, status=503))
    if runtime.is_stopping or runtime.room.shortage():
        return to_response(answer_json({"status": "fail"}, status=503))
    return to_response(answer_json({"status": "pass"}))


@router.get(
    "/health",
    operation_id="getHealth",
    summary="Is all well?",
    response_class=Response,
    responses={
        200: {"model": Health, "content": _HEALTH_JSON},
        503: {
            "model": Health,
            "content": _HEALTH_JSON,
            "description": "A message cannot be taken: the store cannot be written, or there is no room",
        },
        **problems(401),
    },
    dependencies=[Depends(caller_of), *KEYS],
)
async def health(request: Request) -> Response:
    """Say what an operator should know: the store, the queue, and every profile that deserves a second look."""
    runtime = runtime_of(request)
    checks = {"store": [await _store(runtime)], "room": [_room(runtime)], "log": [_log(runtime)], "sqlite": [_sqlite()]}
    if checks["store"][0]["status"] != "fail":
        in_doubt = runtime.census.of(MessageState.IN_DOUBT)
        checks["queue"] = [{"status": "pass", "observedValue": runtime.census.waiting, "observedUnit": "messages"}]
        checks["in_doubt"] = [
            {"status": "warn" if in_doubt else "pass", "observedValue": in_doubt, "observedUnit": "messages"}
        ]
    checks["profiles"] = [_profile(runtime, name) for name in sorted(runtime.profiles)]
    statuses = {check["status"] for several in checks.values() for check in several}
    worst = next((status for status in ("fail", "warn") if status in statuses), "pass")
    shape = {"status": worst, "version": __version__, "checks": checks}
    return to_response(
        answer_json(shape, status=503 if worst == "fail" else 200, content_type=b"application/health+json")
    )


@router.get(
    "/metrics",
    operation_id="getMetrics",
    summary="Prometheus metrics",
    response_class=Response,
    responses={
        200: {"content": {"text/plain": {"schema": {"type": "string"}}}},
        **problems(401, 503),
    },
    dependencies=[Depends(caller_of), *KEYS],
)
async def metrics(request: Request) -> Response:
    """Give all figures in Prometheus' text format."""
    runtime = runtime_of(request)
    figures = runtime.metrics
    now = runtime.now()
    oldest = await runtime.history.oldest_waiting(list(runtime.profiles), now=now)
    for profile in {*runtime.profiles, *runtime.census.profiles}:
        for state in WAITING:
            figures.queue_messages.labels(profile, state).set(runtime.census.of_profile(profile, state))
    figures.queue_oldest.set(max(0.0, (now - oldest).total_seconds()) if oldest else 0.0)
    figures.log_bytes.set(runtime.journal.log_bytes)
    figures.free_bytes.set(runtime.room.free_bytes)
    figures.in_doubt.set(runtime.census.of(MessageState.IN_DOUBT))
    return to_response(Answer(200, figures.render(), ((b"content-type", CONTENT_TYPE.encode()),)))


async def _store(runtime: Runtime) -> dict[str, Any]:
    try:
        await runtime.outbox.check(within=CHECKED_WITHIN)
    except StoreUnavailable as error:
        return {"status": "fail", "output": str(error)}
    return {"status": "pass"}


def _room(runtime: Runtime) -> dict[str, Any]:
    free = {"observedValue": runtime.room.free_bytes, "observedUnit": "bytes free"}
    short = runtime.room.shortage()
    return {"status": "fail", **free, "output": short} if short else {"status": "pass", **free}


def _log(runtime: Runtime) -> dict[str, Any]:
    check: dict[str, Any] = {"status": "pass", "observedValue": runtime.journal.log_bytes, "observedUnit": "bytes"}
    if check["observedValue"] > LOG_BYTES:
        check["status"] = "warn"
        check["output"] = "the database's log grows: another program reads in it all the time; end that one"
    return check


def _sqlite() -> dict[str, Any]:
    check: dict[str, Any] = {"status": "pass", "observedValue": sqlite3.sqlite_version}
    if sqlite3.sqlite_version_info < _WAL_BUG_ENDS:
        # Not a warning: one writer in one process, which is how we open it, does not meet the bug.
        check["output"] = "this SQLite has the WAL-reset bug; only this process may write the file"
    return check


def _profile(runtime: Runtime, name: str) -> dict[str, Any]:
    profile = runtime.profiles[name]
    check: dict[str, Any] = {"componentId": name, "status": "pass"}
    standing = runtime.worker.standing(name)
    if (since := standing.paused_at) is not None:
        return check | {"status": "warn", "output": f"paused since {since.isoformat(timespec='seconds')}"}
    if (circuit := standing.circuit) is not None:
        why = f"{circuit.failure.code}/{circuit.failure.reason}: {circuit.failure.message}"
        said = f"circuit open since {circuit.opened_at.isoformat(timespec='seconds')}: {why}. {circuit.failure.hint}"
        return check | {"status": "warn", "output": said}
    if profile.sandbox:
        said = "messages are kept here and not sent" if name == SANDBOX_PROFILE else "fails on purpose"
        return check | {"status": "warn", "output": f"sandbox: {said}"}
    if profile.tls in (TlsMode.NONE, TlsMode.OPPORTUNISTIC):
        said = "is not encrypted" if profile.tls is TlsMode.NONE else "may go on in clear"
        return check | {"status": "warn", "output": f"the way to {profile.host}:{profile.port} {said}"}
    if not profile.verify:
        return check | {"status": "warn", "output": f"the certificate of {profile.host} is not verified"}
    return check
