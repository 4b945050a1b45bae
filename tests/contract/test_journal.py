"""Group commit: one COMMIT for many, in order, neighbours never fail, and no answer before the COMMIT.

The batches are made by a gate: an operation that holds the journal's thread until the test lets it go, so that
all that is handed in meanwhile must share the next COMMIT.
"""

import asyncio
import sqlite3
import threading
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import closing, contextmanager, suppress
from pathlib import Path
from time import monotonic

import pytest
from sqlalchemy import Column, Integer, MetaData, Table, Text, bindparam, delete, func, insert, select, text

from app.mail.errors import LeaseLost, StoreUnavailable
from app.store.database import BUSY_SECONDS, connect
from app.store.journal import MAX_BATCH, PROVE_AFTER, Journal, Operation

PATIENCE = 5.0  # seconds a gate waits before the test fails

notes = Table("notes", MetaData(), Column("at", Integer, primary_key=True), Column("note", Text, unique=True))
INSERT = insert(notes).values(note=bindparam("note"))


def write(note: str) -> Callable[[], Operation[str]]:
    def operation() -> Operation[str]:
        yield INSERT, {"note": note}
        return note

    return operation


class Gate:
    """An operation that stands in the journal's thread: after its own statement if it has one to write."""

    def __init__(self, note: str | None = None) -> None:
        self.reached, self.opened = threading.Event(), threading.Event()
        self._note = note

    def __call__(self) -> Operation[None]:
        if self._note is not None:
            yield INSERT, {"note": self._note}
        self.reached.set()
        assert self.opened.wait(PATIENCE), "nobody opened the gate"

    @contextmanager
    def closed(self, journal: Journal) -> Iterator[asyncio.Future[None]]:
        """Hold the journal inside the block; gives the gate's own future."""
        future = journal.commit(self)
        assert self.reached.wait(PATIENCE), "the journal did not come to the gate"
        try:
            yield future
        finally:
            self.opened.set()


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "journal.db"
    connection = sqlite3.connect(path)
    connection.execute("CREATE TABLE notes (at INTEGER PRIMARY KEY, note TEXT UNIQUE)")
    connection.close()
    return path


@pytest.fixture
async def journal(file: Path) -> AsyncIterator[Journal]:
    journal = Journal(file)
    await journal.open()
    yield journal
    await journal.close()


@pytest.fixture
def other(file: Path) -> Iterator[sqlite3.Connection]:
    """Another connection, as another reader or writer would have one; it does not wait for locks."""
    connection = sqlite3.connect(file, timeout=0, isolation_level=None)
    yield connection
    connection.close()


def written(other: sqlite3.Connection) -> list[str]:
    return [note for (note,) in other.execute("SELECT note FROM notes ORDER BY at")]


class TestGroups:
    async def test_many_operations_share_few_commits(self, journal: Journal, other: sqlite3.Connection) -> None:
        with Gate().closed(journal):
            many = [journal.commit(write(f"{n}")) for n in range(200)]
        assert await asyncio.gather(*many) == [f"{n}" for n in range(200)]
        assert journal.commits == 2, "one for the gate and one for all that came meanwhile"
        assert len(written(other)) == 200

    async def test_a_commit_holds_a_bounded_number_of_operations(self, journal: Journal) -> None:
        with Gate().closed(journal):
            many = [journal.commit(write(f"{n}")) for n in range(2 * MAX_BATCH + 1)]
        await asyncio.gather(*many)
        assert journal.commits == 1 + 3

    async def test_an_operation_alone_does_not_wait_for_others(self, journal: Journal) -> None:
        for n in range(3):
            await journal.commit(write(f"{n}"))
        assert journal.commits == 3

    async def test_what_comes_first_is_written_first(self, journal: Journal, other: sqlite3.Connection) -> None:
        with Gate().closed(journal):
            many = [journal.commit(write(f"{n}")) for n in range(100)]
        later = [journal.commit(write(f"{n}")) for n in range(100, 110)]
        await asyncio.gather(*many, *later)
        assert written(other) == [f"{n}" for n in range(110)]

    async def test_an_operation_sees_what_its_neighbours_before_it_wrote(self, journal: Journal) -> None:
        def count() -> Operation[int]:
            found = yield select(func.count()).select_from(notes), {}
            return int(found.rows[0][0])

        with Gate().closed(journal):
            many = journal.commit(write("a")), journal.commit(count), journal.commit(write("b"))
        assert list(await asyncio.gather(*many)) == ["a", 1, "b"]

    async def test_a_statement_gives_its_rows_and_how_many_it_touched(self, journal: Journal) -> None:
        def operation() -> Operation[tuple[int, int, list[tuple[object, ...]]]]:
            several = yield INSERT, [{"note": "a"}, {"note": "b"}]
            renamed = yield notes.update().where(notes.c.at > 1).values(note="c").returning(notes.c.note), {}
            nothing = yield notes.delete().where(notes.c.at > 2), {}
            return several.count, nothing.count, renamed.rows

        assert await journal.commit(operation) == (2, 0, [("c",)])


