"""One connection: an asyncio protocol for uvicorn's server.

httptools parses. This module bounds what a peer can make us hold, compute or wait for: the bytes and fields of a head,
pipelined requests, and the time for a head, a body, and reading an answer (`Limits`).

A connection is IDLE → HEAD → BODY → ANSWERING → IDLE, and CLOSING at its end. An answer that is complete before the
request's body closes the connection, but only after the rest of the body was discarded (RFC 9112 §9.6): a close
with unread bytes is a reset, which can take the answer away from the peer. Deadlines are checked by `expire()`, which
the server calls about once a second for every connection, so that a request costs no timer.
"""

from __future__ import annotations

import asyncio
from collections import deque
from dataclasses import dataclass
from enum import IntEnum
from typing import Any, cast
from urllib.parse import unquote

import httptools
from uvicorn.config import Config
from uvicorn.server import ServerState

from app.api.edge import App, answer_to
from app.api.problems import HeadTooLarge, MalformedRequest, MethodNotAllowed
from app.http1.exchange import Exchange
from app.http1.framing import (
    Fields,
    body_length,
    expects_continue,
    lines_of,
    split_target,
    status_line,
    without_upgrade,
)
from app.mail.errors import InvalidMessage, Overloaded, Refused

PIECE = 4096  # bytes of a chunked body that are parsed at once: what follows its end is another request
LARGE_READ = 64 * 1024  # bytes in one read, behind which other connections have their turn
PIPELINED = 64 * 1024  # bytes of further requests that are held while one is answered


@dataclass(frozen=True, slots=True)
class Limits:
    """What one connection may take, and how many there may be. Times in seconds.

    A body or an answer may take longer than its time while it moves at `bytes_per_second` or more.
    """

    connections: int
    head_bytes: int = 64 * 1024  # of a head; also of chunk extensions and trailers between two pieces of body
    head_fields: int = 100
    head_seconds: float = 10.0  # from a request's first byte, or from the connection's start
    body_seconds: float = 30.0
    answer_seconds: float = 60.0
    bytes_per_second: float = 20_000.0
    linger_seconds: float = 30.0  # for which the rest of a refused body is discarded
    linger_bytes: int = 128 << 20


@dataclass(slots=True)
class Pace:
    """How fast bytes move: in every `seconds` since `began`, at least so many as `rate` asks for."""

    began: float
    moved: int  # bytes by then
    seconds: float
    rate: float  # bytes per second

    def start(self, now: float) -> None:
        """Count from now on, and from no bytes."""
        self.began, self.moved = now, 0

    def is_too_slow(self, now: float, moved: int) -> bool:
        """Whether less than that moved; to be asked at least once in `seconds`."""
        if now - self.began <= self.seconds:
            return False
        if moved - self.moved < self.rate * self.seconds:
            return True
        self.began, self.moved = now, moved
        return False


class Phase(IntEnum):
    """Where a connection stands; the lower, the sooner it is closed to make room for another."""

    CLOSING = 0  # the last answer is written; what still arrives is discarded
    IDLE = 1  # between two requests
    HEAD = 2
    BODY = 3
    ANSWERING = 4  # the request is complete, its answer is not


