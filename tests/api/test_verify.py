"""POST /profiles/{name}/verify: what may be asked and of whom, and how the answer looks.

What the stages say of which relay is in tests/contract/test_doctor.py.
"""

import asyncio
import json
import re
from pathlib import Path
from typing import Any

import httpx2
import pytest
from structlog.testing import capture_logs

from app.api.edge import Receive, Scope, Send
from app.smtp import doctor
from tests.api.shapes import DIAGNOSIS, JSON, STAGES, problem
from tests.api.test_callers import KEY
from tests.api.test_document import assert_documented, document
from tests.api.test_secrets import PASSWORD, forms_of
from tests.support.app import Application, running
from tests.support.factories import refused_port
from tests.support.relay import Relay
from tests.support.tls import certificates

VERIFY = "/profiles/relay/verify"
PROFILE = "MAILCHUTE_PROFILES__RELAY__"
LOGIN = {f"{PROFILE}USERNAME": "bot", f"{PROFILE}PASSWORD": "secret"}
SENDER = {f"{PROFILE}FROM": "Bot <bot@ours.test>"}


@pytest.fixture(autouse=True)
def no_other_port(monkeypatch: pytest.MonkeyPatch) -> None:
    """What happens to listen on this machine's usual ports is nobody's business."""
    monkeypatch.setattr(doctor, "USUAL_PORTS", ())


def diagnosis(answer: httpx2.Response) -> dict[str, Any]:
    """Give a diagnosis, whose shape is checked."""
    assert answer.status_code == 200, answer.text
    assert answer.headers["content-type"] == JSON
    said: dict[str, Any] = json.loads(answer.content)
    assert list(said) == DIAGNOSIS
    assert [stage["stage"] for stage in said["stages"]] == STAGES
    for stage in said["stages"]:
        assert list(stage) == ["stage", "state", "ms", "message"]
        assert (stage["ms"] is None) == (stage["state"] == "skipped")
    assert said["ok"] == (said["error_code"] is None)
    assert said["message"]
    return said


def states(said: dict[str, Any]) -> dict[str, str]:
    return {stage["stage"]: stage["state"] for stage in said["stages"]}


# --- the answer ------------------------------------------------------------------------------------------------


async def test_a_profile_that_works_is_told_so_and_nothing_was_sent(service: Application) -> None:
    said = diagnosis(await service.client.post(VERIFY, json={"from": "bot@ours.test", "to": "ann@theirs.test"}))
    assert (said["ok"], said["profile"], said["host"], said["port"]) == (True, "relay", "127.0.0.1", service.relay.port)
    assert said["message"] == "the relay would take a message through relay; nothing was sent"
    assert {stage for stage, state in states(said).items() if state == "skipped"} == {"tls", "starttls", "auth"}
    for name in ("error_code", "reason", "class", "hint", "smtp_code", "enhanced_code", "auth", "tls_version"):
        assert said[name] is None, name
    assert said["size_limit"] == 10485760
    assert said["extensions"][:2] == ["PIPELINING", "SIZE 10485760"]
    assert [line["line"] for line in said["transcript"] if line["dir"] == "C"] == [
        "EHLO ours.test",
        "MAIL FROM:<bot@ours.test>",
        "RCPT TO:<ann@theirs.test>",
        "RSET",
    ]
    await service.relay.closed()
    assert service.relay.commands[-2:] == ["RSET", "QUIT"]
    assert (await service.client.get("/messages")).json()["data"] == [], "it is no message"


async def test_a_profile_that_does_not_work_is_told_why_and_what_mends_it(service: Application) -> None:
    service.relay.on("MAIL", "550 5.7.1 not as him")
    said = diagnosis(await service.client.post(VERIFY, json={"from": "bot@ours.test"}))
    assert (said["ok"], said["error_code"], said["reason"], said["class"]) == (
        False,
        "EENVELOPE",
        "sender_refused",
        "permanent",
    )
    assert (said["smtp_code"], said["enhanced_code"]) == (550, "5.7.1")
    assert said["message"] == "The relay refused the sender: 550 5.7.1 not as him"
    assert "From address" in said["hint"]
    assert (states(said)["ehlo"], states(said)["mail"], states(said)["rcpt"]) == ("ok", "failed", "skipped")


