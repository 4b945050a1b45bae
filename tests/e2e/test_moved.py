"""The database is taken away from a service that runs, and what was answered with 2xx is there at the next start."""

import shutil
import sqlite3
from collections.abc import Callable
from contextlib import closing
from pathlib import Path
from uuid import UUID

import pytest

from tests.support.relay import Relay
from tests.support.service import MAILCHUTE, Service, run

FILES = ("mailchute.db", "mailchute.db-wal", "mailchute.db-shm")


def through(relay: Relay) -> dict[str, str]:
    return {"SMTP_HOST": relay.host, "SMTP_PORT": f"{relay.port}", "SMTP_TLS": "none"}


def remove_the_file(folder: Path) -> None:
    (folder / "mailchute.db").unlink()


def remove_all(folder: Path) -> None:
    for name in FILES:
        (folder / name).unlink()


@pytest.mark.parametrize("act", [remove_the_file, remove_all], ids=lambda act: act.__name__)
async def test_what_was_removed_can_be_saved_from_the_service_and_put_back(act: Callable[[Path], None]) -> None:
    async with Relay() as relay, Service(through(relay)) as service:
        kept = (await service.send()).json()["id"]
        act(service.database.parent)
        assert (await service.send()).status_code == 503
        assert (await service.http.get("/readyz")).status_code == 503
        assert (await service.message(kept))["state"] == "sent"
        said = await service.logged("store.look_failed")
        assert "removed, moved or replaced" in said["error"]
        saved = await run(MAILCHUTE, "backup", "saved.db", folder=service.folder, settings=through(relay))
        assert (saved.code, saved.err) == (0, "")
        assert await service.stop() == 0
        for name in FILES:
            service.database.with_name(name).unlink(missing_ok=True)
        (service.folder / "saved.db").rename(service.database)
        async with Service(through(relay), folder=service.folder) as second:
            assert (await second.message(kept))["state"] == "sent"
            assert (await second.send()).json()["state"] == "sent"
    assert len(relay.mails) == 2


async def test_a_backup_that_is_copied_over_it_is_told_and_nothing_is_taken_on_top_of_it() -> None:
    async with Relay() as relay, Service(through(relay)) as service:
        first = (await service.send()).json()["id"]
        assert (await run(MAILCHUTE, "backup", "copy.db", folder=service.folder, settings=through(relay))).code == 0
        await service.send()
        shutil.copyfile(service.folder / "copy.db", service.database)
        assert (await service.send()).status_code == 503
        said = await service.logged("store.look_failed")
        assert "written over by another program" in said["error"]
        refused = await run(MAILCHUTE, "backup", "no.db", folder=service.folder, settings=through(relay))
        assert (refused.code, (service.folder / "no.db").exists()) == (1, False)
        assert await service.stop() == 0
        async with Service(through(relay), folder=service.folder) as second:
            assert (await second.send()).json()["state"] == "sent"
        with closing(sqlite3.connect(service.database)) as db:
            assert db.execute("PRAGMA integrity_check").fetchall() == [("ok",)]
            assert (UUID(first).bytes,) in db.execute("SELECT id FROM messages").fetchall()
