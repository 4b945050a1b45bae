"""What is kept of all messages: a backup of it, and what an address has left in it."""

from __future__ import annotations

from fastapi import APIRouter, Depends, Request, Response
from pydantic import BaseModel, Field

from app.api.body import BackupRequest, EraseRequest, small_of
from app.api.document import KEYS, problems
from app.api.edge import answer_json
from app.api.media import check_media_type
from app.api.routes import caller_of, headers_in, runtime_of, to_response
from app.intake.callers import Caller
from app.mail.errors import NotFound

router = APIRouter(tags=["operation"])


class Erased(BaseModel):
    """What became of an address's messages."""

    erased: int = Field(description="messages that had ended, and keep nothing of it but states, times and codes")
    live: int = Field(description="messages that were left as they are: they wait, are being sent, or are in doubt")


@router.post(
    "/erase",
    operation_id="eraseAddress",
    summary="Forget an address",
    response_model=Erased,
    responses=problems(401, 413, 415, 422, 503),
    dependencies=[Depends(caller_of), *KEYS],
    openapi_extra={
        "requestBody": {
            "required": True,
            "content": {
                "application/json": {
                    "schema": EraseRequest.model_json_schema(),
                    "example": {"address": "ann@example.org"},
                }
            },
        }
    },
)
async def erase_address(request: Request) -> Response:
    """Erase what ended messages to an address, or from it, hold of it: content, subject, texts, tags, metadata.

    The messages stay with their states, times and codes, and other recipients with them. After a 503 some of it may
    be done: ask again.
    """
    body = await request.body()
    check_media_type(headers_in(request), body)
    address = small_of(EraseRequest, body).address.addr_spec
    erased, live = await runtime_of(request).erasing.erase(address)
    return to_response(answer_json({"erased": erased, "live": live}))


@router.post("/backup", include_in_schema=False)
async def back_up(request: Request, caller: Caller = Depends(caller_of)) -> Response:  # noqa: B008
    """Copy the database into a file here: the operator socket's alone, since it writes where it is told to."""
    if not caller.is_operator:
        raise NotFound("There is nothing at /backup; /docs lists what is")
    body = await request.body()
    check_media_type(headers_in(request), body)
    file = small_of(BackupRequest, body).file
    return to_response(answer_json({"file": str(file), "bytes": await runtime_of(request).back_up(file)}))


@router.post("/vacuum", include_in_schema=False)
async def vacuum(request: Request, caller: Caller = Depends(caller_of)) -> Response:  # noqa: B008
    """Write the database file anew: the operator socket's alone, since whoever sends waits meanwhile."""
    if not caller.is_operator:
        raise NotFound("There is nothing at /vacuum; /docs lists what is")
    before, after = await runtime_of(request).vacuum()
    return to_response(answer_json({"bytes_before": before, "bytes": after}))
