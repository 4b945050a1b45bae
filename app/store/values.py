"""Values as they come out of a column or out of its JSON, whatever is there; and instants as they go in. Pure.

SQLite checks no type, an older or newer version may have written the row, and a disk may have damaged it: nothing here
raises.
"""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from enum import StrEnum
from math import isfinite
from typing import Any, TypeVar

from pydantic_core import from_json

_E = TypeVar("_E", bound=StrEnum)
_Otherwise = TypeVar("_Otherwise")

_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
_MILLISECOND = timedelta(milliseconds=1)
_MOST = 1 << 53
_EARLIEST, _LATEST = datetime(1, 1, 2, tzinfo=UTC), datetime(9999, 12, 30, tzinfo=UTC)


def to_ms(instant: datetime) -> int:
    """An aware instant as milliseconds since 1970 UTC."""
    return (instant - _EPOCH) // _MILLISECOND


def from_ms(ms: object, otherwise: datetime = _EPOCH) -> datetime:
    """Read an instant; `otherwise` where it is no number, the nearest possible one where it is out of range."""
    if not isinstance(ms, int | float) or not isfinite(ms):
        return otherwise
    try:
        return max(_EARLIEST, min(_LATEST, _EPOCH + int(ms) * _MILLISECOND))
    except OverflowError:
        return _LATEST if ms > 0 else _EARLIEST


def known(kind: type[_E], value: object, otherwise: _Otherwise) -> _E | _Otherwise:
    """Read a value of an enumeration; `otherwise` where this version does not know it."""
    try:
        return kind(value)  # type: ignore[arg-type]
    except ValueError:
        return otherwise


def text_from(value: object) -> str:
    """Read a text, whatever is in its column."""
    if isinstance(value, str):
        return value
    if isinstance(value, bytes):
        return value.decode("utf-8", "replace")
    return "" if value is None else str(value)


def whole(value: object) -> int:
    """Read a count; 0 where it is none, the nearest possible one where it is out of range."""
    return max(0, min(_MOST, int(value))) if isinstance(value, int | float) and isfinite(value) else 0


def json_from(text: object) -> object:
    """Read JSON; None where it is none."""
    try:
        return from_json(text)  # type: ignore[arg-type]
    except (ValueError, TypeError):
        return None


def mapping(text: object) -> dict[str, Any]:
    """Read a JSON object; an empty one where it is none."""
    said = json_from(text)
    return said if isinstance(said, dict) else {}


def strings(said: object) -> list[str]:
    """Keep the strings of a JSON array."""
    return [each for each in said if isinstance(each, str)] if isinstance(said, list) else []


def string(value: object) -> str | None:
    """Keep a JSON string."""
    return value if isinstance(value, str) else None


def number(value: object) -> int | None:
    """Keep a whole JSON number."""
    return value if type(value) is int else None


def duration(value: object) -> float | None:
    """Keep a JSON number that can be written again."""
    return value if isinstance(value, int | float) and not isinstance(value, bool) and isfinite(value) else None
