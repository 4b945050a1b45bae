"""A disk that hangs in a write or a sync: probes and callers are answered in their time, and what was refused is not kept.

The database lies on a file system in user space whose process is stopped, or strace delays the service's syncs.
"""

import asyncio
import os
import signal
import tempfile
from collections.abc import AsyncIterator, Awaitable, Iterator
from contextlib import asynccontextmanager, contextmanager
from pathlib import Path

import httpx2
import pytest

from app.api.operate import CHECKED_WITHIN
from app.store.journal import PATIENCE
from tests.support.forgetful import Forgetful, cannot_mount
from tests.support.relay import Relay, Wait
from tests.support.service import Service
from tests.support.tracing import cannot_attach, failing

MARGIN = 4.0  # seconds; a busy machine needs some


@pytest.fixture
def disk() -> Iterator[Forgetful]:
    if reason := cannot_mount():
        pytest.skip(reason)
    with Forgetful() as disk:
        yield disk


@contextmanager
def hanging(disk: Forgetful) -> Iterator[None]:
    """Let no read, write or sync come back that asks the disk."""
    os.kill(disk._process.pid, signal.SIGSTOP)
    try:
        yield
    finally:
        os.kill(disk._process.pid, signal.SIGCONT)


@asynccontextmanager
async def on_it(disk: Forgetful, relay: Relay) -> AsyncIterator[Service]:
    """Run in a folder of its own, with nothing but the database on the disk."""
    settings = {"SMTP_HOST": relay.host, "SMTP_PORT": f"{relay.port}", "SMTP_TLS": "none"}
    settings["MAILCHUTE_DATABASE_URL"] = str(disk.folder / "m.db")
    with tempfile.TemporaryDirectory(prefix="mailchute-") as name:
        async with Service(settings, folder=Path(name)) as service:
            yield service


async def answered_within(seconds: float, asking: Awaitable[httpx2.Response]) -> httpx2.Response:
    async with asyncio.timeout(seconds + MARGIN):
        return await asking


async def ready(service: Service) -> None:
    async with asyncio.timeout(20):
        while (await service.http.get("/readyz")).status_code != 200:
            await asyncio.sleep(0.1)


async def subjects(service: Service) -> set[str]:
    found = (await service.http.get("/messages", params={"limit": "100"})).json()["data"]
    return {(await service.message(message["id"]))["subject"] for message in found}


async def test_whoever_asks_is_answered_in_time_and_what_was_refused_is_not_kept(disk: Forgetful) -> None:
    async with Relay() as relay, on_it(disk, relay) as service:
        assert (await service.send(subject="before")).json()["state"] == "sent"
        with hanging(disk):
            first = asyncio.create_task(service.send(subject="refused", prefer="wait=1"))
            probes = (answered_within(CHECKED_WITHIN, service.http.get(path)) for path in ("/readyz", "/health"))
            assert [answer.status_code for answer in await asyncio.gather(*probes)] == [503, 503]
            assert (await answered_within(0, service.http.get("/livez"))).status_code == 200
            refused = await answered_within(PATIENCE, first)
            assert (refused.status_code, refused.json()["type"]) == (503, "/errors/store-unavailable")
            sends = [service.send(subject=f"refused {n}", prefer=f"wait={n}") for n in range(5)]
            more = [*sends, service.http.post("/profiles/default/pause")]
            answers = await asyncio.gather(*(answered_within(PATIENCE, one) for one in more))
            assert {answer.status_code for answer in answers} == {503}
            looks = (service.http.get(path) for path in ("/messages", "/metrics", "/profiles", "/errors"))
            answers = await asyncio.gather(*(answered_within(2 * PATIENCE, one) for one in looks))
            assert {answer.status_code for answer in answers} <= {200, 503}
        await ready(service)
        assert (await service.http.get("/profiles/default")).json()["paused_at"] is None
        assert (await service.send(subject="after")).json()["state"] == "sent"
        assert await subjects(service) == {"before", "after"}
        assert await service.stop() == 0
    assert relay.subjects == ["before", "after"]


async def test_a_verdict_waits_for_the_disk_and_is_kept(disk: Forgetful) -> None:
    verdict = asyncio.Event()
    async with Relay() as relay, on_it(disk, relay) as service:
        relay.on("CONTENT", (Wait(verdict), "250 2.0.0 Ok"), times=1)
        id_ = (await service.send(prefer="respond-async")).json()["id"]
        await relay.mail()
        with hanging(disk):
            verdict.set()
            assert (await answered_within(CHECKED_WITHIN, service.http.get("/readyz"))).status_code == 503
        await service.logged("delivery.sent", message_id=id_)
        assert len((await service.message(id_))["attempts"]) == 1
        assert await service.stop() == 0
    assert len(relay.mails) == 1


async def test_a_sync_that_hangs_is_found_out_by_a_probe_and_refuses_what_comes_then() -> None:
    if reason := cannot_attach():
        pytest.skip(reason)
    async with Relay() as relay:
        settings = {"SMTP_HOST": relay.host, "SMTP_PORT": f"{relay.port}", "SMTP_TLS": "none"}
        async with Service(settings) as service:
            assert (await service.send(subject="before")).json()["state"] == "sent"
            log = service.database.with_name("mailchute.db-wal")
            async with failing(service.process.pid, "fsync,fdatasync", "delay_enter=10s", file=log, when="1"):
                answer = await answered_within(CHECKED_WITHIN, service.http.get("/readyz"))
                assert answer.status_code == 503
                refused = await answered_within(PATIENCE, service.send(subject="refused"))
                assert refused.status_code == 503
                await ready(service)
            assert (await service.send(subject="after")).json()["state"] == "sent"
            assert await subjects(service) == {"before", "after"}
    assert relay.subjects == ["before", "after"]
