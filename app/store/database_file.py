"""Which file a database is, whatever it is called: the same file has many names (symlinks, bind mounts, hard links)."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True, slots=True)
class DatabaseFile:
    """A file that exists. `path` is absolute and names it without symlinks; device and inode tell it from any other."""

    path: Path
    device: int
    inode: int

    @classmethod
    def at(cls, database: Path) -> DatabaseFile | None:
        """Return what is at a path now, None where nothing is.

        Raises:
            OSError: it may not be looked at.
        """
        try:
            path = Path(os.path.realpath(database))
            facts = path.stat()
        except (FileNotFoundError, NotADirectoryError):
            return None
        return cls(path, facts.st_dev, facts.st_ino)

    def is_same(self, other: DatabaseFile | None) -> bool:
        """Whether both are one file; the paths may differ, as they do inside and outside a container."""
        return other is not None and (self.device, self.inode) == (other.device, other.inode)
