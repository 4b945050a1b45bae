"""Group commit: whoever writes at the same time shares one COMMIT and one sync.

An operation is a generator that yields statements and is sent their results; it knows no connection, so the same
operation can run on another database's journal. The journal owns the one writing connection, in one thread: it
takes what has queued up, runs it between BEGIN IMMEDIATE (a deferred BEGIN that writes later fails at once with
SQLITE_BUSY_SNAPSHOT) and COMMIT, and answers each caller after the COMMIT that holds its operation. First come,
first written: operations run in the order in which they were handed in.

An operation that fails is taken out and the batch is run again without it: neighbours never fail. That is why an
operation is given as a function that makes the generator, and must have no effect but its statements.
"""

from __future__ import annotations

import asyncio
import os
import sqlite3
import threading
from collections.abc import Callable, Generator, Mapping, Sequence
from dataclasses import dataclass
from operator import itemgetter
from pathlib import Path
from queue import Empty, SimpleQueue
from typing import Any, Generic, TypeAlias, TypeVar, cast

from sqlalchemy import ClauseElement
from sqlalchemy.dialects import sqlite
from sqlalchemy.sql.compiler import SQLCompiler

from app.mail.errors import StoreUnavailable
from app.store.database import connect

T = TypeVar("T")
Params: TypeAlias = dict[str, Any] | Sequence[dict[str, Any]]
_InOrder: TypeAlias = Callable[[Mapping[str, Any]], tuple[Any, ...]]

MAX_BATCH = 256  # operations in one commit: bounds how long the first of them waits


@dataclass(frozen=True, slots=True)
class Result:
    """What a statement gave: its rows (RETURNING, SELECT), and how many rows it touched."""

    rows: list[tuple[Any, ...]]
    count: int


Operation: TypeAlias = Generator[tuple[ClauseElement, Params], Result, T]
MakeOperation: TypeAlias = Callable[[], Operation[T]]


class Statements:
    """SQLAlchemy expressions as SQLite's text, compiled once each. One a connection; no locking.

    Parameters go by position: SQLite looks a named one up by its name at every execution, at twice the cost.
    """

    def __init__(self) -> None:
        self._dialect = sqlite.dialect(paramstyle="qmark")
        self._known: dict[ClauseElement, tuple[str, Mapping[str, Any], _InOrder]] = {}

    def run(self, cursor: sqlite3.Cursor, statement: ClauseElement, params: Params) -> None:
        """Execute a statement once, or once for each of a list of parameters."""
        text, fixed, in_order = self._known.get(statement) or self._compile(statement)
        if isinstance(params, dict):
            cursor.execute(text, in_order({**fixed, **params} if fixed else params))
        else:
            cursor.executemany(text, [in_order({**fixed, **each} if fixed else each) for each in params])

    def _compile(self, statement: ClauseElement) -> tuple[str, Mapping[str, Any], _InOrder]:
        compiled = cast("SQLCompiler", statement.compile(dialect=self._dialect))
        constants = {n: v for n, v in compiled.params.items() if not compiled.binds[n].required}
        known = self._known[statement] = str(compiled), constants, _in_order(compiled.positiontup or [])
        return known


def _in_order(names: Sequence[str]) -> _InOrder:
    if len(names) > 1:
        return itemgetter(*names)
    return lambda params: tuple(params[name] for name in names)


@dataclass(slots=True)
class _Entry(Generic[T]):
    make: MakeOperation[T]
    future: asyncio.Future[T]
    behind: Callable[[sqlite3.Connection], T] | None = None  # done behind the COMMIT, in no transaction
    result: T | None = None
    error: BaseException | None = None