class HttpProtocol(asyncio.Protocol):
    """One connection. The arguments are uvicorn's, but for `limits`."""

    def __init__(
        self,
        config: Config,
        server_state: ServerState,
        app_state: dict[str, Any],  # noqa: ARG002 (uvicorn's lifespan, which is off)
        _loop: asyncio.AbstractEventLoop | None = None,
        *,
        limits: Limits,
    ) -> None:
        if not config.loaded:
            config.load()
        self._app: App = config.loaded_app
        self._keep_alive = float(config.timeout_keep_alive)
        self._loop = _loop or asyncio.get_running_loop()
        self._server = server_state
        self._limits = limits
        self._parser = _new_parser(self)
        self._transport: asyncio.Transport = None  # type: ignore[assignment]  # until connection_made
        self._addresses: tuple[tuple[str, int | None] | None, tuple[str, int] | None] = (None, None)
        self.phase = Phase.HEAD
        self.since = self._loop.time()  # when the phase began
        # Requests without a complete answer, the oldest first; only behind a chunked body can there be more than one.
        self._exchanges: deque[Exchange] = deque()
        self._reading: Exchange | None = None  # whose body is arriving
        self._held = b""  # what arrived behind a complete request and is not parsed yet
        self._refusal: Refused | None = None  # of what cannot be parsed; given when the requests before it are answered
        self._is_flooded = False  # more was pipelined than we hold
        self._is_half_closed = False  # the peer sends nothing more
        self._is_reading = True  # unless what arrived has to be dealt with first
        self._is_breathing = False  # reading is paused for one turn of the loop
        self._is_shutting_down = False
        self._discarded = 0  # bytes, while CLOSING
        self._written = 0  # bytes
        self._unread: Pace | None = None  # at which the peer reads an answer; None = it has read what was written
        self._writable: asyncio.Future[None] | None = None  # None = the transport takes more
        # the request that is being parsed
        self._target = b""
        self._fields: Fields = []
        self._field_count = 0
        self._quiet = 0  # bytes parsed since the last piece of body, or since the head began
        self._tail = b""  # the last three bytes of a head that goes on
        self._body_left: int | None = None  # None = chunked
        self._body_pace = Pace(0.0, 0, seconds=limits.body_seconds, rate=limits.bytes_per_second)
        self._offers_upgrade = False

    # --- asyncio -------------------------------------------------------------------------------------------

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast("asyncio.Transport", transport)  # uvloop's are none by class
        self._addresses = _address(transport), _peer(transport)
        connections = self._server.connections
        if len(connections) >= self._limits.connections and not _make_room(self._server):
            self._answer(Overloaded(f"{len(connections)} connections are open, the most that are served at once"))
        connections.add(self)  # type: ignore[arg-type]  # uvicorn names its own protocols

    def connection_lost(self, exc: Exception | None) -> None:  # noqa: ARG002
        self._server.connections.discard(self)
        self.phase = Phase.CLOSING
        self._held = b""
        for exchange in self._exchanges:
            exchange.disconnect()
        self.resume_writing()

    def data_received(self, data: bytes) -> None:
        if len(data) >= LARGE_READ and not self._is_breathing and self._is_reading:
            # More is waiting. libuv would read it up to 32 times before it turns to the next connection.
            self._is_breathing = True
            self._transport.pause_reading()
            self._loop.call_soon(self._read_on)
        if self.phase is Phase.CLOSING:
            self._discard(len(data))
        elif self._is_complete:
            self._hold(data)
        elif self._refusal is None:
            self._parse(data)

    def eof_received(self) -> bool:
        """Keep the connection for the answers to a peer that has closed its own side after a complete request."""
        self._is_half_closed = True
        if self._reading is not None:
            self._reading.fail(InvalidMessage("The connection was closed before the body was complete"))
            return self.phase is not Phase.CLOSING
        return bool(self._exchanges) and not self._exchanges[0].is_started

    def pause_writing(self) -> None:
        self._writable = self._loop.create_future()

    def resume_writing(self) -> None:
        if self._writable is not None and not self._writable.done():
            self._writable.set_result(None)
        self._writable = None

    # --- the server ----------------------------------------------------------------------------------------

    def shutdown(self) -> None:
        """Close now where nothing is under way, else after the answer."""
        self._is_shutting_down = True
        if not self._exchanges:
            self._transport.close()

    def expire(self, now: float) -> None:
        """Close the connection, or fail its request, if it is past a deadline; `now` in the loop's time."""
        limits, age = self._limits, now - self.since
        if self._is_left_unread(now):
            self._transport.abort()
        elif self.phase is Phase.IDLE:
            if age > self._keep_alive:
                self._transport.close()
        elif self.phase is Phase.HEAD:
            if age > limits.head_seconds:
                self._transport.abort()
        elif self.phase is Phase.CLOSING:
            if age > limits.linger_seconds and self._unread is None:
                self._transport.abort()
        elif self._reading is not None and self._body_pace.is_too_slow(now, self._reading.received):
            self._reading.fail(
                InvalidMessage(
                    f"The body is too slow: {self._reading.received} bytes in {age:.0f} s; send it within "
                    f"{limits.body_seconds:g} s, or at {limits.bytes_per_second / 1000:g} kB/s"
                )
            )

    def _is_left_unread(self, now: float) -> bool:
        """Whether the peer takes too long to read what was written; what has left us counts as read."""
        buffered = self._transport.get_write_buffer_size()
        if not buffered:
            self._unread = None
            return False
        read = self._written - buffered
        if self._unread is None:
            self._unread = Pace(now, read, seconds=self._limits.answer_seconds, rate=self._limits.bytes_per_second)
        return self._unread.is_too_slow(now, read)

    def abort(self) -> None:
        """End the connection at once, so that an incomplete answer is not taken for a complete one."""
        self.phase = Phase.CLOSING
        self._transport.abort()

    # --- reading -------------------------------------------------------------------------------------------

    @property
    def _is_complete(self) -> bool:
        """Whether the request that arrived last is complete, and not answered."""
        return self._reading is None and bool(self._exchanges)

    def _parse(self, data: bytes) -> None:
        """Parse in pieces that end where a request may end, and hold what follows an unanswered one."""
        if self.phase is Phase.IDLE:
            self._enter(Phase.HEAD)
        view, at = memoryview(data), 0
        while at < len(data):
            if self._is_complete:
                self._hold(data[at:])
                return
            if self._quiet >= self._limits.head_bytes:
                most = self._limits.head_bytes
                self._refuse(HeadTooLarge(f"The head of the request has more than {most} bytes"))
                return
            end = self._end_of_piece(data, at)
            self._quiet += end - at
            try:
                self._parser.feed_data(view[at:end])
            except httptools.HttpParserUpgrade as upgrade:
                end = at + upgrade.args[0]
                self._ignore_offer()
            except httptools.HttpParserError as error:
                self._refuse(MalformedRequest(f"The request is not HTTP/1.1: {str(error)[:100]}"))
                return
            if self._refusal is not None:
                self._refuse(self._refusal)
                return
            at = end

    def _end_of_piece(self, data: bytes, at: int) -> int:
        if self._reading is not None:
            return min(len(data), at + (PIECE if self._body_left is None else self._body_left))
        most = min(len(data), at + self._limits.head_bytes - self._quiet)
        seam = self._tail + data[at : at + 3]
        if self._tail and (found := seam.find(b"\r\n\r\n")) >= 0:
            end = at + found + 4 - len(self._tail)
        else:
            found = data.find(b"\r\n\r\n", at, most)
            end = found + 4 if found >= 0 else most
        self._tail = b"" if found >= 0 else (self._tail + data[max(at, end - 3) : end])[-3:]
        return end

    def _hold(self, data: bytes) -> None:
        """Keep what follows an unanswered request, and read no further; where that is too much, close after it."""
        self.pause_reading()
        if len(self._held) + len(data) > PIPELINED:
            self._held = b""
            self._is_flooded = True
            self._exchanges[-1].keep_alive = False
        elif not self._is_flooded:
            self._held += data

    def _discard(self, count: int) -> None:
        self._discarded += count
        if self._discarded > self._limits.linger_bytes:
            self._transport.abort()

    def _ignore_offer(self) -> None:
        """Parse the head once more without its offer of another protocol, and go on with the body (RFC 9110 §7.8).

        The parser takes what follows such a head for the other protocol's, body or not.
        """
        self._offers_upgrade = False
        method = self._parser.get_method()
        if method == b"CONNECT":
            self._refusal = MethodNotAllowed("CONNECT is not served: this is not a proxy", allow="GET, HEAD, POST")
            return
        version = self._parser.get_http_version().encode()
        lines = lines_of(without_upgrade(self._fields))
        self._parser = _new_parser(self)
        self._parser.feed_data(b"%s %s HTTP/%s\r\n%s\r\n" % (method, self._target, version, lines))

    def _refuse(self, refusal: Refused) -> None:
        """Answer what is no request, after those before it, and close."""
        self._refusal = refusal
        if self._reading is not None:
            self._reading.fail(refusal)
        elif not self._exchanges:
            self._answer(refusal)

    def _answer(self, refusal: Refused) -> None:
        """Answer without a request, and close."""
        answer = answer_to(refusal, {})
        fields = [*self.default_headers, *answer.headers, (b"content-length", b"%d" % len(answer.body))]
        head = lines_of([*fields, (b"connection", b"close")])
        self.write(b"%s%s\r\n%s" % (status_line(answer.status), head, answer.body))
        self._linger(arrives=True)

    # httptools' callbacks

    def on_message_begin(self) -> None:
        self._target = b""
        self._fields = []
        self._field_count = 0

    def on_url(self, url: bytes) -> None:
        self._target += url

    def on_header(self, name: bytes, value: bytes) -> None:
        self._field_count += 1
        if self._field_count > self._limits.head_fields:
            self._refusal = HeadTooLarge(f"The request has more than {self._limits.head_fields} header fields")
        elif self._reading is None:  # else it is a trailer, and ignored (RFC 9110 §6.5.1)
            self._fields.append((name.lower(), value))

    def on_headers_complete(self) -> None:
        self._offers_upgrade = self._parser.should_upgrade()
        if self._refusal is not None or self._offers_upgrade:
            return
        version = self._parser.get_http_version()
        try:
            self._body_left = body_length(self._fields, version)
            scope = self._scope(version)
        except Refused as refusal:
            self._refusal = refusal
            return
        self._quiet = 0
        self._reading = exchange = Exchange(
            self,
            scope,
            keep_alive=version == "1.1" and self._parser.should_keep_alive(),
            expects_continue=version == "1.1" and expects_continue(self._fields),
        )
        self._exchanges.append(exchange)
        self._enter(Phase.BODY)
        self._body_pace.start(self.since)
        if len(self._exchanges) == 1:
            self._start(exchange)

    def _scope(self, version: str) -> dict[str, Any]:
        path, query, authority = split_target(self._target)
        headers = self._fields
        if authority is not None:  # RFC 9112 §3.2.2: it counts, and not what Host says
            headers = [(b"host", authority), *(field for field in headers if field[0] != b"host")]
        server, client = self._addresses
        return {
            "type": "http",
            "asgi": {"version": "3.0", "spec_version": "2.3"},
            "http_version": version,
            "method": self._parser.get_method().decode("ascii"),
            "scheme": "http",
            "path": unquote(path) if "%" in path else path,
            "raw_path": path.encode("latin-1"),
            "query_string": query,
            "root_path": "",
            "headers": headers,
            "server": server,
            "client": client,
            "state": {},
        }

    def on_body(self, body: bytes) -> None:
        if self._reading is not None:
            self._quiet = 0
            if self._body_left is not None:
                self._body_left -= len(body)
            self._reading.feed(body)

    def on_message_complete(self) -> None:
        if self._reading is None or self._refusal is not None:
            return
        self._reading.complete()
        self._reading = None
        self._quiet = 0
        self._enter(Phase.ANSWERING)

    # --- answering -----------------------------------------------------------------------------------------

    def _start(self, exchange: Exchange) -> None:
        task = self._loop.create_task(exchange.run(self._app))
        self._server.tasks.add(task)
        task.add_done_callback(self._server.tasks.discard)

    @property
    def default_headers(self) -> Fields:
        return self._server.default_headers

    @property
    def may_stay(self) -> bool:
        """Whether the connection can serve another request after this one."""
        return not self._is_shutting_down and self._refusal is None and not self._is_flooded

    def write(self, data: bytes) -> None:
        """Write, or buffer; `drained()` waits until the transport takes more."""
        self._written += len(data)
        self._transport.write(data)

    async def drained(self) -> None:
        """Wait until the transport takes more, or is lost; the deadline for reading an answer bounds that."""
        if self._writable is not None:
            await self._writable

    def pause_reading(self) -> None:
        """Read nothing more until `resume_reading()`."""
        self._is_reading = False
        if not self._transport.is_closing():
            self._transport.pause_reading()

    def resume_reading(self) -> None:
        self._is_reading = True
        if not self._is_breathing and not self._transport.is_closing():
            self._transport.resume_reading()

    def _read_on(self) -> None:
        """Read on after the other connections have had their turn."""
        self._is_breathing = False
        if self._is_reading and not self._transport.is_closing():
            self._transport.resume_reading()

    def answered(self, exchange: Exchange) -> None:
        """Go on after an answer has been written."""
        self._server.total_requests += 1
        if self._transport.is_closing():
            return
        self._exchanges.popleft()
        if not exchange.keep_alive:
            self._linger(arrives=self._reading is not None or bool(self._held) or self._is_flooded)
        elif self._exchanges:
            self._start(self._exchanges[0])
        elif self._refusal is not None:
            self._answer(self._refusal)
        else:
            self._next()

    def _next(self) -> None:
        self._enter(Phase.IDLE)
        held, self._held = self._held, b""
        if held:
            self._parse(held)
        if self._is_half_closed and not self._exchanges:
            self._transport.close()
        else:
            self.resume_reading()

    def _linger(self, *, arrives: bool) -> None:
        """Close our side, and where something still arrives discard it until the peer closes (RFC 9112 §9.6)."""
        self._enter(Phase.CLOSING)
        self._reading, self._held = None, b""
        if not arrives or self._is_half_closed:
            self._transport.close()
            return
        if self._transport.can_write_eof():
            self._transport.write_eof()
        self.resume_reading()

    def _enter(self, phase: Phase) -> None:
        self.phase = phase
        self.since = self._loop.time()


