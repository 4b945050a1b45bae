"""GET /errors and /errors/{code}: every code explained and counted; every problem's `type` leads there."""

import json
import sqlite3
from collections.abc import Awaitable, Callable
from contextlib import closing
from datetime import timedelta
from pathlib import Path
from typing import Any

import httpx2
import pytest
from structlog.testing import capture_logs

from app.api.edge import Gate
from app.api.problems import DOORS
from app.mail.codes import CODE_OF, ErrorCode, Reason
from app.mail.outcome import FailureClass
from tests.api.shapes import problem
from tests.api.test_callers import KEY
from tests.api.test_document import assert_documented, document
from tests.api.test_over_time import SOON
from tests.support.app import MESSAGE, Application, locked, running
from tests.support.relay import Relay

ERROR = ["code", "status", "meaning", "nodemailer", "cure", "count_24h", "reasons"]
REASON = ["reason", "classes", "meaning", "causes", "cure", "count_24h"]
REFUSALS = {door.code: door.status for door in DOORS}


async def explained(service: Application, code: str) -> dict[str, Any]:
    """Look a code up, and check the answer's shape."""
    answer = await service.client.get(f"/errors/{code}")
    assert answer.status_code == 200, answer.text
    said: dict[str, Any] = json.loads(answer.content)
    assert list(said) == ERROR
    assert all(list(reason) == REASON for reason in said["reasons"])
    return said


def counted(said: dict[str, Any]) -> dict[str, int]:
    """Give what was counted, by reason."""
    counts = {reason["reason"]: reason["count_24h"] for reason in said["reasons"]}
    assert said["count_24h"] == sum(counts.values())
    return {reason: count for reason, count in counts.items() if count}


# --- every code is explained -----------------------------------------------------------------------------------


async def test_the_list_has_every_code_and_every_refusal_once(service: Application) -> None:
    listed = (await service.client.get("/errors")).json()["data"]
    assert [said["code"] for said in listed] == [*ErrorCode, *REFUSALS]
    reasons = [reason["reason"] for said in listed for reason in said["reasons"]]
    assert sorted(reasons) == sorted(Reason)
    for said in listed:
        assert said == await explained(service, said["code"])


@pytest.mark.parametrize("code", ErrorCode)
async def test_a_code_is_explained_with_all_its_reasons(code: ErrorCode, service: Application) -> None:
    said = await explained(service, code)
    assert (said["code"], said["status"], said["cure"]) == (code, None, None)
    assert said["meaning"].endswith(".")
    assert {reason["reason"] for reason in said["reasons"]} == {r for r, of in CODE_OF.items() if of is code}
    for reason in said["reasons"]:
        assert reason["meaning"].endswith(".")
        assert reason["cure"].endswith(".")
        assert reason["causes"]
        assert set(reason["classes"]) <= set(FailureClass)
        assert reason["classes"]


@pytest.mark.parametrize("code", REFUSALS)
async def test_a_refusal_at_the_door_is_explained_with_its_status_and_cure(code: str, service: Application) -> None:
    said = await explained(service, code)
    assert (said["code"], said["status"], said["count_24h"], said["reasons"]) == (code, REFUSALS[code], None, [])
    assert said["meaning"]
    assert said["cure"].endswith(".")


@pytest.mark.parametrize("code", ["eauth", "Eauth", "EAUTH"])
async def test_a_code_may_be_written_in_any_case(code: str, service: Application) -> None:
    assert (await explained(service, code))["code"] == "EAUTH"


@pytest.mark.parametrize(
    ("code", "words"),
    [
        ("EAUHT", "do you mean EAUTH?"),
        ("etimeout", "do you mean ETIMEDOUT?"),
        ("not_found", "do you mean not-found?"),
        ("x", "GET /errors lists them"),
        ("x" * 500, "GET /errors lists them"),
    ],
)
async def test_an_unknown_code_is_404_with_the_nearest(code: str, words: str, service: Application) -> None:
    said = problem(await service.client.get(f"/errors/{code}"), status=404)
    assert words in said["detail"]
    assert len(said["detail"]) < 200


async def test_it_needs_a_key_where_one_is_set(tmp_path: Path) -> None:
    async with running(tmp_path, environ={"MAILCHUTE_API_KEY": KEY}) as service:
        for path in ("/errors", "/errors/EAUTH", "/errors/unauthenticated", "/errors/nothing"):
            problem(await service.client.get(path), status=401)
        assert (await service.client.get("/errors", headers={"X-API-Key": KEY})).status_code == 200


# --- where a problem's type leads ------------------------------------------------------------------------------

Provoke = Callable[[Application], Awaitable[httpx2.Response]]
PROVOKED: dict[str, tuple[int, Provoke]] = {
    "invalid-message": (422, lambda service: service.send(to="ann")),
    "unsupported-media-type": (415, lambda service: service.client.post("/send", content=b"x")),
    "too-large": (413, lambda service: service.send(text="x" * 3000)),
    "unauthenticated": (401, lambda service: service.visitor(peer="192.0.2.7").get("/messages")),
    "not-found": (404, lambda service: service.client.get("/nowhere")),
    "method-not-allowed": (405, lambda service: service.client.get("/send")),
    "rate-limited": (429, lambda service: service.client.post("/profiles/relay/verify")),
}


@pytest.mark.parametrize("code", PROVOKED)
async def test_the_type_of_a_refusal_leads_to_its_explanation(code: str, tmp_path: Path) -> None:
    status, provoke = PROVOKED[code]
    login = {"MAILCHUTE_PROFILES__RELAY__USERNAME": "bot", "MAILCHUTE_PROFILES__RELAY__PASSWORD": "secret"}
    environ = {"MAILCHUTE_MAX_MESSAGE_BYTES": "2048", **login}
    async with running(tmp_path, Relay(auth=["PLAIN"]), environ=environ) as service:
        if code == "rate-limited":
            await provoke(service)
        await leads_to_its_explanation(service, await provoke(service), code, status)


