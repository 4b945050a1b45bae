"""A backup of a store that is in use: one moment of it, and nothing where it was broken off."""

import asyncio
import sqlite3
from collections.abc import AsyncIterator
from contextlib import closing
from pathlib import Path

import pytest

from app.mail.errors import InvalidMessage
from app.store.backup import back_up
from tests.support.factories import NOW, make_message
from tests.support.store import Store, opened, seed


@pytest.fixture
async def store(tmp_path: Path) -> AsyncIterator[Store]:
    (tmp_path / "store").mkdir()
    async with opened(tmp_path / "store") as store:
        yield store


async def test_it_is_of_one_moment_and_holds_nobody_up(store: Store, tmp_path: Path) -> None:
    seed(store.file, 5000, at=NOW)
    to = tmp_path / "copy.db"
    copying = asyncio.create_task(back_up(store.file, to))
    number = 0
    while not copying.done():
        number += 1
        await store.outbox.append(make_message("a@a.test", "b@b.test", number=number), lease=None, now=NOW)
    assert await copying == to.stat().st_size
    with closing(sqlite3.connect(to)) as copy:
        [(messages,), (people,), (contents,)] = [
            copy.execute(f"SELECT count(*) FROM {table}").fetchone() for table in ("messages", "recipients", "bodies")
        ]
        assert copy.execute("PRAGMA integrity_check").fetchall() == [("ok",)]
    fresh = messages - 5000
    assert (people, contents) == (5000 + 2 * fresh, messages)
    assert 0 <= fresh < number, "some came while it was made"


async def test_it_leaves_nothing_where_it_was_broken_off(store: Store, tmp_path: Path) -> None:
    seed(store.file, 20_000, at=NOW)
    (tmp_path / "to").mkdir()
    copying = asyncio.create_task(back_up(store.file, tmp_path / "to" / "copy.db"))
    while not list((tmp_path / "to").iterdir()):
        assert not copying.done()
        await asyncio.sleep(0)
    copying.cancel()
    with pytest.raises(asyncio.CancelledError):
        await copying
    assert list((tmp_path / "to").iterdir()) == []


async def test_what_is_there_is_not_written_over(store: Store, tmp_path: Path) -> None:
    there, link = tmp_path / "there", tmp_path / "link"
    there.write_text("mine")
    link.symlink_to(tmp_path / "nowhere")
    for to in (there, link, store.file):
        with pytest.raises(InvalidMessage, match="is there already"):
            await back_up(store.file, to)
    assert there.read_text() == "mine"
    assert {file.name for file in tmp_path.iterdir()} == {"there", "link", "store"}
