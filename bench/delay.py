"""A wire of a chosen length: a TCP proxy that holds every byte for a while, in a process of its own.

Run by bench.quick as `python -m bench.delay TARGET_PORT SECONDS_ONE_WAY`; prints the port it listens on.
"""

from __future__ import annotations

import asyncio
import sys
from collections import deque


class _End(asyncio.Protocol):
    """One end of a wire: what comes in here leaves at the other end, late and in order."""

    def __init__(self, delay: float) -> None:
        self._delay = delay
        self._loop = asyncio.get_running_loop()
        self._under_way: deque[bytes] = deque()
        self.transport: asyncio.Transport | None = None
        self.other: _End | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = transport  # type: ignore[assignment]

    def data_received(self, data: bytes) -> None:
        self._under_way.append(data)
        self._loop.call_later(self._delay, self._arrive)

    def connection_lost(self, _: Exception | None) -> None:
        self.data_received(b"")

    def _arrive(self) -> None:
        data = self._under_way.popleft()
        there = self.other.transport if self.other is not None else None
        if there is None:
            return
        if data:
            there.write(data)
        else:
            there.close()


class _Near(_End):
    """The end that the service connects to; it waits for the far end before it reads."""

    def __init__(self, delay: float, target: int) -> None:
        super().__init__(delay)
        self._target = target
        self._task: asyncio.Task[None] | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        super().connection_made(transport)
        assert self.transport is not None
        self.transport.pause_reading()
        self._task = self._loop.create_task(self._connect(self.transport))

    async def _connect(self, here: asyncio.Transport) -> None:
        far = _End(self._delay)
        far.other = self
        await self._loop.create_connection(lambda: far, "127.0.0.1", self._target)
        self.other = far
        here.resume_reading()


async def _main(target: int, delay: float) -> None:
    server = await asyncio.get_running_loop().create_server(lambda: _Near(delay, target), "127.0.0.1", 0)
    print(server.sockets[0].getsockname()[1], flush=True)
    await server.serve_forever()


if __name__ == "__main__":
    asyncio.run(_main(int(sys.argv[1]), float(sys.argv[2])))
