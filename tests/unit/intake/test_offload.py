"""Long work runs in one thread beside the event loop, in its order, and after the end still gets done."""

from __future__ import annotations

import asyncio
from functools import partial
from threading import Thread, current_thread

import pytest

from app.intake.offload import Offload
from app.mail.errors import TooLarge


async def test_work_runs_in_one_other_thread_in_its_order() -> None:
    offload = Offload()
    done: list[int] = []
    threads: set[Thread] = set()

    def work(number: int) -> int:
        threads.add(current_thread())
        done.append(number)
        return number

    assert await asyncio.gather(*(offload.run(partial(work, at)) for at in range(20))) == list(range(20))
    await offload.close()
    assert done == list(range(20))
    assert len(threads) == 1
    assert current_thread() not in threads


async def test_what_the_work_raises_is_raised() -> None:
    offload = Offload()

    def work() -> None:
        raise TooLarge("too large")

    with pytest.raises(TooLarge, match="too large"):
        await offload.run(work)
    await offload.close()


async def test_after_the_end_work_is_still_done() -> None:
    offload = Offload()
    await offload.close()
    await offload.close()
    assert await offload.run(lambda: 4711) == 4711
