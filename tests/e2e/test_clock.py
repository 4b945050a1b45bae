"""The wall clock jumps, and the program goes on: nothing is sent twice, nothing is stuck, and nothing comes in a storm.

libfaketime gives the program a wall clock that this file sets, and leaves the monotonic one alone, as a jump does.
"""

import asyncio
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from tests.support.relay import Relay, Wait
from tests.support.service import Service

LIBRARY = next(Path("/usr/lib").glob("*/faketime/libfaketimeMT.so.1"), None)
HALF_A_MINUTE = {"MAILCHUTE_RETRY__SCHEDULE": "30s"}


class Clock:
    """The program's wall clock, as an offset from the real one."""

    def __init__(self, folder: Path) -> None:
        self._file = folder / "clock"
        self.offset = timedelta()
        self.set(self.offset)

    def set(self, offset: timedelta) -> None:
        self.offset = offset
        new = self._file.with_name("clock.new")
        new.write_text(f"{offset.total_seconds():+.0f}")
        new.replace(self._file)

    @property
    def environment(self) -> dict[str, str]:
        return {
            "LD_PRELOAD": str(LIBRARY),
            "FAKETIME_TIMESTAMP_FILE": str(self._file),
            "FAKETIME_NO_CACHE": "1",
            "FAKETIME_DONT_FAKE_MONOTONIC": "1",
            "FAKETIME_FORCE_MONOTONIC_FIX": "0",  # else Python's threads wait seconds for one another
            "FAKETIME_DONT_RESET": "1",
        }


@pytest.fixture
def clock(tmp_path: Path) -> Clock:
    if LIBRARY is None:
        pytest.skip("libfaketime is not installed (scripts/test-packages.sh brings it on Debian)")
    return Clock(tmp_path)


def through(relay: Relay, clock: Clock) -> dict[str, str]:
    where = {"SMTP_HOST": relay.host, "SMTP_PORT": f"{relay.port}", "SMTP_TLS": "none"}
    return {**where, **clock.environment, **HALF_A_MINUTE}


async def look(service: Service, clock: Clock) -> None:
    """Have the program look at its queue now, by a message for later; it would within half a minute."""
    later = datetime.now(UTC) + clock.offset + timedelta(days=30)
    assert (await service.send(send_at=later.isoformat())).json()["state"] == "scheduled"


async def resume(service: Service) -> None:
    assert (await service.http.post("/profiles/default/resume")).status_code == 200


async def deferred(service: Service, relay: Relay) -> str:
    relay.on("RCPT", "450 4.2.1 busy", times=1)
    answer = (await service.send()).json()
    assert answer["state"] == "deferred"
    return str(answer["id"])


async def test_the_program_goes_by_the_clock_of_these_tests(clock: Clock) -> None:
    async with Relay() as relay, Service(through(relay, clock)) as service:
        before = datetime.fromisoformat((await service.send()).json()["created_at"])
        clock.set(timedelta(days=-1))
        after = datetime.fromisoformat((await service.send()).json()["created_at"])
        assert await service.stop() == 0  # who is killed leaves libfaketime's shared memory behind
    assert timedelta(hours=23, minutes=59) < before - after < timedelta(days=1)


async def test_a_day_back_and_what_is_to_be_tried_again_goes_within_the_longest_wait(clock: Clock) -> None:
    async with Relay() as relay, Service(through(relay, clock)) as service:
        id_ = await deferred(service, relay)
        clock.set(timedelta(days=-1))
        await look(service, clock)
        assert (await service.logged("delivery.brought_forward"))["messages"] == 1
        found = await service.message(id_)
        assert found["state"] == "deferred"
        waits = datetime.fromisoformat(found["next_attempt_at"]) - datetime.fromisoformat(found["created_at"])
        assert timedelta(days=-1) < waits < timedelta(days=-1, seconds=60)
        clock.set(timedelta(days=-1, seconds=60))
        await look(service, clock)
        await service.logged("delivery.sent", message_id=id_)
        assert len(relay.mails) == 1
        assert await service.stop() == 0


