"""Looking messages up: one, a page of them, and the bytes that were or will be sent."""

from __future__ import annotations

from base64 import b64decode, urlsafe_b64encode
from typing import Annotated
from uuid import UUID

from fastapi import APIRouter, Depends, Query, Request, Response

from app.api import answers
from app.api.answers import MessageDetails, MessageList
from app.api.document import KEYS, problems
from app.api.edge import Answer, answer_json
from app.api.routes import caller_of, runtime_of, to_response
from app.mail.errors import Fault, InvalidMessage, NotFound

MAX_PAGE = 100

router = APIRouter(tags=["messages"], dependencies=[Depends(caller_of), *KEYS])


@router.get(
    "/messages",
    operation_id="listMessages",
    summary="List messages, newest first",
    response_model=MessageList,
    responses=problems(401, 422, 503),
)
async def list_messages(
    request: Request,
    limit: Annotated[str, Query(description=f"messages a page, 1 to {MAX_PAGE}")] = "20",
    cursor: Annotated[str, Query(description="`next_cursor` of the page before")] = "",
) -> Response:
    """Give a page of messages, newest first; `next_cursor`, and the Link header, lead to the next."""
    at_most = _limit(limit)
    before = _cursor(cursor) if cursor else None
    found = await runtime_of(request).history.newest(at_most=at_most + 1, before=before)
    page, has_more = found[:at_most], len(found) > at_most
    next_cursor = urlsafe_b64encode(page[-1].id.bytes).decode().rstrip("=") if has_more else None
    answer = answer_json(
        {
            "data": [answers.flat(snapshot) for snapshot in page],
            "has_more": has_more,
            "next_cursor": next_cursor,
        }
    )
    if next_cursor:
        link = f'</messages?limit={at_most}&cursor={next_cursor}>; rel="next"'.encode()
        answer = Answer(answer.status, answer.body, (*answer.headers, (b"link", link)))
    return to_response(answer)


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
    message_id = _id(id)
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
    content = await runtime_of(request).outbox.content(_id(id))
    if content is None:
        raise NotFound(f"There is no message {id[:80]}, or its content is not kept any more")
    return to_response(Answer(200, content, ((b"content-type", b"message/rfc822"),)))


def _id(text: str) -> UUID:
    try:
        return UUID(text)
    except ValueError as error:
        raise NotFound(f"There is no message {text[:80]}") from error


def _limit(text: str) -> int:
    if not (text.isascii() and text.isdigit() and len(text) <= 9 and 1 <= int(text) <= MAX_PAGE):
        raise InvalidMessage.of([Fault("", f"limit is a number from 1 to {MAX_PAGE}, not {text[:20]!r}")])
    return int(text)


def _cursor(text: str) -> UUID:
    try:
        return UUID(bytes=b64decode(text + "=" * (-len(text) % 4), altchars=b"-_", validate=True))
    except ValueError as error:
        raise InvalidMessage.of([Fault("", "cursor is not one that we gave; leave it out to begin")]) from error
