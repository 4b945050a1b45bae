"""What FastAPI's wrappers share: the runtime of a request, and an `Answer` as a Response."""

from __future__ import annotations

from typing import cast
from uuid import UUID

from fastapi import Request, Response

from app.api.edge import Answer, Headers, headers_of, visit_of
from app.api.lookup import bare_message_id, id_of
from app.intake.callers import Caller
from app.mail.errors import NotFound
from app.runtime import Runtime


def runtime_of(request: Request) -> Runtime:
    return cast("Runtime", request.app.state.runtime)


def headers_in(request: Request) -> Headers:
    return headers_of(request.scope)


async def caller_of(request: Request) -> Caller:
    """The dependency of every route that is not open to all.

    Raises:
        Unauthenticated: nobody we know.
    """
    return runtime_of(request).callers.identify(visit_of(request.scope, headers_in(request)))


async def message_of(request: Request, text: str) -> UUID:
    """Return the id of the message with this id or Message-ID.

    Raises:
        NotFound: it is neither; or a Message-ID that no message has. Whether an id has a message is not looked up.
    """
    id_ = id_of(text)
    if "@" in text:
        snapshot = await runtime_of(request).history.find(id_)
        if snapshot is None or snapshot.message_id != f"<{bare_message_id(text)}>":
            raise NotFound(f"There is no message {text[:80]}")
    return id_


def to_response(answer: Answer) -> Response:
    response = Response(answer.body, answer.status)
    response.raw_headers = [*answer.headers, (b"content-length", str(len(answer.body)).encode())]
    return response
