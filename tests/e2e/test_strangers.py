"""What strangers without a key, and callers that are greedy or slow, can make the running service hold."""

import asyncio
import json
from contextlib import AsyncExitStack
from pathlib import Path

import pytest

from tests.support.relay import Relay
from tests.support.service import MAIL, PATIENCE, Service

KEY = "0123456789abcdef"
LARGE = 24_000_000  # bytes
Connection = tuple[asyncio.StreamReader, asyncio.StreamWriter]


async def _connect(service: Service, parts: AsyncExitStack) -> Connection:
    host, port = service.base.removeprefix("http://").split(":")
    reader, writer = await asyncio.open_connection(host, int(port))
    parts.callback(writer.close)
    return reader, writer


def _head(method: str, path: str, length: int, *fields: str) -> bytes:
    lines = [f"{method} {path} HTTP/1.1", "Host: 127.0.0.1", "Content-Type: application/json", *fields]
    return "\r\n".join([*lines, f"Content-Length: {length}", "", ""]).encode()


async def _status(reader: asyncio.StreamReader) -> tuple[int, dict[str, str]]:
    async with asyncio.timeout(PATIENCE):
        head = (await reader.readuntil(b"\r\n\r\n")).decode("latin-1").split("\r\n")
    return int(head[0].split()[1]), {n.lower(): v for n, _, v in (line.partition(": ") for line in head[1:])}


def _peak(service: Service) -> int:
    """Peak resident memory in bytes."""
    text = Path(f"/proc/{service.process.pid}/status").read_text("ascii")
    return int(text.split("VmHWM:")[1].split()[0]) * 1024


def _large_mail(size: int) -> bytes:
    return json.dumps({**MAIL, "attachments": [{"filename": "a.bin", "content": "QUJD" * (size // 4)}]}).encode()


async def test_without_a_key_the_answer_comes_before_the_body() -> None:
    async with Service({"MAILCHUTE_API_KEY": KEY}) as service, AsyncExitStack() as parts:
        before = _peak(service)
        for _ in range(40):
            reader, writer = await _connect(service, parts)
            writer.write(_head("POST", "/send", LARGE, "X-API-Key: wrong-wrong-wrong-wrong"))
            status, fields = await _status(reader)
            assert (status, fields["connection"]) == (401, "close")
            writer.write(b"a" * 1_000_000)  # which is discarded
        assert (await service.http.get("/livez")).status_code == 200
        assert _peak(service) - before < 40_000_000


@pytest.mark.parametrize(
    ("path", "length", "status"),
    [("/send", 300_000_000, 413), ("/erase", 300_000_000, 413), ("/nothing", 1000, 404), ("/livez", 1000, 405)],
    ids=str,
)
async def test_what_is_refused_by_its_head_is_refused_before_the_body(path: str, length: int, status: int) -> None:
    async with Service() as service, AsyncExitStack() as parts:
        reader, writer = await _connect(service, parts)
        writer.write(_head("POST", path, length))
        assert (await _status(reader))[0] == status


async def test_over_the_budget_a_large_body_is_refused_before_it_is_read_and_small_mail_goes_on() -> None:
    async with Relay() as relay:
        settings = {
            "SMTP_HOST": relay.host,
            "SMTP_PORT": f"{relay.port}",
            "MAILCHUTE_MAX_IN_FLIGHT_BYTES": f"{2 << 20}",
        }
        async with Service(settings) as service, AsyncExitStack() as parts:
            body = _large_mail(1_500_000)
            first, writer = await _connect(service, parts)
            writer.write(_head("POST", "/send", len(body)) + body[:-1])
            await writer.drain()
            while True:  # the first one's head may not have been read yet
                second, other = await _connect(service, parts)
                other.write(_head("POST", "/send", len(body), "Expect: 100-continue"))
                status, fields = await _status(second)
                if status != 100:
                    break
                other.close()
            assert (status, fields["connection"]) == (503, "close")
            assert int(fields["retry-after"]) > 0
            problem = json.loads(await asyncio.wait_for(second.readexactly(int(fields["content-length"])), PATIENCE))
            assert problem["type"] == "/errors/overloaded"
            assert "max_in_flight_bytes" in problem["detail"]
            assert (await service.send()).json()["state"] == "sent"
            writer.write(body[-1:])
            assert (await _status(first))[0] == 200
            third, writer = await _connect(service, parts)
            writer.write(_head("POST", "/send", len(body)) + body)
            assert (await _status(third))[0] == 200
        assert len(relay.mails) == 3


async def test_a_body_larger_than_the_whole_budget_is_taken_alone() -> None:
    async with Relay() as relay:
        settings = {"SMTP_HOST": relay.host, "SMTP_PORT": f"{relay.port}", "MAILCHUTE_MAX_IN_FLIGHT_BYTES": "1048576"}
        async with Service(settings) as service:
            answer = await service.http.post(
                "/send", content=_large_mail(4_000_000), headers={"Content-Type": "application/json"}
            )
            assert answer.json()["state"] == "sent"
    assert len(relay.mails) == 1


async def test_callers_that_do_not_read_a_large_source_hold_a_part_of_it() -> None:
    async with Service() as service, AsyncExitStack() as parts:
        answer = await service.http.post(
            "/send", content=_large_mail(LARGE), headers={"Content-Type": "application/json"}
        )
        path = f"/messages/{answer.json()['id']}/raw"
        before = _peak(service)
        callers = []
        for _ in range(40):
            reader, writer = await _connect(service, parts)
            writer.write(_head("GET", path, 0))
            assert (await _status(reader))[0] == 200
            callers.append(reader)
        assert (await service.http.get("/livez")).status_code == 200
        assert _peak(service) - before < 80_000_000
        source = (await service.http.get(path)).content
        assert len(await asyncio.wait_for(callers[0].readexactly(len(source)), PATIENCE)) == len(source)


async def test_an_offer_of_another_protocol_does_not_lose_the_body() -> None:
    async with Service() as service, AsyncExitStack() as parts:
        reader, writer = await _connect(service, parts)
        offer = ("Connection: Upgrade, HTTP2-Settings", "Upgrade: h2c", "HTTP2-Settings: AAMAAABkAAQAoAAAAAIAAAAA")
        body = json.dumps(MAIL).encode()
        writer.write(_head("POST", "/send", len(body), *offer) + body)
        assert (await _status(reader))[0] == 200
