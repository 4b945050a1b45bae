"""What may be done to a message later: cancelled or sent, never both; sent again; settled when in doubt."""

import asyncio
from pathlib import Path
from typing import Any

import pytest

from tests.api.shapes import flat, problem
from tests.support.app import Application, running
from tests.support.relay import Close, Wait

SOON = {"MAILCHUTE_RETRY__SCHEDULE": "100ms"}


@pytest.fixture
async def service(tmp_path: Path) -> Any:
    async with running(tmp_path) as service:  # the next try would come in half a minute
        yield service


async def post(service: Application, path: str, body: object = None, *, prefer: str = "") -> Any:
    headers = {"Prefer": prefer} if prefer else {}
    return await service.client.post(path, json=body, headers=headers)


async def deferred(service: Application, **fields: Any) -> str:
    service.relay.on("RCPT", "450 4.2.1 mailbox busy", times=1)
    answer = flat(await service.send(**fields), status=202)
    assert answer["state"] == "deferred"
    return str(answer["id"])


async def in_doubt(service: Application) -> str:
    service.relay.on("CONTENT", Close(), times=1)
    answer = flat(await service.send(), status=202)
    assert answer["state"] == "in_doubt"
    return str(answer["id"])


async def test_what_waits_is_cancelled(service: Application) -> None:
    id_ = await deferred(service)
    said = flat(await post(service, f"/messages/{id_}/cancel"), status=200)
    assert (said["state"], said["ok"], said["final"], said["next_attempt_at"]) == ("cancelled", False, True, None)
    assert [r["state"] for r in (await service.look_up(id_))["recipients"]] == ["cancelled"]
    assert service.relay.mails == []


async def test_only_who_is_pending_is_cancelled(service: Application) -> None:
    service.relay.on("RCPT", "450 4.2.1 mailbox busy", match="bob@")
    id_ = flat(await service.send(to="ann@theirs.test, bob@theirs.test"), status=202)["id"]
    said = flat(await post(service, f"/messages/{id_}/cancel"), status=200)
    assert (said["state"], said["accepted"]) == ("partial", ["ann@theirs.test"])


@pytest.mark.parametrize("act", ["cancel", "retry"])
async def test_what_is_sent_stays_sent(service: Application, act: str) -> None:
    id_ = flat(await service.send(), status=200)["id"]
    said = problem(await post(service, f"/messages/{id_}/{act}"), status=409)
    assert (said["type"], "sent" in said["detail"]) == ("/errors/conflict", True)
    assert len(service.relay.mails) == 1


async def test_what_is_being_sent_is_not_cancelled(service: Application) -> None:
    goes_on = asyncio.Event()
    service.relay.on("CONTENT", (Wait(goes_on), "250 2.0.0 taken"))
    id_ = flat(await service.send(prefer="respond-async"), status=202)["id"]
    await service.relay.mail()
    said = problem(await post(service, f"/messages/{id_}/cancel"), status=409)
    assert "being sent" in said["detail"]
    goes_on.set()
    assert (await service.settled(id_))["state"] == "sent"


async def test_cancelled_or_sent_never_both(tmp_path: Path) -> None:
    async with running(tmp_path, environ=SOON) as service:
        service.relay.on("RCPT", "450 4.2.1 mailbox busy", times=30)
        ids = [(await service.send(prefer="respond-async")).json()["id"] for _ in range(30)]

        async def cancelled(id_: str) -> bool:
            while (answer := await post(service, f"/messages/{id_}/cancel")).status_code == 409:
                if (await service.look_up(id_))["final"]:
                    return False
            return bool(answer.json()["state"] == "cancelled")

        verdicts = dict(zip(ids, await asyncio.gather(*map(cancelled, ids)), strict=True))
        states = {id_: (await service.look_up(id_))["state"] for id_ in ids}
        mails = [mail.content for mail in service.relay.mails if mail.taken]
        for id_, was_cancelled in verdicts.items():
            assert states[id_] == ("cancelled" if was_cancelled else "sent")
            assert sum(id_.encode() in mail for mail in mails) == (0 if was_cancelled else 1)


async def test_nothing_is_scheduled_for_the_next_life(service: Application) -> None:
    refused = problem(await service.send(send_at="2099-01-01T00:00:00Z"), status=422)
    assert refused["errors"][0]["pointer"] == "/send_at"


