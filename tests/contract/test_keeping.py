"""Forgetting on a real file: what is over long enough goes with all that belongs to it, what is live stays."""

import sqlite3
from collections.abc import AsyncIterator
from contextlib import closing
from dataclasses import dataclass, replace
from datetime import datetime, timedelta
from pathlib import Path
from time import perf_counter
from uuid import UUID

import pytest

from app.mail.acts import Act
from app.mail.attempt import Attempt
from app.mail.codes import ErrorCode, Reason
from app.mail.errors import Conflict
from app.mail.ids import uuid7
from app.mail.message import Claim, Lease, Recipient, Repeat, Snapshot
from app.mail.outcome import Failure, FailureClass, MessageState, Phase, RecipientState
from app.store import database, keeping
from app.store.acts import Acts
from app.store.database import PART_BYTES, migrate
from app.store.history import Filter, History
from app.store.journal import Journal
from app.store.keeping import Keeping
from app.store.outbox import Outbox
from app.store.reader import Reader
from app.store.search import SearchIndex
from tests.support.factories import NOW, make_message

DAY = timedelta(days=1)
TABLES = ("messages", "recipients", "tags", "bodies", "attempts", "idempotency_keys", "message_search")
AT_END = {
    MessageState.SENT: RecipientState.SENT,
    MessageState.FAILED: RecipientState.REJECTED,
    MessageState.IN_DOUBT: RecipientState.IN_DOUBT,
    MessageState.DEFERRED: RecipientState.PENDING,
}


@dataclass(slots=True)
class Store:
    """Everything of the store on one file; a message is taken and tried at `at`."""

    file: Path
    journal: Journal
    reader: Reader
    outbox: Outbox
    history: History
    search: SearchIndex
    keeping: Keeping
    acts: Acts
    statements: list[str]  # every one that was run, its parameters filled in
    made: int = 0

    async def ended(self, state: MessageState, *, at: datetime = NOW, content: bytes = b"Hello\r\n") -> UUID:
        claim = await self.taken(at=at, content=content)
        failed = state is not MessageState.SENT
        await self.recorded(claim, state, at=at, failure=failure() if failed else None)
        return claim.snapshot.id

    async def taken(self, *, at: datetime = NOW, content: bytes = b"Hello\r\n") -> Claim:
        self.made += 1
        message = replace(
            make_message(number=self.made, created_at=at, content=content), tags=("vip",), subject=f"No {self.made}"
        )
        repeat = Repeat(f"key-{self.made}", bytes(32))
        receipt = await self.outbox.append(message, lease=Lease(7, at + DAY), now=at, repeat=repeat)
        assert receipt.claim is not None
        return receipt.claim

    async def recorded(self, claim: Claim, state: MessageState, *, at: datetime, failure: Failure | None) -> Snapshot:
        attempt = Attempt(claim.snapshot.attempts, claim.snapshot.profile, at, lambda: 0.0)
        attempt.failure = failure
        attempt.end()
        return await self.outbox.record(
            claim,
            attempt,
            state=state,
            after=[Recipient(r.address, AT_END[state], failure) for r in claim.snapshot.recipients],
            failure=failure,
            next_attempt_at=at + DAY if state is MessageState.DEFERRED else None,
        )

    async def dropped(self, *, ended_by: datetime) -> int:
        return sum([count async for count in self.keeping.drop_bodies(ended_by=ended_by)])

    async def deleted(self, *, ended_by: datetime) -> int:
        return sum([count async for count in self.keeping.delete(ended_by=ended_by)])

    def count(self, table: str) -> int:
        with closing(sqlite3.connect(self.file)) as other:
            (count,) = other.execute(f"SELECT count(*) FROM {table}").fetchone()
            return int(count)


def failure() -> Failure:
    return Failure(
        code=ErrorCode.EENVELOPE,
        reason=Reason.MAILBOX_UNKNOWN,
        cls=FailureClass.PERMANENT,
        phase=Phase.RCPT,
        message="The relay says no",
        hint="Ask",
    )


@pytest.fixture
async def store(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Store]:
    file = tmp_path / "mailchute.db"
    migrate(file)
    statements: list[str] = []
    connect = database.connect

    def connect_and_note(file: Path, *, read_only: bool) -> sqlite3.Connection:
        connection = connect(file, read_only=read_only)
        connection.set_trace_callback(statements.append)
        return connection

    for room in ("journal", "reader"):
        monkeypatch.setattr(f"app.store.{room}.connect", connect_and_note)
    journal, reader = Journal(file), Reader(file)
    await journal.open()
    search = SearchIndex(journal)
    yield Store(
        file,
        journal,
        reader,
        Outbox(journal, reader),
        History(reader, search),
        search,
        Keeping(journal, reader),
        Acts(journal),
        statements,
    )
    await journal.close()
    await reader.close()


