"""Whether there is room for another message: on the disk, and in the queue.

Asked before every append, so it asks nobody: the disk is looked at now and then, and what was taken since is taken off
what was seen. Messages that were accepted go on being delivered whatever is said here, and what is kept free is theirs:
marks and verdicts, the log and what it is brought into.
"""

from __future__ import annotations

import asyncio
import os
from collections.abc import Callable
from pathlib import Path

import structlog

from app.mail.errors import NoRoom

LEAST_FREE = 100 << 20  # bytes
LEAST_SHARE = 100  # one part in so many of the disk
_COPIES = 2  # of a message: in the log, and in the file

log = structlog.get_logger()


class Room:
    """The bounds, and how things stand. `folder` holds the database; `waiting` counts the messages that wait."""

    def __init__(
        self, folder: Path, *, waiting: Callable[[], int], max_queued: int, min_free_bytes: int | None
    ) -> None:
        self._folder = folder
        self._waiting = waiting
        self.free_bytes = 0  # as seen last
        self._free = self._least_free = 0  # the first less what was taken since
        self._was_short = False
        self.bound(max_queued=max_queued, min_free_bytes=min_free_bytes)

    def bound(self, *, max_queued: int, min_free_bytes: int | None) -> None:
        """Go by these bounds; 0 = none, None = by the size of the disk, from the next look on."""
        self._max_queued = max_queued
        self._min_free_bytes = min_free_bytes

    async def look(self) -> None:
        """Look at the disk, and log where its or the queue's room ended or came back."""
        seen = await asyncio.to_thread(os.statvfs, self._folder)  # a disk that fails may keep us waiting
        self._free = self.free_bytes = seen.f_bavail * seen.f_frsize
        by_size = max(LEAST_FREE, seen.f_blocks * seen.f_frsize // LEAST_SHARE)
        self._least_free = by_size if self._min_free_bytes is None else self._min_free_bytes
        short = self.shortage()
        if bool(short) != self._was_short:
            self._was_short = bool(short)
            if short:
                log.error("room.ended", error=short)
            else:
                log.info("room.again")

    def take(self, size: int) -> None:
        """Take the room of a message of `size` bytes.

        Raises:
            NoRoom: there is none.
        """
        self._free -= _COPIES * size
        if short := self.shortage():
            self._free += _COPIES * size
            raise NoRoom(short)

    def shortage(self) -> str:
        """Say what there is no room in, and what cures it; empty = there is room."""
        if self._least_free and self._free < self._least_free:
            return (
                f"The disk that keeps messages has {_megabytes(self._free)} free, and {_megabytes(self._least_free)} "
                "are kept free for those that were taken: make room on it, or set min_free_bytes lower"
            )
        if self._max_queued and self._waiting() >= self._max_queued:
            return (
                f"{self._waiting()} messages wait to be sent, and no more than {self._max_queued} may: GET /profiles "
                "tells what they wait for; set max_queued higher if that many are meant to wait"
            )
        return ""


def _megabytes(count: int) -> str:
    return f"{max(0, count) / 1e6:.1f} MB"
