"""The durable queue, on the real journal and a real file: append, claim, mark, record, and what a crash leaves."""

import asyncio
import shutil
import sqlite3
from collections.abc import AsyncIterator, Callable
from contextlib import closing
from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from uuid import UUID

import pytest
from sqlalchemy import text

from app.mail.acts import Act
from app.mail.attempt import Attempt
from app.mail.codes import ErrorCode, Reason
from app.mail.errors import LeaseLost, StoreUnavailable
from app.mail.ids import uuid7
from app.mail.message import Claim, Envelope, Lease, Message, Recipient, Repeat, Snapshot
from app.mail.outcome import Failure, FailureClass, MessageState, Phase, RecipientState
from app.mail.reply import Reply
from app.store import database
from app.store.acts import Acts
from app.store.census import WAITING, Census
from app.store.database import PART_BYTES
from app.store.history import Filter, History
from app.store.journal import Journal
from app.store.outbox import Outbox
from app.store.reader import Reader
from app.store.search import SearchIndex
from tests.contract.test_journal import Gate

NOW = datetime(2026, 3, 1, 12, 0, tzinfo=UTC)
LEASE = Lease(token=4711, until=NOW + timedelta(hours=1))
OTHER_LEASE = Lease(token=4712, until=NOW + timedelta(hours=1))
MB = 1024 * 1024

FAILURE = Failure(
    code=ErrorCode.EENVELOPE,
    reason=Reason.RECIPIENT_DEFERRED,
    cls=FailureClass.TEMPORARY,
    phase=Phase.RCPT,
    message="The relay says »später« to <ann@theirs.test>",
    hint="Wait",
    smtp_code=451,
    enhanced_code="4.2.0",
    reply="451 4.2.0 später",
)


def seconds(n: float) -> timedelta:
    return timedelta(seconds=n)


def message(n: int = 1, *, profile: str = "one", created_at: datetime = NOW, content: bytes = b"Hello\r\n") -> Message:
    """Make message number `n`: numbers sort as ids do."""
    id_ = uuid7(NOW, n)
    return Message(
        id=id_,
        message_id=f"<{id_}@ours.test>",
        content=content,
        envelope=Envelope("bot@ours.test", ("ann@theirs.test", "bob@theirs.test")),
        subject=f"No. {n} · »Grüße«",
        profile=profile,
        created_at=created_at,
        expires_at=created_at + timedelta(days=1),
        caller="typebot",
        tags=("order",),
        metadata={"shop": "4711"},
        warnings=("mind the gap",),
    )


@dataclass(slots=True)
class Store:
    """The outbox with all that is behind it; `connections` are the live ones, in the order of their opening."""

    file: Path
    connections: list[sqlite3.Connection]
    statements: list[str]  # every one that a live connection ran, its parameters filled in
    journal: Journal
    reader: Reader
    census: Census
    outbox: Outbox
    history: History

    def rows(self, sql: str, *params: object) -> list[tuple[object, ...]]:
        """Ask over a connection of our own, which sees only what was committed."""
        with closing(sqlite3.connect(self.file)) as other:
            return other.execute(sql, params).fetchall()

    def dump(self) -> list[str]:
        with closing(sqlite3.connect(self.file)) as other:
            return list(other.iterdump())

    async def found(self, id_: UUID) -> Snapshot:
        snapshot = await self.history.find(id_)
        assert snapshot is not None
        return snapshot

    async def appended(self, *several: Message) -> None:
        for one in several:
            await self.outbox.append(one, lease=None, now=one.created_at)

    async def leased(self, one: Message | None = None, lease: Lease = LEASE) -> Claim:
        receipt = await self.outbox.append(one or message(), lease=lease, now=NOW)
        assert receipt.claim is not None
        return receipt.claim

    async def claimed(self, *, profile: str = "one", lease: Lease = LEASE, at_most: int = 10) -> list[Claim]:
        claims, _ = await self.outbox.claim(profile, lease=lease, at_most=at_most, now=NOW)
        return claims


