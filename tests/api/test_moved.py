"""The database is removed, moved, replaced or written over while it is open: nothing more gets a 2xx that would be lost."""

import asyncio
import os
import shutil
import sqlite3
from collections.abc import AsyncIterator, Callable
from contextlib import closing
from pathlib import Path

import pytest

from app.mail.errors import ConfigError
from app.store.backup import back_up
from app.store.database import Lock
from tests.api.shapes import problem
from tests.support.app import PATIENCE, Application, running
from tests.support.relay import Wait

FILES = ("mailchute.db", "mailchute.db-wal", "mailchute.db-shm")


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "var").mkdir()
    return tmp_path / "var"


@pytest.fixture
async def service(folder: Path) -> AsyncIterator[Application]:
    async with running(folder) as service:
        yield service


async def is_red(service: Application) -> bool:
    """Wait until it is not ready: at once, but for what only a look at all files sees."""
    async with asyncio.timeout(PATIENCE):
        while (await service.client.get("/readyz")).status_code == 200:
            await asyncio.sleep(0.05)
    return True


async def takes_nothing(service: Application, words: str) -> None:
    assert await is_red(service)
    answer = await service.send()
    said = problem(answer, status=503)
    assert said["type"] == "/errors/store-unavailable"
    assert "retry-after" in answer.headers
    health = await service.client.get("/health")
    assert (health.status_code, health.json()["checks"]["store"][0]["status"]) == (503, "fail")
    assert words in health.json()["checks"]["store"][0]["output"]
    assert (await service.client.get("/livez")).status_code == 200


def remove(*names: str) -> Callable[[Path], None]:
    def act(folder: Path) -> None:
        for name in names:
            (folder / name).unlink()

    return act


def move(*names: str) -> Callable[[Path], None]:
    def act(folder: Path) -> None:
        for name in names:
            (folder / name).rename(folder / f"{name}.away")

    return act


def move_folder(folder: Path) -> None:
    folder.rename(folder.with_name("away"))


def move_folder_and_make_another(folder: Path) -> None:
    move_folder(folder)
    folder.mkdir()


def replace(folder: Path) -> None:
    """A restore by mv, without stopping the service."""
    shutil.copyfile(folder / "mailchute.db", folder / "copy.db")
    (folder / "copy.db").replace(folder / "mailchute.db")


def replace_all(folder: Path) -> None:
    for name in FILES:
        shutil.copyfile(folder / name, folder / f"{name}.copy")
    for name in FILES:
        (folder / f"{name}.copy").replace(folder / name)


def replace_by_a_folder(folder: Path) -> None:
    (folder / "mailchute.db").unlink()
    (folder / "mailchute.db").mkdir()


def link_elsewhere(folder: Path) -> None:
    shutil.copyfile(folder / "mailchute.db", folder / "copy.db")
    (folder / "mailchute.db").unlink()
    (folder / "mailchute.db").symlink_to("copy.db")


GONE = [
    pytest.param(remove("mailchute.db"), id="rm-file"),
    pytest.param(remove("mailchute.db-wal"), id="rm-log"),
    pytest.param(remove("mailchute.db-shm"), id="rm-index"),
    pytest.param(remove("mailchute.db-wal", "mailchute.db-shm"), id="rm-log-and-index"),
    pytest.param(remove(*FILES), id="rm-all"),
    pytest.param(shutil.rmtree, id="rm-folder"),
    pytest.param(move("mailchute.db"), id="mv-file"),
    pytest.param(move(*FILES), id="mv-all"),
    pytest.param(move_folder, id="mv-folder"),
    pytest.param(move_folder_and_make_another, id="another-folder"),
    pytest.param(replace, id="another-file"),
    pytest.param(replace_all, id="other-files"),
    pytest.param(replace_by_a_folder, id="a-folder-for-a-file"),
    pytest.param(link_elsewhere, id="a-link-for-a-file"),
]


@pytest.mark.parametrize("act", GONE)
async def test_what_is_not_where_it_was_opened_takes_nothing_and_can_still_be_read(
    service: Application, folder: Path, act: Callable[[Path], None]
) -> None:
    sent = (await service.send()).json()
    before = folder / "mailchute.db"
    act(folder)
    was_there = before.exists()
    await takes_nothing(service, "was removed, moved or replaced while it was open")
    assert before.exists() == was_there, "no new database is made in its place"
    for _ in range(5):  # each reader in turn
        listed = (await service.client.get("/messages")).json()["data"]
        assert [(message["id"], message["state"]) for message in listed] == [(sent["id"], "sent")]
    for path in ("/metrics", "/profiles", "/errors", f"/messages/{sent['id']}/raw"):
        assert (await service.client.get(path)).status_code == 200, path
    for path in ("/profiles/relay/pause", "/profiles/relay/resume"):
        problem(await service.client.post(path), status=503)
    assert len(service.relay.mails) == 1


@pytest.mark.parametrize("names", [FILES[:1], FILES, FILES[1:2]], ids=lambda names: f"{len(names)}-{names[0]}")
async def test_what_is_put_back_is_taken_up_again(service: Application, folder: Path, names: tuple[str, ...]) -> None:
    first = (await service.send()).json()["id"]
    move(*names)(folder)
    await takes_nothing(service, "was removed, moved or replaced")
    for name in names:
        (folder / f"{name}.away").rename(folder / name)
    async with asyncio.timeout(PATIENCE):
        while (await service.client.get("/readyz")).status_code != 200:
            await asyncio.sleep(0.05)
    second = (await service.send()).json()
    assert second["state"] == "sent"
    await service.runtime.close()
    with closing(sqlite3.connect(folder / "mailchute.db")) as db:
        assert db.execute("PRAGMA integrity_check").fetchall() == [("ok",)]
        assert {id_.hex() for (id_,) in db.execute("SELECT id FROM messages")} == {
            first.replace("-", ""),
            second["id"].replace("-", ""),
        }


