"""One connection, by raw bytes, in front of an application of our own; h11 reads the answers.

Time is an argument of `expire()`, so no test waits for a deadline.
"""

import asyncio
import http.client
import json
import socket
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, field, replace
from functools import partial
from hashlib import sha256
from typing import Any

import h11
import pytest
import uvicorn
from uvicorn.server import ServerState

from app.api.edge import Event, Receive, Scope, Send
from app.http1.connection import HttpProtocol, Limits, Phase
from app.mail.errors import Refused
from tests.support.factories import on_uvloop

PATIENCE = 10.0  # seconds until a test that waits for the network fails
LIMITS = Limits(connections=100)
LARGE = 40_000_000  # bytes: more than all buffers between two sockets


@dataclass
class Server:
    """The application under the protocol: it echoes what it was asked for; `/early` answers without reading."""

    limits: Limits = LIMITS
    state: ServerState = field(default_factory=ServerState)
    asked: list[str] = field(default_factory=list)
    let_go: asyncio.Event = field(default_factory=asyncio.Event)
    at_work: asyncio.Event = field(default_factory=asyncio.Event)
    port: int = 0

    async def app(self, scope: Scope, receive: Receive, send: Send) -> None:
        path = scope["path"]
        self.asked.append(path)
        status, body = 200, b""
        try:
            if path == "/early":
                status = 401
            elif path == "/later":
                self.at_work.set()
                await self.let_go.wait()
            if path != "/early":
                body = await _whole(receive)
        except Refused as refusal:
            status, body = 422, refusal.detail.encode()
        shape = {
            "path": path,
            "method": scope["method"],
            "query": scope["query_string"].decode(),
            "headers": {name.decode(): value.decode() for name, value in scope["headers"]},
            "size": len(body),
            "sha256": sha256(body).hexdigest(),
            "detail": body.decode("utf-8", "replace") if status == 422 else "",
        }
        answer = b"x" * LARGE if path == "/large" else json.dumps(shape).encode()
        await send({"type": "http.response.start", "status": status, "headers": [(b"content-type", b"a/b")]})
        if path == "/streamed":
            await send({"type": "http.response.body", "body": answer[:5], "more_body": True})
            await send({"type": "http.response.body", "body": answer[5:], "more_body": True})
            answer = b""
        await send({"type": "http.response.body", "body": answer})

    @property
    def connections(self) -> list[HttpProtocol]:
        return [one for one in self.state.connections if isinstance(one, HttpProtocol)]

    async def connection(self) -> HttpProtocol:
        """Wait until there is one."""
        await self.until(lambda: bool(self.connections))
        return self.connections[0]

    async def until(self, holds: Any) -> None:
        async with asyncio.timeout(PATIENCE):
            while not holds():
                await asyncio.sleep(0)

    def expire(self, seconds: float) -> None:
        """Look at the deadlines as if so much time had passed."""
        for connection in self.connections:
            connection.expire(asyncio.get_running_loop().time() + seconds)


async def _whole(receive: Receive) -> bytes:
    parts = []
    more = True
    while more:
        event: Event = await receive()
        parts.append(event.get("body", b""))
        more = event.get("more_body", False)
    return b"".join(parts)


@asynccontextmanager
async def serving(limits: Limits = LIMITS) -> AsyncIterator[Server]:
    server = Server(limits)
    config = uvicorn.Config(server.app, interface="asgi3", log_config=None, proxy_headers=False, timeout_keep_alive=130)
    make = partial(HttpProtocol, config, server.state, {}, limits=limits)
    listener = await asyncio.get_running_loop().create_server(make, "127.0.0.1", 0)
    server.port = listener.sockets[0].getsockname()[1]
    try:
        yield server
    finally:
        server.let_go.set()
        listener.close()
        for connection in server.connections:
            connection.abort()
        await listener.wait_closed()


@dataclass(frozen=True)
class Answer:
    status: int
    headers: dict[str, str]
    body: bytes

    @property
    def json(self) -> dict[str, Any]:
        shape: dict[str, Any] = json.loads(self.body)
        return shape


class Incomplete(Exception):
    """There is no whole answer yet."""


