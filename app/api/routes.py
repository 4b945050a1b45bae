"""What FastAPI's wrappers share: the runtime of a request, and an `Answer` as a Response."""

from __future__ import annotations

from typing import cast

from fastapi import Request, Response

from app.api.edge import Answer, Headers, headers_of, visit_of
from app.intake.callers import Caller
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


def to_response(answer: Answer) -> Response:
    response = Response(answer.body, answer.status)
    response.raw_headers = [*answer.headers, (b"content-length", str(len(answer.body)).encode())]
    return response
