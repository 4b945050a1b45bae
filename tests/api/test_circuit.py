"""Circuits and fallback through the whole application: what a relay that is down, or a wrong password, costs.

The paces are shortened, since nobody waits half a minute; how long they are is shown in tests/unit/mail/test_circuit.py.

    MAILCHUTE_BACKLOG=5000 .venv/bin/python -m pytest tests/api/test_circuit.py -k backlog
"""

import asyncio
import os
from base64 import b64encode
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from dataclasses import replace
from datetime import timedelta
from pathlib import Path
from typing import Any, ClassVar
from unittest.mock import patch

import pytest

from app.mail.outcome import MessageState
from app.mail.schedule import Rate
from tests.api.shapes import flat
from tests.support.app import PATIENCE, Application, falling_back_to, running
from tests.support.factories import refused_port
from tests.support.relay import Close, Relay, Wait

LOGIN = {"MAILCHUTE_PROFILES__RELAY__USERNAME": "bot", "MAILCHUTE_PROFILES__RELAY__PASSWORD": "wrong"}
ASK_USER = f"334 {b64encode(b'Username:').decode()}"
BACKLOG = int(os.environ.get("MAILCHUTE_BACKLOG", "120"))
LATER = timedelta(hours=3)  # what no test waits for
SOON = timedelta(milliseconds=30)


@asynccontextmanager
async def service(
    folder: Path,
    relay: Relay | None = None,
    *,
    pace: timedelta = LATER,
    look: float = 0.02,
    environ: Mapping[str, str] | None = None,
    keep: bool = False,
) -> AsyncIterator[Application]:
    with (
        patch("app.mail.circuit.FIRST_PACE", pace),
        patch("app.mail.circuit.SLOWEST_PACE", pace),
        patch("app.mail.circuit.PACE_OF_LOGINS", pace),
        patch("app.delivery.circuits.LOOK_EVERY", look),
    ):
        async with running(folder, relay, environ=environ, keep=keep) as found:
            yield found


def wants_login() -> Relay:
    return Relay(auth=["PLAIN"], auth_required=True)


def logins(relay: Relay) -> int:
    return sum(command.startswith("AUTH") for command in relay.commands)


async def waiting(found: Application, count: int = 5) -> list[str]:
    """Let messages wait while the profile is paused, each to another recipient."""
    await found.client.post("/profiles/relay/pause")
    answers = [await found.send(prefer="respond-async", to=f"r{n}@theirs.test") for n in range(count)]
    return [flat(answer, status=202)["id"] for answer in answers]


async def go(found: Application) -> None:
    await found.client.post("/profiles/relay/resume")


async def until(found: Application, id_: str, state: str) -> dict[str, Any]:
    """Wait until a message comes into a state."""
    async with asyncio.timeout(PATIENCE):
        changes = found.runtime.verdicts.follow()
        while (now := await found.look_up(id_))["state"] != state:
            await anext(changes)
    return now


async def circuit(found: Application, name: str = "relay") -> Any:
    return (await found.client.get(f"/profiles/{name}")).json()["circuit"]


async def test_five_waiting_mails_with_a_wrong_password_make_one_login(tmp_path: Path) -> None:
    async with service(tmp_path, wants_login(), environ=LOGIN) as found:
        ids = await waiting(found)
        await go(found)
        all_five = [await until(found, id_, "deferred") for id_ in ids]
        assert logins(found.relay) == 1
        assert sorted(len(one["attempts"]) for one in all_five) == [0, 0, 0, 0, 1]
        for one in all_five:
            assert (one["error_code"], one["reason"], one["class"]) == ("EAUTH", "auth_rejected", "configuration")
            assert (one["ok"], one["will_retry"]) == (False, True)
            assert "MAILCHUTE_PROFILES__RELAY__PASSWORD" in one["hint"]
            assert "will be sent once the profile works, until" in one["message"]