async def test_an_instant_that_is_past_is_now(service: Application) -> None:
    assert flat(await service.send(send_at="2020-01-01T00:00:00Z", expires_in=60), status=200)["state"] == "sent"


async def test_a_scheduled_message_is_not_waited_for(service: Application) -> None:
    at = service.runtime.now().replace(microsecond=0)
    soon = at.replace(year=at.year + 1, day=1) if at.day > 28 else at.replace(year=at.year + 1)
    said = flat(await service.send(send_at=soon.isoformat()), status=202)
    assert (said["state"], said["ok"]) == ("scheduled", True)
    assert said["next_attempt_at"] == soon.strftime("%Y-%m-%dT%H:%M:%S.000Z")
    assert said["expires_at"] > said["next_attempt_at"]
    assert flat(await post(service, f"/messages/{said['id']}/cancel"), status=200)["state"] == "cancelled"
    assert service.relay.connections == 0


async def test_a_retry_sends_at_once_what_waits(service: Application) -> None:
    id_ = await deferred(service)
    said = flat(await post(service, f"/messages/{id_}/retry"), status=200)
    assert (said["state"], said["attempts"], said["error_code"]) == ("sent", 2, None)
    assert len(service.relay.mails) == 1


async def test_a_retry_sends_again_what_was_refused(service: Application) -> None:
    service.relay.on("RCPT", "550 5.1.1 no such user", times=1)
    id_ = flat(await service.send(), status=424)["id"]
    assert flat(await post(service, f"/messages/{id_}/retry"), status=200)["state"] == "sent"


@pytest.mark.parametrize(("prefer", "state"), [("wait=5", "sent"), ("respond-async", "queued")])
async def test_a_retry_waits_as_it_is_asked_to(service: Application, prefer: str, state: str) -> None:
    id_ = await deferred(service)
    said = await post(service, f"/messages/{id_}/retry", prefer=prefer)
    assert said.headers["Preference-Applied"] == prefer
    assert said.json()["state"] == state


async def test_a_retry_that_is_refused_again_says_so(service: Application) -> None:
    service.relay.on("RCPT", "550 5.1.1 no such user")
    id_ = flat(await service.send(), status=424)["id"]
    answer = await post(service, f"/messages/{id_}/retry")
    assert (answer.status_code, answer.json()["reason"]) == (424, "mailbox_unknown")
    assert (await service.look_up(id_))["attempts"][1]["error_code"] == "EENVELOPE"


async def test_a_retry_goes_only_to_whom_it_did_not_reach(service: Application) -> None:
    service.relay.on("RCPT", "550 5.1.1 no such user", match="bob@", times=1)
    id_ = flat(await service.send(to="ann@theirs.test, bob@theirs.test"), status=200)["id"]
    assert flat(await post(service, f"/messages/{id_}/retry"), status=200)["state"] == "sent"
    assert [mail.rcpt_to for mail in service.relay.mails] == [["ann@theirs.test"], ["bob@theirs.test"]]


@pytest.mark.parametrize(("as_", "state", "status"), [("sent", "sent", 200), ("failed", "failed", 424)])
async def test_what_is_in_doubt_is_settled(service: Application, as_: str, state: str, status: int) -> None:
    id_ = await in_doubt(service)
    answer = await post(service, f"/messages/{id_}/resolve", {"as": as_})
    assert (answer.status_code, answer.json()["state"]) == (status, state)
    assert (await service.look_up(id_))["state"] == state
    assert problem(await post(service, f"/messages/{id_}/resolve", {"as": as_}), status=409)


@pytest.mark.parametrize(
    ("body", "pointer", "says"),
    [
        ({"as": "lost"}, "/as", 'as is "sent" or "failed"'),
        ({"as": ["sent"]}, "/as", 'as is "sent" or "failed"'),
        ({}, "/as", "as is missing"),
        ({"as": "sent", "why": "log"}, "/why", "'why' is not a field here"),
        ([], "", "the body is a JSON object"),
    ],
)
async def test_a_resolution_is_sent_or_failed(service: Application, body: object, pointer: str, says: str) -> None:
    id_ = await in_doubt(service)
    refused = problem(await post(service, f"/messages/{id_}/resolve", body), status=422)
    assert [(fault["pointer"], says in fault["detail"]) for fault in refused["errors"]] == [(pointer, True)]
    problem(await service.client.post(f"/messages/{id_}/resolve", content=b"as=sent"), status=415)
    assert (await service.look_up(id_))["state"] == "in_doubt"


