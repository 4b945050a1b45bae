"""Looking up: pages by cursor, one message with its recipients and attempts, and its source."""

import re
from datetime import datetime
from pathlib import Path
from typing import Any
from uuid import UUID

import httpx2
import pytest

from tests.api.shapes import ATTEMPT, FLAT, LISTED, problem
from tests.support.app import Application, running
from tests.support.relay import Close, Relay
from tests.support.tls import FAR_AWAY, certificates

SOME = 60


# --- pages -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("limit", [None, 1, 7, 20, 59, 60, 61, 100])
async def test_pages_hold_every_message_once_and_newest_first(limit: int | None, service: Application) -> None:
    ids = await send_some(service)
    size = limit or 20
    pages = await walk(service, "/messages" if limit is None else f"/messages?limit={limit}")
    assert [said["id"] for page in pages for said in page] == sorted(ids, reverse=True)
    assert [len(page) for page in pages] == [size] * (SOME // size) + ([SOME % size] if SOME % size else [])
    created = [datetime.fromisoformat(said["created_at"]) for page in pages for said in page]
    assert created == sorted(created, reverse=True)


async def test_a_message_of_a_list_is_the_flat_shape_and_names_subject_and_recipients(service: Application) -> None:
    sent = (await service.send()).json()
    page = (await service.client.get("/messages")).json()
    assert list(page) == ["data", "has_more", "next_cursor"]
    (listed,) = page["data"]
    assert list(listed) == LISTED
    assert listed == {
        **sent,
        "subject": "Your order 4711",
        "to": ["ann@theirs.test"],
        "recipient_count": 1,
    }


async def test_no_message_is_an_empty_page(service: Application) -> None:
    answer = await service.client.get("/messages")
    assert answer.json() == {"data": [], "has_more": False, "next_cursor": None}
    assert "link" not in answer.headers


async def test_what_comes_in_meanwhile_does_not_shift_a_page(service: Application) -> None:
    ids = await send_some(service, 5)
    first = (await service.client.get("/messages?limit=3")).json()
    await service.send()
    second = (await service.client.get("/messages", params={"limit": 3, "cursor": first["next_cursor"]})).json()
    assert [said["id"] for said in [*first["data"], *second["data"]]] == sorted(ids, reverse=True)


@pytest.mark.parametrize(
    "limit",
    ["0", "-1", "101", "1000", "1e2", "5.0", "all", "+5", "0x10", "1 0", "0000000019999", "000000001" + "9" * 30],
)
async def test_a_limit_out_of_bounds_is_422(limit: str, service: Application) -> None:
    said = problem(await service.client.get("/messages", params={"limit": limit}), status=422)
    assert "from 1 to 100" in said["detail"]


@pytest.mark.parametrize("limit", ["1", "100", "020"])
async def test_a_limit_within_bounds_is_taken(limit: str, service: Application) -> None:
    assert (await service.client.get("/messages", params={"limit": limit})).status_code == 200


@pytest.mark.parametrize(
    "cursor", ["x", "!!!!", "AAAA", "A" * 21, "A" * 23, "A" * 200, "ü", "%00", "=", "A" * 21 + "!"]
)
async def test_a_cursor_that_we_never_gave_is_422(cursor: str, service: Application) -> None:
    said = problem(await service.client.get("/messages", params={"cursor": cursor}), status=422)
    assert "cursor" in said["detail"]


async def test_a_cursor_with_rubbish_in_it_is_422(service: Application) -> None:
    await send_some(service, 2)
    cursor = (await service.client.get("/messages?limit=1")).json()["next_cursor"]
    problem(await service.client.get("/messages", params={"cursor": f"{cursor[:5]}!.!.{cursor[5:]}"}), status=422)


# --- one message -----------------------------------------------------------------------------------------------


async def test_a_message_is_found_with_its_recipients_and_attempts(service: Application) -> None:
    service.relay.on("RCPT", "550 5.1.1 No such mailbox", match="bob@")
    sent = (
        await service.send(
            to=["ann@theirs.test", "bob@theirs.test"], tags=["vip", "order"], metadata={"order": "4711"}, bcc="c@d.test"
        )
    ).json()
    found = await service.look_up(sent["id"])
    details = ["subject", "blocked_by", "sender", "size", "tags", "metadata", "recipients"]
    assert list(found) == [*FLAT, *details]
    assert {k: v for k, v in found.items() if k in FLAT and k != "attempts"} == {
        k: v for k, v in sent.items() if k != "attempts"
    }
    assert (found["subject"], found["sender"]) == ("Your order 4711", "bot@ours.test")
    assert (found["tags"], found["metadata"]) == (["vip", "order"], {"order": "4711"})
    assert found["size"] == len(service.relay.mails[0].content)
    assert [(r["address"], r["state"]) for r in found["recipients"]] == [
        ("ann@theirs.test", "sent"),
        ("bob@theirs.test", "rejected"),
        ("c@d.test", "sent"),
    ]
    refused = found["recipients"][1]
    assert (refused["error_code"], refused["reason"]) == ("EENVELOPE", "mailbox_unknown")
    assert (refused["smtp_code"], refused["enhanced_code"]) == (550, "5.1.1")
    assert "550 5.1.1 No such mailbox" in refused["message"]
    assert len(found["attempts"]) == 1


async def test_an_attempt_that_sent_tells_all(service: Application) -> None:
    attempt = await only_attempt(service)
    assert not set(ATTEMPT) - set(attempt)
    assert (attempt["number"], attempt["profile"]) == (1, "relay")
    assert (attempt["host"], attempt["ip"], attempt["port"]) == ("127.0.0.1", "127.0.0.1", service.relay.port)
    assert datetime.fromisoformat(attempt["started_at"]).tzinfo is not None
    assert list(attempt["phases"]) == ["resolve", "connect", "greeting", "ehlo", "mail", "rcpt", "data", "content"]
    assert 0 < sum(attempt["phases"].values()) <= attempt["duration_ms"] + 1
    assert (attempt["tls"], attempt["tls_version"], attempt["tls_cipher"]) == (False, None, None)
    assert (attempt["tls_verified"], attempt["tls_error"], attempt["auth"]) == (False, None, None)
    assert "PIPELINING" in attempt["extensions"]
    assert "SIZE 10485760" in attempt["extensions"]
    assert (attempt["phase"], attempt["handover"]) == ("content", True)
    assert (attempt["error_code"], attempt["reason"], attempt["class"]) == (None, None, None)
    assert (attempt["reply"], attempt["smtp_code"]) == ("250 2.0.0 Ok: queued as R1", 250)
    assert attempt["enhanced_code"] == "2.0.0"


async def test_a_transcript_has_one_wire_line_an_entry_and_no_content(service: Application) -> None:
    attempt = await only_attempt(service)
    said = [(entry["dir"], entry["line"]) for entry in attempt["transcript"]]
    assert all(list(entry) == ["ms", "dir", "line"] for entry in attempt["transcript"])
    times = [entry["ms"] for entry in attempt["transcript"]]
    assert times == sorted(times)
    assert said[:2] == [("S", "220 relay.test ESMTP"), ("C", "EHLO ours.test")]
    assert ("S", "250-PIPELINING") in said
    assert ("S", "250 HELP") in said
    commands = [line for side, line in said if side == "C"]
    assert re.fullmatch(r"MAIL FROM:<bot@ours\.test> SIZE=\d+", commands[1])
    assert commands[2:4] == ["RCPT TO:<ann@theirs.test>", "DATA"]
    assert said[-1] == ("S", "250 2.0.0 Ok: queued as R1")
    assert "It is on its way" not in str(said)
    assert not any("\n" in line or "\r" in line for _, line in said)


async def test_an_attempt_that_failed_tells_why(service: Application) -> None:
    service.relay.on("CONTENT", "554 5.7.1 Looks like spam")
    attempt = await only_attempt(service)
    assert (attempt["error_code"], attempt["reason"], attempt["class"]) == (
        "EMESSAGE",
        "content_rejected",
        "permanent",
    )
    assert attempt["reply"] == "554 5.7.1 Looks like spam"
    assert (attempt["smtp_code"], attempt["enhanced_code"]) == (554, "5.7.1")
    assert (attempt["phase"], attempt["handover"]) == ("content", True)


async def test_an_attempt_in_doubt_shows_that_content_was_let_go(service: Application) -> None:
    service.relay.on("CONTENT", Close())
    attempt = await only_attempt(service)
    assert (attempt["error_code"], attempt["class"]) == ("EINDOUBT", "unknown")
    assert (attempt["handover"], attempt["reply"], attempt["smtp_code"]) == (True, None, None)


async def test_an_attempt_that_met_nobody_says_how_far_it_came(service: Application) -> None:
    service.relay.on("GREETING", Close())
    attempt = await only_attempt(service)
    assert (attempt["phase"], attempt["handover"], attempt["transcript"]) == ("greeting", False, [])
    assert attempt["error_code"] == "ECONNECTION"
    assert set(attempt["phases"]) == {"resolve", "connect", "greeting"}


async def test_an_attempt_under_tls_with_a_login_says_so(tmp_path: Path) -> None:
    facts = {
        "HOST": "localhost",
        "TLS": "starttls",
        "CA_FILE": str(certificates().ca_file),
        "USERNAME": "bot",
        "PASSWORD": "secret",
    }
    tls = certificates().server(until=FAR_AWAY)
    relay = Relay(tls=tls, auth=["LOGIN", "PLAIN"], auth_only_under_tls=True)
    environ = {f"MAILCHUTE_PROFILES__RELAY__{name}": value for name, value in facts.items()}
    async with running(tmp_path, relay, environ=environ) as service:
        attempt = await only_attempt(service)
    assert (attempt["tls"], attempt["tls_verified"], attempt["tls_error"]) == (True, True, None)
    assert attempt["tls_version"] == "TLSv1.3"
    assert attempt["tls_cipher"]
    assert (attempt["tls_names"], attempt["tls_sha256"]) == (["localhost", "127.0.0.1", "::1"], tls.sha256)
    assert attempt["tls_not_after"] == "2099-01-01"
    assert attempt["auth"] == "PLAIN"
    assert "AUTH LOGIN PLAIN" in attempt["extensions"]
    assert {"starttls", "auth"} <= set(attempt["phases"])


async def test_an_attempt_under_way_is_shown(service: Application) -> None:
    service.relay.on("CONTENT", Close())
    sent = (await service.send(prefer="wait=0")).json()
    found = await service.look_up(sent["id"])
    (attempt,) = found["attempts"]
    assert set(ATTEMPT) <= set(attempt)
    assert (attempt["number"], attempt["profile"]) == (1, "relay")


async def test_a_message_of_any_state_is_found_with_200(service: Application) -> None:
    ends = {
        "sent": None,
        "failed": "550 5.1.1 No such mailbox",
        "deferred": "451 4.3.0 Later",
    }
    for state, reply in ends.items():
        if reply:
            service.relay.on("RCPT", reply, times=1)
        found = await service.look_up((await service.send()).json()["id"])
        assert found["state"] == state
        assert "status" not in found


@pytest.mark.parametrize("below", ["", "/raw"])
@pytest.mark.parametrize(
    "id",
    [str(UUID(int=0)), "01a20bf8-4943-7bad-bcb1-d9c2726ad315", "x", "1", "01a20bf8-4943", "x" * 5000, "ü", "..", "%2e"],
)
async def test_an_unknown_and_a_malformed_id_are_404(id: str, below: str, service: Application) -> None:
    await service.send()
    said = problem(await service.client.get(f"/messages/{id}{below}"), status=404)
    assert said["type"] == "/errors/not-found"
    assert len(said["detail"]) < 200


# --- source ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "text",
    [
        "It is on its way.",
        ".\n..\n.a\n\n.\n",
        "no line end",
        "a\r\nb\rc\nd",
        "Grüße 東京 🎉\n" * 50,
        "x" * 5000,
        "=\n =20",
    ],
)
@pytest.mark.parametrize("pipelining", [True, False], ids=["pipelined", "step by step"])
async def test_the_source_is_what_the_relay_received(text: str, pipelining: bool, tmp_path: Path) -> None:
    relay = Relay() if pipelining else Relay(extensions=[])
    async with running(tmp_path, relay) as service:
        sent = (await service.send(text=text, html=f"<pre>{text}</pre>")).json()
        answer = await service.client.get(f"/messages/{sent['id']}/raw")
        received = relay.mails[0].content
    assert answer.status_code == 200
    assert answer.headers["content-type"] == "message/rfc822"
    assert answer.content == received
    assert f"Message-ID: {sent['message_id']}\r\n".encode() in received
    assert received.isascii()
    assert max(map(len, received.split(b"\r\n"))) <= 998
    assert received.count(b"\n") == received.count(b"\r") == received.count(b"\r\n")


