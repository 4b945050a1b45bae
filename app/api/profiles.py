"""What can be asked of a profile, and done to it: how does it stand, does it work; pause, resume."""

from __future__ import annotations

from datetime import datetime
from difflib import get_close_matches
from typing import Any

from fastapi import APIRouter, Depends, Request, Response
from pydantic import BaseModel, Field

from app.api.answers import instant
from app.api.body import VerifyRequest, small_of
from app.api.diagnosis import DiagnosisAnswer, shape_of
from app.api.document import KEYS, problems
from app.api.edge import answer_json
from app.api.media import check_media_type
from app.api.routes import caller_of, headers_in, runtime_of, to_response
from app.mail.circuit import Circuit
from app.mail.errors import NotFound
from app.mail.message import NULL_SENDER
from app.mail.profile import AuthMode, Profile, TlsMode
from app.runtime import Runtime

router = APIRouter(tags=["profiles"], dependencies=[Depends(caller_of), *KEYS])


class PoolAnswer(BaseModel):
    """The connections to a relay."""

    idle: int
    taken: int
    waiting: int = Field(description="attempts that wait for one")
    limit: int = Field(description="max_connections")


class CircuitAnswer(BaseModel):
    """An open circuit: messages wait, with the failure that opened it, and cost no attempt."""

    opened_at: datetime = Field(description="since when nothing is tried")
    next_trial_at: datetime = Field(description="when it is probed, or one waiting message tries it")
    tried: int = Field(description="how often in vain since it opened")
    message_id: str | None = Field(description="id of the message whose attempt failed; null = a probe")
    error_code: str = Field(description="of the failure that opened it, as what follows")
    reason: str
    message: str
    hint: str = Field(description="what to change")


class ProfileAnswer(BaseModel):
    """A profile as it is set, without its secrets, and how it stands."""

    name: str
    default: bool = Field(description="taken where neither the request nor a route names one")
    sandbox: bool
    host: str
    port: int
    tls: TlsMode
    verify: bool = Field(description="whether the certificate must be good")
    auth: AuthMode
    logs_in: bool = Field(description="whether a session sends AUTH: only with credentials")
    from_: str | None = Field(alias="from")
    envelope_from: str | None
    fallback: list[str] = Field(description="profiles that take over at once where this one's relay cannot be used")
    paused_at: datetime | None = Field(description="null = it is not paused")
    circuit: CircuitAnswer | None = Field(description="null = closed")
    last_success_at: datetime | None = Field(description="when the latest attempt that went well began")
    under_way: int = Field(description="attempts")
    pool: PoolAnswer


class ProfileList(BaseModel):
    """Every profile."""

    data: list[ProfileAnswer]


@router.get(
    "/profiles",
    operation_id="listProfiles",
    summary="List the profiles, and how they stand",
    response_model=ProfileList,
    responses=problems(401, 503),
)
async def list_profiles(request: Request) -> Response:
    """Give every profile as it is set, without its secrets, and how it stands."""
    runtime = runtime_of(request)
    return to_response(answer_json({"data": [await _shape(runtime, p) for p in list(runtime.profiles.values())]}))


@router.get(
    "/profiles/{name}",
    operation_id="getProfile",
    summary="Look a profile up",
    response_model=ProfileAnswer,
    responses=problems(401, 404, 503),
)
async def get_profile(request: Request, name: str) -> Response:
    """Give one profile as it is set, without its secrets, and how it stands."""
    runtime = runtime_of(request)
    return to_response(answer_json(await _shape(runtime, _profile(runtime, name))))


@router.post(
    "/profiles/{name}/pause",
    operation_id="pauseProfile",
    summary="Begin nothing more through a profile",
    response_model=ProfileAnswer,
    responses=problems(401, 404, 503),
)
async def pause_profile(request: Request, name: str) -> Response:
    """Keep its mail waiting until it is resumed, across restarts too; what is under way goes on."""
    runtime = runtime_of(request)
    profile = _profile(runtime, name)
    await runtime.control.pause(profile.name)
    return to_response(answer_json(await _shape(runtime, profile)))