def answers_in(received: bytes, *, is_closed: bool, methods: tuple[str, ...] = ()) -> list[Answer]:
    """Read answers with h11, which is strict; `methods` of the requests where not all are GET."""
    answers: list[Answer] = []
    while received:
        client = h11.Connection(h11.CLIENT)
        method = methods[len(answers)] if len(answers) < len(methods) else "GET"
        client.send(h11.Request(method=method, target="/", headers=[("Host", "a")]))
        client.send(h11.EndOfMessage())
        client.receive_data(received)
        if is_closed:
            client.receive_data(b"")
        status, headers, body = 0, {}, b""
        while not isinstance(event := client.next_event(), h11.EndOfMessage):
            if isinstance(event, h11.Response):
                status = event.status_code
                headers = {name.decode(): value.decode() for name, value in event.headers}
            elif isinstance(event, h11.Data):
                body += bytes(event.data)
            elif not isinstance(event, h11.InformationalResponse):
                raise Incomplete(received[:200])
        answers.append(Answer(status, headers, body))
        received = client.trailing_data[0]
    return answers


async def ask(server: Server, *pieces: bytes, expect: int = 1, methods: tuple[str, ...] = ()) -> list[Answer]:
    """Send the pieces, each in a packet of its own, and read until there are so many answers, or the end."""
    reader, writer = await asyncio.open_connection("127.0.0.1", server.port)
    try:
        for piece in pieces:
            writer.write(piece)
            await writer.drain()
            await asyncio.sleep(0)
        return await read_answers(reader, expect, methods)
    finally:
        writer.close()


async def read_answers(reader: asyncio.StreamReader, expect: int, methods: tuple[str, ...] = ()) -> list[Answer]:
    received = b""
    async with asyncio.timeout(PATIENCE):
        while True:
            more = await reader.read(1 << 20)
            received += more
            with suppress(Incomplete, h11.RemoteProtocolError):
                answers = answers_in(received, is_closed=not more, methods=methods)
                if len(answers) >= expect or not more:
                    return answers
            if not more:
                raise AssertionError(f"the end came within an answer: {received[-300:]!r}")


def chunked(body: bytes, size: int = 7) -> bytes:
    pieces = (body[at : at + size] for at in range(0, len(body), size))
    return b"".join(b"%x\r\n%s\r\n" % (len(piece), piece) for piece in pieces) + b"0\r\n\r\n"


BODY = b'{"to": "ann@example.org"}\r\n\r\nGET /smuggled HTTP/1.1\r\nHost: a\r\n\r\n'
OFFERS = {
    "h2c": b"Connection: Upgrade, HTTP2-Settings\r\nUpgrade: h2c\r\nHTTP2-Settings: AAMAAABkAAQAoAAAAAIAAAAA\r\n",
    "websocket": b"Connection: Upgrade\r\nUpgrade: websocket\r\nSec-WebSocket-Version: 13\r\nSec-WebSocket-Key: YQ==\r\n",
    "tls": b"Connection: upgrade\r\nUpgrade: TLS/1.2\r\n",
    "keep-alive": b"Connection: keep-alive, Upgrade\r\nUpgrade: h2c, websocket\r\n",
    "none": b"",
}
FRAMINGS = {
    "length": b"Content-Length: %d\r\n\r\n%s" % (len(BODY), BODY),
    "chunked": b"Transfer-Encoding: chunked\r\n\r\n" + chunked(BODY),
    "one-chunk": b"Transfer-Encoding: chunked\r\n\r\n" + chunked(BODY, 1000),
}


def _pieces(request: bytes) -> Iterator[tuple[str, list[bytes]]]:
    yield "one-packet", [request]
    yield "head-then-body", [*request.partition(b"\r\n\r\n")[:2], request.partition(b"\r\n\r\n")[2]]
    yield "every-byte", [request[at : at + 1] for at in range(len(request))]


@pytest.mark.parametrize("framing", FRAMINGS)
@pytest.mark.parametrize("offer", OFFERS)
@on_uvloop
async def test_an_offered_upgrade_is_ignored_and_the_body_is_read(offer: str, framing: str) -> None:
    request = b"POST /a?b=c HTTP/1.1\r\nHost: a\r\nX-Mark: 1\r\n" + OFFERS[offer] + FRAMINGS[framing]
    async with serving() as server:
        for name, pieces in _pieces(request):
            server.asked.clear()
            next_one = b"GET /next HTTP/1.1\r\nHost: a\r\n\r\n"
            first, second = await ask(server, *pieces, next_one, expect=2, methods=("POST",))
            assert (first.status, first.json["sha256"]) == (200, sha256(BODY).hexdigest()), name
            assert (first.json["query"], first.json["headers"]["x-mark"]) == ("b=c", "1")
            assert (second.json["path"], server.asked) == ("/next", ["/a", "/next"])


