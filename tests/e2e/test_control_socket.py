"""Services and commands that meet at control sockets: each database has one, and nobody speaks for another."""

import asyncio
import json
import os
import shutil
import signal
import socket
import stat
import tempfile
from collections.abc import Collection, Iterator
from pathlib import Path

import pytest

from tests.support.relay import Relay, Stall
from tests.support.service import MAIL, MAILCHUTE, PATIENCE, Ended, Service, environment, run

NOBODY = 65534
AS_NOBODY = ("setpriv", f"--reuid={NOBODY}", f"--regid={NOBODY}", "--clear-groups")

as_root = pytest.mark.skipif(os.geteuid() != 0 or not shutil.which("setpriv"), reason="only root can be somebody else")


@pytest.fixture
def folder() -> Iterator[Path]:
    """A folder that every user can look into."""
    with tempfile.TemporaryDirectory(prefix="mailchute-") as name:
        Path(name).chmod(0o755)
        yield Path(name)


def having(database: str | Path, **more: str) -> dict[str, str]:
    return {"MAILCHUTE_DATABASE_URL": str(database), **more}


async def do(folder: Path, database: str | Path, *words: str, **more: str) -> Ended:
    return await run(MAILCHUTE, *words, folder=folder, settings=having(database, **more))


def assert_refused(ended: Ended, *words: str) -> None:
    assert (ended.code, ended.out) == (2, ""), ended
    assert all(line.startswith("mailchute: ") for line in ended.err.splitlines()), ended.err
    assert all(word in ended.err for word in words), ended.err


# --- one socket a database ---------------------------------------------------------------------------------------


async def test_two_services_whose_databases_share_a_folder_have_a_socket_each(folder: Path) -> None:
    async with Service(having("a.db"), folder=folder) as first, Service(having("b.db"), folder=folder) as second:
        await first.send(to="ann@theirs.test")
        await second.send(to="bob@theirs.test")
        for name, whom, other in (("a.db", "ann@theirs.test", "bob@"), ("b.db", "bob@theirs.test", "ann@")):
            assert (await do(folder, name, "health")).code == 0
            listed = await do(folder, name, "list", "--to", whom)
            assert (listed.code, len(listed.out.splitlines())) == (0, 1)
            assert (await do(folder, name, "erase", f"{other}theirs.test")).out == "0 messages erased\n"
            assert (await do(folder, name, "erase", whom)).out == "1 message erased\n"
        assert await first.stop() == 0
        assert "no service is running on a.db" in (await do(folder, "a.db", "health")).err
        assert (await do(folder, "b.db", "health")).code == 0
    assert not list(folder.glob("mailchute.sock"))


@pytest.mark.parametrize("named", ["mail.db", "./x/../mail.db", "{folder}/mail.db", "link.db", "to/mail.db"])
async def test_every_name_of_the_database_leads_to_its_service(folder: Path, named: str) -> None:
    (folder / "x").mkdir()
    (folder / "link.db").symlink_to("mail.db")
    (folder / "to").symlink_to(folder)
    async with Service(having("mail.db"), folder=folder) as service:
        id_ = (await service.send()).json()["id"]
        shown = await do(folder, named.format(folder=folder), "show", id_, "--json")
        assert (shown.code, json.loads(shown.out)["id"]) == (0, id_)
        assert (await do(folder / "x", "../mail.db", "health")).code == 0


@pytest.mark.parametrize("database", ["m" * 240 + ".db", f"{'deep' * 30}/{'er' * 60}/mail.db"], ids=["name", "folder"])
async def test_a_path_longer_than_a_socket_address_is_no_obstacle(folder: Path, database: str) -> None:
    async with Service(having(database), folder=folder) as service:
        assert stat.S_IMODE(service.operator_path.lstat().st_mode) == 0o600
        assert (await do(folder, database, "health")).code == 0
        assert await service.stop() == 0
        assert not service.operator_path.exists()


async def test_the_file_is_the_owners_alone_whatever_the_umask(folder: Path) -> None:
    async with Service(folder=folder, command=("sh", "-c", f"umask 0; exec {MAILCHUTE} serve")) as service:
        assert stat.S_IMODE(service.operator_path.lstat().st_mode) == 0o600


