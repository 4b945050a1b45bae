"""No descriptor left: callers wait outside, a relay cannot be reached for now, and nothing is lost."""

import asyncio
import shlex
from contextlib import AsyncExitStack

from tests.support.relay import Relay
from tests.support.service import MAILCHUTE, PATIENCE, Service

FEW = ("sh", "-c", f"ulimit -n 64; exec {shlex.quote(MAILCHUTE)} serve")


async def test_a_relay_that_cannot_be_reached_for_want_of_descriptors_is_tried_again() -> None:
    async with Relay() as relay:
        settings = {"SMTP_HOST": relay.host, "SMTP_PORT": f"{relay.port}"}
        async with Service(settings, command=FEW) as service, AsyncExitStack() as callers:
            warning = await service.logged("settings.warning")
            assert "no more than 64 files" in warning["warning"]
            assert (await service.http.get("/messages")).status_code == 200  # this connection stays
            host, port = service.base.removeprefix("http://").split(":")
            async with asyncio.timeout(PATIENCE):
                while True:
                    reader, writer = await asyncio.open_connection(host, int(port))
                    callers.callback(writer.close)
                    writer.write(b"GET /livez HTTP/1.1\r\nHost: localhost\r\n\r\n")
                    try:
                        if not await reader.read(1):
                            break  # there was none for this one
                    except ConnectionResetError:
                        break
            answer = (await service.send()).json()
            assert (answer["state"], answer["class"], answer["will_retry"]) == ("deferred", "temporary", True)
            assert "open files" in answer["message"], answer
            await callers.aclose()
            again = await service.http.post(f"/messages/{answer['id']}/retry")
            assert again.json()["state"] == "sent"
    assert len(relay.mails) == 1
