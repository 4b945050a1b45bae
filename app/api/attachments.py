"""Attachments in the body of POST /send: JSON in, `Attachment` out, every fault with its pointer.

The content is checked as base64 and kept as base64: nothing of it is decoded here. RFC 4648 §4.
"""

from __future__ import annotations

import re
from difflib import get_close_matches
from itertools import islice
from typing import Any

from app.api.content_types import type_of
from app.mail.address import CONTROL
from app.mail.errors import escaped
from app.mail.message import Attachment

MAX_ATTACHMENTS = 100
MAX_NAME = 255  # characters
MAX_TYPE = 200  # characters
MAX_STRANGE = 20  # unknown fields of one attachment that are told
_PIECE = 1 << 20  # bytes that are searched in one call

_FIELDS = ("filename", "content", "content_type", "content_id", "disposition")
# What other senders call it; all of them would make us fetch something (nodemailer, Resend, SendGrid).
_ELSEWHERE = ("url", "uri", "href", "link", "path", "file", "filepath", "raw", "contenturl", "fileurl")
_ALPHABET = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/"  # RFC 4648 §4
_FOREIGN = re.compile(rb"[^A-Za-z0-9+/]")
_ELSEWHERE_VALUE = re.compile(r"(?:[A-Za-z]{2,10}://|www\.|\.{0,2}/|[A-Za-z]:\\)[\w.]", re.ASCII)
_NO_BASE64 = re.compile(r"[^A-Za-z0-9+/=\s]")  # each JPEG begins with /9j/, and may be padded or in lines
_PATH = re.compile(r"/[a-z]+(?:/[a-z]+)+\Z")  # could be base64, and is not: no file's bytes are like that
_FROM_ELSEWHERE = "this is a URL or a path; nothing is fetched from elsewhere: give the file's bytes in base64"
_TOKEN = r"[A-Za-z0-9!#$&^_.+-]{1,100}"
_TYPE = re.compile(rf'({_TOKEN})/({_TOKEN})((?:\s*;\s*{_TOKEN}=(?:{_TOKEN}|"[^"\\\x00-\x1f\x7f-\U0010ffff]*"))*)\Z')
_CONTENT_ID = re.compile(r"[!-;=?-~]{1,255}\Z")


def read_attachment(value: object) -> tuple[Attachment | None, list[tuple[str, str]]]:
    """Read one attachment; the second value names its faults, (pointer below it, what is wrong)."""
    if isinstance(value, str) and _ELSEWHERE_VALUE.match(value):
        return None, [("", f'{_FROM_ELSEWHERE}, as {{"filename": …, "content": …}}')]
    if not isinstance(value, dict):
        return None, [("", 'an attachment is {"filename": …, "content": …} with the content in base64')]
    strange = islice((key for key in value if key not in _FIELDS), MAX_STRANGE)
    faults = [(f"/{escaped(_short(key))}", _unknown(_short(key))) for key in strange]
    filename, why = _filename(value.get("filename"))
    if why:
        faults.append(("/filename", why))
    content, why = _content(value.get("content"))
    if why:
        faults.append(("/content", why))
    content_type, why = _content_type(value.get("content_type"), filename)
    if why:
        faults.append(("/content_type", why))
    content_id, why = _content_id(value.get("content_id"))
    if why:
        faults.append(("/content_id", why))
    disposition = value.get("disposition")
    if disposition is None or disposition == "":
        disposition = "inline" if content_id else "attachment"
    if disposition not in ("attachment", "inline"):
        faults.append(("/disposition", 'disposition is "attachment" or "inline"'))
    if faults:
        return None, faults
    return Attachment(filename, content, content_type, content_id, disposition == "inline"), []


def _unknown(key: str) -> str:
    if key.lower().replace("_", "") in _ELSEWHERE:
        return f"{key!r} is not taken: nothing is fetched from elsewhere; put the content in, as base64"
    near = get_close_matches(key.lower(), _FIELDS, n=1)
    cure = f"do you mean {near[0]!r}?" if near else f"known are: {', '.join(_FIELDS)}"
    return f"{key!r} is not a field of an attachment; {cure}"