async def test_a_body_goes_when_its_message_ended_long_enough_ago_and_the_rest_stays(store: Store) -> None:
    old = await store.ended(MessageState.SENT, content=b"x" * (PART_BYTES + 1))
    young = await store.ended(MessageState.SENT, at=NOW + DAY)
    assert await store.dropped(ended_by=NOW - timedelta(milliseconds=1)) == 0
    assert await store.dropped(ended_by=NOW) == 1
    assert await store.outbox.content(old) is None
    assert await store.outbox.content(young) is not None
    found = await store.history.find(old)
    assert found is not None
    assert (found.state, found.size) == (MessageState.SENT, PART_BYTES + 1)
    assert await store.dropped(ended_by=NOW) == 0


async def test_an_end_is_when_the_last_attempt_began_and_not_when_it_was_accepted(store: Store) -> None:
    claim = await store.taken()
    await store.recorded(claim, MessageState.DEFERRED, at=NOW, failure=failure())
    later = NOW + 3 * DAY
    [again], _ = await store.outbox.claim("relay", lease=Lease(8, later + DAY), at_most=1, now=later)
    await store.recorded(again, MessageState.SENT, at=later, failure=None)
    assert await store.dropped(ended_by=NOW + 2 * DAY) == 0
    assert await store.dropped(ended_by=later) == 1


async def test_what_expired_untried_counts_from_its_expiry_and_what_was_cancelled_from_its_acceptance(
    store: Store,
) -> None:
    expired = make_message(number=1, lives=5 * DAY)
    await store.outbox.append(expired, lease=None, now=NOW)
    [claim], _ = await store.outbox.claim("relay", lease=Lease(8, NOW), at_most=1, now=NOW)
    gone = replace(failure(), code=ErrorCode.EEXPIRED, reason=Reason.EXPIRED)
    await store.outbox.record(
        claim,
        None,
        state=MessageState.FAILED,
        after=[Recipient(r.address, RecipientState.EXPIRED, gone) for r in claim.snapshot.recipients],
        failure=gone,
        next_attempt_at=None,
    )
    cancelled = make_message(number=2)
    await store.outbox.append(cancelled, lease=None, now=NOW)
    await store.acts.do(Act.CANCEL, cancelled.id, now=NOW, until=NOW + DAY)
    assert await store.dropped(ended_by=NOW + 4 * DAY) == 1
    assert await store.outbox.content(cancelled.id) is None
    assert await store.dropped(ended_by=NOW + 5 * DAY) == 1
    with pytest.raises(Conflict, match="content is not kept"):
        await store.acts.do(Act.RETRY, expired.id, now=NOW, until=NOW + DAY)


async def test_what_is_live_stays_however_old(store: Store) -> None:
    ever = NOW + 3650 * DAY
    sending = (await store.taken()).snapshot.id
    deferred = await store.ended(MessageState.DEFERRED)
    queued = make_message(number=91)
    scheduled = replace(make_message(number=92), send_at=NOW + 300 * DAY)
    for waits in (queued, scheduled):
        await store.outbox.append(waits, lease=None, now=NOW)
    assert (await store.dropped(ended_by=ever), await store.deleted(ended_by=ever)) == (0, 0)
    for id_ in (sending, deferred, queued.id, scheduled.id):
        assert await store.outbox.content(id_) is not None


async def test_what_is_in_doubt_keeps_its_body_until_it_is_settled_or_deleted(store: Store) -> None:
    first, second = [await store.ended(MessageState.IN_DOUBT) for _ in range(2)]
    assert await store.dropped(ended_by=NOW + DAY) == 0
    await store.acts.do(Act.RESOLVE_AS_SENT, first, now=NOW, until=NOW)
    assert await store.dropped(ended_by=NOW + DAY) == 1
    assert await store.outbox.content(second) is not None
    assert await store.deleted(ended_by=NOW) == 2


async def test_a_deleted_message_leaves_nothing_behind(store: Store) -> None:
    await store.ended(MessageState.SENT)
    await store.ended(MessageState.FAILED)
    kept = await store.ended(MessageState.SENT, at=NOW + DAY)
    await store.search.catch_up()
    assert await store.deleted(ended_by=NOW) == 2
    assert {table: store.count(table) for table in TABLES} == dict.fromkeys(TABLES, 1)
    found = await store.history.newest(Filter(q='"vip"*'), at_most=10)
    assert [snapshot.id for snapshot in found] == [kept]


