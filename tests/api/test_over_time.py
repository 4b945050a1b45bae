"""What becomes of a message after the answer: tried again with the same bytes, given up when its time is over."""

from datetime import datetime, timedelta
from pathlib import Path

import pytest

from tests.api.shapes import FLAT, flat
from tests.support.app import PATIENCE, Application, running

SOON = {"MAILCHUTE_RETRY__SCHEDULE": "100ms"}


async def test_what_is_refused_for_now_is_taken_at_the_next_try_with_the_same_bytes(tmp_path: Path) -> None:
    async with running(tmp_path, environ=SOON) as service:
        service.relay.on("CONTENT", "450 4.2.0 Mailbox busy", times=1)
        first = flat(await service.send(), status=202)
        assert (first["state"], first["attempts"], first["will_retry"]) == ("deferred", 1, True)
        found = await service.settled(first["id"])
        once, again = service.relay.mails
        raw = (await service.client.get(f"/messages/{first['id']}/raw")).content
    assert (found["state"], found["ok"], found["will_retry"]) == ("sent", True, False)
    assert (found["error_code"], found["reason"], found["hint"], found["next_attempt_at"]) == (None, None, None, None)
    assert found["message_id"] == first["message_id"]
    assert once.content == again.content == raw
    assert f"Message-ID: {first['message_id']}\r\n".encode() in raw
    assert (once.taken, again.taken) == (False, True)


async def test_every_attempt_is_remembered_with_its_own_end(tmp_path: Path) -> None:
    async with running(tmp_path, environ=SOON) as service:
        service.relay.on("RCPT", "450 4.2.0 Mailbox busy", times=1)
        sent = (await service.send()).json()
        found = await service.settled(sent["id"])
        first, second = found["attempts"]
        listed = (await service.client.get("/messages")).json()["data"][0]
    assert listed["attempts"] == 2
    assert (first["number"], first["error_code"], first["smtp_code"]) == (1, "EENVELOPE", 450)
    assert (second["number"], second["error_code"], second["smtp_code"]) == (2, None, 250)
    assert (first["handover"], second["handover"]) == (False, True)
    wait = datetime.fromisoformat(second["started_at"]) - datetime.fromisoformat(first["started_at"])
    assert timedelta(milliseconds=85) <= wait < timedelta(seconds=PATIENCE)


async def test_only_who_is_pending_is_tried_again(tmp_path: Path) -> None:
    async with running(tmp_path, environ=SOON) as service:
        service.relay.on("RCPT", "451 4.3.0 Later", match="bob@", times=1)
        service.relay.on("RCPT", "550 5.1.1 No such mailbox", match="eve@")
        first = flat(await service.send(to="ann@theirs.test, bob@theirs.test, eve@theirs.test"), status=202)
        assert (first["state"], first["accepted"]) == ("deferred", ["ann@theirs.test"])
        assert [refused["address"] for refused in first["rejected"]] == ["eve@theirs.test"]
        found = await service.settled(first["id"])
        recipients = [mail.rcpt_to for mail in service.relay.mails]
    assert recipients == [["ann@theirs.test"], ["bob@theirs.test"]]
    assert (found["state"], found["accepted"]) == ("partial", ["ann@theirs.test", "bob@theirs.test"])


async def test_what_expires_before_the_next_try_is_given_up_at_once(tmp_path: Path) -> None:
    async with running(tmp_path) as service:  # the next try would come in half a minute
        service.relay.on("RCPT", "450 4.2.0 Mailbox busy")
        said = flat(await service.send(expires_in=10), status=424)
        counted = (await service.client.get("/errors/EEXPIRED")).json()["count_24h"]
    assert counted == 1
    assert (said["state"], said["final"], said["will_retry"], said["attempts"]) == ("failed", True, False, 1)
    assert (said["error_code"], said["reason"], said["class"]) == ("EEXPIRED", "expired", "permanent")
    assert said["type"] == "/errors/EEXPIRED"
    assert "EENVELOPE/recipient_deferred" in said["message"]
    assert "450 4.2.0 Mailbox busy" in said["message"]
    assert said["hint"].endswith("mend what the last failure says, and send it again.")
    assert [(r["address"], r["error_code"]) for r in said["rejected"]] == [("ann@theirs.test", "EEXPIRED")]
    assert said["next_attempt_at"] is None


async def test_what_is_refused_for_now_until_it_expires_fails_and_names_the_last_failure(tmp_path: Path) -> None:
    async with running(tmp_path, environ={"MAILCHUTE_RETRY__SCHEDULE": "300ms"}) as service:
        service.relay.on("RCPT", "450 4.2.0 Mailbox busy")
        service.relay.on("MAIL", "451 4.3.0 Out of order", times=1)
        first = flat(await service.send(expires_in=1), status=202)
        assert (first["state"], first["reason"]) == ("deferred", "sender_deferred")
        found = await service.settled(first["id"])
        connections = service.relay.connections
    assert (found["state"], found["error_code"], found["reason"]) == ("failed", "EEXPIRED", "expired")
    assert 2 <= len(found["attempts"]) <= 4
    assert "450 4.2.0 Mailbox busy" in found["message"]
    assert found["recipients"][0]["state"] == "expired"
    assert connections <= len(found["attempts"])


@pytest.mark.parametrize("seconds", [1, 600, 2_592_000])
async def test_a_message_expires_when_it_was_asked_to(seconds: int, service: Application) -> None:
    said = flat(await service.send(expires_in=seconds), status=200)
    created, expires = (datetime.fromisoformat(said[name]) for name in ("created_at", "expires_at"))
    assert expires - created == timedelta(seconds=seconds)


async def test_a_message_expires_after_a_day_by_default(service: Application) -> None:
    said = flat(await service.send(), status=200)
    created, expires = (datetime.fromisoformat(said[name]) for name in ("created_at", "expires_at"))
    assert expires - created == timedelta(hours=24)


async def test_a_message_is_in_one_state_for_the_list_and_by_itself_until_it_is_sent(tmp_path: Path) -> None:
    async with running(tmp_path, environ=SOON) as service:
        service.relay.on("CONTENT", "451 4.3.0 Later", times=2)
        sent = (await service.send()).json()
        found = await service.settled(sent["id"])
        (listed,) = (await service.client.get("/messages")).json()["data"]
    assert len(found["attempts"]) == 3
    assert {k: found[k] for k in FLAT if k != "attempts"} == {k: listed[k] for k in FLAT if k != "attempts"}
