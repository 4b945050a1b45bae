"""What systemd is told (sd_notify(3)), and reloading by command: a supervisor of the test's own listens."""

import asyncio
import os
import secrets
import signal
import socket
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from app import __version__
from tests.support.relay import Relay
from tests.support.service import MAILCHUTE, PATIENCE, Service, run


class Supervisor:
    """One that notes what it is told."""

    def __init__(self, address: str) -> None:
        self.socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        self.socket.setblocking(False)
        self.socket.bind("\0" + address[1:] if address.startswith("@") else address)
        self.settings = {"NOTIFY_SOCKET": address}

    async def told(self) -> dict[str, str]:
        """Wait for the next message, and return its assignments."""
        async with asyncio.timeout(PATIENCE):
            message = await asyncio.get_running_loop().sock_recv(self.socket, 4096)
        return dict(line.split("=", 1) for line in message.decode().splitlines())


@pytest.fixture
def folder() -> Iterator[Path]:
    with tempfile.TemporaryDirectory(prefix="mailchute-") as name:
        yield Path(name)


@pytest.fixture(params=["path", "abstract"])
def supervisor(request: pytest.FixtureRequest, folder: Path) -> Iterator[Supervisor]:
    address = f"{folder}/notify" if request.param == "path" else f"@mailchute-{secrets.token_hex(8)}"
    supervisor = Supervisor(address)
    yield supervisor
    supervisor.socket.close()


async def test_it_is_told_of_the_start_each_reload_and_the_stop(supervisor: Supervisor, folder: Path) -> None:
    async with Service(supervisor.settings, folder=folder) as service:
        ready = await supervisor.told()
        address = service.base.removeprefix("http://")
        assert ready == {"READY": "1", "STATUS": f"Listening on {address}"}
        service.process.send_signal(signal.SIGHUP)
        reloading = await supervisor.told()
        assert reloading["RELOADING"] == "1"
        assert reloading["MONOTONIC_USEC"].isdecimal()
        assert await supervisor.told() == ready
        (folder / "mailchute.toml").write_text("listn = 1")
        service.process.send_signal(signal.SIGHUP)
        assert (await supervisor.told())["RELOADING"] == "1"
        refused = await supervisor.told()
        assert (refused["READY"], "refused" in refused["STATUS"]) == ("1", True)
        assert await service.stop() == 0
        assert (await supervisor.told())["STOPPING"] == "1"


async def test_its_watchdog_gets_signs_of_life(supervisor: Supervisor, folder: Path) -> None:
    async with Service({**supervisor.settings, "WATCHDOG_USEC": "100000"}, folder=folder):
        seen = [await supervisor.told() for _ in range(4)]
    assert sum("WATCHDOG" in said for said in seen) >= 3


@pytest.mark.parametrize(
    "settings",
    [
        pytest.param({"WATCHDOG_USEC": "100000", "WATCHDOG_PID": "1"}, id="another process's"),
        pytest.param({"WATCHDOG_USEC": "0"}, id="none"),
        pytest.param({"WATCHDOG_USEC": "soon"}, id="no number"),
        pytest.param({}, id="not set"),
    ],
)
async def test_a_watchdog_that_is_not_ours_gets_none(settings: dict[str, str], folder: Path) -> None:
    supervisor = Supervisor(f"{folder}/notify")
    async with Service({**supervisor.settings, **settings}, folder=folder) as service:
        assert await service.stop() == 0
        told = [await supervisor.told() for _ in range(2)]
    assert [sorted(said) for said in told] == [["READY", "STATUS"], ["STATUS", "STOPPING"]]
    supervisor.socket.close()


@pytest.mark.parametrize("address", ["/nowhere/notify", "@nobody-listens-here", "vsock:2:1234", "relative"])
async def test_a_supervisor_that_is_not_there_stops_nothing(address: str) -> None:
    async with Service({"NOTIFY_SOCKET": address, "WATCHDOG_USEC": "100000"}) as service:
        assert (await service.send()).json()["state"] == "sent"
        assert await service.stop() == 0


async def test_the_start_is_one_event_with_what_an_operator_looks_for() -> None:
    async with Relay() as relay, Service({"SMTP_HOST": relay.host, "SMTP_PORT": f"{relay.port}"}) as service:
        started = await service.logged("serving.started")
        assert started["version"] == __version__
        assert f"http://{started['listen']}" == service.base
        assert (started["profiles"], started["sandbox"]) == (["default"], False)