async def test_a_verify_is_counted_neither_as_an_attempt_nor_as_an_error(service: Application) -> None:
    service.relay.on("MAIL", "550 5.7.1 not as him")
    diagnosis(await service.client.post(VERIFY, json={"from": "bot@ours.test"}))
    assert (await service.client.get("/errors/EENVELOPE")).json()["count_24h"] == 0
    figures = (await service.client.get("/metrics")).text
    assert not re.search(r"^mailchute_attempts_total\{.* [^0]", figures, re.MULTILINE)


async def test_what_tls_came_to_is_told(tmp_path: Path) -> None:
    environ = {f"{PROFILE}TLS": "starttls", f"{PROFILE}HOST": "localhost"}
    environ[f"{PROFILE}CA_FILE"] = str(certificates().ca_file)
    async with running(tmp_path, Relay(tls=certificates().server()), environ=environ) as service:
        said = diagnosis(await service.client.post(VERIFY))
    assert (said["tls"], said["tls_verified"], said["tls_error"]) == (True, True, None)
    assert said["tls_version"] == "TLSv1.3"
    assert said["tls_cipher"].startswith("TLS_")
    assert said["tls_names"] == ["localhost", "127.0.0.1", "::1"]
    assert len(said["tls_sha256"]) == 64
    assert re.fullmatch(r"\d{4}-\d\d-\d\d", said["tls_not_after"])


async def test_in_the_sandbox_the_sink_is_tried(tmp_path: Path) -> None:
    async with running(tmp_path, sandbox=True) as service:
        said = diagnosis(await service.client.post("/profiles/sandbox/verify", json={"from": "bot@ours.test"}))
        assert said["ok"]
        assert (await service.client.get("/messages")).json()["data"] == []


# --- whom it asks for ------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("environ", "body", "mail", "rcpt"),
    [
        ({}, None, None, None),
        ({}, {}, None, None),
        ({}, {"from": None, "to": ""}, None, None),
        ({}, {"to": "ann@theirs.test"}, None, None),
        ({}, {"from": "bot@ours.test"}, "bot@ours.test", "bot@ours.test"),
        ({}, {"from": "Bot <bot@ours.test>", "to": {"email": "ann@theirs.test"}}, "bot@ours.test", "ann@theirs.test"),
        (SENDER, {}, "bot@ours.test", "bot@ours.test"),
        (SENDER, {"to": "ann@theirs.test"}, "bot@ours.test", "ann@theirs.test"),
        (SENDER, {"from": "eve@ours.test"}, "eve@ours.test", "eve@ours.test"),
        ({"MAILCHUTE_DEFAULT_FROM": "all@ours.test"}, {}, "all@ours.test", "all@ours.test"),
        ({"MAILCHUTE_DEFAULT_FROM": "all@ours.test", **SENDER}, {}, "bot@ours.test", "bot@ours.test"),
        ({f"{PROFILE}ENVELOPE_FROM": "bounces@ours.test", **SENDER}, {}, "bounces@ours.test", "bounces@ours.test"),
    ],
    ids=str,
)
async def test_sender_and_recipient_have_defaults(
    environ: dict[str, str], body: object, mail: str | None, rcpt: str | None, tmp_path: Path
) -> None:
    async with running(tmp_path, environ=environ) as service:
        said = diagnosis(await service.client.post(VERIFY, json=body))  # None = no body at all
        asked = [command for command in service.relay.commands if command.startswith(("MAIL", "RCPT"))]
    assert said["ok"]
    assert asked == ([] if mail is None else [f"MAIL FROM:<{mail}>", f"RCPT TO:<{rcpt}>"])
    skipped = "skipped" if mail is None else "ok"
    assert (states(said)["mail"], states(said)["rcpt"]) == (skipped, skipped)
    assert ("no sender was named" in said["message"]) == (mail is None)


@pytest.mark.parametrize("content", [b"", b"{}", b' {"from": "", "to": null} '])
async def test_an_empty_body_needs_no_type_and_an_object_may_be_empty(content: bytes, service: Application) -> None:
    headers = {"Content-Type": JSON} if content else {}
    assert diagnosis(await service.client.post(VERIFY, content=content, headers=headers))["ok"]