async def test_the_source_of_a_large_message_comes_whole(tmp_path: Path) -> None:
    text = "\n".join(f"line {n} of many" for n in range(60_000))  # over a megabyte: several rows of 256 kB
    async with running(tmp_path) as service:
        sent = (await service.send(text=text)).json()
        raw = (await service.client.get(f"/messages/{sent['id']}/raw")).content
        assert len(raw) > 1_000_000
        assert raw == service.relay.mails[0].content


async def send_some(service: Application, count: int = SOME) -> list[str]:
    return [(await service.send(prefer="respond-async")).json()["id"] for _ in range(count)]


async def walk(service: Application, url: str) -> list[list[dict[str, Any]]]:
    """Follow Link to the end, and check that the body leads the same way."""
    pages = []
    for _ in range(SOME + 1):
        answer = await service.client.get(url)
        said = answer.json()
        pages.append(said["data"])
        if not said["has_more"]:
            assert said["next_cursor"] is None
            assert "link" not in answer.headers
            return pages
        url = answer.links["next"]["url"]
        assert httpx2.URL(url).params["cursor"] == said["next_cursor"]
    pytest.fail("the pages do not end")


async def only_attempt(service: Application) -> dict[str, Any]:
    sent = (await service.send()).json()
    (attempt,) = (await service.look_up(sent["id"]))["attempts"]
    assert isinstance(attempt, dict)
    return attempt
