"""Forgetting on a real file: what is over long enough goes with all that belongs to it, what is live stays."""

import sqlite3
from collections.abc import AsyncIterator
from contextlib import closing
from dataclasses import replace
from datetime import timedelta
from pathlib import Path
from time import perf_counter

import pytest

from app.mail.acts import Act
from app.mail.codes import ErrorCode, Reason
from app.mail.errors import Conflict
from app.mail.message import Lease, Recipient
from app.mail.outcome import MessageState, RecipientState
from app.store import keeping
from app.store.database import PART_BYTES
from app.store.history import Filter
from tests.support.factories import NOW, make_message
from tests.support.store import DAY, Store, failure, opened, seed

TABLES = ("messages", "recipients", "tags", "bodies", "attempts", "idempotency_keys", "message_search")


@pytest.fixture
async def store(tmp_path: Path) -> AsyncIterator[Store]:
    async with opened(tmp_path) as store:
        yield store


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
    assert store.census.of(MessageState.IN_DOUBT) == 1
    assert await store.deleted(ended_by=NOW) == 2
    assert store.census.of(MessageState.IN_DOUBT) == 0


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


@pytest.mark.parametrize(
    "damage",
    [
        *(
            pytest.param(f"UPDATE messages SET {column} = {value} WHERE id = :id", id=f"{column} {value}")
            for column in ("created_at", "expires_at", "size", "state", "error_code", "failure")
            for value in ("'rubbish'", "x'ff'", "1.5e300")
        ),
        *(
            pytest.param(
                f"UPDATE attempts SET {column} = {value} WHERE message_id = :id", id=f"attempt's {column} {value}"
            )
            for column in ("started_at", "facts", "number")
            for value in ("'rubbish'", "x'ff'")
        ),
        pytest.param("DELETE FROM attempts WHERE message_id = :id", id="no attempts"),
        pytest.param("DELETE FROM recipients WHERE message_id = :id", id="no recipients"),
        pytest.param("UPDATE bodies SET bytes = 5 WHERE message_id = :id", id="no bytes"),
        pytest.param("UPDATE messages SET id = x'01' WHERE id = :id", id="no id"),
    ],
)
async def test_a_row_that_cannot_be_read_keeps_no_other_from_being_forgotten(store: Store, damage: str) -> None:
    damaged, *others = [await store.ended(MessageState.SENT) for _ in range(3)]
    with closing(sqlite3.connect(store.file)) as db:
        db.execute(damage, {"id": damaged.bytes})
        db.commit()
    await store.dropped(ended_by=NOW)
    assert [await store.outbox.content(id_) for id_ in others] == [None, None]
    await store.deleted(ended_by=NOW)
    assert [await store.history.find(id_) for id_ in others] == [None, None]
    if "messages SET id" not in damage:
        assert await store.history.find(damaged) is None, "nor is it kept for ever"


async def test_the_content_of_a_message_in_a_state_that_is_not_known_is_kept_with_it(store: Store) -> None:
    newer = await store.ended(MessageState.SENT)
    with closing(sqlite3.connect(store.file)) as db:
        db.execute("UPDATE messages SET state = 'newer'")
        db.commit()
    assert await store.dropped(ended_by=NOW) == 0
    assert await store.outbox.content(newer) is not None
    assert await store.deleted(ended_by=NOW) == 1
