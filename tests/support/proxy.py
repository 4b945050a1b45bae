"""A network that breaks at a chosen byte: a TCP proxy on loopback between a client and what listens on a port.

Knows bytes and nothing of what they mean. It counts what it passes on, each way by itself, and a break strikes
behind exactly so many bytes, whatever the segments are; from then on nothing passes either way. One break strikes
one connection, once: whoever connects again gets through.
"""

import asyncio
import contextlib
import socket
import struct
from collections import Counter
from dataclasses import dataclass
from enum import Enum
from typing import Self

SEGMENT = 1 << 16


class Way(Enum):
    """Seen from the client."""

    OUT = "sent"
    IN = "heard"


class Kind(Enum):
    """What both ends see of a break."""

    CLOSE = "closed"  # FIN
    RESET = "reset"  # RST
    STOP = "stopped"  # nothing at all, ever again


@dataclass(frozen=True, slots=True)
class Break:
    """Strike when `after` bytes have passed one way since this was set; 0 = at once, or with the next connection."""

    kind: Kind
    way: Way
    after: int


class Proxy:
    """Listen on a free port inside `async with`; its end cuts what is open."""

    def __init__(self, to: int) -> None:
        self.port = 0
        self.passed: Counter[Way] = Counter()  # bytes since the last `set_break`
        self.has_struck = asyncio.Event()
        self._to = to
        self._break: Break | None = None
        self._open: list[_Connection] = []
        self._tasks: set[asyncio.Task[None]] = set()
        self._is_over = asyncio.Event()

    async def __aenter__(self) -> Self:
        self._server = await asyncio.start_server(self._serve, "127.0.0.1", 0, limit=SEGMENT)
        self.port = self._server.sockets[0].getsockname()[1]
        return self

    async def __aexit__(self, *_error: object) -> None:
        self._server.close()
        await asyncio.sleep(0)  # whatever was accepted this very moment comes in
        self._is_over.set()
        for connection in self._open:
            connection.end()
        await asyncio.gather(*self._tasks)

    def set_break(self, strike: Break) -> None:
        """Begin to count anew, towards this break."""
        self.passed.clear()
        self.has_struck.clear()
        self._break = strike
        if self._open:
            self.may_pass(Way.OUT, self._open[-1])
            self.may_pass(Way.IN, self._open[-1])

    def mend(self) -> None:
        """Break no more; what is broken stays so."""
        self._break = None

    def may_pass(self, way: Way, connection: "_Connection") -> int:
        """Say how many bytes may still pass this way; where that is none, the connection is broken."""
        strike = self._break
        if strike is None or strike.way is not way:
            return SEGMENT
        left = strike.after - self.passed[way]
        if left <= 0:
            self._break = None
            connection.break_(strike.kind)
            self.has_struck.set()
        return left

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        theirs, ours = await asyncio.open_connection("127.0.0.1", self._to, limit=SEGMENT)
        connection = _Connection(writer, ours)
        self._open.append(connection)
        try:
            self.may_pass(Way.OUT, connection)
            self.may_pass(Way.IN, connection)
            if self._is_over.is_set():
                connection.end()
            await asyncio.gather(
                self._pass_on(Way.OUT, connection, reader, ours), self._pass_on(Way.IN, connection, theirs, writer)
            )
        finally:
            self._open.remove(connection)
            connection.end()

    async def _pass_on(
        self, way: Way, connection: "_Connection", reader: asyncio.StreamReader, writer: asyncio.StreamWriter
    ) -> None:
        with contextlib.suppress(OSError):  # either end may reset
            while data := await reader.read(SEGMENT):
                while data and not connection.is_broken:
                    now, data = data[: (n := self.may_pass(way, connection))], data[n:]
                    writer.write(now)
                    self.passed[way] += len(now)
                    self.may_pass(way, connection)  # behind the last byte, not before the next
            if connection.broken_by is not Kind.STOP:
                writer.write_eof()
                return
        if connection.broken_by is Kind.STOP:
            await self._is_over.wait()  # the other end must not notice


class _Connection:
    """Both halves of one connection."""

    def __init__(self, *writers: asyncio.StreamWriter) -> None:
        self.broken_by: Kind | None = None
        self._writers = writers
        for writer in writers:
            writer.get_extra_info("socket").setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)

    @property
    def is_broken(self) -> bool:
        return self.broken_by is not None

    def break_(self, kind: Kind) -> None:
        self.broken_by = kind
        for writer in self._writers:
            if kind is Kind.CLOSE:
                with contextlib.suppress(OSError):  # that end was quicker
                    writer.write_eof()
            elif kind is Kind.RESET:
                self._reset(writer)

    def end(self) -> None:
        for writer in self._writers:
            writer.transport.abort()

    def _reset(self, writer: asyncio.StreamWriter) -> None:
        if not writer.transport.is_closing():
            linger = struct.pack("ii", 1, 0)
            writer.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, linger)
            writer.transport.abort()
