"""Forgetting a person: what ended messages to or from an address hold of it, down to the bytes of the file.

Deleted bytes are zeroed (`secure_delete`), but two places keep what was: the index of words, whose segments lose an
entry only when they are merged, and the log. So the order is: rows, a bounded number a transaction → the index merged
into one, a bounded number of pages a transaction → the log emptied. What SQLite does not zero are copies that it moved
within a page: fragments, in parts of pages that are in use for nothing. Only a vacuum ends those.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Sequence
from dataclasses import replace
from functools import partial
from typing import Any, NamedTuple

from sqlalchemy import Select, bindparam, column, delete, func, insert, select, table, update

from app.mail.errors import StoreUnavailable
from app.mail.message import Recipient, Snapshot
from app.mail.outcome import Failure, MessageState
from app.store.database import attempts, bodies, idempotency_keys, message_search, messages, recipients, tags
from app.store.journal import PATIENCE, Journal, Operation
from app.store.reader import Reader
from app.store.records import (
    MESSAGE_BY_ID,
    RECIPIENTS_OF,
    facts_from,
    failure_text,
    json_text,
    recipient_from,
    snapshot,
)

ERASED = "erased@erased.invalid"  # in place of an address; RFC 6761 §6.4: nobody's, ever
STEP = 20  # messages in one transaction
PAGES = 50  # of the index of words, merged in one transaction
LOG_TRIES, LOG_PAUSE = 100, 0.1  # seconds between them: readers are quick, a backup is not
_TEXTS = ("message", "hint", "reply", "transcript")  # of an attempt: what holds the relay's words or ours

_OF_RECIPIENT = (
    select(recipients.c.message_id)
    .where(recipients.c.address == bindparam("of_address"), recipients.c.message_id > bindparam("after"))
    .distinct()
    .order_by(recipients.c.message_id)
    .limit(STEP)
)
_OF_SENDER = (
    select(messages.c.id)
    .where(messages.c.sender == bindparam("of_address"), messages.c.id > bindparam("after"))
    .order_by(messages.c.id)
    .limit(STEP)
)
_FORGET_ROWS = tuple(
    delete(each).where(each.c.message_id == bindparam("of_message")) for each in (bodies, tags, idempotency_keys)
)
_BLANK_RECIPIENT = (
    update(recipients)
    .where(recipients.c.message_id == bindparam("of_message"), recipients.c.position == bindparam("at"))
    .values(address=bindparam("whom"), failure=bindparam("why"))
)
_BLANK_MESSAGE = (
    update(messages)
    .where(messages.c.id == bindparam("of_message"))
    .values(
        sender=bindparam("who"),
        message_id=bindparam("header"),
        subject="",
        tags="[]",
        metadata="{}",
        warnings="[]",
        failure=bindparam("why"),
    )
    .returning(messages.c.seq)
)
_FACTS = select(attempts.c.number, attempts.c.facts).where(attempts.c.message_id == bindparam("of_message"))
_BLANK_ATTEMPT = (
    update(attempts)
    .where(attempts.c.message_id == bindparam("of_message"), attempts.c.number == bindparam("of_number"))
    .values(facts=bindparam("rest"))
)
_BLANK_WORDS = (
    update(message_search)
    .where(message_search.c.rowid == bindparam("of_seq"))
    .values(subject="", recipients=bindparam("whom"), tags="[]")
)
_COMMANDS = table("message_search", column("message_search"), column("rank"))
_MERGE = insert(_COMMANDS).values(message_search="merge", rank=bindparam("pages"))
_CHANGES = select(func.total_changes())


class Erased(NamedTuple):
    """How many messages were erased, and how many were left since they have not ended."""

    erased: int
    live: int


class Erasing:
    """Knows nothing between two calls."""

    def __init__(self, journal: Journal, reader: Reader) -> None:
        self._journal = journal
        self._reader = reader

    async def erase(self, address: str) -> Erased:
        """Erase `local@domain` where it is a recipient or the sender; the domain in lower case.

        Raises:
            StoreUnavailable: not all of it could be done; whoever asks again goes on from there.
        """
        erased, live = 0, set[bytes]()
        for whose in (_OF_RECIPIENT, _OF_SENDER):
            async for ids in self._pages(whose, address):
                done, left = await self._journal.commit_within(PATIENCE, partial(_erase, ids, address))
                erased += done
                live.update(left)
        pages = -PAGES  # less than 0 begins a merge of all there is
        while await self._journal.commit_within(PATIENCE, partial(_merge, pages)):
            pages = PAGES
        await self._empty_the_log()
        return Erased(erased, len(live))

    async def vacuum(self) -> None:
        """Write the whole file anew: it shrinks, and nothing is left of what was deleted. All that writes waits.

        Raises:
            StoreUnavailable: it could not be done.
        """
        await self._journal.vacuum()
        await self._empty_the_log()

    async def _empty_the_log(self) -> None:
        for _ in range(LOG_TRIES):
            folding = self._journal.fold()
            done, _ = await asyncio.wait([folding], timeout=PATIENCE)
            if not done:
                raise StoreUnavailable("the disk does not answer, so the log cannot be emptied; do it again later")
            if folding.result():
                return
            await asyncio.sleep(LOG_PAUSE)
        raise StoreUnavailable("the log could not be emptied, since somebody reads in it; do it again a little later")

    async def _pages(self, whose: Select[Any], address: str) -> AsyncIterator[list[bytes]]:
        after = bytes(16)
        while rows := await self._reader.rows(whose, {"of_address": address, "after": after}, within=PATIENCE):
            ids = [id_ for (id_,) in rows]
            after = ids[-1]
            yield ids


def _erase(ids: Sequence[bytes], address: str) -> Operation[tuple[int, list[bytes]]]:
    """Erase an address from these messages; gives how many, and those that have not ended."""
    done, left = 0, []
    for id_ in ids:
        found = yield (MESSAGE_BY_ID, {"of_message": id_})
        whom = yield (RECIPIENTS_OF, {"of_message": id_})
        said = snapshot(found.rows[0], (recipient_from(*r) for r in whom.rows)) if found.rows else None
        if said is None:
            continue
        if not said.state.is_final or said.state is MessageState.IN_DOUBT:
            left.append(id_)
        else:
            yield from _erase_one(said, address)
            done += 1
    return done, left


def _erase_one(said: Snapshot, address: str) -> Operation[None]:
    of_message = {"of_message": said.id.bytes}
    for forget in _FORGET_ROWS:
        yield (forget, of_message)
    whom = [_without(recipient, address) for recipient in said.recipients]
    yield (
        _BLANK_RECIPIENT,
        [{**of_message, "at": r.position, "whom": r.address, "why": failure_text(r.failure)} for r in whom],
    )
    for number, facts in (yield (_FACTS, of_message)).rows:
        rest = {name: fact for name, fact in facts_from(facts, None).items() if name not in _TEXTS}
        yield (_BLANK_ATTEMPT, {**of_message, "of_number": number, "rest": json_text(rest)})
    is_sender = said.sender == address
    blanked = yield (
        _BLANK_MESSAGE,
        {
            **of_message,
            "who": ERASED if is_sender else said.sender,
            "header": f"<{said.id}@erased.invalid>" if is_sender else said.message_id,
            "why": failure_text(_blank(said.failure)),
        },
    )
    for (seq,) in blanked.rows:
        yield (_BLANK_WORDS, {"of_seq": seq, "whom": " ".join(r.address for r in whom)})


def _without(recipient: Recipient, address: str) -> Recipient:
    """What stays of a recipient: of another one everything, unless its failure names the address."""
    if recipient.address == address:
        return replace(recipient, address=ERASED, failure=_blank(recipient.failure))
    names_it = address.lower() in (failure_text(recipient.failure) or "").lower()
    return replace(recipient, failure=_blank(recipient.failure)) if names_it else recipient


def _blank(failure: Failure | None) -> Failure | None:
    return failure and replace(failure, message="erased", hint="", reply=None)


def _merge(pages: int) -> Operation[bool]:
    """Merge some of the index of words; False = there was nothing to do (sqlite.org/fts5.html#the_merge_command)."""
    before = (yield (_CHANGES, {})).rows[0][0]
    yield (_MERGE, {"pages": pages})
    after = (yield (_CHANGES, {})).rows[0][0]
    return bool(after - before >= 2)
