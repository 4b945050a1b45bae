"""For the control socket alone: which database this is, every change of a message's state, reloading settings."""

from __future__ import annotations

from collections.abc import AsyncIterator

from fastapi import APIRouter, Depends, Request, Response
from fastapi.responses import StreamingResponse
from pydantic_core import to_json

from app import __version__
from app.api.answers import flat
from app.api.edge import answer_json
from app.api.routes import caller_of, runtime_of, to_response
from app.intake.callers import Caller
from app.mail.errors import ConfigError, Fault, InvalidMessage, NotFound
from app.mail.escaping import escape
from app.store.verdicts import Verdicts

router = APIRouter()


@router.get("/service", include_in_schema=False)
async def identify(request: Request, caller: Caller = Depends(caller_of)) -> Response:  # noqa: B008
    """Return what a command looks at before it asks for anything: whether this service has the database it means."""
    if not caller.is_operator:
        raise NotFound("There is nothing at /service; /docs lists what is")
    file = runtime_of(request).database_file
    identity = {} if file is None else {"path": escape(str(file.path)), "device": file.device, "inode": file.inode}
    return to_response(answer_json({"version": __version__, **identity}))


@router.get("/changes", include_in_schema=False)
async def follow_changes(request: Request, caller: Caller = Depends(caller_of)) -> StreamingResponse:  # noqa: B008
    """Give a line of JSON, the flat shape, for each change from now on."""
    if not caller.is_operator:
        raise NotFound("There is nothing at /changes; /docs lists what is")
    return StreamingResponse(_lines(runtime_of(request).verdicts), media_type="application/x-ndjson")


@router.post("/reload", include_in_schema=False)
async def reload_settings(request: Request, caller: Caller = Depends(caller_of)) -> Response:  # noqa: B008
    """Read the settings again, as SIGHUP does; 422 with every fault, and nothing changed, where they cannot work."""
    runtime = runtime_of(request)
    if not caller.is_operator or runtime.reread is None:
        raise NotFound("There is nothing at /reload; /docs lists what is")
    try:
        warnings = runtime.reread()
    except ConfigError as error:
        raise InvalidMessage.of([Fault("", line) for line in str(error).splitlines()]) from error
    return to_response(answer_json({"profiles": list(runtime.profiles), "warnings": warnings}))


async def _lines(verdicts: Verdicts) -> AsyncIterator[bytes]:
    changes = verdicts.follow()
    yield b"\n"  # the head goes out, so that whoever follows knows that they do
    async for snapshot in changes:
        yield to_json(flat(snapshot)) + b"\n"
