"""What the query strings of the lists say: filters, page size and cursor, each fault with the cure."""

from __future__ import annotations

from base64 import b64decode, urlsafe_b64encode
from collections import Counter
from collections.abc import Mapping
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from difflib import get_close_matches
from typing import Any
from urllib.parse import urlencode
from uuid import UUID

from starlette.datastructures import QueryParams

from app.api.edge import relative
from app.api.fields import OutsideOfTime, in_utc
from app.mail.address import InvalidAddress, parse_address
from app.mail.codes import ErrorCode
from app.mail.errors import Fault, InvalidMessage, NotFound
from app.mail.message import NULL_SENDER
from app.mail.outcome import MessageState
from app.mail.schedule import parse_duration
from app.store.history import Filter
from app.store.search import expression_of

MAX_PAGE = 100
MAX_SEARCH = 200  # characters of q
FILTERED_BY: dict[str, str] = {
    "state": "queued, sending, deferred, sent, …",
    "error_code": "of the latest failure, such as EAUTH",
    "profile": "name of a profile",
    "sender": "MAIL FROM; `<>` is the null sender",
    "recipient": "one address",
    "tag": "one tag",
    "message_id": "of the header Message-ID, with or without <>",
    "q": "words, or their beginnings, of subject, recipients and tags; all must be there",
    "since": "accepted at this instant or later; RFC 3339, a date, or how long ago (24h)",
    "until": "accepted before this instant",
}


PAGED_BY = {"limit": f"entries a page, 1 to {MAX_PAGE}; 20", "cursor": "`next_cursor` of the page before"}

_SCHEMAS: dict[str, dict[str, Any]] = {
    "state": {"title": "MessageState", "enum": [*MessageState]},
    "error_code": {"title": "ErrorCode", "enum": [*ErrorCode]},
    "limit": {"type": "integer", "minimum": 1, "maximum": MAX_PAGE},
    "dry_run": {"type": "boolean"},
}


def schema_of(name: str) -> dict[str, Any]:
    """What a parameter may be, for OpenAPI; an empty one is none, whatever this says."""
    return {"type": "string", **_SCHEMAS.get(name, {})}


def fault(detail: str) -> InvalidMessage:
    return InvalidMessage.of([Fault("", detail)])


def filter_of(query: Mapping[str, str], *, now: datetime) -> Filter:
    """Read the filters; an empty one is none.

    Raises:
        InvalidMessage: a value that no message can have.
    """
    id_, message_id = _message_id(query)
    which = Filter(
        id=id_,
        message_id=message_id,
        state=_one_of(query, "state", [*MessageState]),
        error_code=_one_of(query, "error_code", [*ErrorCode], upper=True),
        profile=query.get("profile") or None,
        sender="" if query.get("sender") == NULL_SENDER else _address(query, "sender"),
        recipient=_address(query, "recipient"),
        tag=query.get("tag") or None,
        q=_words(query),
    )
    return replace(which, since=instant(query, "since", now=now), until=instant(query, "until", now=now))


def instant(query: Mapping[str, str], name: str, *, now: datetime) -> datetime | None:
    """Read an RFC 3339 instant, a date (midnight UTC), or how long ago (`24h`)."""
    text = query.get(name, "")
    if not text:
        return None
    try:
        return now - timedelta(seconds=parse_duration(text))
    except OverflowError:
        raise fault(f"{name}: {text[:40]!r} ago is before the year 1; give a shorter time") from None
    except ValueError:
        pass
    try:
        # "+" of an offset arrives as a blank where nobody escaped it.
        said = datetime.fromisoformat(text.upper().replace(" ", "+") if "T" in text.upper() else text)
        return in_utc(said) if said.tzinfo else said.replace(tzinfo=UTC)
    except OutsideOfTime as error:
        raise fault(f"{name} {error}") from None
    except ValueError:
        raise fault(
            f"{name} is an instant such as 2026-12-24T18:00:00Z, a date, or how long ago (24h), not {text[:40]!r}"
        ) from None


