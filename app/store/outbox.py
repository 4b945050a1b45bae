"""The durable queue: append, claim, mark, record, release.

What hangs on a lease stands here whole, over 400 lines; taking a message in is `append`'s, moving due times `due`'s.
Every function below is an operation for the journal: statements in, a value out, no effect beside. A lease's
token fences every write after the claim: whoever holds another token gets `LeaseLost` and drops what it knows.
On SQLite the file's lock proves every earlier process dead, so only a message without a lease can be claimed,
and what is still leased at start was interrupted.

RFC 5321 §4.2.5 (responsibility begins with the answer), RFC 1047 (the mark).
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Sequence
from dataclasses import dataclass, replace
from datetime import datetime
from functools import partial
from io import BytesIO
from itertools import takewhile
from typing import TypeAlias
from uuid import UUID

from sqlalchemy import bindparam, column, delete, func, select, table, update
from sqlalchemy.dialects.sqlite import insert as upsert

from app.mail.attempt import Attempt
from app.mail.codes import Reason
from app.mail.errors import LeaseLost, StoreUnavailable
from app.mail.message import Claim, Lease, Message, Receipt, Recipient, Repeat, Snapshot
from app.mail.outcome import Failure, MessageState
from app.store.append import append_once, find_known
from app.store.census import Census
from app.store.database import (
    COUNT_PERIOD,
    COUNTS_KEPT,
    PART_BYTES,
    SCHEMA,
    attempts,
    bodies,
    failure_counts,
    messages,
)
from app.store.due import bring_forward, found_missing, make_one_due, make_some_due, mend
from app.store.journal import PATIENCE, Journal, Operation, Result
from app.store.reader import Reader
from app.store.records import (
    BEGIN_ATTEMPT,
    RECIPIENTS_OF,
    SNAPSHOT_COLUMNS,
    WRITE_RECIPIENT,
    attempt_facts,
    changed_recipients,
    counted_state,
    failure_text,
    has_id,
    recipient_from,
    snapshot,
)
from app.store.values import from_ms, text_from, to_ms

MOST_CRASHES = 5  # of one message in a row; then it is taken for their cause

# What was claimed, when the next is due, and how many came from which state.
_Claimed: TypeAlias = tuple[list[Claim], datetime | None, list[tuple[MessageState | None, int]]]

_CLAIMABLE = messages.c.id.in_(
    select(messages.c.id)
    .where(
        messages.c.profile == bindparam("of_profile"),
        messages.c.due_at.is_not(None),
        messages.c.due_at <= bindparam("now"),
        messages.c.lease_token.is_(None),
        has_id(messages.c.id),
    )
    .order_by(messages.c.due_at)
    .limit(bindparam("at_most"))
)
_CLAIM = (
    update(messages)
    .where(_CLAIMABLE)
    .values(
        state="sending",
        attempts=messages.c.attempts + 1,
        lease_token=bindparam("token"),
        due_at=bindparam("until"),
    )
    .returning(*SNAPSHOT_COLUMNS, messages.c.smtputf8)
)
_ABOUT_TO_BE_CLAIMED = select(messages.c.state, func.count()).where(_CLAIMABLE).group_by(messages.c.state)
_NEXT_DUE = (
    select(messages.c.due_at)
    .where(
        messages.c.profile == bindparam("of_profile"),
        messages.c.due_at.is_not(None),
        messages.c.lease_token.is_(None),
        has_id(messages.c.id),
    )
    .order_by(messages.c.due_at)
    .limit(1)
)
_LEASED = (
    select(
        *SNAPSHOT_COLUMNS,
        messages.c.smtputf8,
        messages.c.lease_token,
        messages.c.handover,
        attempts.c.profile.label("through"),
        attempts.c.started_at,
    )
    .outerjoin(  # an attempt whose row is lost was interrupted all the same
        attempts,
        (attempts.c.message_id == messages.c.id) & (attempts.c.number == messages.c.attempts),
    )
    .where(messages.c.lease_token.is_not(None), has_id(messages.c.id))
)
_SCHEMA_ROW = table("alembic_version", column("version_num"))
_TOUCH = update(_SCHEMA_ROW).values(version_num=_SCHEMA_ROW.c.version_num).returning(_SCHEMA_ROW.c.version_num)
_HELD = (messages.c.id == bindparam("of_message")) & (messages.c.lease_token == bindparam("token"))
_MARK = update(messages).where(_HELD).values(handover=True)
_RECORD = (
    update(messages)
    .where(_HELD)
    .values(
        state=bindparam("new_state"),
        due_at=bindparam("due"),
        lease_token=None,
        handover=bindparam("in_doubt"),
        error_code=bindparam("code"),
        failure=bindparam("why"),
        attempts=bindparam("number"),
    )
)
_OF_ATTEMPT = (attempts.c.message_id == bindparam("of_message")) & (attempts.c.number == bindparam("of_number"))
_RECORD_ATTEMPT = (
    update(attempts)
    .where(_OF_ATTEMPT)
    .values(
        handover=bindparam("let_go"),
        error_code=bindparam("code"),
        reason=bindparam("cause"),
        facts=bindparam("rest"),
    )
)
_COUNT_FAILURE = (
    upsert(failure_counts)
    .values(period=bindparam("at"), reason=bindparam("cause"), count=1)
    .on_conflict_do_update(
        index_elements=[failure_counts.c.period, failure_counts.c.reason],
        set_={"count": failure_counts.c.count + 1},
    )
)
_FORGET_COUNTS = delete(failure_counts).where(failure_counts.c.period < bindparam("before"))
_DELETE_ATTEMPT = delete(attempts).where(
    attempts.c.message_id == bindparam("of_message"), attempts.c.number >= bindparam("of_number")
)
_SENT_THROUGH = update(messages).where(messages.c.id == bindparam("of_message")).values(profile=bindparam("through"))
_UNMARK = update(messages).where(_HELD).values(handover=False)
_ONE_MORE_ATTEMPT = update(messages).where(_HELD).values(attempts=bindparam("number"), handover=False)
_REDIRECT_ATTEMPT = update(attempts).where(_OF_ATTEMPT).values(profile=bindparam("through"))
_CRASHES = (
    select(attempts.c.reason)
    .where(attempts.c.message_id == bindparam("of_message"))
    .order_by(attempts.c.number.desc())
    .limit(bindparam("at_most"))
)
_PART = select(bodies.c.bytes).where(
    bodies.c.message_id == bindparam("of_message"), bodies.c.part == bindparam("number")
)


@dataclass(frozen=True, slots=True)
class Interrupted:
    """An attempt that was under way when its process ended.

    `crashes` is how many of the message's latest attempts ended so, this one included, up to `MOST_CRASHES`.
    """

    claim: Claim
    profile: str
    started_at: datetime
    is_marked: bool
    crashes: int


class Outbox:
    """The queue as the road uses it. Every coroutine returns after the COMMIT it reports.

    Any of them raises `StoreUnavailable` where the store could not take the write; then nothing was written.
    """

    def __init__(self, journal: Journal, reader: Reader, census: Census) -> None:
        self._journal = journal
        self._reader = reader
        self._census = census

    async def append(
        self, message: Message, *, lease: Lease | None, now: datetime, repeat: Repeat | None = None
    ) -> Receipt:
        """Take a message in; with `lease` it is claimed for its first attempt in the same breath.

        With a `repeat` whose key is known, the message of the first request is given instead: the key is kept in
        the same transaction as the message, for 24 hours. One that expired unsent is queued again.

        Raises:
            KeyReused: the key stands for another message.
        """
        return await self._journal.commit_within(
            PATIENCE, partial(append_once, message, lease, now, repeat), self._appended
        )

    async def known(self, caller: str, repeat: Repeat, now: datetime) -> Snapshot | None:
        """Give the message that the key stands for, None where it is new.

        Raises:
            KeyReused: the key stands for another message.
        """
        return await self._journal.commit_within(PATIENCE, partial(find_known, caller, repeat, now))

    async def claim(
        self, profile: str, *, lease: Lease, at_most: int, now: datetime
    ) -> tuple[list[Claim], datetime | None]:
        """Claim what is longest due for a profile, each attempt counted and its row begun; in order of acceptance.

        Also gives when the next message of this profile is due, None where none waits.
        """
        claims, due, _ = await self._journal.commit(
            partial(_claim, profile, lease, at_most, now), partial(self._claimed, profile)
        )
        return claims, due

    def bring_forward(self, profile: str, *, now: datetime, latest: datetime) -> asyncio.Future[int]:
        """Let nothing wait behind `latest` but what was asked to; gives how many did. What is queued is due now.

        For when the clock was put back: what was to be tried in a minute is to be tried in a day and a minute then.
        """
        return self._journal.commit(partial(bring_forward, profile, now, latest))

    def mark(self, claim: Claim) -> asyncio.Future[None]:
        """Make the handover mark durable: after it, a crash means in doubt.

        The future fails with `LeaseLost` where the message is not ours any more.
        """
        return self._journal.commit(partial(_mark, claim))

    async def record(
        self,
        claim: Claim,
        attempt: Attempt | None,
        *,
        state: MessageState,
        after: Sequence[Recipient],
        failure: Failure | None,
        next_attempt_at: datetime | None,
    ) -> Snapshot:
        """Write how an attempt ended, and let the message go; None = the attempt did not take place after all.

        Raises:
            LeaseLost: the message is not ours any more; nothing was written.
        """
        return await self._journal.commit(
            partial(_record, claim, attempt, state, tuple(after), failure, next_attempt_at), self._recorded
        )

    def keep_part(self, claim: Claim, after: Sequence[Recipient]) -> asyncio.Future[Claim]:
        """Write who has been sent to so far, in the middle of an attempt that goes on for the others; gives its claim.

        The future fails with `LeaseLost` where the message is not ours any more; then nothing was written.
        """
        return self._journal.commit(partial(_keep_part, claim, tuple(after)))

    def fall_back(self, claim: Claim, attempt: Attempt, through: str, *, now: datetime) -> asyncio.Future[Claim]:
        """Write how an attempt ended, and begin the next one at once through another profile; gives it its claim.

        The future fails with `LeaseLost` where the message is not ours any more; then nothing was written.
        """
        return self._journal.commit(partial(_fall_back, claim, attempt, through, now))

    async def redirect(self, claim: Claim, through: str) -> None:
        """Write that the attempt that is about to begin goes through another profile."""
        await self._journal.commit(partial(_redirect, claim, through))

    async def make_due(self, profile: str, *, now: datetime, which: Callable[[Failure], bool] | None = None) -> None:
        """Make a profile's deferred messages due, a few at a time: all, or those that a failure like this put off."""
        behind: bytes | None = bytes(16)
        while behind is not None:
            behind = await self._journal.commit(partial(make_some_due, profile, which, behind, now))

    async def found_missing(self) -> set[str]:
        """Name the profiles that deferred messages did not find in the settings when they were due."""
        return await self._journal.commit(found_missing)

    async def make_one_due(self, profile: str, *, now: datetime) -> None:
        """Make one of a profile's deferred messages due: the next one in turn."""
        await self._journal.commit(partial(make_one_due, profile, now))

    async def mend(self, *, now: datetime) -> int:
        """Make due what waits and has lost its time; return how many. Not for a large file: it reads all of it."""
        return await self._journal.commit(partial(mend, now))

    async def interrupted(self) -> list[Interrupted]:
        """Give what an earlier process had leased when it ended."""
        return await self._journal.commit(_interrupted)

    async def check(self, *, within: float = PATIENCE) -> None:
        """Write a row as it is, within so many seconds.

        Raises:
            StoreUnavailable: a message could not be taken, or the schema is another one.
        """
        await self._journal.commit_within(within, _check, is_probe=True)

    async def content(self, message_id: UUID, *, within: float | None = None) -> bytes | None:
        """Read a message's bytes; None where they are not kept any more, or a part of them is lost."""
        content = BytesIO()  # part by part, so that a large one is held once
        async for part in self.parts(message_id, within=within):
            content.write(part)
        return content.getvalue() or None

    async def parts(self, message_id: UUID, *, within: float | None = None) -> AsyncIterator[bytes]:
        """Read a message's bytes part by part, `PART_BYTES` each but the last; none where they are not kept."""
        part, number = b"", 0
        while number == 0 or len(part) == PART_BYTES:
            which = {"of_message": message_id.bytes, "number": number}
            rows = await self._reader.rows(_PART, which, within=within)
            if not rows or not isinstance(rows[0][0], bytes):
                return
            part, number = rows[0][0], number + 1
            yield part

    def _appended(self, receipt: Receipt) -> None:
        if not receipt.is_replay:
            self._census.move(receipt.snapshot.profile, None, receipt.snapshot.state)
        elif receipt.is_revived:
            self._census.move(receipt.snapshot.profile, MessageState.FAILED, receipt.snapshot.state)

    def _claimed(self, profile: str, found: _Claimed) -> None:
        for state, count in found[2]:
            self._census.move(profile, state, MessageState.SENDING, count)

    def _recorded(self, snapshot: Snapshot) -> None:
        self._census.move(snapshot.profile, MessageState.SENDING, snapshot.state)


