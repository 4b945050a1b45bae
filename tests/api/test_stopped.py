"""Stopped, or without its store, in the moments between: nobody is sent to twice, nothing stands still for ever."""

import asyncio
import sqlite3
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import asynccontextmanager, closing
from pathlib import Path
from unittest.mock import patch

import httpx2
import pytest

from app.main import around
from app.runtime import Runtime
from tests.api.shapes import flat
from tests.api.test_circuit import LOGIN, SOON, circuit, logins, service, until, wants_login
from tests.api.test_more_recipients import EVERYBODY, Bounded
from tests.support.app import PATIENCE, Application, falling_back_to, locked, running
from tests.support.factories import refused_port
from tests.support.relay import Close, Relay, Wait


def rows(folder: Path, sql: str) -> list[tuple[object, ...]]:
    with closing(sqlite3.connect(folder / "mailchute.db")) as other:
        return other.execute(sql).fetchall()


async def holds(condition: Callable[[], bool]) -> None:
    async with asyncio.timeout(PATIENCE):
        while not condition():
            await asyncio.sleep(0)


@asynccontextmanager
async def with_another(
    folder: Path, relay: Relay, environ: Mapping[str, str], *, keep: bool = False
) -> AsyncIterator[tuple[Application, Relay]]:
    async with (
        Relay() as other,
        service(folder, relay, environ={**falling_back_to(other), **environ}, keep=keep) as found,
    ):
        yield found, other


def cancelled(found: Application, times: int = 1) -> Callable[[], bool]:
    return lambda: any(attempt.cancelling() >= times for attempt in found.runtime.worker._attempts)


async def test_behind_the_second_content_whoever_was_deferred_still_has_a_time(tmp_path: Path) -> None:
    never = asyncio.Event()
    async with running(tmp_path) as found:
        found.relay.on("RCPT", Bounded(found.relay, 1, "452 4.5.3 Too many"))  # type: ignore[arg-type]
        found.relay.on("RCPT", "450 4.2.0 Busy", match="r0@")
        found.relay.on("CONTENT", (Wait(never), "250 Ok"))
        found.relay.on("CONTENT", "250 2.0.0 Ok", times=1)
        await found.send(to=EVERYBODY[:3], prefer="respond-async")
        await found.relay.mail(2)
    assert rows(tmp_path, "SELECT state FROM recipients ORDER BY position") == [("pending",), ("sent",), ("in_doubt",)]
    assert rows(tmp_path, "SELECT state, due_at > 0 FROM messages") == [("deferred", 1)]


@pytest.mark.parametrize("policy", ["hold", "retry"])
async def test_while_a_part_is_written_whoever_was_sent_to_stays_so(tmp_path: Path, policy: str) -> None:
    environ = {"MAILCHUTE_PROFILES__RELAY__IN_DOUBT": policy, "MAILCHUTE_RETRY__SCHEDULE": "1s"}
    verdict = asyncio.Event()
    async with running(tmp_path, environ=environ) as found:
        found.relay.on("RCPT", Bounded(found.relay, 3, "452 4.5.3 Too many"))  # type: ignore[arg-type]
        found.relay.on("CONTENT", (Wait(verdict), "250 2.0.0 Ok"), times=1)
        id_ = flat(await found.send(to=EVERYBODY[:5], prefer="respond-async"), status=202)["id"]
        mail = await found.relay.mail()
        with locked(tmp_path):
            verdict.set()
            await holds(lambda: mail.taken)
            for _ in range(50):  # turns of the loop in which the verdict is read and the part handed in
                await asyncio.sleep(0)
            stopping = asyncio.create_task(found.runtime.close())
            await holds(cancelled(found))
        await stopping
    assert rows(tmp_path, "SELECT state FROM recipients ORDER BY position")[:3] == [("sent",)] * 3
    async with running(tmp_path, environ=environ, keep=True) as found:
        ended = await found.settled(id_)
        assert [mail.rcpt_to for mail in found.relay.mails] == [EVERYBODY[3:5]]
        assert ended["accepted"] == EVERYBODY[:5]


async def test_while_a_further_attempt_is_written_it_is_either_begun_or_not(tmp_path: Path) -> None:
    greet = asyncio.Event()
    with patch("app.delivery.worker.CANCEL_AGAIN", 0.05):
        async with with_another(tmp_path, Relay(), {}) as (found, _):
            found.relay.on("GREETING", (Wait(greet), Close()))
            id_ = flat(await found.send(prefer="respond-async"), status=202)["id"]
            await found.relay.connected()
            with locked(tmp_path):
                greet.set()
                await holds(found.relay.dialogues[0].task.done)
                for _ in range(50):
                    await asyncio.sleep(0)
                stopping = asyncio.create_task(found.runtime.close())
                await holds(cancelled(found, 2))
            await stopping
    (said,) = rows(tmp_path, "SELECT attempts, lease_token FROM messages")
    assert rows(tmp_path, "SELECT max(number) FROM attempts") == [(said[0] or None,)]
    async with with_another(tmp_path, Relay(), {}, keep=True) as (found, _):
        assert (await found.settled(id_))["state"] == "sent"


async def test_what_is_in_doubt_at_another_relay_is_held(tmp_path: Path) -> None:
    """Whatever that profile says: the message's own profile would be another relay."""
    environ = {"MAILCHUTE_PROFILES__OTHER__IN_DOUBT": "retry", "MAILCHUTE_RETRY__SCHEDULE": "50ms"}
    async with with_another(tmp_path, Relay(), environ) as (found, other):
        found.relay.on("GREETING", "421 4.3.2 closing", times=1)
        other.on("CONTENT", (Close(),))
        answer = flat(await found.send(), status=202)
        assert (answer["state"], answer["final"], answer["attempts"]) == ("in_doubt", True, 2)
        await found.client.post("/profiles/relay/resume")
        assert found.relay.mails == []


