"""Forgetting a person on a real file: their bytes are nowhere any more, and other people's messages are as they were."""

import sqlite3
from collections.abc import AsyncIterator
from contextlib import closing
from dataclasses import replace
from pathlib import Path

import pytest

from app.mail.acts import Act
from app.mail.errors import StoreUnavailable
from app.mail.message import Lease, Repeat
from app.mail.outcome import MessageState, RecipientState
from app.store import erasing
from app.store.erasing import ERASED
from app.store.history import Filter
from tests.support.factories import NOW, RECIPIENT, SENDER, make_message
from tests.support.store import DAY, Store, failure, opened, seed

ZED = "zedekiah.quux@xylophone.test"
CONTENT = f"To: Zedekiah <{ZED}>\r\nSubject: Order\r\n\r\nDear Zedekiah\r\n".encode()
REFUSED = replace(failure(), message=f"The relay says no to <{ZED}>", hint=f"Ask {ZED}", reply=f"550 <{ZED}>: unknown")
TRACES = (b"zedekiah", b"Zedekiah", b"quux", b"xylophone")


@pytest.fixture
async def store(tmp_path: Path) -> AsyncIterator[Store]:
    async with opened(tmp_path) as store:
        yield store


def traces(store: Store) -> list[tuple[str, bytes]]:
    """Name what of ZED is in any of the files that the database is made of."""
    files = sorted(store.file.parent.glob("mailchute.db*"))
    return [(file.name, trace) for file in files for trace in TRACES if trace in file.read_bytes()]


def rows_with_traces(store: Store) -> list[object]:
    """Name what of ZED is in any row of any table, those that the index of words is made of included."""
    with closing(sqlite3.connect(store.file)) as other:
        tables = other.execute("SELECT name FROM sqlite_master WHERE type = 'table' AND name != 'message_search'")
        return [
            (table, row)
            for (table,) in tables.fetchall()
            for row in other.execute(f"SELECT * FROM {table}")
            if any(trace in repr(row).encode() for trace in TRACES)
        ]


async def test_an_address_is_in_no_row_index_or_log_any_more_and_after_a_vacuum_in_no_byte(store: Store) -> None:
    seed(store.file, 3000, at=NOW - DAY)  # pages and segments enough to be split, joined and merged
    await store.search.catch_up()
    for n in range(40):
        await store.ended(MessageState.SENT, ZED, content=CONTENT * (n + 1))
        await store.ended(MessageState.FAILED, ZED, content=CONTENT, why=REFUSED)
        await store.ended(MessageState.SENT, f"ann{n}@theirs.test", sender=ZED, content=CONTENT)
        await store.search.catch_up()
    await store.ended(MessageState.SENT, ZED, content=CONTENT)  # not indexed yet
    assert {trace for _, trace in traces(store)} == set(TRACES)
    assert rows_with_traces(store)
    assert await store.erasing.erase(ZED) == (121, 0)
    assert rows_with_traces(store) == []
    assert b"Dear Zedekiah" not in store.file.read_bytes(), "deleted bytes are zeroed"
    assert store.file.with_name("mailchute.db-wal").stat().st_size == 0
    assert await store.history.newest(Filter(q='"zedekiah"*'), at_most=10) == []
    assert store.count("messages") == store.count("message_search") == 3121
    await store.erasing.vacuum()
    assert traces(store) == []
    assert store.file.with_name("mailchute.db-wal").stat().st_size == 0


async def test_states_times_and_codes_stay(store: Store) -> None:
    id_ = await store.ended(MessageState.FAILED, ZED, content=CONTENT, why=REFUSED)
    before, [tried] = await store.history.find(id_), await store.history.attempts(id_)
    await store.erasing.erase(ZED)
    after, [attempt] = await store.history.find(id_), await store.history.attempts(id_)
    assert before is not None
    assert after is not None
    assert (after.subject, after.tags, after.metadata) == ("", [], {})
    [recipient] = after.recipients
    assert (recipient.address, recipient.state) == (ERASED, RecipientState.REJECTED)
    for said in (recipient.failure, after.failure):
        assert said == replace(REFUSED, message="erased", hint="", reply=None)
    for name in ("state", "profile", "size", "attempts", "created_at", "expires_at", "sender", "message_id"):
        assert getattr(after, name) == getattr(before, name)
    assert replace(attempt, facts={}) == replace(tried, facts={})
    assert attempt.facts == {
        k: v for k, v in tried.facts.items() if k not in ("message", "hint", "reply", "transcript")
    }
    assert await store.outbox.content(id_) is None