def _filename(value: object) -> tuple[str, str]:
    if not isinstance(value, str) or not value.strip():
        return "", 'filename is missing; give a name such as "invoice.pdf"'
    if len(value) > MAX_NAME:
        return "", f"a file name has at most {MAX_NAME} characters, this one {len(value)}"
    if CONTROL.search(value) or "/" in value or "\\" in value:
        return "", "a file name has no path, line break or control character; give the bare name"
    return value.strip(), ""


def _content(value: object) -> tuple[bytes, str]:
    if not isinstance(value, str):
        return b"", "content is missing; give the file's bytes in base64, as a string"
    if value.startswith("data:"):
        return b"", "this is a data: URL; give only what stands behind its comma, the base64"
    if (_ELSEWHERE_VALUE.match(value) and _NO_BASE64.search(value[:200])) or _PATH.match(value[:200]):
        return b"", _FROM_ELSEWHERE
    # Bytes and their tables: a 25 MB content is looked through in milliseconds.
    flat = value.encode("utf-8", "replace")
    if any(blank in flat for blank in (b" ", b"\t", b"\r", b"\n")):
        flat = flat.translate(None, b" \t\r\n")
    bare = flat.rstrip(b"=")
    if bare.translate(None, _ALPHABET) or len(flat) - len(bare) > 2:
        return b"", _not_base64(bare)
    if len(bare) % 4 == 1:
        return b"", "this is not base64: it is cut off, or a character is missing"
    return bare + b"=" * (-len(bare) % 4), ""


def _not_base64(bare: bytes) -> str:
    pieces = (_FOREIGN.search(bare, at, at + _PIECE) for at in range(0, len(bare), _PIECE))
    found = next(filter(None, pieces), None)
    if found is None:
        return "this is not base64: it ends with more than two ="
    cure = "; it is of the URL-safe alphabet: use the standard one" if found[0] in (b"-", b"_") else ""
    return f"this is not base64: character {found.start() + 1} cannot be there{cure}"


def _content_type(value: object, filename: str) -> tuple[str, str]:
    if value is None or value == "":
        return type_of(filename), ""
    found = _TYPE.match(value) if isinstance(value, str) and len(value) <= MAX_TYPE else None
    if found is None:
        return "", 'content_type is a media type such as "application/pdf"'
    assert isinstance(value, str)  # noqa: S101 (it matched)
    return value, ""


def _content_id(value: object) -> tuple[str | None, str]:
    if value is None or value == "":
        return None, ""
    bare = value[1:-1] if isinstance(value, str) and value.startswith("<") and value.endswith(">") else value
    if not isinstance(bare, str) or not _CONTENT_ID.match(bare):
        return None, 'content_id is a name without blanks, such as "logo"; the HTML shows it as <img src="cid:logo">'
    return bare, ""


def _short(key: str) -> str:
    return key[:80]


_STRING: dict[str, Any] = {"anyOf": [{"type": "string"}, {"type": "null"}]}
SCHEMA: dict[str, Any] = {
    "anyOf": [
        {
            "type": "array",
            "maxItems": MAX_ATTACHMENTS,
            "items": {
                "type": "object",
                "title": "Attachment",
                "required": ["filename", "content"],
                "additionalProperties": False,
                "properties": {
                    "filename": {"type": "string", "maxLength": MAX_NAME, "description": "the bare name, no path"},
                    "content": {"type": "string", "contentEncoding": "base64", "description": "its bytes in base64"},
                    "content_type": {
                        **_STRING,
                        "description": "default: by the file name's ending; text that is UTF-8 is named so",
                    },
                    "content_id": {**_STRING, "description": 'for <img src="cid:…">'},
                    "disposition": {
                        "anyOf": [{"type": "string", "enum": ["attachment", "inline", ""]}, {"type": "null"}],
                        "description": "default: inline where there is a content_id",
                    },
                },
            },
        },
        {"type": "null"},
    ]
}
