"""Group commit: whoever writes at the same time shares one COMMIT and one sync.

An operation is a generator that yields statements and is sent their results; it knows no connection, so the same
operation can run on another database's journal. The journal owns the one writing connection, in one thread: it
takes what has queued up, runs it between BEGIN IMMEDIATE (a deferred BEGIN that writes later fails at once with
SQLITE_BUSY_SNAPSHOT) and COMMIT, and answers each caller after the COMMIT that holds its operation. First come,
first written: operations run in the order in which they were handed in.

An operation that fails is taken out and the batch is run again without it: neighbours never fail. That is why an
operation is given as a function that makes the generator, and must have no effect but its statements.

A COMMIT can fail with all its frames in the log: where the sync failed, or the log's index could not grow. The next
start would find them and take them for committed, so they are overwritten before anybody hears that nothing was
taken. After a failed sync the journal is broken: it takes nothing more, and syncs nothing on trust, because the kernel
may have dropped what it could not write and will not say so twice. Only a new process can tell what the disk has.
"""

from __future__ import annotations

import asyncio
import os
import sqlite3
import threading
from collections.abc import Callable, Generator
from contextlib import suppress
from dataclasses import dataclass
from math import inf
from pathlib import Path
from queue import Empty, SimpleQueue
from time import monotonic
from typing import Any, TypeAlias, TypeVar

from sqlalchemy import ClauseElement

from app.mail.errors import StoreBroken, StoreUnavailable
from app.store.database import Lock, connect
from app.store.entry import Chore, End, Entry, answer, settle
from app.store.identity import Identity
from app.store.log import empty_log, overwrite, roll_back
from app.store.statements import Params, Statements

T = TypeVar("T")

MAX_BATCH = 256  # operations in one commit: bounds how long the first of them waits
LOG_BYTES = 64 << 20  # over which the log is cut short, and an operator is told
LOG_PATIENCE = 0.5  # seconds that writers wait for readers when the log is cut
PATIENCE = 6.0  # seconds that a caller waits for a write or a read; longer than for somebody else's lock
PROVE_AFTER = 2.0  # seconds without a write after which the disk proves that it takes one
_FAILED_SYNCS = (sqlite3.SQLITE_IOERR_FSYNC, sqlite3.SQLITE_IOERR_DIR_FSYNC)


@dataclass(frozen=True, slots=True)
class Result:
    """What a statement gave: its rows (RETURNING, SELECT), and how many rows it touched."""

    rows: list[tuple[Any, ...]]
    count: int


Operation: TypeAlias = Generator[tuple[ClauseElement, Params], Result, T]
MakeOperation: TypeAlias = Callable[[], Operation[T]]


