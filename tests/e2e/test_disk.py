"""A disk with no more room: nothing is taken that cannot be kept, nothing that was kept is lost, and it is said.

The child's files may not grow beyond a limit (`ulimit -f`), which to SQLite is a disk that takes no more.
"""

import os
import shlex
import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from app.store.database import upgrade
from tests.support.relay import Relay
from tests.support.service import MAILCHUTE, Service, run

BLOCKS = 400  # of 512 bytes: room for the tables and some small mails
LIMITED = ("sh", "-c", f"ulimit -f {BLOCKS}; exec {shlex.quote(MAILCHUTE)} serve")
LARGE = "x" * 100_000


def alone(script: str) -> tuple[str, ...]:
    """Give a command that mounts what `script` says where nobody else sees it, and then serves."""
    return ("unshare", "-m", "sh", "-ec", f"{script}; exec {shlex.quote(MAILCHUTE)} serve")


@pytest.fixture
def folder() -> Iterator[Path]:
    """One with a place for the database; for those who may mount something on it."""
    if not shutil.which("unshare"):
        pytest.skip("unshare is not installed")
    probe = subprocess.run(["unshare", "-m", "mount", "-t", "tmpfs", "tmpfs", "/mnt"], capture_output=True, check=False)
    if probe.returncode != 0:
        pytest.skip(f"mounting is not permitted here: {probe.stderr.decode().strip()}")
    with tempfile.TemporaryDirectory(prefix="mailchute-") as name:
        (Path(name) / "var").mkdir()
        yield Path(name)


async def test_a_message_that_finds_no_room_is_refused_whole_and_what_was_taken_stays() -> None:
    async with Service(command=LIMITED) as service:
        kept = await service.send(subject="kept")
        assert kept.json()["state"] == "sent"
        refused = await service.send(subject="no room", text=LARGE * 2)
        assert refused.status_code == 503
        assert refused.json()["type"] == "/errors/store-unavailable"
        assert "retry-after" in refused.headers
        listed = (await service.http.get("/messages")).json()["data"]
        assert [message["id"] for message in listed] == [kept.json()["id"]]
        assert (await service.message(kept.json()["id"]))["state"] == "sent"


async def test_a_service_that_can_take_nothing_is_not_ready() -> None:
    async with Service(command=LIMITED) as service:
        assert (await service.http.get("/readyz")).status_code == 200
        for n in range(100):
            answer = await service.send(subject=f"no. {n}", prefer="respond-async")
            if answer.status_code != 202:
                break
        assert answer.status_code == 503, "the disk is full now"
        # More than once: a look may find room for its own few bytes, or share its commit with one that fails.
        looks = [(await service.http.get("/readyz")).status_code for _ in range(15)]
        assert looks[-5:] == [503] * 5, looks
        assert (await service.http.get("/health")).status_code == 503
        assert (await service.http.get("/livez")).status_code == 200


async def test_a_disk_that_fills_takes_nothing_more_while_it_still_has_room_for_what_was_taken(folder: Path) -> None:
    tmpfs = alone("mount -t tmpfs -o size=8m tmpfs var")
    settings = {"MAILCHUTE_MIN_FREE_BYTES": "3000000"}
    async with Relay() as relay:
        settings |= {"SMTP_HOST": relay.host, "SMTP_PORT": f"{relay.port}"}
        async with Service(settings, folder=folder, command=tmpfs) as service:
            assert (await service.http.post("/profiles/default/pause")).status_code == 200
            taken = (await service.send(prefer="respond-async")).json()
            filler = Path(f"/proc/{service.process.pid}/root{folder}/var/filler")
            with filler.open("wb") as file:
                os.posix_fallocate(file.fileno(), 0, 6_000_000)
            said = await service.logged("room.ended")
            assert "make room" in said["error"]
            refused = await service.send()
            assert (refused.status_code, refused.json()["type"]) == (503, "/errors/no-room")
            assert (await service.http.get("/readyz")).status_code == 503
            assert (await service.http.post("/profiles/default/resume")).status_code == 200
            await service.logged("delivery.sent", message_id=taken["id"])
            filler.unlink()
            await service.logged("room.again")
            assert (await service.http.get("/readyz")).status_code == 200
            assert (await service.send()).json()["state"] == "sent"
    assert len(relay.mails) == 2


async def test_a_file_that_is_mounted_without_its_folder_is_refused(folder: Path) -> None:
    """In Docker `-v ./mail.db:/var/lib/mailchute/mailchute.db`: its log would go with the container."""
    async with Service(folder=folder) as service:
        await service.stop()
    script = "touch 'var/a b.db'; mount --bind var/mailchute.db 'var/a b.db'"
    settings = {"MAILCHUTE_DATABASE_URL": "var/a b.db"}
    ended = await run(*alone(script), folder=folder, settings=settings)
    assert ended.code == 2, ended
    assert "var/a b.db is mounted by itself" in ended.err
    assert "mount its folder" in ended.err


@pytest.mark.parametrize("what", ["var", "var/mailchute.db"])
async def test_a_folder_or_a_file_that_is_read_only_is_refused_at_start_and_untouched(folder: Path, what: str) -> None:
    async with Service(folder=folder) as service:
        await service.stop()
    before = (folder / "var" / "mailchute.db").read_bytes()
    command = alone(f"mount --bind {what} {what}; mount -o remount,bind,ro {what}")
    ended = await run(*command, folder=folder)
    assert ended.code == 2, ended
    assert "mailchute.db" in ended.err
    assert "read-only" in ended.err.lower()
    assert (folder / "var" / "mailchute.db").read_bytes() == before


FULL = "head -c 9000000 /dev/zero > var/filler 2> /dev/null || true"
NO_MORE_FILES = "mount -o remount,nr_inodes=$(($(df --output=iused var | tail -1) + {more})) var"


@pytest.mark.parametrize(
    ("script", "command"),
    [
        pytest.param(FULL, "serve", id="new-no-room"),
        *(pytest.param(NO_MORE_FILES.format(more=more), "serve", id=f"new-room-for-{more}-files") for more in range(4)),
        pytest.param(f"{MAILCHUTE} migrate > /dev/null; {FULL}", "serve", id="there-no-room"),
        pytest.param(f"cp older.db var/mailchute.db; {FULL}", "serve", id="older-no-room"),
        pytest.param(f"cp older.db var/mailchute.db; {FULL}", "migrate", id="older-no-room-migrate"),
    ],
)
async def test_a_start_on_a_full_disk_ends_with_1_so_that_a_supervisor_tries_again(
    folder: Path, script: str, command: str
) -> None:
    upgrade(folder / "older.db", None, to="0006")
    mounted = f"mount -t tmpfs -o size=4m tmpfs var; {script}; exec {MAILCHUTE} {command}"
    ended = await run("unshare", "-m", "sh", "-ec", mounted, folder=folder)
    assert (ended.code, ended.out) == (1, ""), ended
    assert "start it again" in ended.err.splitlines()[-1]


async def test_a_start_that_found_no_room_leaves_nothing_that_keeps_the_next_one_from_starting(folder: Path) -> None:
    script = f"mount -t tmpfs -o size=4m tmpfs var; {FULL}; {MAILCHUTE} serve || echo ended with $?; rm var/filler"
    async with Service(
        {"MAILCHUTE_MIN_FREE_BYTES": "0"},
        folder=folder,
        command=("unshare", "-m", "sh", "-ec", f"{script}; exec {MAILCHUTE} serve"),
    ) as service:
        assert "ended with 1" in service.text
        assert (await service.http.get("/readyz")).status_code == 200
        assert (await service.send()).json()["state"] == "sent"
