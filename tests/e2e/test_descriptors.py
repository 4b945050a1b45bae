"""Few descriptors: callers never use up those of the store and the relays, and nothing is lost where there is none."""

import asyncio
import resource
import shlex
from contextlib import AsyncExitStack
from pathlib import Path

from tests.support.relay import Relay
from tests.support.service import MAILCHUTE, PATIENCE, Service

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


async def test_a_relay_that_cannot_be_reached_for_want_of_descriptors_is_tried_again() -> None:
    async with Relay() as relay:
        settings = {"SMTP_HOST": relay.host, "SMTP_PORT": f"{relay.port}"}
        async with Service(settings) as service:
            assert (await service.http.get("/messages")).status_code == 200  # this connection stays
            opened = len(list(Path(f"/proc/{service.process.pid}/fd").iterdir()))
            _, most = resource.prlimit(service.process.pid, resource.RLIMIT_NOFILE)
            resource.prlimit(service.process.pid, resource.RLIMIT_NOFILE, (opened, most))
            answer = (await service.send()).json()
            assert (answer["state"], answer["class"], answer["will_retry"]) == ("deferred", "temporary", True)
            assert "open files" in answer["message"], answer
            resource.prlimit(service.process.pid, resource.RLIMIT_NOFILE, (most, most))
            again = await service.http.post(f"/messages/{answer['id']}/retry")
            assert again.json()["state"] == "sent"
    assert len(relay.mails) == 1


async def test_a_limit_that_is_too_low_is_warned_of() -> None:
    async with Service(command=("sh", "-c", f"ulimit -n 64; exec {shlex.quote(MAILCHUTE)} serve")) as service:
        assert "no more than 64 files" in (await service.logged("settings.warning"))["warning"]
