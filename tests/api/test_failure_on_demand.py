"""Failure on demand: what the sandbox is asked to do, by an address or a profile, it really does."""

import asyncio
import socket
from collections.abc import AsyncIterator
from pathlib import Path
from unittest.mock import patch

import pytest

from app.settings import load
from app.smtpd import sink
from tests.api.shapes import flat, problem
from tests.support.app import Application, running


@pytest.fixture
async def sandbox(tmp_path: Path) -> AsyncIterator[Application]:
    async with running(tmp_path, sandbox=True) as service:
        yield service


# --- by an address ---------------------------------------------------------------------------------------------

BY_ADDRESS = [
    ("550", 424, "failed", "EENVELOPE", "mailbox_unknown", "permanent", 550, "5.1.1", "check the address"),
    ("451", 202, "deferred", "EENVELOPE", "recipient_deferred", "temporary", 451, "4.3.0", "tried again"),
    ("421", 202, "deferred", "ECONNECTION", "service_unavailable", "temporary", 421, "4.3.2", "tried again"),
    ("552", 424, "failed", "ETOOLARGE", "message_too_large", "permanent", 552, "5.3.4", "send less"),
    ("drop", 202, "in_doubt", "EINDOUBT", "outcome_unknown", "unknown", None, None, "in the log of"),
]


@pytest.mark.parametrize(
    ("local", "status", "state", "code", "reason", "class_", "smtp_code", "enhanced", "hint"),
    BY_ADDRESS,
    ids=[row[0] for row in BY_ADDRESS],
)
async def test_an_address_asks_for_a_failure(
    local: str,
    status: int,
    state: str,
    code: str,
    reason: str,
    class_: str,
    smtp_code: int | None,
    enhanced: str | None,
    hint: str,
    sandbox: Application,
) -> None:
    said = flat(await sandbox.send(to=f"{local}@anywhere.test"), status=status)
    assert (said["state"], said["ok"], said["sandbox"], said["profile"]) == (state, False, True, "sandbox")
    assert (said["error_code"], said["reason"], said["class"]) == (code, reason, class_)
    assert (said["smtp_code"], said["enhanced_code"]) == (smtp_code, enhanced)
    assert hint in said["hint"]


@pytest.mark.parametrize("address", ["DROP@anywhere.test", "Drop@elsewhere.test"])
async def test_capitals_and_the_domain_do_not_matter(address: str, sandbox: Application) -> None:
    assert flat(await sandbox.send(to=address), status=202)["state"] == "in_doubt"


@pytest.mark.parametrize("address", ["550x@anywhere.test", "ann+550@anywhere.test", "ann@550.test", "slow.ann@x.test"])
async def test_an_address_that_only_looks_like_it_is_kept(address: str, sandbox: Application) -> None:
    assert flat(await sandbox.send(to=address), status=200)["state"] == "sent"


async def test_at_rcpt_only_that_recipient_fails(sandbox: Application) -> None:
    said = flat(await sandbox.send(to="ann@theirs.test, 550@anywhere.test"), status=200)
    assert (said["state"], said["accepted"]) == ("partial", ["ann@theirs.test"])
    assert [rejected["address"] for rejected in said["rejected"]] == ["550@anywhere.test"]


@pytest.mark.parametrize(("local", "state"), [("552", "failed"), ("drop", "in_doubt"), ("421", "deferred")])
async def test_what_happens_to_the_content_or_the_connection_happens_to_all(
    local: str, state: str, sandbox: Application
) -> None:
    answer = await sandbox.send(to=f"ann@theirs.test, {local}@anywhere.test")
    assert (answer.json()["state"], answer.json()["accepted"]) == (state, [])


async def test_who_is_slow_answers_after_a_bot_has_gone_and_keeps_the_message(sandbox: Application) -> None:
    with patch.object(sink, "SLOW", 0.5):
        said = flat(await sandbox.send(to="slow@anywhere.test", prefer="wait=0"), status=202)
        assert (said["state"], said["ok"], said["sandbox"]) == ("sending", True, True)
        found = await sandbox.settled(said["id"])
    assert (found["state"], found["attempts"][0]["handover"]) == ("sent", True)
    assert found["attempts"][0]["phases"]["content"] >= 400  # milliseconds


def test_slow_is_slower_than_the_default_wait_and_than_typebots() -> None:
    assert max(load({}, files=()).default_wait, 10.0) < sink.SLOW


async def test_what_was_asked_is_said_in_a_real_conversation(sandbox: Application) -> None:
    """Of 421 too: it is said at RCPT, and the connection is closed behind it."""
    for local in ("550", "421", "drop"):
        found = await sandbox.look_up((await sandbox.send(to=f"{local}@anywhere.test")).json()["id"])
        (attempt,) = found["attempts"]
        said = [(line["dir"], line["line"]) for line in attempt["transcript"]]
        assert ("C", f"RCPT TO:<{local}@anywhere.test>") in said
        if local == "drop":
            assert said[-1] == ("C", ".")
            assert attempt["handover"] is True
        else:
            assert said[-1][1].startswith(f"{local} ")
            assert (attempt["phase"], attempt["handover"]) == ("rcpt", False)


