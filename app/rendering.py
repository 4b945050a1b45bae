"""How the commands show what the API answers: tables that fit the terminal, sentences, times in the reader's zone.

Pure, but for the zone, which is this machine's (TZ). Prints nothing.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from datetime import datetime
from typing import Any
from unicodedata import combining, east_asian_width

from app.mail.escaping import escape

_NARROW = 110  # columns of a terminal below which some of a table are left out
_LEAST = 8  # columns of a shortened cell
_ELLIPSIS = "…"


def local(instant: str) -> str:
    """Write an instant of the API's in this machine's zone: 2026-12-24 18:00:00."""
    return f"{datetime.fromisoformat(instant).astimezone():%Y-%m-%d %H:%M:%S}"


def local_with_zone(instant: str) -> str:
    """Write an instant with the zone's name behind it: 2026-12-24 18:00:00 CET."""
    return f"{datetime.fromisoformat(instant).astimezone():%Y-%m-%d %H:%M:%S %Z}"


def message_table(messages: Sequence[dict[str, Any]], *, width: int | None) -> Iterator[str]:
    """Yield a header and a line for each message; `width` of the terminal, None = nothing is shortened."""
    if not messages:
        return
    when, times = _times("ACCEPTED", [message["created_at"] for message in messages], width)
    names = [when, "STATE", "ID", "PROFILE", "ERROR", "TO", "SUBJECT"]
    rows = [
        [
            at,
            message["state"],
            message["id"],
            message["profile"],
            message["error_code"] or "",
            _recipients(message),
            message["subject"] or "(no subject)",
        ]
        for at, message in zip(times, messages, strict=True)
    ]
    yield from table(names, rows, width=width, needed=(0, 1, 2, 5, 6), shortened=(5, 6))


def attempt_table(attempts: Sequence[dict[str, Any]], *, width: int | None) -> Iterator[str]:
    """Yield a header and a line for each attempt."""
    if not attempts:
        return
    when, times = _times("STARTED", [one["started_at"] for one in attempts], width)
    names = [when, "MESSAGE", "NO", "PROFILE", "PHASE", "RESULT", "REPLY"]
    rows = [
        [
            at,
            one["id"],
            str(one["number"]),
            one["profile"],
            one["phase"] or "",
            _result(one),
            one["reply"] or one["message"] or "",
        ]
        for at, one in zip(times, attempts, strict=True)
    ]
    yield from table(names, rows, width=width, needed=(0, 1, 2, 5), shortened=(5, 6))


def table(
    names: Sequence[str],
    rows: Sequence[Sequence[str]],
    *,
    width: int | None,
    needed: Sequence[int],
    shortened: Sequence[int],
) -> Iterator[str]:
    """Yield lines of aligned columns.

    Where `width` is small, only the `needed` columns are shown; where it does not suffice, the `shortened` ones are.
    """
    shown = range(len(names)) if width is None or width >= _NARROW else needed
    cells = [[escape(row[at]) for at in shown] for row in (names, *rows)]
    widths = [max(_width(row[at]) for row in cells) for at in range(len(shown))]
    if width is not None:
        flexible = [at for at, column in enumerate(shown) if column in shortened]
        _shrink(widths, flexible, sum(widths) + 2 * (len(widths) - 1) - width)
    for row in cells:
        yield "  ".join(_fitted(cell, columns) for cell, columns in zip(row, widths, strict=True)).rstrip()


def message_line(message: dict[str, Any]) -> str:
    """A message in one line: when, state, id, profile, and a sentence."""
    code = f"{message['error_code']}/{message['reason']}: " if message["error_code"] else ""
    when = local(message["created_at"])
    return f"{when}  {message['state']:<9}  {message['id']}  {message['profile']:<12}  {code}{message['message']}"


def message_details(message: dict[str, Any]) -> Iterator[str]:
    """Yield all that is known of a message, its attempts with what was said."""
    yield message_line(message)
    for name in ("subject", "sender", "message_id", "expires_at", "next_attempt_at", "blocked_by", "hint"):
        if value := message.get(name):
            yield f"  {name}: {local_with_zone(value) if name.endswith('_at') else value}"
    yield from (f"  warning: {warning}" for warning in message["warnings"])
    for recipient in message["recipients"]:
        code = f"  {recipient['error_code']}/{recipient['reason']}" if recipient["error_code"] else ""
        yield f"  {recipient['address']}: {recipient['state']}{code}"
    for attempt in message["attempts"]:
        ms = "" if attempt["duration_ms"] is None else f"{attempt['duration_ms']:.0f} ms, "
        started = local_with_zone(attempt["started_at"])
        yield f"  attempt {attempt['number']}, {started}, {attempt['profile']}: {ms}{_result(attempt)}"
        for said in attempt["transcript"] or []:
            yield f"    {said['ms']:>8.1f} {said['dir']}: {said['line']}"


def _times(name: str, instants: Sequence[str], width: int | None) -> tuple[str, list[str]]:
    """Return the header and the cells of a column of instants: short ones where the terminal is narrow."""
    times = [datetime.fromisoformat(instant).astimezone() for instant in instants]
    if width is None or width >= _NARROW:
        return f"{name} ({times[0]:%Z})", [f"{at:%Y-%m-%d %H:%M:%S}" for at in times]
    return f"AT ({times[0]:%Z})", [f"{at:%m-%d %H:%M}" for at in times]


def _recipients(message: dict[str, Any]) -> str:
    first, more = message["to"][0], message["recipient_count"] - 1
    return f"{first} +{more}" if more else first


def _result(attempt: dict[str, Any]) -> str:
    if attempt["error_code"]:
        return f"{attempt['error_code']}/{attempt['reason']}"
    return "under way" if attempt["duration_ms"] is None else "sent"


def _shrink(widths: list[int], flexible: Sequence[int], over: int) -> None:
    """Take columns from the widest flexible cell until nothing is over, or none has more than the least."""
    while over > 0 and flexible:
        widest = max(flexible, key=lambda at: widths[at])
        if widths[widest] <= _LEAST:
            return
        widths[widest] -= 1
        over -= 1


def _fitted(cell: str, columns: int) -> str:
    """Cut a cell to so many columns, or fill it with blanks."""
    if _width(cell) > columns:
        kept, taken = "", 0
        for sign in cell:
            taken += _width(sign)
            if taken > columns - 1:
                break
            kept += sign
        cell = kept + _ELLIPSIS
    return cell + " " * (columns - _width(cell))


def _width(text: str) -> int:
    """How many columns of a terminal a text takes (Unicode UAX #11)."""
    if text.isascii():
        return len(text)
    return sum(0 if combining(sign) else 2 if east_asian_width(sign) in "WF" else 1 for sign in text)