@pytest.mark.parametrize(
    ("body", "at", "words"),
    [
        ({"from": "bot"}, "/from", "bot"),
        ({"to": "ann@"}, "/to", "ann@"),
        ({"to": ["ann@theirs.test", "bob@theirs.test"]}, "/to", "one address"),
        ({"to": "ann@theirs.test, bob@theirs.test"}, "/to", "one address"),
        ({"to": {"name": "Ann"}}, "/to", "email"),
        ({"from": 7}, "/from", "a number"),
        ({"sender": "bot@ours.test"}, "/sender", "known are: from, to"),
        ({"form": "bot@ours.test"}, "/form", "do you mean 'from'?"),
        ({"subject": "of a message"}, "/subject", "known are: from, to"),
        ({"profile": "another"}, "/profile", "known are: from, to"),
        ({"a/b~c": 1}, "/a~1b~0c", "is not a field"),
        ([], "", "JSON object"),
        ("from", "", "JSON object"),
    ],
    ids=str,
)
async def test_what_cannot_be_asked_is_422_with_a_pointer(
    body: object, at: str, words: str, service: Application
) -> None:
    said = problem(await service.client.post(VERIFY, json=body), status=422, at=at)
    assert said["type"] == "/errors/invalid-message"
    assert words in said["detail"]
    assert service.relay.connections == 0


async def test_every_fault_is_told_at_once(service: Application) -> None:
    said = problem(await service.client.post(VERIFY, json={"from": "bot", "to": "ann"}), status=422)
    assert [fault["pointer"] for fault in said["errors"]] == ["/from", "/to"]


async def test_a_body_that_is_no_json_is_422(service: Application) -> None:
    answer = await service.client.post(VERIFY, content=b'{"from": ', headers={"Content-Type": JSON})
    assert "not valid JSON" in problem(answer, status=422, at="")["detail"]


@pytest.mark.parametrize("kind", ["text/plain", "application/x-www-form-urlencoded", None])
async def test_a_body_of_another_type_is_415(kind: str | None, service: Application) -> None:
    headers = {"Content-Type": kind} if kind else {}
    answer = await service.client.post(VERIFY, content=b'{"from": "bot@ours.test"}', headers=headers)
    said = problem(answer, status=415)
    assert said["type"] == "/errors/unsupported-media-type"
    assert service.relay.connections == 0


# --- who may ask, and of what ----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "words"),
    [("rellay", "do you mean relay?"), ("RELAY", "there are: relay"), ("x", "there are: relay"), ("x" * 500, "xxx")],
)
async def test_an_unknown_profile_is_404_with_the_nearest_name(name: str, words: str, service: Application) -> None:
    said = problem(await service.client.post(f"/profiles/{name}/verify"), status=404)
    assert said["type"] == "/errors/not-found"
    assert words in said["detail"]
    assert len(said["detail"]) < 200
    assert service.relay.connections == 0


async def test_it_needs_a_key_where_one_is_set(tmp_path: Path) -> None:
    async with running(tmp_path, environ={"MAILCHUTE_API_KEY": KEY}) as service:
        for path in (VERIFY, "/profiles/nobody/verify"):
            said = problem(await service.client.post(path, json={"from": "bot"}), status=401)
            assert said["type"] == "/errors/unauthenticated"
        assert service.relay.connections == 0
        assert diagnosis(await service.client.post(VERIFY, headers={"X-API-Key": KEY}))["ok"]


async def test_another_machine_is_401_without_a_key(service: Application) -> None:
    problem(await service.visitor(peer="192.0.2.7").post(VERIFY), status=401)
    assert service.relay.connections == 0


async def test_the_operator_socket_needs_no_key(tmp_path: Path) -> None:
    """There the server's address has no port: that is how the socket is known."""
    async with running(tmp_path, environ={"MAILCHUTE_API_KEY": KEY}) as service:

        async def through_the_socket(scope: Scope, receive: Receive, send: Send) -> None:
            await service.app({**scope, "server": ("mailchute.db.sock", None), "client": None}, receive, send)

        operator = service.visitor(app=through_the_socket)
        assert diagnosis(await operator.post(VERIFY, json={"from": None, "to": None}))["ok"]


# --- how often -------------------------------------------------------------------------------------------------


async def test_a_second_login_within_a_minute_is_429_and_says_when_to_come_back(tmp_path: Path) -> None:
    async with running(tmp_path, Relay(auth=["PLAIN"]), environ=LOGIN) as service:
        assert diagnosis(await service.client.post(VERIFY))["auth"] == "PLAIN"
        answer = await service.client.post(VERIFY)
        said = problem(answer, status=429)
        assert service.relay.connections == 1
        assert_documented(await document(service), "/profiles/{name}/verify", "post", answer)
    assert said["type"] == "/errors/rate-limited"
    assert answer.headers["retry-after"] == "60"
    assert "relay has just logged in" in said["detail"]
    assert "60 s" in said["detail"]