async def test_a_wrong_password_that_is_found_at_the_stop_is_remembered(tmp_path: Path) -> None:
    refuse = asyncio.Event()
    async with wants_login() as relay:
        environ = {**LOGIN, "MAILCHUTE_PROFILES__RELAY__PORT": str(relay.port)}
        async with service(tmp_path, environ=environ) as found:
            relay.on("AUTH", (Wait(refuse), "535 5.7.8 no"), times=1)
            await found.send(prefer="respond-async")
            await relay.seen("AUTH")
            with patch("app.runtime.GRACE", PATIENCE):
                stopping = asyncio.create_task(found.runtime.close())
                await asyncio.sleep(0)
                refuse.set()
                await stopping
        async with service(tmp_path, environ=environ, keep=True) as found:
            assert flat(await found.send(), status=202)["attempts"] == 0
            assert logins(relay) == 1


async def test_a_trial_that_was_under_way_when_it_was_resumed_opens_it_for_good(tmp_path: Path) -> None:
    refuse = asyncio.Event()
    async with service(tmp_path, wants_login(), pace=SOON, environ=LOGIN) as found:
        found.relay.on("AUTH", (Wait(refuse), "535 5.7.8 no"))
        found.relay.on("AUTH", "535 5.7.8 no", times=1)
        await found.send()
        await found.relay.seen("AUTH", 2)
        with patch("app.mail.circuit.PACE_OF_LOGINS", SOON * 100_000):
            await found.client.post("/profiles/relay/resume")
            refuse.set()
            async with asyncio.timeout(PATIENCE):
                while await circuit(found) is None:
                    await asyncio.sleep(0)
            for _ in range(5):  # looks
                await asyncio.sleep(0.02)
            assert (await circuit(found))["reason"] == "auth_rejected"
            assert logins(found.relay) == 2


async def test_resumed_without_a_service_its_circuit_is_closed_for_the_next_one(tmp_path: Path) -> None:
    async with wants_login() as relay:
        environ = {**LOGIN, "MAILCHUTE_PROFILES__RELAY__PORT": str(relay.port)}
        async with service(tmp_path, environ=environ) as found:
            id_ = flat(await found.send(), status=202)["id"]
            settings = found.runtime.settings
        alone = Runtime(settings, delivers=False)
        await alone.open()
        async with httpx2.AsyncClient(
            transport=httpx2.ASGITransport(around(alone)), base_url="http://operator"
        ) as client:
            assert (await client.get("/profiles/relay")).json()["circuit"]["reason"] == "auth_rejected"
            assert (await client.post("/profiles/relay/resume")).json()["circuit"] is None
        await alone.close()
        relay.users = {"bot": "wrong"}
        async with service(tmp_path, environ=environ, keep=True) as found:
            await until(found, id_, "sent")


async def test_what_waits_for_a_profile_that_is_gone_expires_though_all_is_held(tmp_path: Path) -> None:
    environ = {"MAILCHUTE_PROFILES__RELAY__PORT": str(refused_port()), "MAILCHUTE_RETRY__SCHEDULE": "50ms"}
    async with running(tmp_path, environ=environ) as found:
        id_ = flat(await found.send(expires_in=2), status=202)["id"]
    new = {"HOST": "127.0.0.1", "PORT": "25", "TLS": "none"}
    environ = {f"MAILCHUTE_PROFILES__NEW__{key}": value for key, value in new.items()}
    environ |= {"MAILCHUTE_HOLD": "true", "MAILCHUTE_RETRY__SCHEDULE": "50ms"}
    with patch("tests.support.app._profile", lambda relay: {}):
        async with running(tmp_path, environ=environ, keep=True) as found:
            ended = await until(found, id_, "failed")
            assert (ended["error_code"], len(ended["attempts"]) > 0) == ("EEXPIRED", True)


async def test_what_may_have_arrived_is_not_called_failed_after_a_retry_by_hand(tmp_path: Path) -> None:
    async with service(tmp_path) as found:
        found.relay.on("CONTENT", (Close(),), times=1)
        id_ = flat(await found.send(), status=202)["id"]
        found.relay.on("RCPT", "550 5.1.1 Nobody")
        again = (await found.client.post(f"/messages/{id_}/retry", headers={"Prefer": "wait=5"})).json()
        assert (again["state"], again["error_code"]) == ("in_doubt", "EINDOUBT")


async def test_what_is_taken_in_the_moment_of_a_stop_burns_no_attempt(tmp_path: Path) -> None:
    async with running(tmp_path) as found:
        with locked(tmp_path):
            asking = asyncio.create_task(found.send(prefer="respond-async"))
            await holds(lambda: found.runtime.worker.standing("relay").under_way == 1)
            stopping = asyncio.create_task(found.runtime.close())
            for _ in range(50):  # turns of the loop in which all ends that does not wait for the store
                await asyncio.sleep(0)
        await stopping
        id_ = flat(await asking, status=202)["id"]
    assert rows(tmp_path, "SELECT state, attempts, lease_token FROM messages") == [("queued", 0, None)]
    async with running(tmp_path, keep=True) as found:
        assert [attempt["reason"] for attempt in (await found.settled(id_))["attempts"]] == [None]
