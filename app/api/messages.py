"""Looking messages and attempts up, and acting on them: cancel, retry, resolve; one, or all that match."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from typing import Any, Literal
from uuid import UUID

from fastapi import APIRouter, Depends, Request, Response
from pydantic import BaseModel, Field

from app.api import answers
from app.api.answers import AttemptOfMessage, MessageAnswer, MessageDetails, MessageList, MessageNotSent
from app.api.document import KEYS, in_both_types, problems
from app.api.edge import Answer, answer_json, answer_to_post, preference_of
from app.api.lookup import MAX_PAGE, cursor_of, fault, filter_of, id_of, limit_of, link, schema_of, written
from app.api.routes import caller_of, headers_in, runtime_of, to_response
from app.mail.acts import Act
from app.mail.errors import NotFound

router = APIRouter(tags=["messages"], dependencies=[Depends(caller_of), *KEYS])

_FILTERS: dict[str, str] = {
    "state": "queued, sending, deferred, sent, …",
    "error_code": "of the latest failure, such as EAUTH",
    "profile": "name of a profile",
    "sender": "MAIL FROM",
    "recipient": "one address",
    "tag": "one tag",
    "since": "accepted at this instant or later; RFC 3339, a date, or how long ago (24h)",
    "until": "accepted before this instant",
}


def _parameters(**said: str) -> list[dict[str, Any]]:
    return [
        {
            "name": name,
            "in": "query",
            "required": False,
            "allowEmptyValue": True,
            "schema": schema_of(name),
            "description": description,
        }
        for name, description in said.items()
    ]


_PAGE = {"limit": f"entries a page, 1 to {MAX_PAGE}; 20", "cursor": "`next_cursor` of the page before"}


class AttemptList(BaseModel):
    """One page of attempts, of the newest message first."""

    data: list[AttemptOfMessage]
    has_more: bool
    next_cursor: str | None


class Count(BaseModel):
    """How many messages an act was done to."""

    count: int


class Resolution(BaseModel):
    """What became of a message in doubt, as somebody found out."""

    as_: Literal["sent", "failed"] = Field(alias="as")


@router.get(
    "/messages",
    operation_id="listMessages",
    summary="List messages, newest first",
    response_model=MessageList,
    responses=problems(401, 422, 503),
    openapi_extra={"parameters": _parameters(**_FILTERS, **_PAGE)},
)
async def list_messages(request: Request) -> Response:
    """Give a page of messages, newest first; `next_cursor`, and the Link header, lead to the next."""
    runtime, query = runtime_of(request), request.query_params
    _refuse_unknown(query, {*_FILTERS, *_PAGE})
    at_most, cursor = limit_of(query), cursor_of(query)
    which = filter_of(query, now=runtime.now())
    before = UUID(bytes=cursor) if cursor else None
    found = await runtime.history.newest(which, at_most=at_most + 1, before=before)
    page = found[:at_most]
    next_cursor = written(page[-1].id.bytes) if len(found) > at_most else None
    return _page(request, [answers.flat(snapshot) for snapshot in page], next_cursor)


@router.get(
    "/attempts",
    operation_id="listAttempts",
    summary="List attempts, of the newest message first",
    response_model=AttemptList,
    responses=problems(401, 422, 503),
    openapi_extra={
        "parameters": _parameters(
            error_code="such as EAUTH", profile="name of a profile", since=_FILTERS["since"], **_PAGE
        )
    },
)
async def list_attempts(request: Request) -> Response:
    """Give a page of attempts, each with its message's id; `next_cursor`, and the Link header, lead to the next."""
    runtime, query = runtime_of(request), request.query_params
    _refuse_unknown(query, {"error_code", "profile", "since", *_PAGE})
    at_most, cursor = limit_of(query), cursor_of(query, 20)
    which = filter_of(query, now=runtime.now())
    found = await runtime.history.newest_attempts(
        at_most=at_most + 1,
        error_code=which.error_code,
        profile=which.profile,
        since=which.since,
        before=(UUID(bytes=cursor[:16]), int.from_bytes(cursor[16:])) if cursor else None,
    )
    page = found[:at_most]
    last = page[-1] if len(found) > at_most else None
    next_cursor = written(last[0].bytes + last[1].number.to_bytes(4)) if last else None
    return _page(request, [{"id": str(id_), **answers.attempt(record)} for id_, record in page], next_cursor)


