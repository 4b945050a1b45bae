"""A clock that is put back leaves nothing waiting for a day, and asks for no more than is due: on a real queue."""

import asyncio
import sqlite3
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, closing
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from math import inf
from pathlib import Path
from time import perf_counter
from uuid import UUID

import pytest

from app.delivery.carrier import LONGEST_JITTER
from app.delivery.circuits import Circuits
from app.delivery.contents import Contents
from app.delivery.worker import Worker
from app.mail.acts import Act
from app.mail.message import Lease, Snapshot
from app.mail.outcome import MessageState
from app.mail.schedule import Schedule
from app.store.catalog import Catalog
from app.store.verdicts import Verdicts
from app.telemetry import Metrics
from tests.support.factories import NOW, Deliveries, make_message, make_profile
from tests.support.relay import Relay
from tests.support.store import DAY, Store, opened

LATEST = NOW + timedelta(minutes=1)


@pytest.fixture
async def store(tmp_path: Path) -> AsyncIterator[Store]:
    async with opened(tmp_path) as store:
        yield store


async def due(store: Store, id_: UUID) -> datetime | None:
    found = await store.history.find(id_)
    assert found is not None
    return found.next_attempt_at


async def sent(verdict: asyncio.Future[Snapshot | None]) -> None:
    async with asyncio.timeout(5):
        said = await verdict
    assert said is not None
    assert said.state is MessageState.SENT


async def test_what_waits_longer_than_it_can_is_brought_forward_and_what_is_queued_is_due(store: Store) -> None:
    deferred = await store.ended(MessageState.DEFERRED)  # until tomorrow
    queued = make_message(number=90, created_at=NOW + DAY)
    await store.outbox.append(queued, lease=None, now=NOW + DAY)
    assert await store.outbox.bring_forward("relay", now=NOW, latest=LATEST) == 2
    assert (await due(store, deferred), await due(store, queued.id)) == (LATEST, NOW)
    assert await store.outbox.bring_forward("relay", now=NOW, latest=LATEST) == 0


async def test_what_is_scheduled_leased_soon_due_or_another_profiles_stays(store: Store) -> None:
    scheduled = replace(make_message(number=90), send_at=NOW + 300 * DAY)
    other = make_message(number=91, profile="other", created_at=NOW + DAY)
    leased = (await store.taken()).snapshot.id
    soon = await store.ended(MessageState.DEFERRED, at=NOW - DAY)
    for message in (scheduled, other):
        await store.outbox.append(message, lease=None, now=message.created_at)

    def rows() -> list[tuple[object, ...]]:
        with closing(sqlite3.connect(store.file)) as db:
            return db.execute("SELECT id, due_at, state FROM messages ORDER BY id").fetchall()

    before = rows()
    assert await store.outbox.bring_forward("relay", now=NOW, latest=LATEST) == 0
    assert rows() == before
    assert len(before) == len({scheduled.id, other.id, leased, soon})


async def test_it_is_found_by_the_index_of_what_is_due(store: Store) -> None:
    await store.outbox.bring_forward("relay", now=NOW, latest=LATEST)
    (asked,) = {sql for sql in store.statements if sql.startswith("UPDATE messages SET due_at")}
    with closing(sqlite3.connect(store.file)) as db:
        plan = [step for *_, step in db.execute(f"EXPLAIN QUERY PLAN {asked}")]
    assert plan == ["SEARCH messages USING INDEX messages_due (profile=? AND due_at>?)"]


class Clock:
    """A wall clock that is put where a test wants it, beside the monotonic one of the machine."""

    def __init__(self) -> None:
        self.offset = NOW - datetime.now(UTC)

    def now(self) -> datetime:
        return datetime.now(UTC) + self.offset


@asynccontextmanager
async def working(store: Store, relay: Relay, clock: Clock) -> AsyncIterator[tuple[Worker, Verdicts]]:
    """Run a worker on the store by this clock, half a minute between two tries."""
    profile = make_profile(host=relay.host, port=relay.port)
    verdicts, metrics = Verdicts(), Metrics("test")
    async with Deliveries() as deliveries:
        circuits = Circuits(
            {"relay": profile},
            open_session=deliveries.open,
            catalog=Catalog(store.journal, store.reader),
            metrics=metrics,
            now=clock.now,
            clock=perf_counter,
        )
        worker = Worker(
            profiles={"relay": profile},
            schedule=Schedule.parse("30s"),
            outbox=store.outbox,
            contents=Contents(store.outbox.content, most=1 << 30),
            pool=deliveries.pool,
            circuits=circuits,
            verdicts=verdicts,
            metrics=metrics,
            now=clock.now,
            clock=perf_counter,
            random_bits=lambda count: (1 << count) - 1,  # the longest jitter
            keep_transcripts=False,
        )
        await worker.start(["relay"])
        yield worker, verdicts
        await worker.drain(0, hurried=asyncio.Event())


