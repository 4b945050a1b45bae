"""/sandbox: the messages that the sandbox kept, as a plain list, each with its text and its source.

A mail is somebody else's document: it is shown as escaped text only, and the page's policy runs no script and
loads nothing. RFC 2045–2049 are read back by the standard library's parser.
"""

from __future__ import annotations

import email
import email.policy
from email.message import EmailMessage
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING
from uuid import UUID

from fastapi import APIRouter, Depends, Request, Response

from app.api.answers import instant
from app.api.edge import Answer
from app.api.routes import caller_of, runtime_of, to_response
from app.mail.errors import NotFound
from app.mail.profile import SANDBOX_PROFILE
from app.store.history import Filter

if TYPE_CHECKING:
    from jinja2 import Environment

PAGE = 50
_POLICY = (
    b"default-src 'none'; style-src 'self'; img-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
)

router = APIRouter(include_in_schema=False, dependencies=[Depends(caller_of)])


@router.get("/sandbox")
async def sandbox(request: Request, before: str = "") -> Response:
    """List what the sandbox kept, newest first."""
    runtime = runtime_of(request)
    if not runtime.settings.sandbox:
        raise NotFound("The sandbox is off: a relay is configured")
    found = await runtime.history.newest(
        Filter(profile=SANDBOX_PROFILE), at_most=PAGE + 1, before=_id(before) if before else None
    )
    page = found[:PAGE]
    older = str(page[-1].id) if len(found) > PAGE else ""
    return _render("sandbox.html", messages=page, older=older, instant=instant, is_sandbox=runtime.settings.sandbox)


@router.get("/sandbox/{id}")
async def sandbox_message(request: Request, id: str) -> Response:
    """Show one message: its fields, its text, its source."""
    runtime = runtime_of(request)
    message_id = _id(id)
    snapshot = await runtime.history.find(message_id)
    content = await runtime.outbox.content(message_id)
    if snapshot is None or content is None or not snapshot.sandbox:
        raise NotFound(f"The sandbox has no message {id[:80]}")
    parsed = email.message_from_bytes(content, policy=email.policy.default)
    return _render(
        "message.html",
        message=snapshot,
        instant=instant,
        text=_body(parsed, "plain"),
        html=_body(parsed, "html"),
        source=content.decode("utf-8", "backslashreplace"),
        fields=[(name, str(value)) for name, value in parsed.items()],
    )


@router.get("/sandbox/static/inspector.css")
async def stylesheet() -> Response:
    body = (Path(__file__).parent / "static" / "inspector.css").read_bytes()
    return to_response(Answer(200, body, ((b"content-type", b"text/css; charset=utf-8"),)))


def _body(message: EmailMessage, kind: str) -> str | None:
    part = message.get_body((kind,))
    if part is None:
        return None
    text: str = part.get_content()
    return text


def _id(text: str) -> UUID:
    try:
        return UUID(text)
    except ValueError as error:
        raise NotFound(f"The sandbox has no message {text[:80]}") from error


def _render(template: str, **values: object) -> Response:
    body = _templates().get_template(template).render(**values).encode()
    headers = ((b"content-type", b"text/html; charset=utf-8"), (b"content-security-policy", _POLICY))
    return to_response(Answer(200, body, headers))


@lru_cache(maxsize=1)
def _templates() -> Environment:
    from jinja2 import Environment, FileSystemLoader, select_autoescape

    return Environment(
        loader=FileSystemLoader(Path(__file__).parent / "templates"),
        autoescape=select_autoescape(default=True),
        trim_blocks=True,
        lstrip_blocks=True,
    )