@pytest.mark.parametrize("offer", OFFERS)
@on_uvloop
async def test_an_upgrade_without_a_body_is_ignored_too(offer: str) -> None:
    one = b"GET /%d HTTP/1.1\r\nHost: a\r\n" + OFFERS[offer] + b"\r\n"
    async with serving() as server:
        answers = await ask(server, one % 1 + one % 2 + one % 3, expect=3)
    assert [answer.json["path"] for answer in answers] == ["/1", "/2", "/3"]


@on_uvloop
async def test_pipelined_requests_are_answered_one_by_one_and_in_order() -> None:
    requests = b"".join(
        b"POST /%d HTTP/1.1\r\nHost: a\r\n%s" % (number, FRAMINGS[framing])
        for number, framing in enumerate([*FRAMINGS] * 20)
    )
    async with serving() as server:
        answers = await ask(server, requests, expect=60, methods=("POST",) * 60)
        assert [answer.json["path"] for answer in answers] == [f"/{number}" for number in range(60)]
        assert {answer.json["sha256"] for answer in answers} == {sha256(BODY).hexdigest()}
        assert len(server.asked) == 60


@on_uvloop
async def test_a_flood_of_pipelined_requests_is_held_in_64_kb_and_ends_the_connection() -> None:
    async with serving() as server:
        reader, writer = await asyncio.open_connection("127.0.0.1", server.port)
        writer.write(b"GET /later HTTP/1.1\r\nHost: a\r\n\r\n")
        await server.at_work.wait()
        flooding = asyncio.ensure_future(_write(writer, b"GET /livez HTTP/1.1\r\nHost: a\r\n\r\n" * 300_000))
        connection = await server.connection()
        await server.until(lambda: connection._is_flooded)
        assert len(connection._held) == 0
        server.let_go.set()
        (answer,) = await read_answers(reader, 1)
        assert answer.headers["connection"] == "close"
        assert server.asked == ["/later"]
        flooding.cancel()
        writer.transport.abort()


async def _write(writer: asyncio.StreamWriter, data: bytes) -> None:
    writer.write(data)
    with suppress(ConnectionError):
        await writer.drain()


@on_uvloop
async def test_trailers_are_ignored() -> None:
    body = b"3\r\nabc\r\n0\r\nX-Api-Key: stolen\r\nIdempotency-Key: other\r\n\r\n"
    request = b"POST /a HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n" + body
    async with serving() as server:
        (answer,) = await ask(server, request, methods=("POST",))
    assert answer.json["size"] == 3
    assert set(answer.json["headers"]) == {"host", "transfer-encoding"}


