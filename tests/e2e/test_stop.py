"""A stop with mail under way: who waits is answered, what can end ends, and what cannot is not lost.

Order of a stop: nothing is claimed any more, waiting callers are answered with what is known → a while in which requests
are still served → no new connections → attempts drain.
"""

import asyncio
import shlex
import signal
import sqlite3
from contextlib import closing

import pytest

from app.serving import SHUTDOWN_SECONDS
from app.store.database import SCHEMA, upgrade
from tests.support.relay import EXTENSIONS, Relay, Stall, Wait
from tests.support.service import MAILCHUTE, NotStarted, Service

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


LONG = {"MAILCHUTE_DRAIN_DELAY": "300"}  # more than a test's patience


async def test_until_others_have_noticed_it_is_not_ready_and_keeps_what_it_is_given() -> None:
    async with Relay() as relay, Service({**through(relay), **LONG}) as service:
        assert (await service.http.get("/readyz")).status_code == 200
        service.process.send_signal(signal.SIGTERM)
        await service.logged("serving.stopping", seconds=300.0)
        assert (await service.http.get("/readyz")).status_code == 503
        assert (await service.http.get("/livez")).status_code == 200
        accepted = await service.send(prefer="wait=30")
        assert (accepted.status_code, accepted.json()["state"]) == (202, "queued"), "at once, and not begun"
        assert accepted.json()["attempts"] == 0
        assert await service.stop() == 0, "the second signal does not wait"
        assert relay.connections == 0
        async with Service(through(relay), folder=service.folder) as second:
            await second.logged("delivery.sent", message_id=accepted.json()["id"])
    assert len(relay.mails) == 1


async def test_that_while_ends_by_itself() -> None:
    async with Service({"MAILCHUTE_DRAIN_DELAY": "0.5"}) as service:
        service.process.send_signal(signal.SIGTERM)
        await service.logged("serving.stopping", seconds=0.5)
        assert (await service.http.get("/livez")).status_code == 200
        assert await service.ended() == 0


async def test_whoever_presses_ctrl_c_does_not_wait() -> None:
    async with Service(LONG) as service:
        assert await service.stop(signal.SIGINT) == 0


async def test_what_was_let_go_and_has_no_verdict_at_the_end_is_in_doubt_and_not_sent_again() -> None:
    async with Relay() as relay:
        relay.on("CONTENT", Stall(), times=1)
        async with Service(through(relay)) as service:
            id_ = (await service.send(subject="once", prefer="respond-async")).json()["id"]
            await relay.mail()
            service.process.send_signal(signal.SIGTERM)
            await service.logged("serving.stopping")
            assert await service.stop() == 0
            await service.logged("delivery.in_doubt", message_id=id_)
            async with Service(through(relay), folder=service.folder) as second:
                assert (await second.message(id_))["state"] == "in_doubt"
                assert (await second.send(subject="later")).json()["state"] == "sent"
    assert [b"Subject: once" in mail.content for mail in relay.mails] == [True, False]


async def test_a_start_that_waits_for_room_can_be_stopped() -> None:
    """What an earlier process had let go must be settled first, and the disk takes no more."""
    full = ("sh", "-c", f"ulimit -f 64; exec {shlex.quote(MAILCHUTE)} serve")  # 32 kB: the log's index, and no more
    async with Relay() as relay:
        relay.on("CONTENT", Stall(), times=1)
        async with Service(through(relay)) as service:
            id_ = (await service.send(prefer="respond-async", text="x" * 50_000)).json()["id"]
            await relay.mail()
            await service.kill()
            second = Service(through(relay), folder=service.folder, command=full)
            starting = asyncio.create_task(second.__aenter__())
            await second.logged("delivery.record_failed", message_id=id_)
            second.process.send_signal(signal.SIGTERM)
            with pytest.raises(NotStarted):
                await starting
            assert second.process.returncode == 0
            async with Service(through(relay), folder=service.folder) as third:
                assert (await third.message(id_))["state"] == "in_doubt"


async def test_a_stop_during_a_step_of_the_schema_is_clean_and_the_next_start_takes_it() -> None:
    """The step waits for a stray process's lock, which shows that it has begun."""
    async with Service() as service:
        await service.stop()
        service.database.unlink()
        upgrade(service.database, None, to="0005")
        with closing(sqlite3.connect(service.database, isolation_level=None)) as stray:
            stray.execute("BEGIN IMMEDIATE")
            second = Service(folder=service.folder)
            starting = asyncio.create_task(second.__aenter__())
            await second.logged("store.migrating", was="0005", to=SCHEMA)
            second.process.send_signal(signal.SIGTERM)
            with pytest.raises(NotStarted):
                await starting
            assert second.process.returncode == 0
            stray.execute("ROLLBACK")
            assert stray.execute("SELECT version_num FROM alembic_version").fetchall() == [("0005",)]
        async with Service(folder=service.folder) as third:
            assert (await third.send()).json()["state"] == "sent"