async def copied_now(service: Application, folder: Path) -> Path:
    await back_up(folder / "mailchute.db", folder / "copy.db")
    return folder / "copy.db"


async def copied_raw(service: Application, folder: Path) -> Path:
    shutil.copyfile(folder / "mailchute.db", folder / "copy.db")
    return folder / "copy.db"


async def of_another(service: Application, folder: Path) -> Path:
    (folder / "other").mkdir()
    async with running(folder / "other"):
        pass
    return folder / "other" / "mailchute.db"


async def empty(service: Application, folder: Path) -> Path:
    (folder / "empty").touch()
    return folder / "empty"


@pytest.mark.parametrize("copied", [copied_now, copied_raw, of_another, empty], ids=lambda copied: copied.__name__)
async def test_a_copy_that_is_written_over_it_takes_nothing_more(
    service: Application, folder: Path, copied: Callable[[Application, Path], object]
) -> None:
    """`cp backup.db mailchute.db`: the file has the same device and inode as ever."""
    await service.send()
    copy = await copied(service, folder)  # type: ignore[misc]
    await service.send()
    await service.runtime.journal.checkpoint()  # as every ten seconds: what the copy has not is in the file
    await service.send()
    shutil.copyfile(copy, folder / "mailchute.db")
    await takes_nothing(service, "was written over by another program")


async def test_a_log_that_was_emptied_takes_nothing_more(service: Application, folder: Path) -> None:
    """`: > mailchute.db-wal`, to make room."""
    await service.send()
    os.truncate(folder / "mailchute.db-wal", 0)
    await takes_nothing(service, "was emptied by another program")


async def test_a_touch_a_foreign_checkpoint_and_a_mode_are_no_reason_to_stop(
    service: Application, folder: Path
) -> None:
    for foreign in (
        lambda db: (folder / "mailchute.db").touch(),
        lambda db: (folder / "mailchute.db").chmod(0o640),
        lambda db: db.execute("PRAGMA wal_checkpoint(PASSIVE)").fetchone(),
        lambda db: db.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchone(),
        lambda db: (folder / "beside").touch(),
    ):
        assert (await service.send()).json()["state"] == "sent"
        with closing(sqlite3.connect(folder / "mailchute.db")) as db:
            foreign(db)
        assert (await service.send()).json()["state"] == "sent"
        await service.runtime.journal.look()
        await service.runtime.journal.checkpoint()
        await service.runtime.journal.fold()
    assert (await service.client.get("/readyz")).status_code == 200


async def test_what_was_sent_when_it_went_away_is_recorded_when_it_is_back(service: Application, folder: Path) -> None:
    verdict = asyncio.Event()
    service.relay.on("CONTENT", (Wait(verdict), "250 2.0.0 Ok"))
    id_ = (await service.send(prefer="respond-async")).json()["id"]
    await service.relay.mail()
    move(*FILES)(folder)
    verdict.set()
    assert await is_red(service)
    for name in FILES:
        (folder / f"{name}.away").rename(folder / name)
    found = await service.settled(id_)
    assert (found["state"], len(found["attempts"]), len(service.relay.mails)) == ("sent", 1, 1)


async def test_a_lock_file_that_was_removed_is_made_anew_and_held(service: Application, folder: Path) -> None:
    (folder / "mailchute.db.lock").unlink()
    await service.runtime.journal.look()
    with pytest.raises(ConfigError, match="in use by another"):
        Lock(folder / "mailchute.db")
    assert (await service.send()).json()["state"] == "sent"


async def test_where_another_process_takes_the_database_meanwhile_this_one_takes_nothing_more(
    service: Application, folder: Path
) -> None:
    (folder / "mailchute.db.lock").unlink()
    other = Lock(folder / "mailchute.db")
    await takes_nothing(service, "in use by another Mailchute process")
    other.release()
    await service.runtime.journal.look()
    assert (await service.send()).json()["state"] == "sent"


async def test_what_was_put_in_its_place_is_left_as_it_is_by_a_stop(service: Application, folder: Path) -> None:
    """The last connection that closes deletes the log by its name, whose ever it is now."""
    await service.send()
    move(*FILES)(folder)
    with closing(sqlite3.connect(folder / "mailchute.db")) as other:
        other.execute("PRAGMA journal_mode = WAL")
        other.execute("CREATE TABLE notes (note)")
        other.execute("INSERT INTO notes VALUES ('restored')")
        other.commit()
        for name in FILES:  # as another program, or a copy of all three, has left them
            shutil.copyfile(folder / name, folder / f"{name}.restored")
    for name in FILES:
        (folder / f"{name}.restored").replace(folder / name)
    await takes_nothing(service, "was removed, moved or replaced")
    await service.runtime.close()
    with closing(sqlite3.connect(folder / "mailchute.db")) as db:
        assert db.execute("SELECT note FROM notes").fetchall() == [("restored",)]


async def test_a_copy_that_was_written_over_it_is_what_the_next_start_has(service: Application, folder: Path) -> None:
    await service.send()
    copy = await copied_now(service, folder)
    await service.send()
    shutil.copyfile(copy, folder / "mailchute.db")
    await takes_nothing(service, "was written over by another program")
    await service.runtime.close()
    assert (folder / "mailchute.db").read_bytes() == copy.read_bytes()
    assert (folder / "mailchute.db-wal.old").exists()
    assert not (folder / "mailchute.db-wal").exists()
