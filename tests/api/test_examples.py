"""The answers that /openapi.json shows are answers that the service gives: each is asked for here, and compared.

What differs from run to run is settled first: ids, instants, durations, ports. `MAILCHUTE_EXAMPLES=write make test
ARGS=tests/api/test_examples.py` writes them anew; `make openapi` then takes them over.
"""

import json
import os
import re
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import httpx2
import pytest

from app.api.body import example, examples
from app.store import database
from tests.api.test_document import assert_documented, document
from tests.support.app import Application, locked, running
from tests.support.relay import Close, Relay

FILE = Path(__file__).parents[2] / "app" / "api" / "examples.json"
IS_WRITING = os.environ.get("MAILCHUTE_EXAMPLES") == "write"
MESSAGE = example()
NO_SUCH_ID = "019ab3c4-0000-7000-8000-000000000000"
ID, AT = "019ab3c4-5d6e-7f80-9a1b-2c3d4e5f6071", "2026-11-24T12:00:00.000Z"
LOGIN = {"MAILCHUTE_PROFILES__RELAY__USERNAME": "bot", "MAILCHUTE_PROFILES__RELAY__PASSWORD": "secret"}
UNWANTED = {**LOGIN}  # the same, for a relay that wants none

INSTANTS = {
    "created_at": AT,
    "started_at": AT,
    "next_attempt_at": "2026-11-24T12:00:30.000Z",
    "expires_at": "2026-11-25T12:00:00.000Z",
}

Ask = Callable[[Application, Path], Awaitable[httpx2.Response]]


@dataclass(frozen=True, slots=True)
class Example:
    """One answer. `at` says which operations give it, `*` = all that document this status and have none of their own."""

    at: tuple[str, ...]
    summary: str
    ask: Ask
    environ: Mapping[str, str] | None = None


async def send(service: Application, body: Mapping[str, Any] = MESSAGE, **headers: str) -> httpx2.Response:
    said = {name.replace("_", "-"): value for name, value in headers.items()}
    return await service.client.post("/send", json=dict(body), headers=said)


async def sent(service: Application, _: Path) -> httpx2.Response:
    return await send(service)


async def partial(service: Application, _: Path) -> httpx2.Response:
    service.relay.on("RCPT", "550 5.1.1 No such mailbox", match="bob@")
    return await send(service, {**MESSAGE, "to": "ann@example.org, bob@example.org"})


async def sending(service: Application, _: Path) -> httpx2.Response:
    return await send(service, Prefer="respond-async")


async def deferred(service: Application, _: Path) -> httpx2.Response:
    service.relay.on("MAIL", "451 4.3.0 Try again later")
    return await send(service)


async def scheduled(service: Application, _: Path) -> httpx2.Response:
    return await send(service, {**MESSAGE, "send_at": (datetime.now(UTC) + timedelta(hours=1)).isoformat()})


async def in_doubt(service: Application, _: Path) -> httpx2.Response:
    service.relay.on("CONTENT", Close())
    return await send(service)


async def failed(service: Application, _: Path) -> httpx2.Response:
    service.relay.on("RCPT", "550 5.1.1 No such mailbox")
    return await send(service)


async def dry_run(service: Application, _: Path) -> httpx2.Response:
    return await send(service, {**MESSAGE, "dry_run": True})


async def stranger(service: Application, _: Path) -> httpx2.Response:
    return await service.visitor(peer="192.0.2.7").post("/send", json=dict(MESSAGE))


async def not_json(service: Application, _: Path) -> httpx2.Response:
    body = b'{"to": "ann@example.org", "text": "She said "yes""}'
    return await service.client.post("/send", content=body, headers={"Content-Type": "text/plain;charset=UTF-8"})


async def form(service: Application, _: Path) -> httpx2.Response:
    return await service.client.post("/send", data={"to": "ann@example.org"})


async def two_faults(service: Application, _: Path) -> httpx2.Response:
    return await send(service, {**MESSAGE, "to": "ann", "expires_in": "an hour"})


async def key_reused(service: Application, _: Path) -> httpx2.Response:
    await send(service, Idempotency_Key="order-4711")
    return await send(service, {**MESSAGE, "text": "Another one."}, Idempotency_Key="order-4711")


async def too_large(service: Application, _: Path) -> httpx2.Response:
    return await send(service, {**MESSAGE, "text": "x" * 3000})


async def no_store(service: Application, folder: Path) -> httpx2.Response:
    with locked(folder):
        return await send(service)


async def not_ready(service: Application, folder: Path) -> httpx2.Response:
    with locked(folder):
        return await service.client.get("/readyz")


async def found(service: Application, _: Path) -> httpx2.Response:
    return await service.client.get(f"/messages/{(await send(service)).json()['id']}")


async def listed(service: Application, _: Path) -> httpx2.Response:
    await send(service)
    return await service.client.get("/messages?state=sent&limit=1")