async def test_a_socket_of_the_version_before_is_left_alone_and_asked_for_nothing(folder: Path) -> None:
    with socket.socket(socket.AF_UNIX) as old:
        old.bind(str(folder / "mailchute.sock"))
        old.listen()
        async with Service(having("mail.db"), folder=folder) as service:
            assert (await do(folder, "mail.db", "health")).code == 0
            assert await service.stop() == 0
        assert_refused(await do(folder, "other.db", "list"), f"nothing listens on {folder}/other.db.sock")
        old.setblocking(False)
        with pytest.raises(BlockingIOError):
            old.accept()
    assert (folder / "mailchute.sock").is_socket()


# --- what is in its place ----------------------------------------------------------------------------------------


async def test_a_service_that_finds_something_else_there_says_so_and_leaves_the_folder_as_it_was(folder: Path) -> None:
    (folder / "mail.db.sock").write_text("kept")
    assert_refused(
        await do(folder, "mail.db", "serve"), f"{folder}/mail.db.sock is in the control socket's place", "no socket"
    )
    assert (folder / "mail.db.sock").read_text() == "kept"
    assert {file.name for file in folder.iterdir()} == {"mail.db.sock", "mail.db", "mail.db.lock"}, "it was closed"


async def test_a_living_service_keeps_its_socket_though_its_lock_was_deleted(folder: Path) -> None:
    with socket.socket(socket.AF_UNIX) as living:
        living.bind(str(folder / "mail.db.sock"))
        living.listen()
        assert_refused(await do(folder, "mail.db", "serve"), "another process listens on the control socket")
        assert (folder / "mail.db.sock").is_socket()


async def test_a_stop_takes_no_socket_away_that_is_another_ones_by_now(folder: Path) -> None:
    async with Service(having("mail.db"), folder=folder) as service:
        service.operator_path.unlink()
        with socket.socket(socket.AF_UNIX) as other:
            other.bind(str(service.operator_path))
            assert await service.stop() == 0
            assert service.operator_path.is_socket()


# --- who answers -------------------------------------------------------------------------------------------------

COMMANDS = {
    "list": ("list",),
    "show": ("show", "4711"),
    "send": ("send", "--to", "ann@theirs.test", "--from", "bot@ours.test", "--text", "x"),
    "dry run": ("send", "--to", "ann@theirs.test", "--from", "bot@ours.test", "--text", "x", "--dry-run"),
    "retry": ("retry", "--state", "deferred", "--yes"),
    "cancel": ("cancel", "4711"),
    "tail": ("tail",),
    "backup": ("backup", "copy.db"),
    "erase": ("erase", "ann@theirs.test"),
    "vacuum": ("vacuum",),
    "pause": ("pause", "default"),
    "resume": ("resume", "default"),
    "profiles": ("profiles",),
    "doctor": ("doctor", "default"),
    "health": ("health",),
}


# One of each way to the service: look, send, act, follow, ask without opening a database.
SOME = ("list", "send", "erase", "tail", "doctor", "health")


async def in_parallel(
    folder: Path, settings: dict[str, str], names: Collection[str] = tuple(COMMANDS), *, prefix: tuple[str, ...] = ()
) -> dict[str, Ended]:
    """Run commands, four at a time."""
    few = asyncio.Semaphore(4)

    async def one(words: tuple[str, ...]) -> Ended:
        async with few:
            return await run(*prefix, MAILCHUTE, *words, folder=folder, settings=settings, patience=2 * PATIENCE)

    ended = await asyncio.gather(*[one(COMMANDS[name]) for name in names])
    return dict(zip(names, ended, strict=True))


async def test_a_command_that_reaches_another_databases_service_says_so_and_does_nothing(folder: Path) -> None:
    async with Relay() as relay:
        leading = {"SMTP_HOST": relay.host, "SMTP_PORT": f"{relay.port}", "SMTP_TLS": "none"}
        assert (await do(folder, "b.db", "migrate")).code == 0
        async with Service(having("a.db", **leading), folder=folder) as service:
            id_ = (await service.send()).json()["id"]
            (folder / "b.db.sock").symlink_to("a.db.sock")
            before = relay.connections, sorted(file.name for file in folder.iterdir())
            for name, ended in (await in_parallel(folder, having("b.db", **leading))).items():
                assert (ended.code, ended.out) == (2, ""), (name, ended)
                assert f"has another database open, {folder}/a.db, and not b.db" in ended.err, name
            assert (relay.connections, sorted(file.name for file in folder.iterdir())) == before
            assert (await service.message(id_))["sender"] == "bot@ours.test", "nothing was erased"
            assert len((await service.http.get("/messages")).json()["data"]) == 1