class Journal:
    """The one writer. `open()` starts its thread, `close()` writes what is queued and ends it."""

    def __init__(self, database: Path) -> None:
        self._database = database
        self._queue: SimpleQueue[_Entry[Any] | None] = SimpleQueue()
        self._loop = asyncio.get_running_loop()
        self._thread: threading.Thread | None = None
        self._opened: asyncio.Future[None] = self._loop.create_future()
        self._statements = Statements()
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

    def commit(self, make: MakeOperation[T]) -> asyncio.Future[T]:
        """Hand an operation in; the future is done after the COMMIT that holds it.

        It fails with what the operation raised, or with `StoreUnavailable` where the store could not take the
        write: then nothing of it was written. It must not be cancelled: what is handed in will be written.
        """
        future: asyncio.Future[T] = self._loop.create_future()
        if self._thread is None:
            future.set_exception(StoreUnavailable("the store is closed"))
        else:
            self._queue.put(_Entry(make, future))
        return future

    async def fold(self) -> bool:
        """Write the log into the file, and empty it; False = somebody still reads in it.

        What was forgotten lies in the log until then, and a log that has grown keeps its size.

        Raises:
            StoreUnavailable: the disk did not take it.
        """
        return await self._behind(_fold)

    async def vacuum(self) -> None:
        """Write the whole file anew, without what is unused; all that writes waits meanwhile.

        Raises:
            StoreUnavailable: there is no room for that: it takes as much again beside it, and in the log.
        """
        os.environ["SQLITE_TMPDIR"] = str(self._database.absolute().parent)  # mail lies nowhere else, and there it may
        await self._behind(_vacuum)

    def _behind(self, what: Callable[[sqlite3.Connection], T]) -> asyncio.Future[T]:
        future: asyncio.Future[T] = self._loop.create_future()
        if self._thread is None:
            future.set_exception(StoreUnavailable("the store is closed"))
        else:
            self._queue.put(_Entry(_nothing, future, behind=what))
        return future

    async def close(self) -> None:
        """Write what was handed in, then close; idempotent."""
        thread, self._thread = self._thread, None
        if thread is not None:
            self._queue.put(None)
            await asyncio.to_thread(thread.join)

    # in the journal's thread from here on

    def _run(self) -> None:
        try:
            connection = connect(self._database, read_only=False)
        except sqlite3.Error as error:
            unavailable = StoreUnavailable(f"the store cannot be opened: {error}")
            self._loop.call_soon_threadsafe(self._opened.set_exception, unavailable)
            return
        self._loop.call_soon_threadsafe(self._opened.set_result, None)
        try:
            while (first := self._queue.get()) is not None:
                batch, last = self._collect(first)
                self._write(connection, batch)
                for entry in batch:
                    if entry.behind is not None:
                        _do_behind(connection, entry)
                self._loop.call_soon_threadsafe(_answer, batch)
                if last:
                    return
        finally:
            connection.close()

    def _collect(self, first: _Entry[Any]) -> tuple[list[_Entry[Any]], bool]:
        batch = [first]
        try:
            while len(batch) < MAX_BATCH:
                entry = self._queue.get_nowait()
                if entry is None:
                    return batch, True
                batch.append(entry)
        except Empty:
            pass
        return batch, False

    def _write(self, connection: sqlite3.Connection, batch: list[_Entry[Any]]) -> None:
        going = batch
        while going:
            try:
                connection.execute("BEGIN IMMEDIATE")
                failed = self._run_all(connection, going)
                if failed is None:
                    connection.execute("COMMIT")
                    self.commits += 1
                    return
                connection.execute("ROLLBACK")
                going = [entry for entry in going if entry is not failed]
            except sqlite3.Error as error:
                if connection.in_transaction:
                    connection.execute("ROLLBACK")
                for entry in going:
                    entry.error = StoreUnavailable(f"the store did not take the write: {error}")
                return

    def _run_all(self, connection: sqlite3.Connection, batch: list[_Entry[Any]]) -> _Entry[Any] | None:
        """Run every operation; give the first that failed, if one did.

        An error of the whole database (disk full, locked) is no operation's own, and comes out.
        """
        cursor = connection.cursor()
        for entry in batch:
            try:
                entry.result = self._run_one(cursor, entry.make())
            except sqlite3.OperationalError:
                raise
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


def _nothing() -> Operation[Any]:
    yield from ()


def _do_behind(connection: sqlite3.Connection, entry: _Entry[Any]) -> None:
    try:
        entry.result = entry.behind and entry.behind(connection)
    except sqlite3.Error as error:
        entry.error = StoreUnavailable(f"the store could not be tidied: {error}")


def _fold(connection: sqlite3.Connection) -> bool:
    (patience,) = connection.execute("PRAGMA busy_timeout").fetchone()
    connection.execute("PRAGMA busy_timeout = 0")  # nobody's mail waits for a reader
    try:
        (is_busy, *_) = connection.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchone()
    finally:
        connection.execute(f"PRAGMA busy_timeout = {patience}")
    return not is_busy


def _vacuum(connection: sqlite3.Connection) -> None:
    connection.execute("VACUUM")


def _answer(batch: list[_Entry[Any]]) -> None:
    for entry in batch:
        if entry.future.done():
            continue
        if entry.error is not None:
            entry.future.set_exception(entry.error)
        else:
            entry.future.set_result(entry.result)