@pytest.mark.parametrize(
    ("request_", "status"),
    [
        pytest.param(b"GET / HTTP/1.1\r\nHost: a\r\nHost: b\r\n\r\n", 400, id="two-hosts"),
        pytest.param(b"GET a HTTP/1.1\r\nHost: a\r\n\r\n", 400, id="no-target"),
        pytest.param(b"CONNECT a:80 HTTP/1.1\r\nHost: a\r\n\r\n", 405, id="connect"),
        pytest.param(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n", 400, id="http-2-preface"),
        pytest.param(b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03", 400, id="tls"),
        pytest.param(b"GET / HTTP/1.1\r\nHost : a\r\n\r\n", 400, id="blank-before-colon"),
        pytest.param(b"GET / HTTP/1.1\nHost: a\n\n", 400, id="bare-line-feeds"),
        pytest.param(b"GET / HTTP/1.1\r\nHost: a\r\nA: b\r\n c\r\n\r\n", 400, id="folded"),
        pytest.param(
            b"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 3\r\nContent-Length: 4\r\n\r\n", 400, id="lengths"
        ),
        pytest.param(b"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: -1\r\n\r\n", 400, id="negative"),
        pytest.param(
            b"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 3\r\nTransfer-Encoding: chunked\r\n\r\n", 400, id="both"
        ),
        pytest.param(
            b"POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: gzip, chunked\r\n\r\n" + chunked(b"a"), 415, id="gzip"
        ),
        pytest.param(b"POST / HTTP/1.0\r\nTransfer-Encoding: chunked\r\n\r\n" + chunked(b"a"), 400, id="1.0-chunked"),
        pytest.param(b"GET / HTTP/1.1\r\nHost: a\r\n" + b"A: b\r\n" * 100 + b"\r\n", 431, id="101-fields"),
        pytest.param(b"GET / HTTP/1.1\r\nHost: a\r\nA: " + b"b" * 65536 + b"\r\n\r\n", 431, id="long-value"),
        pytest.param(b"GET / HTTP/1.1\r\nHost: a\r\n" + b"A" * 65536 + b": b\r\n\r\n", 431, id="long-name"),
        pytest.param(b"GET /" + b"a" * 65536 + b" HTTP/1.1\r\nHost: a\r\n\r\n", 431, id="long-target"),
        pytest.param(b"GET / HTTP/1.1\r\n" + b"A: b\r\n" * 20000, 431, id="endless-lines"),
        pytest.param(b"\r\n" * 40000, 431, id="endless-empty-lines"),
    ],
)
@on_uvloop
async def test_what_is_no_request_is_answered_once_with_a_problem_and_the_connection_closed(
    request_: bytes, status: int
) -> None:
    async with serving() as server:
        (answer,) = await ask(server, request_, b"GET /next HTTP/1.1\r\nHost: a\r\n\r\n", expect=2)
        assert (answer.status, answer.headers["connection"]) == (status, "close")
        assert answer.json["errors"][0]["detail"] == answer.json["detail"]
        assert server.asked == []


@pytest.mark.parametrize("size", [65536 - 100, 65535, 65536])
@on_uvloop
async def test_a_head_of_64_kb_is_taken(size: int) -> None:
    start, end = b"GET / HTTP/1.1\r\nHost: a\r\nA: ", b"\r\n\r\n"
    async with serving() as server:
        for split in (1, 1000, 65000):
            head = start + b"b" * (size - len(start) - len(end)) + end
            (answer,) = await ask(server, head[:split], head[split:])
            assert answer.status == 200


@pytest.mark.parametrize(
    "rest",
    [
        pytest.param(b"1;" + b"a" * 200_000, id="chunk-extension"),
        pytest.param(b"1\r\na\r\n0\r\nA: " + b"b" * 200_000, id="trailer-value"),
        pytest.param(b"1\r\na\r\n0\r\n" + b"A: b\r\n" * 40_000, id="trailer-lines"),
        pytest.param(b"zz\r\n", id="no-chunk-size"),
        pytest.param(b"1\r\nabc\r\n0\r\n\r\n", id="longer-than-its-size"),
        pytest.param(b"fffffffffffffffff\r\n", id="size-overflows"),
    ],
)
@on_uvloop
async def test_a_chunked_body_that_is_broken_or_endless_is_refused_where_it_is_read(rest: bytes) -> None:
    request = b"POST /a HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n"
    async with serving() as server:
        (answer,) = await ask(server, request, rest, methods=("POST",))
    assert (answer.status, answer.headers["connection"]) == (422, "close")
    assert answer.json["detail"]


@pytest.mark.parametrize("framing", ["length", "chunked"])
@on_uvloop
async def test_a_caller_that_sends_all_before_it_reads_gets_an_early_answer(framing: str) -> None:
    async with serving() as server:
        status, closes = await asyncio.to_thread(_post_all, server.port, framing)
        assert (status, closes) == (401, "close")


def _post_all(port: int, framing: str) -> tuple[int, str | None]:
    """As urllib does it: the answer is looked at when the last byte is gone; a reset raises."""
    caller = http.client.HTTPConnection("127.0.0.1", port, timeout=PATIENCE)
    body = b"a" * LARGE
    pieces = (body[at : at + 100_000] for at in range(0, LARGE, 100_000))
    caller.request("POST", "/early", body if framing == "length" else pieces, encode_chunked=framing == "chunked")
    answer = caller.getresponse()
    answer.read()
    caller.close()
    return answer.status, answer.headers["connection"]


@on_uvloop
async def test_the_rest_of_a_refused_body_is_discarded_within_bounds() -> None:
    async with serving(replace(LIMITS, linger_bytes=1_000_000)) as server:
        reader, writer = await asyncio.open_connection("127.0.0.1", server.port)
        writer.write(b"POST /early HTTP/1.1\r\nHost: a\r\nContent-Length: 99999999\r\n\r\n")
        (answer,) = await read_answers(reader, 1, ("POST",))
        assert answer.status == 401
        connection = await server.connection()
        assert connection.phase is Phase.CLOSING
        writer.write(b"a" * 500_000)
        await server.until(lambda: connection._discarded == 500_000)
        assert server.connections == [connection]
        writer.write(b"a" * 600_000)
        await server.until(lambda: not server.connections)
        writer.transport.abort()


@on_uvloop
async def test_a_peer_that_lingers_too_long_is_cut_off() -> None:
    async with serving() as server:
        reader, writer = await asyncio.open_connection("127.0.0.1", server.port)
        writer.write(b"POST /early HTTP/1.1\r\nHost: a\r\nContent-Length: 10\r\n\r\n")
        await read_answers(reader, 1, ("POST",))
        server.expire(29)
        assert server.connections
        server.expire(31)
        await server.until(lambda: not server.connections)
        writer.transport.abort()


@pytest.mark.parametrize(("path", "continues"), [("/early", False), ("/a", True)])
@on_uvloop
async def test_a_caller_that_waits_for_100_gets_it_only_where_the_body_is_wanted(path: str, continues: bool) -> None:
    async with serving() as server:
        reader, writer = await asyncio.open_connection("127.0.0.1", server.port)
        for value in (b"100-continue", b"100-Continue"):
            head = b"POST %s HTTP/1.1\r\nHost: a\r\nExpect: %s\r\nContent-Length: 3\r\n\r\n" % (path.encode(), value)
            writer.write(head)
            first = await asyncio.wait_for(reader.readuntil(b"\r\n\r\n"), PATIENCE)
            assert first.startswith(b"HTTP/1.1 100" if continues else b"HTTP/1.1 401"), first
            if not continues:
                break
            writer.write(b"abc")
            (answer,) = await read_answers(reader, 1, ("POST",))
            assert answer.json["size"] == 3
        writer.close()


@on_uvloop
async def test_an_absolute_target_counts_by_its_own_authority() -> None:
    async with serving() as server:
        (answer,) = await ask(server, b"GET http://evil.test:81/a?b HTTP/1.1\r\nHost: 127.0.0.1\r\nA: b\r\n\r\n")
    assert (answer.json["path"], answer.json["query"]) == ("/a", "b")
    assert answer.json["headers"] == {"host": "evil.test:81", "a": "b"}


@pytest.mark.parametrize(
    ("request_", "method"),
    [(b"HEAD / HTTP/1.1\r\nHost: a\r\n\r\n", "HEAD"), (b"GET /streamed HTTP/1.1\r\nHost: a\r\n\r\n", "GET")],
    ids=["head", "streamed"],
)
@on_uvloop
async def test_answers_of_every_framing_leave_the_connection_usable(request_: bytes, method: str) -> None:
    async with serving() as server:
        first, second = await ask(server, request_ * 2, expect=2, methods=(method, method))
        assert first == second
        if method == "GET":
            assert (first.headers["transfer-encoding"], first.json["path"]) == ("chunked", "/streamed")
        else:
            assert first.body == b""


@on_uvloop
async def test_http_1_0_is_answered_and_closed() -> None:
    async with serving() as server:
        (answer,) = await ask(server, b"GET / HTTP/1.0\r\nConnection: keep-alive\r\n\r\n" * 2, expect=2)
    assert answer.headers["connection"] == "close"


@on_uvloop
async def test_a_caller_that_has_closed_its_side_gets_the_answers_to_its_complete_requests() -> None:
    async with serving() as server:
        reader, writer = await asyncio.open_connection("127.0.0.1", server.port)
        writer.write(b"GET /1 HTTP/1.1\r\nHost: a\r\n\r\nGET /2 HTTP/1.1\r\nHost: a\r\n\r\n")
        writer.write_eof()
        answers = await read_answers(reader, 3)
        assert [answer.json["path"] for answer in answers] == ["/1", "/2"]
        await server.until(lambda: not server.connections)
        writer.close()


@pytest.mark.parametrize("how", ["closes-its-side", "resets"])
@on_uvloop
async def test_a_body_that_is_cut_off_is_never_taken_for_a_whole_one(how: str) -> None:
    async with serving() as server:
        reader, writer = await asyncio.open_connection("127.0.0.1", server.port)
        writer.write(b"POST /a HTTP/1.1\r\nHost: a\r\nContent-Length: 10\r\n\r\n{}")
        await server.until(lambda: server.asked == ["/a"])
        if how == "closes-its-side":
            writer.write_eof()
            (answer,) = await read_answers(reader, 1, ("POST",))
            assert answer.status == 422
            assert "before the body was complete" in answer.json["detail"]
        else:
            raw = writer.get_extra_info("socket")
            raw.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\1\0\0\0\0\0\0\0")
            writer.transport.abort()
        await server.until(lambda: not server.connections and not server.state.tasks)
        writer.close()


class TestDeadlines:
    @pytest.mark.parametrize(
        "sent", [b"", b"GET / HT", b"GET / HTTP/1.1\r\nHost: a\r\n"], ids=["nothing", "line", "head"]
    )
    @on_uvloop
    async def test_a_head_that_does_not_come_in_10_seconds_is_not_waited_for(self, sent: bytes) -> None:
        async with serving() as server:
            reader, writer = await asyncio.open_connection("127.0.0.1", server.port)
            writer.write(sent)
            await server.connection()
            server.expire(9)
            assert server.connections
            server.expire(11)
            with suppress(ConnectionResetError):
                assert await asyncio.wait_for(reader.read(), PATIENCE) == b""
            await server.until(lambda: not server.connections)
            writer.close()

    @on_uvloop
    async def test_a_byte_at_a_time_does_not_extend_the_deadline(self) -> None:
        async with serving() as server:
            _, writer = await asyncio.open_connection("127.0.0.1", server.port)
            writer.write(b"G")
            connection = await server.connection()
            began = connection.since
            for byte in b"ET / HTTP/1.1\r\nHost: ":
                writer.write(bytes([byte]))
            await writer.drain()
            await server.until(lambda: connection._quiet == 22)
            assert connection.since == began
            writer.transport.abort()

    @on_uvloop
    async def test_an_idle_connection_is_kept_for_as_long_as_the_server_is_told(self) -> None:
        async with serving() as server:
            reader, writer = await asyncio.open_connection("127.0.0.1", server.port)
            writer.write(b"GET / HTTP/1.1\r\nHost: a\r\n\r\n")
            await read_answers(reader, 1)
            server.expire(129)
            assert server.connections
            server.expire(131)
            assert await asyncio.wait_for(reader.read(), PATIENCE) == b""
            writer.close()

    @on_uvloop
    async def test_a_body_that_does_not_come_is_answered_and_its_connection_closed(self) -> None:
        async with serving() as server:
            reader, writer = await asyncio.open_connection("127.0.0.1", server.port)
            writer.write(b"POST /a HTTP/1.1\r\nHost: a\r\nContent-Length: 10000000\r\n\r\n" + b"a" * 599_000)
            connection = await server.connection()
            await server.until(lambda: connection._reading is not None and connection._reading.received == 599_000)
            server.expire(29)
            server.expire(31)
            (answer,) = await read_answers(reader, 1, ("POST",))
            assert (answer.status, answer.headers["connection"]) == (422, "close")
            assert "599000 bytes" in answer.json["detail"]
            writer.close()
            await server.until(lambda: not server.connections)

    @on_uvloop
    async def test_a_body_may_take_long_while_it_moves_and_no_longer(self) -> None:
        async with serving() as server:
            reader, writer = await asyncio.open_connection("127.0.0.1", server.port)
            writer.write(b"POST /a HTTP/1.1\r\nHost: a\r\nContent-Length: 1300000\r\n\r\n" + b"a" * 601_000)
            connection = await server.connection()
            await server.until(lambda: connection._reading is not None and connection._reading.received == 601_000)
            server.expire(31)  # 20 kB/s
            writer.write(b"a" * 601_000)
            await server.until(lambda: connection._reading is not None and connection._reading.received == 1_202_000)
            server.expire(62)
            server.expire(93)  # nothing moved since
            (answer,) = await read_answers(reader, 1, ("POST",))
            assert answer.status == 422
            writer.close()

    @on_uvloop
    async def test_an_answer_that_is_not_read_in_60_seconds_ends_the_connection(self) -> None:
        async with serving() as server:
            reader, writer = await asyncio.open_connection("127.0.0.1", server.port, limit=1)
            writer.write(b"GET /large HTTP/1.1\r\nHost: a\r\n\r\n")
            connection = await server.connection()
            await server.until(lambda: connection._written > LARGE)
            server.expire(0)
            server.expire(59)
            assert server.connections
            server.expire(61)
            await server.until(lambda: not server.connections and not server.state.tasks)
            writer.transport.abort()
            assert reader is not None

    @on_uvloop
    async def test_an_answer_that_is_being_read_goes_on(self) -> None:
        async with serving() as server:
            reader, writer = await asyncio.open_connection("127.0.0.1", server.port)
            writer.write(b"GET /large HTTP/1.1\r\nHost: a\r\n\r\n")
            connection = await server.connection()
            await server.until(lambda: connection._written > LARGE)
            server.expire(0)
            await asyncio.wait_for(reader.readexactly(5_000_000), PATIENCE)
            server.expire(61)
            (rest,) = [await asyncio.wait_for(reader.readexactly(LARGE - 5_000_000), PATIENCE)]
            assert len(rest) == LARGE - 5_000_000
            writer.close()


class TestRoomForConnections:
    @on_uvloop
    async def test_the_oldest_idle_one_goes_first_and_a_new_one_is_served(self) -> None:
        async with serving(replace(LIMITS, connections=3)) as server:
            idle = await asyncio.open_connection("127.0.0.1", server.port)
            idle[1].write(b"GET /idle HTTP/1.1\r\nHost: a\r\n\r\n")
            await read_answers(idle[0], 1)
            silent = await asyncio.open_connection("127.0.0.1", server.port)
            working = await asyncio.open_connection("127.0.0.1", server.port)
            working[1].write(b"GET /later HTTP/1.1\r\nHost: a\r\n\r\n")
            await server.at_work.wait()
            await server.until(lambda: len(server.connections) == 3)
            for _ in range(20):
                (answer,) = await ask(server, b"GET / HTTP/1.1\r\nHost: a\r\n\r\n")
                assert answer.status == 200
            assert await asyncio.wait_for(_end(idle[0]), PATIENCE)
            server.let_go.set()
            (answer,) = await read_answers(working[0], 1)
            assert answer.json["path"] == "/later"
            for _, writer in (idle, silent, working):
                writer.transport.abort()

    @on_uvloop
    async def test_where_all_are_at_work_a_new_one_is_told_to_come_back(self) -> None:
        async with serving(replace(LIMITS, connections=1)) as server:
            reader, writer = await asyncio.open_connection("127.0.0.1", server.port)
            writer.write(b"GET /later HTTP/1.1\r\nHost: a\r\n\r\n")
            await server.at_work.wait()
            (refused,) = await ask(server, b"GET / HTTP/1.1\r\nHost: a\r\n\r\n")
            assert (refused.status, refused.headers["connection"]) == (503, "close")
            assert int(refused.headers["retry-after"]) > 0
            server.let_go.set()
            (answer,) = await read_answers(reader, 1)
            assert answer.status == 200
            writer.close()


async def _end(reader: asyncio.StreamReader) -> bool:
    with suppress(ConnectionResetError):
        return await reader.read() == b""
    return True


@on_uvloop
async def test_a_stop_closes_what_is_idle_and_ends_the_rest_after_its_answer() -> None:
    async with serving() as server:
        reader, writer = await asyncio.open_connection("127.0.0.1", server.port)
        idle, other = await asyncio.open_connection("127.0.0.1", server.port)
        writer.write(b"GET /later HTTP/1.1\r\nHost: a\r\n\r\n")
        await server.at_work.wait()
        await server.until(lambda: len(server.connections) == 2)
        for connection in server.connections:
            connection.shutdown()
        assert await asyncio.wait_for(idle.read(), PATIENCE) == b""
        server.let_go.set()
        (answer,) = await read_answers(reader, 2)
        assert answer.headers["connection"] == "close"
        other.close()
        writer.close()
