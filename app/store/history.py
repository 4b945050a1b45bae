"""Reads for the API and the inspector: by id, newest first, and what the figures need.

No COUNT and no OFFSET over the whole table: lists go by keyset (UUIDv7 sorts by time), counts look only at what
waits. RFC 9562 §5.7.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any
from uuid import UUID

from pydantic_core import from_json
from sqlalchemy import bindparam, func, select

from app.mail.message import Snapshot
from app.store.database import COUNT_PERIOD, COUNTS_KEPT, attempts, failure_counts, messages, recipients
from app.store.reader import Reader
from app.store.records import SNAPSHOT_COLUMNS, from_ms, recipient_from, snapshot, to_ms

_BY_ID = select(*SNAPSHOT_COLUMNS).where(messages.c.id == bindparam("of_message"))
_NEWEST = (
    select(*SNAPSHOT_COLUMNS)
    .where(messages.c.id < bindparam("before"))
    .order_by(messages.c.id.desc())
    .limit(bindparam("at_most"))
)
_NEWEST_OF_PROFILE = _NEWEST.where(messages.c.profile == bindparam("of_profile"))
_AFTER_ALL = UUID(int=(1 << 128) - 1)
_RECIPIENTS_OF = (
    select(recipients.c.address, recipients.c.state, recipients.c.failure)
    .where(recipients.c.message_id == bindparam("of_message"))
    .order_by(recipients.c.position)
)
_ATTEMPTS_OF = (
    select(
        attempts.c.number,
        attempts.c.profile,
        attempts.c.started_at,
        attempts.c.handover,
        attempts.c.error_code,
        attempts.c.reason,
        attempts.c.facts,
    )
    .where(attempts.c.message_id == bindparam("of_message"))
    .order_by(attempts.c.number)
)
_WAITING = (
    select(messages.c.state, func.count(), func.min(messages.c.created_at))
    .where(messages.c.due_at.is_not(None))
    .group_by(messages.c.state)
)
_IN_DOUBT = select(func.count()).where(messages.c.state == "in_doubt").select_from(messages)
_FAILURES = (
    select(failure_counts.c.reason, func.sum(failure_counts.c.count))
    .where(failure_counts.c.period >= bindparam("since"))
    .group_by(failure_counts.c.reason)
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


@dataclass(frozen=True, slots=True)
class Waiting:
    """What waits now: messages by state, and when the oldest of them was accepted."""

    by_state: Mapping[str, int]
    oldest: datetime | None
    in_doubt: int


class History:
    """All reads of what was. Each raises `StoreUnavailable` where the file cannot be read."""

    def __init__(self, reader: Reader) -> None:
        self._reader = reader

    async def find(self, message_id: UUID) -> Snapshot | None:
        """Give what is known of a message, None where there is none."""
        rows = await self._reader.rows(_BY_ID, {"of_message": message_id.bytes})
        return await self._snapshot(rows[0]) if rows else None

    async def newest(
        self, *, at_most: int, before: UUID | None = None, profile: str | None = None
    ) -> Sequence[Snapshot]:
        """Give messages newest first; `before` continues behind the last one seen."""
        params = {"at_most": at_most, "before": (before or _AFTER_ALL).bytes}
        if profile is None:
            rows = await self._reader.rows(_NEWEST, params)
        else:
            rows = await self._reader.rows(_NEWEST_OF_PROFILE, params | {"of_profile": profile})
        return [await self._snapshot(row) for row in rows]

    async def attempts(self, message_id: UUID) -> Sequence[AttemptRecord]:
        """Give a message's attempts in order, one that is running included."""
        rows = await self._reader.rows(_ATTEMPTS_OF, {"of_message": message_id.bytes})
        return [
            AttemptRecord(
                number=number,
                profile=profile,
                started_at=from_ms(started_at),
                handover=bool(handover),
                error_code=error_code,
                reason=reason,
                facts=from_json(facts) if facts else {},
            )
            for number, profile, started_at, handover, error_code, reason, facts in rows
        ]

    async def waiting(self) -> Waiting:
        """Count what is not final; looks at nothing else."""
        rows = await self._reader.rows(_WAITING)
        (in_doubt,) = (await self._reader.rows(_IN_DOUBT))[0]
        oldest = min((created for _, _, created in rows), default=None)
        return Waiting(
            by_state={state: count for state, count, _ in rows},
            oldest=from_ms(oldest) if oldest is not None else None,
            in_doubt=in_doubt,
        )

    async def failures(self, *, now: datetime) -> Mapping[str, int]:
        """Count the failed attempts of the last 24 hours (to ten minutes) by reason; what never came is not there."""
        since = to_ms(now) - COUNTS_KEPT
        rows = await self._reader.rows(_FAILURES, {"since": since - since % COUNT_PERIOD})
        return {reason: int(count) for reason, count in rows}

    async def profiles_waiting(self) -> set[str]:
        """Name every profile that a message waits for, whether or not it is in the settings."""
        return {name for (name,) in await self._reader.rows(_PROFILES_WAITING)}

    async def _snapshot(self, row: tuple[Any, ...]) -> Snapshot:
        whom = await self._reader.rows(_RECIPIENTS_OF, {"of_message": row[0]})
        return snapshot(row, (recipient_from(*r) for r in whom))
