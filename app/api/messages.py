"""Looking messages and attempts up."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterable
from typing import Any
from uuid import UUID

from fastapi import APIRouter, Depends, Request, Response
from fastapi.responses import StreamingResponse
from pydantic import BaseModel
from pydantic_core import to_json

from app.api import answers
from app.api.answers import AttemptOfMessage, MessageDetails, MessageList
from app.api.document import KEYS, parameters, problems
from app.api.edge import Answer, answer_json
from app.api.lookup import (
    FILTERED_BY,
    PAGED_BY,
    cursor_of,
    filter_of,
    limit_of,
    link,
    refuse_unknown,
    written,
)
from app.api.routes import caller_of, message_of, runtime_of, to_response
from app.mail.errors import NotFound
from app.store.journal import PATIENCE

router = APIRouter(tags=["messages"], dependencies=[Depends(caller_of), *KEYS])


class AttemptList(BaseModel):
    """One page of attempts, of the newest message first."""

    data: list[AttemptOfMessage]
    has_more: bool
    next_cursor: str | None


@router.get(
    "/messages",
    operation_id="listMessages",
    summary="List messages, newest first",
    response_model=MessageList,
    responses=problems(401, 422, 503),
    openapi_extra={"parameters": parameters(**FILTERED_BY, **PAGED_BY)},
)
async def list_messages(request: Request) -> Response:
    """Give a page of messages, newest first; `next_cursor`, and the Link header, lead to the next."""
    runtime, query = runtime_of(request), request.query_params
    refuse_unknown(query, {*FILTERED_BY, *PAGED_BY})
    at_most, cursor = limit_of(query), cursor_of(query)
    which = filter_of(query, now=runtime.now())
    before = UUID(bytes=cursor) if cursor else None
    found = await runtime.history.newest(which, at_most=at_most + 1, before=before)
    page = found[:at_most]
    next_cursor = written(page[-1].id.bytes) if len(found) > at_most else None
    return await _page(request, (answers.entry(snapshot) for snapshot in page), next_cursor)


@router.get(
    "/attempts",
    operation_id="listAttempts",
    summary="List attempts, of the newest message first",
    response_model=AttemptList,
    responses=problems(401, 422, 503),
    openapi_extra={
        "parameters": parameters(
            error_code="such as EAUTH",
            profile="name of a profile",
            since=f"of messages {FILTERED_BY['since']}",
            until=f"of messages {FILTERED_BY['until']}",
            **PAGED_BY,
        )
    },
)
async def list_attempts(request: Request) -> Response:
    """Give a page of attempts, each with its message's id; `next_cursor`, and the Link header, lead to the next."""
    runtime, query = runtime_of(request), request.query_params
    refuse_unknown(query, {"error_code", "profile", "since", "until", *PAGED_BY})
    at_most, cursor = limit_of(query), cursor_of(query, 20)
    which = filter_of(query, now=runtime.now())
    found = await runtime.history.newest_attempts(
        at_most=at_most + 1,
        error_code=which.error_code,
        profile=which.profile,
        since=which.since,
        until=which.until,
        before=(UUID(bytes=cursor[:16]), int.from_bytes(cursor[16:])) if cursor else None,
    )
    page = found[:at_most]
    last = page[-1] if len(found) > at_most else None
    next_cursor = written(last[0].bytes + last[1].number.to_bytes(4)) if last else None
    return await _page(request, ({"id": str(id_), **answers.attempt(record)} for id_, record in page), next_cursor)


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
    message_id = await message_of(request, id)
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
    runtime, message_id = runtime_of(request), await message_of(request, id)
    snapshot = await runtime.history.find(message_id)
    parts = runtime.outbox.parts(message_id, within=PATIENCE)
    first = await anext(parts, None)
    if snapshot is None or first is None:
        raise NotFound(f"There is no message {id[:80]}, or its content is not kept any more")
    # Read part by part as the caller takes it: a caller that is slow holds one part, and not the whole.
    source = StreamingResponse(_behind(first, parts), media_type="message/rfc822")
    source.headers["content-length"] = str(snapshot.size)
    return source


async def _behind(first: bytes, parts: AsyncIterator[bytes]) -> AsyncIterator[bytes]:
    yield first
    async for part in parts:
        yield part


async def _page(request: Request, entries: Iterable[dict[str, Any]], next_cursor: str | None) -> Response:
    """Write a page, entry by entry: a hundred messages to a thousand recipients each are 60 MB."""
    written_entries = []
    for entry in entries:
        written_entries.append(to_json(entry))
        await asyncio.sleep(0)
    rest = to_json({"has_more": next_cursor is not None, "next_cursor": next_cursor})
    body = b'{"data":[%b],%b' % (b",".join(written_entries), rest[1:])
    answer = Answer(200, body)
    if next_cursor is not None:
        said = link(request.scope["path"], request.query_params, next_cursor)
        answer = Answer(answer.status, answer.body, (*answer.headers, said))
    return to_response(answer)
