"""Lists by what people remember of a message."""

import asyncio
from typing import Any
from urllib.parse import quote

import pytest

from tests.api.shapes import flat, problem
from tests.support.app import Application


@pytest.fixture
async def sent(service: Application) -> dict[str, str]:
    """Messages that differ, by name."""
    service.relay.on("RCPT", "550 5.1.1 no such user", match="nobody@")
    service.relay.on("RCPT", "450 4.2.1 busy", match="later@")
    bodies: dict[str, dict[str, Any]] = {
        "plain": {},
        "tagged": {"tags": ["vip", "order"]},
        "refused": {"to": "nobody@theirs.test"},
        "waiting": {"to": "later@theirs.test", "tags": ["order"]},
        "two": {"to": "ann@theirs.test, Bob <bob@theirs.test>", "from": "desk@ours.test"},
    }
    return {name: (await service.send(**body)).json()["id"] for name, body in bodies.items()}


@pytest.mark.parametrize(
    ("query", "names"),
    [
        ("", ["two", "waiting", "refused", "tagged", "plain"]),
        ("state=sent", ["two", "tagged", "plain"]),
        ("state=failed", ["refused"]),
        ("state=deferred", ["waiting"]),
        ("state=queued", []),
        ("error_code=EENVELOPE", ["waiting", "refused"]),
        ("error_code=eauth", []),
        ("profile=relay", ["two", "waiting", "refused", "tagged", "plain"]),
        ("profile=other", []),
        ("sender=desk@ours.test", ["two"]),
        ("recipient=bob@theirs.test", ["two"]),
        ("recipient=ann@theirs.test", ["two", "tagged", "plain"]),
        ("recipient=ann@theirs.test&tag=vip", ["tagged"]),
        ("tag=order", ["waiting", "tagged"]),
        ("tag=order&state=sent", ["tagged"]),
        ("tag=none", []),
        ("since=1h", ["two", "waiting", "refused", "tagged", "plain"]),
        ("since=2099-01-01", []),
        ("until=2099-01-01T00:00:00%2B02:00", ["two", "waiting", "refused", "tagged", "plain"]),
        ("until=2020-01-01T00:00:00Z", []),
        ("since=0001-01-01T00:00:00Z&until=9999-12-31T23:59:59Z", ["two", "waiting", "refused", "tagged", "plain"]),
        ("since=9999-12-31T23:59:59Z", []),
        ("until=0001-01-01", []),
        ("q=order", ["two", "waiting", "refused", "tagged", "plain"]),
        ("q=ord", ["two", "waiting", "refused", "tagged", "plain"]),
        ("q=rder", []),
        ("q=4711+VIP", ["tagged"]),
        ("q=bob", ["two"]),
        ("q=bob@theirs.test", ["two"]),
        ("q=bob@ours.test", []),
        ("q=order&state=failed", ["refused"]),
        ("q=order&tag=order&recipient=later@theirs.test", ["waiting"]),
        ("q=order&since=1h", ["two", "waiting", "refused", "tagged", "plain"]),
        ("q=order&since=2099-01-01", []),
        ("q=order&until=2020-01-01", []),
        ('q="order OR (NEAR', []),
        ("state=&tag=", ["two", "waiting", "refused", "tagged", "plain"]),
    ],
)
async def test_a_filter_gives_what_matches_newest_first(
    service: Application, sent: dict[str, str], query: str, names: list[str]
) -> None:
    answer = await service.client.get(f"/messages?{query}")
    assert answer.status_code == 200
    assert [message["id"] for message in answer.json()["data"]] == [sent[name] for name in names]


@pytest.mark.parametrize("query", ["", "recipient=ann@theirs.test", "tag=order", "state=sent", "q=order"])
async def test_pages_hold_everything_once(service: Application, sent: dict[str, str], query: str) -> None:
    whole = [message["id"] for message in (await service.client.get(f"/messages?{query}")).json()["data"]]
    paged: list[str] = []
    url: str | None = f"/messages?limit=1&{query}"
    while url:
        answer = await service.client.get(url)
        paged += [message["id"] for message in answer.json()["data"]]
        link = answer.headers.get("link", "")
        assert bool(link) == answer.json()["has_more"]
        url = link.split(">")[0].removeprefix("<") or None
    assert paged == whole


