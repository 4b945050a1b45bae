"""The callers: a closed loop of HTTP/1.1 keep-alive connections, in a process of its own.

Run by bench.quick as `python -m bench.load JSON`, so that its CPU time is nobody else's. It warms up, says "ready",
waits for a line, sends the counted mails, and prints what it saw. Every mail has a recipient of its own.
"""

from __future__ import annotations

import asyncio
import json
import statistics
import sys
from collections import Counter
from dataclasses import asdict, dataclass
from time import perf_counter

import uvloop

_TEXT = """Hello Ann,

thank you for your order. We packed it this morning and handed it to the
carrier; it should be with you within two working days.

  1 x Teapot, blue, 1.2 litres            24.90
  2 x Cup, blue, 0.3 litres               11.80
  1 x Tea, green, 100 g                    6.50
  Shipping                                 4.90

If nobody is at home, the carrier leaves it with a neighbour or at the
post office round the corner, where it waits for seven days for you.
If anything is missing or broken, answer this mail; somebody reads it.

Kind regards,
the shop
"""

_HTML = """<!doctype html>
<html lang="en">
<body style="font-family: sans-serif; color: #222">
<p>Hello Ann,</p>
<p>thank you for your order. We packed it this morning and handed it to
the carrier; it should be with you within two working days.</p>
<table cellpadding="6">
<tr><td>1 x</td><td>Teapot, blue, 1.2 litres</td><td>24.90</td></tr>
<tr><td>2 x</td><td>Cup, blue, 0.3 litres</td><td>11.80</td></tr>
<tr><td>1 x</td><td>Tea, green</td><td>6.50</td></tr>
<tr><td></td><td>Shipping</td><td>4.90</td></tr>
</table>
<p>If nobody is at home, the carrier leaves it with a neighbour or at the
post office round the corner, where it waits for seven days for you.</p>
<p>If anything is missing or broken, answer this mail; somebody reads
it. Follow your parcel: <a href="https://shop.example.org/parcels/">
shop.example.org/parcels</a></p>
<p>Kind regards,<br>the shop</p>
</body>
</html>
"""

_PLACE = "user0000000@example.org"  # the number in it changes from mail to mail, its length does not


@dataclass(frozen=True, slots=True)
class Task:
    """What one run of the callers is to do."""

    port: int
    concurrency: int
    warm_up: int
    mails: int
    respond_async: bool = False


@dataclass(frozen=True, slots=True)
class Seen:
    """What the callers saw in the counted part; times in seconds."""

    elapsed: float
    p50: float
    p99: float
    statuses: dict[str, int]


def request(*, respond_async: bool) -> tuple[bytes, bytes]:
    """The bytes of one request, before and after the recipient's seven digits."""
    body = json.dumps(
        {
            "from": "The Shop <shop@example.org>",
            "to": _PLACE,
            "subject": "Your order 4711 is on its way",
            "text": _TEXT,
            "html": _HTML,
        }
    ).encode()
    prefer = "Prefer: respond-async\r\n" if respond_async else ""
    head = (
        "POST /send HTTP/1.1\r\n"
        "Host: 127.0.0.1\r\n"
        "Content-Type: application/json\r\n"
        f"{prefer}"
        f"Content-Length: {len(body)}\r\n\r\n"
    )
    before, digits, after = (head.encode() + body).partition(b"0000000")
    assert digits
    return before, after


class _Crowd:
    """All callers of one part of the run: who is next, and how it went."""

    def __init__(self, task: Task) -> None:
        self._before, self._after = request(respond_async=task.respond_async)
        self.callers: list[_Caller] = []
        self.latencies: list[float] = []
        self.statuses: Counter[str] = Counter()
        self.to_send = self.to_come = self._number = 0
        self.done: asyncio.Future[None] = asyncio.get_running_loop().create_future()

    async def send(self, mails: int) -> float:
        """Send so many mails, each caller waiting for its answer before its next; give the seconds it took."""
        self.latencies, self.statuses = [], Counter()
        self.to_send = self.to_come = mails
        self.done = asyncio.get_running_loop().create_future()
        began = perf_counter()
        for caller in self.callers:
            self.next(caller)
        await self.done
        return perf_counter() - began

    def next(self, caller: _Caller) -> None:
        if self.to_send:
            self.to_send -= 1
            self._number += 1
            caller.send(b"%b%07d%b" % (self._before, self._number, self._after))

    def answered(self, caller: _Caller, status: str, latency: float) -> None:
        self.latencies.append(latency)
        self.statuses[status] += 1
        self.to_come -= 1
        self.next(caller)
        if not self.to_come and not self.done.done():
            self.done.set_result(None)

    def broke(self, why: str) -> None:
        if self.to_come and not self.done.done():
            self.done.set_exception(ConnectionError(why))


class _Caller(asyncio.Protocol):
    """One keep-alive connection, one request at a time."""

    def __init__(self, crowd: _Crowd) -> None:
        self._crowd = crowd
        self._transport: asyncio.Transport | None = None
        self._began = 0.0
        self._buffer = b""
        self._end = 0  # of the response in the buffer; 0 = its head is not whole yet

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = transport  # type: ignore[assignment]

    def connection_lost(self, exc: Exception | None) -> None:
        self._crowd.broke(f"the service closed a connection: {exc}")

    def send(self, data: bytes) -> None:
        assert self._transport is not None
        self._began = perf_counter()
        self._transport.write(data)

    def data_received(self, data: bytes) -> None:
        self._buffer = buffer = self._buffer + data if self._buffer else data
        if not self._end:
            end = buffer.find(b"\r\n\r\n")
            if end < 0:
                return
            _, _, length = buffer[:end].lower().partition(b"\r\ncontent-length:")
            self._end = end + 4 + int(length.partition(b"\r\n")[0])
        if len(buffer) >= self._end:
            latency = perf_counter() - self._began
            self._buffer, self._end = b"", 0
            self._crowd.answered(self, buffer[9:12].decode(), latency)


async def _run(task: Task) -> Seen:
    loop = asyncio.get_running_loop()
    crowd = _Crowd(task)
    for _ in range(task.concurrency):
        _, caller = await loop.create_connection(lambda: _Caller(crowd), "127.0.0.1", task.port)
        crowd.callers.append(caller)
    if task.warm_up:
        await crowd.send(task.warm_up)
    print("ready", flush=True)
    await loop.run_in_executor(None, sys.stdin.readline)
    elapsed = await crowd.send(task.mails)
    latencies = sorted(crowd.latencies)
    return Seen(
        elapsed,
        statistics.median(latencies),
        latencies[min(len(latencies) - 1, len(latencies) * 99 // 100)],
        dict(crowd.statuses),
    )


def main() -> None:
    """Do the task in the first argument."""
    print(json.dumps(asdict(uvloop.run(_run(Task(**json.loads(sys.argv[1])))))), flush=True)


if __name__ == "__main__":
    main()