async def test_a_database_that_was_replaced_under_its_service_is_not_acted_on(folder: Path) -> None:
    async with Service(having("mail.db"), folder=folder) as service:
        assert (await do(folder, "mail.db", "backup", "copy.db")).code == 0
        assert (await do(folder, "mail.db", "vacuum")).code == 0
        assert (await do(folder, "mail.db", "erase", "ann@theirs.test")).code == 0, "vacuum keeps the file the same"
        (folder / "copy.db").rename(service.database)
        assert_refused(await do(folder, "mail.db", "erase", "ann@theirs.test"), "no longer at mail.db", "stop it")


async def test_a_service_that_hangs_ends_every_command_in_words(folder: Path) -> None:
    settings = having("mail.db", SMTP_HOST="127.0.0.1", SMTP_PORT="9")
    async with Service(settings, folder=folder) as service:
        service.process.send_signal(signal.SIGSTOP)
        for name, ended in (await in_parallel(folder, settings, SOME)).items():
            assert (ended.code, ended.out) == (1, ""), (name, ended)
            assert ended.err.startswith("mailchute: the running service gave no answer within "), name
            assert len(ended.err.splitlines()) == 1, name


async def test_a_message_whose_service_is_killed_may_have_been_kept_and_the_command_says_so(folder: Path) -> None:
    async with Relay(greeting=Stall()) as relay:
        settings = having("mail.db", SMTP_HOST=relay.host, SMTP_PORT=f"{relay.port}", SMTP_TLS="none")
        async with Service(settings, folder=folder) as service:
            sending = asyncio.create_task(do(folder, "mail.db", *COMMANDS["send"], **settings))
            await relay.connected()
            await service.kill()
            ended = await sending
    assert (ended.code, ended.out) == (1, "")
    assert ended.err.startswith("mailchute: the running service gave no answer")
    assert "may have been done: look before you repeat it" in ended.err


async def test_the_tail_of_a_service_that_is_killed_ends_in_words(folder: Path) -> None:
    async with Service(having("mail.db"), folder=folder) as service:
        process = await asyncio.create_subprocess_exec(
            *(MAILCHUTE, "tail"),
            cwd=folder,
            env=environment(having("mail.db")),
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.PIPE,
        )
        assert process.stderr is not None
        async with asyncio.timeout(PATIENCE):
            assert await process.stderr.readline() == b"Following; Ctrl-C ends it.\n"
            await service.kill()
            _, said = await process.communicate()
    assert process.returncode == 1
    assert said.startswith(b"mailchute: the running service gave no answer")


async def test_a_service_whose_socket_was_deleted_keeps_its_database(folder: Path) -> None:
    async with Service(having("mail.db"), folder=folder) as service:
        service.operator_path.unlink()
        for words in (COMMANDS["list"], COMMANDS["erase"]):
            ended = await do(folder, "mail.db", *words)
            assert_refused(ended, f"nothing listens on {folder}/mail.db.sock", "in use by another Mailchute process")
        assert (await service.send()).json()["state"] == "sent"


# --- other users -------------------------------------------------------------------------------------------------


@as_root
async def test_a_command_of_another_user_says_whose_the_service_is_and_does_nothing(folder: Path) -> None:
    settings = having(folder / "mail.db", SMTP_HOST="127.0.0.1", SMTP_PORT="9")
    async with Service(settings, folder=folder) as service:
        before = sorted(file.name for file in folder.iterdir())
        for name, ended in (await in_parallel(Path("/"), settings, SOME, prefix=AS_NOBODY)).items():
            assert (ended.code, ended.out) == (2, ""), (name, ended)
            assert "belongs to the user root and cannot be opened by this one (Permission denied)" in ended.err, name
        assert sorted(file.name for file in folder.iterdir()) == before
        folder.chmod(0o700)
        ended = await run(*AS_NOBODY, MAILCHUTE, "list", folder=Path("/"), settings=settings)
        assert_refused(ended, f"{folder}/mail.db.sock cannot be reached: Permission denied")
        assert (await service.http.get("/livez")).status_code == 200


@as_root
async def test_root_reaches_the_service_of_another_user(folder: Path) -> None:
    os.chown(folder, NOBODY, NOBODY)
    async with Service(having("mail.db"), folder=folder, command=(*AS_NOBODY, MAILCHUTE, "serve")) as service:
        assert service.operator_path.lstat().st_uid == NOBODY
        id_ = (await service.operator.post("/send", json=dict(MAIL))).json()["id"]
        assert id_ in (await do(folder, "mail.db", "list")).out