@pytest.mark.parametrize(
    ("mechanism", "script", "reason"),
    [
        pytest.param(mechanism, script, reason, id=id_)
        for id_, mechanism, script, reason in [
            (
                "the user name is asked for twice",
                "LOGIN",
                [("AUTH", ASK_USER), ("AUTH2", ASK_USER)],
                "unexpected_reply",
            ),
            ("three prompts", "LOGIN", [("AUTH", "334 "), ("AUTH2", "334 ")], "unexpected_reply"),
            ("the argument is asked for again", "PLAIN", [("AUTH", ASK_USER)], "unexpected_reply"),
            ("501 to the command", "LOGIN", [("AUTH", "501 5.5.2 Syntax error")], "auth_mechanism_unsupported"),
            ("501 to the password", "LOGIN", [("AUTH2", "501 5.5.4 What?")], "auth_mechanism_unsupported"),
            ("250 to the password", "PLAIN", [("AUTH", "250 Ok")], "unexpected_reply"),
            ("garbage for a challenge", "CRAM-MD5", [("AUTH", "334 !!!")], "malformed_reply"),
            ("garbage for a verdict", "PLAIN", [("AUTH", b"rubbish\r\n")], "malformed_reply"),
            ("two verdicts", "PLAIN", [("AUTH", "235 in\n535 out")], "unexpected_reply"),
            ("hung up on", "LOGIN", [("AUTH2", Close())], "connection_lost"),
            ("hung up on at once", "CRAM-MD5", [("AUTH", Close())], "connection_lost"),
            ("421", "PLAIN", [("AUTH", ("421 4.7.0 Too many errors", Close()))], "service_unavailable"),
            ("454", "PLAIN", [("AUTH", "454 4.7.0 Temporary authentication failure")], "auth_unavailable"),
            ("too many logins", "PLAIN", [("AUTH", "454 4.7.0 Too many login attempts")], "rate_limited"),
            ("not the relay", "SCRAM-SHA-1", [("AUTH2", "235 in")], "auth_server_unverified"),
        ]
    ],
)
async def test_whatever_goes_wrong_in_a_login_it_is_one_login_however_often_it_could_be_tried(
    mechanism: str, script: list[tuple[str, Any]], reason: str, tmp_path: Path
) -> None:
    environ = {**LOGIN, "MAILCHUTE_RETRY__SCHEDULE": "10ms"}
    async with service(tmp_path, Relay(auth=[mechanism]), environ=environ) as found:
        for verb, answer in script:
            found.relay.on(verb, answer)
        ids = await waiting(found, 3)
        await go(found)
        for id_ in ids:
            assert (await until(found, id_, "deferred"))["reason"] == reason
        last = flat(await found.send(), status=202)
        assert (last["reason"], last["attempts"]) == (reason, 0)
        assert (await circuit(found))["reason"] == reason
        assert logins(found.relay) == found.relay.connections == 1


async def test_a_relay_that_takes_no_more_logins_is_asked_once_more_where_they_worked_before(tmp_path: Path) -> None:
    """It may mean how many at once; the second time in a row it means that there were too many."""
    relay = Relay(auth=["PLAIN"], users={"bot": "wrong"})
    async with service(tmp_path, relay, environ={**LOGIN, "MAILCHUTE_PROFILES__RELAY__IDLE_TIMEOUT": "0"}) as found:
        assert flat(await found.send(), status=200)["state"] == "sent"
        relay.on("AUTH", "454 4.7.0 Too many login attempts")
        tried = [flat(await found.send(to=f"r{n}@theirs.test"), status=202) for n in range(4)]
        assert [one["attempts"] for one in tried] == [1, 1, 0, 0]
        assert (await circuit(found))["reason"] == "rate_limited"
        assert logins(relay) == 3


