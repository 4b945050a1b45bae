"""No room in the queue, or on the disk: 503 before anything breaks, and what was taken goes on."""

from collections.abc import AsyncIterator
from pathlib import Path

import httpx2
import pytest

from tests.api.shapes import flat, problem
from tests.support.app import Application, running


@pytest.fixture
async def small(tmp_path: Path) -> AsyncIterator[Application]:
    """A service whose queue has room for two, and whose relay is paused."""
    async with running(tmp_path, environ={"MAILCHUTE_MAX_QUEUED": "2"}) as service:
        assert (await service.client.post("/profiles/relay/pause")).status_code == 200
        for _ in range(2):
            flat(await service.send(prefer="respond-async"), status=202)
        yield service


async def test_a_full_queue_takes_nothing_more_and_says_what_cures_it(small: Application) -> None:
    answer = await small.send()
    said = problem(answer, status=503)
    assert said["type"] == "/errors/no-room"
    assert said["detail"].startswith("2 messages wait to be sent, and no more than 2 may: ")
    assert "max_queued" in said["detail"]
    assert int(answer.headers["retry-after"]) >= 10
    assert len((await small.client.get("/messages")).json()["data"]) == 2


async def test_it_is_not_ready_and_health_says_why(small: Application) -> None:
    ready, alive = await small.client.get("/readyz"), await small.client.get("/livez")
    assert (ready.status_code, ready.json()) == (503, {"status": "fail"})
    assert alive.status_code == 200
    health = await small.client.get("/health")
    assert (health.status_code, health.json()["status"]) == (503, "fail")
    (check,) = health.json()["checks"]["room"]
    assert (check["status"], "max_queued" in check["output"]) == ("fail", True)


async def test_what_asks_for_no_room_is_answered(small: Application) -> None:
    problem(await small.send(to="ann"), status=422, at="/to")
    dry = await small.client.post(
        "/send", json={"to": "ann@theirs.test", "from": "b@x.test", "text": "x", "dry_run": True}
    )
    assert dry.status_code == 200


async def test_there_is_room_again_when_one_has_left(small: Application) -> None:
    first, _ = (await small.client.get("/messages")).json()["data"]
    assert (await small.client.post(f"/messages/{first['id']}/cancel")).status_code == 200
    assert (await small.client.get("/readyz")).status_code == 200
    flat(await small.send(prefer="respond-async"), status=202)
    problem(await small.send(), status=503)


async def test_what_was_taken_is_delivered_although_there_is_no_room(tmp_path: Path) -> None:
    async with running(tmp_path) as service:
        assert (await service.client.post("/profiles/relay/pause")).status_code == 200
        taken = (await service.send(prefer="respond-async")).json()
        service.runtime.room.bound(max_queued=0, min_free_bytes=1 << 62)
        await service.runtime.room.look()
        assert "min_free_bytes" in problem(await service.send(), status=503)["detail"]
        assert (await service.client.get("/readyz")).status_code == 503
        assert (await service.client.post("/profiles/relay/resume")).status_code == 200
        assert (await service.settled(taken["id"]))["state"] == "sent"


async def test_a_log_that_grows_is_a_warning(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    async with running(tmp_path) as service:
        await service.send()
        assert (await service.client.get("/health")).json()["checks"]["log"][0]["status"] == "pass"
        monkeypatch.setattr("app.api.operate.LOG_BYTES", 1000)
        (check,) = (await service.client.get("/health")).json()["checks"]["log"]
        assert (check["status"], check["observedUnit"]) == ("warn", "bytes")
        assert check["observedValue"] > 1000
        figures = (await service.client.get("/metrics")).text
        assert f"mailchute_store_log_bytes {float(check['observedValue'])}" in figures
        assert "mailchute_disk_free_bytes " in figures


async def test_whoever_repeats_what_was_taken_is_given_it_although_a_new_one_would_be_refused(tmp_path: Path) -> None:
    """503 and 422 say that we have it not: the caller would send it again under another key."""
    keys = [{"Idempotency-Key": "sent"}, {"Idempotency-Key": "waits"}]
    body = {"to": "ann@theirs.test", "subject": "x", "text": "x"}

    async def post(service: Application, key: dict[str, str], **more: str) -> httpx2.Response:
        return await service.client.post("/send", json={**body, **more}, headers={**key, "Prefer": "respond-async"})

    async with running(
        tmp_path, environ={"MAILCHUTE_MAX_QUEUED": "1", "MAILCHUTE_DEFAULT_FROM": "bot@ours.test"}
    ) as service:
        sent = flat(await post(service, keys[0]), status=202)["id"]
        await service.settled(sent)
        assert (await service.client.post("/profiles/relay/pause")).status_code == 200
        waits = flat(await post(service, keys[1]), status=202)["id"]
        for key, id_, status in ((keys[0], sent, 200), (keys[1], waits, 202)):
            again = await post(service, key)
            assert (flat(again, status=status)["id"], again.headers["idempotent-replayed"]) == (id_, "true")
        problem(await post(service, keys[0], subject="another"), status=422)
        problem(await post(service, {"Idempotency-Key": "new"}), status=503)
    async with running(tmp_path, keep=True) as service:
        assert flat(await post(service, keys[0]), status=200)["id"] == sent
        problem(await post(service, {"Idempotency-Key": "new"}), status=422, at="/from")
