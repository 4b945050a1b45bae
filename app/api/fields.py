"""Reading the fields of POST /send's body: a JSON value in, ours out, or the faults of it.

A reader raises `PydanticCustomError("faults")` with (pointer below the field, what is wrong and what to do). `""` and
null equal absent. Addresses are parsed once, here, and never again.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from datetime import UTC, datetime
from pathlib import Path
from typing import NamedTuple, TypeAlias

from pydantic_core import PydanticCustomError

from app.api.attachments import MAX_ATTACHMENTS, read_attachment
from app.api.calendar import read_invitation
from app.compose.header import InvalidField, field, is_structured
from app.intake.accept import MAX_RECIPIENTS
from app.mail.address import CONTROL, MAX_TEXT, Address, InvalidAddress, mailbox, parse_address, split_addresses
from app.mail.errors import escaped
from app.mail.message import Attachment, Calendar
from app.mail.slips import absent_value, nested_json

MAX_REPLY_TO = 100  # addresses
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
_NOT_TAKEN = {
    **dict.fromkeys(["date", "message-id", "mime-version", "content-type", "content-transfer-encoding"], "the service"),
    **dict.fromkeys(["received", "authentication-results", "delivered-to"], "the service or a server behind it"),
    "dkim-signature": "the service or the relay that signs",
}
_NOT_TAKEN_BECAUSE = {
    "sender": "is not taken: who sends is said by 'from' alone; remove it",
    "return-path": "is written by the last server, from MAIL FROM; remove it, and set envelope_from of the profile",
}
_NOT_TAKEN_PREFIXES = {
    "mime-": "is written by the service and cannot be set; remove it",
    "content-": "describes one part of a mail, and the service writes the parts; remove it",
    "resent-": "is written by whoever sends a received mail on; remove it",
    "arc-": "is written by the servers that a mail passes through; remove it",
}
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
    """Read recipients in every written form, `MAX_RECIPIENTS` at most."""
    return _parsed(_written_addresses(value, f"recipients are too many; at most {MAX_RECIPIENTS} a message"))


def read_reply_to(value: object) -> tuple[Address, ...]:
    """Read where replies go, `MAX_REPLY_TO` addresses at most."""
    too_many = f"addresses are too many; at most {MAX_REPLY_TO} are taken"
    return _parsed(_written_addresses(value, too_many, at_most=MAX_REPLY_TO))


_BRACKETS = ("[", "{", "'", '"', "`", "$", "#", "<")  # what JSON or a placeholder may begin with
_Written: TypeAlias = tuple[str, object]  # the pointer of an address, and the address as it was written


def _written_addresses(value: object, too_many: str, *, at_most: int = MAX_RECIPIENTS) -> list[_Written]:
    """Count the addresses of a field before one of them is parsed; equal ones over `at_most` count once."""
    if value is None or value == "":
        return []
    items: list[object] = value if isinstance(value, list) else [value]
    size = sum(len(item) for item in items if isinstance(item, str))
    if size > MAX_RECIPIENTS * MAX_TEXT:
        most = f"at most {MAX_RECIPIENTS} addresses of {MAX_TEXT} characters are taken"
        raise _wrong([("", f"{size} characters of addresses are too long; {most}")])
    written: list[_Written] = []
    for at, item in enumerate(items):
        where = f"/{at}" if isinstance(value, list) else ""
        if isinstance(item, str):
            # Such a text may hold commas of its own: it is one address that cannot be, not several.
            whole = item.lstrip()[:1] in _BRACKETS and (nested_json(item) or absent_value(item))
            written += [(where, piece) for piece in ([item] if whole else split_addresses(item))]
        elif item is not None:
            written.append((where, item))
    if len(written) > at_most:
        distinct = {_text_of(item): (where, item) for where, item in reversed(written)}
        if len(distinct) > at_most:
            raise _wrong([("", f"{len(written)} {too_many}")])
        written = list(reversed(distinct.values()))
    return written


def _text_of(item: object) -> str:
    """Return a text that is equal for two addresses that were written alike."""
    if isinstance(item, dict):
        return repr([str(item.get(part))[: MAX_TEXT + 1] for part in ("email", "name")])
    return item if isinstance(item, str) else _kind(item)


def _parsed(written: Iterable[_Written]) -> tuple[Address, ...]:
    addresses: list[Address] = []
    faults: list[tuple[str, str]] = []
    for where, item in written:
        try:
            addresses.append(parse_address(item) if isinstance(item, str) else _mailbox(item))
        except InvalidAddress as error:
            faults.append((where, str(error)))
            if len(faults) >= MAX_FAULTS:
                break
    if faults:
        raise _wrong(faults)
    return tuple(addresses)


def _mailbox(item: object) -> Address:
    if not isinstance(item, dict):
        raise InvalidAddress(
            f'an address is a string or {{"email": …, "name": …}}, not {_kind(item)}; write "name@example.org"'
        )
    unknown = item.keys() - {"email", "name"}
    if unknown:
        raise InvalidAddress(f"{min(unknown)[:80]!r} is not a field of an address; only email and name are")
    email, name = item.get("email"), item.get("name")
    if email is None and "email" in item:
        email = ""
    if not isinstance(email, str) or not isinstance(name, str | None):
        raise InvalidAddress('an address needs "email", a string, and may have "name", a string')
    if not email[:MAX_TEXT].strip():
        raise InvalidAddress('"email" is empty; write name@example.org')
    try:
        return mailbox(email, name or "")
    except InvalidAddress as error:
        raise InvalidAddress(f'{error}; "email" is one bare address, its display name goes into "name"') from error


def read_one_address(value: object) -> Address | None:
    written = _written_addresses(value, "addresses are too many; one is taken here")
    addresses = _parsed(written[:2])  # what is wrong with them is often why there seem to be two
    if len(written) > 1:
        raise _wrong([("", f"one address is taken here, not {len(written)}")])
    return addresses[0] if addresses else None


def read_peer(value: object) -> Address | None:
    """Read whom a diagnosis names; an array must name somebody."""
    address = read_one_address(value)
    if address is None and isinstance(value, list):
        raise _wrong([("", "the array names nobody: give one address, or leave the field out")])
    return address


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
    if len(value) > MAX_SUBJECT:
        raise _wrong([("", f"the subject has {len(value)} characters; at most {MAX_SUBJECT} are taken")])
    if CONTROL.search(value):
        raise _wrong([("", "the subject may not contain line breaks or control characters; remove them")])
    return value


def read_text(value: object) -> str | None:
    if value is None or value == "":
        return None
    if not isinstance(value, str):
        raise _wrong([("", f"this is a string, not {_kind(value)}; put it in quotes")])
    return value


def read_calendar(value: object) -> Calendar | None:
    if value is None or value == "":
        return None
    calendar, faults = read_invitation(value)
    if faults:
        raise _wrong(faults)
    return calendar


def read_extra_fields(value: object) -> tuple[tuple[str, str], ...]:
    if value is None or value == "":
        return ()
    if not isinstance(value, dict):
        raise _wrong([("", f'headers is an object such as {{"X-Ticket": "4711"}}, not {_kind(value)}')])
    if len(value) > MAX_FIELDS:
        raise _wrong([("", f"{len(value)} header fields are too many; at most {MAX_FIELDS} are taken")])
    faults = [(f"/{escaped(name[:80])}", why) for name, text in value.items() if (why := _field_fault(name, text))]
    seen: dict[str, str] = {}
    for name in value:
        if seen.setdefault(name.lower(), name) != name:
            why = f"{name[:80]} is there twice, as {seen[name.lower()][:80]} too; a field's name has no case: give one"
            faults.append((f"/{escaped(name[:80])}", why))
    if faults:
        raise _wrong(faults[:MAX_FAULTS])
    return tuple(value.items())


def _field_fault(name: str, text: object) -> str | None:
    if not _FIELD_NAME.match(name):
        return "a header field's name is printable ASCII without space and colon, at most 76 characters"
    why = _not_taken(name)
    if why is not None:
        return f"{name} {why}"
    if not isinstance(text, str):
        return f"a header field's value is a string, not {_kind(text)}; put it in quotes"
    if len(text) > MAX_FIELD:
        return f"a header field's value of {len(text)} characters is too long; at most {MAX_FIELD} are taken"
    if is_structured(name):
        return _structured_fault(name, text)
    if CONTROL.search(text):
        return "a header field's value may not contain line breaks or control characters; remove them"
    return None


def _not_taken(name: str) -> str | None:
    """Say why a field of this name is not taken from a caller; None where it is."""
    low = name.lower()
    if low in _OWN_FIELD:
        return f"is not an extra header field; use the field {_OWN_FIELD[low]!r} of the body"
    if low in _NOT_TAKEN:
        return f"is written by {_NOT_TAKEN[low]} and cannot be set; remove it"
    if low in _NOT_TAKEN_BECAUSE:
        return _NOT_TAKEN_BECAUSE[low]
    if low == "content-language":  # RFC 3282: of the whole mail
        return None
    return next((why for prefix, why in _NOT_TAKEN_PREFIXES.items() if low.startswith(prefix)), None)


def _structured_fault(name: str, text: str) -> str | None:
    try:
        field(name, text)
    except InvalidField as error:
        return str(error)
    return None


class Files(NamedTuple):
    """Attachments, and what was changed about them."""

    attachments: tuple[Attachment, ...] = ()
    warnings: tuple[str, ...] = ()


def read_attachments(value: object) -> Files:
    if value is None or value == "":
        return Files()
    items = value if isinstance(value, list) else [value]
    if len(items) > MAX_ATTACHMENTS:
        raise _wrong([("", f"{len(items)} attachments are too many; at most {MAX_ATTACHMENTS} are taken")])
    attachments: list[Attachment] = []
    warnings: list[str] = []
    faults: list[tuple[str, str]] = []
    for at, item in enumerate(items):
        if item is None or item == "":
            continue
        where = f"/{at}" if isinstance(value, list) else ""
        attachment, why = read_attachment(item)
        faults += [(f"{where}{below}", detail) for below, detail in why]
        if len(faults) >= MAX_FAULTS:
            break
        if attachment is not None:
            if attachment.content_id and any(attachment.content_id == a.content_id for a in attachments):
                faults.append((f"{where}/content_id", "two attachments have this content_id; each has its own"))
            attachments.append(attachment)
            if attachment.filename != item["filename"]:
                warnings.append(f"the blanks around the file name {attachment.filename!r} are left out")
    if faults:
        raise _wrong(faults[:MAX_FAULTS])
    return Files(tuple(attachments), tuple(warnings[:MAX_FAULTS]))


def read_tags(value: object) -> tuple[str, ...]:
    if value is None or value == "":
        return ()
    tags = [value] if isinstance(value, str) else value
    if isinstance(tags, list) and len(tags) > MAX_TAGS:
        raise _wrong([("", f"{len(tags)} tags are too many; at most {MAX_TAGS} are taken")])
    if not isinstance(tags, list) or not all(isinstance(tag, str) for tag in tags):
        raise _wrong([("", 'tags is an array of strings, such as ["order", "vip"]')])
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
    if len(value) > MAX_METADATA:
        raise _wrong([("", f"metadata has {len(value)} entries; at most {MAX_METADATA} bytes are taken")])
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
    if not isinstance(value, str) or not _INSTANT.match(value):
        raise _wrong([("", _NO_INSTANT)])
    try:
        return in_utc(datetime.fromisoformat(value.upper()))
    except OutsideOfTime as error:
        raise _wrong([("", f"send_at {error}")]) from None
    except ValueError:
        raise _wrong([("", _NO_INSTANT)]) from None


_NO_INSTANT = "send_at is an instant with its offset, such as 2026-12-24T18:00:00+01:00 (RFC 3339)"


class OutsideOfTime(ValueError):
    """An instant that UTC has no date for. The text follows the name of what holds it."""


def in_utc(instant: datetime) -> datetime:
    """Convert an aware instant to UTC.

    Raises:
        OutsideOfTime: in UTC it lies before the year 1 or after 9999.
    """
    try:
        return instant.astimezone(UTC)
    except OverflowError:
        raise OutsideOfTime(f"{instant.isoformat()} is outside of the years 1 to 9999 in UTC; give another") from None


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
