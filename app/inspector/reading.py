"""A mail read back for people: its fields, its text, its HTML, the files in it; and its HTML made fit to be shown.

Pure. RFC 2045–2049 are read by the standard library's parser, which has many errors for what is no mail: what it
chokes on is left out here, and the source is always there. What a mail holds is somebody else's; that it runs, loads
and leads nowhere is held by the policy it is served under (`views.py`), and here is taken out what no policy reaches.
"""

from __future__ import annotations

import email
import email.policy
import re
from base64 import b64encode
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass, field
from email.message import EmailMessage, MIMEPart
from functools import partial
from typing import TypeVar
from urllib.parse import unquote

MOST_IMAGES = 64 * 1024 * 1024  # characters of data: URLs in a document
MOST_LINES = 500_000  # of a mail that is taken apart; the parser takes 1 µs for each, and 25 MB in base64 have 350,000
MOST_HTML = 1024 * 1024  # characters of HTML that are shown; one pass over 20 MB holds the event loop up for a second

_T = TypeVar("_T")


@dataclass(frozen=True, slots=True)
class Part:
    """A file in a mail, attached or shown within. `name` is "" where it has none."""

    name: str
    content_type: str
    content: bytes = field(repr=False)
    content_id: str = ""  # without angle brackets


@dataclass(frozen=True, slots=True)
class Mail:
    """What could be read. None = it has no such body."""

    fields: tuple[tuple[str, str], ...] = ()
    text: str | None = None
    html: str | None = None
    parts: tuple[Part, ...] = ()


def read(content: bytes) -> Mail:
    """Read a mail's source, whatever it is; nothing is read of one with more than `MOST_LINES` lines."""
    if content.count(b"\n") > MOST_LINES:
        return Mail()
    return _tried(lambda: _read(email.message_from_bytes(content, policy=email.policy.default)), Mail())


def _read(message: EmailMessage) -> Mail:
    text, html = message.get_body(("plain",)), message.get_body(("html",))
    return Mail(
        fields=tuple(_fields(message)),
        text=None if text is None else _text(text),
        html=None if html is None else _text(html),
        parts=tuple(_part(leaf) for leaf in _leaves(message) if leaf is not text and leaf is not html),
    )


def _fields(message: EmailMessage) -> Iterator[tuple[str, str]]:
    for name, raw in message.raw_items():
        yield name, _tried(partial(_field, message, name, raw), str(raw))


def _field(message: EmailMessage, name: str, raw: str) -> str:
    return str(message.policy.header_fetch_parse(name, raw))


def _leaves(message: MIMEPart) -> Iterator[MIMEPart]:
    if message.get_content_maintype() != "multipart" or not message.is_multipart():
        yield message
        return
    for part in message.iter_parts():
        yield from _leaves(part)


def _part(leaf: MIMEPart) -> Part:
    return Part(
        name=_tried(lambda: leaf.get_filename() or "", ""),
        content_type=leaf.get_content_type(),
        content=_tried(lambda: _bytes(leaf), b""),
        content_id=_tried(lambda: str(leaf["content-id"] or "").strip().strip("<>"), ""),
    )


def _bytes(leaf: MIMEPart) -> bytes:
    if leaf.is_multipart():  # message/rfc822
        return b"".join(bytes(inner) for inner in leaf.iter_parts())
    raw = leaf.get_payload(decode=True)
    return raw if isinstance(raw, bytes) else b""


def _text(leaf: MIMEPart) -> str:
    raw = _bytes(leaf)
    try:
        return raw.decode(leaf.get_content_charset("utf-8"), "replace")
    except (LookupError, ValueError):  # no such charset
        return raw.decode("utf-8", "replace")


def _tried(reading: Callable[[], _T], otherwise: _T) -> _T:
    with suppress(Exception):
        return reading()
    return otherwise


# CSP says nothing of <link rel="preconnect">, and Chromium connects to wherever a frame or a followed link leads before
# it finds that forbidden. <meta> and <base> turn to the page's own settings; <animate> and <set> change a link. Their
# names are replaced wherever they stand, without parsing: nothing else begins such an element. <basefont> does nothing,
# holds nothing, and may stand in a <head>.
_TURNED_OFF = re.compile(
    r"<(?:link|meta|base|iframe|frame|object|embed|animate\w*|set)(?=[\s/>])", re.IGNORECASE | re.ASCII
)
_LINK = re.compile(r"""href\s*=\s*["']?""", re.IGNORECASE)
_BY_CONTENT_ID = re.compile(r"""(["'(=]\s*)cid:([^"'\s<>)]+)""", re.IGNORECASE)  # RFC 2392
_IMAGE = re.compile(r"image/[a-z0-9.+-]+\Z")


def shown(mail: Mail) -> str:
    """Return a mail's HTML as it is shown: with its own images in it, and with links that lead to itself.

    At most `MOST_HTML` characters of it, and `MOST_IMAGES` of images: one can be named a million times.
    """
    images = {part.content_id: part for part in mail.parts if part.content_id and _IMAGE.match(part.content_type)}
    urls: dict[str, str] = {}
    room = MOST_IMAGES

    def show(found: re.Match[str]) -> str:
        nonlocal room
        name = found[2] if found[2] in images else unquote(found[2])
        if name not in images:
            return found[0]
        url = urls[name] = urls.get(name) or _url(images[name])
        room -= len(url)
        return f"{found[1]}{url}" if room >= 0 else found[0]

    html = _TURNED_OFF.sub("<basefont", (mail.html or "")[:MOST_HTML])
    return _BY_CONTENT_ID.sub(show, _LINK.sub(r"\g<0>#", html))


def _url(image: Part) -> str:
    return f"data:{image.content_type};base64,{b64encode(image.content).decode()}"
