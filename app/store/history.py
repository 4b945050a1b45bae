"""Reads for the API and the inspector: by id, newest first, and what the figures need.

No COUNT and no OFFSET when somebody asks: lists go by keyset (UUIDv7 sorts by time), what waits is counted once, at
start (`census.py`). RFC 9562 §5.7.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from functools import lru_cache
from typing import Any
from uuid import UUID

from sqlalchemy import ColumnElement, Select, bindparam, exists, func, literal_column, select, text, tuple_

from app.mail.codes import CODE_OF, ErrorCode, Reason
from app.mail.message import Snapshot
from app.mail.outcome import MessageState
from app.store.census import Census
from app.store.database import (
    COUNT_PERIOD,
    COUNTS_KEPT,
    attempts,
    failure_counts,
    message_search,
    messages,
    recipients,
    tags,
)
from app.store.journal import PATIENCE
from app.store.reader import Reader
from app.store.records import (
    MESSAGE_BY_ID,
    RECIPIENTS_OF,
    SNAPSHOT_COLUMNS,
    counted_state,
    facts_from,
    first_of,
    has_id,
    recipient_from,
    snapshot,
)
from app.store.search import SearchIndex
from app.store.values import from_ms, known, text_from, to_ms, whole

_AFTER_ALL = UUID(int=(1 << 128) - 1)
BEGUN_PAGE = 1000  # rows read at once
_MOST_ATTEMPTS = (1 << 32) - 1  # that a cursor has room for
_STATES_OF_THE_QUEUE = ("queued", "sending")


@dataclass(frozen=True, slots=True)
class Filter:
    """Which messages; None = any. `since` is inclusive, `until` is not; both look at when it was accepted."""

    id: UUID | None = None
    message_id: str | None = None  # the whole header value, with its <>
    state: str | None = None
    error_code: str | None = None
    profile: str | None = None
    sender: str | None = None
    recipient: str | None = None
    tag: str | None = None
    q: str | None = None  # an expression of `search.expression_of`
    since: datetime | None = None
    until: datetime | None = None


@lru_cache(maxsize=512)
def newest_matching(names: frozenset[str], state: str | None) -> Select[Any]:
    """Give the page of messages, newest first, that match the named fields; each has an index that leads there.

    `state` stands in the text, since SQLite takes a partial index only for what it can read.
    """
    page, key = _found() if "q" in names else _in_order(names)
    if state is not None:
        page = page.where(messages.c.state == literal_column(f"'{MessageState(state)}'"))
    if state is not None and state not in (*_STATES_OF_THE_QUEUE, "sent"):
        page = page.where(text("messages.state NOT IN ('queued', 'sending', 'sent')"))
    if state in _STATES_OF_THE_QUEUE:
        page = page.where(messages.c.due_at.is_not(None))
    for name in ("id", "message_id", "error_code", "profile", "sender"):
        if name in names:
            page = page.where(messages.c[name] == bindparam(f"of_{name}"))
    for name, column in (("recipient", recipients.c.address), ("tag", tags.c.tag)):
        if name in names:
            rows = column.table
            is_it = column == bindparam(f"of_{name}")
            leads = key is rows.c.message_id
            page = page.where(is_it if leads else exists().where(is_it, rows.c.message_id == messages.c.id))
    return page.order_by(key.desc()).limit(bindparam("at_most"))


def _in_order(names: frozenset[str]) -> tuple[Select[Any], ColumnElement[Any]]:
    """Walk messages by their ids, or whoever leads to them by theirs: no list is made of all that match."""
    page = select(*SNAPSHOT_COLUMNS)
    key = recipients.c.message_id if "recipient" in names else tags.c.message_id if "tag" in names else messages.c.id
    if key is not messages.c.id:
        page = page.join_from(key.table, messages, messages.c.id == key)
    return page.where(key < bindparam("before"), key >= bindparam("from_id"), has_id(messages.c.id)), key


def _found() -> tuple[Select[Any], ColumnElement[Any]]:
    """Walk what a search finds, newest first, within the bounds that the others have in ids."""
    seq = select(messages.c.seq)
    last = seq.where(messages.c.id < bindparam("before")).order_by(messages.c.id.desc()).limit(1).scalar_subquery()
    end = func.coalesce(seq.where(messages.c.id == bindparam("before")).scalar_subquery(), last + 1)
    first = seq.where(messages.c.id >= bindparam("from_id")).order_by(messages.c.id).limit(1).scalar_subquery()
    key = message_search.c.rowid
    page = select(*SNAPSHOT_COLUMNS).join_from(message_search, messages, messages.c.seq == key)
    matches = literal_column("message_search").op("MATCH")(bindparam("of_q"))
    return page.where(matches, key < end, key >= first, has_id(messages.c.id)), key


@lru_cache(maxsize=16)
def attempts_matching(names: frozenset[str]) -> Select[Any]:
    """Give the page of attempts, of the newest message first, that match the named fields."""
    page = select(attempts.c.message_id, *_ATTEMPT_COLUMNS).where(
        tuple_(attempts.c.message_id, attempts.c.number) < tuple_(bindparam("before"), bindparam("before_number")),
        attempts.c.message_id >= bindparam("from_id"),
        has_id(attempts.c.message_id),
        attempts.c.number >= 0,  # else no cursor can lead behind it
    )
    for name in ("error_code", "profile"):
        if name in names:
            page = page.where(attempts.c[name] == bindparam(f"of_{name}"))
    if "error_code" in names:
        page = page.where(attempts.c.error_code.is_not(None))
    return page.order_by(attempts.c.message_id.desc(), attempts.c.number.desc()).limit(bindparam("at_most"))


_ATTEMPT_COLUMNS = (
    attempts.c.number,
    attempts.c.profile,
    attempts.c.started_at,
    attempts.c.handover,
    attempts.c.error_code,
    attempts.c.reason,
    attempts.c.facts,
)
_ATTEMPTS_OF = (
    select(*_ATTEMPT_COLUMNS).where(attempts.c.message_id == bindparam("of_message")).order_by(attempts.c.number)
)
_WAITING = (
    select(messages.c.profile, messages.c.state, func.count())
    .where(messages.c.due_at.is_not(None))
    .group_by(messages.c.profile, messages.c.state)
)
_OLDEST_DEFERRED = (
    select(messages.c.created_at)
    .where(text("messages.state = 'deferred' AND messages.state NOT IN ('queued', 'sending', 'sent')"))
    .order_by(messages.c.id)
    .limit(1)
)
_OLDEST_LEASED = select(func.min(messages.c.created_at)).where(messages.c.lease_token.is_not(None))
_FIRST_DUE = (
    select(messages.c.due_at)
    .where(
        messages.c.profile == bindparam("of_profile"),
        messages.c.due_at.is_not(None),
        messages.c.due_at <= bindparam("now"),
    )
    .order_by(messages.c.due_at)
    .limit(1)
)
_IN_DOUBT = select(messages.c.profile, func.count()).where(messages.c.state == "in_doubt").group_by(messages.c.profile)
_FAILURES = (
    select(failure_counts.c.reason, func.sum(failure_counts.c.count))
    .where(failure_counts.c.period >= bindparam("since"))
    .group_by(failure_counts.c.reason)
)
_LATEST_OF_PROFILE = (
    select(messages.c.id)
    .where(messages.c.profile == bindparam("of_profile"))
    .order_by(messages.c.id.desc())
    .limit(1000)
    .subquery()
)
_LAST_SUCCESS = (
    select(attempts.c.started_at)
    .join(_LATEST_OF_PROFILE, attempts.c.message_id == _LATEST_OF_PROFILE.c.id)
    .where(
        attempts.c.error_code.is_(None),
        attempts.c.facts.is_not(None),
        func.typeof(attempts.c.started_at) == "integer",
    )
    .order_by(attempts.c.started_at.desc())
    .limit(1)
)
_begun_as: ColumnElement[int] = literal_column("attempts.rowid")
_BEGUN = (
    select(_begun_as, attempts.c.started_at, attempts.c.profile)
    .where(_begun_as < bindparam("before"))
    .order_by(_begun_as.desc())
    .limit(bindparam("at_most"))
)
_PROFILES_WAITING = select(messages.c.profile).where(messages.c.due_at.is_not(None)).distinct()


@dataclass(frozen=True, slots=True)
class AttemptRecord:
    """One attempt as it is remembered. `facts` is empty while it runs."""

    number: int
    profile: str
    started_at: datetime
    handover: bool
    error_code: str | None
    reason: str | None
    facts: Mapping[str, Any]


class History:
    """All reads of what was. Each raises `StoreUnavailable` where the file cannot be read, or not in time."""

    def __init__(self, reader: Reader, search: SearchIndex) -> None:
        self._reader = reader
        self._search = search

    async def find(self, message_id: UUID) -> Snapshot | None:
        """Give what is known of a message, None where there is none."""
        rows = await self._rows(MESSAGE_BY_ID, {"of_message": message_id.bytes})
        return await self._snapshot(rows[0]) if rows else None

    async def newest(self, which: Filter = Filter(), *, at_most: int, before: UUID | None = None) -> Sequence[Snapshot]:
        """Give messages newest first; `before` continues behind the last one seen."""
        if which.q is not None:
            await self._search.catch_up()
        said = {name: value for name in _BY_VALUE if (value := getattr(which, name)) is not None}
        params: dict[str, Any] = {f"of_{name}": value for name, value in said.items()}
        if which.id is not None:
            params["of_id"] = which.id.bytes
        params |= {"at_most": at_most, **_between(which.since, which.until, before)}
        rows = await self._rows(newest_matching(frozenset(said), which.state), params)
        return [await self._snapshot(row) for row in rows]

    async def newest_attempts(
        self,
        *,
        at_most: int,
        error_code: str | None = None,
        profile: str | None = None,
        since: datetime | None = None,
        until: datetime | None = None,
        before: tuple[UUID, int] | None = None,
    ) -> Sequence[tuple[UUID, AttemptRecord]]:
        """Give attempts, of the newest message first; `before` continues behind the last one seen."""
        said = {"error_code": error_code, "profile": profile}
        said = {name: value for name, value in said.items() if value is not None}
        last, number = before or (_AFTER_ALL, 0)
        params: dict[str, Any] = {f"of_{name}": value for name, value in said.items()}
        bounds = _between(since, until, last)
        # Attempts are numbered from 1: below `until` no attempt of a message with that very id is left over.
        params |= {"at_most": at_most, **bounds, "before_number": number if bounds["before"] == last.bytes else 0}
        rows = await self._rows(attempts_matching(frozenset(said)), params)
        return [(UUID(bytes=message_id), _attempt(*rest)) for message_id, *rest in rows]

    async def attempts(self, message_id: UUID) -> Sequence[AttemptRecord]:
        """Give a message's attempts in order, one that is running included."""
        rows = await self._rows(_ATTEMPTS_OF, {"of_message": message_id.bytes})
        return [_attempt(*row) for row in rows]

    async def census(self) -> Census:
        """Count what is not over, once: this reads all that waits."""
        census = Census({})
        for profile, stored, count in await self._reader.rows(_WAITING):
            if (state := counted_state(stored, 0)) is not MessageState.IN_DOUBT:
                census.move(text_from(profile), None, state, count)
        for profile, count in await self._reader.rows(_IN_DOUBT):
            census.move(text_from(profile), None, MessageState.IN_DOUBT, count)
        return census

    async def oldest_waiting(self, profiles: Iterable[str], *, now: datetime) -> datetime | None:
        """Since when the oldest message waits that could have been sent by now, None where there is none.

        That is since it was accepted; since its time came, or it was retried by hand, where that is later. Looks at
        one row a profile, at what is being sent and at one that is deferred.
        """
        rows = [*await self._rows(_OLDEST_DEFERRED), *await self._rows(_OLDEST_LEASED)]
        for profile in profiles:
            rows += await self._rows(_FIRST_DUE, {"of_profile": profile, "now": to_ms(now)})
        found = [since for (since,) in rows if isinstance(since, int)]
        return from_ms(min(found)) if found else None

    async def failures(self, *, now: datetime) -> Mapping[str, int]:
        """Count the failed attempts of the last 24 hours (to ten minutes) by reason; what never came is not there."""
        since = to_ms(now) - COUNTS_KEPT
        rows = await self._rows(_FAILURES, {"since": since - since % COUNT_PERIOD})
        counts: Counter[str] = Counter()
        for reason, count in rows:
            counts[known(Reason, reason, Reason.UNEXPECTED)] += int(count)
        return counts

    async def profiles_waiting(self) -> set[str]:
        """Name every profile that a message waits for, whether or not it is in the settings."""
        return {text_from(name) for (name,) in await self._reader.rows(_PROFILES_WAITING)}

    async def last_success(self, profile: str) -> datetime | None:
        """When the latest of a profile's successful attempts began; looks at its latest thousand messages."""
        rows = await self._rows(_LAST_SUCCESS, {"of_profile": profile})
        return from_ms(rows[0][0]) if rows else None

    async def begun(self, profile: str, *, since: datetime) -> list[datetime]:
        """When attempts through a profile began since then."""
        found: list[datetime] = []
        before = 1 << 62
        while rows := await self._reader.rows(_BEGUN, {"before": before, "at_most": BEGUN_PAGE}):
            begun = [(from_ms(at), through) for _, at, through in rows if isinstance(at, int)]
            found += [at for at, through in begun if through == profile and at > since]
            if begun and begun[-1][0] <= since:
                break
            before = rows[-1][0]
        return found

    async def _rows(self, statement: Select[Any], params: Mapping[str, Any] | None = None) -> list[tuple[Any, ...]]:
        """Read for somebody who waits."""
        return await self._reader.rows(statement, params, within=PATIENCE)

    async def _snapshot(self, row: tuple[Any, ...]) -> Snapshot:
        whom = await self._rows(RECIPIENTS_OF, {"of_message": row[0]})
        return snapshot(row, (recipient_from(*r) for r in whom))


_BY_VALUE = ("id", "message_id", "error_code", "profile", "sender", "recipient", "tag", "q")


def _between(since: datetime | None, until: datetime | None, before: UUID | None) -> dict[str, bytes]:
    """Bound ids by time: a UUIDv7 begins with the millisecond it was made in (RFC 9562 §5.7)."""
    ends = [first_of(until)] if until is not None else []
    ends.append((before or _AFTER_ALL).bytes)
    return {"from_id": first_of(since) if since is not None else bytes(16), "before": min(ends)}


def _attempt(
    number: object,
    profile: object,
    started_at: object,
    handover: object,
    error_code: object,
    reason: object,
    facts: object,
) -> AttemptRecord:
    why = None if reason is None else known(Reason, reason, Reason.UNEXPECTED)
    code = None if error_code is None else known(ErrorCode, error_code, CODE_OF[why or Reason.UNEXPECTED])
    return AttemptRecord(
        number=min(whole(number), _MOST_ATTEMPTS),
        profile=text_from(profile),
        started_at=from_ms(started_at),
        handover=bool(handover),
        error_code=code,
        reason=why,
        facts=facts_from(facts, code),
    )