async def test_new_mail_is_told_at_once_without_an_attempt_or_a_login(tmp_path: Path) -> None:
    async with service(tmp_path, wants_login(), environ=LOGIN) as found:
        first = flat(await found.send(), status=202)
        second = flat(await found.send(prefer="wait=30"), status=202)
        assert (first["attempts"], second["attempts"]) == (1, 0)
        for name in ("state", "error_code", "reason", "class", "hint", "smtp_code", "next_attempt_at"):
            assert second[name] == first[name], name
        assert (await found.look_up(second["id"]))["attempts"] == []
        assert logins(found.relay) == 1


async def test_a_message_that_is_held_back_names_the_one_whose_attempt_failed(tmp_path: Path) -> None:
    async with wants_login() as relay:
        environ = {**LOGIN, "MAILCHUTE_PROFILES__RELAY__PORT": str(relay.port)}
        async with service(tmp_path, environ=environ) as found:
            first = flat(await found.send(), status=202)
            held = flat(await found.send(), status=202)
            details = await found.look_up(held["id"])
            assert (details["attempts"], details["blocked_by"]) == ([], first["id"])
            assert f"the attempt of message {first['id']} failed: " in details["message"]
            assert (await found.look_up(first["id"]))["blocked_by"] is None
            assert first["id"] not in first["message"]
            assert (await circuit(found))["message_id"] == first["id"]
        async with service(tmp_path, environ=environ, keep=True) as found:
            assert (await circuit(found))["message_id"] == first["id"]
            later = flat(await found.send(), status=202)
            assert (await found.look_up(later["id"]))["blocked_by"] == first["id"]
            await found.client.post(f"/messages/{held['id']}/cancel")
            assert (await found.look_up(held["id"]))["blocked_by"] is None


async def test_an_open_circuit_shows_to_whoever_runs_the_service(tmp_path: Path) -> None:
    async with service(tmp_path, wants_login(), environ=LOGIN) as found:
        assert await circuit(found) is None
        await found.send()
        shown = await circuit(found)
        assert (shown["error_code"], shown["reason"]) == ("EAUTH", "auth_rejected")
        assert shown["opened_at"] < shown["next_trial_at"]
        assert "MAILCHUTE_PROFILES__RELAY__PASSWORD" in shown["hint"]
        health = (await found.client.get("/health")).json()
        (check,) = [one for one in health["checks"]["profiles"] if one["componentId"] == "relay"]
        assert check["status"] == "warn"
        assert "auth_rejected" in check["output"]
        series = 'mailchute_circuit_open{profile="relay",reason="auth_rejected"}'
        assert f"{series} 1.0" in (await found.client.get("/metrics")).text
        found.relay.users = {"bot": "wrong"}
        await go(found)
        assert await circuit(found) is None
        assert series not in (await found.client.get("/metrics")).text


async def test_one_session_at_a_time_logs_in_until_a_login_has_succeeded(tmp_path: Path) -> None:
    goes_on = asyncio.Event()
    async with service(tmp_path, Relay(auth=["PLAIN"], users={"bot": "wrong"}), environ=LOGIN) as found:
        found.relay.on("AUTH", (Wait(goes_on), "235 2.7.0 fine"), times=1)
        ids = await waiting(found)
        await go(found)
        await found.relay.seen("AUTH")
        assert found.relay.connections == 1
        assert (await found.client.get("/profiles/relay")).json()["under_way"] == 5
        goes_on.set()
        for id_ in ids:
            await until(found, id_, "sent")
        assert found.relay.connections > 1


async def test_one_waiting_message_tries_a_login_at_its_pace(tmp_path: Path) -> None:
    async with service(tmp_path, wants_login(), pace=SOON, environ=LOGIN) as found:
        ids = await waiting(found)
        await go(found)
        await found.relay.seen("AUTH", 4)
        found.relay.users = {"bot": "wrong"}
        all_five = [await until(found, id_, "sent") for id_ in ids]
        failed = [one for message in all_five for one in message["attempts"] if one["error_code"]]
        assert logins(found.relay) == len(failed) + sum(session.authenticated for session in found.relay.sessions)
        assert all("MAIL" not in c for s in found.relay.sessions if not s.authenticated for c in s.commands)


