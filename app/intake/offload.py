"""Run long computations in one thread beside the event loop.

One thread and no more: the interpreter runs one at a time anyway, and the event loop then competes with a single other
thread for it. Small messages never come here; the hand-over costs some 50 µs.
"""

from __future__ import annotations

import asyncio
import sys
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

T = TypeVar("T")

SWITCH_INTERVAL = 0.0005  # seconds; Python's default of 5 ms is paid at every step of a request


class Offload:
    """The thread. It starts with the first piece of work."""

    def __init__(self) -> None:
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="offload")
        self._is_closed = False

    async def run(self, work: Callable[[], T]) -> T:
        """Run `work`, first come, first served; return what it returns, or raise what it raises.

        Once closed, it runs in the event loop: a request that is still served then waits for nobody.
        """
        if self._is_closed:
            return work()
        return await asyncio.get_running_loop().run_in_executor(self._thread, work)

    async def close(self) -> None:
        """Finish what is running and end the thread; idempotent."""
        self._is_closed = True
        await asyncio.to_thread(self._thread.shutdown)


def _yielding(work: Callable[[], T]) -> T:
    """Run `work` so that the event loop gets the interpreter back within a millisecond each time it asks for it."""
    before = sys.getswitchinterval()
    sys.setswitchinterval(SWITCH_INTERVAL)
    try:
        return work()
    finally:
        sys.setswitchinterval(before)
