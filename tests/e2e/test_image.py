"""The image does what docs/operations.md says of it: this Dockerfile's own steps, run as an engine would run them.

How that goes without an engine, and what the base is, says tests/support/image.py.
"""

import asyncio
import json
import os
import re
import shutil
import stat
import subprocess
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
import pytest_asyncio

from app.store.database import upgrade
from tests.support import image as images
from tests.support.image import VOLUME, Container, Image, once
from tests.support.postfix import Postfix
from tests.support.postfix import missing as no_postfix
from tests.support.relay import Relay, Wait
from tests.support.server import until
from tests.support.service import PATIENCE

UNIT = Path(__file__).parents[2] / "deploy" / "systemd" / "mailchute.service"
KEY = "a-key-of-sixteen-characters-or-more"
MEGABYTES = 140  # that the program, its libraries and their bytecode may add to the base

NOT_COMPILED = """
import json, sys
from importlib.util import cache_from_source
from pathlib import Path
import app.cli, app.operator, app.serving, httpx2, uvicorn.protocols.http.httptools_impl
files = [getattr(module, "__file__", None) or "" for module in list(sys.modules.values())]
print(json.dumps([file for file in files if file.endswith(".py") and not Path(cache_from_source(file)).exists()]))
"""

pytestmark = pytest.mark.timeout(300)  # the first test waits for the image, maybe behind another worker's build
in_one_loop = pytest.mark.asyncio(loop_scope="module")


@pytest.fixture(scope="module")
def image() -> Image:
    if reason := images.missing():
        pytest.skip(reason)
    return images.build()


def through(port: int) -> dict[str, str]:
    return {"SMTP_HOST": "127.0.0.1", "SMTP_PORT": f"{port}", "MAILCHUTE_API_KEY": KEY}


def with_key(container: Container) -> Container:
    container.http.headers["X-API-Key"] = KEY
    return container


@pytest_asyncio.fixture(loop_scope="module", scope="module")
async def relay() -> AsyncIterator[Relay]:
    async with Relay() as relay:
        yield relay


@pytest_asyncio.fixture(loop_scope="module", scope="module")
async def container(image: Image, relay: Relay) -> AsyncIterator[Container]:
    """One run, for all tests that change nothing another one looks at."""
    async with Container(image, through(relay.port)) as container:
        yield with_key(container)


class TestRunning:
    pytestmark = in_one_loop

    async def test_a_mail_goes_out_through_the_relay(self, container: Container, relay: Relay) -> None:
        answer = (await container.send(subject="From the image")).json()
        assert answer["state"] == "sent"
        assert any(b"Subject: From the image" in mail.content for mail in relay.mails)

    async def test_it_is_process_1_of_its_user_and_may_do_nothing_else(
        self, container: Container, image: Image
    ) -> None:
        lines = Path(f"/proc/{container.first}/status").read_text().splitlines()
        status = {name: value.split() for name, _, value in (line.partition(":") for line in lines)}
        assert status["Uid"] == ["10001"] * 4
        assert status["Gid"] == ["10001"] * 4
        assert status["Groups"] == []
        assert status["NSpid"][-1] == "1"
        assert status["CapEff"] == ["0000000000000000"]
        assert status["NoNewPrivs"] == ["1"]

    @pytest.mark.parametrize("path", ["/", "/tmp", "/opt/mailchute", "/etc", "/var/tmp"])
    async def test_nothing_but_the_volume_can_be_written(self, container: Container, path: str) -> None:
        ended = await container.execute("sh", "-c", f"echo > {path}/x")
        assert ended.code != 0
        assert "Read-only file system" in ended.err

    async def test_the_files_are_in_the_volume_and_their_owners_alone(self, container: Container) -> None:
        folder = container.folder / "var"
        assert stat.S_IMODE(folder.stat().st_mode) == 0o700
        found = {file.name: file.stat() for file in folder.iterdir()}
        assert {"mailchute.db", "mailchute.db.lock", "mailchute.db.sock"} <= set(found)
        assert {(entry.st_uid, stat.S_IMODE(entry.st_mode)) for entry in found.values()} == {(10001, 0o600)}

    async def test_the_health_check_is_0(self, container: Container, image: Image) -> None:
        kind, *command = image.config["Healthcheck"]["Test"]
        assert kind == "CMD"
        ended = await container.execute(*command)
        assert (ended.code, ended.err) == (0, "")
        assert ended.out.startswith("warn\n"), "a profile that may go on in clear is no reason to be unhealthy"

    async def test_a_start_and_a_health_check_compile_nothing(self, container: Container) -> None:
        """Each module's bytecode is there: on a read-only root it would be compiled again every time."""
        ended = await container.execute("/opt/mailchute/bin/python", "-c", NOT_COMPILED)
        assert ended.code == 0, ended.err
        assert json.loads(ended.out) == []