async def test_what_was_not_indexed_when_the_last_indexed_one_was_deleted_is_found_later(store: Store) -> None:
    await store.ended(MessageState.SENT)
    await store.search.catch_up()
    later = await store.ended(MessageState.SENT, at=NOW + DAY)
    assert await store.deleted(ended_by=NOW) == 1
    found = await store.history.newest(Filter(q='"vip"*'), at_most=10)
    assert [snapshot.id for snapshot in found] == [later]


async def test_a_step_is_bounded_by_what_it_looks_at_and_by_what_it_deletes(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(keeping, "WEIGHT", 150)
    big = b"x" * 400_000  # about a hundred pages
    ids = [await store.ended(MessageState.SENT, content=big) for _ in range(5)]
    counts = [count async for count in store.keeping.drop_bodies(ended_by=NOW)]
    assert max(counts) == 1
    assert sum(counts) == len(ids)


async def test_what_cannot_go_is_not_gone_through_for_ever_and_what_is_behind_it_is_reached(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(keeping, "IN_VAIN", 1)
    for _ in range(2 * keeping.LOOKED_AT):
        await store.outbox.append(make_message(number=store.made), lease=None, now=NOW)
        store.made += 1
    await store.ended(MessageState.SENT)
    assert [await store.dropped(ended_by=NOW) for _ in range(4)] == [0, 0, 1, 0]


def seed(file: Path, count: int, *, at: datetime, state: str = "sent") -> None:
    """Write messages that have ended, as the outbox leaves them, many at once."""
    ids = [uuid7(at + timedelta(milliseconds=n), n).bytes for n in range(count)]
    ms = int(at.timestamp() * 1000)
    with closing(sqlite3.connect(file, isolation_level=None)) as db:
        db.execute("BEGIN")
        db.executemany(
            "INSERT INTO messages (id, state, profile, message_id, sender, subject, size, smtputf8, sandbox, tags, "
            "attempts, created_at, expires_at) VALUES (?, ?, 'relay', '<x@ours.test>', 'bot@ours.test', 'Order 4711', "
            "1800, 0, 0, '[\"vip\"]', 1, ?, ?)",
            ((id_, state, ms, ms) for id_ in ids),
        )
        db.executemany(
            "INSERT INTO recipients VALUES (?, 0, ?, 'sent', NULL)",
            ((id_, f"ann{n}@theirs.test") for n, id_ in enumerate(ids)),
        )
        db.executemany("INSERT INTO tags VALUES ('vip', ?)", ((id_,) for id_ in ids))
        db.executemany("INSERT INTO bodies VALUES (?, 0, zeroblob(1800))", ((id_,) for id_ in ids))
        db.executemany(
            "INSERT INTO attempts VALUES (?, 1, 'relay', ?, 1, NULL, NULL, ?)", ((id_, ms, "x" * 900) for id_ in ids)
        )
        db.execute("COMMIT")


async def test_what_goes_is_found_by_an_index_and_takes_all_that_belongs_to_it_along_by_one(store: Store) -> None:
    seed(store.file, 3, at=NOW)
    await store.search.catch_up()
    store.statements.clear()
    assert await store.dropped(ended_by=NOW + DAY) == 3
    assert await store.deleted(ended_by=NOW + DAY) == 3
    ours = ("SELECT messages.id, ", "DELETE FROM messages ", "DELETE FROM bodies ")
    asked = {sql for sql in store.statements if sql.startswith(ours)}  # each cascade names its statement once more
    assert len(asked) == 2 + 3 + 3
    cascades = [
        f"SELECT 1 FROM {table} WHERE message_id = x'00'"
        for table in ("recipients", "tags", "bodies", "attempts", "idempotency_keys")
    ]
    with closing(sqlite3.connect(store.file)) as db:
        plan = [step for sql in (*asked, *cascades) for *_, step in db.execute(f"EXPLAIN QUERY PLAN {sql}")]
    assert [step for step in plan if "USING" not in step and step.startswith(("SCAN", "SEARCH"))] == []
    assert [step for step in plan if step.startswith("SCAN") or "TEMP B-TREE" in step] == []


@pytest.mark.timeout(120)
async def test_among_many_a_step_holds_nobody_up(store: Store) -> None:
    seed(store.file, 20_000, at=NOW)
    seed(store.file, 100, at=NOW + DAY)
    await store.search.catch_up()
    longest = 0.0
    for steps in (
        store.keeping.drop_bodies(ended_by=NOW + timedelta(hours=1)),
        store.keeping.delete(ended_by=NOW + timedelta(hours=1)),
    ):
        began, total = perf_counter(), 0
        async for count in steps:
            longest, began, total = max(longest, perf_counter() - began), perf_counter(), total + count
        assert total == 20_000
    assert longest < 2.0  # some 15 ms; this machine is others' too
    assert store.count("messages") == 100