async def test_of_a_message_to_several_only_theirs_goes_and_the_body(store: Store) -> None:
    id_ = await store.ended(MessageState.FAILED, ZED, "Ann@other.test", content=CONTENT, why=failure())
    await store.search.catch_up()
    assert await store.erasing.erase(ZED) == (1, 0)
    found = await store.history.find(id_)
    assert found is not None
    assert [r.address for r in found.recipients] == [ERASED, "Ann@other.test"]
    assert found.recipients[1].failure == failure()
    assert found.sender == SENDER
    assert await store.outbox.content(id_) is None
    assert [s.id for s in await store.history.newest(Filter(q='"other"*'), at_most=10)] == [id_]


async def test_another_ones_failure_goes_where_it_names_them(store: Store) -> None:
    id_ = await store.ended(
        MessageState.FAILED, "ann@other.test", ZED, why=replace(REFUSED, reply=f"554 {ZED.upper()}")
    )
    await store.erasing.erase(ZED)
    found = await store.history.find(id_)
    assert found is not None
    assert [r.failure and r.failure.reply for r in found.recipients] == [None, None]


async def test_as_a_sender_they_go_and_so_does_their_domain(store: Store) -> None:
    id_ = await store.ended(MessageState.SENT, sender=ZED)
    assert await store.erasing.erase(ZED) == (1, 0)
    found = await store.history.find(id_)
    assert found is not None
    assert (found.sender, found.message_id) == (ERASED, f"<{id_}@erased.invalid>")
    assert [r.address for r in found.recipients] == [RECIPIENT]


async def test_what_has_not_ended_is_counted_and_left_and_goes_once_it_has(store: Store) -> None:
    waits = make_message(ZED, number=90, content=CONTENT, sender=ZED)
    await store.outbox.append(waits, lease=None, now=NOW)
    sending = (await store.taken(ZED, content=CONTENT)).snapshot.id
    doubtful = await store.ended(MessageState.IN_DOUBT, ZED, content=CONTENT)
    deferred = await store.ended(MessageState.DEFERRED, ZED, content=CONTENT)
    assert await store.erasing.erase(ZED) == (0, 4)
    for id_ in (waits.id, sending, doubtful, deferred):
        found = await store.history.find(id_)
        assert found is not None
        assert found.recipients[0].address == ZED
        assert await store.outbox.content(id_) == CONTENT
    await store.acts.do(Act.CANCEL, waits.id, now=NOW, until=NOW)
    await store.acts.do(Act.RESOLVE_AS_SENT, doubtful, now=NOW, until=NOW)
    assert await store.erasing.erase(ZED) == (2, 2)


async def test_a_repeat_of_an_erased_request_is_a_new_one(store: Store) -> None:
    await store.ended(MessageState.SENT, ZED)
    await store.erasing.erase(ZED)
    again = await store.outbox.append(
        make_message(ZED, number=90), lease=None, now=NOW, repeat=Repeat("key-1", bytes(32))
    )
    assert not again.is_replay


async def test_others_are_left_as_they_are(store: Store) -> None:
    await store.ended(MessageState.SENT, "Zedekiah.quux@xylophone.test", content=CONTENT)
    await store.ended(MessageState.FAILED, "quux@xylophone.test", content=CONTENT, why=failure())

    def dump() -> list[str]:
        with closing(sqlite3.connect(store.file)) as other:
            return [line for line in other.iterdump() if "message_search" not in line]

    before = dump()
    assert await store.erasing.erase(ZED) == (0, 0)
    assert dump() == before


async def test_more_than_a_step_of_messages_go(store: Store) -> None:
    count = 2 * erasing.STEP + 1
    for _ in range(count):
        await store.ended(MessageState.SENT, ZED)
    await store.ended(MessageState.SENT, "ann@other.test")
    assert await store.erasing.erase(ZED) == (count, 0)
    assert await store.erasing.erase(ZED) == (0, 0)


async def test_it_is_not_said_to_be_done_while_somebody_still_reads_the_log(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(erasing, "LOG_TRIES", 2)
    monkeypatch.setattr(erasing, "LOG_PAUSE", 0)
    await store.ended(MessageState.SENT, ZED, content=CONTENT)
    with closing(sqlite3.connect(store.file, isolation_level=None)) as reader:
        reader.execute("BEGIN")
        reader.execute("SELECT count(*) FROM messages").fetchall()
        with pytest.raises(StoreUnavailable, match="again a little later"):
            await store.erasing.erase(ZED)
        assert traces(store)
        appended = await store.outbox.append(make_message(number=90), lease=Lease(1, NOW), now=NOW)  # nobody is held up
        assert appended.claim is not None
    assert await store.erasing.erase(ZED) == (0, 0)
    assert traces(store) == []