async def test_a_mail_goes_out_through_postfix(image: Image) -> None:
    if reason := no_postfix():
        pytest.skip(reason)
    with Postfix() as postfix:
        async with Container(image, through(postfix.starttls.port)) as container:
            answer = (await with_key(container).send(to="ann@mailbox.test", subject="For Postfix")).json()
            assert answer["state"] == "sent"
            assert b"It is on its way." in await asyncio.to_thread(postfix.wait_for_mail, answer["message_id"])
            assert await container.stop() == 0


async def test_the_stop_signal_lets_the_attempt_under_way_end_and_the_exit_code_is_0(image: Image) -> None:
    verdict = asyncio.Event()
    async with Relay() as relay:
        relay.on("CONTENT", (Wait(verdict), "250 2.0.0 Ok: queued as R1"))
        async with Container(image, through(relay.port)) as container:
            waiting = asyncio.create_task(with_key(container).send(prefer="wait=30"))
            await relay.mail()
            assert image.config["StopSignal"] == "SIGTERM"
            stopping = asyncio.create_task(container.stop())
            answer = (await waiting).json()
            assert answer["final"] is False
            verdict.set()
            assert await stopping == 0
            await container.logged("delivery.sent", message_id=answer["id"])
    assert len(relay.mails) == 1


async def test_the_health_check_of_a_service_that_is_gone_is_1(image: Image, tmp_path: Path) -> None:
    async with Relay() as relay:
        async with Container(image, through(relay.port), folder=tmp_path) as container:
            assert (await container.execute("mailchute", "health")).code == 0
            assert await container.stop() == 0
        _, *command = image.config["Healthcheck"]["Test"]
        ended = await once(image, through(relay.port), *command, folder=tmp_path)
    assert ended.code == 1
    assert ended.err == f"mailchute: no service is running on {VOLUME}/mailchute.db\n"


async def test_mail_outlives_the_container(image: Image, tmp_path: Path) -> None:
    async with Relay() as relay:
        async with Container(image, through(relay.port), folder=tmp_path) as first:
            id_ = (await with_key(first).send()).json()["id"]
            assert await first.stop() == 0
        async with Container(image, through(relay.port), folder=tmp_path) as second:
            assert (await with_key(second).message(id_))["state"] == "sent"


async def test_without_a_key_it_says_how_to_set_one_and_ends_with_2(image: Image) -> None:
    ended = await once(image, {"SMTP_HOST": "127.0.0.1"}, *image.command)
    assert (ended.code, ended.out) == (2, "")
    assert "mailchute: MAILCHUTE_LISTEN=0.0.0.0:8587 is reachable from other machines, so a key is needed" in ended.err
    assert "mailchute: export MAILCHUTE_API_KEY=" in ended.err


async def test_the_key_can_be_a_file_that_only_the_user_reads(image: Image, tmp_path: Path) -> None:
    images.volume_of(image, tmp_path / "var")
    secret = tmp_path / "var" / "key"
    secret.write_text(f"{KEY}\n")
    os.chown(secret, *image.user)
    secret.chmod(0o400)
    settings = {"SMTP_HOST": "127.0.0.1", "MAILCHUTE_API_KEY_FILE": f"{VOLUME}/key"}
    ended = await once(image, settings, "mailchute", "serve", "--check", folder=tmp_path)
    assert (ended.code, ended.err) == (0, "")


