"""Taking a message in: its row, recipients, tags and content, and its idempotency key, in the one transaction.

An operation for the journal. RFC 5321 §4.2.5 (responsibility begins with the answer).
"""

from __future__ import annotations

from collections.abc import Iterator
from datetime import datetime, timedelta

from sqlalchemy import bindparam, delete, insert, select
from sqlalchemy.dialects.sqlite import insert as upsert

from app.mail.codes import ErrorCode
from app.mail.errors import KeyReused
from app.mail.message import Claim, Lease, Message, Receipt, Recipient, Repeat, Snapshot
from app.mail.outcome import MessageState
from app.store.acts import revive
from app.store.database import PART_BYTES, bodies, idempotency_keys, messages, recipients, tags
from app.store.journal import Operation
from app.store.records import (
    INSERT_ATTEMPT,
    RECIPIENTS_OF,
    SNAPSHOT_COLUMNS,
    json_text,
    recipient_from,
    snapshot,
)
from app.store.values import to_ms

LARGE = PART_BYTES  # bytes; a larger content is read back when it is sent, so that what waits for that holds no memory
KEY_LIFE = timedelta(hours=24)  # of an idempotency key

_INSERT_MESSAGE = insert(messages).values(
    {c: bindparam(c.name) for c in messages.c if c.name not in ("seq", "handover", "error_code", "failure")}
)
_INSERT_RECIPIENT = insert(recipients).values(
    message_id=bindparam("message_id"),
    position=bindparam("position"),
    address=bindparam("address"),
    state="pending",
)
_INSERT_BODY = insert(bodies)
_INSERT_TAG = insert(tags)
_KEY_IS = (idempotency_keys.c.caller == bindparam("of_caller")) & (idempotency_keys.c.key == bindparam("of_key"))
_FIND_KEY = (
    select(idempotency_keys.c.fingerprint, *SNAPSHOT_COLUMNS)
    .join(messages, messages.c.id == idempotency_keys.c.message_id)
    .where(_KEY_IS, idempotency_keys.c.expires_at > bindparam("now"))
)
_KEEP_KEY = upsert(idempotency_keys)
_KEEP_KEY = _KEEP_KEY.on_conflict_do_update(
    index_elements=[idempotency_keys.c.caller, idempotency_keys.c.key],
    set_={name: _KEEP_KEY.excluded[name] for name in ("fingerprint", "message_id", "expires_at")},
)
_FORGET_KEYS = delete(idempotency_keys).where(idempotency_keys.c.expires_at <= bindparam("now"))


def append_once(message: Message, lease: Lease | None, now: datetime, repeat: Repeat | None) -> Operation[Receipt]:
    """Take a message in, or give the one that its caller's key stands for; raises `KeyReused` where that is another."""
    if repeat is None:
        return (yield from _append(message, lease, now))
    said = yield from find_known(message.caller, repeat, now)
    if said is not None:
        has_expired = said.state is MessageState.FAILED and said.failure and said.failure.code is ErrorCode.EEXPIRED
        if has_expired:
            said = yield from revive(said, now=now, until=message.expires_at)
        return Receipt(said, is_replay=True, is_revived=said.state is MessageState.QUEUED and bool(has_expired))
    receipt = yield from _append(message, lease, now)
    yield (_FORGET_KEYS, {"now": to_ms(now)})
    yield (
        _KEEP_KEY,
        {
            "caller": message.caller,
            "key": repeat.key,
            "fingerprint": repeat.fingerprint,
            "message_id": message.id.bytes,
            "expires_at": to_ms(now + KEY_LIFE),
        },
    )
    return receipt


def find_known(caller: str, repeat: Repeat, now: datetime) -> Operation[Snapshot | None]:
    """Give the message that a caller's key stands for; raises `KeyReused` where that is another than is asked."""
    known = yield (_FIND_KEY, {"of_caller": caller, "of_key": repeat.key, "now": to_ms(now)})
    for fingerprint, *row in known.rows:
        if fingerprint != repeat.fingerprint:
            raise KeyReused(
                f"The idempotency key {repeat.key[:80]!r} was used for another message, less than 24 hours ago; use a "
                "new key for a new message"
            )
        whom = yield (RECIPIENTS_OF, {"of_message": row[0]})
        return snapshot(tuple(row), (recipient_from(*r) for r in whom.rows))
    return None


def _append(message: Message, lease: Lease | None, now: datetime) -> Operation[Receipt]:
    id_ = message.id.bytes
    due_at = message.send_at or message.created_at
    if lease is not None:
        state = MessageState.SENDING
    else:
        state = MessageState.SCHEDULED if due_at > now else MessageState.QUEUED
    envelope = message.envelope
    yield (
        _INSERT_MESSAGE,
        {
            "id": id_,
            "caller": message.caller,
            "state": state.value,
            "profile": message.profile,
            "message_id": message.message_id,
            "sender": envelope.sender,
            "subject": message.subject,
            "size": len(message.content),
            "smtputf8": envelope.smtputf8,
            "sandbox": message.sandbox,
            "tags": json_text(message.tags) if message.tags else "[]",
            "metadata": json_text(message.metadata) if message.metadata else "{}",
            "warnings": json_text(message.warnings) if message.warnings else "[]",
            "attempts": 0 if lease is None else 1,
            "created_at": to_ms(message.created_at),
            "expires_at": to_ms(message.expires_at),
            "due_at": to_ms(due_at if lease is None else lease.until),
            "lease_token": None if lease is None else lease.token,
        },
    )
    yield (
        _INSERT_RECIPIENT,
        [{"message_id": id_, "position": at, "address": address} for at, address in enumerate(envelope.recipients)],
    )
    if message.tags:
        yield (_INSERT_TAG, [{"tag": tag, "message_id": id_} for tag in message.tags])
    content = message.content
    yield (_INSERT_BODY, [{"message_id": id_, "part": part, "bytes": piece} for part, piece in _parts_of(content)])
    if lease is not None:
        yield (
            INSERT_ATTEMPT,
            {"message_id": id_, "number": 1, "profile": message.profile, "started_at": to_ms(now)},
        )
    taken = Snapshot(
        id=message.id,
        state=state,
        profile=message.profile,
        message_id=message.message_id,
        sender=envelope.sender,
        subject=message.subject,
        size=len(content),
        attempts=0 if lease is None else 1,
        recipients=tuple(Recipient(address, position=at) for at, address in enumerate(envelope.recipients)),
        created_at=message.created_at,
        expires_at=message.expires_at,
        next_attempt_at=due_at if lease is None else None,
        sandbox=message.sandbox,
        caller=message.caller,
        tags=message.tags,
        metadata=message.metadata,
        warnings=message.warnings,
    )
    carried = content if len(content) <= LARGE else None
    return Receipt(taken, None if lease is None else Claim(taken, lease, envelope.smtputf8, carried))


def _parts_of(content: bytes) -> Iterator[tuple[int, bytes | memoryview]]:
    if len(content) <= PART_BYTES:
        yield 0, content
        return
    whole = memoryview(content)  # parts of a large content are not copied
    for part, at in enumerate(range(0, len(content), PART_BYTES)):
        yield part, whole[at : at + PART_BYTES]
