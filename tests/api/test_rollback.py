"""Rows that this version cannot read, since a newer one wrote them or they are damaged: their neighbours go on.

Each case starts a service on a database in which one column of some messages of one state is damaged, each in its own
way. The last message of each state is whole.
"""

import asyncio
import shutil
import sqlite3
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from uuid import UUID

import pytest

from app.mail.outcome import MessageState
from tests.api.shapes import flat
from tests.support.app import Application, running
from tests.support.relay import Close

EACH = 14  # messages of a state; all but one may be damaged
TO = {
    "sent": "ann@theirs.test",
    "failed": "refused@theirs.test",
    "partial": "ann@theirs.test, refused@theirs.test",
    "deferred": "busy@theirs.test",
    "in_doubt": "lost@theirs.test",
    "queued": "ann@theirs.test, bob@theirs.test, cid@theirs.test",
}


@dataclass(frozen=True, slots=True)
class Left:
    """A database that a service has left, and its messages by state."""

    file: Path
    ids: Mapping[str, Sequence[str]]


@pytest.fixture(scope="module")
def left() -> Iterator[Left]:
    with tempfile.TemporaryDirectory() as name:
        yield asyncio.run(_leave(Path(name)))


async def _leave(folder: Path) -> Left:
    ids: dict[str, list[str]] = {}
    async with running(folder) as service:
        service.relay.on("RCPT", "550 5.1.1 No such user", match="refused@")
        service.relay.on("RCPT", "450 4.2.1 Busy", match="busy@")
        for state, recipients in TO.items():
            if state == "in_doubt":
                service.relay.on("CONTENT", Close())
            elif state == "queued":
                assert (await service.client.post("/profiles/relay/pause")).status_code == 200
            for _ in range(EACH):
                prefer = "respond-async" if state == "queued" else None
                answer = (await service.send(to=recipients, subject=state, tags=["vip"], prefer=prefer)).json()
                assert answer["state"] == state, answer
                ids.setdefault(state, []).append(answer["id"])
    return Left(folder / "mailchute.db", ids)


FAILURES = {
    "unknown reason": 'replace(COLUMN, \'"reason":"\', \'"reason":"newer_\')',
    "unknown code": 'replace(COLUMN, \'"code":"\', \'"code":"NEWER\')',
    "unknown class": 'replace(COLUMN, \'"cls":"\', \'"cls":"newer_\')',
    "unknown phase": 'replace(COLUMN, \'"phase":"\', \'"phase":"newer_\')',
    "half of it": "substr(COLUMN, 1, length(COLUMN) / 2)",
    "no JSON": "'rubbish'",
    "list": "'[1, 2]'",
    "number": "'5'",
    "null": "'null'",
    "nulls": '\'{"code": null, "reason": null, "cls": null, "phase": null, "message": null, "hint": null}\'',
    "other types": '\'{"code": [], "reason": {}, "cls": 1, "phase": true, "message": 1, "smtp_code": "x"}\'',
    "bytes": "x'ff00fe'",
    "no UTF-8": "CAST(x'7b22ff' AS TEXT)",
}
NUMBERS = {
    "text": "'rubbish'",
    "instant": "'2026-11-30T12:00:00Z'",
    "bytes": "x'ff'",
    "most": "9223372036854775807",
    "least": "-9223372036854775807",
    "fraction": "1.5e300",
    "infinite": "9e999",
    "less than 0": "-7",
}
TEXTS = {"bytes": "x'ff00fe'", "no UTF-8": "CAST(x'61ff' AS TEXT)", "number": "5", "empty": "''"}
JSONS = {"no JSON": "'rubbish'", "number": "'5'", "nested": "'[[1], {}]'", "object": "'{\"a\": [1]}'", "bytes": "x'ff'"}
IDS = {"short": "x'ff'", "text": "'0123456789abcdef'", "long": "id || x'ff'"}
FACTS = ("phase", "class", "tls", "auth", "transcript", "phases", "extensions", "tls_names", "smtp_code", "port")