@as_root
async def test_a_database_that_the_user_may_not_read_is_named(folder: Path) -> None:
    assert (await do(folder, "mail.db", "migrate")).code == 0
    (folder / "mail.db.lock").unlink()
    folder.chmod(0o777)
    settings = having(folder / "mail.db")
    ended = await run(*AS_NOBODY, MAILCHUTE, "list", folder=Path("/"), settings=settings)
    assert_refused(ended, f"{folder}/mail.db cannot be read: Permission denied", "as its user")
    assert [file.name for file in folder.iterdir()] == ["mail.db"]


# --- nothing is made ---------------------------------------------------------------------------------------------

SEND = {"send", "dry run"}
CODES = {"profiles": 0, "health": 1}  # the settings are enough for the one; the other is for supervisors


async def test_where_there_is_nothing_no_command_makes_anything_and_each_says_where_it_looked(folder: Path) -> None:
    for name, ended in (await in_parallel(folder, having("var/mail.db"))).items():
        assert ended.code == CODES.get(name, 2), (name, ended)
        if name not in ("doctor", "health"):  # the doctor goes to the relay by itself, and there is none
            assert f"nothing listens on {folder}/var/mail.db.sock" in ended.err, name
        if name == "health":
            assert "no service is running on var/mail.db" in ended.err
        elif name not in SEND | {"doctor", "profiles"}:
            assert "there is no database var/mail.db" in ended.err, name
        assert "Traceback" not in ended.err
    assert list(folder.iterdir()) == []


NO_DATABASE = {
    "a folder": Path.mkdir,
    "an empty file": Path.touch,
    "a text": lambda path: path.write_text("Dear Ann,\n" * 99),
    "a symlink to nothing": lambda path: path.symlink_to("nothing"),
}


@pytest.mark.parametrize("make", NO_DATABASE.values(), ids=NO_DATABASE)
async def test_what_is_no_database_is_left_as_it_is_and_nothing_is_put_beside_it(folder: Path, make: object) -> None:
    assert callable(make)
    make(folder / "mail.db")
    before = (folder / "mail.db").lstat()
    for name in ("list", "erase"):
        assert_refused(await do(folder, "mail.db", *COMMANDS[name]), "no database")
    after = (folder / "mail.db").lstat()
    assert (after.st_ino, after.st_size, after.st_mtime_ns) == (before.st_ino, before.st_size, before.st_mtime_ns)
    assert [file.name for file in folder.iterdir()] == ["mail.db"]


@pytest.mark.parametrize("name", SEND)
async def test_without_a_service_and_without_a_relay_nothing_is_sent_and_nothing_kept(folder: Path, name: str) -> None:
    ended = await do(folder, "mail.db", *COMMANDS[name])
    assert_refused(ended, "no relay is configured: nothing was sent", "SMTP_HOST", "MAILCHUTE_SANDBOX=true")
    assert list(folder.iterdir()) == []


async def test_a_sandbox_that_was_asked_for_keeps_the_message(folder: Path) -> None:
    rehearsed = await do(folder, "mail.db", *COMMANDS["dry run"], MAILCHUTE_SANDBOX="true")
    assert (rehearsed.code, rehearsed.out.endswith("\r\nx\r\n")) == (0, True)
    assert list(folder.iterdir()) == [], "a dry run keeps nothing"
    (folder / "mailchute.toml").write_text("sandbox = true\n")
    for more in ({"MAILCHUTE_SANDBOX": "true"}, {}):
        sent = await do(folder, "mail.db", *COMMANDS["send"], **more)
        assert (sent.code, "kept in the sandbox, not sent" in sent.out) == (0, True)
    assert len((await do(folder, "mail.db", "list")).out.splitlines()) == 2


async def test_a_dry_run_without_a_service_sends_nothing_of_what_waits(folder: Path) -> None:
    async with Relay() as relay:
        settings = having("mail.db", SMTP_HOST=relay.host, SMTP_PORT=f"{relay.port}", SMTP_TLS="none")
        relay.on("RCPT", "450 4.2.1 busy", times=1)
        assert (await do(folder, "mail.db", *COMMANDS["send"], **settings)).code == 1
        assert (
            await do(folder, "mail.db", "retry", "--state", "deferred", "--yes", **settings)
        ).out == "1 message to be sent again\n"
        connections = relay.connections
        assert (await do(folder, "mail.db", *COMMANDS["dry run"], **settings)).code == 0
        assert relay.connections == connections
        assert len((await do(folder, "mail.db", "list", "--state", "queued", **settings)).out.splitlines()) == 1