async def not_found(service: Application, _: Path) -> httpx2.Response:
    return await service.client.get(f"/messages/{NO_SUCH_ID}")


async def wrong_filter(service: Application, _: Path) -> httpx2.Response:
    return await service.client.get("/messages?state=canceled")


async def cancelled(service: Application, folder: Path) -> httpx2.Response:
    return await service.client.post(f"/messages/{(await scheduled(service, folder)).json()['id']}/cancel")


async def too_late(service: Application, _: Path) -> httpx2.Response:
    return await service.client.post(f"/messages/{(await send(service)).json()['id']}/cancel")


async def failed_again(service: Application, folder: Path) -> httpx2.Response:
    return await service.client.post(f"/messages/{(await failed(service, folder)).json()['id']}/retry")


async def resolved(service: Application, folder: Path) -> httpx2.Response:
    id_ = (await in_doubt(service, folder)).json()["id"]
    return await service.client.post(f"/messages/{id_}/resolve", json={"as": "sent"})


async def works(service: Application, _: Path) -> httpx2.Response:
    return await service.client.post("/profiles/relay/verify", json={"from": "bot@example.org"})


async def no_room(service: Application, _: Path) -> httpx2.Response:
    await service.client.post("/profiles/relay/pause")
    for _n in range(2):
        await send(service, Prefer="respond-async")
    return await send(service)


async def twice(service: Application, _: Path) -> httpx2.Response:
    await works(service, _)
    return await works(service, _)


async def no_profile(service: Application, _: Path) -> httpx2.Response:
    return await service.client.post("/profiles/relais/verify")


async def erased(service: Application, folder: Path) -> httpx2.Response:
    await send(service)
    await deferred(service, folder)
    return await service.client.post("/erase", json={"address": "ann@example.org"})


async def nobody(service: Application, _: Path) -> httpx2.Response:
    return await service.client.post("/erase", json={"address": "ann"})


async def explained(service: Application, _: Path) -> httpx2.Response:
    return await service.client.get("/errors/key-reused")


async def no_code(service: Application, _: Path) -> httpx2.Response:
    return await service.client.get("/errors/EAUTHX")


async def counted(service: Application, _: Path) -> httpx2.Response:
    return await service.client.post("/messages/cancel?tag=order")


EXAMPLES = {
    "sent": Example(("sendMessage 200", "retryMessage 200"), "The relay took it", sent),
    "partial": Example(("sendMessage 200",), "One recipient was refused for good", partial),
    "sending": Example(("sendMessage 202", "retryMessage 202"), "Written down, no verdict yet", sending),
    "scheduled": Example(("sendMessage 202",), "Written down for later (send_at)", scheduled),
    "deferred": Example(("sendMessage 202",), "Not sent yet, tried again by itself", deferred),
    "login_unwanted": Example(("sendMessage 202",), "A setting is wrong, and the hint names it", sent, UNWANTED),
    "in_doubt": Example(("sendMessage 202",), "Handed over, and the verdict was lost", in_doubt),
    "failed": Example(("sendMessage 424", "resolveMessage 424"), "Refused for good", failed),
    "failed_again": Example(("retryMessage 424",), "Refused again", failed_again),
    "dry_run": Example(("sendMessage 200",), "Checked and composed only", dry_run),
    "stranger": Example(("* 401",), "No key, and not from this machine", stranger),
    "two_faults": Example(("sendMessage 422", "verifyProfile 422"), "Every fault, with its pointer", two_faults),
    "not_json": Example(("sendMessage 422",), "A variable with a quote in it", not_json),
    "key_reused": Example(("sendMessage 422",), "One key for two bodies", key_reused),
    "nobody": Example(("eraseAddress 422",), "No address", nobody),
    "form": Example(("* 415",), "Another type than JSON", form),
    "too_large": Example(("* 413",), "More than the service takes", too_large, {"MAILCHUTE_MAX_MESSAGE_BYTES": "2048"}),
    "no_store": Example(("* 503", "sendMessage 503"), "The store is locked or full", no_store),
    "no_room": Example(("sendMessage 503",), "Too many wait", no_room, {"MAILCHUTE_MAX_QUEUED": "2"}),
    "not_ready": Example(("isReady 503",), "The store cannot be written", not_ready),
    "found": Example(("getMessage 200",), "With its one attempt", found),
    "erased": Example(("eraseAddress 200",), "One has ended, one has not", erased),
    "listed": Example(("listMessages 200",), "One page", listed),
    "not_found": Example(("* 404",), "No message has this id", not_found),
    "wrong_filter": Example(("* 422",), "A filter that no message can match", wrong_filter),
    "cancelled": Example(("cancelMessage 200",), "It waited, and will not be sent", cancelled),
    "too_late": Example(("* 409",), "It was sent already", too_late),
    "resolved": Example(("resolveMessage 200",), "The relay's log had it", resolved),
    "counted": Example(("cancelMessages 200", "retryMessages 200"), "None matched", counted),
    "works": Example(("verifyProfile 200",), "A message would get as far as its content", works),
    "no_profile": Example(("verifyProfile 404",), "Misspelt", no_profile),
    "twice": Example(("verifyProfile 429",), "With a login, once a minute", twice, LOGIN),
    "explained": Example(("getError 200",), "A problem's type leads there", explained),
    "no_code": Example(("getError 404",), "Misspelt", no_code),
}


