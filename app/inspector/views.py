"""/sandbox: the messages that the sandbox was given, as a list, each with what became of it and all that it holds.

It is served while the sandbox is on, and under a relay as long as messages of the sandbox are kept.

A mail is somebody else's document. On our pages it is escaped text; its HTML is a document of its own, in a frame that
runs no script, loads nothing and leads nowhere, under a policy that says so once more to whoever opens it alone; its
files are for saving, never for showing.
"""

from __future__ import annotations

import asyncio
from functools import lru_cache
from itertools import chain
from pathlib import Path
from typing import TYPE_CHECKING
from urllib.parse import quote
from uuid import UUID

from fastapi import APIRouter, Depends, Request, Response

from app.api.answers import details, instant
from app.api.edge import Answer, hold_of, relative
from app.api.routes import caller_of, runtime_of, to_response
from app.inspector.reading import read, shown
from app.mail.errors import NotFound
from app.mail.message import Snapshot
from app.mail.profile import SANDBOX_PROFILES
from app.runtime import Runtime
from app.store.history import Filter
from app.store.journal import PATIENCE

if TYPE_CHECKING:
    from jinja2 import Environment

PAGE = 50
LONGEST = 256 * 1024  # characters of a text that are shown; all of them are in the source
_POLICY = (
    b"default-src 'none'; style-src 'self'; img-src 'self'; frame-src 'self'; base-uri 'none'; form-action 'none'; "
    b"frame-ancestors 'none'"
)
_POLICY_OF_HTML = (
    b"sandbox; default-src 'none'; style-src 'unsafe-inline'; img-src data:; base-uri 'none'; form-action 'none'; "
    b"frame-ancestors 'self'"
)
_HTML = (
    (b"content-type", b"text/html; charset=utf-8"),  # which outweighs whatever the mail says
    (b"content-security-policy", _POLICY_OF_HTML),
    (b"referrer-policy", b"no-referrer"),
    (b"x-dns-prefetch-control", b"off"),  # a link's host is not looked up
)
_FILE = (
    (b"content-type", b"application/octet-stream"),  # never the mail's own word for it
    (b"content-security-policy", b"sandbox; default-src 'none'; frame-ancestors 'none'"),
)


async def has_something_to_show(runtime: Runtime) -> bool:
    """Whether the sandbox is on, or has left messages."""
    if runtime.settings.sandbox:
        return True
    for name in SANDBOX_PROFILES:
        if await runtime.history.newest(Filter(profile=name), at_most=1):
            return True
    return False


def prepare() -> None:
    """Import the template engine, and read the templates and the style sheet."""
    templates = _templates()
    for name in templates.list_templates():
        templates.get_template(name)
    _stylesheet()


async def _is_there(request: Request) -> None:
    if not await has_something_to_show(runtime_of(request)):
        raise NotFound(f"There is nothing at {request.url.path[:80]}; /docs lists what is")


router = APIRouter(include_in_schema=False, dependencies=[Depends(caller_of), Depends(_is_there)])


@router.get("/sandbox")
async def sandbox(request: Request, before: str = "") -> Response:
    """List what the sandbox was given, newest first."""
    runtime = runtime_of(request)
    history = runtime.history
    last = _id(before) if before else None
    found = [await history.newest(Filter(profile=name), at_most=PAGE + 1, before=last) for name in SANDBOX_PROFILES]
    newest = sorted(chain(*found), key=lambda message: message.id, reverse=True)
    page = newest[:PAGE]
    older = str(page[-1].id) if len(newest) > PAGE else ""
    is_on = runtime.settings.sandbox
    return _render(request, "sandbox.html", messages=page, older=older, is_first=not before, is_on=is_on)


@router.get("/sandbox/static/inspector.css")
async def stylesheet() -> Response:
    return to_response(Answer(200, _stylesheet(), ((b"content-type", b"text/css; charset=utf-8"),)))


@router.get("/sandbox/{id}")
async def sandbox_message(request: Request, id: str) -> Response:
    """Show one message: what became of it, its text, its HTML in a frame, its files, its source."""
    snapshot, content = await _found(request, id)
    attempts = await runtime_of(request).history.attempts(snapshot.id)
    return _render(
        request,
        "message.html",
        message=snapshot,
        said=details(snapshot, attempts),
        mail=await asyncio.to_thread(read, content),
        source=content[: LONGEST + 1].decode("utf-8", "backslashreplace"),
        longest=LONGEST,
    )


@router.get("/sandbox/{id}/html")
async def sandbox_html(request: Request, id: str) -> Response:
    """Give a message's HTML as a document for the frame."""
    _, content = await _found(request, id)
    mail = await asyncio.to_thread(read, content)
    if mail.html is None:
        raise NotFound(f"The message {id[:80]} has no HTML")
    body = await asyncio.to_thread(shown, mail)
    return to_response(Answer(200, body.encode("utf-8", "replace"), _HTML))


@router.get("/sandbox/{id}/parts/{number}")
async def sandbox_part(request: Request, id: str, number: str) -> Response:
    """Return a file of a message, to be saved; they are counted from 1."""
    _, content = await _found(request, id)
    parts = (await asyncio.to_thread(read, content)).parts
    part = next((part for at, part in enumerate(parts, 1) if str(at) == number), None)
    if part is None:
        raise NotFound(f"The message {id[:80]} has no part {number[:20]}")
    # RFC 6266 in its encoded form alone: nothing in a name can end it.
    name = quote(part.name or f"part-{number}", safe="", errors="replace")
    headers = (*_FILE, (b"content-disposition", f"attachment; filename*=UTF-8''{name}".encode()))
    return to_response(Answer(200, part.content, headers))


async def _found(request: Request, id: str) -> tuple[Snapshot, bytes]:
    runtime, message_id = runtime_of(request), _id(id)
    snapshot = await runtime.history.find(message_id)
    content = None
    if snapshot is not None:
        hold_of(request.scope).grow_to(snapshot.size)  # until the answer has been read
        content = await runtime.outbox.content(message_id, within=PATIENCE)
    if snapshot is None or content is None or not snapshot.sandbox:
        raise NotFound(f"The sandbox has no message {id[:80]}, or its content is not kept any more")
    return snapshot, content


def _id(text: str) -> UUID:
    try:
        return UUID(text)
    except ValueError as error:
        raise NotFound(f"The sandbox has no message {text[:80]}") from error


def _render(request: Request, template: str, **values: object) -> Response:
    root = relative(request.scope["path"], "/")  # links hold behind any prefix
    docs = runtime_of(request).settings.docs
    body = _templates().get_template(template).render(root=root, docs=docs, **values).encode("utf-8", "replace")
    headers = ((b"content-type", b"text/html; charset=utf-8"), (b"content-security-policy", _POLICY))
    return to_response(Answer(200, body, headers))


@lru_cache(maxsize=1)
def _stylesheet() -> bytes:
    return (Path(__file__).parent / "static" / "inspector.css").read_bytes()


@lru_cache(maxsize=1)
def _templates() -> Environment:
    from jinja2 import Environment, FileSystemLoader, StrictUndefined, select_autoescape

    templates = Environment(
        loader=FileSystemLoader(Path(__file__).parent / "templates"),
        autoescape=select_autoescape(default=True),
        auto_reload=False,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    templates.filters["instant"] = instant
    templates.filters["when"] = _when
    return templates


def _when(instant: str) -> str:
    return instant[:19].replace("T", " ")