class TestFailures:
    @pytest.mark.parametrize("place", [0, 1, 2], ids=["first", "amid", "last"])
    async def test_an_operation_that_raises_is_taken_out_and_its_neighbours_pass(
        self, journal: Journal, other: sqlite3.Connection, place: int
    ) -> None:
        def fails() -> Operation[str]:
            yield INSERT, {"note": "half"}
            raise LeaseLost("not ours")

        makes = [write("a"), write("b")]
        makes.insert(place, fails)
        with Gate().closed(journal):
            ends = asyncio.gather(*(journal.commit(make) for make in makes), return_exceptions=True)
        *_, failed = sorted(await ends, key=lambda end: isinstance(end, Exception))
        assert isinstance(failed, LeaseLost)
        assert written(other) == ["a", "b"]
        assert journal.commits == 2

    async def test_a_statement_that_the_schema_refuses_fails_its_operation_alone(
        self, journal: Journal, other: sqlite3.Connection
    ) -> None:
        with Gate().closed(journal):
            first, twice, after = (journal.commit(write(note)) for note in ("same", "same", "other"))
        assert await first == "same"
        with pytest.raises(sqlite3.IntegrityError):
            await twice
        assert await after == "other"
        assert written(other) == ["same", "other"]

    async def test_each_of_several_failures_goes_to_its_own_caller(
        self, journal: Journal, other: sqlite3.Connection
    ) -> None:
        def fails(why: str) -> Callable[[], Operation[None]]:
            def operation() -> Operation[None]:
                yield INSERT, {"note": why}
                raise LeaseLost(why)

            return operation

        with Gate().closed(journal):
            ends = [journal.commit(fails(f"{n}")) for n in range(5)]
            between = journal.commit(write("good"))
        for n, end in enumerate(ends):
            with pytest.raises(LeaseLost, match=f"{n}"):
                await end
        assert await between == "good"
        assert written(other) == ["good"]

    async def test_a_caller_that_went_away_harms_nobody_and_its_write_is_made(
        self, journal: Journal, other: sqlite3.Connection
    ) -> None:
        with Gate().closed(journal):
            gone, stays = journal.commit(write("gone")), journal.commit(write("stays"))
            gone.cancel()
        assert await stays == "stays"
        assert written(other) == ["gone", "stays"]


