"""What can be asked of a profile: does it work?"""

from __future__ import annotations

from difflib import get_close_matches

from fastapi import APIRouter, Depends, Request, Response

from app.api.body import VerifyRequest, verify_of
from app.api.diagnosis import DiagnosisAnswer, shape_of
from app.api.document import KEYS, problems
from app.api.edge import answer_json
from app.api.media import check_media_type
from app.api.routes import caller_of, headers_in, runtime_of, to_response
from app.mail.errors import NotFound
from app.mail.profile import Profile
from app.runtime import Runtime

router = APIRouter(tags=["profiles"], dependencies=[Depends(caller_of), *KEYS])


@router.post(
    "/profiles/{name}/verify",
    operation_id="verifyProfile",
    summary="Try a profile, stage by stage, without sending",
    response_model=DiagnosisAnswer,
    responses=problems(401, 404, 415, 422, 429, 503),
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

    200 whether or not it works: `ok` says so. With a login at most once a minute (429): relays lock accounts.
    """
    runtime = runtime_of(request)
    profile = _profile(runtime, name)
    body = await request.body()
    if body:
        check_media_type(headers_in(request), body)
    said = verify_of(body or b"{}")
    found = await runtime.doctor.diagnose(
        profile,
        sender=said.from_.addr_spec if said.from_ else None,
        recipient=said.to.addr_spec if said.to else None,
    )
    return to_response(answer_json(shape_of(found)))


def _profile(runtime: Runtime, name: str) -> Profile:
    profile = runtime.profiles.get(name)
    if profile is None:
        near = get_close_matches(name, runtime.profiles, n=1)
        cure = f"do you mean {near[0]}?" if near else f"there are: {', '.join(runtime.profiles)}"
        raise NotFound(f"There is no profile {name[:80]!r}; {cure}")
    return profile