@pytest.mark.parametrize(
    ("query", "says"),
    [
        ("state=snet", "do you mean sent?"),
        ("error_code=EAUHT", "do you mean EAUTH?"),
        ("recipient=nobody", "recipient"),
        ("since=yesterday", "since is an instant"),
        ("colour=red", "'colour' is not a parameter"),
        ("q=---", "q has no word in it"),
        ("q=" + 201 * "x", "q has 201 characters"),
        ("since=0001-01-01T00:00:00%2B01:00", "outside of the years 1 to 9999 in UTC"),
        ("until=9999-12-31T23:59:59-23:59", "outside of the years 1 to 9999 in UTC"),
        ("since=999999d", "is before the year 1"),
        (f"since={'9' * 400}w", "is before the year 1"),
        ("limit=0", "limit is a number"),
        ("cursor=x", "cursor"),
    ],
)
async def test_a_filter_that_cannot_be_is_told(service: Application, query: str, says: str) -> None:
    assert says in problem(await service.client.get(f"/messages?{query}"), status=422)["detail"]


async def test_attempts_are_listed_with_their_messages(service: Application, sent: dict[str, str]) -> None:
    answer = await service.client.get("/attempts?error_code=EENVELOPE")
    found = answer.json()["data"]
    assert [attempt["id"] for attempt in found] == [sent["waiting"], sent["refused"]]
    assert [attempt["smtp_code"] for attempt in found] == [450, 550]
    everything = (await service.client.get("/attempts")).json()["data"]
    assert [attempt["id"] for attempt in everything] == list(reversed(list(sent.values())))
    assert (await service.client.get("/attempts?profile=other")).json()["data"] == []
    assert (await service.client.get("/attempts?since=2099-01-01")).json()["data"] == []
    details = await service.look_up(sent["refused"])
    assert found[1] == {"id": sent["refused"], **details["attempts"][0]}


async def test_a_list_tells_messages_apart_by_subject_and_the_first_recipients(service: Application) -> None:
    many = [f"r{n}@theirs.test" for n in range(5)]
    await service.send(subject="To many", to=many)
    (entry,) = (await service.client.get("/messages?limit=1")).json()["data"]
    assert (entry["subject"], entry["to"], entry["recipient_count"]) == ("To many", many[:3], 5)


async def test_attempts_are_bounded_by_time_on_both_sides_and_across_pages(
    service: Application, sent: dict[str, str]
) -> None:
    everything = (await service.client.get("/attempts")).json()["data"]
    made = {id_: (await service.look_up(id_))["created_at"] for id_ in {one["id"] for one in everything}}
    for bound in sorted(made.values()):
        before: list[str] = []
        query = {"until": bound, "limit": "1"}
        while True:
            page = (await service.client.get("/attempts", params=query)).json()
            before += [one["id"] for one in page["data"]]
            if page["next_cursor"] is None:
                break
            query["cursor"] = page["next_cursor"]
        assert before == [one["id"] for one in everything if made[one["id"]] < bound]
        since = (await service.client.get("/attempts", params={"since": bound})).json()["data"]
        assert [one["id"] for one in since] == [one["id"] for one in everything if made[one["id"]] >= bound]


async def test_attempts_come_in_pages(service: Application, sent: dict[str, str]) -> None:
    first = await service.client.get("/attempts?limit=2")
    second = await service.client.get(first.headers["link"].split(">")[0].removeprefix("<"))
    ids = [attempt["id"] for answer in (first, second) for attempt in answer.json()["data"]]
    assert ids == list(reversed(list(sent.values())))[:4]


