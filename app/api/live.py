"""Every change of a message's state as it happens, for `mailchute tail`: the operator socket's alone."""

from __future__ import annotations

from collections.abc import AsyncIterator

from fastapi import APIRouter, Depends, Request
from fastapi.responses import StreamingResponse
from pydantic_core import to_json

from app.api.answers import flat
from app.api.routes import caller_of, runtime_of
from app.intake.callers import Caller
from app.mail.errors import NotFound
from app.store.verdicts import Verdicts

router = APIRouter()


@router.get("/changes", include_in_schema=False)
async def follow_changes(request: Request, caller: Caller = Depends(caller_of)) -> StreamingResponse:  # noqa: B008
    """Give a line of JSON, the flat shape, for each change from now on."""
    if not caller.is_operator:
        raise NotFound("There is nothing at /changes; /docs lists what is")
    return StreamingResponse(_lines(runtime_of(request).verdicts), media_type="application/x-ndjson")


async def _lines(verdicts: Verdicts) -> AsyncIterator[bytes]:
    changes = verdicts.follow()
    yield b"\n"  # the head goes out, so that whoever follows knows that they do
    async for snapshot in changes:
        yield to_json(flat(snapshot)) + b"\n"