async def test_a_relay_that_turns_us_away_is_probed_without_a_login(tmp_path: Path) -> None:
    async with service(tmp_path, Relay(auth=["PLAIN"], users={"bot": "wrong"}), pace=SOON, environ=LOGIN) as found:
        found.relay.on("GREETING", "554 5.7.1 Not you", times=3)
        ids = [flat(await found.send(), status=202)["id"] for _ in range(2)]
        sent = [await until(found, id_, "sent") for id_ in ids]
        assert sum(len(message["attempts"]) for message in sent) == 3  # the one that opened it, and one each
        turned_away, probe = found.relay.sessions[:3], found.relay.sessions[3]
        assert [session.commands for session in turned_away if "EHLO" in " ".join(session.commands)] == []
        assert [c.split()[0] for c in probe.commands] in (["EHLO"], ["EHLO", "QUIT"])


async def test_a_dead_relay_opens_it_at_the_third_and_new_mail_is_deferred_at_once(tmp_path: Path) -> None:
    environ = {"MAILCHUTE_PROFILES__RELAY__PORT": str(refused_port())}
    async with service(tmp_path, environ=environ) as found:
        answers = [flat(await found.send(to=f"r{n}@theirs.test"), status=202) for n in range(5)]
        assert [answer["attempts"] for answer in answers] == [1, 1, 1, 0, 0]
        assert {answer["reason"] for answer in answers} == {"connection_refused"}
        assert {answer["class"] for answer in answers} == {"temporary"}


async def test_a_success_between_begins_the_count_anew(tmp_path: Path) -> None:
    async with service(tmp_path) as found:
        denied = "554 5.7.1 Relay access denied"
        for n in (1, 2):
            found.relay.on("RCPT", denied, match=f"r{n}@")
            await found.send(to=f"r{n}@theirs.test")
        assert flat(await found.send(), status=200)["state"] == "sent"
        for n in (3, 4):
            found.relay.on("RCPT", denied, match=f"r{n}@")
            await found.send(to=f"r{n}@theirs.test")
        assert await circuit(found) is None
        found.relay.on("RCPT", denied, match="r5@")
        await found.send(to="r5@theirs.test")
        assert (await circuit(found))["reason"] == "relay_denied"


async def test_a_message_to_somebody_else_that_gets_through_closes_it(tmp_path: Path) -> None:
    async with service(tmp_path, pace=SOON) as found:
        found.relay.on("RCPT", "554 5.7.1 Relay access denied", match="r", times=5)
        ids = [flat(await found.send(to=f"r{n}@theirs.test"), status=202)["id"] for n in range(3)]
        for id_ in ids:
            await until(found, id_, "sent")
        assert await circuit(found) is None


async def test_a_changed_secret_closes_it(tmp_path: Path) -> None:
    secret = tmp_path / "password"
    secret.write_text("wrong\n")
    environ = {k: v for k, v in LOGIN.items() if "PASSWORD" not in k}
    environ["MAILCHUTE_PROFILES__RELAY__PASSWORD_FILE"] = str(secret)
    async with service(tmp_path, wants_login(), environ=environ) as found:
        ids = await waiting(found, 3)
        await go(found)
        for id_ in ids:
            await until(found, id_, "deferred")
        secret.write_text("secret\n")
        for id_ in ids:
            await until(found, id_, "sent")
        assert logins(found.relay) == 1 + sum(session.authenticated for session in found.relay.sessions)


async def test_changed_settings_close_it_when_they_are_read_again(tmp_path: Path) -> None:
    async with service(tmp_path, wants_login(), look=60.0, environ=LOGIN) as found:
        id_ = flat(await found.send(), status=202)["id"]
        settings = found.runtime.settings
        mended = replace(settings.profiles["relay"], password="secret")
        found.runtime.reload(replace(settings, profiles={"relay": mended}))
        await until(found, id_, "sent")


