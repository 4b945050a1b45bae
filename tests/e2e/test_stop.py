"""A stop with mail under way: who waits is answered, what can end ends, and what cannot is not lost.

Order of a stop: no new connections → waiting callers are answered with what is known → attempts drain.
"""

import asyncio
import signal

import pytest

from app.serving import SHUTDOWN_SECONDS
from tests.support.relay import EXTENSIONS, Relay, Stall, Wait
from tests.support.service import Service

NO_PIPELINING = tuple(extension for extension in EXTENSIONS if extension != "PIPELINING")


def through(relay: Relay) -> dict[str, str]:
    return {"SMTP_HOST": relay.host, "SMTP_PORT": f"{relay.port}"}


async def test_who_waits_is_answered_at_once_and_the_attempt_ends_well() -> None:
    verdict = asyncio.Event()
    async with Relay() as relay:
        relay.on("CONTENT", (Wait(verdict), "250 2.0.0 Ok: queued as R1"))
        async with Service(through(relay)) as service:
            waiting = asyncio.create_task(service.send(prefer="wait=30"))
            await relay.mail()
            stopping = asyncio.create_task(service.stop())
            answer = await waiting
            assert (answer.status_code, answer.json()["final"]) == (202, False)
            verdict.set()
            assert await stopping == 0
            await service.logged("delivery.sent", message_id=answer.json()["id"])
            async with Service(through(relay), folder=service.folder) as second:
                found = await second.message(answer.json()["id"])
                assert (found["state"], len(found["attempts"])) == ("sent", 1)
    assert len(relay.mails) == 1


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT], ids=lambda number: number.name)
async def test_a_second_signal_does_not_wait_for_attempts_and_nothing_is_lost(number: signal.Signals) -> None:
    async with Relay(extensions=NO_PIPELINING) as relay:
        relay.on("RCPT", Stall(), times=1)
        async with Service(through(relay)) as service:
            waiting = asyncio.create_task(service.send(prefer="wait=30"))
            await relay.seen("RCPT")
            service.process.send_signal(number)
            id_ = (await waiting).json()["id"]
            async with asyncio.timeout(SHUTDOWN_SECONDS):  # the shorter grace; a busy machine needs seconds without any
                await service.stop(number)
            async with Service(through(relay), folder=service.folder) as second:
                await second.logged("delivery.sent", message_id=id_)
    assert len(relay.mails) == 1
