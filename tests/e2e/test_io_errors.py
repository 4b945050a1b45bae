"""A disk that fails in any write or sync: 503 = it is not there after a restart, 2xx = it is; and nothing goes twice.

strace lets the calls of the service fail. By default every fourth of a mail's writes fails, one a mail, in one service;
MAILCHUTE_SWEEP=1 lets each fail in a service of its own that is killed behind it, which takes some minutes.
"""

import asyncio
import os
from contextlib import AbstractAsyncContextManager

import pytest

from tests.support.relay import EXTENSIONS, Relay, Stall, Wait
from tests.support.service import MAILCHUTE, NotStarted, Service
from tests.support.tracing import TRACED, cannot_attach, failing

WRITES = 60  # to the log, of one mail and somewhat more
IS_SWEEP = os.environ.get("MAILCHUTE_SWEEP") == "1"
SYNC, WRITE = "fsync,fdatasync", "pwrite64"
NO_PIPELINING = tuple(extension for extension in EXTENSIONS if extension != "PIPELINING")


@pytest.fixture(scope="module", autouse=True)
def tracing() -> None:
    if reason := cannot_attach():
        pytest.skip(reason)


def bad_disk(
    service: Service, calls: str, error: str, *, when: str = "1+", file: str = "mailchute.db-wal"
) -> AbstractAsyncContextManager[None]:
    """Let a service's writes to the log, or to another file, or its syncs, fail."""
    path = service.database.with_name(file)
    return failing(service.process.pid, calls, f"error={error}", file=path, when=when)


def through(relay: Relay, **settings: str) -> dict[str, str]:
    return {"SMTP_HOST": relay.host, "SMTP_PORT": f"{relay.port}", **settings}


async def kept(service: Service) -> dict[str, dict[str, object]]:
    """Give what is in the store by its subject."""
    page = (await service.http.get("/messages", params={"limit": "100"})).json()["data"]
    found = [await service.message(message["id"]) for message in page]
    return {message["subject"]: message for message in found}


@pytest.mark.parametrize(
    ("error", "writes"),
    [(error, range(n, n + 1)) for error in ("ENOSPC", "EIO") for n in range(1, WRITES)]
    if IS_SWEEP
    else [("ENOSPC", range(1, WRITES, 4)), ("EIO", range(3, WRITES, 4))],
    ids=str,
)
async def test_a_write_that_fails_leaves_a_message_whole_or_not_at_all(error: str, writes: range) -> None:
    said = {}
    async with Relay() as relay, Service(through(relay, MAILCHUTE_RETRY__SCHEDULE="1s")) as service:
        for n in writes:
            async with bad_disk(service, WRITE, error, when=f"{n}"):
                said[f"no. {n}"] = (await service.send(subject=f"no. {n}", text="x" * 5000)).status_code
        assert 503 in said.values() or IS_SWEEP
        await service.kill()
        async with Service(through(relay), folder=service.folder) as second:
            found = await kept(second)
            assert {subject for subject, status in said.items() if status in (200, 202)} == set(found), said
            for message in found.values():
                if message["state"] not in ("sent", "in_doubt"):
                    await second.logged("delivery.sent", message_id=message["id"])
        once = relay.subjects
        assert len(once) == len(set(once)), "one was sent twice"
        assert set(once) <= set(found)


@pytest.mark.parametrize("error", ["ENOSPC", "EIO", "EROFS"])
async def test_a_verdict_that_finds_no_room_is_kept_and_written_when_there_is_and_nothing_is_sent_twice(
    error: str,
) -> None:
    verdict = asyncio.Event()
    async with Relay() as relay:
        relay.on("CONTENT", (Wait(verdict), "250 2.0.0 Ok: queued as R1"))
        async with Service(through(relay)) as service:
            id_ = (await service.send(prefer="respond-async")).json()["id"]
            await relay.mail()
            async with bad_disk(service, WRITE, error):
                verdict.set()
                await service.logged("delivery.record_failed", message_id=id_)
                assert (await service.message(id_))["state"] == "sending"
                assert (await service.send()).status_code == 503
                assert (await service.http.get("/readyz")).status_code == 503
            await service.logged("delivery.sent", message_id=id_)
            found = await service.message(id_)
            assert (found["state"], len(found["attempts"])) == ("sent", 1)
            assert (await service.send()).json()["state"] == "sent"
    assert len(relay.mails) == 2


