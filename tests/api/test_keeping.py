"""Who asks to be forgotten is, as far as their messages have ended; and whoever sends through what is paused is told."""

from typing import Any

import pytest

from tests.api.shapes import flat, problem
from tests.support.app import Application


async def erase(service: Application, address: object) -> Any:
    return await service.client.post("/erase", json={"address": address})


async def test_an_erased_message_keeps_its_state_and_its_code_and_nothing_of_the_person(service: Application) -> None:
    service.relay.on("RCPT", "550 5.1.1 <Ann@theirs.test> is gone", times=1)
    id_ = flat(
        await service.send(to="Ann Miller <Ann@theirs.test>", tags=["vip"], metadata={"who": "Ann"}), status=424
    )["id"]
    answer = await erase(service, "Ann@Theirs.TEST")
    assert (answer.status_code, answer.json()) == (200, {"erased": 1, "live": 0})
    found = await service.look_up(id_)
    assert (found["state"], found["error_code"], found["smtp_code"], len(found["attempts"])) == (
        "failed",
        "EENVELOPE",
        550,
        1,
    )
    assert found["attempts"][0]["smtp_code"] == 550
    assert found["attempts"][0]["transcript"] == []
    for name, gone in (("subject", ""), ("tags", []), ("metadata", {}), ("message", "not sent; erased"), ("hint", "")):
        assert found[name] == gone
    assert "Ann" not in str(found)
    assert (await service.client.get(f"/messages/{id_}/raw")).status_code == 404
    problem(await service.client.post(f"/messages/{id_}/retry"), status=409)
    for query in ("recipient=Ann@theirs.test", "q=Ann", "q=order", "tag=vip"):
        assert (await service.client.get(f"/messages?{query}")).json()["data"] == []
    assert (await erase(service, "Ann@theirs.test")).json() == {"erased": 0, "live": 0}


async def test_what_waits_is_left_and_goes_once_it_is_cancelled(service: Application) -> None:
    service.relay.on("RCPT", "450 4.2.1 busy", times=1)
    id_ = flat(await service.send(), status=202)["id"]
    assert (await erase(service, "ann@theirs.test")).json() == {"erased": 0, "live": 1}
    assert (await service.look_up(id_))["recipients"][0]["address"] == "ann@theirs.test"
    await service.client.post(f"/messages/{id_}/cancel")
    assert (await erase(service, "ann@theirs.test")).json() == {"erased": 1, "live": 0}


@pytest.mark.parametrize(
    ("body", "pointer", "says"),
    [
        ({}, "/address", "address is missing"),
        ({"address": ""}, "/address", "nobody is named"),
        ({"address": None}, "/address", "nobody is named"),
        ({"address": "ann@a.test, bob@b.test"}, "/address", "one address is taken here, not 2"),
        ({"address": "@theirs.test"}, "/address", "write name@example.org"),
        ({"address": "ann@a.test", "whose": "x"}, "/whose", "is not a field here"),
    ],
)
async def test_exactly_one_address_is_erased(service: Application, body: object, pointer: str, says: str) -> None:
    refused = problem(await service.client.post("/erase", json=body), status=422)
    assert [(fault["pointer"], says in fault["detail"]) for fault in refused["errors"]] == [(pointer, True)]


async def test_not_everybody_may_erase(service: Application) -> None:
    flat(await service.send(), status=200)
    problem(await service.visitor(peer="192.0.2.7").post("/erase", json={"address": "ann@theirs.test"}), status=401)
    problem(await service.client.post("/erase", content=b"address=ann@theirs.test"), status=415)
    assert (await service.client.get("/messages?recipient=ann@theirs.test")).json()["data"]


async def test_whoever_sends_through_a_paused_profile_is_told_that_it_waits(service: Application) -> None:
    await service.client.post("/profiles/relay/pause")
    said = flat(await service.send(prefer="wait=0"), status=202)
    assert said["warnings"] == ["the profile relay is paused: the message waits until somebody resumes it"]
    await service.client.post("/profiles/relay/resume")
    assert (await service.settled(said["id"]))["warnings"] == []
