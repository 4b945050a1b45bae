"""The proxy breaks exactly where it is told to; shown with plain sockets, not with the code under test."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import pytest

from tests.support.proxy import Break, Kind, Proxy, Way

PATIENCE = 5.0  # seconds


class Ends:
    """What came through to the far end, and how it ended there."""

    def __init__(self) -> None:
        self.came = b""
        self.end: asyncio.Future[str] = asyncio.get_running_loop().create_future()

    async def listen(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(b"hello there")
        try:
            while data := await reader.read(100):
                self.came += data
            self.end.set_result("closed")
        except ConnectionResetError:
            self.end.set_result("reset")
        finally:
            writer.close()


@asynccontextmanager
async def talking(strike: Break) -> AsyncIterator[tuple[Ends, Proxy, asyncio.StreamReader, asyncio.StreamWriter]]:
    """Connect through a proxy that breaks, to a peer that says "hello there"."""
    ends = Ends()
    server = await asyncio.start_server(ends.listen, "127.0.0.1", 0)
    async with server, asyncio.timeout(PATIENCE), Proxy(server.sockets[0].getsockname()[1]) as proxy:
        proxy.set_break(strike)
        reader, writer = await asyncio.open_connection("127.0.0.1", proxy.port)
        try:
            yield ends, proxy, reader, writer
        finally:
            writer.close()


@pytest.mark.parametrize("after", [0, 1, 4, 10])
@pytest.mark.parametrize("kind", [Kind.CLOSE, Kind.RESET], ids=lambda kind: kind.value)
async def test_so_many_bytes_come_out_and_then_both_ends_see_the_break(kind: Kind, after: int) -> None:
    async with talking(Break(kind, Way.OUT, after)) as (ends, proxy, _, writer):
        writer.write(b"0123456789")
        assert await ends.end == kind.value
        assert ends.came == b"0123456789"[:after]
        assert proxy.passed[Way.OUT] == after


@pytest.mark.parametrize("after", [0, 1, 4, 11])
async def test_so_many_bytes_come_in_and_then_it_is_closed(after: int) -> None:
    async with talking(Break(Kind.CLOSE, Way.IN, after)) as (ends, _, reader, _writer):
        assert await reader.read() == b"hello there"[:after]
        assert await ends.end == "closed"


async def test_where_it_stops_neither_end_hears_of_the_other_again() -> None:
    async with talking(Break(Kind.STOP, Way.OUT, 4)) as (ends, proxy, reader, writer):
        assert await reader.readexactly(11) == b"hello there"
        writer.write(b"0123456789")
        await proxy.has_struck.wait()
        writer.close()
        await writer.wait_closed()
        assert not ends.end.done()
    assert ends.came == b"0123"


async def test_a_break_strikes_one_connection_alone() -> None:
    async with talking(Break(Kind.CLOSE, Way.IN, 5)) as (_, proxy, reader, _writer):
        assert await reader.read() == b"hello"
        again, writer = await asyncio.open_connection("127.0.0.1", proxy.port)
        assert await again.readexactly(11) == b"hello there"
        writer.close()


async def test_bytes_count_from_where_the_break_was_set() -> None:
    async with talking(Break(Kind.CLOSE, Way.OUT, 1000)) as (ends, proxy, reader, writer):
        await reader.readexactly(11)
        proxy.set_break(Break(Kind.CLOSE, Way.OUT, 3))
        writer.write(b"0123456789")
        assert await ends.end == "closed"
        assert ends.came == b"012"
