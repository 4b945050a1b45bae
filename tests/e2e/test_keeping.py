"""What the program keeps and forgets: by age, in a backup and out of it again, and when somebody asks to be forgotten."""

import json
import sqlite3
import stat
import tempfile
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from uuid import UUID

import pytest

from tests.support.relay import Relay
from tests.support.service import MAILCHUTE, Ended, Service, run


@pytest.fixture
def folder() -> Iterator[Path]:
    with tempfile.TemporaryDirectory(prefix="mailchute-") as name:
        yield Path(name)


def leading_to(relay: Relay, **more: str) -> dict[str, str]:
    return {"SMTP_HOST": relay.host, "SMTP_PORT": f"{relay.port}", "SMTP_TLS": "none", **more}


async def test_a_body_that_is_forgotten_is_said_to_be_and_nothing_is_sent_again_without_it() -> None:
    async with Relay() as relay:
        relay.on("RCPT", "550 5.1.1 no such user")
        async with Service(leading_to(relay)) as first:
            id_ = (await first.send()).json()["id"]
            assert (await first.http.get(f"/messages/{id_}/raw")).status_code == 200
            assert await first.stop() == 0
            async with Service(leading_to(relay, MAILCHUTE_RETENTION__BODIES="0"), folder=first.folder) as second:
                said = await second.logged("store.forgotten")
                assert (said["bodies"], said["messages"]) == (1, 0)
                raw, again = [
                    await second.http.get(f"/messages/{id_}/raw"),
                    await second.http.post(f"/messages/{id_}/retry"),
                ]
                assert (raw.status_code, again.status_code) == (404, 409)
                for answer in (raw, again):
                    assert "content is not kept any more" in answer.json()["detail"]
                assert (await second.message(id_))["state"] == "failed"


async def test_after_a_restore_what_waits_is_held_until_it_is_looked_through_and_then_goes_once(folder: Path) -> None:
    async with Relay() as relay:
        settings = leading_to(relay)

        async def command(*words: str) -> str:
            said = await run(MAILCHUTE, *words, folder=folder, settings=settings)
            assert said.code == 0, said
            return said.out

        async with Service(settings, folder=folder) as before:
            relay.on("RCPT", "450 4.2.1 busy", times=2)
            goes_meanwhile, waits = [(await before.send()).json()["id"] for _ in range(2)]
            assert (folder / "copy.db").name in await command("backup", "copy.db")
            assert (await before.http.post(f"/messages/{goes_meanwhile}/retry")).json()["state"] == "sent"
            assert (await before.send()).json()["state"] == "sent"  # the backup knows nothing of it
            assert await before.stop() == 0
        assert len(relay.mails) == 2
        (folder / "copy.db").rename(before.database)
        connections = relay.connections
        async with Service(settings, folder=folder, command=(MAILCHUTE, "serve", "--hold")) as held:
            assert (
                "HELD: nothing is sent until it is let go, a profile at a time: mailchute resume default" in held.text
            )
            for id_ in (goes_meanwhile, waits):
                said = (await held.http.post(f"/messages/{id_}/retry", headers={"Prefer": "respond-async"})).json()
                assert (said["state"], "is paused" in said["warnings"][0]) == ("queued", True)
            fresh = await held.send(prefer="wait=0")
            assert (fresh.status_code, fresh.json()["state"]) == (202, "queued")
            assert fresh.json()["warnings"] == [
                "the profile default is paused: the message waits until somebody resumes it"
            ]
            assert (await held.http.post(f"/messages/{goes_meanwhile}/cancel")).json()["state"] == "cancelled"
            assert await held.stop() == 0
        assert relay.connections == connections
        async with Service(settings, folder=folder) as later:  # a restart lets nothing go
            assert (await later.http.get("/profiles/default")).json()["paused_at"]
            assert relay.connections == connections
            assert await command("resume", "default") == "default: not paused\n"
            for id_ in (waits, fresh.json()["id"]):
                await later.logged("delivery.sent", message_id=id_)
            assert (await later.message(goes_meanwhile))["state"] == "cancelled"
        assert len(relay.mails) == 2 + 2


