"""What the journal does with its connection beside operations: rolling back, writing over, emptying the log."""

from __future__ import annotations

import sqlite3
from contextlib import suppress

from app.store.database import BUSY_SECONDS


def roll_back(connection: sqlite3.Connection) -> None:
    if connection.in_transaction:
        with suppress(sqlite3.Error):
            connection.execute("ROLLBACK")


def overwrite(connection: sqlite3.Connection, without_meaning: str) -> None:
    """Write a transaction without a meaning over the frames of one that failed in its COMMIT."""
    try:
        connection.execute("BEGIN IMMEDIATE")
        connection.execute(without_meaning)
        connection.execute("COMMIT")
    except sqlite3.Error:  # its frames are there or not; no sync is needed for that
        roll_back(connection)


def empty_log(connection: sqlite3.Connection, *, patience: float) -> bool:
    """Empty the log once nobody reads in it any more; False = somebody did for as long as writers could wait."""
    connection.execute(f"PRAGMA busy_timeout = {int(patience * 1000)}")
    try:
        (is_busy, *_) = connection.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchone()
    finally:
        connection.execute(f"PRAGMA busy_timeout = {int(BUSY_SECONDS * 1000)}")
    return not is_busy