async def test_a_day_back_and_a_restart_and_nothing_is_stuck(clock: Clock) -> None:
    async with Relay() as relay, Service(through(relay, clock)) as first:
        id_ = await deferred(first, relay)
        assert (await first.http.post("/profiles/default/pause")).status_code == 200
        queued = (await first.send(prefer="wait=0")).json()["id"]
        assert await first.stop() == 0
        clock.set(timedelta(days=-1))
        async with Service(through(relay, clock), folder=first.folder) as second:
            await resume(second)
            await second.logged("delivery.sent", message_id=queued)
            await second.logged("delivery.sent", message_id=id_)
            assert await second.stop() == 0
        assert len(relay.mails) == 2


async def test_a_day_back_and_what_is_scheduled_stays_so(clock: Clock) -> None:
    async with Relay() as relay, Service(through(relay, clock)) as service:
        at = datetime.fromisoformat((await service.send()).json()["created_at"]) + timedelta(hours=1)
        id_ = (await service.send(send_at=at.isoformat())).json()["id"]
        waits = await deferred(service, relay)
        clock.set(timedelta(days=-1))
        await look(service, clock)
        assert (await service.logged("delivery.brought_forward"))["messages"] == 1, "the one that is deferred"
        found = await service.message(id_)
        assert (found["state"], datetime.fromisoformat(found["next_attempt_at"])) == ("scheduled", at)
        assert (await service.message(waits))["state"] == "deferred"
        assert await service.stop() == 0


async def test_an_hour_on_and_what_is_under_way_is_nobody_elses_and_each_retry_comes_once(clock: Clock) -> None:
    goes_on = asyncio.Event()
    async with Relay() as relay, Service(through(relay, clock)) as service:
        ids = [await deferred(service, relay) for _ in range(3)]
        relay.on("CONTENT", (Wait(goes_on), "250 2.0.0 taken"), times=1)
        slow = (await service.send(prefer="respond-async")).json()["id"]
        await relay.mail()
        clock.set(timedelta(hours=1, minutes=1))  # behind the end of its lease, too
        await look(service, clock)
        for id_ in ids:
            await service.logged("delivery.sent", message_id=id_)
        assert (await service.message(slow))["state"] == "sending"
        goes_on.set()
        await service.logged("delivery.sent", message_id=slow)
        assert [line["event"] for line in service.log if line["level"] != "info"] == []
        for id_ in ids:
            assert len((await service.message(id_))["attempts"]) == 2
        assert len((await service.message(slow))["attempts"]) == 1
        assert len(relay.mails) == 3 + 1
        assert await service.stop() == 0


async def test_a_clock_that_was_ahead_for_a_while_holds_nothing_up_once_its_profile_is_resumed(clock: Clock) -> None:
    """While a profile is paused nothing of it is looked at, and nobody sees that the clock was put back."""
    async with Relay() as relay, Service(through(relay, clock)) as service:
        id_ = await deferred(service, relay)
        assert (await service.http.post("/profiles/default/pause")).status_code == 200
        clock.set(timedelta(days=1))
        queued = (await service.send(prefer="wait=0")).json()["id"]
        again = await service.http.post(f"/messages/{id_}/retry", headers={"Prefer": "respond-async"})
        assert again.json()["state"] == "queued"
        clock.set(timedelta())
        await resume(service)
        for each in (queued, id_):
            await service.logged("delivery.sent", message_id=each)
        assert len(relay.mails) == 2
        assert await service.stop() == 0


async def test_resume_leaves_what_is_scheduled_to_its_time(clock: Clock) -> None:
    async with Relay() as relay, Service(through(relay, clock)) as service:
        at = datetime.fromisoformat((await service.send()).json()["created_at"]) + timedelta(hours=1)
        id_ = (await service.send(send_at=at.isoformat())).json()["id"]
        await resume(service)
        found = await service.message(id_)
        assert (found["state"], datetime.fromisoformat(found["next_attempt_at"])) == ("scheduled", at)
        assert await service.stop() == 0
