"""Whether the database's path still leads to the files that are open.

A file that was removed, moved or replaced lives on for whoever has it open: SQLite takes commits into it, and the next
start knows nothing of them. A file that was written over (`cp backup.db mailchute.db`) has the same device and inode,
while the log still holds pages of the old one: it is known by its `user_version`, which every checkpoint of ours
raises, so that a copy made before has a lower one. Used by the journal's thread alone.
"""

from __future__ import annotations

import os
import sqlite3
from contextlib import closing, suppress
from pathlib import Path
from typing import TypeAlias

_Seen: TypeAlias = tuple[int, int]  # device and inode, or length and time
_stat = os.stat


class Identity:
    """The files of one database as its writer opened them; each look returns "" or what is wrong, for an operator."""

    def __init__(self, database: Path) -> None:
        self._database = database
        self._file, self._log, self._index = (f"{database}{suffix}" for suffix in ("", "-wal", "-shm"))
        self._open: dict[str, _Seen] = {}
        self._seen: _Seen = (0, 0)
        self._generations: set[int] = set()  # that the file may bear; none = it is not known
        self._current = 0
        self.log_bytes = 0  # as seen last
        self._holds_commits = False
        self._spoilt = ""  # for good
        self._is_written_over = False
        self._missing = ""  # at the last whole look

    @property
    def is_spoilt(self) -> bool:
        """Whether another program wrote over the file or its log: what is open cannot be read any more."""
        return bool(self._spoilt)

    def opened(self, connection: sqlite3.Connection) -> None:
        """Take note of what is open, once the connection has read something."""
        for name in (self._file, self._log, self._index):
            with suppress(OSError):
                self._open[name] = _which(_stat(name))
        (self._current,) = connection.execute("PRAGMA user_version").fetchone()

    def next_generation(self) -> str:
        """Return the statement that raises the file's number, to be executed before a checkpoint."""
        self._current += 1
        if self._generations:
            self._generations.add(self._current)
        return f"PRAGMA user_version = {self._current}"

    def checkpointed(self, *, is_log_empty: bool = False) -> None:
        """Take note of the file after a checkpoint, and whether that has emptied the log."""
        self._holds_commits = self._holds_commits and not is_log_empty
        with suppress(OSError, sqlite3.Error):
            self.log_bytes = _stat(self._log).st_size
            self._seen = _looks(_stat(self._file))
            self._generations = {_generation_of(self._database), self._current}

    def committed(self) -> None:
        """Take note that the log holds something."""
        self._holds_commits = True

    def check(self) -> str:
        """Look at the file and its log; two calls of stat, so that every COMMIT can afford it."""
        return self._spoilt or self._missing or self._look_at(self._file) or self._look_at(self._log)

    def confirm(self, connection: sqlite3.Connection) -> str:
        """Look once more, outside of a transaction: an empty log is well where all of it is in the file."""
        with suppress(OSError, sqlite3.Error):  # what cannot be brought into the file is lost
            if self._holds_commits and _stat(self._log).st_size == 0:
                _, frames, done = connection.execute("PRAGMA wal_checkpoint(PASSIVE)").fetchone()
                self._holds_commits = frames != done
        found = self.check()
        if found == _EMPTIED:
            self._spoilt = found
        return found

    def look(self, found: str = "") -> str:
        """Look at everything, and keep what is wrong for `check`; `found` is what the caller has found already."""
        self._missing = ""
        self._missing = found or self.check() or self._look_at(self._index)
        return self._missing

    def close(self, connection: sqlite3.Connection) -> bool:
        """Close the connection, unless that harms what is not ours: False = it must stay open.

        The last one that closes brings the log into the file, and deletes it by its name, which may be another log's by
        now. Where the file was written over our log is set aside, since the next start would bring it into the copy.
        """
        is_ours = True
        with suppress(OSError):
            is_ours = _which(_stat(self._log)) == self._open.get(self._log)
            if is_ours and self._is_written_over:
                Path(self._log).rename(f"{self._log}.old")
        if is_ours and not self._is_written_over:
            connection.close()
        return is_ours and not self._is_written_over

    def _look_at(self, name: str) -> str:
        try:
            found = _stat(name)
        except OSError:
            return self._lost(name, "is gone") if name in self._open else ""
        if _which(found) != self._open.get(name):
            return self._lost(name, "is another file now") if name in self._open else ""
        if name is self._log:
            self.log_bytes = found.st_size
            return _EMPTIED if self._holds_commits and not found.st_size else ""
        if name is self._file and self._generations and _looks(found) != self._seen:
            self._recognise(found)
        return self._spoilt

    def _lost(self, name: str, what: str) -> str:
        return (
            f"{name} {what}: it was removed, moved or replaced while it was open, and what is written now would be "
            "lost. Put it back, or save what is open (mailchute backup FILE) before the service is started again"
        )

    def _recognise(self, found: os.stat_result) -> None:
        """Tell a checkpoint, which keeps the file's number, from a file that was written over this one."""
        try:
            generation = _generation_of(self._database)
        except sqlite3.OperationalError:
            return  # it cannot be read now, as for want of a descriptor: at the next look, then
        except sqlite3.DatabaseError:
            generation = -1
        if generation in self._generations:
            self._seen = _looks(found)
            self._generations = {generation, self._current}
        else:
            self._is_written_over = True
            self._spoilt = (
                f"{self._file} was written over by another program while it was open, as by a copy of a backup; "
                f"{_START_AGAIN}"
            )


_EMPTIED = (
    "the database's log (-wal) was emptied by another program, and what it held is lost; nothing more is taken. Start "
    "the service again to go on with what the file has"
)
_START_AGAIN = (
    "nothing more is taken. Start the service again to go on with what it is now; the log of what it was is kept as "
    "-wal.old"
)


def _which(found: os.stat_result) -> _Seen:
    return found.st_dev, found.st_ino


def _looks(found: os.stat_result) -> _Seen:
    return found.st_size, found.st_mtime_ns


def _generation_of(file: Path) -> int:
    """Read the number in the file itself, whatever the log says; SQLite keeps the locks of the writer beside it."""
    uri = f"{file.absolute().as_uri()}?mode=ro&immutable=1"
    with closing(sqlite3.connect(uri, uri=True, isolation_level=None)) as connection:
        # A checkpoint that a reader held up may have written page 1 and not yet the pages that it counts: without this
        # SQLite calls such a file malformed.
        connection.execute("PRAGMA writable_schema = ON")
        (generation,) = connection.execute("PRAGMA user_version").fetchone()
        return int(generation)