@pytest.mark.parametrize("act", ["verify", "resume"])
async def test_whoever_mended_it_closes_it(tmp_path: Path, act: str) -> None:
    async with service(tmp_path, wants_login(), environ=LOGIN) as found:
        ids = [flat(await found.send(), status=202)["id"] for _ in range(3)]
        found.relay.users = {"bot": "wrong"}
        assert (await found.client.post(f"/profiles/relay/{act}")).status_code == 200
        for id_ in ids:
            await until(found, id_, "sent")


async def test_a_diagnosis_that_fails_leaves_it_open(tmp_path: Path) -> None:
    async with service(tmp_path, wants_login(), environ=LOGIN) as found:
        await found.send()
        before = await circuit(found)
        assert (await found.client.post("/profiles/relay/verify")).json()["ok"] is False
        assert await circuit(found) == before


async def test_a_message_behind_an_open_circuit_expires_in_its_time_and_names_the_failure(tmp_path: Path) -> None:
    async with service(tmp_path, wants_login(), environ=LOGIN) as found:
        await found.send()
        late = flat(await found.send(expires_in=1), status=202)
        ended = await until(found, late["id"], "failed")
        assert ended["error_code"] == "EEXPIRED"
        assert "EAUTH/auth_rejected" in ended["message"]
        assert ended["attempts"] == []
        assert logins(found.relay) == 1


async def test_it_stands_after_a_restart_and_no_login_is_made(tmp_path: Path) -> None:
    relay = wants_login()
    async with relay:
        environ = {**LOGIN, "MAILCHUTE_PROFILES__RELAY__PORT": str(relay.port)}
        async with service(tmp_path, environ=environ) as found:
            first = flat(await found.send(), status=202)
        async with service(tmp_path, environ=environ, keep=True) as found:
            second = flat(await found.send(), status=202)
            assert (second["reason"], second["attempts"]) == ("auth_rejected", 0)
            await found.client.post(f"/messages/{first['id']}/retry", headers={"Prefer": "wait=5"})
            assert logins(relay) == 1
        relay.users = {"bot": "right"}
        environ["MAILCHUTE_PROFILES__RELAY__PASSWORD"] = "right"
        async with service(tmp_path, environ=environ, keep=True) as found:
            for id_ in (first["id"], second["id"]):
                await until(found, id_, "sent")


@pytest.mark.timeout(60 + BACKLOG / 20)
async def test_a_backlog_drains_with_bounded_concurrency_from_one_connection_on_and_fresh_mail_gets_in(
    tmp_path: Path,
) -> None:
    goes_on = asyncio.Event()
    relay = Relay()
    environ = {"MAILCHUTE_PROFILES__RELAY__MAX_CONNECTIONS": "3"}
    async with service(tmp_path, relay, environ=environ) as found:
        relay.on("GREETING", "554 5.7.1 Not now")
        await waiting(found, BACKLOG)
        await go(found)
        async with asyncio.timeout(PATIENCE + BACKLOG / 50):
            while found.runtime.census.of(MessageState.DEFERRED) != BACKLOG:
                await asyncio.sleep(0.001)
        turned_away = relay.connections
        relay.on("GREETING", "220 relay.test ESMTP")
        relay.on("CONTENT", (Wait(goes_on), "250 2.0.0 taken"), times=1)
        await go(found)
        await relay.mail()
        assert (await found.client.get("/profiles/relay")).json()["pool"]["taken"] == 1
        fresh = asyncio.create_task(found.send(to="fresh@theirs.test", prefer="wait=30"))
        goes_on.set()
        assert flat(await fresh, status=200)["state"] == "sent"
        left = found.runtime.census.waiting
        assert left > BACKLOG // 2, "the fresh mail waited for most of the backlog"
        async with asyncio.timeout(PATIENCE + BACKLOG / 50):
            while found.runtime.census.waiting:
                await asyncio.sleep(0.001)
        assert 1 < relay.connections - turned_away <= 3 + BACKLOG // 100  # of which each carries a hundred
        assert len(relay.mails) == BACKLOG + 1