def _cases() -> Iterator[Any]:
    def case(state: str, table: str, column: str, values: Mapping[str, str], *, where: str = "") -> Any:
        key = "id" if table == "messages" else "message_id"
        sqls = [
            f"UPDATE {table} SET {column} = {value.replace('COLUMN', column)} WHERE {key} = :id {where}"
            for value in values.values()
        ]
        return pytest.param(state, sqls, id=f"{state}-{table}.{column}")

    for state in ("failed", "partial", "deferred", "in_doubt"):
        yield case(state, "messages", "failure", FAILURES)
        yield case(state, "recipients", "failure", FAILURES)
    for state in TO:
        every = {"state": "messages SET state", "code": "messages SET error_code", "whose": "recipients SET state"}
        updates = [
            f"UPDATE {what} = 'NEWER' WHERE {'id' if 'messages' in what else 'message_id'} = :id"
            for what in every.values()
        ]
        deletes = [
            f"DELETE FROM {table} WHERE message_id = :id" for table in ("recipients", "attempts", "bodies", "tags")
        ]
        yield pytest.param(state, [*updates, *deletes], id=f"{state}-unknown-or-missing")
        yield case(state, "messages", "id", IDS)
    for state in ("sent", "deferred", "queued"):
        for column in ("created_at", "expires_at", "due_at", "size", "attempts", "smtputf8", "sandbox", "lease_token"):
            yield case(state, "messages", column, NUMBERS)
        for column in ("caller", "profile", "message_id", "sender", "subject", "error_code"):
            yield case(state, "messages", column, TEXTS)
        for column in ("tags", "metadata", "warnings"):
            yield case(state, "messages", column, JSONS)
    for column in ("number", "started_at"):
        yield case("deferred", "attempts", column, NUMBERS)
    for column in ("profile", "error_code", "reason", "handover"):
        yield case("failed", "attempts", column, TEXTS)
    yield case("failed", "attempts", "facts", FAILURES)
    for value in ("'newer'", "json('{\"a\": [1]}')", "json('[[1], 2, null]')", "NULL"):
        yield pytest.param(
            "failed",
            [
                f"UPDATE attempts SET facts = json_set(facts, '$.{name}', {value}) WHERE message_id = :id"
                for name in FACTS
            ],
            id=f"failed-attempts.facts-{value}",
        )
    yield case("queued", "recipients", "position", NUMBERS, where="AND position = 1")
    yield case("queued", "recipients", "address", TEXTS, where="AND position = 1")
    yield pytest.param(
        "queued",
        [f"DELETE FROM recipients WHERE message_id = :id AND position = {n}" for n in range(3)],
        id="queued-recipients-of-one",
    )
    yield pytest.param("queued", ["UPDATE messages SET due_at = NULL WHERE id = :id"], id="queued-messages.due_at-null")
    yield pytest.param(
        "deferred",
        ["UPDATE messages SET lease_token = 7, attempts = attempts + 1 WHERE id = :id"],
        id="deferred-leased-without-its-attempt",
    )


@pytest.mark.parametrize(("state", "sqls"), list(_cases()))
async def test_a_row_that_cannot_be_read_stops_none_of_its_neighbours(
    left: Left, tmp_path: Path, state: str, sqls: list[str]
) -> None:
    shutil.copyfile(left.file, tmp_path / "mailchute.db")
    damaged = left.ids[state][: len(sqls)]
    others = {id_ for ids in left.ids.values() for id_ in ids} - set(damaged)
    _damage(tmp_path / "mailchute.db", dict(zip(damaged, sqls, strict=True)))
    async with running(tmp_path, keep=True) as service:
        assert others <= {message["id"] for message in await _pages(service, "/messages")}
        tried = others - set(left.ids["queued"])
        assert tried <= {attempt["id"] for attempt in await _pages(service, "/attempts")}
        for path in ("/metrics", "/health", "/profiles", "/errors", "/messages?q=vip", f"/messages?state={state}"):
            answer = await service.client.get(path)
            assert answer.status_code == 200, (path, answer.text)
        for id_, sql in zip(damaged, sqls, strict=True):
            details = await service.client.get(f"/messages/{id_}")
            assert details.status_code == (404 if "SET id" in sql else 200), (sql, details.text)
            assert (await service.client.get(f"/messages/{id_}/raw")).status_code in (200, 404), sql

        neighbour = left.ids["queued"][-1]
        verdict = service.runtime.verdicts.expect(UUID(neighbour))
        assert (await service.client.post("/profiles/relay/resume")).status_code == 200
        async with asyncio.timeout(5):
            await verdict
        assert (await service.look_up(neighbour))["state"] == "sent"
        assert (await service.send()).json()["state"] == "sent"

        for act in ("retry", "cancel"):
            answer = await service.client.post(f"/messages/{act}", params={"profile": "relay"})
            assert answer.status_code == 200, answer.text
        for whom in ("ann", "refused", "busy", "lost"):
            answer = await service.client.post("/erase", json={"address": f"{whom}@theirs.test"})
            assert answer.status_code == 200, answer.text
        assert others <= {message["id"] for message in await _pages(service, "/messages")}
        assert (await service.client.get("/metrics")).status_code == 200


