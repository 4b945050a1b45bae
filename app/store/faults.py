"""Which errors of a file or a disk pass by themselves: room comes back, a lock is let go, a disk answers again.

What passes is `StoreNotOpened` (exit code 1 at a start: a supervisor may start the service again), the rest is a plain
`ConfigError` (exit code 2: somebody has to change something).
"""

from __future__ import annotations

import errno
import os
import sqlite3
from pathlib import Path

from app.mail.errors import ConfigError, StoreNotOpened

_PASSING = frozenset(
    {
        *(errno.ENOSPC, errno.EDQUOT, errno.EIO, errno.EMFILE, errno.ENFILE, errno.ENOMEM),
        *(errno.EAGAIN, errno.EBUSY, errno.EINTR, errno.ESTALE, errno.ETIMEDOUT),
    }
)
_SQLITE_PASSING = frozenset(
    {
        *(sqlite3.SQLITE_FULL, sqlite3.SQLITE_IOERR, sqlite3.SQLITE_BUSY, sqlite3.SQLITE_LOCKED),
        *(sqlite3.SQLITE_NOMEM, sqlite3.SQLITE_PROTOCOL),
    }
)


def refusal(what: str, error: OSError | sqlite3.Error, file: Path) -> ConfigError:
    """Say what failed with a file and why; raise what this returns."""
    why = f"{what}: {error.strerror or error}" if isinstance(error, OSError) else f"{what}: {error}"
    if not passes(error, file):
        return ConfigError(why)
    return StoreNotOpened(f"{why}; make room, or end what holds it, then start it again")


def passes(error: OSError | sqlite3.Error, file: Path) -> bool:
    """Whether trying again later can help."""
    if isinstance(error, OSError):
        return error.errno in _PASSING
    code = getattr(error, "sqlite_errorcode", 0) & 0xFF
    if code == sqlite3.SQLITE_CANTOPEN:  # which SQLite says of a folder that is closed to us, and of a full one
        return os.access(file.parent, os.W_OK | os.X_OK) and (not file.exists() or os.access(file, os.W_OK))
    return code in _SQLITE_PASSING
