"""Two things at once: what the other one changes in the meantime takes nothing back that a relay has said.

A circuit that opens or closes, settings that are read again, an operator's act, a store that cannot for a moment, a
clock that is put back: each while something is under way that began before it.
"""

import asyncio
import sqlite3
from collections.abc import Mapping
from contextlib import closing
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from unittest.mock import patch

import pytest

from app.api.live import _lines
from app.mail.schedule import Rate
from app.runtime import Runtime
from app.store.catalog import ProfileState
from tests.api.shapes import flat
from tests.api.test_circuit import LOGIN, SOON, circuit, logins, service, until, wants_login
from tests.api.test_more_recipients import EVERYBODY, Bounded
from tests.api.test_stopped import holds, rows, with_another
from tests.support.app import PATIENCE, Application, falling_back_to, locked, running
from tests.support.factories import refused_port
from tests.support.relay import Close, Relay, Wait

HOUR = timedelta(hours=1)
WITHOUT_A_TIME = """SELECT address FROM recipients JOIN messages ON id = recipients.message_id
    WHERE recipients.state = 'pending' AND due_at IS NULL"""


async def opens(found: Application, reason: str) -> None:
    async with asyncio.timeout(PATIENCE):
        while (now := await circuit(found)) is None or now["reason"] != reason:
            await asyncio.sleep(0.01)


class TestFallback:
    @pytest.mark.parametrize("said", ["250 2.0.0 Ok", "lost", "550 5.1.1 Nobody"])
    async def test_nobody_of_whom_the_relay_has_spoken_is_given_to_another(self, tmp_path: Path, said: str) -> None:
        """The circuit opens while the verdict is waited for; bob is deferred, which alone would try another."""
        verdict = asyncio.Event()
        async with with_another(tmp_path, Relay(), {}) as (found, other):
            found.relay.on("RCPT", "450 4.2.0 Busy", match="bob@")
            if said.startswith("550"):
                found.relay.on("RCPT", said, match="ann@")
                found.relay.on("MAIL", (Wait(verdict), "250 2.1.0 Ok"), times=1)
            else:
                found.relay.on("CONTENT", (Wait(verdict), Close() if said == "lost" else said), times=1)
            both = ["ann@theirs.test", "bob@theirs.test"]
            id_ = flat(await found.send(to=both, prefer="respond-async"), status=202)["id"]
            await (found.relay.seen("MAIL") if said.startswith("550") else found.relay.mail())
            found.relay.on("GREETING", "554 5.3.2 Go away")
            flat(await found.send(to="carl@theirs.test"), status=200)  # through the other
            assert await circuit(found) is not None
            verdict.set()
            now = await until(found, id_, "deferred")
            assert len(now["attempts"]) == 1
            assert [address for mail in other.mails for address in mail.rcpt_to] == ["carl@theirs.test"]
            ann = {one["address"]: one["state"] for one in now["recipients"]}["ann@theirs.test"]
            assert ann == {"2": "sent", "l": "in_doubt", "5": "rejected"}[said[0]]

    async def test_whoever_was_deferred_by_name_has_a_time_where_the_rest_cannot_follow(self, tmp_path: Path) -> None:
        environ = {"MAILCHUTE_PROFILES__RELAY__MAX_MESSAGES_PER_CONNECTION": "1"}
        async with with_another(tmp_path, Relay(), environ) as (found, _):
            found.relay.on("RCPT", Bounded(found.relay, 1, "452 4.5.3 Too many"))  # type: ignore[arg-type]
            found.relay.on("RCPT", "450 4.2.0 Busy", match="r0@")
            found.relay.on("GREETING", "554 5.3.2 Go away")
            found.relay.on("GREETING", "220 relay.test ESMTP", times=1)
            said = flat(await found.send(to=EVERYBODY[:3]), status=202)
            assert (said["state"], said["profile"], said["accepted"]) == ("deferred", "relay", EVERYBODY[1:2])
            assert said["next_attempt_at"] is not None
            assert rows(tmp_path, WITHOUT_A_TIME) == []


