"""Attachments in the body of POST /send: JSON in, `Attachment` out, every fault with its pointer.

The content is checked as base64 and kept as base64: nothing of it is decoded here. RFC 4648 §4, strict: the standard
alphabet, with padding; line breaks are removed.
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
from app.mail.slips import absent_value

MAX_ATTACHMENTS = 100
MAX_NAME = 255  # characters
MAX_TYPE = 200  # characters
MAX_STRANGE = 20  # unknown fields of one attachment that are told
_LONGEST_WORD = 300  # characters of a content that may be a word or a reference and not a file
_PIECE = 1 << 20  # bytes that are searched in one call

_FIELDS = ("filename", "content", "content_type", "content_id", "disposition")
# What other senders call it; all of them would make us fetch something (nodemailer, Resend, SendGrid).
_ELSEWHERE = ("url", "uri", "href", "link", "path", "file", "filepath", "raw", "contenturl", "fileurl")
# What nodemailer, SendGrid, Postmark, Mailgun, n8n and Microsoft Graph call our fields.
_ALIASES = {
    **dict.fromkeys(("data", "body", "base64", "bytes", "contentbytes", "base64content", "file64"), "content"),
    **dict.fromkeys(("name", "title", "filename", "displayname"), "filename"),
    **dict.fromkeys(("type", "contenttype", "mimetype", "mime", "mediatype"), "content_type"),
    **dict.fromkeys(("cid", "contentid"), "content_id"),
    **dict.fromkeys(("contentdisposition",), "disposition"),
}
_ALPHABET = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/"  # RFC 4648 §4
_FOREIGN = re.compile(rb"[^A-Za-z0-9+/]")
_ELSEWHERE_VALUE = re.compile(r"(?:[A-Za-z]{2,10}://|www\.|\.{0,2}/|[A-Za-z]:\\)[\w.]", re.ASCII)
_NO_BASE64 = re.compile(r"[^A-Za-z0-9+/=\s]")  # each JPEG begins with /9j/, and may be padded or in lines
_PATH = re.compile(r"/[a-z]+(?:/[a-z]+)+\Z")  # could be base64, and is not: no file's bytes are like that
# The ids that n8n writes in place of the bytes, alone or before the file's path (its N8N_DEFAULT_BINARY_DATA_MODE).
_N8N_STORAGE = re.compile(r"(filesystem-v2|filesystem|database|s3)(?::[!-~]*)?\Z", re.IGNORECASE)
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
    bare = key.lower().replace("_", "").replace("-", "")
    if bare in _ELSEWHERE:
        return f"{key!r} is not taken: nothing is fetched from elsewhere; put the content in, as base64"
    near = _ALIASES.get(bare) or next(iter(get_close_matches(key.lower(), _FIELDS, n=1)), None)
    cure = f"do you mean {near!r}?" if near else f"known are: {', '.join(_FIELDS)}"
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
    if isinstance(value, dict | list):
        return b"", (
            "content is an object or an array, not the file's bytes; give them in base64, as a string (in n8n: the "
            'node "Extract from File", operation "Move File to Base64 String")'
        )
    if not isinstance(value, str):
        return b"", "content is missing; give the file's bytes in base64, as a string"
    if len(value) <= _LONGEST_WORD and (why := _no_content(value)):
        return b"", why
    if value.startswith("data:"):
        return b"", "this is a data: URL; give only what stands behind its comma, the base64"
    if (_ELSEWHERE_VALUE.match(value) and _NO_BASE64.search(value[:200])) or _PATH.match(value[:200]):
        return b"", _FROM_ELSEWHERE
    return _checked(value)


def _no_content(text: str) -> str | None:
    """Recognise short texts that stand in for a file. Some are valid base64, and would be sent as garbage."""
    if found := _N8N_STORAGE.match(text.strip()):
        return (
            f"{found[1]!r} is n8n's note of where it keeps the file, not the file; read its bytes with the node "
            '"Extract from File", operation "Move File to Base64 String", or with this.helpers.getBinaryDataBuffer() '
            "in a Code node"
        )
    return absent_value(text)


def _checked(value: str) -> tuple[bytes, str]:
    """Check standard base64 (RFC 4648 §4), which may be wrapped into lines (RFC 2045 §6.8)."""
    # Bytes and their tables: a 25 MB content is looked through in milliseconds.
    flat = value.strip().encode("utf-8", "replace")
    if b"\r" in flat or b"\n" in flat:
        first = flat.find(b"\n") if b"\n" in flat else flat.find(b"\r")
        if len(flat[:first].rstrip()) % 4:
            return b"", "this is not base64: its first line is not a multiple of 4 characters, so it looks like text"
        flat = flat.translate(None, b"\r\n")
    bare = flat.rstrip(b"=")
    if bare.translate(None, _ALPHABET) or len(flat) - len(bare) > 2:
        return b"", _not_base64(bare)
    if len(flat) % 4:
        return b"", (
            "this is not base64: its length is not a multiple of 4, so it is cut off, its padding (=) is missing, or "
            "it is plain text; encode the file's bytes with padding"
        )
    return flat, ""


def _not_base64(bare: bytes) -> str:
    pieces = (_FOREIGN.search(bare, at, at + _PIECE) for at in range(0, len(bare), _PIECE))
    found = next(filter(None, pieces), None)
    if found is None:
        return "this is not base64: it ends with more than two ="
    cure = "; encode the file's bytes in base64"
    if found[0] in (b"-", b"_"):
        cure = "; it is of the URL-safe alphabet: use the standard one"
    elif found[0] in (b" ", b"\t"):
        cure = ", a space; this is plain text, or a + of base64 that was URL-decoded: encode the file's bytes in base64"
    elif found[0] == b"=":
        cure = "; padding (=) stands at the end only, so these may be several pieces: encode the whole file at once"
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
