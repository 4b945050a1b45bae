"""Few descriptors: callers never use up those of the store and the relays, and nothing is lost where there is none."""

import asyncio
import resource
import shlex
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path

import httpx2
import pytest

from tests.support.relay import Relay
from tests.support.service import MAIL, MAILCHUTE, PATIENCE, Service
from tests.support.tls import certificates

FEW = ("sh", "-c", f"ulimit -n 128; exec {shlex.quote(MAILCHUTE)} serve")


async def test_many_callers_leave_a_descriptor_for_the_next_one_and_for_the_relay() -> None:
    async with Relay() as relay:
        settings = {"SMTP_HOST": relay.host, "SMTP_PORT": f"{relay.port}"}
        async with Service(settings, command=FEW) as service, AsyncExitStack() as callers:
            host, port = service.base.removeprefix("http://").split(":")
            for _ in range(300):
                async with asyncio.timeout(PATIENCE):
                    _, silent = await asyncio.open_connection(host, int(port))
                    callers.callback(silent.close)
                    reader, writer = await asyncio.open_connection(host, int(port))
                    callers.callback(writer.close)
                    writer.write(b"GET /livez HTTP/1.1\r\nHost: localhost\r\n\r\n")
                    assert (await reader.readline()).startswith(b"HTTP/1.1 200")
            assert (await service.send()).json()["state"] == "sent"
            assert len(list(Path(f"/proc/{service.process.pid}/fd").iterdir())) < 128
    assert len(relay.mails) == 1


@asynccontextmanager
async def no_descriptor_left(service: Service) -> AsyncIterator[None]:
    """Let the service open nothing more, for as long as the block lasts."""
    pid = service.process.pid
    opened = max(int(name.name) for name in Path(f"/proc/{pid}/fd").iterdir()) + 1
    before = resource.prlimit(pid, resource.RLIMIT_NOFILE)
    resource.prlimit(pid, resource.RLIMIT_NOFILE, (opened, before[1]))
    yield
    resource.prlimit(pid, resource.RLIMIT_NOFILE, before)


async def test_a_relay_that_cannot_be_reached_for_want_of_descriptors_is_tried_again() -> None:
    async with Relay() as relay:
        settings = {"SMTP_HOST": relay.host, "SMTP_PORT": f"{relay.port}"}
        async with Service(settings) as service:
            assert (await service.http.get("/messages")).status_code == 200  # this connection stays
            async with no_descriptor_left(service):
                answer = (await service.send()).json()
                assert (answer["state"], answer["class"], answer["will_retry"]) == ("deferred", "temporary", True)
                assert "open files" in answer["message"], answer
            again = await service.http.post(f"/messages/{answer['id']}/retry")
            assert again.json()["state"] == "sent"
    assert len(relay.mails) == 1


async def test_a_limit_that_is_too_low_is_warned_of() -> None:
    async with Service(command=("sh", "-c", f"ulimit -n 64; exec {shlex.quote(MAILCHUTE)} serve")) as service:
        assert "no more than 64 files" in (await service.logged("settings.warning"))["warning"]


async def test_what_is_asked_for_the_first_time_without_a_descriptor_is_answered() -> None:
    async with Service(command=FEW) as service:
        assert (await service.http.get("/livez")).status_code == 200  # this connection stays
        async with no_descriptor_left(service):
            for path in (
                "/health",
                "/readyz",
                "/metrics",
                "/profiles",
                "/errors",
                "/messages",
                "/sandbox",
            ):
                assert (await service.http.get(path)).status_code == 200, path
            for path in ("/docs", "/openapi.json"):  # whose files are read when they are asked for
                refused = await service.http.get(path)
                assert (refused.status_code, refused.json()["type"]) == (503, "/errors/unavailable")
            international = await service.send(to="ann@bücher.example", prefer="respond-async")
            assert international.status_code == 202, international.text
        async with httpx2.AsyncClient(base_url=service.base, trust_env=False) as new:  # which waits until one is free
            assert (await new.get("/livez")).status_code == 200
        assert (await service.http.get("/docs")).status_code == 200
        assert not [line for line in service.log if line["event"] == "http.unexpected"]


@pytest.mark.parametrize("tls", [False, True], ids=["sandbox", "relay under TLS"])
async def test_nothing_is_imported_once_it_serves(tls: bool) -> None:
    """Python names every module as it imports it; one that is needed later could not be read then."""
    async with Relay(tls=certificates().self_signed() if tls else None) as relay:
        settings = {"PYTHONVERBOSE": "1"}
        if tls:
            settings |= {"SMTP_HOST": "localhost", "SMTP_PORT": f"{relay.port}", "SMTP_TLS": "opportunistic"}
        async with Service(settings) as service:
            began = len(service.errors)
            for path in ("/health", "/metrics", "/profiles", "/errors", "/messages?q=x", "/attempts", "/openapi.json"):
                assert (await service.http.get(path)).status_code == 200, path
            for path in ("/docs", "/redoc", "/nowhere", *(() if tls else ("/sandbox",))):
                await service.http.get(path)
            for fields in ({}, {"to": "ann@bücher.example"}, {"html": "<p>é</p>"}, {"to": "nobody"}):
                await service.http.post("/send", json={**MAIL, **fields})
            id_ = (await service.http.get("/messages")).json()["data"][0]["id"]
            for path in (f"/messages/{id_}", f"/messages/{id_}/raw", *(() if tls else (f"/sandbox/{id_}",))):
                assert (await service.http.get(path)).status_code == 200, path
            for name in ("default",) if tls else ("sandbox", "sandbox-eauth", "sandbox-down", "sandbox-tls-expired"):
                await service.http.post(f"/profiles/{name}/verify", json={})
                await service.http.post("/send", json={**MAIL, "profile": name})
            assert (await service.http.post("/erase", json={"address": "ann@theirs.test"})).status_code == 200
            assert [line for line in service.errors[began:] if line.startswith("import ")] == []
            await service.kill()
