"""Reading the fields of POST /send's body: a JSON value in, ours out, or the faults of it.

A reader raises `PydanticCustomError("faults")` with (pointer below the field, what is wrong and what to do). `""` and
null equal absent. Addresses are parsed once, here, and never again.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from contextlib import suppress
from datetime import UTC, datetime
from pathlib import Path

from pydantic_core import PydanticCustomError

from app.api.attachments import MAX_ATTACHMENTS, read_attachment
from app.mail.address import CONTROL, Address, InvalidAddress, mailbox, parse_address, split_addresses
from app.mail.errors import escaped
from app.mail.message import Attachment

MAX_TAGS = 10
MAX_TAG = 100  # characters
MAX_METADATA = 4096  # bytes, keys and values together
MAX_SUBJECT = 2000  # characters; RFC 5322 has no bound, mailbox programs do
MAX_FIELDS = 50  # extra header fields
MAX_FIELD = 4000  # characters of one of their values
MAX_FAULTS = 20  # told at once
LONGEST_EXPIRY = 30 * 86400  # seconds


KEY = re.compile(r"[!-~](?:[ -~]{0,253}[!-~])?\Z")  # an idempotency key
_INSTANT = re.compile(r"\d{4}-\d\d-\d\d[Tt ]\d\d:\d\d(?::\d\d(?:\.\d{1,9})?)?(?:[Zz]|[+-]\d\d:\d\d)\Z")  # RFC 3339
_FIELD_NAME = re.compile(r"[!-9;-~]{1,76}\Z")  # RFC 5322 §3.6.8
_STRUCTURAL = frozenset(
    [
        "from",
        "sender",
        "to",
        "cc",
        "bcc",
        "reply-to",
        "subject",
        "date",
        "message-id",
        "received",
        "return-path",
        "dkim-signature",
        "authentication-results",
        "delivered-to",
    ]
)
_STRUCTURAL_PREFIXES = ("content-", "mime-", "resent-", "arc-")
_OWN_FIELD = {
    "from": "from",
    "to": "to",
    "cc": "cc",
    "bcc": "bcc",
    "reply-to": "reply_to",
    "subject": "subject",
}


def _wrong(faults: Iterable[tuple[str, str]]) -> PydanticCustomError:
    return PydanticCustomError("faults", "wrong", {"faults": tuple(faults)})


def read_verdict(value: object) -> str:
    """Read what became of a message in doubt."""
    if value not in ("sent", "failed"):
        raise _wrong([("", 'as is "sent" or "failed", as the relay\'s log says')])
    return str(value)


def _kind(value: object) -> str:
    match value:
        case bool():
            return "true or false"
        case int() | float():
            return "a number"
        case str():
            return "a string"
        case list():
            return "an array"
        case dict():
            return "an object"
        case _:
            return "null"


def read_addresses(value: object) -> tuple[Address, ...]:
    """Read every written form of a list of addresses."""
    if value is None or value == "":
        return ()
    items: list[object] = value if isinstance(value, list) else [value]
    addresses: list[Address] = []
    faults: list[tuple[str, str]] = []
    for at, item in enumerate(items):
        where = f"/{at}" if isinstance(value, list) else ""
        try:
            addresses.extend(_one_or_more(item))
        except InvalidAddress as error:
            faults.append((where, str(error)))
            if len(faults) >= MAX_FAULTS:
                break
    if faults:
        raise _wrong(faults)
    return tuple(addresses)


def _one_or_more(item: object) -> list[Address]:
    if isinstance(item, str):
        return [parse_address(piece) for piece in split_addresses(item)]
    if not isinstance(item, dict):
        raise InvalidAddress(
            f'an address is a string or {{"email": …, "name": …}}, not {_kind(item)}; write "name@example.org"'
        )
    unknown = item.keys() - {"email", "name"}
    if unknown:
        raise InvalidAddress(f"{min(unknown)[:80]!r} is not a field of an address; only email and name are")
    email, name = item.get("email"), item.get("name")
    if not isinstance(email, str) or not isinstance(name, str | None):
        raise InvalidAddress('an address needs "email", a string, and may have "name", a string')
    try:
        return [mailbox(email, name or "")]
    except InvalidAddress as error:
        raise InvalidAddress(f'{error}; "email" is one bare address, its display name goes into "name"') from error


def read_one_address(value: object) -> Address | None:
    addresses = read_addresses(value)
    if len(addresses) > 1:
        raise _wrong([("", f"one address is taken here, not {len(addresses)}")])
    return addresses[0] if addresses else None


def read_whose(value: object) -> Address:
    """Read an address that must be there."""
    address = read_one_address(value)
    if address is None:
        raise _wrong([("", "nobody is named: give one address, such as ann@example.org")])
    return address


def read_path(value: object) -> Path:
    """Read the name of a file on this machine."""
    if not isinstance(value, str) or not Path(value).is_absolute() or "\0" in value:
        raise _wrong([("", "file is an absolute path, such as /var/backups/mailchute.db")])
    return Path(value)


def read_subject(value: object) -> str:
    if value is None:
        return ""
    if not isinstance(value, str):
        raise _wrong([("", f"the subject is a string, not {_kind(value)}; put it in quotes")])
    if CONTROL.search(value):
        raise _wrong([("", "the subject may not contain line breaks or control characters; remove them")])
    if len(value) > MAX_SUBJECT:
        raise _wrong([("", f"the subject has {len(value)} characters; at most {MAX_SUBJECT} are taken")])
    return value


def read_text(value: object) -> str | None:
    if value is None or value == "":
        return None
    if not isinstance(value, str):
        raise _wrong([("", f"this is a string, not {_kind(value)}; put it in quotes")])
    return value


def read_extra_fields(value: object) -> tuple[tuple[str, str], ...]:
    if value is None or value == "":
        return ()
    if not isinstance(value, dict):
        raise _wrong([("", f'headers is an object such as {{"X-Ticket": "4711"}}, not {_kind(value)}')])
    if len(value) > MAX_FIELDS:
        raise _wrong([("", f"{len(value)} header fields are too many; at most {MAX_FIELDS} are taken")])
    faults = [(f"/{escaped(name[:80])}", why) for name, text in value.items() if (why := _field_fault(name, text))]
    if faults:
        raise _wrong(faults)
    return tuple(value.items())


def _field_fault(name: str, text: object) -> str | None:
    low = name.lower()
    if not _FIELD_NAME.match(name):
        return "a header field's name is printable ASCII without space and colon, at most 76 characters"
    if low in _OWN_FIELD:
        return f"{name} is not an extra header field; use the field {_OWN_FIELD[low]!r} of the body"
    if low in _STRUCTURAL or low.startswith(_STRUCTURAL_PREFIXES):
        return f"{name} is written by the service and cannot be set; remove it"
    if not isinstance(text, str):
        return f"a header field's value is a string, not {_kind(text)}; put it in quotes"
    if CONTROL.search(text):
        return "a header field's value may not contain line breaks or control characters; remove them"
    if len(text) > MAX_FIELD:
        return f"a header field's value of {len(text)} characters is too long; at most {MAX_FIELD} are taken"
    return None


def read_attachments(value: object) -> tuple[Attachment, ...]:
    if value is None or value == "":
        return ()
    items = value if isinstance(value, list) else [value]
    if len(items) > MAX_ATTACHMENTS:
        raise _wrong([("", f"{len(items)} attachments are too many; at most {MAX_ATTACHMENTS} are taken")])
    attachments: list[Attachment] = []
    faults: list[tuple[str, str]] = []
    for at, item in enumerate(items):
        where = f"/{at}" if isinstance(value, list) else ""
        attachment, why = read_attachment(item)
        faults += ((f"{where}{below}", detail) for below, detail in why)
        if attachment is not None:
            if attachment.content_id and any(attachment.content_id == a.content_id for a in attachments):
                faults.append((f"{where}/content_id", "two attachments have this content_id; each has its own"))
            attachments.append(attachment)
    if faults:
        raise _wrong(faults[:MAX_FAULTS])
    return tuple(attachments)


def read_tags(value: object) -> tuple[str, ...]:
    if value is None or value == "":
        return ()
    tags = [value] if isinstance(value, str) else value
    if not isinstance(tags, list) or not all(isinstance(tag, str) for tag in tags):
        raise _wrong([("", 'tags is an array of strings, such as ["order", "vip"]')])
    if len(tags) > MAX_TAGS:
        raise _wrong([("", f"{len(tags)} tags are too many; at most {MAX_TAGS} are taken")])
    faults = [
        (f"/{at}", f"a tag has 1 to {MAX_TAG} characters, none of them a control character")
        for at, tag in enumerate(tags)
        if not 0 < len(tag) <= MAX_TAG or CONTROL.search(tag)
    ]
    if faults:
        raise _wrong(faults)
    return tuple(dict.fromkeys(tags))


def read_metadata(value: object) -> dict[str, str]:
    if value is None or value == "":
        return {}
    if not isinstance(value, dict) or not all(isinstance(text, str) for text in value.values()):
        raise _wrong([("", 'metadata is a flat object of strings, such as {"order": "4711"}')])
    size = sum(len(key.encode()) + len(text.encode()) for key, text in value.items())
    if size > MAX_METADATA:
        raise _wrong([("", f"metadata has {size} bytes; at most {MAX_METADATA} are taken")])
    return value


def read_expires_in(value: object) -> float | None:
    if value is None or value == "":
        return None
    if isinstance(value, bool) or not isinstance(value, int | float) or not 1 <= value <= LONGEST_EXPIRY:
        raise _wrong([("", f"expires_in is a number of seconds from 1 to {LONGEST_EXPIRY}, such as 600")])
    return float(value)


def read_send_at(value: object) -> datetime | None:
    if value is None or value == "":
        return None
    if isinstance(value, str) and _INSTANT.match(value):
        with suppress(ValueError):
            return datetime.fromisoformat(value.upper()).astimezone(UTC)
    raise _wrong([("", "send_at is an instant with its offset, such as 2026-12-24T18:00:00+01:00 (RFC 3339)")])


def read_idempotency_key(value: object) -> str | None:
    if value is None or value == "":
        return None
    if not isinstance(value, str) or not KEY.match(value):
        raise _wrong([("", "idempotency_key is 1 to 255 printable ASCII characters")])
    return value


def read_flag(value: object) -> bool:
    if value in (None, ""):
        return False
    if not isinstance(value, bool):
        raise _wrong([("", f"this is true or false, not {_kind(value)}")])
    return value