def limit_of(query: Mapping[str, str]) -> int:
    text = query.get("limit") or "20"
    if not (text.isascii() and text.isdigit() and len(text) <= 9 and 1 <= int(text) <= MAX_PAGE):
        raise fault(f"limit is a number from 1 to {MAX_PAGE}, not {text[:20]!r}")
    return int(text)


def flag_of(query: Mapping[str, str], name: str) -> bool:
    """Read `true` or `false`; an empty one is false."""
    text = query.get(name, "")
    if text.lower() not in ("", "true", "false"):
        raise fault(f"{name} is true or false, not {text[:20]!r}")
    return text.lower() == "true"


def cursor_of(query: Mapping[str, str], size: int = 16) -> bytes | None:
    """Read a cursor of `size` bytes; None where there is none."""
    text = query.get("cursor", "")
    if not text:
        return None
    try:
        raw = b"" if len(text) > 2 * size else b64decode(text + "=" * (-len(text) % 4), altchars=b"-_", validate=True)
    except ValueError:
        raw = b""
    if len(raw) != size:
        raise fault("cursor is not one that we gave; leave it out to begin")
    return raw


def written(cursor: bytes) -> str:
    return urlsafe_b64encode(cursor).decode().rstrip("=")


def link(path: str, query: Mapping[str, str], next_cursor: str) -> tuple[bytes, bytes]:
    """Return the Link header (RFC 8288) that leads to the next page of the same list."""
    said = urlencode({**{name: value for name, value in query.items() if value}, "cursor": next_cursor})
    return b"link", f'<{relative(path, path)}?{said}>; rel="next"'.encode()


def id_of(text: str) -> UUID:
    """Read a message's id. Its Message-ID, with or without `<>`, begins with it.

    Raises:
        NotFound: no message can have it.
    """
    try:
        return UUID(bare_message_id(text).partition("@")[0])
    except ValueError as error:
        raise NotFound(f"There is no message {text[:80]}") from error


def bare_message_id(text: str) -> str:
    """Return a Message-ID as we write them, without `<>`."""
    return text.strip().removeprefix("<").removesuffix(">").strip().lower()


def _message_id(query: Mapping[str, str]) -> tuple[UUID | None, str | None]:
    """Read a Message-ID, or the id that it begins with; nothing is found by one that is not ours."""
    text = query.get("message_id", "")
    if not text:
        return None, None
    try:
        id_ = id_of(text)
    except NotFound:
        id_ = UUID(int=0)
    return id_, f"<{bare_message_id(text)}>" if "@" in text else None


def refuse_unknown(query: QueryParams, known: set[str]) -> None:
    """Refuse a parameter that is not in `known` or is given twice: a filter that is dropped matches everything."""
    for name in query:
        if name not in known:
            raise fault(f"{name[:40]!r} is not a parameter here; known are: {', '.join(sorted(known))}")
    count = Counter(name for name, _ in query.multi_items())
    for name, times in count.items():
        if times > 1:
            raise fault(f"{name} is given {times} times; give it once")


def _one_of(query: Mapping[str, str], name: str, known: list[str], *, upper: bool = False) -> str | None:
    text = query.get(name, "")
    if not text:
        return None
    value = text.upper() if upper else text.lower()
    if value not in known:
        near = get_close_matches(value[:80], known, n=1)
        raise fault(f"{name} is one of {', '.join(known)}" + (f"; do you mean {near[0]}?" if near else ""))
    return value


def _words(query: Mapping[str, str]) -> str | None:
    text = query.get("q", "")
    if not text:
        return None
    if len(text) > MAX_SEARCH:
        raise fault(f"q has {len(text)} characters; at most {MAX_SEARCH} are searched for")
    expression = expression_of(text)
    if expression is None:
        raise fault(f"q has no word in it: {text[:40]!r}")
    return expression


def _address(query: Mapping[str, str], name: str) -> str | None:
    text = query.get(name, "")
    if not text:
        return None
    try:
        return parse_address(text.replace(" ", "+") if "@" in text and "<" not in text else text).addr_spec
    except InvalidAddress as error:
        raise fault(f"{name}: {error}") from error
