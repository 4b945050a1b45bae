"""How a profile stands, and what an operator says to it: pause, resume."""

import asyncio
from pathlib import Path
from typing import Any

import pytest

from tests.api.shapes import flat, problem
from tests.support.app import PATIENCE, Application, running
from tests.support.relay import Wait

PASSWORD = "canary-s3cret-0123456789"
WITH_LOGIN = {
    "MAILCHUTE_PROFILES__CLOUD__HOST": "smtp.cloud.test",
    "MAILCHUTE_PROFILES__CLOUD__USERNAME": "canary-user",
    "MAILCHUTE_PROFILES__CLOUD__PASSWORD": PASSWORD,
    "MAILCHUTE_PROFILES__CLOUD__FROM": "Cloud <cloud@ours.test>",
    "MAILCHUTE_DEFAULT_PROFILE": "relay",
}


@pytest.fixture
async def service(tmp_path: Path) -> Any:
    async with running(tmp_path, environ=WITH_LOGIN) as service:
        yield service


async def profile(service: Application, name: str = "relay", act: str = "") -> dict[str, Any]:
    path = f"/profiles/{name}"
    answer = await (service.client.post(f"{path}/{act}") if act else service.client.get(path))
    assert answer.status_code == 200, answer.text
    found: dict[str, Any] = answer.json()
    return found


async def test_a_profile_is_told_as_it_is_set_and_without_its_secrets(service: Application) -> None:
    cloud = await profile(service, "cloud")
    assert cloud == {
        "name": "cloud",
        "default": False,
        "sandbox": False,
        "host": "smtp.cloud.test",
        "port": 587,
        "tls": "starttls",
        "verify": True,
        "auth": "auto",
        "logs_in": True,
        "from": "cloud@ours.test",
        "envelope_from": None,
        "fallback": [],
        "paused_at": None,
        "circuit": None,
        "last_success_at": None,
        "under_way": 0,
        "pool": {"idle": 0, "taken": 0, "waiting": 0, "limit": 10},
    }
    everything = await service.client.get("/profiles")
    assert "canary" not in everything.text
    assert [one["name"] for one in everything.json()["data"]] == ["relay", "cloud"]
    assert everything.json()["data"][1] == cloud


async def test_an_unknown_profile_is_told_with_the_nearest(service: Application) -> None:
    for answer in (await service.client.get("/profiles/clowd"), await service.client.post("/profiles/clowd/pause")):
        assert "do you mean cloud?" in problem(answer, status=404)["detail"]


async def test_what_is_under_way_and_what_went_well_show(service: Application) -> None:
    goes_on = asyncio.Event()
    service.relay.on("CONTENT", (Wait(goes_on), "250 2.0.0 taken"), times=1)
    id_ = flat(await service.send(prefer="respond-async"), status=202)["id"]
    await service.relay.mail()
    during = await profile(service)
    assert (during["under_way"], during["pool"]["taken"], during["last_success_at"]) == (1, 1, None)
    goes_on.set()
    began = (await service.settled(id_))["attempts"][0]["started_at"]
    after = await profile(service)
    assert (after["under_way"], after["pool"]["idle"]) == (0, 1)
    assert after["last_success_at"] >= began


async def test_a_success_is_remembered_across_restarts_and_a_failure_is_none(tmp_path: Path) -> None:
    async with running(tmp_path) as service:
        began = (await service.look_up(flat(await service.send(), status=200)["id"]))["attempts"][0]["started_at"]
        last = (await profile(service))["last_success_at"]
        service.relay.on("RCPT", "550 5.1.1 no such user")
        flat(await service.send(), status=424)
        assert (await profile(service))["last_success_at"] == last
    async with running(tmp_path, keep=True) as service:
        assert (await profile(service))["last_success_at"] == began


async def test_a_paused_profile_begins_nothing_until_it_is_resumed(service: Application) -> None:
    assert (await profile(service, act="pause"))["paused_at"] is not None
    first = flat(await service.send(prefer="wait=0"), status=202)
    assert (first["state"], first["ok"]) == ("queued", True)
    assert service.relay.connections == 0
    health = (await service.client.get("/health")).json()
    assert "paused since" in next(c["output"] for c in health["checks"]["profiles"] if c["componentId"] == "relay")
    assert (await profile(service, act="resume"))["paused_at"] is None
    assert (await service.settled(first["id"]))["state"] == "sent"


async def test_a_pause_outlives_a_restart_and_begins_only_once(tmp_path: Path) -> None:
    async with running(tmp_path) as service:
        since = (await profile(service, act="pause"))["paused_at"]
        id_ = flat(await service.send(prefer="wait=0"), status=202)["id"]
    async with running(tmp_path, keep=True) as service:
        assert (await profile(service, act="pause"))["paused_at"] == since
        assert service.relay.connections == 0
        await profile(service, act="resume")
        assert (await service.settled(id_))["state"] == "sent"


async def test_what_is_under_way_goes_on_when_its_profile_is_paused(service: Application) -> None:
    goes_on = asyncio.Event()
    service.relay.on("CONTENT", (Wait(goes_on), "250 2.0.0 taken"))
    waiting = asyncio.create_task(service.send())
    await service.relay.mail()
    await profile(service, act="pause")
    goes_on.set()
    async with asyncio.timeout(PATIENCE):
        assert flat(await waiting, status=200)["state"] == "sent"


async def test_another_profile_is_not_held_up(service: Application) -> None:
    await profile(service, "cloud", act="pause")
    assert flat(await service.send(), status=200)["state"] == "sent"


async def test_resuming_one_that_is_not_paused_changes_nothing(service: Application) -> None:
    assert await profile(service, act="resume") == await profile(service)