async def _pages(service: Application, path: str) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = []
    query: dict[str, str] = {}
    while True:
        answer = await service.client.get(path, params={"limit": "100", **query})
        assert answer.status_code == 200, answer.text
        found += answer.json()["data"]
        assert len(found) < 1000, "the pages have no end"
        if not answer.json()["has_more"]:
            return found
        query = {"cursor": answer.json()["next_cursor"]}


def _damage(file: Path, damages: Mapping[str, str]) -> None:
    with closing(sqlite3.connect(file)) as db:
        db.execute("PRAGMA foreign_keys = OFF")
        for id_, sql in damages.items():
            db.execute(sql, {"id": UUID(id_).bytes})
        db.commit()


CIRCUIT = (
    '{"failure": {"code": "EAUTH", "reason": "auth_rejected", "cls": "configuration", "phase": "auth", "message": "No", '
    '"hint": "", "smtp_code": 535, "enhanced_code": null, "reply": null}, "opened_at": 1, "next_trial_at": 1, '
    '"tried": 0, "fingerprint": "00:00"}'
)


@pytest.mark.parametrize(
    "circuit",
    [
        *(pytest.param(f"'{text}'", id=text) for text in ("", "rubbish", "5", "null", "[]", "{}", '{"failure": 5}')),
        pytest.param("x'ff'", id="bytes"),
        *(
            pytest.param(f"json_set('{CIRCUIT}', '$.{name}', {value})", id=f"{name} {value}")
            for name in ("failure.reason", "failure.phase", "failure.cls", "opened_at", "next_trial_at", "tried")
            for value in ("'newer'", "json('[1]')", "9e99", "-5", "NULL")
        ),
        *(
            pytest.param(f"json_set('{CIRCUIT}', '$.fingerprint', {value})", id=f"fingerprint {value}")
            for value in ("'zz:00'", "''", "5", "NULL")
        ),
    ],
)
async def test_a_circuit_that_cannot_be_read_keeps_no_service_from_starting_and_no_mail_from_going(
    tmp_path: Path, circuit: str
) -> None:
    async with running(tmp_path):
        pass
    with closing(sqlite3.connect(tmp_path / "mailchute.db")) as db:
        db.execute(f"INSERT INTO profile_states VALUES ('relay', NULL, {circuit}), (x'ff', 'rubbish', 'rubbish')")
        db.commit()
    async with running(tmp_path, keep=True) as service:
        assert (await service.client.get("/profiles")).status_code == 200
        assert (await service.client.post("/profiles/relay/resume")).status_code == 200
        assert (await service.send()).json()["state"] == "sent"


@pytest.mark.parametrize("paused_at", NUMBERS.values(), ids=NUMBERS.keys())
async def test_a_profile_that_was_paused_at_a_time_that_cannot_be_read_stays_paused(
    tmp_path: Path, paused_at: str
) -> None:
    async with running(tmp_path):
        pass
    with closing(sqlite3.connect(tmp_path / "mailchute.db")) as db:
        db.execute(f"INSERT INTO profile_states VALUES ('relay', {paused_at}, NULL)")
        db.commit()
    async with running(tmp_path, keep=True) as service:
        assert (await service.client.get("/profiles/relay")).json()["paused_at"] is not None
        assert (await service.send(prefer="respond-async")).json()["state"] == "queued"
        assert (await service.client.post("/profiles/relay/resume")).json()["paused_at"] is None