def _claim(profile: str, lease: Lease, at_most: int, now: datetime) -> Operation[_Claimed]:
    which = {"of_profile": profile, "now": to_ms(now), "at_most": at_most}
    came_from = yield (_ABOUT_TO_BE_CLAIMED, which)
    claimed = yield (_CLAIM, {**which, "token": lease.token, "until": to_ms(lease.until)})
    claims = []
    for *row, smtputf8 in sorted(claimed.rows):  # by id, that is by time
        whom = yield (RECIPIENTS_OF, {"of_message": row[0]})
        said = snapshot(tuple(row), (recipient_from(*r) for r in whom.rows))
        yield (
            BEGIN_ATTEMPT,
            {"message_id": row[0], "number": said.attempts, "profile": profile, "started_at": to_ms(now)},
        )
        claims.append(Claim(said, lease, bool(smtputf8)))
    due = yield (_NEXT_DUE, {"of_profile": profile})
    next_due = from_ms(due.rows[0][0]) if due.rows and isinstance(due.rows[0][0], int) else None
    return claims, next_due, [(counted_state(state, 0), count) for state, count in came_from.rows]


def _mark(claim: Claim) -> Operation[None]:
    marked = yield (_MARK, {"of_message": claim.snapshot.id.bytes, "token": claim.lease.token})
    _fence(marked, claim.snapshot)