class TestUnavailable:
    async def test_a_locked_database_is_unavailable_and_nothing_is_written(
        self, file: Path, other: sqlite3.Connection, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr("app.store.database.BUSY_SECONDS", 0.02)
        journal = Journal(file)
        await journal.open()
        other.execute("BEGIN IMMEDIATE")
        ends = await asyncio.gather(*(journal.commit(write(f"{n}")) for n in range(3)), return_exceptions=True)
        assert [type(end) for end in ends] == [StoreUnavailable] * 3
        assert "locked" in str(ends[0])
        other.execute("ROLLBACK")
        assert await journal.commit(write("after")) == "after", "the journal goes on when the lock is gone"
        assert written(other) == ["after"]
        await journal.close()

    async def test_a_full_disk_is_unavailable_and_nothing_is_written(
        self, journal: Journal, other: sqlite3.Connection
    ) -> None:
        def limit(pages: int) -> Callable[[], Operation[None]]:
            def operation() -> Operation[None]:
                yield text(f"PRAGMA max_page_count = {pages}"), {}

            return operation

        await journal.commit(limit(1))  # SQLite's own name for a disk that has no more room
        with Gate().closed(journal):
            small, large = journal.commit(write("small")), journal.commit(write("x" * 100_000))
        for end in (small, large):
            with pytest.raises(StoreUnavailable, match="full"):
                await end
        assert written(other) == []
        await journal.commit(limit(1000))
        assert await journal.commit(write("after")) == "after"

    async def test_a_damaged_page_fails_only_who_needs_it(self, file: Path) -> None:
        with closing(sqlite3.connect(file, isolation_level=None)) as damaging:
            damaging.execute("CREATE TABLE others (x)")
            damaging.execute("INSERT INTO others VALUES (1)")
            (page,) = damaging.execute("SELECT rootpage FROM sqlite_master WHERE name = 'others'").fetchone()
        content = bytearray(file.read_bytes())
        content[(page - 1) * 4096 : page * 4096] = b"\xff" * 4096
        file.write_bytes(content)

        def needs_it() -> Operation[None]:
            yield text("INSERT INTO others VALUES (2)"), {}

        journal = Journal(file)
        await journal.open()
        with Gate().closed(journal):
            before, needing, after = journal.commit(write("a")), journal.commit(needs_it), journal.commit(write("b"))
        assert (await before, await after) == ("a", "b")
        with pytest.raises(StoreUnavailable, match="damaged"):
            await needing
        await journal.close()

    @pytest.mark.parametrize("what", ["a folder", "in no folder", "not a database"])
    async def test_a_file_that_cannot_be_opened_is_unavailable(self, tmp_path: Path, what: str) -> None:
        path = tmp_path / "journal.db"
        match what:
            case "a folder":
                path.mkdir()
            case "in no folder":
                path = tmp_path / "none" / "journal.db"
            case _:
                path.write_text("this is no database, it is a text of some length" * 20)
        journal = Journal(path)
        with pytest.raises(StoreUnavailable, match="cannot be opened"):
            await journal.open()
        await journal.close()

    async def test_a_journal_that_was_not_opened_refuses(self, file: Path) -> None:
        with pytest.raises(StoreUnavailable):
            await Journal(file).commit(write("too early"))

    async def test_a_journal_that_could_not_open_refuses(self, tmp_path: Path) -> None:
        journal = Journal(tmp_path)
        with suppress(StoreUnavailable):
            await journal.open()
        async with asyncio.timeout(1):
            with pytest.raises(StoreUnavailable):
                await journal.commit(write("never"))
        await journal.close()


class TestDurability:
    async def test_there_is_no_answer_before_the_commit(self, journal: Journal, other: sqlite3.Connection) -> None:
        with Gate("held").closed(journal) as held:
            await asyncio.sleep(0)
            assert not held.done()
            assert written(other) == []
        await held
        assert written(other) == ["held"]

    async def test_an_answer_finds_its_row_committed(self, journal: Journal, other: sqlite3.Connection) -> None:
        seen: list[bool] = []
        with Gate().closed(journal):
            many = [journal.commit(write(f"{n}")) for n in range(20)]
            for n, future in enumerate(many):
                future.add_done_callback(lambda _, n=n: seen.append(f"{n}" in written(other)))  # type: ignore[misc]
        await asyncio.gather(*many)
        await asyncio.sleep(0)  # the callbacks of the last
        assert seen == [True] * 20

    async def test_the_write_lock_is_taken_before_the_first_statement(
        self, journal: Journal, other: sqlite3.Connection
    ) -> None:
        with Gate().closed(journal), pytest.raises(sqlite3.OperationalError, match="locked"):
            other.execute("BEGIN IMMEDIATE")

    async def test_readers_are_not_held_up_by_a_write(self, journal: Journal, other: sqlite3.Connection) -> None:
        await journal.commit(write("before"))
        with Gate("under way").closed(journal):
            assert written(other) == ["before"]


class Overlapping:
    """Readers of whom there is always one: each ends when the next has begun."""

    def __init__(self, file: Path, threads: int = 2) -> None:
        self._file = file
        self._turns = [threading.Event() for _ in range(threads)]
        self._turns[0].set()
        self._is_over = False
        self._threads = [threading.Thread(target=self._run, args=(n,)) for n in range(threads)]
        self.reads = 0

    def __enter__(self) -> "Overlapping":
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._is_over = True
        for turn in self._turns:
            turn.set()
        for thread in self._threads:
            thread.join()

    def _run(self, number: int) -> None:
        mine, next_ = self._turns[number], self._turns[(number + 1) % len(self._turns)]
        with closing(sqlite3.connect(self._file, isolation_level=None)) as connection:
            while not self._is_over:
                mine.wait(PATIENCE)
                mine.clear()
                connection.execute("BEGIN")
                connection.execute("SELECT count(*) FROM notes").fetchone()
                self.reads += 1
                next_.set()
                mine.wait(PATIENCE)
                connection.execute("COMMIT")


class TestLog:
    async def test_it_is_brought_into_the_file(self, file: Path, journal: Journal) -> None:
        await journal.commit(write("x" * 100_000))
        before = file.stat().st_size
        await journal.checkpoint()
        assert file.stat().st_size > before + 100_000

    async def test_readers_that_overlap_do_not_let_it_grow_for_ever(
        self, file: Path, journal: Journal, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr("app.store.journal.LOG_BYTES", limit := 200_000)
        largest = 0
        with Overlapping(file) as readers:
            for n in range(20):
                for m in range(10):
                    await journal.commit(write(f"{n}.{m}" + "x" * 10_000))
                largest = max(largest, journal.log_bytes)
                await journal.checkpoint()
        assert readers.reads > 20
        assert limit < largest < 5 * limit, "two megabytes were written"

    async def test_a_stray_reader_that_never_ends_holds_up_nobody(
        self, journal: Journal, other: sqlite3.Connection, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr("app.store.journal.LOG_BYTES", 50_000)
        monkeypatch.setattr("app.store.journal.LOG_PATIENCE", 0.02)
        await journal.commit(write("before"))
        other.execute("BEGIN")
        assert written(other) == ["before"]
        await journal.commit(write("x" * 100_000))
        await journal.checkpoint()
        assert journal.log_bytes > 100_000, "which is what an operator is told"
        assert await journal.commit(write("after")) == "after"
        other.execute("COMMIT")
        await journal.checkpoint()
        assert journal.log_bytes == 0

    async def test_a_closed_journal_has_none_to_bring(self, journal: Journal) -> None:
        await journal.close()
        with pytest.raises(StoreUnavailable, match="closed"):
            await journal.checkpoint()


class TestClose:
    async def test_close_writes_what_was_handed_in(self, journal: Journal, other: sqlite3.Connection) -> None:
        with Gate().closed(journal):
            many = [journal.commit(write(f"{n}")) for n in range(MAX_BATCH + 10)]
            closing = asyncio.create_task(journal.close())
            await asyncio.sleep(0)
        await closing
        assert all(future.done() for future in many)
        assert await asyncio.gather(*many) == written(other)

    async def test_a_closed_journal_refuses(self, journal: Journal, other: sqlite3.Connection) -> None:
        await journal.close()
        with pytest.raises(StoreUnavailable, match="closed"):
            await journal.commit(write("too late"))
        assert written(other) == []

    async def test_closing_twice_is_closing_once(self, journal: Journal) -> None:
        await journal.close()
        await journal.close()


async def test_the_log_is_emptied_unless_somebody_reads_in_it_and_nobody_waits_for_them(
    journal: Journal, file: Path
) -> None:
    log = file.with_name(file.name + "-wal")
    await journal.commit(write("one"))
    with closing(sqlite3.connect(file, isolation_level=None)) as reader:
        reader.execute("BEGIN")
        reader.execute("SELECT * FROM notes").fetchall()
        await journal.commit(write("two"))
        async with asyncio.timeout(BUSY_SECONDS / 2):
            assert not await journal.fold()
        assert log.stat().st_size > 0
    assert await journal.fold()
    assert log.stat().st_size == 0
    await journal.commit(write("three"))
    assert await journal.fold()


async def test_a_vacuum_gives_back_what_is_unused(journal: Journal, file: Path) -> None:
    await journal.commit(write("x" * 1_000_000))
    await journal.commit(forget)
    await journal.fold()
    before = file.stat().st_size
    await journal.vacuum()
    await journal.fold()
    assert file.stat().st_size < before - 900_000
    assert await journal.commit(write("one")) == "one"


async def test_a_closed_journal_neither_empties_its_log_nor_vacuums(journal: Journal) -> None:
    await journal.close()
    for refused in (journal.fold(), journal.vacuum()):
        with pytest.raises(StoreUnavailable, match="closed"):
            await refused


def forget() -> Operation[None]:
    yield delete(notes), {}


class Hanging:
    """A disk that hangs: from `close()` to `open()` the journal's thread stands in the first statement with `word`."""

    def __init__(self, word: str) -> None:
        self._word = word
        self._may_go_on, self.reached = threading.Event(), threading.Event()
        self._may_go_on.set()

    def close(self) -> None:
        self._may_go_on.clear()

    def open(self) -> None:
        self._may_go_on.set()

    def connect(self, file: Path, *, read_only: bool) -> sqlite3.Connection:
        connection = connect(file, read_only=read_only)
        connection.set_trace_callback(self._stand)
        return connection

    def _stand(self, statement: str) -> None:
        if self._word in statement and not self._may_go_on.is_set():
            self.reached.set()
            assert self._may_go_on.wait(PATIENCE), "nobody mended the disk"


@pytest.fixture
def hanging(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Iterator[Hanging]:
    disk = Hanging(request.param)
    monkeypatch.setattr("app.store.journal.connect", disk.connect)
    yield disk
    disk.open()


class Clock:
    """A monotonic clock that a test puts on."""

    def __init__(self) -> None:
        self.ahead = 0.0

    def __call__(self) -> float:
        return monotonic() + self.ahead


class TestADiskThatHangs:
    SOON = 0.05  # seconds

    async def test_what_waits_behind_is_taken_back_and_never_written(
        self, journal: Journal, other: sqlite3.Connection
    ) -> None:
        with Gate("first").closed(journal) as first:
            answers = await asyncio.gather(
                *(journal.commit_within(self.SOON, write(f"{n}")) for n in range(5)), return_exceptions=True
            )
            waits = journal.commit(write("not asked for"))
        assert [type(answer) for answer in answers] == [StoreUnavailable] * 5
        assert "did not take the write within 0.05 s" in str(answers[0])
        await asyncio.gather(first, waits)
        assert written(other) == ["first", "not asked for"]

    async def test_what_has_run_and_is_not_committed_is_taken_back_and_its_neighbours_are_written(
        self, journal: Journal, other: sqlite3.Connection
    ) -> None:
        gate = Gate("taken back")
        with Gate().closed(journal):
            asked = asyncio.create_task(journal.commit_within(0.2, gate))
            await asyncio.sleep(0)
            neighbour = journal.commit(write("neighbour"))
        with pytest.raises(StoreUnavailable):
            await asked
        gate.opened.set()
        assert await neighbour == "neighbour"
        assert written(other) == ["neighbour"]

    @pytest.mark.parametrize("hanging", ["COMMIT"], indirect=True)
    async def test_nobody_is_told_that_nothing_was_taken_once_its_commit_has_begun(
        self, file: Path, hanging: Hanging, other: sqlite3.Connection
    ) -> None:
        journal = Journal(file)
        await journal.open()
        assert await journal.commit_within(PATIENCE, write("before")) == "before"
        hanging.close()
        in_it = asyncio.create_task(journal.commit_within(self.SOON, write("in its commit")))
        await asyncio.to_thread(hanging.reached.wait, PATIENCE)
        with pytest.raises(StoreUnavailable):  # which waits behind
            await journal.commit_within(4 * self.SOON, write("behind"))
        assert not in_it.done()
        hanging.open()
        assert await in_it == "in its commit"
        await journal.close()
        assert written(other) == ["before", "in its commit"]

    @pytest.mark.parametrize("hanging", ["COMMIT"], indirect=True)
    async def test_a_probe_does_not_wait_whether_or_not_it_is_written(self, file: Path, hanging: Hanging) -> None:
        journal = Journal(file)
        await journal.open()
        hanging.close()
        with pytest.raises(StoreUnavailable):
            await journal.commit_within(self.SOON, write("probe"), is_probe=True)
        hanging.open()
        await journal.close()

    @pytest.mark.parametrize("hanging", ["PRAGMA user_version = "], indirect=True)
    async def test_after_a_pause_the_disk_proves_itself_before_it_is_given_what_somebody_waits_for(
        self, file: Path, hanging: Hanging, other: sqlite3.Connection
    ) -> None:
        clock = Clock()
        journal = Journal(file, clock=clock)
        await journal.open()
        assert await journal.commit_within(PATIENCE, write("before")) == "before"
        hanging.close()
        assert await journal.commit_within(PATIENCE, write("at once")) == "at once", "it has just proved itself"
        clock.ahead += PROVE_AFTER
        assert await journal.commit(write("unasked")) == "unasked", "nobody waits for an answer"
        clock.ahead += PROVE_AFTER + 1
        with pytest.raises(StoreUnavailable):
            await journal.commit_within(self.SOON, write("taken back"))
        hanging.open()
        assert await journal.commit(write("after")) == "after"
        await journal.close()
        assert written(other) == ["before", "at once", "unasked", "after"]

    async def test_while_it_hangs_nothing_more_is_handed_in(self, file: Path, other: sqlite3.Connection) -> None:
        clock = Clock()
        journal = Journal(file, clock=clock)
        await journal.open()
        with Gate("first").closed(journal) as first:
            clock.ahead += 60
            with pytest.raises(StoreUnavailable, match="has not answered for 60 s"):
                await journal.commit_within(30, write("refused at once"))
        await first
        assert await journal.commit_within(30, write("second")) == "second"
        await journal.close()
        assert written(other) == ["first", "second"]
