"""A heartbeat in the event loop: how long was the loop held up at worst?"""

import asyncio
from time import perf_counter
from types import TracebackType
from typing import Self

BEAT = 0.001  # seconds


class Heartbeat:
    """Beats while it is entered; `longest` is the longest time in seconds that the loop let it wait."""

    def __init__(self) -> None:
        self.longest = 0.0

    async def __aenter__(self) -> Self:
        self._task = asyncio.create_task(self._beat())
        await asyncio.sleep(0)
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await asyncio.sleep(2 * BEAT)  # what held the loop up until now counts too
        self._task.cancel()

    async def _beat(self) -> None:
        last = perf_counter()
        while True:
            await asyncio.sleep(BEAT)
            now = perf_counter()
            self.longest = max(self.longest, now - last)
            last = now
