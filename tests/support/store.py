"""Everything of the store on one file, and messages that have come to an end in it."""

import sqlite3
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, closing
from dataclasses import dataclass, replace
from datetime import datetime, timedelta
from pathlib import Path
from unittest.mock import patch
from uuid import UUID

from app.mail.attempt import Attempt
from app.mail.codes import ErrorCode, Reason
from app.mail.ids import uuid7
from app.mail.message import Claim, Lease, Recipient, Repeat, Snapshot
from app.mail.outcome import Failure, FailureClass, MessageState, Phase, RecipientState
from app.store import database
from app.store.acts import Acts
from app.store.census import Census
from app.store.database import migrate
from app.store.erasing import Erasing
from app.store.history import History
from app.store.journal import Journal
from app.store.keeping import Keeping
from app.store.outbox import Outbox
from app.store.reader import Reader
from app.store.search import SearchIndex
from tests.support.factories import NOW, RECIPIENT, SENDER, make_message

DAY = timedelta(days=1)
AT_END = {
    MessageState.SENT: RecipientState.SENT,
    MessageState.FAILED: RecipientState.REJECTED,
    MessageState.IN_DOUBT: RecipientState.IN_DOUBT,
    MessageState.DEFERRED: RecipientState.PENDING,
}


@dataclass(slots=True)
class Store:
    """Everything of the store on one file; a message is taken and tried at `at`."""

    file: Path
    journal: Journal
    reader: Reader
    outbox: Outbox
    history: History
    search: SearchIndex
    keeping: Keeping
    census: Census
    acts: Acts
    erasing: Erasing
    statements: list[str]  # every one that was run, its parameters filled in
    made: int = 0

    async def ended(
        self,
        state: MessageState,
        *whom: str,
        at: datetime = NOW,
        content: bytes = b"Hello\r\n",
        sender: str = SENDER,
        why: Failure | None = None,
    ) -> UUID:
        claim = await self.taken(*whom, at=at, content=content, sender=sender)
        failed = None if state is MessageState.SENT else why or failure()
        await self.recorded(claim, state, at=at, failure=failed)
        return claim.snapshot.id

    async def taken(self, *whom: str, at: datetime = NOW, content: bytes = b"Hello\r\n", sender: str = SENDER) -> Claim:
        self.made += 1
        made = make_message(*whom or (RECIPIENT,), number=self.made, sender=sender, created_at=at, content=content)
        message = replace(made, tags=("vip",), metadata={"shop": "4711"}, subject=f"Order No {self.made}")
        repeat = Repeat(f"key-{self.made}", bytes(32))
        receipt = await self.outbox.append(message, lease=Lease(7, at + DAY), now=at, repeat=repeat)
        assert receipt.claim is not None
        return receipt.claim

    async def recorded(self, claim: Claim, state: MessageState, *, at: datetime, failure: Failure | None) -> Snapshot:
        attempt = Attempt(claim.snapshot.attempts, claim.snapshot.profile, at, lambda: 0.0)
        attempt.failure = failure
        for recipient in claim.pending:
            attempt.say(f"RCPT TO:<{recipient}>")
        attempt.end()
        return await self.outbox.record(
            claim,
            attempt,
            state=state,
            after=[Recipient(r.address, AT_END[state], failure) for r in claim.snapshot.recipients],
            failure=failure,
            next_attempt_at=at + DAY if state is MessageState.DEFERRED else None,
        )

    async def dropped(self, *, ended_by: datetime) -> int:
        return sum([count async for count in self.keeping.drop_bodies(ended_by=ended_by)])

    async def deleted(self, *, ended_by: datetime) -> int:
        return sum([count async for count in self.keeping.delete(ended_by=ended_by)])

    def count(self, table: str) -> int:
        with closing(sqlite3.connect(self.file)) as other:
            (count,) = other.execute(f"SELECT count(*) FROM {table}").fetchone()
            return int(count)


def failure() -> Failure:
    return Failure(
        code=ErrorCode.EENVELOPE,
        reason=Reason.MAILBOX_UNKNOWN,
        cls=FailureClass.PERMANENT,
        phase=Phase.RCPT,
        message="The relay says no",
        hint="Ask",
    )


def seed(file: Path, count: int, *, at: datetime, state: str = "sent") -> None:
    """Write messages that have ended, as the outbox leaves them, many at once."""
    ids = [uuid7(at + timedelta(milliseconds=n), n).bytes for n in range(count)]
    ms = int(at.timestamp() * 1000)
    with closing(sqlite3.connect(file, isolation_level=None)) as db:
        db.execute("BEGIN")
        db.executemany(
            "INSERT INTO messages (id, state, profile, message_id, sender, subject, size, smtputf8, sandbox, tags, "
            "attempts, created_at, expires_at) VALUES (?, ?, 'relay', '<x@ours.test>', 'bot@ours.test', 'Order 4711', "
            "1800, 0, 0, '[\"vip\"]', 1, ?, ?)",
            ((id_, state, ms, ms) for id_ in ids),
        )
        db.executemany(
            "INSERT INTO recipients VALUES (?, 0, ?, 'sent', NULL)",
            ((id_, f"ann{n}@theirs.test") for n, id_ in enumerate(ids)),
        )
        db.executemany("INSERT INTO tags VALUES ('vip', ?)", ((id_,) for id_ in ids))
        db.executemany("INSERT INTO bodies VALUES (?, 0, zeroblob(1800))", ((id_,) for id_ in ids))
        db.executemany(
            "INSERT INTO attempts VALUES (?, 1, 'relay', ?, 1, NULL, NULL, ?)",
            ((id_, ms, f'{{"transcript": "{"x" * 900}"}}') for id_ in ids),
        )
        db.execute("COMMIT")


@asynccontextmanager
async def opened(folder: Path) -> AsyncIterator[Store]:
    """Open a store on a new file in `folder`."""
    file = folder / "mailchute.db"
    migrate(file)
    statements: list[str] = []
    connect = database.connect

    def connect_and_note(file: Path, *, read_only: bool) -> sqlite3.Connection:
        connection = connect(file, read_only=read_only)
        connection.set_trace_callback(statements.append)
        return connection

    with patch("app.store.journal.connect", connect_and_note), patch("app.store.reader.connect", connect_and_note):
        journal, reader = Journal(file), Reader(file)
        await journal.open()
        search, census = SearchIndex(journal), Census({})
        yield Store(
            file=file,
            journal=journal,
            reader=reader,
            outbox=Outbox(journal, reader, census),
            history=History(reader, search),
            search=search,
            keeping=Keeping(journal, reader, census),
            census=census,
            acts=Acts(journal, census),
            erasing=Erasing(journal, reader),
            statements=statements,
        )
        await journal.close()
        await reader.close()
