"""An invitation in the body of POST /send: JSON in, `Calendar` out, every fault with its pointer.

RFC 5545 §3.1 (lines), §3.4 and §3.6 (the object), RFC 5546 §1.4 (methods). What the events say is the caller's.
"""

from __future__ import annotations

import re
from difflib import get_close_matches
from itertools import islice
from typing import Any

from app.mail.errors import escaped
from app.mail.message import Calendar

METHODS = ("PUBLISH", "REQUEST", "REPLY", "ADD", "CANCEL", "REFRESH", "COUNTER", "DECLINECOUNTER")
MAX_CALENDAR = 1_000_000  # characters
MAX_STRANGE = 20  # unknown fields that are told

_FIELDS = ("method", "content")
_FORM = 'calendar is {"method": "REQUEST", "content": "BEGIN:VCALENDAR…"}'
_NO_CALENDAR = (
    "this is no calendar: it begins with BEGIN:VCALENDAR and ends with END:VCALENDAR, each on a line of its own, and "
    "each BEGIN has its END; give the text of the .ics file, not base64 or a URL"
)
_LINE_END = re.compile(r"\r\n|\r|\n")
_FOLD = re.compile(r"(?:\r\n|\r|\n)[ \t]")
_CONTROL = re.compile(r"[\x00-\x08\x0b\x0c\x0e-\x1f\x7f]")

_Faults = list[tuple[str, str]]


def read_invitation(value: object) -> tuple[Calendar | None, _Faults]:
    """Read an invitation; the second value names its faults, (pointer below it, what is wrong)."""
    if not isinstance(value, dict):
        return None, [("", f"{_FORM}: the text of an .ics file, and the method it is sent with")]
    strange = islice((str(key)[:80] for key in value if key not in _FIELDS), MAX_STRANGE)
    faults = [(f"/{escaped(key)}", _unknown(key)) for key in strange]
    method, why = _method(value.get("method"))
    if why:
        faults.append(("/method", why))
    content, why = _content(value.get("content"))
    if why:
        faults.append(("/content", why))
    others = [other for other in _methods(content) or () if other.upper() != method] if method and content else []
    if others:
        faults.append(("/method", f"the content says METHOD:{others[0][:20]}; give the same method in both"))
    return (None, faults) if faults else (Calendar(method, content), [])


def _unknown(key: str) -> str:
    near = get_close_matches(key.lower(), _FIELDS, n=1)
    cure = f"do you mean {near[0]!r}?" if near else f"known are: {', '.join(_FIELDS)}"
    return f"{key!r} is not a field of a calendar; {cure}"


def _method(value: object) -> tuple[str, str]:
    if value is None or value == "":
        return "", 'method is missing; give "REQUEST" for an invitation, "CANCEL" to call it off'
    method = value.strip().upper() if isinstance(value, str) else ""
    if method in METHODS:
        return method, ""
    near = get_close_matches(method[:80], METHODS, n=1)
    cure = f"do you mean {near[0]!r}?" if near else f"one of {', '.join(METHODS)} (RFC 5546)"
    return "", f"this is not a method of invitations; {cure}"


def _content(value: object) -> tuple[str, str]:
    if value is None or value == "":
        return "", "content is missing; give the text of the .ics file"
    if not isinstance(value, str):
        return "", "content is a string: the text of the .ics file"
    if len(value) > MAX_CALENDAR:
        return "", f"content has {len(value)} characters; at most {MAX_CALENDAR} are taken: attach the file instead"
    if _CONTROL.search(value):
        return "", "content may not contain control characters; remove them"
    content = value.removeprefix("\ufeff").strip()
    return (content, "") if _methods(content) is not None else ("", _NO_CALENDAR)


def _methods(content: str) -> list[str] | None:
    """Return the METHOD properties of an iCalendar object, not of its components; None where it is none."""
    lines = _LINE_END.split(_FOLD.sub("", content))
    if lines[0].strip().upper() != "BEGIN:VCALENDAR" or lines[-1].strip().upper() != "END:VCALENDAR":
        return None
    methods: list[str] = []
    depth = 0
    for at, line in enumerate(lines):
        name = line[:6].upper()
        if name == "BEGIN:":
            depth += 1
        elif name.startswith("END:"):
            depth -= 1
            if depth == 0 and at < len(lines) - 1:
                return None
        elif depth == 1 and name == "METHOD" and line[6:7] in (":", ";"):
            methods.append(line.partition(":")[2].strip())
    return methods if depth == 0 else None


SCHEMA: dict[str, Any] = {
    "anyOf": [
        {
            "type": "object",
            "title": "Calendar",
            "required": ["method", "content"],
            "additionalProperties": False,
            "properties": {
                "method": {"type": "string", "enum": list(METHODS), "description": "in any case (RFC 5546)"},
                "content": {
                    "type": "string",
                    "maxLength": MAX_CALENDAR,
                    "description": "the text of the .ics file; its METHOD, where it has one, is the same",
                },
            },
        },
        {"type": "null"},
    ]
}
EXAMPLE = {
    "method": "REQUEST",
    "content": "\n".join(
        [
            *("BEGIN:VCALENDAR", "VERSION:2.0", "PRODID:-//example.org//EN", "METHOD:REQUEST", "BEGIN:VEVENT"),
            *("UID:4711@example.org", "DTSTAMP:20261201T120000Z", "DTSTART:20261224T120000Z", "DURATION:PT1H"),
            *("SUMMARY:Lunch", "ORGANIZER:mailto:ann@example.org", "ATTENDEE;RSVP=TRUE:mailto:bob@example.org"),
            *("END:VEVENT", "END:VCALENDAR"),
        ]
    ),
}
