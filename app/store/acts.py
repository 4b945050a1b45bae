"""What may be done to a stored message, one or many: cancel, retry, resolve.

Each act reads the message and writes it in the one transaction, and never one that is leased: against a worker
that claims it at the same time, one of both comes first, and the other sees that.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from datetime import datetime
from functools import partial
from typing import TypeAlias
from uuid import UUID

from sqlalchemy import bindparam, select, update

from app.mail.acts import Act, after
from app.mail.errors import Conflict, NotFound
from app.mail.message import Recipient, Snapshot, leading_failure
from app.mail.outcome import MessageState, message_state
from app.store.census import Census
from app.store.database import bodies, messages
from app.store.journal import PATIENCE, Journal, Operation
from app.store.records import (
    DUE_AT,
    MESSAGE_BY_ID,
    RECIPIENTS_OF,
    STATE,
    WRITE_RECIPIENT,
    changed_recipients,
    counted_state,
    failure_text,
    recipient_from,
    snapshot,
)
from app.store.values import to_ms

_Done: TypeAlias = tuple[MessageState | None, Snapshot]  # what it was counted as, and what it is now

_HAS_CONTENT = select(bodies.c.part).where(bodies.c.message_id == bindparam("of_message")).limit(1)
_SETTLE = (
    update(messages)
    .where(messages.c.id == bindparam("of_message"), messages.c.lease_token.is_(None))
    .values(
        state=bindparam("new_state"),
        due_at=bindparam("due"),
        expires_at=bindparam("until"),
        error_code=bindparam("code"),
        failure=bindparam("why"),
        handover=bindparam("in_doubt"),
    )
)


class Acts:
    """The acts as the API has them. Each raises `StoreUnavailable` where the store could not take the write."""

    def __init__(self, journal: Journal, census: Census) -> None:
        self._journal = journal
        self._census = census

    async def do(self, act: Act, message_id: UUID, *, now: datetime, until: datetime) -> Snapshot:
        """Carry out an act; `until` is when a message that is tried again expires.

        Raises:
            NotFound: there is no such message.
            Conflict: its state forbids it.
        """
        _, then = await self._journal.commit_within(
            PATIENCE, partial(_do, act, message_id, now, until), lambda done: self._count([done])
        )
        return then

    async def do_all(
        self, act: Act, message_ids: Sequence[UUID], *, now: datetime, until: datetime
    ) -> Sequence[Snapshot]:
        """Carry out an act on each, in one transaction; gives those it was done to."""
        done = await self._journal.commit_within(
            PATIENCE, partial(_do_all, act, tuple(message_ids), now, until), self._count
        )
        return [then for _, then in done]

    def _count(self, done: Sequence[_Done]) -> None:
        for was, then in done:
            self._census.move(then.profile, was, then.state)


def _do(act: Act, message_id: UUID, now: datetime, until: datetime) -> Operation[_Done]:
    found = yield (MESSAGE_BY_ID, {"of_message": message_id.bytes})
    if not found.rows:
        raise NotFound(f"There is no message {message_id}")
    whom = yield (RECIPIENTS_OF, {"of_message": message_id.bytes})
    row = found.rows[0]
    said = snapshot(row, (recipient_from(*r) for r in whom.rows))
    was = counted_state(row[STATE], row[DUE_AT])
    then = after(act, said)
    if act is Act.RETRY and not (yield from _has_content(said)):
        raise Conflict("The message's content is not kept any more, so it cannot be sent again")
    if act in (Act.RESOLVE_AS_SENT, Act.RESOLVE_AS_FAILED) and said.next_attempt_at is not None:
        # Of somebody else, who goes on waiting as before.
        return was, (yield from _write(said, then, said.state, due=said.next_attempt_at, until=said.expires_at))
    return was, (yield from _settle(said, then, now=now, until=until))


def revive(said: Snapshot, *, now: datetime, until: datetime) -> Operation[Snapshot]:
    """Queue what expired unsent once more; a message whose content is not kept any more stays as it is."""
    if not (yield from _has_content(said)):
        return said
    return (yield from _settle(said, after(Act.REVIVE, said), now=now, until=until))


def _has_content(said: Snapshot) -> Operation[bool]:
    content = yield (_HAS_CONTENT, {"of_message": said.id.bytes})
    return bool(content.rows)


def _do_all(act: Act, message_ids: tuple[UUID, ...], now: datetime, until: datetime) -> Operation[list[_Done]]:
    done = []
    for message_id in message_ids:
        try:
            done.append((yield from _do(act, message_id, now, until)))
        except (NotFound, Conflict):
            continue  # it has gone on since it was looked for
    return done


def _settle(said: Snapshot, then: tuple[Recipient, ...], *, now: datetime, until: datetime) -> Operation[Snapshot]:
    """Write everybody's state after an act, and what that makes of the message."""
    state = message_state((r.state for r in then), while_pending=MessageState.QUEUED)
    is_queued = state is MessageState.QUEUED
    due, until = (now, until) if is_queued else (None, said.expires_at)
    return (yield from _write(said, then, state, due=due, until=until))


def _write(
    said: Snapshot, then: tuple[Recipient, ...], state: MessageState, *, due: datetime | None, until: datetime
) -> Operation[Snapshot]:
    failure = None if state is MessageState.QUEUED else leading_failure(then)
    yield (
        _SETTLE,
        {
            "of_message": said.id.bytes,
            "new_state": state.value,
            "due": to_ms(due) if due else None,
            "until": to_ms(until),
            "code": failure.code.value if failure else None,
            "why": failure_text(failure),
            "in_doubt": state is MessageState.IN_DOUBT,
        },
    )
    changed = changed_recipients(said, then)
    if changed:
        yield (WRITE_RECIPIENT, changed)
    return replace(
        said,
        state=state,
        recipients=then,
        failure=failure,
        next_attempt_at=due,
        expires_at=until,
    )
