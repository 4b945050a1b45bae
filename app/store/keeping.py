"""Forgetting: bodies first, whole messages later, what is over for long enough and nothing else.

Small steps, so that no append waits long: a step is looked for by a reader, then deleted in one transaction that asks
again whether the message is over. Ids begin with the time of acceptance, so what may be old enough is one range of an
index, walked in order; when a message ended is no column, since the hot path would pay for it: it is read from its
last attempt. What is live (`due_at` is set) is never touched; what is in doubt keeps its body until it is settled.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Sequence
from dataclasses import dataclass
from datetime import datetime
from functools import partial
from typing import Any, TypeAlias

from sqlalchemy import ColumnElement, Select, bindparam, case, delete, exists, func, select, text

from app.mail.outcome import MessageState
from app.store.census import Census
from app.store.database import attempts, bodies, message_search, messages, recipients
from app.store.journal import Journal, Operation
from app.store.reader import Reader
from app.store.records import first_of
from app.store.values import to_ms

LOOKED_AT = 50  # messages a step looks at
WEIGHT = 1000  # of what a step deletes, about a page of the file each; one message that has more goes alone
IN_VAIN = 200  # steps without a find after which a round ends; the next one goes on from there


def _readable(column: ColumnElement[Any]) -> ColumnElement[Any]:
    return case((func.typeof(column) == "integer", column))


_ENDED_AT = func.coalesce(
    case(
        (messages.c.error_code == "EEXPIRED", _readable(messages.c.expires_at)),  # whenever that was found out
        else_=select(func.max(_readable(attempts.c.started_at)))
        .where(attempts.c.message_id == messages.c.id)
        .scalar_subquery(),
    ),
    _readable(messages.c.created_at),  # it was never tried: cancelled
    0,  # neither can be read: it goes by its id
)
_IS_OVER = messages.c.due_at.is_(None) & (bindparam("ended_by") >= _ENDED_AT)
# In doubt, or in a state that this version does not know: its content may be needed once more.
_HAS_A_VERDICT = text("messages.state IN ('sent', 'partial', 'failed', 'cancelled')")
_IS_SETTLED = messages.c.due_at.is_(None) & _HAS_A_VERDICT


def _looked_at(key: ColumnElement[Any], is_over: ColumnElement[bool]) -> Select[Any]:
    weight = (
        1
        + messages.c.size // 4096
        + select(func.count()).where(recipients.c.message_id == messages.c.id).scalar_subquery()
    )
    return (
        select(messages.c.id, is_over, weight)
        .where(key > bindparam("after"), key < bindparam("before"))
        .order_by(key)
        .limit(LOOKED_AT)
    )


# By the bodies that there are: what has lost its own is not looked at again.
_LOOK_AT_BODIES = (
    _looked_at(bodies.c.message_id, _IS_OVER & _HAS_A_VERDICT)
    .join_from(bodies, messages, messages.c.id == bodies.c.message_id)
    .where(bodies.c.part == 0)
)
_LOOK_AT_MESSAGES = _looked_at(messages.c.id, _IS_OVER)
DROP_BODY = delete(bodies).where(
    bodies.c.message_id == bindparam("of_message"),
    exists().where(messages.c.id == bindparam("of_message"), _IS_SETTLED),
)
_DELETE = (
    delete(messages)
    .where(messages.c.id == bindparam("of_message"), messages.c.due_at.is_(None))
    .returning(messages.c.seq, messages.c.state, messages.c.profile)
)
_DELETE_WORDS = delete(message_search).where(message_search.c.rowid == bindparam("of_seq"))


_Dropped: TypeAlias = tuple[int, list[str]]  # how many, and the profile of each that was a message in doubt


@dataclass(slots=True)
class _Walk:
    """One way through what may be old enough."""

    look: Select[Any]
    drop: Callable[[Sequence[bytes]], Operation[_Dropped]]
    after: bytes = bytes(16)


class Keeping:
    """Knows how far it has come; each raises `StoreUnavailable` where the store cannot be read or written."""

    def __init__(self, journal: Journal, reader: Reader, census: Census) -> None:
        self._journal = journal
        self._reader = reader
        self._census = census
        self._bodies = _Walk(_LOOK_AT_BODIES, _drop_bodies)
        self._messages = _Walk(_LOOK_AT_MESSAGES, _delete)

    def drop_bodies(self, *, ended_by: datetime) -> AsyncIterator[int]:
        """Drop the bodies of what had ended by then; gives how many, after each step."""
        return self._steps(self._bodies, ended_by)

    def delete(self, *, ended_by: datetime) -> AsyncIterator[int]:
        """Delete what had ended by then, with all that belongs to it; gives how many, after each step."""
        return self._steps(self._messages, ended_by)

    async def _steps(self, walk: _Walk, ended_by: datetime) -> AsyncIterator[int]:
        # A message ends after it was accepted. The millisecond itself belongs to what had ended by then.
        bounds = {"before": first_of(ended_by, and_its_millisecond=True), "ended_by": to_ms(ended_by)}
        in_vain = 0
        while in_vain < IN_VAIN:
            rows = await self._reader.rows(walk.look, {**bounds, "after": walk.after})
            over: list[bytes] = []
            weighs = looked_at = 0
            for id_, is_over, weight in rows:
                if over and is_over and weighs + weight > WEIGHT:
                    break
                looked_at += 1
                walk.after = id_
                if is_over:
                    over.append(id_)
                    weighs += weight
            count = (await self._journal.commit(partial(walk.drop, over), self._dropped))[0] if over else 0
            in_vain += not count
            is_last = looked_at == len(rows) < LOOKED_AT
            if is_last:
                walk.after = bytes(16)
            yield count
            if is_last:
                return

    def _dropped(self, dropped: _Dropped) -> None:
        for profile in dropped[1]:
            self._census.move(profile, MessageState.IN_DOUBT, None)


def _drop_bodies(ids: Sequence[bytes]) -> Operation[_Dropped]:
    count = 0
    for id_ in ids:
        dropped = yield (DROP_BODY, {"of_message": id_})
        count += dropped.count > 0
    return count, []


def _delete(ids: Sequence[bytes]) -> Operation[_Dropped]:
    count, in_doubt = 0, []
    for id_ in ids:
        deleted = yield (_DELETE, {"of_message": id_})
        for seq, state, profile in deleted.rows:
            yield (_DELETE_WORDS, {"of_seq": seq})
            count += 1
            if state == MessageState.IN_DOUBT:
                in_doubt.append(profile)
    return count, in_doubt
