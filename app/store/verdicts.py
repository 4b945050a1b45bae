"""Who waits for which message, and who follows all: `record`'s COMMIT wakes them. Holds nothing but waiters."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from uuid import UUID
from weakref import WeakSet

from app.mail.message import Snapshot

_BEHIND = 1000  # changes that a follower may be behind


class Verdicts:
    """Waiters by message id; one loop, no locking."""

    def __init__(self) -> None:
        self._waiters: dict[UUID, list[asyncio.Future[Snapshot | None]]] = {}
        self._followers: WeakSet[asyncio.Queue[Snapshot | None]] = WeakSet()  # whoever goes before the first is gone
        self._is_closing = False

    def expect(self, message_id: UUID) -> asyncio.Future[Snapshot | None]:
        """Give a future for the first state that is neither queued nor sending; take it before the append.

        None = nobody should wait any longer, the service stops. Whoever stops waiting cancels the future.
        """
        future: asyncio.Future[Snapshot | None] = asyncio.get_running_loop().create_future()
        if self._is_closing:
            future.set_result(None)
            return future
        self._waiters.setdefault(message_id, []).append(future)
        future.add_done_callback(lambda done: self._forget(message_id, done))
        return future

    def publish(self, snapshot: Snapshot) -> None:
        """Tell everybody who waits for this message."""
        for future in self._waiters.pop(snapshot.id, ()):
            if not future.done():
                future.set_result(snapshot)
        for queue in self._followers:
            if not queue.full():
                queue.put_nowait(snapshot)

    def follow(self) -> AsyncIterator[Snapshot]:
        """Give every change of a state from now on; who falls far behind misses some, and nobody waits for them."""
        queue: asyncio.Queue[Snapshot | None] = asyncio.Queue(_BEHIND)
        if self._is_closing:
            queue.put_nowait(None)
        self._followers.add(queue)
        return self._changes(queue)

    async def _changes(self, queue: asyncio.Queue[Snapshot | None]) -> AsyncIterator[Snapshot]:
        try:
            while (snapshot := await queue.get()) is not None:
                yield snapshot
        finally:
            self._followers.discard(queue)

    def release(self) -> None:
        """Send everybody home, and whoever comes later at once: the service stops."""
        self._is_closing = True
        for waiters in list(self._waiters.values()):
            for future in list(waiters):
                if not future.done():
                    future.set_result(None)
        for queue in self._followers:
            if queue.full():
                queue.get_nowait()
            queue.put_nowait(None)

    def _forget(self, message_id: UUID, future: asyncio.Future[Snapshot | None]) -> None:
        waiting = self._waiters.get(message_id)
        if waiting is not None and future in waiting:
            waiting.remove(future)
            if not waiting:
                del self._waiters[message_id]


async def in_time(verdict: asyncio.Future[Snapshot | None], known: Snapshot, *, until: float) -> Snapshot:
    """Wait for a verdict until the loop's time `until`; what is known where none comes, or where none is needed."""
    if not known.state.is_waiting:
        return known
    try:
        async with asyncio.timeout_at(until):
            return await verdict or known
    except TimeoutError:
        return known