async def test_a_stop_during_start_up_is_not_lost_on_process_1(image: Image, tmp_path: Path) -> None:
    """The kernel drops a signal to process 1 that nobody handles: the engine would wait out its grace, and kill."""
    command = images.contained(
        image, {"MAILCHUTE_LISTEN": "0.0.0.0:0", **through(25)}, volume=tmp_path / "var", command=image.command
    )
    images.volume_of(image, tmp_path / "var")
    database = tmp_path / "var" / "mailchute.db"
    upgrade(database, None, to="0001")  # what is to be brought up to date gives the time
    os.chown(database, *image.user)
    process = await asyncio.create_subprocess_exec(
        *command, stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.PIPE
    )
    try:
        lock = tmp_path / "var" / "mailchute.db.lock"
        assert await asyncio.to_thread(until, lock.exists, timeout=PATIENCE)
        os.kill(images.first_of(process.pid), 15)
        async with asyncio.timeout(PATIENCE):
            out, err = await process.communicate()
    finally:
        if process.returncode is None:
            os.kill(images.first_of(process.pid), 9)
            await process.wait()
    assert (process.returncode, out) == (0, b"")
    assert [json.loads(line)["event"] for line in err.splitlines()] in ([], ["store.migrating"])


def test_what_only_the_build_needs_is_not_in_it(image: Image) -> None:
    site = next((image.root / "opt/mailchute/lib").glob("python3.*/site-packages"))
    there = {path.name.partition("-")[0].lower() for path in site.iterdir()}
    assert "fastapi" in there
    assert not there & {"pip", "setuptools", "hatchling", "editables", "pytest", "ruff"}
    assert not (image.root / "src").exists()
    assert not (image.root / "usr/bin/curl").exists()


def test_it_adds_little_to_its_base_and_nothing_in_it_is_the_users(image: Image) -> None:
    sizes, owned = [], []
    for path in image.root.rglob("*"):
        entry = path.lstat()
        if entry.st_uid == image.user[0]:
            owned.append(f"/{path.relative_to(image.root)}")
        if stat.S_ISREG(entry.st_mode) and not (image.base / path.relative_to(image.root)).exists():
            sizes.append(entry.st_size)
    assert sum(sizes) < MEGABYTES * 1_000_000
    assert owned == [VOLUME]


def test_the_image_says_how_it_is_run(image: Image) -> None:
    config = image.config
    assert config["User"] == "10001:10001"
    assert (config["Entrypoint"], config["Cmd"]) == (["mailchute"], ["serve"])
    assert list(config["Volumes"]) == [VOLUME]
    assert list(config["ExposedPorts"]) == ["8587/tcp"]
    assert image.environment["MAILCHUTE_LISTEN"] == "0.0.0.0:8587"
    assert not [name for name in image.environment if "KEY" in name or "PASSWORD" in name]


async def test_a_run_makes_only_the_system_calls_that_the_systemd_unit_allows(image: Image, tmp_path: Path) -> None:
    """From the program's first to its last, as a user that is not root (to whom SQLite says less)."""
    for program in ("strace", "systemd-analyze"):
        if not shutil.which(program):
            pytest.skip(f"{program} is not installed")
    said = re.findall(r"^SystemCallFilter=(~?)(.*)$", UNIT.read_text(), re.MULTILINE)
    allowed: set[str] = set()
    for is_taken_away, groups in said:
        calls = {call for group in groups.split() for call in calls_of(group)}
        allowed = allowed - calls if is_taken_away else allowed | calls
    async with Relay() as relay:
        trace = ("strace", "-f", "-qq", "-o", str(tmp_path / "trace"))
        async with Container(image, through(relay.port), folder=tmp_path, through=trace) as container:
            assert (await with_key(container).send()).json()["state"] == "sent"
            assert await container.stop() == 0
    _, begun, traced = (tmp_path / "trace").read_text().partition('execve("/opt/mailchute/bin/mailchute"')
    assert begun
    made = set(re.findall(r"^\d+ +(\w+)\(", traced, re.MULTILINE))
    assert {"fdatasync", "sendto", "connect"} & made
    assert made <= allowed
    assert not re.search(r"PROT_WRITE\|PROT_EXEC", traced), "MemoryDenyWriteExecute"
    families = re.search(r"^RestrictAddressFamilies=(.*)$", UNIT.read_text(), re.MULTILINE)
    assert families
    assert set(re.findall(r" socket\((\w+),", traced)) <= set(families[1].split())


def calls_of(group: str) -> set[str]:
    """Resolve a group of systemd's, whose members may be groups."""
    listed = subprocess.check_output(["systemd-analyze", "syscall-filter", group], text=True)
    names = [line.strip() for line in listed.splitlines()[1:]]
    names = [name for name in names if name and not name.startswith("#")]
    return {call for name in names for call in (calls_of(name) if name.startswith("@") else {name})}