class TestCircuit:
    async def test_it_is_tried_though_the_clock_was_put_back(self, tmp_path: Path) -> None:
        offset = timedelta()
        with patch.object(Runtime, "now", lambda self: datetime.now(UTC) + offset):
            async with service(tmp_path, pace=timedelta(milliseconds=500)) as found:
                found.relay.on("GREETING", "554 5.3.2 Go away", times=1)
                await found.send(prefer="wait=5")
                assert await circuit(found) is not None
                offset = -timedelta(days=1)
                async with asyncio.timeout(PATIENCE):
                    while await circuit(found) is not None:
                        await asyncio.sleep(0.05)

    async def test_a_trial_that_the_store_could_not_begin_is_begun_when_it_can(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """What waits looks for itself only in an hour, and the message that would be tried next is gone."""
        monkeypatch.setattr("app.store.database.BUSY_SECONDS", 0.05)
        monkeypatch.setattr("app.delivery.carrier.AT_LEAST", HOUR)
        async with service(tmp_path, wants_login(), pace=timedelta(seconds=1), environ=LOGIN) as found:
            gone, id_ = [flat(await found.send(), status=202)["id"] for _ in range(2)]
            assert (await found.client.post(f"/messages/{gone}/cancel")).json()["state"] == "cancelled"
            found.relay.users = {"bot": "wrong"}
            failed: list[object] = []
            letting, worker = found.runtime.worker._circuits._let_try, found.runtime.worker

            async def noted(profile: str) -> None:
                try:
                    await letting(profile)
                except Exception as error:
                    failed.append(error)
                    raise

            with patch.object(worker._circuits, "_let_try", noted), locked(tmp_path):
                await holds(lambda: bool(failed))
            await until(found, id_, "sent")

    async def test_a_fallbacks_is_tried_by_what_waits_for_it(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """Both are open; the fallback's, which takes a message to try, has none of its own."""
        monkeypatch.setattr("app.delivery.carrier.AT_LEAST", HOUR)
        async with Relay(auth=["PLAIN"], auth_required=True) as other:
            login = {"USERNAME": "bot", "PASSWORD": "wrong"}
            environ = {**falling_back_to(other), **{f"MAILCHUTE_PROFILES__OTHER__{k}": v for k, v in login.items()}}
            async with service(tmp_path, pace=timedelta(milliseconds=500), environ=environ) as found:
                found.relay.on("GREETING", "554 5.3.2 Go away")
                gone, id_ = [flat(await found.send(), status=202)["id"] for _ in range(2)]
                assert (await found.client.post(f"/messages/{gone}/cancel")).json()["state"] == "cancelled"
                other.users = {"bot": "wrong"}
                await until(found, id_, "sent")

    async def test_a_probe_of_an_earlier_one_says_nothing_of_a_refused_login(self, tmp_path: Path) -> None:
        late = asyncio.Event()
        async with service(tmp_path, wants_login(), pace=SOON, environ=LOGIN) as found:
            found.relay.on("GREETING", (Wait(late), "220 relay.test ESMTP"), times=1)
            found.relay.on("GREETING", "554 5.3.2 Go away", times=1)
            await found.send(prefer="wait=5")
            await found.relay.connected(2)  # the probe, which is kept waiting
            with patch("app.mail.circuit.PACE_OF_LOGINS", HOUR):
                await found.client.post("/profiles/relay/resume")
                await opens(found, "auth_rejected")
                late.set()
                await holds(found.relay.dialogues[1].task.done)
                for _ in range(50):  # turns of the loop in which the probe ends
                    await asyncio.sleep(0)
                await found.runtime.outbox.check()
                await opens(found, "auth_rejected")
            assert logins(found.relay) == 1


class TestSettings:
    async def test_a_rate_that_is_set_while_an_attempt_is_under_way_loses_no_place(self, tmp_path: Path) -> None:
        verdict = asyncio.Event()
        async with running(tmp_path) as found:
            found.relay.on("CONTENT", (Wait(verdict), "250 2.0.0 Ok"), times=1)
            settings = found.runtime.settings
            first = flat(await found.send(prefer="respond-async"), status=202)["id"]
            await found.relay.mail()
            limited = replace(settings.profiles["relay"], rate=Rate(1, 0.2))
            found.runtime.reload(replace(settings, profiles={"relay": limited}))
            verdict.set()
            assert (await found.settled(first))["state"] == "sent"
            second = flat(await found.send(prefer="respond-async"), status=202)["id"]
            assert (await found.settled(second))["state"] == "sent"

    async def test_what_found_its_profile_gone_goes_as_soon_as_it_is_back(self, tmp_path: Path) -> None:
        async with running(tmp_path, environ={"MAILCHUTE_RETRY__SCHEDULE": "1s, 2h"}) as found:
            found.relay.on("RCPT", "450 4.2.0 Busy", times=1)
            id_ = flat(await found.send(expires_in=3600), status=202)["id"]
            settings = found.runtime.settings
            another = replace(settings.profiles["relay"], name="new")
            found.runtime.reload(replace(settings, profiles={"new": another}))
            async with asyncio.timeout(PATIENCE):
                while (await found.look_up(id_))["reason"] != "profile_unknown":
                    await asyncio.sleep(0.05)
            found.runtime.reload(settings)
            await until(found, id_, "sent")

    async def test_what_waits_for_a_profile_that_is_gone_expires_in_its_time(self, tmp_path: Path) -> None:
        environ = {"MAILCHUTE_PROFILES__RELAY__PORT": str(refused_port()), "MAILCHUTE_RETRY__SCHEDULE": "50ms, 2h"}
        async with running(tmp_path, environ=environ) as found:
            id_ = flat(await found.send(expires_in=5), status=202)["id"]
        new = {"HOST": "127.0.0.1", "PORT": "25", "TLS": "none"}
        environ = {f"MAILCHUTE_PROFILES__NEW__{key}": value for key, value in new.items()}
        with patch("tests.support.app._profile", lambda relay: {}):
            async with running(
                tmp_path, environ={**environ, "MAILCHUTE_RETRY__SCHEDULE": "50ms, 2h"}, keep=True
            ) as found:
                async with asyncio.timeout(10):
                    while not (ended := await found.look_up(id_))["final"]:
                        await asyncio.sleep(0.05)
        assert ended["error_code"] == "EEXPIRED"


class TestActs:
    async def test_what_was_claimed_when_it_was_paused_is_not_begun(self, tmp_path: Path) -> None:
        async with running(tmp_path, environ={"MAILCHUTE_RETRY__SCHEDULE": "1h"}) as found:
            found.relay.on("RCPT", "450 4.2.0 Busy", times=1)
            id_ = flat(await found.send(), status=202)["id"]
            worker, catalog = found.runtime.worker, found.runtime.control._catalog
            read_states, nudge = catalog.states, worker.nudge
            with closing(sqlite3.connect(tmp_path / "mailchute.db", isolation_level=None)) as stray:

                def slow(profile: str) -> None:  # the claim that this wakes takes its time
                    stray.execute("BEGIN EXCLUSIVE")
                    nudge(profile)

                async def states() -> Mapping[str, ProfileState]:
                    read = await read_states()
                    with patch.object(worker, "nudge", slow):
                        await found.client.post(f"/messages/{id_}/retry", headers={"Prefer": "respond-async"})
                    for _ in range(50):
                        await asyncio.sleep(0)
                    return read

                with patch.object(catalog, "states", states):
                    paused = await found.client.post("/profiles/relay/pause")
                assert paused.json()["paused_at"] is not None
                stray.execute("ROLLBACK")
            await until(found, id_, "deferred")
            assert found.relay.mails == []
            assert (await found.client.post("/profiles/relay/resume")).status_code == 200
            assert len((await until(found, id_, "sent"))["attempts"]) == 2

    async def test_what_may_have_arrived_does_not_end_as_cancelled(self, tmp_path: Path) -> None:
        environ = {"MAILCHUTE_PROFILES__RELAY__IN_DOUBT": "retry", "MAILCHUTE_RETRY__SCHEDULE": "1h"}
        async with running(tmp_path, environ=environ) as found:
            found.relay.on("CONTENT", (Close(),), times=1)
            said = flat(await found.send(), status=202)
            assert (said["state"], said["error_code"]) == ("deferred", "EINDOUBT")
            answer = await found.client.post(f"/messages/{said['id']}/cancel")
            now = flat(answer, status=202)
            assert (now["state"], now["error_code"], now["will_retry"]) == ("in_doubt", "EINDOUBT", False)

    async def test_settling_what_is_in_doubt_leaves_the_others_time_as_it_was(self, tmp_path: Path) -> None:
        async with running(tmp_path, environ={"MAILCHUTE_RETRY__SCHEDULE": "1h"}) as found:
            found.relay.on("RCPT", "450 4.2.0 Busy", match="bob@")
            found.relay.on("CONTENT", (Close(),), times=1)
            both = ["ann@theirs.test", "bob@theirs.test"]
            said = flat(await found.send(to=both, expires_in=7200), status=202)
            was = rows(tmp_path, "SELECT state, due_at, expires_at FROM messages")
            answer = await found.client.post(f"/messages/{said['id']}/resolve", json={"as": "sent"})
            now = flat(answer, status=202)
            assert (now["state"], now["accepted"], now["error_code"]) == ("deferred", both[:1], "EENVELOPE")
            assert rows(tmp_path, "SELECT state, due_at, expires_at FROM messages") == was

    async def test_whoever_follows_and_goes_at_once_is_forgotten(self, tmp_path: Path) -> None:
        async with running(tmp_path) as found:
            lines = _lines(found.runtime.verdicts)
            await anext(lines)
            assert len(found.runtime.verdicts._followers) == 1
            await lines.aclose()  # type: ignore[attr-defined]
            assert len(found.runtime.verdicts._followers) == 0
