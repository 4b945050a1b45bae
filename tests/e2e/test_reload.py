"""SIGHUP: the settings are read again; what is wrong is refused, and the service goes on as it was."""

import asyncio
import os
import pty
import signal
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.support.factories import refused_port
from tests.support.relay import Relay, Wait
from tests.support.service import Service

FROM = 'default_from = "bot@ours.test"\n'


@pytest.fixture
def folder() -> Iterator[Path]:
    with tempfile.TemporaryDirectory(prefix="mailchute-") as name:
        yield Path(name)


def profile(relay: Relay, name: str, *, tls: str = "none") -> str:
    return f'[profiles.{name}]\nhost = "{relay.host}"\nport = {relay.port}\ntls = "{tls}"\n'


async def test_mail_goes_by_the_new_settings_from_the_signal_on(folder: Path) -> None:
    file = folder / "mailchute.toml"
    async with Relay() as old, Relay() as new:
        file.write_text(FROM + profile(old, "old"))
        async with Service({}, folder=folder) as service:
            assert (await service.send()).json()["profile"] == "old"
            file.write_text(
                f'default_profile = "new"\n{FROM}{profile(old, "old")}{profile(new, "new")}'
                '[[routes]]\nto_domain = "old.test"\nprofile = "old"\n'
            )
            service.process.send_signal(signal.SIGHUP)
            await service.logged("settings.reloaded", profiles=["old", "new"])
            assert (await service.send()).json()["profile"] == "new"
            assert (await service.send(to="ann@old.test")).json()["profile"] == "old"
    assert (len(old.mails), len(new.mails)) == (2, 1)


async def test_a_bad_file_is_refused_and_everything_goes_on_by_the_old_one(folder: Path) -> None:
    file = folder / "mailchute.toml"
    async with Relay() as relay:
        file.write_text(FROM + profile(relay, "corp"))
        async with Service({}, folder=folder) as service:
            file.write_text(FROM + profile(relay, "corp").replace("port", "prot"))
            service.process.send_signal(signal.SIGHUP)
            await service.logged(
                "settings.refused",
                error="mailchute.toml:4: profiles.corp.prot: prot is not a setting; do you mean port?",
            )
            file.write_text("")
            service.process.send_signal(signal.SIGHUP)
            await service.logged("settings.refused", error="a change between the sandbox and a relay takes a restart")
            assert (await service.send()).json()["state"] == "sent"


@pytest.mark.parametrize(
    ("wrong", "error"),
    [
        (lambda text, relay: text.replace(f"port = {relay.port}", f"port = {refused_port()}"), "connection_refused"),
        (lambda text, _: text.replace('tls = "none"', 'tls = "none"\nhelo_name = "wrong"'), "helo_refused"),
    ],
    ids=["port", "helo_name"],
)
@pytest.mark.parametrize("tries", [1, 4])
async def test_what_waits_goes_as_soon_as_the_profile_is_mended_however_far_its_circuit_is(
    wrong: Callable[[str, Relay], str], error: str, tries: int, folder: Path
) -> None:
    file = folder / "mailchute.toml"
    async with Relay() as relay:
        relay.on("EHLO", "450 4.7.1 not this name", match="wrong")
        relay.on("HELO", "450 4.7.1 not this name", match="wrong")
        right = FROM + profile(relay, "corp")
        file.write_text(wrong(right, relay))
        async with Service({"MAILCHUTE_RETRY__SCHEDULE": "10m"}, folder=folder) as service:
            answers = [(await service.send()).json() for _ in range(tries)]
            assert {answer["reason"] for answer in answers} == {error}
            file.write_text(right)
            service.process.send_signal(signal.SIGHUP)
            await relay.mail(tries)


async def test_an_attempt_under_way_ends_as_it_began(folder: Path) -> None:
    file, verdict = folder / "mailchute.toml", asyncio.Event()
    async with Relay() as relay:
        relay.on("CONTENT", (Wait(verdict), "250 2.0.0 taken"))
        file.write_text(FROM + profile(relay, "corp"))
        async with Service({}, folder=folder) as service:
            id_ = (await service.send(prefer="respond-async")).json()["id"]
            await relay.mail()
            file.write_text(FROM + profile(relay, "other"))
            service.process.send_signal(signal.SIGHUP)
            await service.logged("settings.reloaded", profiles=["other"])
            verdict.set()
            await service.logged("delivery.sent", message_id=id_)


async def test_what_only_a_restart_changes_is_named(folder: Path) -> None:
    async with Relay() as relay:
        (folder / "mailchute.toml").write_text(FROM + profile(relay, "corp"))
        async with Service({}, folder=folder) as service:
            (folder / "mailchute.toml").write_text("docs = false\n" + FROM + profile(relay, "corp"))
            service.process.send_signal(signal.SIGHUP)
            await service.logged("settings.warning", warning="docs has changed, which takes a restart")
            assert (await service.http.get("/openapi.json")).status_code == 200


async def test_it_ends_with_the_terminal_that_it_was_started_at() -> None:
    ours, its = pty.openpty()
    async with Service(stdin=its) as service:
        os.close(its)
        os.close(ours)
        assert await service.stop(signal.SIGHUP) == 0