async def test_reload_reads_the_settings_again_or_says_what_is_wrong(folder: Path) -> None:
    file = folder / "mailchute.toml"
    async with Relay() as relay:
        corp = f'[profiles.corp]\nhost = "{relay.host}"\nport = {relay.port}\ntls = "none"\n'
        file.write_text(corp)
        async with Service({}, folder=folder) as service:
            file.write_text(corp + corp.replace("corp", "other") + "[profiles.other.timeouts]\nmail = 5\n")
            refused = await run(MAILCHUTE, "reload", folder=folder)
            assert (refused.code, refused.out) == (2, "")
            assert "mailchute: default_profile is not set, and there are several profiles" in refused.err
            assert (await service.http.get("/profiles/other")).status_code == 404
            file.write_text(f'default_profile = "corp"\ndocs = false\n{corp}{corp.replace("corp", "other")}')
            done = await run(MAILCHUTE, "reload", folder=folder)
            assert (done.code, done.out) == (0, "Reloaded: profiles corp, other\n")
            assert done.err == "warning: docs has changed, which takes a restart\n"
            assert (await service.http.get("/profiles/other")).status_code == 200
            assert (await service.http.post("/reload")).status_code == 404  # the operator's alone
            # A secret that only the service can read, such as a credential of systemd's, is not read by the command.
            unreadable = {"MAILCHUTE_API_KEY_FILE": "/nowhere/api-key"}
            assert (await run(MAILCHUTE, "reload", folder=folder, settings=unreadable)).code == 0
        nobody = await run(MAILCHUTE, "reload", folder=folder)
        assert (nobody.code, "there is nothing to reload" in nobody.err) == (1, True)


async def test_the_level_of_the_log_is_a_setting() -> None:
    async with Service({"MAILCHUTE_LOG_LEVEL": "Warning"}) as service:
        assert (await service.send()).json()["state"] == "sent"
        assert (await service.send(to="550@theirs.test")).json()["state"] == "failed"
        lost = await service.logged("delivery.failed")
        assert lost["level"] == "warning"
        assert {line["level"] for line in service.log} == {"warning"}
    wrong = await run(MAILCHUTE, "serve", "--check", folder=Path(os.curdir), settings={"MAILCHUTE_LOG_LEVEL": "loud"})
    assert wrong.code == 2
    assert "MAILCHUTE_LOG_LEVEL: " in wrong.err
    assert "'info', 'warning' or 'error'" in wrong.err


@pytest.mark.parametrize(
    ("fields", "event", "level"),
    [
        pytest.param({"to": "ann@theirs.test"}, "delivery.sent", "info", id="sent"),
        pytest.param({"to": "451@theirs.test"}, "delivery.deferred", "info", id="deferred"),
        pytest.param({"to": "550@theirs.test"}, "delivery.failed", "warning", id="failed"),
        pytest.param({"to": "550@theirs.test, ann@theirs.test"}, "delivery.partial", "warning", id="partial"),
        pytest.param({"to": "drop@theirs.test"}, "delivery.in_doubt", "warning", id="in doubt"),
        pytest.param({"to": "451@theirs.test", "expires_in": 1}, "delivery.failed", "warning", id="expired"),
        pytest.param({"profile": "sandbox-eauth"}, "circuit.opened", "warning", id="circuit"),
    ],
)
async def test_every_event_of_a_request_has_its_id_and_a_lost_mail_is_a_warning(
    fields: dict[str, Any], event: str, level: str
) -> None:
    async with Service() as service:
        answer = await service.send(**fields)
        logged = await service.logged(event)
        assert logged["level"] == level
        if "expires_in" not in fields:
            assert logged["request_id"] == answer.headers["x-request-id"]
        assert "theirs.test" not in str(logged)


async def test_a_refused_caller_is_logged_once_a_minute_without_the_key() -> None:
    key = "0123456789abcdef-right"
    async with Service({"MAILCHUTE_API_KEY": key}) as service:
        wrong = {"Authorization": "Bearer 0123456789abcdef-wrong"}
        answers = [await service.http.get("/messages", headers=wrong) for _ in range(5)]
        answers.append(await service.http.post("/send", json={}))
        assert {answer.status_code for answer in answers} == {401}
        logged = await service.logged("http.unauthenticated")
        assert (logged["peer"], logged["path"], logged["key"], logged["times"]) == (
            "127.0.0.1",
            "/messages",
            "wrong",
            1,
        )
        assert logged["request_id"] == answers[0].headers["x-request-id"]
        await service.stop()
        assert [line["event"] for line in service.log].count("http.unauthenticated") == 1
        assert "0123456789abcdef" not in "\n".join(service.errors)