async def test_a_dead_relay_leaves_the_others_alone(tmp_path: Path) -> None:
    """It takes connections and says nothing, which is the worst."""
    silent = asyncio.Event()
    async with Relay(greeting=(Wait(silent), "220 at last")) as dead:
        environ = {
            "MAILCHUTE_PROFILES__DEAD__HOST": dead.host,
            "MAILCHUTE_PROFILES__DEAD__PORT": str(dead.port),
            "MAILCHUTE_DEFAULT_PROFILE": "relay",
        }
        async with service(tmp_path, environ=environ) as found:
            for _ in range(100):
                await found.send(profile="dead", prefer="respond-async")
            await dead.connected(10)
            for _ in range(50):
                assert flat(await found.send(), status=200)["state"] == "sent"
            assert (await found.client.get("/profiles/dead")).json()["pool"]["taken"] == 10
            silent.set()


class TestFallback:
    """Two profiles: `relay`, which is in trouble, and `other`, which takes over."""

    @asynccontextmanager
    async def two(
        self, folder: Path, relay: Relay | None = None, *more: Mapping[str, str], **settings: str
    ) -> AsyncIterator[tuple[Application, Relay]]:
        async with Relay() as other:
            environ = {**falling_back_to(other), **settings}
            for each in more:
                environ |= each
            async with service(folder, relay, environ=environ) as found:
                yield found, other

    async def test_what_fails_before_there_is_a_session_goes_at_once_through_the_other(self, tmp_path: Path) -> None:
        async with self.two(tmp_path, MAILCHUTE_PROFILES__RELAY__PORT=str(refused_port())) as (found, other):
            sent = flat(await found.send(), status=200)
            assert (sent["state"], sent["attempts"], sent["profile"]) == ("sent", 2, "other")
            first, second = (await found.look_up(sent["id"]))["attempts"]
            assert (first["profile"], first["reason"]) == ("relay", "connection_refused")
            assert (second["profile"], second["error_code"], second["port"]) == ("other", None, other.port)

    async def test_behind_an_open_circuit_the_other_is_the_first(self, tmp_path: Path) -> None:
        async with self.two(tmp_path, wants_login(), LOGIN) as (found, other):
            first, second = flat(await found.send(), status=200), flat(await found.send(), status=200)
            assert (first["attempts"], second["attempts"]) == (2, 1)
            (attempt,) = (await found.look_up(second["id"]))["attempts"]
            assert attempt["profile"] == "other"
            assert (logins(found.relay), len(other.mails)) == (1, 2)

    async def test_530_at_mail_is_the_profiles_trouble_too(self, tmp_path: Path) -> None:
        async with self.two(tmp_path, Relay(auth_required=True)) as (found, _):
            assert flat(await found.send(), status=200)["attempts"] == 2

    @pytest.mark.parametrize(
        ("verb", "answer", "status", "state"),
        [
            ("RCPT", "550 5.1.1 No such mailbox", 424, "failed"),
            ("MAIL", "550 5.7.1 Not from you", 424, "failed"),
            ("CONTENT", "554 5.7.1 Spam", 424, "failed"),
            ("MAIL", "450 4.3.0 Later", 202, "deferred"),
            ("RCPT", "450 4.2.0 Later", 202, "deferred"),
            ("CONTENT", "451 4.3.0 Later", 202, "deferred"),
            ("MAIL", (Close(),), 202, "deferred"),
            ("CONTENT", (Close(),), 202, "in_doubt"),
        ],
    )
    async def test_what_is_the_messages_own_stays_with_the_first(
        self, tmp_path: Path, verb: str, answer: Any, status: int, state: str
    ) -> None:
        async with self.two(tmp_path) as (found, other):
            found.relay.on(verb, answer)
            answered = flat(await found.send(), status=status)
            assert (answered["state"], answered["attempts"], other.connections) == (state, 1, 0)

    async def test_where_both_fail_it_waits_with_the_last_failure(self, tmp_path: Path) -> None:
        port = str(refused_port())
        async with self.two(tmp_path, wants_login(), LOGIN, MAILCHUTE_PROFILES__OTHER__PORT=port) as (found, _):
            answered = flat(await found.send(), status=202)
            assert (answered["reason"], answered["attempts"], answered["profile"]) == ("connection_refused", 2, "relay")

    async def test_where_both_circuits_are_open_nothing_is_tried(self, tmp_path: Path) -> None:
        settings = {**LOGIN, **{key.replace("RELAY", "OTHER"): value for key, value in LOGIN.items()}}
        async with self.two(tmp_path, wants_login(), settings) as (found, other):
            other.auth, other.auth_required = ["PLAIN"], True
            first, second = flat(await found.send(), status=202), flat(await found.send(), status=202)
            assert (first["attempts"], second["attempts"]) == (2, 0)
            assert (logins(found.relay), logins(other)) == (1, 1)

    async def test_a_paused_profile_takes_nothing_over(self, tmp_path: Path) -> None:
        async with self.two(tmp_path, MAILCHUTE_PROFILES__RELAY__PORT=str(refused_port())) as (found, other):
            await found.client.post("/profiles/other/pause")
            assert flat(await found.send(), status=202)["state"] == "deferred"
            assert other.connections == 0

    async def test_what_a_relay_may_have_already_is_never_given_to_another(self, tmp_path: Path) -> None:
        retry = {"MAILCHUTE_PROFILES__RELAY__IN_DOUBT": "retry", "MAILCHUTE_RETRY__SCHEDULE": "50ms"}
        async with self.two(tmp_path, None, retry) as (found, other):
            found.relay.on("CONTENT", (Close(),), times=1)
            found.relay.on("GREETING", (Close(),), match="")
            found.relay.on("GREETING", "220 hello", times=1)
            answered = flat(await found.send(), status=202)
            await found.relay.connected(3)
            assert answered["error_code"] == "EINDOUBT"
            assert other.connections == 0


