"""One attachment as a MIME part: base64 as it came, wrapped anew and never decoded.

RFC 2045 §6.8 (base64, 76 characters a line), RFC 2183 (Content-Disposition), RFC 2231 (names beyond ASCII),
RFC 2392 (Content-ID).
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from urllib.parse import quote

from app.mail.address import CONTROL
from app.mail.message import Attachment

LINE = 76  # characters of base64 a line
_STRIDE = 1024 * LINE
_PLAIN_NAME = re.compile(r"[A-Za-z0-9 ._()+,&@#!~^\[\]{}=$-]+\Z")  # what every reader of a quoted string leaves alone
_LONGEST_PLAIN_NAME = 60


def attached(attachment: Attachment) -> tuple[str, Sequence[bytes]]:
    """Write one attachment: its header fields, and its bytes, which end with CRLF.

    Raises:
        ValueError: a control character in what becomes a header field.
    """
    kind = "inline" if attachment.is_inline else "attachment"
    fields = [
        f"Content-Type: {attachment.content_type}",
        "Content-Transfer-Encoding: base64",
        f"Content-Disposition: {kind};\r\n {_filename(attachment.filename)}",
    ]
    if attachment.content_id is not None:
        fields.append(f"Content-ID: <{attachment.content_id}>")
    for said in (attachment.content_type, attachment.filename, attachment.content_id or ""):
        if CONTROL.search(said):
            raise ValueError("control character in an attachment's header field")
    return "\r\n".join(fields), wrapped(attachment.base64)


def wrapped(flat: bytes) -> list[bytes]:
    """Break base64 into lines, each with its CRLF; an empty one has none. The pieces are of many lines each."""
    pieces = []
    for start in range(0, len(flat) or 1, _STRIDE):  # so that few lines exist as objects at once
        stride = flat[start : start + _STRIDE]
        lines = [stride[at : at + LINE] for at in range(0, len(stride), LINE)]
        pieces.append(b"\r\n".join([*lines, b""]) or b"\r\n")
    return pieces


def _filename(name: str) -> str:
    if _PLAIN_NAME.match(name) and len(name) <= _LONGEST_PLAIN_NAME and "=?" not in name:
        return f'filename="{name}"'
    encoded = quote(name, safe="!#$&+-.^_`|~")
    if len(encoded) <= _LONGEST_PLAIN_NAME:
        return f"filename*=utf-8''{encoded}"
    # RFC 2231 §3: in pieces, none of which cuts an escape in two; the first names the charset.
    first, *rest = re.findall(r"(?:%[0-9A-F]{2}|[^%]){1,20}", encoded)
    pieces = [f"filename*0*=utf-8''{first}", *(f"filename*{at}*={piece}" for at, piece in enumerate(rest, 1))]
    return ";\r\n ".join(pieces)
