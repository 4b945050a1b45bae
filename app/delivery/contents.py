"""The contents of messages that are on their way to a relay: read when their turn comes, bounded in memory.

A content that an attempt brings along is used as it is. A larger one (`store.append.LARGE`) is read from the store
once there is a session for it, and waits there while others fill the bound; one that alone exceeds it goes alone.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from uuid import UUID

from app.mail.message import Claim


class ContentLost(Exception):
    """The store has not the whole content of the message any more."""


class Contents:
    """`load` reads a message's bytes, None where they are gone; `most` bytes of them are held at once."""

    def __init__(self, load: Callable[[UUID], Awaitable[bytes | None]], most: int) -> None:
        self._load = load
        self._most = most
        self._held = 0
        self._waiting: deque[tuple[int, asyncio.Future[None]]] = deque()

    def bound(self, most: int) -> None:
        """Change the bound."""
        self._most = most
        self._admit()

    @asynccontextmanager
    async def of(self, claim: Claim) -> AsyncIterator[bytes]:
        """Hold the content of a claimed message while it is sent.

        Raises:
            StoreUnavailable: it cannot be read.
            ContentLost: it is not in the store, or a part of it is missing.
        """
        if claim.content is not None:
            yield claim.content
            return
        size = claim.snapshot.size
        await self._take(size)
        try:
            content = await self._load(claim.snapshot.id)
            if content is None or (size and len(content) != size):  # 0 = the size itself is lost
                raise ContentLost
            yield content
        finally:
            self._held -= size
            self._admit()

    async def _take(self, size: int) -> None:
        if not self._waiting and self._fits(size):
            self._held += size
            return
        turn = asyncio.get_running_loop().create_future()
        self._waiting.append((size, turn))
        try:
            await turn
        except asyncio.CancelledError:
            if turn.done() and not turn.cancelled():
                self._held -= size
            else:
                self._waiting.remove((size, turn))
            self._admit()
            raise

    def _fits(self, size: int) -> bool:
        return not self._held or self._held + size <= self._most

    def _admit(self) -> None:
        while self._waiting and self._fits(self._waiting[0][0]):
            size, turn = self._waiting.popleft()
            self._held += size
            turn.set_result(None)
