"""The same key is the same message: once sent, once stored, whoever asks how often."""

import asyncio
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import httpx2
import pytest
from sqlalchemy import delete, select

from app.store import append
from app.store.database import bodies, idempotency_keys
from app.store.journal import Operation
from tests.api.shapes import flat, problem
from tests.support.app import MESSAGE, Application, running
from tests.support.relay import Wait

KEY = {"Idempotency-Key": "4711"}


async def post(
    service: Application, *, headers: Mapping[str, str] = KEY, prefer: str | None = None, **fields: Any
) -> httpx2.Response:
    more = {} if prefer is None else {"Prefer": prefer}
    return await service.client.post("/send", json={**MESSAGE, **fields}, headers={**headers, **more})


def is_replay(answer: httpx2.Response) -> bool:
    return answer.headers.get("idempotent-replayed") == "true"


async def test_the_same_request_again_is_the_same_message(service: Application) -> None:
    first, second = await post(service), await post(service)
    assert (is_replay(first), is_replay(second)) == (False, True)
    assert flat(first, status=200) == flat(second, status=200)
    assert len(service.relay.mails) == 1


@pytest.mark.parametrize("header", ["4711", '"4711"', " 4711 "])
async def test_a_key_may_be_quoted_or_stand_in_the_body(service: Application, header: str) -> None:
    first = await post(service, headers={"Idempotency-Key": header})
    second = await post(service, headers={}, idempotency_key="4711")
    third = await post(service, idempotency_key="4711")
    assert first.json()["id"] == second.json()["id"] == third.json()["id"]
    assert is_replay(second)
    assert is_replay(third)


async def test_the_body_may_be_written_differently(service: Application) -> None:
    first = await post(service)
    text = '{"subject": "Your order 4711", "cc": [], "to": ["ann@theirs.test"], "text": "It is on its way.",'
    text += '"bcc": null, "from": {"email": "bot@ours.test", "name": "Bot"}}'
    headers = KEY | {"Content-Type": "application/json"}
    second = await service.client.post("/send", content=text, headers=headers)
    assert is_replay(second)
    assert second.json()["id"] == first.json()["id"]


@pytest.mark.parametrize(
    "change",
    [{"subject": "Another"}, {"text": "another"}, {"to": "bob@theirs.test"}, {"tags": ["x"]}, {"expires_in": 60}],
)
async def test_another_body_with_the_key_is_refused(service: Application, change: dict[str, Any]) -> None:
    first = flat(await post(service), status=200)
    refused = problem(await post(service, **change), status=422)
    assert refused["type"] == "/errors/key-reused"
    assert "'4711'" in refused["detail"]
    assert len(service.relay.mails) == 1
    assert (await service.look_up(first["id"]))["state"] == "sent"


async def test_two_keys_that_differ_are_refused(service: Application) -> None:
    refused = problem(await post(service, idempotency_key="4712"), status=422)
    assert refused["errors"][0]["pointer"] == "/idempotency_key"
    assert service.relay.mails == []


@pytest.mark.parametrize("key", ["x" * 256, "ä", "a\tb"])
async def test_what_is_no_key_is_refused(service: Application, key: str) -> None:
    refused = problem(await post(service, headers={}, idempotency_key=key), status=422)
    assert refused["errors"][0]["pointer"] == "/idempotency_key"


@pytest.mark.parametrize("empty", ["", '""'])
async def test_an_empty_key_is_none(service: Application, empty: str) -> None:
    first = await post(service, headers={"Idempotency-Key": empty}, idempotency_key="")
    second = await post(service, headers={"Idempotency-Key": empty}, idempotency_key="")
    assert first.json()["id"] != second.json()["id"]


async def test_fifty_at_once_are_one_mail(service: Application) -> None:
    answers = await asyncio.gather(*(post(service) for _ in range(50)))
    assert {answer.status_code for answer in answers} == {200}
    assert len({answer.json()["id"] for answer in answers}) == 1
    assert sum(map(is_replay, answers)) == 49
    assert len(service.relay.mails) == 1