class Journal:
    """The one writer. `open()` starts its thread, `close()` writes what is queued and ends it."""

    def __init__(self, database: Path, lock: Lock | None = None, *, clock: Callable[[], float] = monotonic) -> None:
        """Nothing is opened yet; a `lock` is held on to at each look. `clock` is monotonic, in seconds."""
        self._database = database
        self._lock = lock
        self._queue: SimpleQueue[Entry[Any] | Chore[Any] | End] = SimpleQueue()
        self._behind: Chore[Any] | End | None = None  # what came behind the batch that is being written
        self._loop = asyncio.get_running_loop()
        self._thread: threading.Thread | None = None
        self._opened: asyncio.Future[None] = self._loop.create_future()
        self._ended = threading.Event()
        self._statements = Statements()
        self._identity = Identity(database)
        self._numbered = 0  # commits when the file got its number
        self._clock = clock
        self._busy_since: float | None = None  # None = it waits for work
        self._proven = -inf  # when the disk took a write last
        self.fault = ""  # why it is broken
        self.broken = asyncio.Event()  # set when it takes nothing more, whatever comes
        self.commits = 0  # how many COMMITs there were, for the figures

    async def open(self) -> None:
        """Open the connection.

        Raises:
            StoreUnavailable: the file cannot be opened for writing.
        """
        self._thread = threading.Thread(target=self._run, name="journal", daemon=True)
        self._thread.start()
        try:
            await self._opened
        except BaseException:
            self._thread = None
            raise

    def commit(self, make: MakeOperation[T], then: Callable[[T], None] | None = None) -> asyncio.Future[T]:
        """Hand an operation in; the future is done after the COMMIT that holds it.

        `then` is told the result just before, in the event loop, whether or not anybody still waits for the future.

        It fails with what the operation raised, or with `StoreUnavailable` where the store could not take the
        write: then nothing of it was written; `StoreBroken` says that trying again is in vain. It must not be
        cancelled: what is handed in will be written.
        """
        future: asyncio.Future[T] = self._loop.create_future()
        if self._thread is None:
            future.set_exception(StoreUnavailable("the store is closed"))
        else:
            self._queue.put(Entry(make, future, then))
        return future

    async def commit_within(
        self,
        seconds: float,
        make: MakeOperation[T],
        then: Callable[[T], None] | None = None,
        *,
        is_probe: bool = False,
    ) -> T:
        """Hand an operation in that somebody waits for, and return its result after the COMMIT that holds it.

        After `seconds` it is taken back, and certainly not written. Only once its COMMIT has begun nobody can know:
        then this waits for the disk, however long, unless it `is_probe`, which may be written or not. So that something
        else finds out that a disk hangs, the journal first writes and syncs a transaction without a meaning, if it has
        not written for `PROVE_AFTER` seconds.

        Raises:
            StoreUnavailable: nothing was written; and what the operation raised.
        """
        if (since := self._busy_since) is not None and self._clock() - since > seconds:
            raise StoreUnavailable(f"the disk has not answered for {self._clock() - since:.0f} s")
        if self._thread is None:
            raise StoreUnavailable("the store is closed")
        future: asyncio.Future[T] = self._loop.create_future()
        entry = Entry(make, future, then, is_asked=True)
        self._queue.put(entry)
        late = self._loop.call_later(seconds, _take_back, entry, seconds, is_probe)
        try:
            return await future
        finally:
            late.cancel()

    def checkpoint(self) -> asyncio.Future[None]:
        """Bring the log into the file, as far as no reader needs it where it is; to be asked now and then.

        SQLite does so by itself every thousand pages, and keeps quiet about what fails then. That loses nothing (the
        pages are still in the log, and are written anew), but a sync that keeps failing must not stay unknown. And
        it never starts a log again while somebody reads in it: under readers that overlap, the log would grow for
        ever. One of over `LOG_BYTES` is therefore cut, once those who read now have ended.

        The future fails with `StoreUnavailable` where that could not be done; whatever was committed is safe.
        """
        return self._tidy(self._bring_back)

    def look(self) -> asyncio.Future[None]:
        """Compare the path with the files that are open; the future fails, as every commit does, where they differ."""
        return self._tidy(self._look)

    def fold(self) -> asyncio.Future[bool]:
        """Write the log into the file, and empty it; False = somebody still reads in it, which no mail waits for.

        Deleted data stays in the log until then. The future fails as that of `checkpoint` does.
        """
        return self._tidy(self._fold)

    def vacuum(self) -> asyncio.Future[None]:
        """Write the whole file anew, without what is unused, while all that writes waits; takes its size again, twice.

        The future fails with `StoreUnavailable` where there is no room.
        """
        os.environ["SQLITE_TMPDIR"] = str(self._database.absolute().parent)  # mail lies nowhere else, and there it may
        return self._tidy(lambda connection: connection.execute("VACUUM").close())

    @property
    def is_spoilt(self) -> bool:
        return self._identity.is_spoilt

    @property
    def log_bytes(self) -> int:
        """How large the log was at the last look, a COMMIT's included; asks no disk, which may hang."""
        return self._identity.log_bytes

    def _tidy(self, do: Callable[[sqlite3.Connection], T]) -> asyncio.Future[T]:
        future: asyncio.Future[T] = self._loop.create_future()
        if self._thread is None:
            future.set_exception(StoreUnavailable("the store is closed"))
        else:
            self._queue.put(Chore(do, future))
        return future

    async def close(self) -> None:
        """Write what was handed in, then close; idempotent. Waits for the disk: the lock is let go after this."""
        thread, self._thread = self._thread, None
        if thread is not None:
            self._queue.put(End())
            await asyncio.to_thread(self._ended.wait)

    # in the journal's thread from here on

    def _run(self) -> None:
        try:
            connection = self._connect()
        except sqlite3.Error as error:
            unavailable = StoreUnavailable(f"the store cannot be opened: {error}")
            self._loop.call_soon_threadsafe(self._opened.set_exception, unavailable)
            return
        self._loop.call_soon_threadsafe(self._opened.set_result, None)
        try:
            while not isinstance(item := self._behind or self._queue.get(), End):
                self._behind = None
                self._busy_since = self._clock()
                self._work(connection, item)
        finally:
            is_closed = self._identity.close(connection)
            self._ended.set()
            if not is_closed:  # nor may the end of this process close it
                threading.Event().wait()

    def _work(self, connection: sqlite3.Connection, item: Entry[Any] | Chore[Any]) -> None:
        if isinstance(item, Chore):
            self._carry_out(connection, item)
            return
        batch = [entry for entry in self._collect(item) if not entry.is_taken_back]
        why = ""
        if any(entry.is_asked for entry in batch) and self._clock() - self._proven > PROVE_AFTER:
            why = self._prove(connection)
        if self.fault or why:
            self._refuse(batch, why)
        else:
            self._write(connection, batch)
        self._busy_since = None
        self._loop.call_soon_threadsafe(answer, batch)

    def _prove(self, connection: sqlite3.Connection) -> str:
        """Have the disk take something that no caller waits for; return why nothing can be done now, if it is known."""
        try:
            if not self._lost(connection):
                self._number(connection)
                self._proven = self._clock()
        except sqlite3.Error as error:
            self._look_at(error)
            if (
                getattr(error, "sqlite_errorcode", None) == sqlite3.SQLITE_BUSY
            ):  # what only reads would wait for the lock, too
                return f"the store did not take the write: {error}"
        return ""

    def _connect(self) -> sqlite3.Connection:
        """Open the file and its log, and number the file, unless it cannot be written now."""
        connection = connect(self._database, read_only=False)
        try:
            connection.execute("SELECT 1 FROM sqlite_master LIMIT 1").fetchone()
            self._identity.opened(connection)
            with suppress(sqlite3.Error):
                self._number(connection)
                connection.execute("PRAGMA wal_checkpoint(PASSIVE)").fetchone()
                self._identity.checkpointed()
        except BaseException:
            connection.close()
            raise
        return connection

    def _number(self, connection: sqlite3.Connection) -> None:
        connection.execute(self._identity.next_generation())
        self._numbered = self.commits

    def _collect(self, first: Entry[Any]) -> list[Entry[Any]]:
        batch = [first]
        with suppress(Empty):
            while len(batch) < MAX_BATCH:
                item = self._queue.get_nowait()
                if not isinstance(item, Entry):
                    self._behind = item
                    break
                batch.append(item)
        return batch

    def _carry_out(self, connection: sqlite3.Connection, chore: Chore[Any]) -> None:
        result, error = None, None
        try:
            if self.fault:
                raise StoreBroken(self.fault)
            if chore.do != self._look and (lost := self._lost(connection)):
                raise StoreUnavailable(lost)
            result = chore.do(connection)
        except StoreUnavailable as fault:
            error = fault
        except (sqlite3.Error, OSError) as fault:
            self._look_at(fault)
            error = StoreUnavailable(f"the store cannot be tidied up: {fault}")
        self._busy_since = None
        self._loop.call_soon_threadsafe(settle, chore.future, result, error)

    def _look(self, _: sqlite3.Connection) -> None:
        if lost := self._identity.look(self._lock.keep() if self._lock is not None else ""):
            raise StoreUnavailable(lost)

    def _bring_back(self, connection: sqlite3.Connection) -> None:
        if self.commits != self._numbered:
            self._number(connection)
        is_empty = False
        if self.log_bytes <= LOG_BYTES:
            connection.execute("PRAGMA wal_checkpoint(PASSIVE)").fetchone()
        else:
            is_empty = empty_log(connection, patience=LOG_PATIENCE)
        self._identity.checkpointed(is_log_empty=is_empty)

    def _fold(self, connection: sqlite3.Connection) -> bool:
        self._number(connection)
        is_empty = empty_log(connection, patience=0.0)
        self._identity.checkpointed(is_log_empty=is_empty)
        return is_empty

    def _write(self, connection: sqlite3.Connection, batch: list[Entry[Any]]) -> None:
        going = batch
        while going:
            is_ending, changes = False, connection.total_changes
            try:
                connection.execute("BEGIN IMMEDIATE")
                failed = self._run_all(connection, going)
                if failed is None and not self._identity.check() and all(entry.begin() for entry in going):
                    is_ending = True
                    connection.execute("COMMIT")
                    self._committed(has_changed=connection.total_changes != changes)
                    return
                connection.execute("ROLLBACK")
                if lost := self._lost(connection):
                    self._refuse(going, lost)
                    return
                going = [entry for entry in going if entry is not failed and not entry.is_taken_back]
            except sqlite3.Error as error:
                roll_back(connection)
                if is_ending:
                    overwrite(connection, self._identity.next_generation())
                self._look_at(error)
                self._refuse(going, self._lost(connection) or f"the store did not take the write: {error}")
                return

    def _committed(self, *, has_changed: bool) -> None:
        self.commits += 1
        if has_changed:
            self._identity.committed()
            self._proven = self._clock()

    def _lost(self, connection: sqlite3.Connection) -> str:
        """Say what is wrong with the file's name, "" if nothing is; outside of a transaction."""
        return self._identity.check() and self._identity.confirm(connection)

    def _refuse(self, batch: list[Entry[Any]], why: str = "") -> None:
        for entry in batch:
            entry.error = StoreBroken(self.fault) if self.fault else StoreUnavailable(why)

    def _look_at(self, error: Exception) -> None:
        """See whether anything can be written after this."""
        if getattr(error, "sqlite_errorcode", None) in _FAILED_SYNCS:
            self.fault = f"the disk did not keep what was written ({error}); nothing more is taken"
            self._loop.call_soon_threadsafe(self.broken.set)

    def _run_all(self, connection: sqlite3.Connection, batch: list[Entry[Any]]) -> Entry[Any] | None:
        """Run every operation; give the first that failed, if one did.

        An error of the whole database (disk full, locked) is no operation's own, and comes out. A damaged page is
        the own error of whoever needs it.
        """
        cursor = connection.cursor()
        for entry in batch:
            try:
                entry.result = self._run_one(cursor, entry.make())
            except sqlite3.OperationalError:
                raise
            except sqlite3.DatabaseError as error:
                is_damage = type(error) is sqlite3.DatabaseError
                entry.error = StoreUnavailable(f"the store is damaged: {error}") if is_damage else error
                return entry
            except Exception as error:  # noqa: BLE001 (whatever it is, it is that caller's)
                entry.error = error
                return entry
        return None

    def _run_one(self, cursor: sqlite3.Cursor, operation: Operation[T]) -> T:
        result: Result | None = None
        run = self._statements.run
        try:
            while True:
                statement, params = next(operation) if result is None else operation.send(result)
                run(cursor, statement, params)
                result = Result(cursor.fetchall() if cursor.description else [], cursor.rowcount)
        except StopIteration as end:
            value: T = end.value
            return value


def _take_back(entry: Entry[Any], seconds: float, is_probe: bool) -> None:  # noqa: FBT001 (call_later's)
    if (entry.take_back() or is_probe) and not entry.future.done():
        entry.future.set_exception(StoreUnavailable(f"the disk did not take the write within {seconds:g} s"))
