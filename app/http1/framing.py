"""What a request's head says about its framing and its target, and how an answer's head is written. Pure.

RFC 9112 §3 (request line, target, Host), §6 (message body).
"""

from __future__ import annotations

from collections.abc import Iterable
from http import HTTPStatus

import httptools

from app.api.problems import MalformedRequest, UnsupportedMedia

Fields = list[tuple[bytes, bytes]]


def body_length(fields: Fields, version: str) -> int | None:
    """Return the length of a request's body in bytes, None = chunked.

    Raises:
        MalformedRequest: two Host fields (§3.2), or a Transfer-Encoding in HTTP/1.0 (§6.1).
        UnsupportedMedia: a transfer coding other than chunked (§6.1).
    """
    length: int | None = 0
    hosts = codings = 0
    for name, value in fields:
        if name == b"content-length":  # one, and a number: the parser refuses everything else
            length = int(value)
        elif name == b"host":
            hosts += 1
            if hosts > 1:
                raise MalformedRequest("There are two Host header fields; send one")
        elif name == b"transfer-encoding":
            codings += 1
            if version != "1.1":
                raise MalformedRequest("HTTP/1.0 has no Transfer-Encoding; send a Content-Length")
            if codings > 1 or value.strip(b" \t").lower() != b"chunked":
                coding = value.decode("latin-1")[:40]
                raise UnsupportedMedia(f"Transfer-Encoding {coding!r} is not supported; send the body plain or chunked")
            length = None
    return length


def expects_continue(fields: Fields) -> bool:
    """Whether the peer waits for a word before it sends the body (RFC 9110 §10.1.1)."""
    return any(name == b"expect" and value.lower() == b"100-continue" for name, value in fields)


def split_target(target: bytes) -> tuple[str, bytes, bytes | None]:
    """Split a request target into path (percent-encoded), query, and the authority of an absolute form (§3.2).

    Raises:
        MalformedRequest: the target is neither a path nor an http URL.
    """
    if target.startswith(b"/"):
        path, _, query = target.partition(b"#")[0].partition(b"?")
        return path.decode("latin-1"), query, None
    if target == b"*":
        return "*", b"", None
    try:
        url = httptools.parse_url(target)
    except httptools.HttpParserInvalidURLError:
        url = None
    if url is None or not url.host or url.userinfo or url.schema.lower() not in (b"http", b"https"):
        raise MalformedRequest("The request target must be a path or an http URL")
    host = b"[%s]" % url.host if b":" in url.host else url.host
    port: int | None = url.port  # the stub says that there always is one
    authority = host if port is None else b"%s:%d" % (host, port)
    return (url.path or b"/").decode("latin-1"), url.query or b"", authority


def without_upgrade(fields: Fields) -> Fields:
    """Remove an offer to change the protocol, which a server may ignore (RFC 9110 §7.8)."""
    kept = []
    for name, value in fields:
        if name == b"connection":
            options = (option.strip() for option in value.split(b","))
            value = b", ".join(option for option in options if option.lower() not in _OFFERS)  # noqa: PLW2901
        if name not in _OFFERS:
            kept.append((name, value))
    return kept


_OFFERS = (b"upgrade", b"http2-settings")


def lines_of(fields: Iterable[tuple[bytes, bytes]]) -> bytes:
    """Write header fields, each with its line end.

    Raises:
        ValueError: a value would end its line.
    """
    lines = [b"%s: %s\r\n" % field for field in fields]
    written = b"".join(lines)
    if not written.count(b"\n") == written.count(b"\r") == len(lines):
        raise ValueError("a line break in a header field")
    return written


def status_line(status: int) -> bytes:
    """Write an answer's first line."""
    return _STATUS_LINES[status]


_STATUS_LINES = {int(status): b"HTTP/1.1 %d %s\r\n" % (status, status.phrase.encode()) for status in HTTPStatus}