@pytest.mark.parametrize("is_running", [True, False], ids=["running", "none"])
async def test_a_backup_is_one_file_of_the_owners_and_is_never_written_over_another(
    folder: Path, is_running: bool
) -> None:
    async with Relay() as relay:
        settings = leading_to(relay)

        async def command(*words: str) -> Ended:
            return await run(MAILCHUTE, *words, folder=folder, settings=settings)

        async def back_up_twice() -> None:
            said = await command("backup", "kept.db", "--json")
            assert said.code == 0, said
            answer = json.loads(said.out)
            assert (answer["file"], answer["bytes"]) == (str(folder / "kept.db"), (folder / "kept.db").stat().st_size)
            again = await command("backup", "kept.db")
            assert (again.code, again.out) == (2, "")
            assert "/file: " in again.err
            assert "kept.db is there already, and nothing is written over; name a new file" in again.err

        async with Service(settings, folder=folder) as service:
            id_ = (await service.send()).json()["id"]
            if is_running:
                await back_up_twice()
            assert await service.stop() == 0
        if not is_running:
            await back_up_twice()
        assert stat.S_IMODE((folder / "kept.db").stat().st_mode) == 0o600
        assert {file.name for file in folder.iterdir()} == {"var", "kept.db"}
        with closing(sqlite3.connect(folder / "kept.db")) as kept:
            assert kept.execute("PRAGMA integrity_check").fetchall() == [("ok",)]
            assert kept.execute("SELECT id, state FROM messages").fetchall() == [(UUID(id_).bytes, "sent")]
        nowhere = await command("backup", "nowhere/kept.db")
        assert (nowhere.code, "No such file or directory" in nowhere.err) == (2, True)


async def test_only_the_operator_has_files_written() -> None:
    async with Service() as service:
        for path in ("/backup", "/vacuum"):
            answer = await service.http.post(path, json={"file": str(service.folder / "kept.db")})
            assert answer.status_code == 404
        relative = await service.operator.post("/backup", json={"file": "kept.db"})
        assert relative.status_code == 422
        assert relative.json()["errors"][0] == {
            "pointer": "/file",
            "detail": "file is an absolute path, such as /var/backups/mailchute.db",
        }


async def test_whoever_is_erased_is_in_no_file_any_more_once_it_is_vacuumed(folder: Path) -> None:
    async with Relay() as relay:
        settings = leading_to(relay)
        zed, trace = "zedekiah@xylophone.test", b"zedekiah"

        async def command(*words: str) -> Ended:
            return await run(MAILCHUTE, *words, folder=folder, settings=settings)

        async with Service(settings, folder=folder) as service:
            relay.on("RCPT", f"550 5.1.1 <{zed}> unknown", times=1)
            assert (await service.send(to=zed)).json()["state"] == "failed"
            relay.on("RCPT", f"450 4.2.1 <{zed}> busy", times=1)
            waits = (await service.send(to=f"ann@theirs.test, {zed}", text=f"Dear {zed}")).json()["id"]
            said = await command("erase", zed)
            assert (said.code, said.out) == (1, "1 message erased\n")
            assert "1 message left as they are" in said.err
            assert (await service.http.post(f"/messages/{waits}/cancel")).status_code == 200
            said = await command("erase", "zedekiah@XYLOPHONE.test", "--json")
            assert (said.code, json.loads(said.out)) == (0, {"erased": 1, "live": 0})
            assert "bytes before" in (await command("vacuum")).out
            assert [
                file.name for file in (folder / "var").iterdir() if file.is_file() and trace in file.read_bytes()
            ] == []
            assert trace not in "".join(service.errors).encode(), "not in the log either"
            assert [s["error_code"] for s in (await service.http.get("/messages")).json()["data"]] == [
                None,
                "EENVELOPE",
            ]
