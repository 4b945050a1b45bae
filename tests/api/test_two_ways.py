"""POST /send is served twice, by the hot route and by FastAPI: the same request gets the same answer, byte for byte."""

import json
import re
import sqlite3
from collections.abc import AsyncIterator, Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

import httpx2
import pytest

from app.api.edge import App
from app.store import database
from tests.support.app import MESSAGE, Application, running
from tests.support.relay import Close, Relay

KEY = "a-key-of-the-tests-0123456789"
LIMIT = 2048  # bytes composed; a body may then have 68,608
PROBLEM, JSON = "application/problem+json", "application/json"
CHANGES = re.compile(
    rb"[0-9a-f]{8}-[0-9a-f]{4}-7[0-9a-f]{3}-[0-9a-f]{4}-[0-9a-f]{12}"  # the id, in the Message-ID and in links too
    rb"|\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}Z"
)


@dataclass(frozen=True)
class Asked:
    """One request, and the status that it gets both ways."""

    status: int
    body: bytes | Mapping[str, object] = field(default_factory=lambda: MESSAGE)
    headers: Mapping[str, str] = field(default_factory=dict)
    script: Callable[[Relay], None] = lambda relay: None
    peer: str = "127.0.0.1"
    key: str = ""  # that the service wants
    chunked: bool = False

    @property
    def content(self) -> bytes:
        return self.body if isinstance(self.body, bytes) else json.dumps(self.body).encode()


def message(**fields: object) -> Mapping[str, object]:
    return {**MESSAGE, **fields}


def without(*names: str) -> Mapping[str, object]:
    return {name: value for name, value in MESSAGE.items() if name not in names}


def refuses(relay: Relay) -> None:
    relay.on("RCPT", "550 5.1.1 No such mailbox")


def defers(relay: Relay) -> None:
    relay.on("CONTENT", "451 4.3.0 Later")


def hangs_up(relay: Relay) -> None:
    relay.on("CONTENT", Close())


REQUESTS = {
    # we have it
    "good": Asked(200),
    "html and text": Asked(200, message(html="<p>On its way</p>", tags=["a"], metadata={"order": "4711"})),
    "no media type's parameters": Asked(200, headers={"Content-Type": "application/json; charset=utf-8"}),
    "identity": Asked(200, headers={"Content-Encoding": "identity"}),
    "chunked": Asked(200, chunked=True),
    "request id": Asked(200, headers={"X-Request-Id": "from-the-caller.1"}),
    "no idempotency key": Asked(422, headers={"Idempotency-Key": "x" * 300}),
    "wait": Asked(200, headers={"Prefer": "wait=5"}),
    "wait, too long": Asked(200, headers={"Prefer": "wait=999"}),
    "wait, no number": Asked(200, headers={"Prefer": "wait=soon"}),
    "no wait": Asked(202, headers={"Prefer": "wait=0"}),
    "respond-async": Asked(202, headers={"Prefer": "respond-async"}),
    "lenient": Asked(200, message(colour="red"), {"Prefer": "handling=lenient"}),
    "lenient and wait": Asked(200, message(colour="red"), {"Prefer": "handling=lenient, wait=4"}),
    "partial": Asked(200, message(cc="bob@theirs.test"), script=lambda r: r.on("RCPT", "550 5.1.1 No", match="bob@")),
    "deferred": Asked(202, script=defers),
    "in doubt": Asked(202, script=hangs_up),
    "with a key": Asked(200, headers={"Authorization": f"Bearer {KEY}"}, key=KEY, peer="192.0.2.7"),
    # refused by the relay
    "failed": Asked(424, script=refuses),
    "failed, Accept json": Asked(424, headers={"Accept": JSON}, script=refuses),
    "failed, Accept problem": Asked(424, headers={"Accept": PROBLEM}, script=refuses),
    "failed, Accept both": Asked(424, headers={"Accept": f"{JSON}, {PROBLEM}"}, script=refuses),
    # 401
    "foreign peer": Asked(401, peer="192.0.2.7"),
    "foreign host": Asked(401, headers={"Host": "mail.theirs.test"}),
    "forwarded": Asked(401, headers={"X-Forwarded-For": "192.0.2.7"}),
    "cross-site": Asked(401, headers={"Sec-Fetch-Site": "cross-site"}),
    "foreign origin, Accept json": Asked(401, headers={"Origin": "http://theirs.test", "Accept": JSON}),
    "no key": Asked(401, key=KEY),
    "wrong key": Asked(401, headers={"X-API-Key": "something-else-entirely"}, key=KEY),
    # 413
    "body too large": Asked(413, message(text="x" * 70_000)),
    "body too large, chunked": Asked(413, message(text="x" * 70_000), chunked=True),
    "message too large": Asked(413, message(text="x" * 4000)),
    "message too large, Accept json": Asked(413, message(text="x" * 4000), {"Accept": JSON}),
    # 415
    "no type": Asked(415, headers={"Content-Type": ""}),
    "a form": Asked(415, b"to=ann@theirs.test", {"Content-Type": "application/x-www-form-urlencoded"}),
    "text that is JSON": Asked(415, headers={"Content-Type": "text/plain;charset=UTF-8"}),
    "gzip": Asked(415, headers={"Content-Encoding": "gzip"}),
    "latin-1": Asked(415, headers={"Content-Type": "application/json; charset=iso-8859-1"}),
    "a form, Accept json": Asked(415, b"a=b", {"Content-Type": "multipart/form-data", "Accept": f"{JSON}, */*"}),
    # 422
    "text that is no JSON": Asked(422, b'{"to": "ann"s@x"}', {"Content-Type": "text/plain"}),
    "empty": Asked(422, b""),
    "broken": Asked(422, b'{"to": "ann@theirs.test", "text": "say "hi""}'),
    "truncated": Asked(422, b'{"to": "ann@theirs.test"'),
    "not UTF-8": Asked(422, b'{"text": "\xe9"}'),
    "an array": Asked(422, b"[]"),
    "a string": Asked(422, b'"ann@theirs.test"'),
    "NaN": Asked(422, b'{"to": "ann@theirs.test", "text": "x", "expires_in": NaN}'),
    "deep": Asked(422, b'{"to": ' + b"[" * 10_000),
    "nobody": Asked(422, without("to")),
    "nothing": Asked(422, without("text")),
    "bad addresses": Asked(422, message(to=["ann", "bob@", {"email": 1}], cc="Müller, Hans <h@theirs.test>")),
    "bad sender": Asked(422, {**MESSAGE, "from": "bot"}),
    "no sender": Asked(422, without("from")),
    "unknown field": Asked(422, message(subjekt="x", colour="red")),
    "unknown profile": Asked(422, message(profile="relais")),
    "line break in the subject": Asked(422, message(subject="a\r\nBcc: eve@theirs.test")),
    "structural header": Asked(422, message(headers={"Date": "today", "X-A": "a\nb", "b c": "d"})),
    "wrong types": Asked(
        422,
        message(subject=1, text=[], html={}, tags={"a": 1}, metadata=["b"], headers=[], expires_in="soon", profile=1),
    ),
    "too many": Asked(422, message(tags=[str(n) for n in range(11)], metadata={"a": "b" * 5000}, expires_in=0)),
    "faults, Accept json": Asked(422, without("to", "text"), {"Accept": JSON}),
    "faults, Accept both": Asked(422, without("to", "text"), {"Accept": f"{JSON}, {PROBLEM}"}),
    "faults, Accept html": Asked(422, without("to", "text"), {"Accept": "text/html, */*;q=0.8"}),
}