async def test_what_is_not_known_is_shown_as_unexpected_and_counted_so(left: Left, tmp_path: Path) -> None:
    shutil.copyfile(left.file, tmp_path / "mailchute.db")
    id_ = left.ids["failed"][0]
    with closing(sqlite3.connect(tmp_path / "mailchute.db")) as db:
        for table, key in (("messages", "id"), ("recipients", "message_id")):
            newer = FAILURES["unknown reason"].replace("COLUMN", "failure")
            db.execute(f"UPDATE {table} SET failure = {newer} WHERE {key} = ?", (UUID(id_).bytes,))
        db.execute("UPDATE attempts SET reason = 'newer' WHERE message_id = ?", (UUID(id_).bytes,))
        db.execute("UPDATE failure_counts SET reason = 'newer' WHERE reason = 'mailbox_unknown'")
        db.commit()
    async with running(tmp_path, keep=True) as service:
        found = await service.look_up(id_)
        assert (found["state"], found["error_code"], found["reason"]) == ("failed", "EENVELOPE", "unexpected")
        assert "No such user" in found["message"], "the words that it was stored with"
        assert (found["recipients"][0]["reason"], found["attempts"][0]["reason"]) == ("unexpected", "unexpected")
        (explained,) = (await service.client.get("/errors/ECONNECTION")).json()["reasons"][-1:]
        assert (explained["reason"], explained["count_24h"]) == ("unexpected", 2 * EACH)


async def test_a_message_that_lost_its_recipients_or_its_content_fails_and_says_so(left: Left, tmp_path: Path) -> None:
    shutil.copyfile(left.file, tmp_path / "mailchute.db")
    of_nobody, empty, cut = left.ids["queued"][:3]
    _damage(
        tmp_path / "mailchute.db",
        {
            of_nobody: "DELETE FROM recipients WHERE message_id = :id",
            empty: "DELETE FROM bodies WHERE message_id = :id",
            cut: "UPDATE bodies SET bytes = substr(bytes, 1, 20) WHERE message_id = :id",
        },
    )
    async with running(tmp_path, keep=True) as service:
        assert (await service.client.post("/profiles/relay/resume")).status_code == 200
        for id_, words in ((of_nobody, "recipients"), (empty, "content"), (cut, "content")):
            found = await service.settled(id_)
            assert (found["state"], found["reason"], found["class"]) == ("failed", "unexpected", "permanent")
            assert words in found["message"]
        assert (await service.settled(left.ids["queued"][-1]))["state"] == "sent"
    assert not [mail for mail in service.relay.mails if not mail.content]


async def test_what_waits_and_lost_its_time_goes_at_the_next_start(left: Left, tmp_path: Path) -> None:
    shutil.copyfile(left.file, tmp_path / "mailchute.db")
    queued, deferred = left.ids["queued"][0], left.ids["deferred"][0]
    lost = "UPDATE messages SET due_at = NULL WHERE id = :id"
    _damage(tmp_path / "mailchute.db", {queued: lost, deferred: lost})
    async with running(tmp_path, keep=True) as service:
        assert (await service.client.post("/profiles/relay/resume")).status_code == 200
        for id_ in (queued, deferred):
            assert (await service.settled(id_))["state"] == "sent"


async def test_a_state_that_is_not_known_is_settled_by_the_usual_acts(left: Left, tmp_path: Path) -> None:
    shutil.copyfile(left.file, tmp_path / "mailchute.db")
    newer, waits = left.ids["sent"][0], left.ids["queued"][0]
    _damage(
        tmp_path / "mailchute.db",
        {
            newer: "UPDATE recipients SET state = 'delivered' WHERE message_id = :id",
            waits: "UPDATE messages SET state = 'held' WHERE id = :id",
        },
    )
    with closing(sqlite3.connect(tmp_path / "mailchute.db")) as db:
        db.execute("UPDATE messages SET state = 'delivered' WHERE id = ?", (UUID(newer).bytes,))
        db.commit()
    async with running(tmp_path, keep=True) as service:
        found = await service.look_up(newer)
        assert (found["state"], found["reason"], found["class"]) == ("in_doubt", "unexpected", "unknown")
        waiting = service.runtime.census.waiting
        assert flat(await service.client.post(f"/messages/{newer}/resolve", json={"as": "sent"}), status=200)["ok"]
        assert (await service.look_up(waits))["state"] == "queued"
        assert flat(await service.client.post(f"/messages/{waits}/cancel"), status=200)["state"] == "cancelled"
        assert service.runtime.census.waiting == waiting - 1
        assert service.runtime.census.of(MessageState.IN_DOUBT) == EACH