def _fence(written: Result, said: Snapshot) -> None:
    """Let nobody write who lost the lease: the statement has found no row of theirs."""
    if written.count != 1:
        raise LeaseLost(f"message {said.id} is leased to somebody else")


def _record(
    claim: Claim,
    attempt: Attempt | None,
    state: MessageState,
    after: tuple[Recipient, ...],
    failure: Failure | None,
    next_attempt_at: datetime | None,
) -> Operation[Snapshot]:
    before = claim.snapshot
    id_ = before.id.bytes
    profile = before.profile
    number = before.attempts if attempt is not None else before.attempts - 1
    recorded = yield (
        _RECORD,
        {
            "of_message": id_,
            "token": claim.lease.token,
            "new_state": state.value,
            "due": to_ms(next_attempt_at) if next_attempt_at else None,
            "in_doubt": state is MessageState.IN_DOUBT,
            "code": failure.code.value if failure else None,
            "why": failure_text(failure),
            "number": number,
        },
    )
    _fence(recorded, before)
    changed = changed_recipients(before, after)
    if changed:
        yield (WRITE_RECIPIENT, changed)
    if attempt is None:
        yield (_DELETE_ATTEMPT, {"of_message": id_, "of_number": before.attempts})
    else:
        yield from _record_attempt(id_, attempt)
        if attempt.failure is None and attempt.profile != profile:
            profile = attempt.profile
            yield (_SENT_THROUGH, {"of_message": id_, "through": profile})
    if failure is not None and failure.reason is Reason.EXPIRED:  # which no attempt meets
        yield from _count(Reason.EXPIRED, before.expires_at)
    return replace(
        before,
        state=state,
        profile=profile,
        attempts=number,
        recipients=after,
        failure=failure,
        next_attempt_at=next_attempt_at,
    )


