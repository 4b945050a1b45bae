"""POST /send, the hot route: who → body → accept → wait → answer.

`HotRoute` serves it as a bare ASGI callable in front of FastAPI; `router` has the same as a FastAPI route, for
OpenAPI and for whoever mounts the app without the hot route. Both call `respond()`.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from functools import partial

from fastapi import APIRouter, Request, Response

from app.api.answers import DryRunAnswer, MessageAnswer, MessageNotSent
from app.api.body import Asked, SendRequest, asked_of, examples, is_heavy, key_of
from app.api.document import KEYS, about_a_message, in_both_types, problems
from app.api.edge import (
    Answer,
    App,
    Headers,
    Receive,
    Scope,
    Send,
    answer_json,
    answer_to,
    answer_to_post,
    began_at,
    body_of,
    headers_of,
    hold_of,
    preference_of,
    send_answer,
    values_of,
    visit_of,
)
from app.api.media import check_media_type
from app.api.routes import runtime_of, to_response
from app.intake.accept import is_large
from app.mail.errors import MailError
from app.mail.message import NULL_SENDER, Draft, Message
from app.runtime import Runtime
from app.store.verdicts import in_time

PATH = "/send"

router = APIRouter(tags=["messages"])


class HotRoute:
    """Serves POST /send itself, and passes everything else on."""

    def __init__(self, inner: App, runtime: Runtime) -> None:
        self._inner = inner
        self._runtime = runtime

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http" or scope["path"] != PATH or scope["method"] != "POST":
            await self._inner(scope, receive, send)
            return
        scope["mailchute.route"] = PATH
        answer = await respond(self._runtime, scope, partial(body_of, receive))
        await send_answer(answer, send)


@router.post(
    PATH,
    operation_id="sendMessage",
    summary="Send a message",
    response_model=MessageAnswer | DryRunAnswer,
    responses={
        200: about_a_message({"description": "Sent, partly sent, or a dry run. Look at `ok`."}),
        202: about_a_message(
            {"model": MessageAnswer, "description": "We have it; not sent yet, or in doubt. Look at `ok`."},
            location=True,
        ),
        424: in_both_types(MessageNotSent, "Refused for good: the flat shape with RFC 9457's fields"),
        **problems(401, 413, 415, 422, 503),
    },
    dependencies=KEYS,
    openapi_extra={
        "parameters": [
            {
                "name": "Prefer",
                "in": "header",
                "required": False,
                "schema": {"type": "string"},
                "description": "`wait=N` (0 to 30 seconds), `respond-async`, `handling=lenient`",
            },
            {
                "name": "Idempotency-Key",
                "in": "header",
                "required": False,
                "schema": {"type": "string", "maxLength": 255},
                "description": "the same key with the same body within 24 hours is the same message",
            },
        ],
        "requestBody": {
            "required": True,
            "content": {"application/json": {"schema": SendRequest.model_json_schema(), "examples": dict(examples())}},
        },
    },
)
async def post_send(request: Request) -> Response:
    """Take a message, send it through its profile's relay, and answer with what came of it.

    The answer waits for the first verdict (`Prefer: wait=N`, 8 seconds by default). **2xx = we have it, never send
    it again (look at `ok`); 4xx = change something; 5xx = we do not have it, send it again; no answer = unknown: repeat
    with the same Idempotency-Key.**
    """
    return to_response(await respond(runtime_of(request), request.scope, request.body))


async def respond(runtime: Runtime, scope: Scope, read_body: Callable[[], Awaitable[bytes]]) -> Answer:
    """Take one message; the answer follows the commit it reports."""
    began = began_at(scope)
    headers = headers_of(scope)
    try:
        caller = runtime.callers.identify(visit_of(scope, headers))
        preference = preference_of(headers)
        asked = await _read(runtime, headers, read_body, lenient=preference.lenient)
        key = key_of(values_of(scope, b"idempotency-key"), asked.key)
        wait = preference.seconds(runtime.settings.default_wait)
        id_ = runtime.new_id()
        if asked.is_dry_run:
            message = await runtime.intake.preview(asked.draft, caller, id=id_, now=runtime.now())
            answer = partial(_dry_run, asked.draft, message)
            return await runtime.offload.run(answer) if is_large(asked.draft) else answer()
        verdict = runtime.verdicts.expect(id_) if wait > 0 else None
        try:
            receipt = await runtime.intake.accept(asked.draft, caller, id=id_, now=runtime.now(), key=key)
            del asked  # what may be large is not held while the caller waits
            hold_of(scope).release()
            snapshot = receipt.snapshot
            if receipt.is_replay and verdict is not None:
                verdict.cancel()
                verdict = runtime.verdicts.expect(snapshot.id)
                # It may have ended between the append and this line.
                snapshot = await runtime.history.find(snapshot.id) or snapshot
            if verdict is not None:
                snapshot = await in_time(verdict, snapshot, until=began + wait)
        finally:
            if verdict is not None:
                verdict.cancel()
    except MailError as error:
        return answer_to(error, headers)
    return answer_to_post(snapshot, runtime, scope, applied=preference.applied, is_replay=receipt.is_replay)


async def _read(
    runtime: Runtime, headers: Headers, read_body: Callable[[], Awaitable[bytes]], *, lenient: bool
) -> Asked:
    """Read a body; one that may take long beside the event loop, which goes on meanwhile."""
    body = await read_body()
    check_media_type(headers, body)
    work = partial(asked_of, body, lenient=lenient)
    return await runtime.offload.run(work) if is_heavy(body) else work()


def _dry_run(draft: Draft, message: Message) -> Answer:
    """Show what would be stored and sent."""
    return answer_json(
        {
            "dry_run": True,
            "ok": True,
            "profile": message.profile,
            "envelope": {"from": message.envelope.sender or NULL_SENDER, "to": message.envelope.recipients},
            "raw": message.content.decode(),
            "warnings": draft.warnings,
        }
    )
