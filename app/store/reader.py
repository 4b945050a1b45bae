"""Reading connections: `query_only`, one a thread, a few threads."""

from __future__ import annotations

import asyncio
import sqlite3
import threading
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from sqlalchemy import ClauseElement

from app.mail.errors import StoreUnavailable
from app.store.database import connect
from app.store.journal import Statements

THREADS = 2


class Reader:
    """Runs SELECTs beside the writer; sees what was committed when the SELECT began."""

    def __init__(self, database: Path) -> None:
        self._database = database
        self._threads = ThreadPoolExecutor(THREADS, thread_name_prefix="reader")
        self._local = threading.local()
        self._open: list[sqlite3.Connection] = []

    async def rows(self, statement: ClauseElement, params: Mapping[str, Any] | None = None) -> list[tuple[Any, ...]]:
        """Run one SELECT and give all its rows; the caller has bounded them.

        Raises:
            StoreUnavailable: the file cannot be read.
        """
        loop = asyncio.get_running_loop()
        try:
            return await loop.run_in_executor(self._threads, self._run, statement, params or {})
        except sqlite3.Error as error:
            raise StoreUnavailable(f"the store cannot be read: {error}") from error

    async def close(self) -> None:
        """Finish what is running and close; idempotent."""
        await asyncio.to_thread(self._threads.shutdown)
        while self._open:
            self._open.pop().close()

    def _run(self, statement: ClauseElement, params: Mapping[str, Any]) -> list[tuple[Any, ...]]:
        local = self._local
        if not hasattr(local, "connection"):
            local.connection = connect(self._database, read_only=True)
            local.statements = Statements()
            self._open.append(local.connection)
        cursor: sqlite3.Cursor = local.connection.cursor()
        try:
            local.statements.run(cursor, statement, params)
            rows: list[tuple[Any, ...]] = cursor.fetchall()
            return rows
        finally:
            cursor.close()
