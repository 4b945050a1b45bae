"""The control socket's two ends, on real sockets: what is displaced and what is not, and odd peers behind it."""

import asyncio
import os
import socket
import stat
from collections import deque
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from app.control_socket import ControlSocket, path_of, reach
from app.mail.errors import ConfigError
from app.operator import NoAnswer, ask, following
from app.store.database_file import DatabaseFile

NAMES = {
    "short": "mail.db",
    "a long name": "m" * 240 + ".db",
    "a deep folder": "deep" * 30 + "/" + "er" * 60 + "/mail.db",
}


def connects(path: Path) -> bool:
    """Ask whether a connection to whatever listens there is accepted by it."""
    with reach(path) as address:
        return address is not None


@pytest.fixture(params=list(NAMES.values()), ids=list(NAMES))
def path(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    database = tmp_path / request.param
    database.parent.mkdir(parents=True, exist_ok=True)
    return path_of(database)


def test_where_nothing_is_a_service_listens_and_takes_its_file_away_again(path: Path) -> None:
    before = os.umask(0)
    try:
        control = ControlSocket(path, backlog=10)
    finally:
        os.umask(before)
    assert stat.S_IMODE(path.lstat().st_mode) == 0o600
    assert connects(path)
    assert [file.name for file in path.parent.iterdir()] == [path.name]
    control.listener.close()
    assert not connects(path)
    control.remove()
    control.remove()
    assert list(path.parent.iterdir()) == []


def test_what_a_dead_service_left_is_replaced(path: Path) -> None:
    ControlSocket(path, backlog=10).listener.close()
    assert not connects(path)
    control = ControlSocket(path, backlog=10)
    assert connects(path)
    control.listener.close()
    control.remove()


def test_a_living_service_keeps_its_socket(path: Path) -> None:
    first = ControlSocket(path, backlog=10)
    with pytest.raises(ConfigError, match="another process listens on the control socket"):
        ControlSocket(path, backlog=10)
    assert connects(path)
    assert [file.name for file in path.parent.iterdir()] == [path.name]
    first.listener.close()
    first.remove()


def test_a_service_whose_file_was_replaced_leaves_the_new_one_alone(tmp_path: Path) -> None:
    path = path_of(tmp_path / "mail.db")
    first = ControlSocket(path, backlog=10)
    path.unlink()
    second = ControlSocket(path, backlog=10)
    first.listener.close()
    first.remove()
    assert connects(path)
    second.listener.close()
    second.remove()
    assert list(tmp_path.iterdir()) == []


@contextmanager
def listening(path: Path, kind: socket.SocketKind, backlog: int | None = None) -> Iterator[None]:
    with socket.socket(socket.AF_UNIX, kind) as other:
        other.bind(str(path))
        if backlog is not None:
            other.listen(backlog)
        yield


@contextmanager
def full(path: Path) -> Iterator[None]:
    """A listener that hangs, with as many connections as may wait for it."""
    with listening(path, socket.SOCK_STREAM, 0), socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as waits:
        waits.connect(str(path))
        yield


@contextmanager
def made(make: Callable[[Path], object], path: Path) -> Iterator[None]:
    make(path)
    yield


IN_PLACE = {
    "a file": (lambda path: made(lambda p: p.write_text("kept"), path), "is no socket"),
    "a folder": (lambda path: made(Path.mkdir, path), "is no socket"),
    "a symlink to nothing": (lambda path: made(lambda p: p.symlink_to("nothing"), path), "is no socket"),
    "a symlink to a file": (lambda path: made(lambda p: p.symlink_to("/etc/passwd"), path), "is no socket"),
    "a FIFO": (lambda path: made(os.mkfifo, path), "is no socket"),
    "another program": (lambda path: listening(path, socket.SOCK_STREAM, 5), "another process listens"),
    "another program that hangs": (full, "another process listens"),
    "another program's datagrams": (lambda path: listening(path, socket.SOCK_DGRAM), "another process listens"),
}


@pytest.mark.parametrize(("put", "says"), IN_PLACE.values(), ids=IN_PLACE)
def test_what_is_in_its_place_is_left_alone_and_named(put: Callable[[Path], Any], says: str, tmp_path: Path) -> None:
    path = path_of(tmp_path / "mail.db")
    with put(path):
        before = path.lstat()
        with pytest.raises(ConfigError, match=says) as refused:
            ControlSocket(path, backlog=10)
        assert str(path) in str(refused.value)
        assert path.lstat() == before
        assert list(tmp_path.iterdir()) == [path]


def test_a_folder_that_is_not_there_is_named(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"nowhere/mail\.db\.sock cannot be made: No such file"):
        ControlSocket(path_of(tmp_path / "nowhere" / "mail.db"), backlog=10)


def test_all_names_of_a_database_lead_to_one_socket(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "var").mkdir()
    Path("other").symlink_to("var")
    Path("mail.db").symlink_to("other/mail.db")
    names = ("var/mail.db", "./var/../var/mail.db", "other/mail.db", "mail.db", tmp_path / "mail.db")
    assert {path_of(Path(name)) for name in names} == {tmp_path / "var" / "mail.db.sock"}


# --- odd peers ---------------------------------------------------------------------------------------------------

Answers = Callable[[asyncio.StreamReader, asyncio.StreamWriter], Awaitable[None]]


def http(status: str, body: str, kind: str = "application/json") -> bytes:
    return f"HTTP/1.1 {status}\r\nContent-Type: {kind}\r\nContent-Length: {len(body)}\r\n\r\n{body}".encode()


async def ask_a_peer(database: Path, *responses: bytes, act: Callable[[], object]) -> object:
    """Call `act` while a peer listens that plays these responses, request by request, and then closes."""
    left = deque(responses)

    async def play(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while left and await reader.readline():
            await reader.readuntil(b"\r\n\r\n")
            writer.write(response := left.popleft())
            if not response:  # it says nothing, for as long as anybody listens
                await reader.read()
        writer.close()

    server = await asyncio.start_unix_server(play, path_of(database))
    async with server:
        return await asyncio.to_thread(act)


def identity(file: DatabaseFile | None) -> bytes:
    assert file is not None
    return http("200 OK", f'{{"path": "{file.path}", "device": {file.device}, "inode": {file.inode}}}')


@pytest.fixture
def database(tmp_path: Path) -> Path:
    file = tmp_path / "mail.db"
    file.touch()
    return file


PEERS = {
    "closes at once": ([], NoAnswer, "gave no answer"),
    "is silent": ([b""], NoAnswer, r"gave no answer within 0\.3 s"),
    "speaks another protocol": ([b"SSH-2.0-OpenSSH_9.2\r\n"], NoAnswer, "gave no answer"),
    "is another web server": ([http("404 Not Found", "<html>", "text/html")], NoAnswer, "status 404 without a reason"),
    "is another API": ([http("404 Not Found", '{"detail": "x"}')], ConfigError, "is no Mailchute service"),
    "answers all with JSON": ([http("200 OK", '{"data": []}')], ConfigError, "is no Mailchute service"),
    "answers with broken JSON": ([http("200 OK", "{")], NoAnswer, "gave no answer"),
}


@pytest.mark.parametrize(("responses", "error", "says"), PEERS.values(), ids=PEERS)
async def test_a_peer_that_is_no_service_is_asked_for_nothing_more(
    responses: list[bytes], error: type[Exception], says: str, database: Path
) -> None:
    with pytest.raises(error, match=says):
        await ask_a_peer(database, *responses, act=lambda: ask(database, "POST", "/erase", patience=0.3))


MIDWAY = {
    "closes": ([], "gave no answer"),
    "falls silent": ([b""], r"gave no answer within 0\.3 s"),
    "breaks off": ([http("200 OK", '{"erased": 1}')[:-4]], "gave no answer"),
    "fails without a reason": ([http("500 Internal Server Error", "oops", "text/plain")], "status 500"),
}


@pytest.mark.parametrize(("responses", "says"), MIDWAY.values(), ids=MIDWAY)
async def test_a_service_that_ends_midway_is_told_in_words(responses: list[bytes], says: str, database: Path) -> None:
    known = identity(DatabaseFile.at(database))
    with pytest.raises(NoAnswer, match=says):
        await ask_a_peer(database, known, *responses, act=lambda: ask(database, "POST", "/erase", patience=0.3))


async def test_a_service_of_another_database_is_asked_for_nothing(database: Path, tmp_path: Path) -> None:
    (other := tmp_path / "other.db").touch()
    theirs = identity(DatabaseFile.at(other))
    with pytest.raises(
        ConfigError, match=r"nothing was done: .*another database open, .*other\.db, and not .*mail\.db"
    ):
        await ask_a_peer(database, theirs, act=lambda: ask(database, "POST", "/erase", patience=0.3))


async def test_a_service_whose_file_was_taken_away_or_replaced_is_asked_for_nothing(database: Path) -> None:
    ours = identity(DatabaseFile.at(database))
    database.rename(database.with_name("moved.db"))
    for is_replaced in (False, True):
        if is_replaced:
            database.touch()
        with pytest.raises(ConfigError, match=r"nothing was done: the database file .* is no longer at .*mail\.db"):
            await ask_a_peer(database, ours, act=lambda: ask(database, "POST", "/erase", patience=0.3))


async def test_changes_that_break_off_are_an_error_and_not_an_end(database: Path) -> None:
    head = b"HTTP/1.1 200 OK\r\nContent-Type: application/x-ndjson\r\nTransfer-Encoding: chunked\r\n\r\n"

    def follow() -> None:
        with following(database) as changes:
            assert changes is not None
            assert next(changes) == {"id": 1}
            next(changes)

    with pytest.raises(NoAnswer, match="gave no answer"):
        await ask_a_peer(
            database,
            identity(DatabaseFile.at(database)),
            head + b'1\r\n\n\r\n9\r\n{"id": 1}\r\n1\r\n\n\r\n',
            act=follow,
        )
