"""Full text over subjects, recipients and tags (SQLite's FTS5), written behind the messages.

A message is not indexed when it is taken: that would cost the append more than all its other indexes. What is new is
indexed a batch at a time, when somebody searches and every half minute. Messages are numbered in the order of their
commits and indexed in that order, so what is not indexed yet is what has a greater number than the last that is.
"""

from __future__ import annotations

import re

from sqlalchemy import bindparam, func, insert, select

from app.store.database import message_search, messages, recipients
from app.store.journal import PATIENCE, Journal, Operation

STEP = 500  # messages in one transaction
_WORD = re.compile(r"\S*\w\S*")

_LAST = func.coalesce(
    select(message_search.c.rowid).order_by(message_search.c.rowid.desc()).limit(1).scalar_subquery(), 0
)
_INDEX = insert(message_search).from_select(
    ["rowid", "subject", "recipients", "tags"],
    select(
        messages.c.seq,
        messages.c.subject,
        select(func.group_concat(recipients.c.address, " "))
        .where(recipients.c.message_id == messages.c.id)
        .scalar_subquery(),
        messages.c.tags,
    )
    .where(messages.c.seq > _LAST)
    .order_by(messages.c.seq)
    .limit(bindparam("at_most")),
)


class SearchIndex:
    """Keeps the index up with the messages."""

    def __init__(self, journal: Journal) -> None:
        self._journal = journal

    async def catch_up(self) -> None:
        """Index what is not indexed yet.

        Raises:
            StoreUnavailable: the store cannot be written.
        """
        while await self._journal.commit_within(PATIENCE, _index_some) == STEP:
            pass


def _index_some() -> Operation[int]:
    return (yield (_INDEX, {"at_most": STEP})).count


def expression_of(text: str) -> str | None:
    """Write what somebody searches for as FTS5 reads it: every word, each as the beginning of one; None = no words.

    A word stands in quotes, so that nothing in it is an operator; `ann@theirs.test` becomes a phrase.
    """
    words = _WORD.findall(text.replace("\0", " "))
    return " ".join('"' + word.replace('"', '""') + '"*' for word in words) or None