async def test_a_connection_that_said_421_is_closed(sandbox: Application) -> None:
    reader, writer = await asyncio.open_connection("127.0.0.1", sandbox.runtime.profiles["sandbox"].port)
    for line in ("EHLO ours.test", "MAIL FROM:<bot@ours.test>", "RCPT TO:<421@anywhere.test>"):
        writer.write(f"{line}\r\n".encode())
    said = await reader.read()  # to the end
    assert said.splitlines()[-1].startswith(b"421 4.3.2 ")
    writer.close()
    await writer.wait_closed()


# --- by a profile ----------------------------------------------------------------------------------------------

BY_PROFILE = [
    ("sandbox-eauth", "EAUTH", "auth_rejected", "configuration", 535, "check username and password"),
    ("sandbox-down", "ECONNECTION", "connection_refused", "temporary", None, "127.0.0.1"),
    ("sandbox-tls-expired", "ETLS", "tls_cert_expired", "configuration", None, "2024-01-31"),
]


@pytest.mark.parametrize(
    ("name", "code", "reason", "class_", "smtp_code", "hint"), BY_PROFILE, ids=[row[0] for row in BY_PROFILE]
)
async def test_a_built_in_profile_fails_as_its_name_says(
    name: str, code: str, reason: str, class_: str, smtp_code: int | None, hint: str, sandbox: Application
) -> None:
    said = flat(await sandbox.send(profile=name), status=202)
    assert (said["state"], said["ok"], said["sandbox"], said["profile"]) == ("deferred", False, True, name)
    assert (said["error_code"], said["reason"], said["class"]) == (code, reason, class_)
    assert said["smtp_code"] == smtp_code
    assert hint in said["hint"]
    (attempt,) = (await sandbox.look_up(said["id"]))["attempts"]
    assert (attempt["ip"], attempt["handover"]) == ("127.0.0.1" if name != "sandbox-down" else None, False)


@pytest.mark.parametrize(
    ("name", "stage"), [(row[0], stage) for row, stage in zip(BY_PROFILE, ("auth", "connect", "tls"), strict=True)]
)
async def test_trying_such_a_profile_fails_at_its_stage(name: str, stage: str, sandbox: Application) -> None:
    said = (await sandbox.client.post(f"/profiles/{name}/verify", json={"from": "bot@ours.test"})).json()
    assert not said["ok"]
    assert next(s["stage"] for s in said["stages"] if s["state"] == "failed") == stage


async def test_the_login_that_is_refused_is_one_and_its_password_is_not_told(sandbox: Application) -> None:
    found = await sandbox.look_up((await sandbox.send(profile="sandbox-eauth")).json()["id"])
    said = [line["line"] for line in found["attempts"][0]["transcript"]]
    assert len([line for line in said if line.startswith("AUTH")]) == 1
    password = sandbox.runtime.profiles["sandbox-eauth"].password
    assert password not in str(found)


async def test_nobody_else_is_given_the_port_of_the_profile_that_is_down(sandbox: Application) -> None:
    port = sandbox.runtime.profiles["sandbox-down"].port
    with socket.socket() as other:
        other.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        with pytest.raises(OSError, match="in use"):
            other.bind(("127.0.0.1", port))


async def test_the_expired_certificate_is_wrong_in_nothing_but_its_date(sandbox: Application) -> None:
    said = (await sandbox.client.post("/profiles/sandbox-tls-expired/verify", json={})).json()
    assert "certificate has expired" in said["message"]
    assert said["ip"] == "127.0.0.1"


async def test_health_is_a_warning_with_them_and_no_failure(sandbox: Application) -> None:
    answer = await sandbox.client.get("/health")
    assert (answer.status_code, answer.json()["status"]) == (200, "warn")
    checks = {check["componentId"]: check["status"] for check in answer.json()["checks"]["profiles"]}
    assert checks == dict.fromkeys(["sandbox", *(row[0] for row in BY_PROFILE)], "warn")


async def test_whoever_names_no_profile_sends_to_the_one_that_keeps(sandbox: Application) -> None:
    said = flat(await sandbox.send(), status=200)
    assert (said["profile"], said["state"]) == ("sandbox", "sent")


@pytest.mark.parametrize("name", [row[0] for row in BY_PROFILE])
async def test_with_a_relay_there_are_none_of_them(name: str, service: Application) -> None:
    problem(await service.send(profile=name), status=422, at="/profile")


async def test_with_a_relay_such_an_address_is_one_like_any_other(service: Application) -> None:
    assert flat(await service.send(to="550@anywhere.test"), status=200)["state"] == "sent"


async def test_all_that_was_opened_is_closed_at_the_end(tmp_path: Path) -> None:
    async with running(tmp_path, sandbox=True) as service:
        ports = [profile.port for profile in service.runtime.profiles.values()]
        await service.send(to="drop@anywhere.test")
    assert len(set(ports)) == 4
    for port in ports:
        with pytest.raises(ConnectionRefusedError):
            await asyncio.open_connection("127.0.0.1", port)
