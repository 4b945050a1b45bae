"""One request and its answer, as ASGI sees them: `receive()`, `send()`, and the framing of what is written.

Knows its connection by the few methods of `Connection`; RFC 9112 §6, §7.
"""

from __future__ import annotations

import asyncio
from collections.abc import MutableMapping
from typing import Any, Protocol

import structlog

from app.api.edge import App, Event
from app.http1.framing import lines_of, status_line
from app.mail.errors import InvalidMessage, Refused

BODY_AHEAD = 256 * 1024  # bytes of a body that are held while the application does not read

log = structlog.get_logger()


class Connection(Protocol):
    """What an exchange needs of the connection that it belongs to (`connection.HttpProtocol`)."""

    @property
    def default_headers(self) -> list[tuple[bytes, bytes]]: ...
    @property
    def may_stay(self) -> bool: ...
    def write(self, data: bytes) -> None: ...
    async def drained(self) -> None: ...
    def pause_reading(self) -> None: ...
    def resume_reading(self) -> None: ...
    def answered(self, exchange: Exchange) -> None: ...
    def abort(self) -> None: ...


class Exchange:
    """One request and its answer. The connection feeds it, the application reads and answers through `run`."""

    __slots__ = (
        "_arrived",
        "_body",
        "_connection",
        "_expects_continue",
        "_fault",
        "_head",
        "_is_chunked",
        "_is_end_read",
        "_is_gone",
        "_is_head",
        "_is_paused",
        "_left",
        "_scope",
        "is_answered",
        "is_started",
        "is_whole",
        "keep_alive",
        "received",
    )

    def __init__(
        self,
        connection: Connection,
        scope: MutableMapping[str, Any],
        *,
        keep_alive: bool,
        expects_continue: bool,
    ) -> None:
        self._connection = connection
        self._scope = scope
        self.keep_alive = keep_alive  # the connection may serve another request after the answer
        self._expects_continue = expects_continue
        self._is_head = scope["method"] == "HEAD"
        self._body: list[bytes] = []  # what arrived and was not read yet
        self._is_paused = False
        self.received = 0  # bytes of body
        self.is_whole = False  # the body has arrived
        self._is_end_read = False
        self._is_gone = False  # the peer is
        self._fault: Refused | None = None
        self._arrived: asyncio.Future[None] | None = None
        self.is_started = False  # the answer is
        self.is_answered = False
        self._head: tuple[int, list[tuple[bytes, bytes]]] | None = None  # of the answer, until its body begins
        self._is_chunked = False  # the answer's body is
        self._left = 0  # bytes of an answer with a length that are still to be written

    # the request

    def feed(self, body: bytes) -> None:
        """Take a piece of the body; drop it where the answer is complete already."""
        self.received += len(body)
        if self.is_answered:
            return
        self._body.append(body)
        if self._arrived is None and not self._is_paused and self.received > BODY_AHEAD:
            self._is_paused = True
            self._connection.pause_reading()
        self._wake()

    def complete(self) -> None:
        """Take the end of the body."""
        self.is_whole = True
        self._wake()

    def fail(self, fault: Refused) -> None:
        """Raise `fault` where the application reads the body: the rest of it does not come, or comes too late."""
        self._fault = fault
        self._wake()

    def disconnect(self) -> None:
        """Note that the peer is gone."""
        self._is_gone = True
        if not self.is_whole:
            self._fault = self._fault or InvalidMessage("The connection was lost before the body was complete")
        self._wake()

    def _wake(self) -> None:
        if self._arrived is not None and not self._arrived.done():
            self._arrived.set_result(None)

    async def receive(self) -> Event:
        """Return the next piece of the body, or that the peer is gone or answered (ASGI).

        Raises:
            Refused: the body is broken, too slow, or was cut off.
        """
        if self._expects_continue and not self.is_started and not self.received and not self.is_whole:
            self._connection.write(b"HTTP/1.1 100 Continue\r\n\r\n")
        self._expects_continue = False
        while not self._body and (not self.is_whole or self._is_end_read):
            if self._fault is not None and not self.is_whole:
                raise self._fault
            if self._is_gone or self.is_answered:
                return {"type": "http.disconnect"}
            if self._is_paused:
                self._is_paused = False
                self._connection.resume_reading()
            self._arrived = asyncio.get_running_loop().create_future()
            try:
                await self._arrived
            finally:
                self._arrived = None
        body = self._body[0] if len(self._body) == 1 else b"".join(self._body)
        self._body.clear()
        self._is_end_read = self.is_whole
        return {"type": "http.request", "body": body, "more_body": not self.is_whole}

    # the answer

    async def run(self, app: App) -> None:
        """Call the application; an answer that it leaves incomplete ends the connection."""
        try:
            await app(self._scope, self.receive, self.send)
        except Exception:
            log.exception("http.unexpected", path=self._scope["path"])
        finally:
            if not self.is_answered:
                self._connection.abort()

    async def send(self, event: Event) -> None:
        """Write an answer (ASGI); its head goes out together with the first bytes of its body.

        Raises:
            ValueError: the answer contradicts its Content-Length, or a header field holds a line break.
        """
        if self._is_gone:
            return
        if event["type"] == "http.response.start":
            self.is_started = True
            if not self.is_whole or not self._connection.may_stay:
                self.keep_alive = False
            self._head = event["status"], list(event.get("headers", ()))
            return
        body, more = event.get("body", b""), event.get("more_body", False)
        head = b"" if self._head is None else self._head_bytes(*self._head, whole=None if more else len(body))
        self._head = None
        self._connection.write(head if self._is_head else head + self._framed(body, more=more))
        await self._connection.drained()
        if not more:
            self.is_answered = True
            self._body.clear()
            self._connection.answered(self)
            self._wake()

    def _head_bytes(self, status: int, headers: list[tuple[bytes, bytes]], *, whole: int | None) -> bytes:
        """Write the head; `whole` = the length of a body that is known to be complete."""
        length = next((int(value) for name, value in headers if name == b"content-length"), whole)
        if length is None:
            self._is_chunked = True
            headers.append((b"transfer-encoding", b"chunked"))
        else:
            self._left = length
            if not any(name == b"content-length" for name, _ in headers):
                headers.append((b"content-length", b"%d" % length))
        if not self.keep_alive:
            headers.append((b"connection", b"close"))
        return b"%s%s\r\n" % (status_line(status), lines_of([*self._connection.default_headers, *headers]))

    def _framed(self, body: bytes, *, more: bool) -> bytes:
        if self._is_chunked:
            return (b"%x\r\n%s\r\n" % (len(body), body) if body else b"") + (b"" if more else b"0\r\n\r\n")
        self._left -= len(body)
        if self._left < 0 or (self._left and not more):
            raise ValueError("the answer's body is not as long as its Content-Length says")
        return body