@router.post(
    "/profiles/{name}/resume",
    operation_id="resumeProfile",
    summary="Go on with a profile",
    response_model=ProfileAnswer,
    responses=problems(401, 404, 503),
)
async def resume_profile(request: Request, name: str) -> Response:
    """Send everything that waits for the profile now, except scheduled messages; this closes its circuit, too."""
    runtime = runtime_of(request)
    profile = _profile(runtime, name)
    await runtime.control.resume(profile.name)
    return to_response(answer_json(await _shape(runtime, profile)))


@router.post(
    "/profiles/{name}/verify",
    operation_id="verifyProfile",
    summary="Try a profile, stage by stage, without sending",
    response_model=DiagnosisAnswer,
    responses=problems(401, 404, 413, 415, 422, 429, 503),
    openapi_extra={
        "requestBody": {
            "required": False,
            "content": {
                "application/json": {
                    "schema": VerifyRequest.model_json_schema(),
                    "example": {"from": "bot@example.org", "to": "ann@example.org"},
                }
            },
        }
    },
)
async def verify_profile(request: Request, name: str) -> Response:
    """Resolve, connect, TLS, greeting, EHLO, STARTTLS, AUTH, MAIL, RCPT, then RSET: no content is sent.

    200 whether or not it works: `ok` says so. Where it is true, the profile's circuit closes, and what was deferred on
    the way to the relay is sent now. With a login at most once a minute (429): relays lock accounts.
    """
    runtime = runtime_of(request)
    profile = _profile(runtime, name)
    body = await request.body()
    if body:
        check_media_type(headers_in(request), body)
    said = small_of(VerifyRequest, body or b"{}")
    found = await runtime.doctor.diagnose(
        profile,
        sender=said.from_.addr_spec if said.from_ else None,
        recipient=said.to.addr_spec if said.to else None,
    )
    if found.is_ok:
        await runtime.control.verified(profile.name)
    return to_response(answer_json(shape_of(found)))


def _profile(runtime: Runtime, name: str) -> Profile:
    profile = runtime.profiles.get(name)
    if profile is None:
        near = get_close_matches(name[:80], runtime.profiles, n=1)
        cure = f"do you mean {near[0]}?" if near else f"there are: {', '.join(runtime.profiles)}"
        raise NotFound(f"There is no profile {name[:80]!r}; {cure}")
    return profile


async def _shape(runtime: Runtime, profile: Profile) -> dict[str, Any]:
    standing = runtime.worker.standing(profile.name)
    last = standing.last_success or await runtime.history.last_success(profile.name)
    idle, taken, waiting = runtime.pool.figures(profile.name)
    return {
        "name": profile.name,
        "default": profile.name == runtime.settings.default_profile,
        "sandbox": profile.sandbox,
        "host": profile.host,
        "port": profile.port,
        "tls": profile.tls,
        "verify": profile.requires_tls and profile.verify,
        "auth": profile.auth,
        "logs_in": profile.wants_login,
        "from": profile.from_address.addr_spec if profile.from_address else None,
        "envelope_from": NULL_SENDER if profile.envelope_from == "" else profile.envelope_from,
        "fallback": list(profile.fallback),
        "paused_at": instant(standing.paused_at) if standing.paused_at else None,
        "circuit": _circuit(standing.circuit) if standing.circuit else None,
        "last_success_at": instant(last) if last else None,
        "under_way": standing.under_way,
        "pool": {"idle": idle, "taken": taken, "waiting": waiting, "limit": profile.max_connections},
    }


def _circuit(circuit: Circuit) -> dict[str, Any]:
    failure = circuit.failure
    return {
        "opened_at": instant(circuit.opened_at),
        "next_trial_at": instant(circuit.next_trial_at),
        "tried": circuit.tried,
        "message_id": failure.message_id,
        "error_code": failure.code,
        "reason": failure.reason,
        "message": failure.message,
        "hint": failure.hint,
    }