@router.get(
    "/messages/{id}",
    operation_id="getMessage",
    summary="Look a message up",
    response_model=MessageDetails,
    responses=problems(401, 404, 503),
)
async def get_message(request: Request, id: str) -> Response:
    """Give everything that is known of a message: its state, its recipients, and every attempt with its transcript."""
    history = runtime_of(request).history
    message_id = id_of(id)
    snapshot = await history.find(message_id)
    if snapshot is None:
        raise NotFound(f"There is no message {id[:80]}")
    return to_response(answer_json(answers.details(snapshot, await history.attempts(message_id))))


@router.get(
    "/messages/{id}/raw",
    operation_id="getMessageSource",
    summary="Get a message's source",
    response_class=Response,
    responses={
        **problems(401, 404, 503),
        200: {"content": {"message/rfc822": {"schema": {"type": "string", "format": "binary"}}}},
    },
)
async def get_message_source(request: Request, id: str) -> Response:
    """Give the very bytes that every attempt sends (RFC 5322)."""
    content = await runtime_of(request).outbox.content(id_of(id))
    if content is None:
        raise NotFound(f"There is no message {id[:80]}, or its content is not kept any more")
    return to_response(Answer(200, content, ((b"content-type", b"message/rfc822"),)))


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
    runtime, headers, message_id = runtime_of(request), headers_in(request), id_of(id)
    preference = preference_of(headers)
    wait = runtime.settings.default_wait if preference.wait is None else preference.wait
    verdict = runtime.verdicts.expect(message_id)
    try:
        snapshot = await runtime.act(Act.RETRY, message_id)
        if wait and not preference.respond_async:
            try:
                async with asyncio.timeout(wait):
                    snapshot = await verdict or snapshot
            except TimeoutError:
                pass
    finally:
        verdict.cancel()
    return to_response(answer_to_post(snapshot, runtime, headers))


@router.post(
    "/messages/{id}/cancel",
    operation_id="cancelMessage",
    summary="Cancel what is not sent yet",
    response_model=MessageAnswer,
    responses=_OF_AN_ACT,
)
async def cancel_message(request: Request, id: str) -> Response:
    """Stop what waits. What is being sent cannot be stopped any more (409): it is cancelled or sent, never both."""
    snapshot = await runtime_of(request).act(Act.CANCEL, id_of(id))
    return to_response(answer_to_post(snapshot, runtime_of(request), headers_in(request)))


@router.post(
    "/messages/{id}/resolve",
    operation_id="resolveMessage",
    summary="Say what became of a message in doubt",
    response_model=MessageAnswer,
    responses={**_OF_AN_ACT, 424: in_both_types(MessageNotSent, "Resolved as failed"), **problems(413, 422)},
)
async def resolve_message(request: Request, id: str, resolution: Resolution) -> Response:
    """Settle a message in doubt by what the relay's log says: `{"as": "sent"}` or `{"as": "failed"}`."""
    act = Act.RESOLVE_AS_SENT if resolution.as_ == "sent" else Act.RESOLVE_AS_FAILED
    snapshot = await runtime_of(request).act(act, id_of(id))
    return to_response(answer_to_post(snapshot, runtime_of(request), headers_in(request)))


@router.post(
    "/messages/retry",
    operation_id="retryMessages",
    summary="Send all that match again",
    response_model=Count,
    responses=problems(401, 422, 503),
    openapi_extra={"parameters": _parameters(**_FILTERS)},
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
    openapi_extra={"parameters": _parameters(**_FILTERS)},
)
async def cancel_messages(request: Request) -> Response:
    """Cancel what is not sent yet of every message that matches."""
    return await _do_all(request, Act.CANCEL)


async def _do_all(request: Request, act: Act) -> Response:
    runtime, query = runtime_of(request), request.query_params
    _refuse_unknown(query, set(_FILTERS))
    if not any(query.values()):
        raise fault("name at least one filter, so that not everything is touched by accident; state=deferred, say")
    which = filter_of(query, now=runtime.now())
    return to_response(answer_json({"count": await runtime.act_on_all(act, which)}))


def _page(request: Request, data: list[dict[str, Any]], next_cursor: str | None) -> Response:
    answer = answer_json({"data": data, "has_more": next_cursor is not None, "next_cursor": next_cursor})
    if next_cursor is not None:
        said = link(request.url.path, request.query_params, next_cursor)
        answer = Answer(answer.status, answer.body, (*answer.headers, said))
    return to_response(answer)


def _refuse_unknown(query: Mapping[str, str], known: set[str]) -> None:
    for name in query:
        if name not in known:
            raise fault(f"{name[:40]!r} is not a parameter here; known are: {', '.join(sorted(known))}")


# /messages/cancel before /messages/{id}: a 405 tells the methods of the first path that fits.
router.routes.sort(key=lambda route: "{" in getattr(route, "path", ""))