class TestInDoubt:
    """`in_doubt = "retry"`: the same bytes again, and never called failed."""

    RETRY: ClassVar = {"MAILCHUTE_PROFILES__RELAY__IN_DOUBT": "retry", "MAILCHUTE_RETRY__SCHEDULE": "50ms"}

    async def test_it_is_sent_again_with_the_same_bytes_and_message_id(self, tmp_path: Path) -> None:
        async with service(tmp_path, environ=self.RETRY) as found:
            found.relay.on("CONTENT", (Close(),), times=2)
            answered = flat(await found.send(), status=202)
            assert (answered["state"], answered["error_code"], answered["class"]) == ("deferred", "EINDOUBT", "unknown")
            assert answered["will_retry"] is True
            assert "may arrive twice" in answered["message"]
            assert answered["hint"].endswith("; sent again, it may arrive twice.")
            ended = await until(found, answered["id"], "sent")
            assert [attempt["handover"] for attempt in ended["attempts"]] == [True, True, True]
            once, twice, thrice = (mail.content for mail in found.relay.mails)
            assert once == twice == thrice
            assert answered["message_id"].encode() in once

    @pytest.mark.parametrize("then", ["450 4.2.0 Later", "550 5.1.1 No such mailbox"])
    async def test_what_may_have_arrived_is_in_doubt_at_the_end_and_not_failed(self, tmp_path: Path, then: str) -> None:
        async with service(tmp_path, environ=self.RETRY) as found:
            found.relay.on("RCPT", then)
            found.relay.on("RCPT", "250 2.1.5 Ok", times=1)
            found.relay.on("CONTENT", (Close(),))
            id_ = flat(await found.send(expires_in=1), status=202)["id"]
            ended = await until(found, id_, "in_doubt")
            assert (ended["error_code"], ended["final"]) == ("EINDOUBT", True)
            assert len(ended["attempts"]) > 1