async def test_a_retry_comes_within_the_longest_wait_though_the_clock_was_put_back_a_day(store: Store) -> None:
    clock = Clock()
    async with Relay() as relay:
        relay.on("RCPT", "450 4.2.1 busy", times=1)
        message = make_message(created_at=clock.now())
        await store.outbox.append(message, lease=None, now=clock.now())
        async with working(store, relay, clock) as (worker, verdicts):
            changes = verdicts.follow()
            assert (await anext(changes)).state is MessageState.DEFERRED
            clock.offset -= DAY
            worker.resume("relay")  # wakes it, as half a minute would
            verdict = verdicts.expect(message.id)
            while True:
                await store.outbox.check()  # behind what the worker has handed in
                at = await due(store, message.id)
                if at is not None and at < clock.now() + timedelta(seconds=30 * LONGEST_JITTER):
                    break
            clock.offset += timedelta(seconds=60)
            worker.resume("relay")
            await sent(verdict)
        assert len(relay.mails) == 1


async def test_what_was_put_off_before_the_start_by_a_clock_that_ran_ahead_is_not_stuck(store: Store) -> None:
    clock = Clock()
    id_ = await store.ended(MessageState.DEFERRED, at=NOW + DAY)
    await store.acts.do(Act.RETRY, id_, now=NOW + DAY, until=NOW + 3 * DAY)  # queued, and due tomorrow
    async with Relay() as relay:
        async with working(store, relay, clock) as (_, verdicts):
            await sent(verdicts.expect(id_))
        assert len(relay.mails) == 1


async def test_an_hour_on_no_lease_is_anybody_elses(store: Store) -> None:
    claim = await store.taken()
    later = NOW + 2 * DAY  # behind the lease's end
    claims, _ = await store.outbox.claim("relay", lease=Lease(99, later + DAY), at_most=10, now=later)
    assert claims == []
    await store.recorded(claim, MessageState.SENT, at=NOW, failure=None)


async def test_what_a_clock_that_was_ahead_between_two_looks_put_off_is_capped_all_the_same(store: Store) -> None:
    """The worker has seen the same clock before and after, and looks by the due times themselves."""
    clock = Clock()
    async with Relay() as relay, working(store, relay, clock) as (worker, _):
        while worker._lanes["relay"].ahead is None:
            await store.outbox.check()
        ahead = await store.ended(MessageState.DEFERRED, at=clock.now() + DAY)  # until the day after tomorrow
        worker._lanes["relay"].capped = -inf  # half a minute later
        worker.resume("relay")  # wakes it
        async with asyncio.timeout(5):
            while (at := await due(store, ahead)) is None or at > clock.now() + timedelta(hours=2):
                await store.outbox.check()


async def test_a_paused_profile_is_looked_at_too(store: Store) -> None:
    clock = Clock()
    async with Relay() as relay, working(store, relay, clock) as (worker, verdicts):
        worker.pause("relay", clock.now())
        queued = make_message(number=90, created_at=clock.now() + DAY)
        await store.outbox.append(queued, lease=None, now=clock.now() + DAY)
        worker._lanes["relay"].capped = -inf
        worker.nudge("relay")
        async with asyncio.timeout(5):
            while (at := await due(store, queued.id)) is None or at > clock.now():
                await store.outbox.check()
        assert relay.mails == []
        verdict = verdicts.expect(queued.id)
        worker.resume("relay")
        await sent(verdict)


async def test_what_is_released_is_due_now_but_for_what_is_scheduled(store: Store) -> None:
    deferred = await store.ended(MessageState.DEFERRED)
    queued = make_message(number=90, created_at=NOW + DAY)
    scheduled = replace(make_message(number=91), send_at=NOW + DAY)
    for message in (queued, scheduled):
        await store.outbox.append(message, lease=None, now=message.created_at)
    clock = Clock()
    async with Relay() as relay, working(store, relay, clock) as (worker, verdicts):
        expected = [verdicts.expect(id_) for id_ in (deferred, queued.id)]
        await worker.release("relay")
        for verdict in expected:
            await sent(verdict)
        assert await due(store, scheduled.id) == NOW + DAY
