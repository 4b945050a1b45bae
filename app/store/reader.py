"""Reading connections: `query_only`, and as many as there are threads."""

from __future__ import annotations

import asyncio
import sqlite3
from collections.abc import AsyncIterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager, closing, suppress
from pathlib import Path
from queue import Empty, SimpleQueue
from typing import Any, TypeAlias

from sqlalchemy import ClauseElement

from app.mail.errors import StoreUnavailable
from app.store.database import connect
from app.store.statements import Statements

_Connection: TypeAlias = tuple[sqlite3.Connection, Statements]

THREADS = 2


class Reader:
    """Runs SELECTs beside the writer; sees what was committed when the SELECT began."""

    def __init__(self, database: Path) -> None:
        self._database = database
        self._threads = ThreadPoolExecutor(THREADS, thread_name_prefix="reader")
        self._idle: SimpleQueue[_Connection] = SimpleQueue()
        self._made = 0  # connections

    async def open(self) -> None:
        """Open every connection now: what is open can be read whatever becomes of the file's name.

        Raises:
            StoreUnavailable: the file cannot be read.
        """
        try:
            while self._made < THREADS:
                self._idle.put(await asyncio.to_thread(self._open))
        except sqlite3.Error as error:
            raise StoreUnavailable(f"the store cannot be read: {error}") from error

    async def rows(
        self, statement: ClauseElement, params: Mapping[str, Any] | None = None, *, within: float | None = None
    ) -> list[tuple[Any, ...]]:
        """Run one SELECT and return all its rows; the caller has bounded them.

        Raises:
            StoreUnavailable: the file cannot be read, or not `within` so many seconds.
        """
        loop = asyncio.get_running_loop()
        try:
            async with asyncio.timeout(within):
                return await loop.run_in_executor(self._threads, self._run, statement, dict(params or {}))
        except TimeoutError as error:
            raise StoreUnavailable(f"the disk did not answer a read within {within:g} s") from error
        except sqlite3.Error as error:
            raise StoreUnavailable(f"the store cannot be read: {error}") from error

    @asynccontextmanager
    async def lent(self) -> AsyncIterator[sqlite3.Connection]:
        """Lend a connection for a long read, once one is idle; the others serve `rows` meanwhile."""
        lent = await asyncio.to_thread(self._take)
        try:
            yield lent[0]
        finally:
            self._idle.put(lent)

    async def close(self) -> None:
        """Finish what is running and close; idempotent."""
        await asyncio.to_thread(self._threads.shutdown)
        with suppress(Empty):
            while True:
                self._idle.get_nowait()[0].close()

    def _run(self, statement: ClauseElement, params: dict[str, Any]) -> list[tuple[Any, ...]]:
        connection, statements = taken = self._take()
        try:
            with closing(connection.cursor()) as cursor:
                statements.run(cursor, statement, params)
                rows: list[tuple[Any, ...]] = cursor.fetchall()
                return rows
        finally:
            self._idle.put(taken)

    def _take(self) -> _Connection:
        if self._made < THREADS:
            with suppress(Empty):
                return self._idle.get_nowait()
            return self._open()
        return self._idle.get()

    def _open(self) -> _Connection:
        connection = connect(self._database, read_only=True)
        try:
            connection.execute("SELECT 1 FROM sqlite_master LIMIT 1").fetchone()  # which opens the log
        except BaseException:
            connection.close()
            raise
        self._made += 1
        return connection, Statements()
