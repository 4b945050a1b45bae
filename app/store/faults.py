"""Which errors of a file or a disk pass by themselves: room comes back, a lock is let go, a disk answers again.

What passes is `StoreNotOpened` (exit code 1 at a start: a supervisor may start the service again), the rest is a plain
`ConfigError` (exit code 2: somebody has to change something).
"""

from __future__ import annotations

import errno
import os
import re
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


def shared(file: Path) -> str:
    """Say why a lock and a log beside a file are not those of all who can open it; "" = they are."""
    try:
        names = file.stat().st_nlink
    except OSError:  # whoever opens it tells
        return ""
    if names > 1:
        return (
            f"{file} has {names} names (hard links), and neither its lock nor its log is shared by them: find the "
            f"others with `find / -xdev -samefile {file}` and remove them, or make copies in their place"
        )
    if str(file.absolute()) in _mounted() and os.access(file, os.W_OK):  # else that is what is told
        return (
            f"{file} is mounted by itself, and neither its lock nor its log is: mount its folder in its place (in "
            f"Docker -v FOLDER:{file.absolute().parent})"
        )
    return ""


def _mounted() -> set[str]:
    """Name what is mounted, as far as the kernel tells."""
    try:
        lines = Path("/proc/self/mountinfo").read_bytes().decode("utf-8", "surrogateescape").splitlines()
    except OSError:
        return set()
    return {_OCTAL.sub(lambda found: chr(int(found[1], 8)), line.split(" ")[4]) for line in lines}


_OCTAL = re.compile(r"\\([0-7]{3})")  # proc(5): a blank in a name, say