async def test_the_type_of_a_store_that_takes_nothing_leads_there_too(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("app.store.database.BUSY_SECONDS", 0.05)
    async with running(tmp_path) as service:
        with locked(tmp_path):
            refused = await service.send()
            answer = await service.client.get("/errors/store-unavailable")
            assert (answer.status_code, answer.json()["code"]) == (200, "store-unavailable"), "even now"
        await leads_to_its_explanation(service, refused, "store-unavailable", 503)


async def test_the_type_of_a_bug_leads_there_too(service: Application) -> None:
    async def stumble(*_: object) -> None:
        raise ZeroDivisionError

    with capture_logs() as logged:
        visitor = service.visitor(
            app=Gate(stumble, max_body=1, in_flight=service.runtime.in_flight, metrics=service.runtime.metrics)
        )
        refused = await visitor.get("/messages")
    assert [line["event"] for line in logged] == ["http.unexpected"]
    await leads_to_its_explanation(service, refused, "unavailable", 503)


@pytest.mark.parametrize(
    ("verb", "answer", "code"),
    [
        ("RCPT", "550 5.1.1 No such mailbox", "EENVELOPE"),
        ("CONTENT", "550 5.7.1 Spam", "EMESSAGE"),
        ("MAIL", "552 5.3.4 Too large", "ETOOLARGE"),
    ],
)
async def test_the_type_of_a_message_that_was_not_sent_leads_to_its_code(
    verb: str, answer: str, code: str, service: Application
) -> None:
    service.relay.on(verb, answer)
    said = (await service.send()).json()
    assert said["type"] == f"/errors/{code}"
    assert (await explained(service, said["type"].removeprefix("/errors/")))["count_24h"] == 1
    assert said["reason"] in counted(await explained(service, code))


async def test_every_refusal_and_every_code_that_there_is_has_a_page(service: Application) -> None:
    """What no test provokes, such as `forbidden`, is sent one day."""
    for code in (*REFUSALS, *ErrorCode):
        assert (await service.client.get(f"/errors/{code}")).status_code == 200


async def leads_to_its_explanation(service: Application, answer: httpx2.Response, code: str, status: int) -> None:
    refused = problem(answer, status=status)
    assert refused["type"] == f"/errors/{code}"
    said = await explained(service, refused["type"].removeprefix("/errors/"))
    assert (said["code"], said["status"], said["meaning"]) == (code, status, refused["title"])


# --- how often it came -----------------------------------------------------------------------------------------


async def test_what_never_came_is_counted_as_none(service: Application) -> None:
    await service.send()
    listed = (await service.client.get("/errors")).json()["data"]
    assert {said["count_24h"] for said in listed} == {0, None}


async def test_every_failed_attempt_is_counted_whatever_became_of_the_message(tmp_path: Path) -> None:
    async with running(tmp_path, environ=SOON) as service:
        service.relay.on("RCPT", "451 4.3.0 later", times=2)
        sent = (await service.send()).json()
        assert (await service.settled(sent["id"]))["state"] == "sent"
        service.relay.on("RCPT", "550 5.1.1 No such mailbox")
        await service.send(to="ann@theirs.test, bob@theirs.test")
        assert counted(await explained(service, "EENVELOPE")) == {"recipient_deferred": 2, "mailbox_unknown": 1}
        assert counted(await explained(service, "EAUTH")) == {}


async def test_a_count_ends_after_a_day(service: Application, monkeypatch: pytest.MonkeyPatch) -> None:
    service.relay.on("RCPT", "550 5.1.1 No such mailbox")
    await service.send()
    now = service.runtime.now()
    for later, count in ((timedelta(hours=23, minutes=59), 1), (timedelta(hours=24, minutes=10), 0)):
        monkeypatch.setattr(service.runtime, "now", lambda at=now + later: at)
        assert (await explained(service, "EENVELOPE"))["count_24h"] == count
        listed = (await service.client.get("/errors")).json()["data"]
        assert [said["count_24h"] for said in listed if said["code"] == "EENVELOPE"] == [count]


async def test_counts_that_cannot_be_read_are_503_and_refusals_are_explained_all_the_same(
    service: Application, tmp_path: Path
) -> None:
    with closing(sqlite3.connect(tmp_path / "mailchute.db")) as other:
        other.execute("ALTER TABLE failure_counts RENAME TO elsewhere")
    for path in ("/errors", "/errors/EAUTH"):
        assert problem(await service.client.get(path), status=503)["type"] == "/errors/store-unavailable"
    assert (await explained(service, "too-large"))["status"] == 413


# --- as documented ---------------------------------------------------------------------------------------------


async def test_answers_are_as_documented(service: Application) -> None:
    service.relay.on("RCPT", "550 5.1.1 No such mailbox")
    await service.send()
    whole = await document(service)
    for url, path in (
        ("/errors", "/errors"),
        *((f"/errors/{code}", "/errors/{code}") for code in (*ErrorCode, *REFUSALS, "nothing")),
    ):
        assert_documented(whole, path, "get", await service.client.get(url))
        assert_documented(whole, path, "get", await service.visitor(peer="192.0.2.7").get(url))


async def test_a_message_says_the_same_cure_as_the_list_where_nothing_more_is_known(service: Application) -> None:
    service.relay.on("RCPT", "550 5.1.1 No such mailbox")
    said = (await service.send(MESSAGE)).json()
    (reason,) = [r for r in (await explained(service, "EENVELOPE"))["reasons"] if r["reason"] == said["reason"]]
    assert reason["cure"] == said["hint"]