async def test_of_two_at_once_one_is_429_and_one_logs_in(tmp_path: Path) -> None:
    async with running(tmp_path, Relay(auth=["PLAIN"]), environ=LOGIN) as service:
        answers = await asyncio.gather(service.client.post(VERIFY), service.client.post(VERIFY))
        logins = [command for command in service.relay.commands if command.startswith("AUTH")]
    assert sorted(answer.status_code for answer in answers) == [200, 429]
    assert len(logins) == 1


async def test_messages_are_sent_while_a_verify_may_not_log_in(tmp_path: Path) -> None:
    async with running(tmp_path, Relay(auth=["PLAIN"]), environ=LOGIN) as service:
        await service.client.post(VERIFY)
        assert (await service.send()).json()["state"] == "sent"
        problem(await service.client.post(VERIFY), status=429)


async def test_a_request_that_is_refused_at_the_door_spends_no_login(tmp_path: Path) -> None:
    async with running(tmp_path, Relay(auth=["PLAIN"]), environ=LOGIN) as service:
        problem(await service.client.post(VERIFY, json={"from": "bot"}), status=422)
        assert diagnosis(await service.client.post(VERIFY))["ok"]


async def test_without_a_login_it_may_be_asked_as_often_as_one_likes(service: Application) -> None:
    answers = await asyncio.gather(*(service.client.post(VERIFY) for _ in range(5)))
    assert [diagnosis(answer)["ok"] for answer in answers] == [True] * 5


# --- secrets ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("mechanism", ["PLAIN", "LOGIN", "CRAM-MD5", "SCRAM-SHA-256"])
@pytest.mark.parametrize("known", [True, False], ids=["right", "wrong"])
async def test_no_secret_comes_out(mechanism: str, known: bool, tmp_path: Path) -> None:
    relay = Relay(auth=[mechanism], users={"bot": PASSWORD if known else "another"})
    login = {f"{PROFILE}USERNAME": "bot", f"{PROFILE}PASSWORD": PASSWORD}
    with capture_logs() as logged:
        async with running(tmp_path, relay, environ=login) as service:
            answer = await service.client.post(VERIFY)
            again = await service.client.post(VERIFY)
    assert diagnosis(answer)["ok"] is known
    assert f'"AUTH {mechanism}' in answer.text
    assert '"***"' in answer.text or mechanism == "PLAIN"
    for text in (answer.text, again.text, repr(logged)):
        assert [form for form in forms_of(PASSWORD) if form in text] == []
    responses = [line for line in relay.commands if line and not line.startswith(("EHLO", "AUTH", "QUIT"))]
    assert not [response for response in responses if response in answer.text]


# --- as documented ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "end", ["well", "refused", "nothing listens", "wrong field", "wrong type", "unknown profile", "stranger"]
)
async def test_answers_are_as_documented(end: str, tmp_path: Path) -> None:
    port = {f"{PROFILE}PORT": str(refused_port())} if end == "nothing listens" else {}
    async with running(tmp_path, environ={**SENDER, **port}) as service:
        if end == "refused":
            service.relay.on("RCPT", "554 5.7.1 Relay access denied")
        client = service.visitor(peer="192.0.2.7" if end == "stranger" else "127.0.0.1")
        answer = await client.post(
            "/profiles/nobody/verify" if end == "unknown profile" else VERIFY,
            content=json.dumps({"subject": "x"} if end == "wrong field" else {}),
            headers={"Content-Type": "text/html" if end == "wrong type" else JSON},
        )
        assert_documented(await document(service), "/profiles/{name}/verify", "post", answer)


async def test_the_example_of_the_document_works_as_it_stands(service: Application) -> None:
    whole = await document(service)
    body = whole["paths"]["/profiles/{name}/verify"]["post"]["requestBody"]
    assert body["required"] is False
    described = body["content"]["application/json"]
    assert described["schema"] == {"$ref": "#/components/schemas/VerifyRequest"}
    assert set(described["example"]) == set(whole["components"]["schemas"]["VerifyRequest"]["properties"])
    assert diagnosis(await service.client.post(VERIFY, json=described["example"]))["ok"]