@pytest.mark.parametrize("act", ["cancel", "retry", "resolve"])
async def test_nothing_is_done_to_what_is_not_there(service: Application, act: str) -> None:
    for id_ in ("019caa00-0000-7000-8000-000000000001", "x"):
        problem(await post(service, f"/messages/{id_}/{act}", {"as": "sent"}), status=404)


async def test_all_that_match_are_sent_again_but_not_what_is_in_doubt(service: Application) -> None:
    doubtful = await in_doubt(service)
    ids = [await deferred(service, tags=["night"]) for _ in range(3)]
    other = await deferred(service)
    answer = await post(service, "/messages/retry?tag=night")
    assert (answer.status_code, answer.json()["count"]) == (200, 3)
    for id_ in ids:
        assert (await service.settled(id_))["state"] == "sent"
    assert (await service.look_up(other))["state"] == "deferred"
    assert (await post(service, "/messages/retry?since=1h")).json()["count"] == 1
    assert (await service.settled(other))["state"] == "sent"
    assert (await service.look_up(doubtful))["state"] == "in_doubt"
    assert (await post(service, "/messages/retry?state=in_doubt")).json()["count"] == 1
    assert (await service.settled(doubtful))["state"] == "sent"


@pytest.mark.parametrize("act", ["cancel", "retry"])
async def test_a_dry_run_counts_what_an_act_would_be_done_to_and_does_nothing(service: Application, act: str) -> None:
    await in_doubt(service)
    assert (await service.send(tags=["night"])).json()["state"] == "sent"
    ids = [await deferred(service, tags=["night"]) for _ in range(3)]
    for query, count in (
        ("tag=night", 3),
        ("since=1h", 3),
        ("state=sent", 0),
        ("state=in_doubt", int(act == "retry")),
        ("tag=none", 0),
    ):
        dry = await post(service, f"/messages/{act}?{query}&dry_run=true")
        assert (dry.status_code, dry.json()) == (200, {"count": count, "has_more": False, "next_cursor": None})
        some = await post(service, f"/messages/{act}?{query}&dry_run=true&limit=100")
        assert some.json()["count"] == count
    for id_ in ids:
        assert (await service.look_up(id_))["state"] == "deferred"
    problem(await post(service, f"/messages/{act}?tag=night&dry_run=perhaps"), status=422)
    assert (await post(service, f"/messages/{act}?tag=night&dry_run=false")).json()["count"] == 3


async def test_all_that_match_are_cancelled(service: Application) -> None:
    ids = [await deferred(service) for _ in range(3)]
    sent = flat(await service.send(), status=200)["id"]
    assert (await post(service, "/messages/cancel?state=deferred")).json()["count"] == 3
    assert {(await service.look_up(id_))["state"] for id_ in ids} == {"cancelled"}
    assert (await service.look_up(sent))["state"] == "sent"


@pytest.mark.parametrize("query", ["", "?state=", "?colour=red", "?state=sunny", "?since=soon"])
async def test_a_bulk_act_without_a_good_filter_does_nothing(service: Application, query: str) -> None:
    id_ = await deferred(service)
    problem(await post(service, f"/messages/cancel{query}"), status=422)
    assert (await service.look_up(id_))["state"] == "deferred"


async def test_all_that_match_can_be_gone_through_in_steps(service: Application) -> None:
    ids = [await deferred(service) for _ in range(5)]
    counts, cursor = [], ""
    while True:
        said = (await post(service, f"/messages/cancel?state=deferred&limit=2&cursor={cursor}")).json()
        counts.append(said["count"])
        assert said["has_more"] == (said["next_cursor"] is not None)
        if not said["has_more"]:
            break
        cursor = said["next_cursor"]
    assert counts == [2, 2, 1]
    assert {(await service.look_up(id_))["state"] for id_ in ids} == {"cancelled"}
