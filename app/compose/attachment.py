"""One attachment as a MIME part: base64 as it came, wrapped anew; a message or multipart as it is, with CRLF line ends.

RFC 2045 §6.8 (base64, 76 characters a line), RFC 2046 §5.1 and §5.2.1 (what may not be base64), RFC 2183
(Content-Disposition), RFC 2231 (names beyond ASCII), RFC 2392 (Content-ID).

What has to be decoded is decoded in strides: no call in here holds the interpreter for long, whatever the size.
"""

from __future__ import annotations

import re
from binascii import a2b_base64
from codecs import getincrementaldecoder
from collections.abc import Iterator, Sequence
from urllib.parse import quote

from app.compose.header import LONGEST_LINE
from app.mail import encoded_words
from app.mail.address import CONTROL
from app.mail.message import Attachment

LINE = 76  # characters of base64 a line
OCTETS = "application/octet-stream"
_STRIDE = 1024 * LINE
_DECODED = 1 << 18  # characters of base64 that are decoded in one call
_LONGEST_PIECE = 54  # characters of a name in RFC 2231's encoding that stand on one line
_PLAIN_NAME = re.compile(r"[ !#-;=?-\[\]-~]+\Z")  # what every reader of a quoted string leaves alone
_7BIT = bytes([9, 10, *range(32, 127)])
# Whatever begins with header fields, which a MIME parser looks for in any message/…
_BEGINS_WITH_FIELDS = frozenset(
    ["rfc822", "global", "news", "delivery-status", "disposition-notification", "feedback-report", "tracking-status"]
)
_FIELDS = re.compile(rb"(?:[!-9;-~]+[ \t]*:[^\n]*(?:\n|\Z)(?:[ \t]+[^ \t\n][^\n]*(?:\n|\Z))*)+(?=\n|\Z)")
_MOST_FIELDS = 1 << 16  # bytes of them that are looked at
_BOUNDARY = re.compile(r";\s*boundary=(?:\"([^\"]*)\"|([^\s;\"]+))", re.IGNORECASE)
_BOUNDARY_VALUE = re.compile(r"[A-Za-z0-9'()+_,./:=? -]{0,69}[A-Za-z0-9'()+_,./:=?-]\Z")  # RFC 2046 §5.1.1


def attached(attachment: Attachment) -> tuple[str, Sequence[bytes]]:
    """Write one attachment: its header fields, and its bytes, which end with CRLF where they are base64.

    A message/… or multipart/… that cannot go as it is goes as application/octet-stream; a text/… that says no charset
    and is UTF-8 says so.

    Raises:
        ValueError: a control character in what becomes a header field.
    """
    for said in (attachment.content_type, attachment.filename, attachment.content_id or ""):
        if CONTROL.search(said):
            raise ValueError("control character in an attachment's header field")
    content_type, encoding, content = attachment.content_type, "base64", None
    main = content_type.partition("/")[0].lower()
    if is_composite(content_type):
        content = _as_it_is(attachment)
        content_type, encoding = (content_type, "7bit") if content is not None else (OCTETS, "base64")
    elif main == "text" and "charset=" not in _without_quoted(content_type) and _is_utf8(attachment.base64):
        content_type += "; charset=utf-8"
    plain = _PLAIN_NAME.match(attachment.filename) and "=?" not in attachment.filename
    if not plain and "name=" not in _without_quoted(content_type):
        # RFC 2047 §5 forbids it in a parameter, but Outlook reads no other name beyond ASCII.
        words = "\r\n ".join(encoded_words.encode(attachment.filename, first=LINE - len(' name=""')))
        content_type += f';\r\n name="{words}"'
    kind = "inline" if attachment.is_inline else "attachment"
    filename = f'filename="{attachment.filename}"' if plain else _extended(attachment.filename)
    fields = [
        f"Content-Type: {content_type}",
        f"Content-Transfer-Encoding: {encoding}",
        f"Content-Disposition: {kind};\r\n {filename}",
    ]
    if attachment.content_id is not None:
        fields.append(f"Content-ID: <{attachment.content_id}>")
    return "\r\n".join(fields), wrapped(attachment.base64) if content is None else content


