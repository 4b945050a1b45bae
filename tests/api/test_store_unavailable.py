"""The store cannot take a write: 503, send it again; nothing was taken, and it works again when it can."""

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path
from unittest.mock import patch

import pytest

from app.store import database
from tests.api.shapes import JSON, flat, problem
from tests.support.app import MESSAGE, Application, falling_back_to, locked, running
from tests.support.relay import Relay, Wait


@pytest.fixture
async def impatient(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Application]:
    """A service that waits next to nothing for somebody else's lock."""
    monkeypatch.setattr(database, "BUSY_SECONDS", 0.05)
    async with running(tmp_path) as service:
        yield service


async def test_a_message_is_503_with_retry_after_and_nothing_is_taken(impatient: Application, tmp_path: Path) -> None:
    with locked(tmp_path):
        answer = await impatient.send()
    said = problem(answer, status=503)
    assert said["type"] == "/errors/store-unavailable"
    assert "nothing was taken" in said["detail"]
    assert int(answer.headers["retry-after"]) > 0
    assert (await impatient.client.get("/messages")).json()["data"] == []
    assert impatient.relay.connections == 0


async def test_a_bot_that_shows_only_plain_json_can_read_it(impatient: Application, tmp_path: Path) -> None:
    with locked(tmp_path):
        answer = await impatient.client.post("/send", json=MESSAGE, headers={"Accept": JSON})
    problem(answer, status=503)
    assert answer.headers["content-type"] == JSON


async def test_who_would_not_wait_is_refused_as_well(impatient: Application, tmp_path: Path) -> None:
    with locked(tmp_path):
        problem(await impatient.send(prefer="respond-async"), status=503)
    assert (await impatient.client.get("/messages")).json()["data"] == []


async def test_it_is_not_ready_but_alive(impatient: Application, tmp_path: Path) -> None:
    with locked(tmp_path):
        ready = await impatient.client.get("/readyz")
        alive = await impatient.client.get("/livez")
        health = await impatient.client.get("/health")
    assert (ready.status_code, ready.json()) == (503, {"status": "fail"})
    assert (alive.status_code, alive.json()) == (200, {"status": "pass"})
    assert (health.status_code, health.json()["status"]) == (503, "fail")
    assert health.headers["content-type"] == "application/health+json"
    assert health.json()["checks"]["store"][0]["status"] == "fail"
    assert (await impatient.client.get("/readyz")).status_code == 200


async def test_what_was_taken_before_can_still_be_read(impatient: Application, tmp_path: Path) -> None:
    sent = (await impatient.send()).json()
    with locked(tmp_path):
        (listed,) = (await impatient.client.get("/messages")).json()["data"]
        assert {name: listed[name] for name in sent} == sent
        assert (await impatient.look_up(sent["id"]))["state"] == "sent"
        assert (await impatient.client.get(f"/messages/{sent['id']}/raw")).status_code == 200
        assert (await impatient.client.get("/metrics")).status_code == 200


async def test_it_works_again_when_the_lock_is_gone(impatient: Application, tmp_path: Path) -> None:
    with locked(tmp_path):
        # More than the worker's window: every place that it had reserved must be free again.
        for answer in await asyncio.gather(*(impatient.send() for _ in range(50))):
            problem(answer, status=503)
    assert flat(await impatient.send(), status=200)["attempts"] == 1
    assert len(impatient.relay.mails) == 1


async def test_a_refusal_of_the_request_needs_no_store(impatient: Application, tmp_path: Path) -> None:
    with locked(tmp_path):
        problem(await impatient.send(to="ann"), status=422, at="/to")


async def test_a_verdict_that_meets_a_stray_lock_is_written_when_it_is_gone_and_sent_once(
    impatient: Application, tmp_path: Path
) -> None:
    verdict = asyncio.Event()
    impatient.relay.on("CONTENT", (Wait(verdict), "250 2.0.0 Ok: queued as R1"))
    taken = (await impatient.send(prefer="respond-async")).json()
    await impatient.relay.mail()
    with locked(tmp_path):
        verdict.set()
        problem(await impatient.send(), status=503)
        assert (await impatient.look_up(taken["id"]))["state"] == "sending"
    found = await impatient.settled(taken["id"])
    assert (found["state"], found["attempts"][0]["error_code"], len(found["attempts"])) == ("sent", None, 1)
    assert len(impatient.relay.mails) == 1


async def test_where_a_part_cannot_be_written_nobody_is_sent_to_twice(impatient: Application, tmp_path: Path) -> None:
    """More recipients than the relay takes at once: they follow in the same attempt, unless the store is locked."""
    everybody, verdict = [f"r{n}@theirs.test" for n in range(3)], asyncio.Event()
    impatient.relay.on("RCPT", "452 4.5.3 Too many recipients", match="r2@", times=1)
    impatient.relay.on("CONTENT", (Wait(verdict), "250 2.0.0 Ok: queued as R1"), times=1)
    id_ = (await impatient.send(to=everybody, prefer="respond-async")).json()["id"]
    await impatient.relay.mail()
    with locked(tmp_path):
        verdict.set()
        for _ in range(3):  # operations run in order, and by the last one the part's has come
            problem(await impatient.send(), status=503)
    changes = impatient.runtime.verdicts.follow()
    while (found := await impatient.look_up(id_))["state"] == "sending":
        await anext(changes)
    assert (found["state"], found["accepted"]) == ("deferred", everybody[:2])
    await impatient.client.post(f"/messages/{id_}/retry", headers={"Prefer": "wait=5"})
    assert [mail.rcpt_to for mail in impatient.relay.mails] == [everybody[:2], everybody[2:]]


async def test_where_a_further_attempt_cannot_be_begun_the_first_one_stands(tmp_path: Path) -> None:
    """The next profile's turn is written in the transaction that ends the attempt before."""
    refuse = asyncio.Event()
    async with Relay() as other:
        with patch("app.store.database.BUSY_SECONDS", 0.05):
            async with running(tmp_path, environ=falling_back_to(other)) as service:
                service.relay.on("GREETING", (Wait(refuse), "554 5.7.1 Not you"))
                id_ = (await service.send(prefer="respond-async")).json()["id"]
                await service.relay.connected()
                with locked(tmp_path):
                    refuse.set()
                    for _ in range(3):
                        problem(await service.send(), status=503)
                changes = service.runtime.verdicts.follow()
                while (found := await service.look_up(id_))["state"] == "sending":
                    await anext(changes)
                assert (found["state"], [one["profile"] for one in found["attempts"]]) == ("deferred", ["relay"])
                await service.client.post(f"/messages/{id_}/retry", headers={"Prefer": "wait=5"})
                found = await service.look_up(id_)
                assert (found["state"], [one["profile"] for one in found["attempts"]]) == ("sent", ["relay", "other"])
    assert len(other.mails) == 1