def _new_parser(protocol: HttpProtocol) -> Any:
    parser = httptools.HttpRequestParser(protocol)
    # What follows a request with `Connection: close` is ignored, and no fault of that request.
    parser.set_dangerous_leniencies(lenient_data_after_close=True)
    return parser


def _make_room(server: ServerState) -> bool:
    """Close one connection for a new one: the oldest of those that are farthest from a complete request."""
    others = (one for one in server.connections if isinstance(one, HttpProtocol) and one.phase is not Phase.ANSWERING)
    oldest = min(others, key=lambda one: (one.phase, one.since), default=None)
    if oldest is None:
        return False
    server.connections.discard(oldest)
    oldest.abort()
    return True


def _address(transport: asyncio.BaseTransport) -> tuple[str, int | None] | None:
    """The socket's own end; a Unix socket has a path and no port (ASGI)."""
    address = transport.get_extra_info("sockname")
    if isinstance(address, bytes):
        return address.decode("utf-8", "replace"), None
    if isinstance(address, str):
        return address, None
    return (str(address[0]), int(address[1])) if address else None


def _peer(transport: asyncio.BaseTransport) -> tuple[str, int] | None:
    address = transport.get_extra_info("peername")
    return (str(address[0]), int(address[1])) if isinstance(address, tuple) and len(address) >= 2 else None