def _record_attempt(id_: bytes, attempt: Attempt) -> Operation[None]:
    yield (_RECORD_ATTEMPT, _attempt_params(id_, attempt))
    if attempt.failure is not None:
        yield from _count(attempt.failure.reason, attempt.started_at)


def _count(reason: Reason, at: datetime) -> Operation[None]:
    period = to_ms(at) - to_ms(at) % COUNT_PERIOD
    yield (_COUNT_FAILURE, {"at": period, "cause": reason.value})
    yield (_FORGET_COUNTS, {"before": period - COUNT_PERIOD - COUNTS_KEPT})


def _keep_part(claim: Claim, after: tuple[Recipient, ...]) -> Operation[Claim]:
    said = claim.snapshot
    unmarked = yield (_UNMARK, {"of_message": said.id.bytes, "token": claim.lease.token})
    _fence(unmarked, said)
    changed = changed_recipients(said, after)
    if changed:
        yield (WRITE_RECIPIENT, changed)
    return replace(claim, snapshot=replace(said, recipients=after))


def _fall_back(claim: Claim, attempt: Attempt, through: str, now: datetime) -> Operation[Claim]:
    said = claim.snapshot
    id_, number = said.id.bytes, said.attempts + 1
    counted = yield (_ONE_MORE_ATTEMPT, {"of_message": id_, "token": claim.lease.token, "number": number})
    _fence(counted, said)
    yield from _record_attempt(id_, attempt)
    yield (BEGIN_ATTEMPT, {"message_id": id_, "number": number, "profile": through, "started_at": to_ms(now)})
    return replace(claim, snapshot=replace(said, attempts=number))