async def test_a_relay_that_bears_few_connections_is_asked_by_few(tmp_path: Path) -> None:
    async with service(tmp_path, environ={"MAILCHUTE_RETRY__SCHEDULE": "20ms"}) as found:
        relay = found.relay
        most: list[int] = []

        class Busy(list[Any]):  # an answer is made when it is played
            def __iter__(self) -> Any:
                most.append(sum(not dialogue.task.done() for dialogue in relay.dialogues))
                return iter(("421 4.7.0 Too many connections", Close()) if most[-1] > 2 else ("220 relay.test",))

        relay.greeting = Busy()
        ids = await waiting(found, 40)
        await go(found)
        for id_ in ids:
            await until(found, id_, "sent")
        assert await circuit(found) is None
        assert found.runtime.worker._lanes["relay"].flow.limit in (1, 2)
        assert max(most) > 2  # so it had to learn it


async def test_a_rate_is_kept_exactly_under_concurrency(tmp_path: Path) -> None:
    async with service(tmp_path, environ={"MAILCHUTE_PROFILES__RELAY__RATE": "8/s"}) as found:
        clock, begun = asyncio.get_running_loop().time, []

        class Noted(list[Any]):
            def __iter__(self) -> Any:
                begun.append(clock())
                return iter(("250 2.1.0 Ok",))

        found.relay.on("MAIL", Noted())
        began = clock()
        answers = await asyncio.gather(*(found.send(prefer="respond-async") for _ in range(20)))
        for answer in answers:
            await until(found, flat(answer, status=202)["id"], "sent")
        assert len(begun) == 20
        # The relay hears of them later, some by more than others; to the millisecond: tests/unit/delivery/test_flow.py.
        assert all(sum(at <= other < at + 0.8 for other in begun) <= 8 for at in begun)
        assert 1.9 < clock() - began < 6  # and no slower than it must be


async def test_a_rate_counts_what_began_before_a_restart_however_much_waits(tmp_path: Path) -> None:
    environ = {"MAILCHUTE_PROFILES__RELAY__RATE": "3/h"}
    async with service(tmp_path, environ=environ) as found:
        for n in range(7):
            id_ = flat(await found.send(subject=f"no. {n}", prefer="respond-async"), status=202)["id"]
            await until(found, id_, "sent" if n < 3 else "queued")
    with patch("app.store.history.BEGUN_PAGE", 2):
        async with service(tmp_path, environ=environ, keep=True) as found:
            assert found.runtime.worker.meters()["relay"].free == 0
            assert flat(await found.send(prefer="respond-async"), status=202)["state"] == "queued"
    async with service(tmp_path, environ={"MAILCHUTE_PROFILES__RELAY__RATE": "4/h"}, keep=True) as found:
        await found.relay.mail()
        assert found.runtime.worker.meters()["relay"].free == 0
        assert found.relay.subjects == ["no. 3"]


async def test_a_rate_that_is_set_after_a_restart_counts_what_began_before_it(tmp_path: Path) -> None:
    async with service(tmp_path) as found:
        for _ in range(3):
            flat(await found.send(), status=200)
    async with service(tmp_path, keep=True) as found:
        settings, relay = found.runtime.settings, found.runtime.settings.profiles["relay"]
        flat(await found.send(), status=200)
        for count, place in ((4, 0), (6, 1), (4, 0)):
            limited = replace(relay, rate=Rate(count, 3600.0))
            found.runtime.reload(replace(settings, profiles={"relay": limited}))
            await found.runtime._remembering  # type: ignore[misc]
            meter = found.runtime.worker.meters()["relay"]
            async with asyncio.timeout(PATIENCE):
                while place and not meter.free:
                    await asyncio.sleep(min(meter.next_free_in, 1.0))
            assert meter.free == place