async def test_a_replay_waits_for_the_one_that_is_under_way(service: Application) -> None:
    goes_on = asyncio.Event()
    service.relay.on("CONTENT", (Wait(goes_on), "250 2.0.0 taken"))
    first = flat(await post(service, prefer="respond-async"), status=202)
    await service.relay.mail()
    again = asyncio.create_task(post(service))
    not_yet = flat(await post(service, prefer="wait=0"), status=202)
    assert not_yet["state"] == "sending"
    assert not again.done()
    goes_on.set()
    answer = await again
    assert is_replay(answer)
    assert flat(answer, status=200)["id"] == first["id"]


async def test_a_refused_body_keeps_no_key(service: Application) -> None:
    problem(await post(service, to="nobody"), status=422)
    assert not is_replay(await post(service))


async def test_a_failed_message_stays_failed(service: Application) -> None:
    service.relay.on("RCPT", "550 5.1.1 no such user")
    first, second = await post(service), await post(service)
    assert (first.status_code, second.status_code) == (424, 424)
    assert is_replay(second)
    assert first.json()["id"] == second.json()["id"]


async def test_one_that_expired_unsent_is_sent_at_last(service: Application) -> None:
    service.relay.on("RCPT", "450 4.2.0 Mailbox busy", times=1)
    first = (await post(service, expires_in=5)).json()
    assert (first["state"], first["error_code"]) == ("failed", "EEXPIRED")
    second = await post(service, expires_in=5)
    assert is_replay(second)
    assert flat(second, status=200)["id"] == first["id"]
    assert (await service.look_up(first["id"]))["state"] == "sent"
    assert [mail.taken for mail in service.relay.mails] == [True]


async def test_who_was_refused_is_not_asked_again_by_a_replay(service: Application) -> None:
    service.relay.on("RCPT", "450 4.2.0 Mailbox busy", match="bob@", times=1)
    service.relay.on("RCPT", "550 5.1.1 no such user", match="ann@", times=1)
    both: dict[str, Any] = {"to": "ann@theirs.test, bob@theirs.test", "expires_in": 5}
    first = (await post(service, **both)).json()
    assert (first["state"], first["error_code"]) == ("failed", "EEXPIRED")
    second = flat(await post(service, **both), status=200)
    assert (second["id"], second["state"], second["accepted"]) == (first["id"], "partial", ["bob@theirs.test"])
    assert service.relay.commands.count("RCPT TO:<ann@theirs.test>") == 1


async def test_what_expired_and_is_not_kept_stays_expired(service: Application) -> None:
    service.relay.on("RCPT", "450 4.2.0 Mailbox busy", times=1)
    first = (await post(service, expires_in=5)).json()
    await service.runtime.journal.commit(forgetting)
    second = await post(service, expires_in=5)
    assert (second.status_code, second.json()["id"], second.json()["error_code"]) == (424, first["id"], "EEXPIRED")


def forgetting() -> Operation[None]:
    yield delete(bodies), {}


async def test_a_key_is_forgotten_after_a_day(service: Application, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(append, "KEY_LIFE", -append.KEY_LIFE)  # as if a day had gone by
    first, second = await post(service), await post(service, subject="Another")
    assert not is_replay(second)
    assert first.json()["id"] != second.json()["id"]
    rows = await service.runtime.history._reader.rows(select(idempotency_keys.c.key))
    assert rows == [("4711",)]


async def test_a_key_survives_a_restart(tmp_path: Path) -> None:
    async with running(tmp_path) as service:
        first = (await post(service)).json()
    async with running(tmp_path, keep=True) as service:
        second = await post(service)
        assert service.relay.mails == []
    assert is_replay(second)
    assert second.json()["id"] == first["id"]


async def test_without_a_key_nothing_is_kept(service: Application) -> None:
    await service.send()
    assert await service.runtime.history._reader.rows(select(idempotency_keys.c.key)) == []