@pytest.mark.parametrize("asked", REQUESTS.values(), ids=REQUESTS)
async def test_both_ways_give_the_same_answer(asked: Asked, tmp_path: Path) -> None:
    environ = {"MAILCHUTE_MAX_MESSAGE_BYTES": str(LIMIT), "MAILCHUTE_API_KEY": asked.key}
    # With a second between attempts, Retry-After is 1 whatever the jitter.
    async with running(tmp_path, environ={"MAILCHUTE_RETRY__SCHEDULE": "1s", **environ}) as service:
        asked.script(service.relay)
        hot = await ask(service, service.app, asked)
        plain = await ask(service, service.without_hot_route, asked)
    assert hot.status_code == asked.status, hot.text
    assert plain.status_code == asked.status, plain.text
    assert comparable_headers(hot) == comparable_headers(plain)
    assert CHANGES.sub(b"*", hot.content) == CHANGES.sub(b"*", plain.content)


async def test_both_ways_say_the_same_while_the_store_is_locked(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(database, "BUSY_SECONDS", 0.01)
    async with running(tmp_path) as service:
        stray = sqlite3.connect(tmp_path / "mailchute.db", isolation_level=None)
        stray.execute("BEGIN EXCLUSIVE")
        hot = await ask(service, service.app, Asked(503))
        plain = await ask(service, service.without_hot_route, Asked(503))
        stray.close()
    assert hot.status_code == plain.status_code == 503
    assert comparable_headers(hot) == comparable_headers(plain)
    assert hot.content == plain.content


@pytest.mark.parametrize("method", ["GET", "PUT", "DELETE", "OPTIONS", "HEAD"])
async def test_both_ways_refuse_another_method_alike(method: str, service: Application) -> None:
    hot = await service.client.request(method, "/send")
    plain = await service.visitor(app=service.without_hot_route).request(method, "/send")
    assert hot.status_code == plain.status_code == 405
    assert comparable_headers(hot) == comparable_headers(plain)
    assert hot.content == plain.content


async def ask(service: Application, app: App, asked: Asked) -> httpx2.Response:
    headers = {"Content-Type": JSON, **asked.headers}
    content = in_pieces(asked.content) if asked.chunked else asked.content
    return await service.visitor(app=app, peer=asked.peer).post("/send", content=content, headers=headers)


async def in_pieces(body: bytes) -> AsyncIterator[bytes]:
    for at in range(0, len(body), 20_000):
        yield body[at : at + 20_000]


def comparable_headers(answer: httpx2.Response) -> list[tuple[bytes, bytes]]:
    """Give the headers in order; a request id that was made up is left out."""
    made_up = re.compile(rb"[0-9a-f]{16}\Z")
    return [
        (name.lower(), CHANGES.sub(b"*", value))
        for name, value in answer.headers.raw
        if name.lower() != b"date" and not (name.lower() == b"x-request-id" and made_up.match(value))
    ]
