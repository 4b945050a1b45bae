"""Contents on their way to relays: how many bytes are held at once, and in which order they come."""

import asyncio
from contextlib import AsyncExitStack
from dataclasses import replace
from uuid import UUID

import pytest

from app.delivery.contents import ContentLost, Contents
from app.mail.message import Claim
from tests.support.factories import make_claim, turns

MOST = 100


async def _load(_: UUID) -> bytes:
    return b""


def _claim(number: int, size: int) -> Claim:
    claim = make_claim(number=number)
    return replace(claim, content=None, snapshot=replace(claim.snapshot, size=size))


class Held:
    """Contents of any size, and who holds one now."""

    def __init__(self) -> None:
        self.sizes: dict[UUID, int] = {}
        self.holding: list[int] = []
        self.contents = Contents(self._load, MOST)

    async def _load(self, id: UUID) -> bytes:
        return bytes(self.sizes[id])

    async def hold(self, number: int, size: int, until: asyncio.Event) -> None:
        claim = _claim(number, size)
        self.sizes[claim.snapshot.id] = size
        async with self.contents.of(claim) as content:
            assert len(content) == size
            self.holding.append(number)
            try:
                await until.wait()
            finally:
                self.holding.remove(number)


async def test_what_an_attempt_brings_along_is_used_as_it_is() -> None:
    claim = make_claim()
    async with Contents(_load, 1).of(claim) as content:
        assert content is claim.content


async def test_no_more_than_the_bound_is_held_and_the_rest_come_in_their_order() -> None:
    held, ends = Held(), [asyncio.Event() for _ in range(5)]
    async with asyncio.TaskGroup() as group:
        for number, size in enumerate((60, 40, 50, 10, 500)):
            group.create_task(held.hold(number, size, ends[number]))
        await turns(5)
        assert held.holding == [0, 1]  # 3 would fit behind neither of them, and not before 2
        ends[0].set()
        await turns(5)
        assert held.holding == [1, 2, 3]
        ends[1].set()
        ends[2].set()
        await turns(5)
        assert held.holding == [3]
        ends[3].set()
        await turns(5)
        assert held.holding == [4]  # larger than the bound: alone
        ends[4].set()


async def test_one_that_is_cancelled_while_it_waits_leaves_its_place_to_the_next() -> None:
    held, end = Held(), asyncio.Event()
    async with AsyncExitStack():
        first = asyncio.create_task(held.hold(0, 100, end))
        await turns(3)
        second, third = (asyncio.create_task(held.hold(number, 100, end)) for number in (1, 2))
        await turns(3)
        second.cancel()
        first.cancel()
        await asyncio.wait({first, second})
        await turns(5)
        assert held.holding == [2]
        end.set()
        await third
        assert held.contents._held == 0


async def test_a_content_that_is_gone_or_not_whole_is_never_sent() -> None:
    with pytest.raises(ContentLost):
        async with Contents(_load, MOST).of(_claim(1, 10)):
            pass