async def test_a_dry_run_stores_and_sends_nothing(service: Application) -> None:
    answer = await service.send(dry_run=True, cc="bob@theirs.test", bcc="eve@theirs.test")
    said = answer.json()
    assert answer.status_code == 200
    assert (said["dry_run"], said["ok"], said["profile"], said["warnings"]) == (True, True, "relay", [])
    to = ["ann@theirs.test", "bob@theirs.test", "eve@theirs.test"]
    assert said["envelope"] == {"from": "bot@ours.test", "to": to}
    assert "Subject: Your order 4711\r\n" in said["raw"]
    assert "eve@" not in said["raw"]
    assert (await service.client.get("/messages")).json()["data"] == []
    assert service.relay.connections == 0
    assert flat(await service.send(), status=200)["attempts"] == 1


async def test_a_search_finds_what_was_accepted_at_this_moment(service: Application) -> None:
    for number in range(3):
        id_ = flat(await service.send(subject=f"Now {number}", prefer="respond-async"), status=202)["id"]
        found = (await service.client.get(f"/messages?q=now {number}")).json()["data"]
        assert [message["id"] for message in found] == [id_]


async def test_what_many_find_at_once_is_indexed_once(service: Application, sent: dict[str, str]) -> None:
    answers = await asyncio.gather(*(service.client.get("/messages?q=order") for _ in range(10)))
    assert {len(answer.json()["data"]) for answer in answers} == {len(sent)}


async def test_all_that_a_search_finds_are_acted_on(service: Application, sent: dict[str, str]) -> None:
    answer = await service.client.post("/messages/cancel?q=later")
    assert answer.json()["count"] == 1
    assert (await service.look_up(sent["waiting"]))["state"] == "cancelled"


FORMS = ["{id}", "{message_id}", "{bare}", " {bare} ", "<{bare}", "{shouted}"]


@pytest.mark.parametrize("form", FORMS)
async def test_a_message_is_found_by_its_message_id_in_any_form(form: str, service: Application) -> None:
    sent, _ = (await service.send()).json(), await service.send()
    bare = sent["message_id"].strip("<>")
    text = form.format(id=sent["id"], message_id=sent["message_id"], bare=bare, shouted=sent["message_id"].upper())
    for path in (f"/messages/{quote(text)}", f"/messages/{quote(text, safe='')}"):
        assert (await service.client.get(path)).json()["id"] == sent["id"]
    listed = (await service.client.get("/messages", params={"message_id": text})).json()
    assert [found["id"] for found in listed["data"]] == [sent["id"]]
    source = await service.client.get(f"/messages/{quote(text)}/raw")
    assert f"Message-ID: {sent['message_id']}" in source.text
    assert (await service.client.post(f"/messages/{quote(text)}/cancel")).status_code == 409
    counted = await service.client.post("/messages/cancel", params={"message_id": text})
    assert counted.json()["count"] == 0


@pytest.mark.parametrize("form", ["{id}@theirs.test", "<{id}@theirs.test>", "<x@ours.test>", "x", "@", "<>"])
async def test_a_message_id_that_is_not_ours_finds_nothing(form: str, service: Application) -> None:
    text = form.format(id=(await service.send()).json()["id"])
    assert (await service.client.get("/messages", params={"message_id": text})).json()["data"] == []
    for method, path in (("GET", ""), ("GET", "/raw"), ("POST", "/retry"), ("POST", "/cancel")):
        answer = await service.client.request(method, f"/messages/{quote(text)}{path}")
        problem(answer, status=404)


async def test_a_message_id_narrows_what_else_is_asked_for(service: Application) -> None:
    sent = (await service.send(tags=["a"])).json()
    for more, found in (
        ("tag=a", 1),
        ("tag=b", 0),
        ("q=order", 1),
        ("recipient=ann@theirs.test", 1),
        ("state=failed", 0),
    ):
        listed = await service.client.get(f"/messages?{more}&message_id={quote(sent['message_id'])}")
        assert len(listed.json()["data"]) == found