@asynccontextmanager
async def service_of(example: Example, folder: Path) -> AsyncIterator[Application]:
    """Run the service for one example, with a relay that wants a login where there is one that it gets."""
    relay = Relay(auth=["PLAIN"]) if example.environ is LOGIN else Relay()
    async with running(folder, relay, environ=example.environ) as service:
        yield service


def settled(value: Any, name: str = "") -> Any:
    """Give a value as the document shows it: what differs from run to run is always the same."""
    match value:
        case dict():
            return {key: settled(below, key) for key, below in value.items()}
        case list():
            return [settled(below, name) for below in value]
        case float():
            return 1.5
        case int() if name == "port":
            return 587
        case str() if name == "ip":
            return "192.0.2.25"
        case str() if name in INSTANTS:
            return INSTANTS[name]
        case str():
            return _settled(value)
    return value


def _settled(text: str) -> str:
    text = re.sub(r"(?!019ab3c4-0000)[0-9a-f]{8}-[0-9a-f]{4}-7[0-9a-f]{3}-[0-9a-f]{4}-[0-9a-f]{12}", ID, text)
    text = re.sub(r"\d{4}-\d\d-\d\d[T ]\d\d:\d\d(:\d\d(\.\d+)?)?(Z|\+00:00)", AT, text)
    text = re.sub(r"127\.0\.0\.1(:\d+)?(?!\])", lambda found: f"mail.example.org{':587' if found[1] else ''}", text)
    text = re.sub(r"Date: .*?\r", "Date: Tue, 24 Nov 2026 12:00:00 +0000\r", text)
    text = re.sub(r"in \d+ s$", "in 60 s", text)
    return re.sub(r"<[0-9a-f.-]{20,}@", f"<{ID}@", text)


@pytest.mark.parametrize("name", EXAMPLES)
async def test_the_service_answers_as_the_document_shows(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(database, "BUSY_SECONDS", 0.05)
    example = EXAMPLES[name]
    async with service_of(example, tmp_path) as service:
        answer = await example.ask(service, tmp_path)
        whole = await document(service)
    shape = {"at": list(example.at), "summary": example.summary, "value": settled(answer.json())}
    if IS_WRITING:
        written = json.loads(FILE.read_text("utf-8")) | {name: shape}
        in_order = {name: written[name] for name in EXAMPLES if name in written}
        FILE.write_text(json.dumps(in_order, ensure_ascii=False, indent=1) + "\n", "utf-8")
    assert {at.split()[1] for at in example.at} == {str(answer.status_code)}
    assert shape == json.loads(FILE.read_text("utf-8"))[name], "if that is meant, write the examples anew"
    for path, method, operation in _operations(whole):
        if f"{operation['operationId']} {answer.status_code}" in example.at:
            assert_documented(whole, path, method, answer)


def test_no_example_is_shown_that_is_not_asked_for() -> None:
    assert list(json.loads(FILE.read_text("utf-8"))) == list(EXAMPLES)


async def test_every_problem_and_every_verdict_has_an_example(service: Application) -> None:
    whole = await document(service)
    for path, method, operation in _operations(whole):
        for status, response in operation["responses"].items():
            for kind, media in response.get("content", {}).items():
                if status not in ("200", "202") and not (path == "/health" and status == "503"):
                    assert media.get("examples"), f"{method} {path} {status} as {kind}"
    shown = {name for _, _, operation in _operations(whole) for name in _shown(operation)}
    assert shown == set(EXAMPLES), "each is shown somewhere"


def _shown(operation: Mapping[str, Any]) -> set[str]:
    contents = [media for response in operation["responses"].values() for media in response.get("content", {}).values()]
    return {name for media in contents for name in media.get("examples", {})}


def _operations(whole: Mapping[str, Any]) -> list[tuple[str, str, dict[str, Any]]]:
    return [(path, method, said) for path, methods in whole["paths"].items() for method, said in methods.items()]


@pytest.mark.parametrize("name", examples())
async def test_every_body_that_is_shown_works_in_the_sandbox_as_it_stands(name: str, tmp_path: Path) -> None:
    async with running(tmp_path, sandbox=True) as service:
        body = (await document(service))["paths"]["/send"]["post"]["requestBody"]["content"]["application/json"]
        assert body["examples"][name] == examples()[name]
        answer = await service.client.post("/send", json=body["examples"][name]["value"])
    assert (answer.status_code, answer.json()["ok"]) == (200, True)