@pytest.fixture(scope="module")
def empty(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A migrated file without rows, to be copied: cheaper than to migrate for each test."""
    path = tmp_path_factory.mktemp("outbox") / "empty.db"
    database.migrate(path)
    return path


@pytest.fixture
def opens(empty: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[], Store]:
    """Give what opens a store on one and the same file, as often as it is called."""
    file = tmp_path / "mailchute.db"
    shutil.copy(empty, file)
    connect = database.connect

    def open_store() -> Store:
        live: list[sqlite3.Connection] = []
        statements: list[str] = []

        def connect_and_note(file: Path, *, read_only: bool) -> sqlite3.Connection:
            live.append(connection := connect(file, read_only=read_only))
            connection.set_trace_callback(statements.append)
            return connection

        for room in ("journal", "reader"):
            monkeypatch.setattr(f"app.store.{room}.connect", connect_and_note)
        journal, reader = Journal(file), Reader(file)
        census = Census({})
        history = History(reader, SearchIndex(journal))
        return Store(file, live, statements, journal, reader, census, Outbox(journal, reader, census), history)

    return open_store


async def close(store: Store) -> None:
    await store.journal.close()
    await store.reader.close()


@pytest.fixture
async def store(opens: Callable[[], Store]) -> AsyncIterator[Store]:
    store = opens()
    await store.journal.open()
    yield store
    await close(store)


def ended(claim: Claim, *, failure: Failure | None = None, handover: bool = False) -> Attempt:
    """Make the attempt of a claim, as it is when it has ended."""
    attempt = Attempt(claim.snapshot.attempts, claim.snapshot.profile, NOW, lambda: 0.0)
    attempt.host, attempt.ip, attempt.port = "relay.test", "127.0.0.1", 25
    attempt.handover, attempt.failure = handover, failure
    attempt.verdict = None if failure else Reply(250, ("2.0.0 Ok: queued as R1",))
    attempt.say("MAIL FROM:<bot@ours.test>")
    attempt.end()
    return attempt


def after(claim: Claim, *states: RecipientState, failure: Failure | None = None) -> tuple[Recipient, ...]:
    return tuple(
        replace(recipient, state=state, failure=failure)
        for recipient, state in zip(claim.snapshot.recipients, states, strict=True)
    )


async def record_sent(store: Store, claim: Claim) -> Snapshot:
    return await store.outbox.record(
        claim,
        ended(claim, handover=True),
        state=MessageState.SENT,
        after=after(claim, RecipientState.SENT, RecipientState.SENT),
        failure=None,
        next_attempt_at=None,
    )


async def record_deferred(store: Store, claim: Claim, *, at: datetime) -> Snapshot:
    return await store.outbox.record(
        claim,
        ended(claim, failure=FAILURE),
        state=MessageState.DEFERRED,
        after=after(claim, RecipientState.SENT, RecipientState.PENDING, failure=None),
        failure=FAILURE,
        next_attempt_at=at,
    )


class TestAppend:
    async def test_the_receipt_comes_after_the_commit(self, store: Store) -> None:
        counts: list[object] = []
        appending = asyncio.ensure_future(store.outbox.append(message(), lease=None, now=NOW))
        appending.add_done_callback(lambda _: counts.extend(store.rows("SELECT count(*) FROM messages")))
        await appending
        await asyncio.sleep(0)  # the callback
        assert counts == [(1,)]

    async def test_without_a_lease_it_waits_in_the_queue_and_is_due_at_once(self, store: Store) -> None:
        receipt = await store.outbox.append(message(), lease=None, now=NOW)
        assert receipt.claim is None
        assert (receipt.snapshot.state, receipt.snapshot.attempts) == (MessageState.QUEUED, 0)
        assert receipt.snapshot.next_attempt_at == NOW
        assert await store.history.attempts(receipt.snapshot.id) == []
        assert [claim.snapshot.id for claim in await store.claimed()] == [receipt.snapshot.id]

    async def test_with_a_lease_it_is_claimed_in_the_same_commit(self, store: Store) -> None:
        before = store.journal.commits
        claim = await store.leased()
        assert store.journal.commits == before + 1
        assert (claim.snapshot.state, claim.snapshot.attempts) == (MessageState.SENDING, 1)
        assert claim.lease == LEASE
        assert claim.content == b"Hello\r\n"
        assert claim.pending == ("ann@theirs.test", "bob@theirs.test")
        assert await store.claimed(lease=OTHER_LEASE) == []
        (attempt,) = await store.history.attempts(claim.snapshot.id)
        assert (attempt.number, attempt.started_at, dict(attempt.facts)) == (1, NOW, {})

    @pytest.mark.parametrize("lease", [None, LEASE], ids=["queued", "leased"])
    async def test_the_store_gives_back_what_the_receipt_says(self, store: Store, lease: Lease | None) -> None:
        receipt = await store.outbox.append(message(), lease=lease, now=NOW)
        found = await store.found(receipt.snapshot.id)
        assert replace(found, tags=tuple(found.tags), warnings=tuple(found.warnings)) == receipt.snapshot

    async def test_message_recipients_and_content_are_one_commit(self, store: Store) -> None:
        before = store.journal.commits
        await store.outbox.append(message(content=bytes(MB)), lease=None, now=NOW)
        assert store.journal.commits == before + 1

    async def test_the_same_id_is_not_taken_twice(self, store: Store) -> None:
        await store.appended(message())
        before = store.dump()
        with pytest.raises(sqlite3.IntegrityError):
            await store.outbox.append(message(content=b"another"), lease=None, now=NOW)
        assert store.dump() == before

    @pytest.mark.parametrize(
        "size",
        [1, PART_BYTES - 1, PART_BYTES, PART_BYTES + 1, MB, 3 * MB],
        ids=["1 B", "a part less 1 B", "a part", "a part and 1 B", "1 MB", "3 MB"],
    )
    async def test_content_comes_back_byte_for_byte_out_of_parts_of_256_kb(self, store: Store, size: int) -> None:
        content = (bytes(range(256)) * (size // 256 + 1))[:size]
        await store.appended(message(content=content), message(2))
        assert await store.outbox.content(message().id) == content
        sizes = store.rows("SELECT length(bytes) FROM bodies WHERE message_id = ? ORDER BY part", message().id.bytes)
        full, rest = divmod(size, 256 * 1024)
        assert sizes == [(256 * 1024,)] * full + ([(rest,)] if rest else [])
        assert (await store.found(message().id)).size == size

    async def test_a_message_that_is_not_there_has_no_content(self, store: Store) -> None:
        assert await store.outbox.content(message().id) is None


class TestClaim:
    async def test_a_claim_counts_the_attempt_and_begins_its_row(self, store: Store) -> None:
        await store.appended(message())
        (claim,) = await store.claimed()
        assert (claim.snapshot.state, claim.snapshot.attempts) == (MessageState.SENDING, 1)
        assert (claim.lease, claim.content) == (LEASE, None)
        found = await store.found(claim.snapshot.id)
        assert (found.state, found.attempts) == (MessageState.SENDING, 1)
        (attempt,) = await store.history.attempts(claim.snapshot.id)
        assert (attempt.number, attempt.profile, attempt.started_at) == (1, "one", NOW)
        assert (attempt.handover, attempt.error_code, dict(attempt.facts)) == (False, None, {})

    async def test_while_it_is_sending_the_end_of_the_lease_is_nobodys_business(self, store: Store) -> None:
        await store.appended(message())
        (claim,) = await store.claimed()
        assert claim.snapshot.next_attempt_at is None
        assert (await store.found(claim.snapshot.id)).next_attempt_at is None

    async def test_the_longest_due_are_taken_where_not_all_can_be(self, store: Store) -> None:
        ages = {1: 30, 2: 10, 3: 40, 4: 20}
        await store.appended(*(message(n, created_at=NOW - seconds(age)) for n, age in ages.items()))
        claims = await store.claimed(at_most=2)
        assert {claim.snapshot.id for claim in claims} == {message(3).id, message(1).id}

    async def test_only_messages_of_the_profile_are_claimed(self, store: Store) -> None:
        await store.appended(message(1), message(2, profile="two"), message(3))
        assert [c.snapshot.id for c in await store.claimed()] == [message(1).id, message(3).id]
        assert [c.snapshot.id for c in await store.claimed(profile="two")] == [message(2).id]
        assert await store.claimed(profile="three") == []

    async def test_what_is_not_due_yet_is_left_and_its_time_is_given(self, store: Store) -> None:
        await store.appended(message(1), message(2, created_at=NOW + seconds(90)), message(3, created_at=NOW))
        claims, due = await store.outbox.claim("one", lease=LEASE, at_most=10, now=NOW)
        assert len(claims) == 2
        assert due == NOW + seconds(90)

    async def test_what_is_due_but_was_not_taken_is_given_as_due(self, store: Store) -> None:
        await store.appended(*(message(n, created_at=NOW - seconds(n)) for n in (1, 2, 3)))
        _, due = await store.outbox.claim("one", lease=LEASE, at_most=2, now=NOW)
        assert due == NOW - seconds(1)

    async def test_nothing_waiting_is_none(self, store: Store) -> None:
        await store.appended(message(1, profile="two"))
        assert await store.outbox.claim("one", lease=LEASE, at_most=10, now=NOW) == ([], None)

    async def test_a_leased_message_waits_for_nobody_even_after_its_lease(self, store: Store) -> None:
        """The file's lock proves that nobody else is there; what is leased is under way, however long."""
        await store.leased()
        later = LEASE.until + seconds(1)
        assert await store.outbox.claim("one", lease=OTHER_LEASE, at_most=10, now=later) == ([], None)

    async def test_claims_at_the_same_time_never_give_the_same_message(self, store: Store) -> None:
        await store.appended(*(message(n) for n in range(20)))
        leases = [Lease(token, LEASE.until) for token in range(1, 6)]
        both = await asyncio.gather(*(store.claimed(lease=lease, at_most=6) for lease in leases))
        ids = [claim.snapshot.id for claims in both for claim in claims]
        assert len(ids) == len(set(ids)) == 20
        for lease, claims in zip(leases, both, strict=True):
            for claim in claims:
                assert store.rows("SELECT lease_token FROM messages WHERE id = ?", claim.snapshot.id.bytes) == [
                    (lease.token,)
                ]


class TestMark:
    async def test_the_mark_is_committed_when_the_future_is_done(self, store: Store) -> None:
        claim = await store.leased()
        await store.outbox.mark(claim)
        assert store.rows("SELECT handover FROM messages") == [(1,)]

    @pytest.mark.parametrize("state", ["leased to another", "recorded", "queued", "unknown"])
    async def test_a_mark_needs_the_lease(self, store: Store, state: str) -> None:
        claim = replace(await store.leased(), lease=OTHER_LEASE)
        match state:
            case "recorded":
                claim = replace(claim, lease=LEASE)
                await record_sent(store, claim)
            case "queued":
                await store.appended(message(2))
                claim = replace(claim, snapshot=replace(claim.snapshot, id=message(2).id))
            case "unknown":
                claim = replace(claim, snapshot=replace(claim.snapshot, id=message(3).id))
        before = store.dump()
        with pytest.raises(LeaseLost):
            await store.outbox.mark(claim)
        assert store.dump() == before

    async def test_a_lost_lease_does_not_harm_other_marks(self, store: Store) -> None:
        claims = [await store.leased(message(n)) for n in range(5)]
        claims[2] = replace(claims[2], lease=OTHER_LEASE)
        ends = await asyncio.gather(*(store.outbox.mark(claim) for claim in claims), return_exceptions=True)
        assert [type(end) for end in ends] == [type(None), type(None), LeaseLost, type(None), type(None)]
        assert store.rows("SELECT handover FROM messages ORDER BY id") == [(1,), (1,), (0,), (1,), (1,)]


class TestRecord:
    async def test_message_recipients_and_attempt_are_written_in_one_commit(self, store: Store) -> None:
        claim = await store.leased()
        before = store.journal.commits
        snapshot = await record_deferred(store, claim, at=NOW + seconds(30))
        assert store.journal.commits == before + 1
        found = await store.found(claim.snapshot.id)
        assert replace(found, tags=tuple(found.tags), warnings=tuple(found.warnings)) == snapshot
        assert (found.state, found.failure, found.attempts) == (MessageState.DEFERRED, FAILURE, 1)
        assert found.next_attempt_at == NOW + seconds(30)
        assert [r.state for r in found.recipients] == [RecipientState.SENT, RecipientState.PENDING]
        (attempt,) = await store.history.attempts(claim.snapshot.id)
        assert (attempt.error_code, attempt.reason) == ("EENVELOPE", "recipient_deferred")
        assert attempt.facts["reply"] == "451 4.2.0 später"
        assert attempt.facts["transcript"] == [[0.0, "C", "MAIL FROM:<bot@ours.test>"]]

    async def test_what_was_recorded_as_sent_is_never_claimed_again(self, store: Store) -> None:
        claim = await store.leased()
        snapshot = await record_sent(store, claim)
        assert (snapshot.state, snapshot.next_attempt_at) == (MessageState.SENT, None)
        far = NOW + timedelta(days=1000)
        assert await store.outbox.claim("one", lease=OTHER_LEASE, at_most=10, now=far) == ([], None)

    async def test_a_deferred_message_is_claimed_again_when_it_is_due_for_whom_is_pending(self, store: Store) -> None:
        await record_deferred(store, await store.leased(), at=NOW + seconds(30))
        early = await store.outbox.claim("one", lease=OTHER_LEASE, at_most=10, now=NOW + seconds(29))
        assert early == ([], NOW + seconds(30))
        (claim,), _ = await store.outbox.claim("one", lease=OTHER_LEASE, at_most=10, now=NOW + seconds(30))
        assert claim.pending == ("bob@theirs.test",)
        assert claim.snapshot.attempts == 2
        assert [a.number for a in await store.history.attempts(claim.snapshot.id)] == [1, 2]

    async def test_a_stale_token_writes_nothing(self, store: Store) -> None:
        claim = replace(await store.leased(), lease=OTHER_LEASE)
        before = store.dump()
        with pytest.raises(LeaseLost):
            await record_sent(store, claim)
        assert store.dump() == before

    async def test_an_end_is_recorded_once(self, store: Store) -> None:
        claim = await store.leased()
        await record_deferred(store, claim, at=NOW + seconds(30))
        before = store.dump()
        with pytest.raises(LeaseLost):
            await record_sent(store, claim)
        assert store.dump() == before

    async def test_an_attempt_that_did_not_take_place_is_not_counted(self, store: Store) -> None:
        claim = await store.leased()
        snapshot = await store.outbox.record(
            claim,
            None,
            state=MessageState.QUEUED,
            after=claim.snapshot.recipients,
            failure=None,
            next_attempt_at=NOW,
        )
        assert snapshot.attempts == 0
        assert (await store.found(claim.snapshot.id)).attempts == 0
        assert await store.history.attempts(claim.snapshot.id) == []
        (again,) = await store.claimed(lease=OTHER_LEASE)
        assert again.snapshot.attempts == 1

    async def test_the_mark_of_an_attempt_that_has_a_verdict_is_forgotten(self, store: Store) -> None:
        """A 451 to the final dot: taken by nobody, so the next crash without a mark must not mean in doubt."""
        claim = await store.leased()
        await store.outbox.mark(claim)
        await record_deferred(store, claim, at=NOW)
        await store.claimed(lease=OTHER_LEASE)
        (one,) = await store.outbox.interrupted()
        assert not one.is_marked

    async def test_what_is_in_doubt_is_final(self, store: Store) -> None:
        claim = await store.leased()
        await store.outbox.mark(claim)
        await store.outbox.record(
            claim,
            ended(claim, failure=FAILURE, handover=True),
            state=MessageState.IN_DOUBT,
            after=after(claim, RecipientState.IN_DOUBT, RecipientState.REJECTED, failure=FAILURE),
            failure=FAILURE,
            next_attempt_at=None,
        )
        found = await store.found(claim.snapshot.id)
        assert [r.state for r in found.recipients] == [RecipientState.IN_DOUBT, RecipientState.REJECTED]
        assert await store.outbox.interrupted() == []
        far = NOW + timedelta(days=1000)
        assert await store.outbox.claim("one", lease=OTHER_LEASE, at_most=10, now=far) == ([], None)
        assert (store.census.of(MessageState.IN_DOUBT), store.census.waiting) == (1, 0)


class TestInterrupted:
    async def test_a_crash_leaves_the_leased_with_their_marks_and_nothing_else(
        self, opens: Callable[[], Store]
    ) -> None:
        store = opens()
        await store.journal.open()
        marked, unmarked = await store.leased(message(1)), await store.leased(message(2))
        await store.outbox.mark(marked)
        await record_sent(store, await store.leased(message(3)))
        await store.appended(message(4))
        await close(store)

        store = opens()
        await store.journal.open()
        found = sorted(await store.outbox.interrupted(), key=lambda one: one.claim.snapshot.id)
        assert [(one.claim.snapshot.id, one.profile, one.started_at, one.is_marked, one.crashes) for one in found] == [
            (marked.snapshot.id, "one", NOW, True, 1),
            (unmarked.snapshot.id, "one", NOW, False, 1),
        ]
        assert [one.claim.pending for one in found] == [marked.pending, unmarked.pending]
        await close(store)

    async def test_crashes_in_a_row_are_counted_and_another_end_between_begins_anew(self, store: Store) -> None:
        crashed = replace(FAILURE, reason=Reason.WORKER_CRASHED)
        await store.appended(message())
        for expected, failure in ((1, crashed), (2, crashed), (3, FAILURE), (1, crashed), (2, crashed)):
            (claim,) = await store.claimed()
            (one,) = await store.outbox.interrupted()
            assert one.crashes == expected
            await store.outbox.record(
                claim,
                ended(claim, failure=failure),
                state=MessageState.DEFERRED,
                after=claim.snapshot.recipients,
                failure=failure,
                next_attempt_at=NOW,
            )

    async def test_what_was_interrupted_can_be_recorded_by_its_old_lease(self, store: Store) -> None:
        await store.leased()
        (one,) = await store.outbox.interrupted()
        await record_deferred(store, one.claim, at=NOW)
        assert await store.outbox.interrupted() == []
        assert len(await store.claimed(lease=OTHER_LEASE)) == 1


class TestFallback:
    async def test_a_further_attempt_is_begun_as_the_one_before_ends(self, store: Store) -> None:
        claim = await store.leased()
        further = await store.outbox.fall_back(claim, ended(claim, failure=FAILURE), "two", now=NOW)
        assert (further.snapshot.attempts, further.lease) == (2, claim.lease)
        (one,) = await store.outbox.interrupted()
        assert (one.profile, one.claim.snapshot.attempts) == ("two", 2)
        first, second = await store.history.attempts(claim.snapshot.id)
        assert (first.profile, first.reason, second.profile, second.facts) == ("one", FAILURE.reason, "two", {})
        attempt = ended(further, handover=True)
        attempt.profile = "two"
        states = after(further, RecipientState.SENT, RecipientState.SENT)
        sent = await store.outbox.record(
            further, attempt, state=MessageState.SENT, after=states, failure=None, next_attempt_at=None
        )
        assert (sent.profile, sent.attempts) == ("two", 2)
        found = await store.found(claim.snapshot.id)
        assert (found.profile, found.state, found.attempts) == ("two", MessageState.SENT, 2)

    async def test_one_that_waits_again_waits_for_its_own_profile(self, store: Store) -> None:
        claim = await store.leased()
        further = await store.outbox.fall_back(claim, ended(claim, failure=FAILURE), "two", now=NOW)
        attempt = ended(further, failure=FAILURE)
        attempt.profile = "two"
        await store.outbox.record(
            further,
            attempt,
            state=MessageState.DEFERRED,
            after=further.snapshot.recipients,
            failure=FAILURE,
            next_attempt_at=NOW,
        )
        assert (await store.found(claim.snapshot.id)).profile == "one"
        assert len(await store.claimed(lease=OTHER_LEASE)) == 1

    async def test_who_holds_the_message_no_more_writes_nothing(self, store: Store) -> None:
        claim = await store.leased()
        before = store.dump()
        with pytest.raises(LeaseLost):
            await store.outbox.fall_back(
                replace(claim, lease=OTHER_LEASE), ended(claim, failure=FAILURE), "two", now=NOW
            )
        assert store.dump() == before

    async def test_an_attempt_may_be_another_profiles_from_its_beginning(self, store: Store) -> None:
        claim = await store.leased()
        await store.outbox.redirect(claim, "two")
        assert (await store.outbox.interrupted())[0].profile == "two"


class TestMakeDue:
    """A circuit has closed: whatever was deferred may go."""

    async def test_all_that_is_deferred_is_due_and_nothing_else(
        self, store: Store, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr("app.store.due.DUE_AT_ONCE", 2)
        later = NOW + seconds(3600)
        for n in range(7):
            await record_deferred(store, await store.leased(message(n, profile="two" if n == 3 else "one")), at=later)
        await store.appended(replace(message(8), send_at=later))
        await store.outbox.make_due("one", now=NOW)
        assert {claim.snapshot.id for claim in await store.claimed()} == {message(n).id for n in (0, 1, 2, 4, 5, 6)}
        assert await store.claimed(profile="two") == []

    async def test_one_alone_is_the_next_in_turn(self, store: Store) -> None:
        for n, wait in ((1, 300), (2, 100), (3, 200)):
            await record_deferred(store, await store.leased(message(n)), at=NOW + seconds(wait))
        await store.outbox.make_one_due("one", now=NOW)
        assert [claim.snapshot.id for claim in await store.claimed()] == [message(2).id]
        await store.outbox.make_one_due("nothing waits for this one", now=NOW)


class TestCheck:
    async def test_a_store_that_can_be_written_passes(self, store: Store) -> None:
        await store.outbox.check()

    async def test_a_store_that_somebody_else_holds_does_not_pass(
        self, opens: Callable[[], Store], monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr("app.store.database.BUSY_SECONDS", 0.02)
        store = opens()
        await store.journal.open()
        with closing(sqlite3.connect(store.file, isolation_level=None)) as other:
            other.execute("BEGIN IMMEDIATE")
            with pytest.raises(StoreUnavailable):
                await store.outbox.check()
        await store.outbox.check()
        await close(store)

    async def test_a_store_that_takes_no_writes_does_not_pass(
        self, opens: Callable[[], Store], monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """A file that may only be read opens all the same, and SQLite then gives a BEGIN IMMEDIATE that writes not."""

        def connect_to_a_read_only_file(file: Path, *, read_only: bool) -> sqlite3.Connection:
            uri = f"file:{file}?mode=ro"
            return sqlite3.connect(uri, uri=True, isolation_level=None, check_same_thread=False)

        store = opens()
        monkeypatch.setattr("app.store.journal.connect", connect_to_a_read_only_file)
        await store.journal.open()
        with pytest.raises(StoreUnavailable, match="readonly"):
            await store.outbox.append(message(), lease=None, now=NOW)
        try:
            with pytest.raises(StoreUnavailable, match="readonly"):
                await store.outbox.check()
        finally:
            await close(store)


class TestConnections:
    async def test_the_writer_syncs_every_commit(self, store: Store) -> None:
        (writer,) = store.connections
        pragmas = {
            name: writer.execute(f"PRAGMA {name}").fetchone()[0]
            for name in ("journal_mode", "synchronous", "foreign_keys", "query_only", "busy_timeout")
        }
        assert pragmas == {
            "journal_mode": "wal",
            "synchronous": 2,  # FULL
            "foreign_keys": 1,
            "query_only": 0,
            "busy_timeout": 5000,
        }

    async def test_foreign_keys_hold_on_the_writer(self, store: Store) -> None:
        (writer,) = store.connections
        with pytest.raises(sqlite3.IntegrityError):
            writer.execute("INSERT INTO bodies (message_id, part, bytes) VALUES (x'00', 0, x'00')")

    async def test_readers_are_read_only(self, store: Store) -> None:
        await store.reader.rows(text("SELECT 1"))
        _, reader = store.connections
        assert reader.execute("PRAGMA query_only").fetchone() == (1,)
        assert reader.execute("PRAGMA foreign_keys").fetchone() == (1,)
        assert reader.execute("PRAGMA journal_mode").fetchone() == ("wal",)

    @pytest.mark.parametrize(
        "sql", ["DELETE FROM messages", "UPDATE messages SET state = 'sent'", "CREATE TABLE mine (x)"]
    )
    async def test_a_write_through_the_reader_fails(self, store: Store, sql: str) -> None:
        await store.appended(message())
        before = store.dump()
        with pytest.raises(StoreUnavailable, match="readonly database"):
            await store.reader.rows(text(sql))
        assert store.dump() == before

    async def test_a_reader_sees_what_was_committed_before_it_asked(self, store: Store) -> None:
        for n in range(20):
            await store.appended(message(n))
            assert len(await store.history.newest(at_most=100)) == n + 1


class TestHistory:
    async def test_pages_go_on_behind_the_last_one_seen(self, store: Store) -> None:
        await store.appended(*(message(n) for n in range(10)))
        pages: list[list[UUID]] = []
        before = None
        while page := await store.history.newest(at_most=4, before=before):
            pages.append([snapshot.id for snapshot in page])
            before = page[-1].id
        assert pages == [[message(n).id for n in numbers] for numbers in ((9, 8, 7, 6), (5, 4, 3, 2), (1, 0))]

    async def test_a_page_may_be_of_one_profile(self, store: Store) -> None:
        await store.appended(*(message(n, profile="one" if n % 2 else "two") for n in range(6)))
        found = await store.history.newest(Filter(profile="one"), at_most=2, before=message(5).id)
        assert [snapshot.id for snapshot in found] == [message(3).id, message(1).id]

    async def test_the_oldest_that_waits_is_neither_sent_nor_for_later(self, store: Store) -> None:
        await record_sent(store, await store.leased(message(0, created_at=NOW - seconds(99))))
        assert await store.history.oldest_waiting(["one", "two"], now=NOW) is None
        later = replace(message(1, created_at=NOW - seconds(50)), send_at=NOW + seconds(1))
        await store.appended(later)
        assert await store.history.oldest_waiting(["one", "two"], now=NOW) is None
        assert await store.history.oldest_waiting(["one", "two"], now=NOW + seconds(2)) == NOW + seconds(1)
        await store.appended(message(2), message(3, profile="two", created_at=NOW - seconds(5)))
        assert await store.history.oldest_waiting(["one", "two"], now=NOW) == NOW - seconds(5)
        claim = await store.leased(message(4, created_at=NOW - seconds(7)))
        assert await store.history.oldest_waiting(["one", "two"], now=NOW) == NOW - seconds(7)
        await record_deferred(store, claim, at=NOW + seconds(3600))
        assert await store.history.oldest_waiting(["one", "two"], now=NOW) == NOW - seconds(7)
        assert await store.history.profiles_waiting() == {"one", "two"}


class TestCensus:
    """The figures that are kept are those that a count would give."""

    async def test_it_follows_every_change_of_a_state(self, store: Store) -> None:
        acts = Acts(store.journal, store.census)
        later = replace(message(9), send_at=NOW + seconds(60))
        await store.appended(message(1), message(2), message(3), later)
        await self.counted(store, queued=3, scheduled=1)
        claims = await store.claimed(at_most=2)
        await self.counted(store, queued=1, scheduled=1, sending=2)
        await record_deferred(store, claims[0], at=NOW)
        await record_sent(store, claims[1])
        await self.counted(store, queued=1, scheduled=1, deferred=1)
        await acts.do(Act.CANCEL, message(3).id, now=NOW, until=NOW)
        await acts.do_all(Act.RETRY, [message(1).id, message(2).id, later.id], now=NOW, until=NOW + seconds(9))
        await self.counted(store, queued=2)
        claims = await store.claimed(at_most=1)
        await store.outbox.record(
            claims[0],
            ended(claims[0], failure=FAILURE, handover=True),
            state=MessageState.IN_DOUBT,
            after=after(claims[0], RecipientState.SENT, RecipientState.IN_DOUBT, failure=FAILURE),
            failure=FAILURE,
            next_attempt_at=None,
        )
        await self.counted(store, queued=1, in_doubt=1)
        await acts.do(Act.RESOLVE_AS_SENT, claims[0].snapshot.id, now=NOW, until=NOW)
        await self.counted(store, queued=1)

    async def test_a_replay_counts_nothing_and_a_revived_message_once(self, store: Store) -> None:
        repeat = Repeat("key", bytes(32))
        for _ in range(2):
            await store.outbox.append(message(1), lease=None, now=NOW, repeat=repeat)
        await self.counted(store, queued=1)
        (claim,) = await store.claimed()
        gone = replace(FAILURE, code=ErrorCode.EEXPIRED, reason=Reason.EXPIRED, cls=FailureClass.PERMANENT)
        await store.outbox.record(
            claim,
            ended(claim, failure=FAILURE),
            state=MessageState.FAILED,
            after=after(claim, RecipientState.EXPIRED, RecipientState.EXPIRED, failure=gone),
            failure=gone,
            next_attempt_at=None,
        )
        await self.counted(store)
        for _ in range(2):
            await store.outbox.append(message(1), lease=None, now=NOW, repeat=repeat)
        await self.counted(store, queued=1)

    async def test_what_was_given_up_by_its_caller_counts_all_the_same(self, store: Store) -> None:
        asyncio.ensure_future(store.outbox.append(message(1), lease=None, now=NOW)).cancel()
        waiting = asyncio.ensure_future(store.outbox.append(message(2), lease=None, now=NOW))
        await asyncio.sleep(0)  # it has handed its operation in
        waiting.cancel()
        await store.outbox.check()  # operations run in order
        await self.counted(store, queued=1)

    async def counted(self, store: Store, **expected: int) -> None:
        afresh = await store.history.census()
        kept = {state.value: count for state in (*WAITING, MessageState.IN_DOUBT) if (count := store.census.of(state))}
        assert kept == expected
        assert all(afresh.of(state) == expected.get(state.value, 0) for state in (*WAITING, MessageState.IN_DOUBT))
        assert store.census.waiting == sum(expected.values()) - expected.get("in_doubt", 0)
        of_profiles = [
            {
                (name, state): n
                for name in one.profiles
                for state in (*WAITING, MessageState.IN_DOUBT)
                if (n := one.of_profile(name, state))
            }
            for one in (store.census, afresh)
        ]
        assert of_profiles[0] == of_profiles[1]


class TestFailureCounts:
    """How often each reason came in the last 24 hours, in periods of ten minutes."""

    async def fail(
        self,
        store: Store,
        n: int = 1,
        *,
        at: datetime = NOW,
        reason: Reason = Reason.RECIPIENT_DEFERRED,
        claim: Claim | None = None,
    ) -> None:
        """Let an attempt that began `at` that time end in a failure; without `claim` of a new message number `n`."""
        failure = replace(FAILURE, reason=reason)
        claim = claim or await store.leased(message(n))
        await store.outbox.record(
            claim,
            replace(ended(claim, failure=failure), started_at=at),
            state=MessageState.DEFERRED,
            after=after(claim, RecipientState.PENDING, RecipientState.PENDING, failure=failure),
            failure=failure,
            next_attempt_at=NOW,
        )

    async def test_where_nothing_failed_nothing_is_counted(self, store: Store) -> None:
        await record_sent(store, await store.leased())
        assert await store.history.failures(now=NOW) == {}
        assert store.rows("SELECT * FROM failure_counts") == []

    async def test_attempts_are_counted_by_reason_and_not_messages_or_recipients(self, store: Store) -> None:
        await self.fail(store, 1)
        for _ in range(2):
            (again,) = await store.claimed()
            await self.fail(store, claim=again)
        await self.fail(store, 2, reason=Reason.AUTH_REJECTED)
        assert await store.history.failures(now=NOW) == {"recipient_deferred": 3, "auth_rejected": 1}
        assert len(store.rows("SELECT * FROM failure_counts")) == 2

    async def test_an_attempt_that_did_not_take_place_is_no_failure(self, store: Store) -> None:
        claim = await store.leased()
        await store.outbox.record(
            claim,
            None,
            state=MessageState.DEFERRED,
            after=after(claim, RecipientState.PENDING, RecipientState.PENDING, failure=FAILURE),
            failure=FAILURE,
            next_attempt_at=NOW,
        )
        assert await store.history.failures(now=NOW) == {}

    async def test_an_attempt_that_somebody_else_has_is_not_counted(self, store: Store) -> None:
        stale = replace(await store.leased(), lease=OTHER_LEASE)
        with pytest.raises(LeaseLost):
            await self.fail(store, claim=stale)
        assert await store.history.failures(now=NOW) == {}

    async def test_a_failure_counts_where_its_attempt_began_for_24_hours_to_ten_minutes(self, store: Store) -> None:
        await self.fail(store, at=NOW + timedelta(minutes=3))
        for later, count in (
            (timedelta(0), 1),
            (timedelta(hours=24, minutes=3), 1),
            (timedelta(hours=24, minutes=9, seconds=59), 1),
            (timedelta(hours=24, minutes=10), 0),
            (timedelta(days=400), 0),
        ):
            found = await store.history.failures(now=NOW + later)
            assert found == ({"recipient_deferred": count} if count else {}), later

    async def test_what_is_older_is_forgotten_so_that_the_table_stays_small(self, store: Store) -> None:
        three_days = (NOW + timedelta(minutes=10 * n) for n in range(3 * 24 * 6))
        await asyncio.gather(*(self.fail(store, n, at=at) for n, at in enumerate(three_days)))
        assert len(store.rows("SELECT * FROM failure_counts")) == 24 * 6 + 2
        now = NOW + timedelta(days=3) - timedelta(minutes=10)
        assert await store.history.failures(now=now) == {"recipient_deferred": 24 * 6 + 1}

    async def test_an_attempt_that_began_long_ago_harms_no_count(self, store: Store) -> None:
        """What a crash left yesterday is recorded today."""
        await self.fail(store, 1)
        await self.fail(store, 2, at=NOW - timedelta(days=3), reason=Reason.WORKER_CRASHED)
        assert await store.history.failures(now=NOW) == {"recipient_deferred": 1}
        await self.fail(store, 3)
        assert await store.history.failures(now=NOW) == {"recipient_deferred": 2}
        assert len(store.rows("SELECT * FROM failure_counts")) == 1

    async def test_a_neighbour_in_the_same_commit_that_fails_lets_nothing_count_twice(self, store: Store) -> None:
        claims = [await store.leased(message(n)) for n in range(4)]
        claims[2] = replace(claims[2], lease=OTHER_LEASE)
        commits = store.journal.commits
        with Gate().closed(store.journal):
            ends = [asyncio.ensure_future(self.fail(store, claim=claim)) for claim in claims]
            await asyncio.sleep(0)  # all are handed in
        said = await asyncio.gather(*ends, return_exceptions=True)
        assert [type(end) for end in said] == [type(None), type(None), LeaseLost, type(None)]
        assert store.journal.commits == commits + 2, "one for the gate, one for all the others"
        assert await store.history.failures(now=NOW) == {"recipient_deferred": 3}

    async def test_counts_survive_a_restart(self, opens: Callable[[], Store]) -> None:
        for n in (1, 2):
            store = opens()
            await store.journal.open()
            await self.fail(store, n)
            await close(store)
        store = opens()
        assert await store.history.failures(now=NOW) == {"recipient_deferred": 2}
        await store.reader.close()


class TestPlans:
    """What SQLite does for the statements it is really given: no walk over the table, no sort."""

    @pytest.fixture
    async def store(self, store: Store) -> Store:
        await store.appended(*(message(n, profile=f"p{n % 3}") for n in range(60)))
        store.statements.clear()
        return store

    def plans(self, store: Store, word: str) -> list[str]:
        """Give the plans of the statements with `word` in them."""
        statements = {sql for sql in store.statements if word in sql}
        assert statements, f"no statement with {word!r} among {store.statements}"
        with closing(sqlite3.connect(store.file)) as other:
            return [step for sql in statements for *_, step in other.execute(f"EXPLAIN QUERY PLAN {sql}").fetchall()]

    def assert_searches(self, store: Store, word: str, *through: str) -> None:
        steps = self.plans(store, word)
        assert not [step for step in steps if step.startswith("SCAN") or "TEMP B-TREE" in step], steps
        for index in through:
            assert [step for step in steps if index in step], steps

    async def test_a_claim_walks_the_due_index(self, store: Store) -> None:
        await store.claimed(profile="p1")
        self.assert_searches(store, "UPDATE messages", "messages_due (profile=? AND due_at")

    async def test_the_next_due_time_is_the_index_first_entry(self, store: Store) -> None:
        await store.claimed(profile="p1")
        self.assert_searches(store, "SELECT messages.due_at", "messages_due (profile=? AND due_at")

    async def test_mark_and_record_touch_one_row_by_its_key(self, store: Store) -> None:
        claim, *_ = await store.claimed(profile="p1")
        await store.outbox.mark(claim)
        await record_sent(store, claim)
        for word in ("UPDATE messages SET handover", "UPDATE messages SET state='sent'", "UPDATE recipients"):
            self.assert_searches(store, word, "PRIMARY KEY" if "recipients" in word else "messages")
        self.assert_searches(store, "UPDATE attempts", "(message_id=? AND number=?)")

    async def test_a_look_up_is_by_key(self, store: Store) -> None:
        await store.found(message(7).id)
        await store.history.attempts(message(7).id)
        await store.outbox.content(message(7).id)
        self.assert_searches(store, "FROM messages", "(id=?)")
        self.assert_searches(store, "FROM recipients", "(message_id=?)")
        self.assert_searches(store, "FROM attempts", "(message_id=?)")
        self.assert_searches(store, "FROM bodies", "(message_id=? AND part=?)")

    @pytest.mark.parametrize("before", [None, 40], ids=["first page", "further page"])
    async def test_the_newest_page_is_read_off_the_key(self, store: Store, before: int | None) -> None:
        await store.history.newest(at_most=20, before=None if before is None else message(before).id)
        self.assert_searches(store, "ORDER BY messages.id DESC", "(id>? AND id<?)")

    @pytest.mark.parametrize(
        ("which", "through"),
        [
            (Filter(profile="p1"), "messages_of_profile (profile=? AND id>? AND id<?)"),
            (Filter(sender="ann@ours.test"), "messages_of_sender (sender=? AND id>? AND id<?)"),
            (Filter(state="failed"), "messages_by_state (state=? AND id>? AND id<?)"),
            (Filter(state="sent"), "(id>? AND id<?)"),
            (Filter(error_code="EAUTH"), "messages_by_error (error_code=? AND id>? AND id<?)"),
            (
                Filter(recipient="bob@theirs.test"),
                "recipients_by_address (address=? AND message_id>? AND message_id<?)",
            ),
            (Filter(tag="vip"), "tags USING PRIMARY KEY (tag=? AND message_id>? AND message_id<?)"),
        ],
        ids=["profile", "sender", "state", "sent", "error", "recipient", "tag"],
    )
    async def test_the_newest_page_that_matches_has_an_index(self, store: Store, which: Filter, through: str) -> None:
        await store.history.newest(which, at_most=20)
        self.assert_searches(store, "LIMIT 20", through)

    @pytest.mark.parametrize("more", [Filter(), Filter(recipient="bob@theirs.test", tag="vip")], ids=["alone", "more"])
    async def test_a_search_walks_what_it_finds_from_the_newest(self, store: Store, more: Filter) -> None:
        await store.history.newest(replace(more, q='"hello"'), at_most=20)
        steps = self.plans(store, "MATCH")
        assert [step for step in steps if step.startswith("SCAN message_search VIRTUAL TABLE INDEX")], steps
        assert not [
            step for step in steps if "TEMP B-TREE" in step or (step.startswith("SCAN") and "VIRTUAL" not in step)
        ]

    async def test_what_is_not_indexed_yet_is_read_off_the_key(self, store: Store) -> None:
        await store.history.newest(Filter(q='"hello"'), at_most=20)
        steps = self.plans(store, "INSERT INTO message_search")
        assert [step for step in steps if "INTEGER PRIMARY KEY (rowid>?)" in step], steps
        assert not [step for step in steps if "TEMP B-TREE" in step], steps

    async def test_attempts_that_failed_have_an_index(self, store: Store) -> None:
        await store.history.newest_attempts(at_most=20, error_code="EAUTH")
        self.assert_searches(store, "FROM attempts", "attempts_by_error (error_code=?")

    async def test_what_a_crash_left_is_found_by_its_lease(self, store: Store) -> None:
        await store.outbox.interrupted()
        steps = self.plans(store, "lease_token IS NOT NULL")
        assert [step for step in steps if "messages_leased" in step], steps
        assert not [step for step in steps if step.startswith("SCAN messages") and "messages_leased" not in step], steps

    async def test_counts_are_found_by_their_period(self, store: Store) -> None:
        claim, *_ = await store.claimed(profile="p1")
        await record_deferred(store, claim, at=NOW)
        await store.history.failures(now=NOW)
        for word in ("SELECT failure_counts", "DELETE FROM failure_counts"):
            steps = self.plans(store, word)
            assert [step for step in steps if "SEARCH failure_counts USING PRIMARY KEY (period" in step], steps
            assert not [step for step in steps if step.startswith("SCAN")], steps

    async def test_a_start_counts_only_what_waits(self, store: Store) -> None:
        await store.history.census()
        await store.history.profiles_waiting()
        for word, index in (
            ("messages.state, count", "messages_due"),
            ("'in_doubt'", "messages_doubt"),
            ("DISTINCT", "messages_due"),
        ):
            steps = self.plans(store, word)
            assert not [step for step in steps if "messages" in step and index not in step], steps

    async def test_the_oldest_that_waits_is_found_without_a_count(self, store: Store) -> None:
        await store.history.oldest_waiting(["p1"], now=NOW)
        assert not [sql for sql in store.statements if "count(" in sql.lower()]
        self.assert_searches(store, "'deferred'", "messages_by_state (state=?")
        self.assert_searches(store, "due_at <=", "messages_due (profile=? AND due_at")
        steps = self.plans(store, "min(messages.created_at)")
        assert [step for step in steps if "messages_leased" in step], steps

    async def test_what_a_closed_circuit_lets_go_is_found_by_its_state(self, store: Store) -> None:
        await store.outbox.make_due("p1", now=NOW)
        await store.outbox.make_one_due("p1", now=NOW)
        self.assert_searches(store, "messages.id > x'", "messages_by_state (state=? AND id>?)")
        self.assert_searches(store, "messages.state = 'deferred' ORDER BY", "messages_due (profile=?")