@pytest.mark.parametrize("error", ["ENOSPC", "EIO"] if IS_SWEEP else ["EIO"])
async def test_where_the_log_cannot_be_brought_into_the_file_mail_goes_on_and_nothing_is_lost(error: str) -> None:
    """Every ten seconds it is tried; what was committed is in the log until it succeeds."""
    async with Relay() as relay, Service(through(relay)) as service:
        async with bad_disk(service, WRITE, error, file="mailchute.db"):
            assert (await service.send(subject="first")).json()["state"] == "sent"
            await service.logged("store.look_failed")
            assert (await service.send(subject="second")).json()["state"] == "sent"
            await service.kill()
        async with Service(through(relay), folder=service.folder) as second:
            assert {subject: said["state"] for subject, said in (await kept(second)).items()} == {
                "first": "sent",
                "second": "sent",
            }
    assert relay.subjects == ["first", "second"]


class TestAFailedSync:
    """The kernel may drop what it could not write, and says so once: a second sync would be believed in vain."""

    @pytest.mark.parametrize("when", ["1", "1+"], ids=["once", "for ever"])
    async def test_of_a_message_takes_nothing_and_ends_the_service(self, when: str) -> None:
        """Every byte of the message is in the log, its commit included: a restart must not take it for kept."""
        async with Relay() as relay, Service(through(relay)) as service:
            assert (await service.send(subject="before")).json()["state"] == "sent"
            async with bad_disk(service, SYNC, "EIO", when=when):
                assert (await service.send(subject="refused")).status_code == 503
                assert await service.ended() == 1
            assert "the disk did not keep what was written" in service.errors[-1]
            async with Service(through(relay), folder=service.folder) as second:
                assert set(await kept(second)) == {"before"}
                assert (await second.send(subject="after")).json()["state"] == "sent"
        assert relay.subjects == ["before", "after"]

    async def test_of_the_mark_lets_nothing_go_and_the_next_start_sends_it(self) -> None:
        envelope = asyncio.Event()
        async with Relay(extensions=NO_PIPELINING) as relay:
            relay.on("RCPT", (Wait(envelope), "250 2.1.5 Ok"))
            async with Service(through(relay)) as service:
                id_ = (await service.send(prefer="respond-async")).json()["id"]
                await relay.seen("RCPT")
                async with bad_disk(service, SYNC, "EIO"):
                    envelope.set()
                    assert await service.ended() == 1
                assert relay.mails == []
                async with Service(through(relay), folder=service.folder) as second:
                    await second.logged("delivery.sent", message_id=id_)
        assert len(relay.mails) == 1

    async def test_of_the_verdict_leaves_the_message_in_doubt_and_sends_it_no_second_time(self) -> None:
        verdict = asyncio.Event()
        async with Relay() as relay:
            relay.on("CONTENT", (Wait(verdict), "250 2.0.0 Ok: queued as R1"), times=1)
            async with Service(through(relay)) as service:
                id_ = (await service.send(subject="once", prefer="respond-async")).json()["id"]
                await relay.mail()
                async with bad_disk(service, SYNC, "EIO"):
                    verdict.set()
                    assert await service.ended() == 1
                async with Service(through(relay), folder=service.folder) as second:
                    assert (await second.message(id_))["state"] == "in_doubt"
                    assert (await second.send(subject="later")).json()["state"] == "sent"
        assert relay.subjects == ["once", "later"]

    async def test_of_the_file_itself_ends_the_service_and_loses_nothing(self) -> None:
        async with Relay() as relay, Service(through(relay)) as service:
            assert (await service.send(subject="before")).json()["state"] == "sent"
            async with bad_disk(service, SYNC, "EIO", file="mailchute.db"):
                assert await service.ended() == 1
            assert "the disk did not keep what was written" in service.errors[-1]
            async with Service(through(relay), folder=service.folder) as second:
                assert {subject: said["state"] for subject, said in (await kept(second)).items()} == {"before": "sent"}

    async def test_while_a_start_settles_what_was_interrupted_ends_it_too(self) -> None:
        async with Relay() as relay:
            relay.on("CONTENT", Stall(), times=1)
            async with Service(through(relay)) as service:
                id_ = (await service.send(prefer="respond-async")).json()["id"]
                await relay.mail()
                await service.kill()
                log = str(service.database.with_name("mailchute.db-wal"))
                options = ("-o", "/dev/null", "-P", log, "-e", f"trace={SYNC}", "-e", f"inject={SYNC}:error=EIO")
                second = Service(through(relay), folder=service.folder, command=(*TRACED, *options, MAILCHUTE, "serve"))
                with pytest.raises(NotStarted, match="the disk did not keep what was written"):
                    await second.__aenter__()
                assert second.process.returncode == 1
                async with Service(through(relay), folder=service.folder) as third:
                    assert (await third.message(id_))["state"] == "in_doubt"
