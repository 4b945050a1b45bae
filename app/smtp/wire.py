"""The live connection of a session: a pipelined command writer, and a reply reader that keeps count.

Takes over a transport that aiosmtplib has opened (`transport.set_protocol`), on asyncio and uvloop, plain and
TLS. It knows bytes, replies and deadlines, and nothing of what a reply means.

Every command that is written says how many replies it will bring, so that a reply too many is seen as such and
closes the connection: nothing is ever taken for the answer to another command (RFC 2920 §3.1 needs exact
pairing). One reply is not too many: a 4xx or 5xx behind the 354 and before the final dot is the relay's early
verdict on the content; it is given out as the next reply and `is_content_refused` tells the writer to stop.

Replies that arrived before a break are given out before the break is raised.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable

from app.mail.reply import MalformedReply, Reply, ReplyReader

BLOCK = 64 * 1024  # bytes written at once, each with a deadline of its own
ONE_TURN = 0.001  # seconds; whatever lies in the socket is read before a timer of any length ends


class Breach(Exception):
    """The conversation cannot go on; the connection is closed."""


class Lost(Breach):
    """The peer closed or reset the connection."""


class TimedOut(Breach):
    """A reply, or room to write, did not come in time."""


class Malformed(Breach):
    """The peer said something that is not a reply."""


class Unexpected(Breach):
    """The peer said more than it was asked, or a code that cannot be here."""


class Wire(asyncio.Protocol):
    """One connection, one transaction at a time. Made and used in the event loop's thread only."""

    def __init__(self, transport: asyncio.Transport) -> None:
        self._transport = transport
        self._loop = asyncio.get_running_loop()
        self._reader = ReplyReader()
        self._replies: deque[Reply] = deque()
        self._outstanding = 0  # replies asked for and not yet taken out by next_reply()
        self._last_code = 0  # of the latest reply in stream order
        self._waiter: asyncio.Future[None] | None = None
        self._writable: asyncio.Future[None] | None = None
        self._timer: asyncio.TimerHandle
        self._breach: Breach | None = None
        self.is_content_refused = False
        self.heard: Callable[[Reply], None] | None = None  # told of every reply as it arrives
        transport.set_protocol(self)

    @property
    def is_open(self) -> bool:
        return self._breach is None and not self._transport.is_closing()

    @property
    def is_out_of_step(self) -> bool:
        """Whether the relay said more than it was asked: then no reply since is surely whose it seems."""
        return isinstance(self._breach, Unexpected)

    @property
    def local_address(self) -> tuple[str, int] | None:
        """Our end of the connection, as (address, port)."""
        address = self._transport.get_extra_info("sockname")
        return (address[0], address[1]) if address else None

    def send(self, data: bytes, *, replies: int) -> None:
        """Write `data`, whole commands with their CRLF, which will bring `replies` replies.

        Writing to a broken connection does nothing; the next `next_reply()` says why.
        """
        self._outstanding += replies
        if self._breach is None:  # uvloop raises where asyncio would drop it
            self._transport.write(data)

    async def send_content(self, data: bytes, *, timeout: float) -> bool:
        """Write a large body in blocks; `timeout` seconds is the bound for each that the peer takes.

        Returns False where the relay refused the content midway: then nothing more was written.

        Raises:
            Breach: lost, or the peer stopped reading.
        """
        for at in range(0, len(data), BLOCK):
            if self.is_content_refused:
                return False
            if self._breach is not None:
                raise self._breach
            self._transport.write(data[at : at + BLOCK])
            if self._writable is not None:
                await self._bounded(self._writable, timeout)
        return not self.is_content_refused

    async def next_reply(self, timeout: float) -> Reply:
        """Take the next reply, in order; wait at most `timeout` seconds for it, however it drips in.

        Raises:
            Breach: after every reply that came before the break has been taken.
        """
        if not self._replies:
            if self._breach is None:
                self._waiter = self._loop.create_future()
                try:
                    await self._bounded(self._waiter, timeout)
                finally:
                    self._waiter = None
            if not self._replies:
                raise self._breach or Lost("the connection is closed")
        self._outstanding -= 1
        return self._replies.popleft()

    def close(self, last_words: bytes = b"") -> None:
        """Close; idempotent. `last_words` are sent where that is still possible, and nothing is waited for."""
        if self._breach is None and last_words:
            self._breach = Lost("closed by us")
            self._transport.write(last_words)
            self._loop.call_soon(self._transport.abort)  # uvloop writes at the end of its turn
        self._break(Lost("closed by us"))

    async def _bounded(self, future: asyncio.Future[None], timeout: float) -> None:
        breach = TimedOut(f"nothing came within {timeout:g} s")
        self._timer = self._loop.call_later(timeout, self._look_once_more, breach)
        try:
            await future
        finally:
            self._timer.cancel()
        if self._breach is not None and not self._replies:
            raise self._breach

    def _look_once_more(self, breach: Breach) -> None:
        # A process that was frozen or starved finds the reply and the end of its patience in the same moment.
        self._timer = self._loop.call_later(ONE_TURN, self._break, breach)

    def _break(self, breach: Breach) -> None:
        if self._breach is None:
            self._breach = breach
            self._transport.abort()  # never close(): that waits for a peer that may have stopped reading
        for future in (self._waiter, self._writable):
            if future is not None and not future.done():
                future.set_result(None)

    # asyncio.Protocol

    def data_received(self, data: bytes) -> None:
        if self._breach is not None:
            return
        try:
            for reply in self._reader.feed(data):
                self._take(reply)
                if self._breach is not None:
                    return
        except MalformedReply as error:
            self._break(Malformed(error.line))
        if self._replies and self._waiter is not None and not self._waiter.done():
            self._waiter.set_result(None)

    def _take(self, reply: Reply) -> None:
        if self.heard is not None:
            self.heard(reply)
        if len(self._replies) >= self._outstanding:
            if reply.code == 421 and self._last_code != 354:
                # RFC 5321 §3.8: it may come unasked, and says that the relay closes; what was answered stands.
                self._break(Lost(f"the relay closed the connection: {reply}"))
                return
            if self._last_code != 354 or reply.code < 400:
                self._break(Unexpected(str(reply)))
                return
            self._outstanding += 1
            self.is_content_refused = True
            if self._writable is not None and not self._writable.done():
                self._writable.set_result(None)  # nothing more is written, whether or not the peer reads
        self._last_code = reply.code
        self._replies.append(reply)

    def eof_received(self) -> bool:
        self._break(Lost("the relay closed the connection"))
        return False

    def connection_lost(self, exc: Exception | None) -> None:
        self._break(Lost(f"the connection broke: {exc}" if exc else "the relay closed the connection"))

    def pause_writing(self) -> None:
        self._writable = self._loop.create_future()

    def resume_writing(self) -> None:
        if self._writable is not None and not self._writable.done():
            self._writable.set_result(None)
        self._writable = None
