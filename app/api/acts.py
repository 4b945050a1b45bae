"""Acting on messages: cancel, retry, resolve; one, or all that match."""

from __future__ import annotations

from typing import Any
from uuid import UUID

from fastapi import APIRouter, Depends, Request, Response
from pydantic import BaseModel, Field

from app.api.answers import MessageAnswer, MessageNotSent
from app.api.body import Resolution, small_of
from app.api.document import KEYS, in_both_types, parameters, problems
from app.api.edge import answer_json, answer_to_post, began_at, preference_of
from app.api.lookup import (
    FILTERED_BY,
    PAGED_BY,
    cursor_of,
    fault,
    filter_of,
    flag_of,
    limit_of,
    refuse_unknown,
    written,
)
from app.api.media import check_media_type
from app.api.routes import caller_of, headers_in, message_of, runtime_of, to_response
from app.mail.acts import Act
from app.store.verdicts import in_time

_DRY_RUN = {"dry_run": "`true`: count what it would be done to, and do nothing"}
_IN_STEPS = {"limit": "look at so many and no more, 1 to 100; all", "cursor": PAGED_BY["cursor"]}

router = APIRouter(tags=["messages"], dependencies=[Depends(caller_of), *KEYS])


class Count(BaseModel):
    """How many messages an act was done to, or would be by a dry run."""

    count: int
    has_more: bool = Field(description="only with `limit`: not all were looked at yet")
    next_cursor: str | None


_OF_AN_ACT: dict[int | str, dict[str, Any]] = {
    202: {"model": MessageAnswer, "description": "Not ended yet. Look at `ok`."},
    **problems(401, 404, 409, 503),
}


@router.post(
    "/messages/{id}/retry",
    operation_id="retryMessage",
    summary="Send a message again now",
    response_model=MessageAnswer,
    responses={**_OF_AN_ACT, 424: in_both_types(MessageNotSent, "Refused again")},
)
async def retry_message(request: Request, id: str) -> Response:
    """Send at once what waits, and again what was refused, has expired or is in doubt; waits as POST /send does.

    What is in doubt may arrive twice: look at the relay first.
    """
    runtime, headers, message_id = runtime_of(request), headers_in(request), await message_of(request, id)
    preference = preference_of(headers)
    until = began_at(request.scope) + preference.seconds(runtime.settings.default_wait)
    verdict = runtime.verdicts.expect(message_id)
    try:
        snapshot = await in_time(verdict, await runtime.control.act(Act.RETRY, message_id), until=until)
    finally:
        verdict.cancel()
    return to_response(answer_to_post(snapshot, runtime, request.scope, applied=preference.applied))


@router.post(
    "/messages/{id}/cancel",
    operation_id="cancelMessage",
    summary="Cancel what is not sent yet",
    response_model=MessageAnswer,
    responses=_OF_AN_ACT,
)
async def cancel_message(request: Request, id: str) -> Response:
    """Stop what waits. What is being sent cannot be stopped any more (409): it is cancelled or sent, never both."""
    snapshot = await runtime_of(request).control.act(Act.CANCEL, await message_of(request, id))
    return to_response(answer_to_post(snapshot, runtime_of(request), request.scope))


@router.post(
    "/messages/{id}/resolve",
    operation_id="resolveMessage",
    summary="Say what became of a message in doubt",
    response_model=MessageAnswer,
    responses={**_OF_AN_ACT, 424: in_both_types(MessageNotSent, "Resolved as failed"), **problems(413, 415, 422)},
    openapi_extra={
        "requestBody": {"required": True, "content": {"application/json": {"schema": Resolution.model_json_schema()}}}
    },
)
async def resolve_message(request: Request, id: str) -> Response:
    """Settle a message in doubt by what the relay's log says: `{"as": "sent"}` or `{"as": "failed"}`."""
    body = await request.body()
    check_media_type(headers_in(request), body)
    resolution = small_of(Resolution, body)
    act = Act.RESOLVE_AS_SENT if resolution.as_ == "sent" else Act.RESOLVE_AS_FAILED
    snapshot = await runtime_of(request).control.act(act, await message_of(request, id))
    return to_response(answer_to_post(snapshot, runtime_of(request), request.scope))


@router.post(
    "/messages/retry",
    operation_id="retryMessages",
    summary="Send all that match again",
    response_model=Count,
    responses=problems(401, 422, 503),
    openapi_extra={"parameters": parameters(**FILTERED_BY, **_IN_STEPS, **_DRY_RUN)},
)
async def retry_messages(request: Request) -> Response:
    """Retry every message that matches; those in doubt only where `state=in_doubt` asks for them."""
    return await _do_all(request, Act.RETRY)


@router.post(
    "/messages/cancel",
    operation_id="cancelMessages",
    summary="Cancel all that match",
    response_model=Count,
    responses=problems(401, 422, 503),
    openapi_extra={"parameters": parameters(**FILTERED_BY, **_IN_STEPS, **_DRY_RUN)},
)
async def cancel_messages(request: Request) -> Response:
    """Cancel what is not sent yet of every message that matches."""
    return await _do_all(request, Act.CANCEL)


async def _do_all(request: Request, act: Act) -> Response:
    runtime, query = runtime_of(request), request.query_params
    refuse_unknown(query, {*FILTERED_BY, *PAGED_BY, *_DRY_RUN})
    is_dry = flag_of(query, "dry_run")
    if not any(query.get(name) for name in FILTERED_BY):
        raise fault("name at least one filter, so that not everything is touched by accident; state=deferred, say")
    which = filter_of(query, now=runtime.now())
    if not query.get("limit"):
        count, rest = await runtime.control.act_on_all(act, which, is_dry=is_dry), None
    else:
        cursor = cursor_of(query)
        count, rest = await runtime.control.act_on_some(
            act, which, at_most=limit_of(query), before=UUID(bytes=cursor) if cursor else None, is_dry=is_dry
        )
    next_cursor = written(rest.bytes) if rest else None
    return to_response(answer_json({"count": count, "has_more": rest is not None, "next_cursor": next_cursor}))
