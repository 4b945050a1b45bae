"""Mail whose profile is not in the settings for a while: it says so, and goes when the profile is back, within seconds.

The schedule has two hours, so nothing of this is a retry.
"""

import asyncio
import sqlite3
from collections.abc import AsyncIterator
from contextlib import AbstractAsyncContextManager, asynccontextmanager, closing
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest

from tests.api.shapes import flat
from tests.support.app import PATIENCE, Application, running
from tests.support.factories import refused_port
from tests.support.relay import Close, Relay

SCHEDULE = {"MAILCHUTE_RETRY__SCHEDULE": "2h"}
ASYNC = {"Prefer": "respond-async"}


def with_it(folder: Path, relay: Relay, *, keep: bool = True, **more: str) -> AbstractAsyncContextManager[Application]:
    """Run with the profile `relay`, which leads to this relay in every run."""
    profile = {"PORT": f"{relay.port}", "IN_DOUBT": "retry", **more}
    environ = {**SCHEDULE, **{f"MAILCHUTE_PROFILES__RELAY__{key}": value for key, value in profile.items()}}
    return running(folder, environ=environ, keep=keep)


@asynccontextmanager
async def without_it(folder: Path) -> AsyncIterator[Application]:
    """Run on the same database with a profile `new` in its place, whose relay must not be given the mail."""
    async with Relay() as other:
        profile = {"HOST": other.host, "PORT": f"{other.port}", "TLS": "none"}
        environ = {**SCHEDULE, **{f"MAILCHUTE_PROFILES__NEW__{key}": value for key, value in profile.items()}}
        async with running(folder, sandbox=True, environ=environ, keep=True) as service:  # i.e. without `relay`
            yield service
        assert other.mails == []


async def told(service: Application, id_: str, reason: str = "profile_unknown") -> dict[str, Any]:
    """Wait until a message has this reason."""
    changes = service.runtime.verdicts.follow()
    async with asyncio.timeout(PATIENCE):
        while (found := await service.look_up(id_))["reason"] != reason:
            await anext(changes)
    return found


async def goes(service: Application, id_: str) -> None:
    found = await service.settled(id_)
    assert found["state"] == "sent", found


async def paused(service: Application) -> None:
    assert (await service.client.post("/profiles/relay/pause")).status_code == 200


def resumed_before_the_next_start(folder: Path) -> None:
    with closing(sqlite3.connect(folder / "mailchute.db")) as db:
        db.execute("DELETE FROM profile_states")
        db.commit()


async def queued(service: Application) -> str:
    await paused(service)
    return str(flat(await service.send(prefer="respond-async"), status=202)["id"])


async def deferred(service: Application) -> str:
    service.relay.on("RCPT", "450 4.2.1 Busy", times=1)
    id_ = str(flat(await service.send(), status=202)["id"])
    await paused(service)
    await service.client.post(f"/messages/{id_}/retry", headers=ASYNC)
    return id_


async def scheduled(service: Application) -> str:
    await paused(service)
    soon = datetime.now(UTC) + timedelta(milliseconds=200)
    return str(flat(await service.send(send_at=soon.isoformat()), status=202)["id"])


async def doubtful(service: Application) -> str:
    """One that its profile sends again though it may have arrived."""
    service.relay.on("CONTENT", Close(), times=1)
    said = flat(await service.send(), status=202)
    assert (said["state"], said["error_code"]) == ("deferred", "EINDOUBT")
    await paused(service)
    await service.client.post(f"/messages/{said['id']}/retry", headers=ASYNC)
    return str(said["id"])


@pytest.fixture
async def relay() -> AsyncIterator[Relay]:
    async with Relay() as relay:
        yield relay


class TestAStart:
    @pytest.mark.parametrize("waiting", [queued, deferred, scheduled, doubtful], ids=lambda made: made.__name__)
    async def test_what_found_its_profile_missing_goes_at_the_start_that_has_it_back(
        self, tmp_path: Path, relay: Relay, waiting: Any
    ) -> None:
        async with with_it(tmp_path, relay, keep=False) as service:
            service.relay = relay
            id_ = await waiting(service)
            tried = len(relay.mails)
        resumed_before_the_next_start(tmp_path)
        async with without_it(tmp_path) as service:
            found = await told(service, id_)
            assert (found["state"], found["error_code"], found["class"]) == ("deferred", "ECONFIG", "configuration")
            assert "relay is not in the settings" in found["message"]
            assert ("may arrive twice" in found["message"]) == (waiting is doubtful)
            assert datetime.fromisoformat(found["next_attempt_at"]) > datetime.now(UTC) + timedelta(hours=1)
        async with with_it(tmp_path, relay) as service:
            await goes(service, id_)
        assert len(relay.mails) == tried + 1

    async def test_what_was_deferred_for_another_reason_is_not_hurried_by_a_start(
        self, tmp_path: Path, relay: Relay
    ) -> None:
        async with with_it(tmp_path, relay, keep=False) as service:
            relay.on("RCPT", "450 4.2.1 Busy", times=1)
            id_ = flat(await service.send(), status=202)["id"]
            due = (await service.look_up(id_))["next_attempt_at"]
        async with with_it(tmp_path, relay) as service:
            assert (await service.look_up(id_))["next_attempt_at"] == due
            assert flat(await service.send(), status=200)["state"] == "sent"
            assert (await service.look_up(id_))["next_attempt_at"] == due

    async def test_a_paused_profile_that_is_missing_once_is_paused_when_it_is_back_and_resume_lets_its_mail_go(
        self, tmp_path: Path, relay: Relay
    ) -> None:
        async with with_it(tmp_path, relay, keep=False) as service:
            id_ = await queued(service)
        async with without_it(tmp_path) as service:
            await told(service, id_)
        async with with_it(tmp_path, relay) as service:
            assert (await service.client.get("/profiles/relay")).json()["paused_at"] is not None
            assert relay.mails == []
            assert (await service.client.post("/profiles/relay/resume")).status_code == 200
            await goes(service, id_)

    async def test_an_open_circuit_outlasts_a_start_without_its_profile_and_no_login_is_made(
        self, tmp_path: Path
    ) -> None:
        async with Relay(auth=["PLAIN"]) as relay:
            async with with_it(tmp_path, relay, keep=False, USERNAME="bot", PASSWORD="wrong") as service:
                id_ = flat(await service.send(), status=202)["id"]
                assert (await service.look_up(id_))["reason"] == "auth_rejected"
                await service.client.post(f"/messages/{id_}/retry", headers=ASYNC)
            async with without_it(tmp_path) as service:
                await told(service, id_)
                assert 'mailchute_circuit_open{profile="relay"' not in (await service.client.get("/metrics")).text
            logins = relay.connections
            async with with_it(tmp_path, relay, USERNAME="bot", PASSWORD="wrong") as service:
                await told(service, id_, "auth_rejected")
                assert (await service.client.get("/profiles/relay")).json()["circuit"]["reason"] == "auth_rejected"
                assert relay.connections == logins
            async with with_it(tmp_path, relay, USERNAME="bot", PASSWORD="secret") as service:
                await goes(service, id_)

    async def test_what_is_in_doubt_and_retried_while_its_profile_is_missing_says_so(
        self, tmp_path: Path, relay: Relay
    ) -> None:
        async with with_it(tmp_path, relay, keep=False, IN_DOUBT="hold") as service:
            relay.on("CONTENT", Close(), times=1)
            id_ = flat(await service.send(), status=202)["id"]
        async with without_it(tmp_path) as service:
            assert (await service.look_up(id_))["state"] == "in_doubt"
            await service.client.post(f"/messages/{id_}/retry", headers=ASYNC)
            await told(service, id_)
        async with with_it(tmp_path, relay) as service:
            await goes(service, id_)
        assert len(relay.mails) == 2


