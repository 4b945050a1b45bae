"""A copy of the database while it is in use: whole, consistent, of one moment.

SQLite's VACUUM INTO reads one snapshot over a connection of its own, in a thread of its own, so that neither writer nor
readers wait. While it reads, the log cannot be emptied and grows by what is written meanwhile. The copy has no free
pages, so nothing that was forgotten is in it; it bears its name only once it is whole and synced.
"""

from __future__ import annotations

import asyncio
import os
import sqlite3
import tempfile
import threading
from contextlib import closing, suppress
from pathlib import Path

from app.mail.errors import Fault, InvalidMessage
from app.store.database import connect

SYNC_EVERY = 0.02  # seconds
STEPS = 10_000  # of SQLite's machine, between two looks at whether it is still wanted


async def back_up(database: Path, to: Path) -> int:
    """Copy the database into a new file, mode 0600; return its size in bytes. Cancelled, it leaves nothing.

    Raises:
        InvalidMessage: that file is there, or it cannot be written; the pointer is /file.
    """
    try:
        connection = connect(database, read_only=True)
    except sqlite3.Error as error:
        raise _refused(f"{to} was not written ({error})") from error
    try:
        return await copy_through(connection, to)
    finally:
        connection.close()


async def copy_through(connection: sqlite3.Connection, to: Path) -> int:
    """Do what `back_up` does through a reading connection, which has what was opened even if its name is gone."""
    try:
        is_unwanted = threading.Event()
        copying = asyncio.ensure_future(asyncio.to_thread(_copy, connection, to, is_unwanted))
        try:
            return await asyncio.shield(copying)
        except asyncio.CancelledError:
            is_unwanted.set()
            with suppress(sqlite3.Error, OSError, InvalidMessage):
                await copying
            raise
    except OSError as error:
        raise _refused(
            f"{to} cannot be written ({error.strerror or error}); name a file in a folder that can"
        ) from error
    except sqlite3.Error as error:
        raise _refused(f"{to} was not written ({error}); make room there, or name a file elsewhere") from error


def _copy(connection: sqlite3.Connection, to: Path, is_unwanted: threading.Event) -> int:
    _refuse_existing(to)
    handle, name = tempfile.mkstemp(prefix=f".{to.name}.", dir=to.parent)  # mode 0600
    part, is_over = Path(name), threading.Event()
    syncing = threading.Thread(target=_sync_along, args=(handle, is_over), name="backup-sync")
    syncing.start()
    try:
        connection.execute("PRAGMA query_only = OFF")  # it would keep VACUUM from writing the other file too
        connection.set_progress_handler(is_unwanted.is_set, STEPS)  # interrupt() is lost on what has not begun
        connection.execute("VACUUM INTO ?", (name,))
        with closing(sqlite3.connect(name, isolation_level=None)) as copy:
            copy.execute("PRAGMA user_version = 0")  # by which a running service knows its own file (identity.py)
        os.fsync(handle)
        _refuse_existing(to)
        part.rename(to)
    finally:
        connection.set_progress_handler(None, 0)
        connection.execute("PRAGMA query_only = ON")
        is_over.set()
        syncing.join()
        os.close(handle)
        part.unlink(missing_ok=True)
    folder = os.open(to.parent, os.O_RDONLY)
    try:
        os.fsync(folder)
    finally:
        os.close(folder)
    return to.stat().st_size


def _sync_along(handle: int, is_over: threading.Event) -> None:
    """Sync what is written as it comes: one sync of all of it would hold up every commit on the same disk."""
    with suppress(OSError):  # the last sync tells
        while not is_over.wait(SYNC_EVERY):
            os.fdatasync(handle)


def _refuse_existing(to: Path) -> None:
    if to.exists() or to.is_symlink():
        raise _refused(f"{to} is there already, and nothing is written over; name a new file")


def _refused(detail: str) -> InvalidMessage:
    return InvalidMessage.of([Fault("/file", detail)])