def is_composite(content_type: str) -> bool:
    """Return whether it is a type of messages or parts, which may not be base64."""
    return content_type.lower().startswith(("message/", "multipart/"))


def wrapped(flat: bytes) -> list[bytes]:
    """Break base64 into lines, each with its CRLF; an empty one has none. The pieces are of many lines each."""
    pieces = []
    for start in range(0, len(flat) or 1, _STRIDE):  # so that few lines exist as objects at once
        stride = flat[start : start + _STRIDE]
        lines = [stride[at : at + LINE] for at in range(0, len(stride), LINE)]
        pieces.append(b"\r\n".join([*lines, b""]) or b"\r\n")
    return pieces


def _without_quoted(content_type: str) -> str:
    return re.sub(r'"[^"]*"', "", content_type).lower()


def _extended(name: str) -> str:
    encoded = quote(name, safe="!#$&+-.^_`|~")
    if len(encoded) <= _LONGEST_PIECE:
        return f"filename*=utf-8''{encoded}"
    # RFC 2231 §3: in pieces, none of which cuts an escape in two; the first names the charset.
    first, *rest = re.findall(r"(?:%[0-9A-F]{2}|[^%]){1,18}", encoded)
    pieces = [f"filename*0*=utf-8''{first}", *(f"filename*{at}*={piece}" for at, piece in enumerate(rest, 1))]
    return ";\r\n ".join(pieces)


def _decoded(flat: bytes) -> Iterator[bytes]:
    return (a2b_base64(flat[at : at + _DECODED]) for at in range(0, len(flat), _DECODED))


def _is_utf8(flat: bytes) -> bool:
    decoder = getincrementaldecoder("utf-8")()
    try:
        for raw in _decoded(flat):
            if b"\0" in raw or b"\x1b" in raw:  # UTF-16, ISO 2022
                return False
            decoder.decode(raw)
        decoder.decode(b"", final=True)
    except UnicodeDecodeError:
        return False
    return True


def _as_it_is(attachment: Attachment) -> list[bytes] | None:
    """Return the content with CRLF line ends; None where its bytes or its type do not allow that."""
    main, _, subtype = attachment.content_type.lower().partition(";")[0].strip().partition("/")
    lines = _seven_bit(attachment.base64)
    if lines is None:
        return None
    if main == "message":
        begins = b"".join(lines[:2])[:_MOST_FIELDS]
        fits = subtype in _BEGINS_WITH_FIELDS and _FIELDS.match(begins) is not None
    else:
        fits = _is_closed(lines, attachment.content_type)
    return [piece.replace(b"\n", b"\r\n") for piece in lines] if fits else None


def _seven_bit(flat: bytes) -> list[bytes] | None:
    """Return the content in pieces of whole lines, with LF; None where it is not 7-bit text of lines short enough."""
    pieces: list[bytes] = []
    rest = b""
    for raw in _decoded(flat):
        whole, end, rest = (rest + raw).rpartition(b"\n")
        pieces.append((whole + end).replace(b"\r\n", b"\n"))
        if not _fits(pieces[-1]) or len(rest) > LONGEST_LINE + 1:
            return None
    pieces.append(rest)
    return pieces if _fits(rest) else None


def _fits(lines: bytes) -> bool:
    return not lines.translate(None, _7BIT) and max(map(len, lines.split(b"\n"))) <= LONGEST_LINE


def _is_closed(lines: Sequence[bytes], content_type: str) -> bool:
    """Return whether a multipart has the boundary that its type names, and ends with it (RFC 2046 §5.1.1)."""
    found = _BOUNDARY.search(content_type)
    boundary = (found[1] or found[2] or "") if found else ""
    if not _BOUNDARY_VALUE.match(boundary):
        return False
    delimiter = re.compile(rb"^--" + re.escape(boundary.encode()) + rb"(--)?[ \t]*$", re.MULTILINE)
    closing = [bool(found[1]) for piece in lines for found in delimiter.finditer(piece)]
    return len(closing) > 1 and closing[-1] and not any(closing[:-1])