class TestAReload:
    async def test_an_open_circuit_of_a_profile_that_was_taken_out_and_put_back_stays_open(
        self, tmp_path: Path
    ) -> None:
        async with (
            Relay(auth=["PLAIN"]) as relay,
            with_it(tmp_path, relay, keep=False, USERNAME="bot", PASSWORD="wrong") as service,
        ):
            id_ = flat(await service.send(), status=202)["id"]
            settings = service.runtime.settings
            another = replace(settings.profiles["relay"], name="new", username="", password="")
            service.runtime.reload(replace(settings, profiles={"new": another}, default_profile="new"))
            await told(service, id_)
            logins = relay.connections
            service.runtime.reload(settings)
            await told(service, id_, "auth_rejected")
            assert relay.connections == logins


class TestResumeAndVerify:
    async def test_resume_lets_all_go_that_was_deferred(self, tmp_path: Path, relay: Relay) -> None:
        async with with_it(tmp_path, relay, keep=False) as service:
            relay.on("RCPT", "450 4.2.1 Busy", times=3)
            ids = [flat(await service.send(), status=202)["id"] for _ in range(3)]
            assert (await service.client.post("/profiles/relay/resume")).status_code == 200
            for id_ in ids:
                await goes(service, id_)

    async def test_a_verify_that_succeeds_lets_go_what_failed_on_the_way_to_the_relay(
        self, tmp_path: Path, relay: Relay
    ) -> None:
        async with with_it(tmp_path, relay, keep=False) as service:
            relay.on("EHLO", Close(), times=1)
            unreachable = flat(await service.send(), status=202)["id"]
            relay.on("RCPT", "450 4.2.0 Greylisted, try again later", times=1)
            greylisted = flat(await service.send(), status=202)["id"]
            due = (await service.look_up(greylisted))["next_attempt_at"]
            assert (await service.client.post("/profiles/relay/verify")).json()["ok"] is True
            await goes(service, unreachable)
            assert (await service.look_up(greylisted))["next_attempt_at"] == due, (
                "that is the recipient's, not the way's"
            )

    async def test_a_verify_that_fails_lets_nothing_go(self, tmp_path: Path, relay: Relay) -> None:
        async with with_it(tmp_path, relay, keep=False, PORT=f"{refused_port()}") as service:
            id_ = flat(await service.send(), status=202)["id"]
            due = (await service.look_up(id_))["next_attempt_at"]
            assert (await service.client.post("/profiles/relay/verify")).json()["ok"] is False
            assert (await service.look_up(id_))["next_attempt_at"] == due


class TestTheSandbox:
    async def test_what_it_left_waiting_is_never_sent_by_a_real_relay(self, tmp_path: Path, relay: Relay) -> None:
        async with running(tmp_path, sandbox=True, environ=SCHEDULE) as service:
            kept = flat(await service.send(), status=200)["id"]
            await service.client.post("/profiles/sandbox/pause")
            waits = flat(await service.send(prefer="respond-async"), status=202)["id"]
            down = flat(await service.send(profile="sandbox-down"), status=202)["id"]
        resumed_before_the_next_start(tmp_path)
        async with with_it(tmp_path, relay) as service:
            found = await told(service, waits)
            assert (found["state"], found["sandbox"]) == ("deferred", True)
            assert "sandbox, which is off" in found["hint"]
            await service.client.post(f"/messages/{down}/retry", headers=ASYNC)
            await told(service, down)
            assert flat(await service.send(), status=200)["sandbox"] is False
            assert (await service.look_up(kept))["state"] == "sent"
        assert len(relay.mails) == 1
        async with running(tmp_path, sandbox=True, environ=SCHEDULE, keep=True) as service:
            await goes(service, waits)