def _redirect(claim: Claim, through: str) -> Operation[None]:
    said = claim.snapshot
    yield (_REDIRECT_ATTEMPT, {"of_message": said.id.bytes, "of_number": said.attempts, "through": through})


def _attempt_params(id_: bytes, attempt: Attempt) -> dict[str, object]:
    failure = attempt.failure
    return {
        "of_message": id_,
        "of_number": attempt.number,
        "let_go": attempt.handover,
        "code": failure.code.value if failure else None,
        "cause": failure.reason.value if failure else None,
        "rest": attempt_facts(attempt),
    }


def _check() -> Operation[None]:
    touched = yield (_TOUCH, {})
    if touched.rows != [(SCHEMA,)]:
        raise StoreUnavailable(f"the store's schema is {touched.rows}, not {SCHEMA}")


def _interrupted() -> Operation[list[Interrupted]]:
    leased = yield (_LEASED, {})
    found = []
    for *row, smtputf8, token, is_marked, through, started_at in leased.rows:
        whom = yield (RECIPIENTS_OF, {"of_message": row[0]})
        said = snapshot(tuple(row), (recipient_from(*r) for r in whom.rows))
        reasons = yield (_CRASHES, {"of_message": row[0], "at_most": MOST_CRASHES})
        earlier = [reason for (reason,) in reasons.rows[1:]]  # the first is of the attempt that was interrupted
        found.append(
            Interrupted(
                Claim(said, Lease(token, said.expires_at), bool(smtputf8)),
                profile=said.profile if through is None else text_from(through),
                started_at=from_ms(started_at, said.created_at),
                is_marked=bool(is_marked),
                crashes=1 + len(list(takewhile(lambda reason: reason == Reason.WORKER_CRASHED, earlier))),
            )
        )
    return found
