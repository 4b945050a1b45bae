"""No body, as large as the service takes, holds the event loop up: what can be counted is counted before it is parsed.

Each of these took between one and twenty seconds of the loop before. 100 ms is the aim; the bound is generous, because
the client of these tests runs in the same loop, and other tests beside it.
"""

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from app.api.fields import MAX_REPLY_TO
from app.api.large import MAX_VALUES
from app.intake.accept import MAX_RECIPIENTS
from tests.api.shapes import JSON
from tests.support.app import MESSAGE, Application, running
from tests.support.heartbeat import Heartbeat

LARGEST = 25 * 1024 * 1024 * 9 // 4  # bytes of a body that is taken
LONGEST = 0.5  # seconds of CPU time
GOOD = json.dumps(MESSAGE)[:-1].encode()  # without its closing brace


def _with(name: str, value: bytes) -> bytes:
    return b'%b, "%b": %b}' % (GOOD, name.encode(), value)


def _array(item: bytes) -> bytes:
    return b"[%b%b]" % ((item + b",") * (LARGEST // (len(item) + 1) - 100), item)


def _string(piece: bytes) -> bytes:
    return b'"%b"' % (piece * ((LARGEST - 1000) // len(piece)))


def _addresses(count: int) -> bytes:
    return json.dumps([f"ü{at}@bücher{at}.example" for at in range(count)], ensure_ascii=False).encode()


BODIES: dict[str, tuple[Callable[[], bytes], str]] = {
    "100,000 non-ASCII recipients": (lambda: _with("to", _addresses(100_000)), "/to"),
    "29,000 non-ASCII recipients": (lambda: _with("to", _addresses(29_000)), "/to"),
    "1,000,000 reply-to addresses": (lambda: _with("reply_to", b"[%b]" % b",".join([b'"a@b.c"'] * 10**6)), "/reply_to"),
    "millions of addresses in one string": (lambda: _with("to", _string(b"a@b,")), "/to"),
    "separators and nothing else": (lambda: _with("to", _string(b";")), "/to"),
    "line breaks and nothing else": (lambda: _with("bcc", _string(b"\\n")), "/bcc"),
    "arrays for recipients": (lambda: _with("to", _array(b"[]")), "/to"),
    "objects for recipients": (lambda: _with("cc", _array(b"{}")), "/cc"),
    "empty strings for reply-to": (lambda: _with("reply_to", _array(b'""')), "/reply_to"),
    "numbers for attachments": (lambda: _with("attachments", _array(b"1")), "/attachments"),
    "arrays for tags": (lambda: _with("tags", _array(b"[]")), "/tags"),
    "arrays for the subject": (lambda: _with("subject", _array(b"[]")), "/subject"),
    "arrays in an unknown field": (lambda: _with("unknown", _array(b"[]")), "/unknown"),
    "a million headers": (lambda: _with("headers", b'{"X-A":"b"%b}' % (b',"X-A":"b"' * 10**6)), "/headers"),
    "a million entries of metadata": (lambda: _with("metadata", b'{"a":"b"%b}' % (b',"a":"b"' * 10**6)), "/metadata"),
    "four million unknown fields": (
        lambda: b"{%b}" % b",".join(b'"k%d":1' % at for at in range(4_000_000)),
        "",
    ),
    "an unknown field with a name of 59 MB": (lambda: b"{%b:1}" % _string(b"a"), f"/{'a' * 80}"),
    "an unknown field of an attachment with a name of 59 MB": (
        lambda: _with("attachments", b"[{%b:1}]" % _string(b"a")),
        f"/attachments/0/{'a' * 80}",
    ),
    "a profile of 59 MB": (lambda: _with("profile", _string(b"p")), "/profile"),
    "a subject of line breaks": (lambda: _with("subject", _string(b"\\n")), "/subject"),
    "a sender of brackets": (lambda: _with("from", _string(b"(")), "/from"),
    "an attachment that is no base64 at its end": (
        lambda: _with("attachments", b'[{"filename":"a","content":"%b!"}]' % (b"A" * (LARGEST - 1000))),
        "/attachments/0/content",
    ),
    "59 MB of opening brackets": (lambda: b"[" * LARGEST, ""),
    "59 MB of quotes": (lambda: b'"' * LARGEST, ""),
    "59 MB of blanks": (lambda: b" " * LARGEST, ""),
    "59 MB that are not closed": (lambda: _with("text", _string(b'\\"'))[:-2], ""),
}


@pytest.mark.parametrize(("make", "pointer"), BODIES.values(), ids=BODIES)
async def test_a_hostile_body_is_refused_and_holds_nobody_up(
    service: Application, make: Callable[[], bytes], pointer: str
) -> None:
    body = make()
    async with Heartbeat() as heartbeat:
        answer = await service.client.post("/send", content=body, headers={"Content-Type": JSON})
    assert answer.status_code == 422, answer.text
    assert answer.json()["errors"][0]["pointer"] == pointer
    assert len(answer.content) < 20_000
    assert heartbeat.longest < LONGEST


TEXTS: dict[str, bytes] = {
    "plain": b"a",
    "quotes": b'\\"',
    "backslashes": b"\\\\",
    "line breaks": b"\\n",
    "umlauts": "ü".encode(),
    "escaped umlauts": b"\\u00fc",
    "emoji": "\U0001f600".encode(),
    "escaped emoji": b"\\ud83d\\ude00",
    "encoded words": b"=?",
    "blanks": b" ",
}


@pytest.mark.parametrize("piece", TEXTS.values(), ids=TEXTS)
async def test_a_text_over_the_limit_is_refused_with_both_numbers_and_holds_nobody_up(
    service: Application, piece: bytes
) -> None:
    body = _with("html", _string(piece))
    async with Heartbeat() as heartbeat:
        answer = await service.client.post("/send", content=body, headers={"Content-Type": JSON})
    assert answer.status_code == 413, answer.text
    assert "at most 26214400" in answer.json()["detail"]
    assert heartbeat.longest < LONGEST


@pytest.mark.parametrize(
    ("text", "count"),
    [
        ("a" * 70 + "\n", 340_000),
        ("\n", 12_000_000),
        (".\n", 8_000_000),
        ("\u00fc", 9_000_000),
        ("<p>\u00e9</p>\n", 1_500_000),
    ],
    ids=["lines", "line breaks", "dots", "umlauts", "HTML"],
)
async def test_a_message_of_25_mb_is_taken_and_holds_nobody_up(tmp_path: Path, text: str, count: int) -> None:
    async with running(tmp_path, environ={"MAILCHUTE_MIN_FREE_BYTES": "0"}) as service:
        body = json.dumps({**MESSAGE, "text": text * count, "idempotency_key": "k"}).encode()
        headers = {"Content-Type": JSON, "Prefer": "respond-async"}
        async with Heartbeat() as heartbeat:
            first = await service.client.post("/send", content=body, headers=headers)
            again = await service.client.post("/send", content=body, headers=headers)
        assert (first.status_code, again.headers.get("idempotent-replayed")) == (202, "true"), first.text
        assert heartbeat.longest < LONGEST


async def test_three_thousand_non_ascii_addresses_are_counted_and_hold_nobody_up(service: Application) -> None:
    people = [f"ü{at}@bücher{at}.example" for at in range(3000)]
    body = {**MESSAGE, "to": people[:1000], "cc": people[1000:2000], "bcc": people[2000:]}
    async with Heartbeat() as heartbeat:
        answer = await service.client.post("/send", json=body)
    assert (answer.status_code, answer.json()["errors"][0]["pointer"]) == (422, "/to")
    assert f"3000 recipients are too many; at most {MAX_RECIPIENTS}" in answer.json()["detail"]
    assert heartbeat.longest < LONGEST


async def test_the_bounds_are_told_where_they_are_met(service: Application) -> None:
    many = [f"a{at}@b.example" for at in range(MAX_RECIPIENTS + 1)]
    for field, bound in (
        ("to", MAX_RECIPIENTS),
        ("cc", MAX_RECIPIENTS),
        ("bcc", MAX_RECIPIENTS),
        ("reply_to", MAX_REPLY_TO),
    ):
        answer = await service.client.post("/send", json={**MESSAGE, field: many})
        (fault,) = answer.json()["errors"]
        assert fault["pointer"] == f"/{field}"
        assert f"{len(many)} " in fault["detail"]
        assert f"at most {bound}" in fault["detail"]
    answer = await service.client.post("/send", json={**MESSAGE, "to": "a@b.example" + ",c@d.example" * MAX_VALUES})
    assert answer.status_code == 200, "equal ones count once"


@pytest.mark.parametrize(
    "path", ["/erase", "/profiles/relay/verify", "/messages/019caa00-0000-7000-8000-000000000001/resolve"]
)
async def test_the_body_of_an_act_is_small(service: Application, path: str) -> None:
    body = b'{"as": "sent", "x": [%b]}' % (b"[]," * 10_000_000)
    async with Heartbeat() as heartbeat:
        answer = await service.client.post(path, content=body, headers={"Content-Type": JSON})
    assert answer.status_code == 413
    assert "at most 65536" in answer.json()["detail"]
    assert heartbeat.longest < LONGEST


QUERIES = {
    "a parameter ten thousand times": "&".join(["tag=a"] * 9_000),
    "thousands of parameters": "&".join(f"t{at}=a" for at in range(6_000)),
    "a long q": f"q={'a' * 60_000}",
    "a long cursor": f"cursor={'A' * 60_000}",
    "a long state": f"state={'a' * 60_000}",
    "a long duration": f"since={'9' * 60_000}d",
    "a long limit": f"limit={'9' * 60_000}",
    "a long sender": f"sender={'@' * 60_000}",
}


@pytest.mark.parametrize("query", QUERIES.values(), ids=QUERIES)
async def test_a_hostile_query_is_refused(service: Application, query: str) -> None:
    async with Heartbeat() as heartbeat:
        answer = await service.client.get(f"/messages?{query}")
    assert answer.status_code == 422, answer.text
    assert len(answer.content) < 2000
    assert heartbeat.longest < LONGEST


async def test_a_parameter_that_is_given_twice_is_refused(service: Application) -> None:
    for path in ("/messages?tag=a&tag=b", "/attempts?profile=a&profile=b"):
        answer = await service.client.get(path)
        assert (answer.status_code, "2 times; give it once" in answer.json()["detail"]) == (422, True)
    acted = await service.client.post("/messages/cancel?state=deferred&state=queued")
    assert acted.status_code == 422
