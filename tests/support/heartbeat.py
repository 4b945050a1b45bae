"""A heartbeat in the event loop: how long was the loop held up at worst?

In CPU seconds of this process: what other programs on the machine take does not count.
"""

import asyncio
from time import process_time
from types import TracebackType
from typing import Self

BEAT = 0.001  # seconds


class Heartbeat:
    """Beats while it is entered; `longest` is the most CPU time in seconds that passed between two beats."""

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
        last = process_time()
        while True:
            await asyncio.sleep(BEAT)
            now = process_time()
            self.longest = max(self.longest, now - last)
            last = now
