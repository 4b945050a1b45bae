"""How facts become columns and come back: instants, ids, failures, attempts. Pure."""

from __future__ import annotations

from collections.abc import Iterable
from datetime import UTC, datetime, timedelta
from typing import Any
from uuid import UUID

from pydantic_core import from_json, to_json
from sqlalchemy import bindparam, insert, select, update

from app.mail.attempt import Attempt
from app.mail.circuit import Circuit
from app.mail.codes import ErrorCode, Reason
from app.mail.message import Recipient, Snapshot
from app.mail.outcome import Failure, FailureClass, MessageState, Phase, RecipientState
from app.store.database import attempts, messages, recipients

_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
_MILLISECOND = timedelta(milliseconds=1)

# What a Snapshot is read from, in this order; `snapshot()` unpacks it.
SNAPSHOT_COLUMNS = (
    messages.c.id,
    messages.c.state,
    messages.c.profile,
    messages.c.message_id,
    messages.c.sender,
    messages.c.subject,
    messages.c.size,
    messages.c.attempts,
    messages.c.created_at,
    messages.c.expires_at,
    messages.c.due_at,
    messages.c.failure,
    messages.c.sandbox,
    messages.c.caller,
    messages.c.tags,
    messages.c.metadata,
    messages.c.warnings,
)

MESSAGE_BY_ID = select(*SNAPSHOT_COLUMNS).where(messages.c.id == bindparam("of_message"))
RECIPIENTS_OF = (
    select(recipients.c.address, recipients.c.state, recipients.c.failure)
    .where(recipients.c.message_id == bindparam("of_message"))
    .order_by(recipients.c.position)
)
INSERT_ATTEMPT = insert(attempts).values(
    {
        c: bindparam(c.name)
        for c in (attempts.c.message_id, attempts.c.number, attempts.c.profile, attempts.c.started_at)
    }
)
WRITE_RECIPIENT = (
    update(recipients)
    .where(recipients.c.message_id == bindparam("of_message"), recipients.c.position == bindparam("at"))
    .values(state=bindparam("new_state"), failure=bindparam("why"))
)


def to_ms(instant: datetime) -> int:
    """An aware instant as milliseconds since 1970 UTC."""
    return (instant - _EPOCH) // _MILLISECOND


def from_ms(ms: int) -> datetime:
    return _EPOCH + ms * _MILLISECOND


def first_of(instant: datetime, *, and_its_millisecond: bool = False) -> bytes:
    """The least id that can be made at an instant, or behind it: a UUIDv7 begins with its millisecond."""
    return max(0, to_ms(instant) + and_its_millisecond).to_bytes(6) + bytes(10)


def json_text(value: Any) -> str:
    return to_json(value).decode()


def failure_text(failure: Failure | None) -> str | None:
    return None if failure is None else json_text(failure)


def failure_from(text: str | None) -> Failure | None:
    return None if text is None else _failure(from_json(text))


def circuit_text(circuit: Circuit, fingerprint: str) -> str:
    return json_text(
        {
            "failure": circuit.failure,
            "opened_at": to_ms(circuit.opened_at),
            "next_trial_at": to_ms(circuit.next_trial_at),
            "tried": circuit.tried,
            "fingerprint": fingerprint,
        }
    )


def circuit_from(text: str) -> tuple[Circuit, str]:
    """Give a circuit, and the fingerprint of what the profile was then."""
    said = from_json(text)
    circuit = Circuit(
        failure=_failure(said["failure"]),
        opened_at=from_ms(said["opened_at"]),
        next_trial_at=from_ms(said["next_trial_at"]),
        tried=said["tried"],
    )
    return circuit, said["fingerprint"]


def _failure(said: Any) -> Failure:
    return Failure(
        code=ErrorCode(said["code"]),
        reason=Reason(said["reason"]),
        cls=FailureClass(said["cls"]),
        phase=Phase(said["phase"]),
        message=said["message"],
        hint=said["hint"],
        smtp_code=said["smtp_code"],
        enhanced_code=said["enhanced_code"],
        reply=said["reply"],
        message_id=said.get("message_id"),  # older rows have none
    )


def recipient_from(address: str, state: str, failure: str | None) -> Recipient:
    return Recipient(address, RecipientState(state), failure_from(failure))


def changed_recipients(said: Snapshot, then: Iterable[Recipient]) -> list[dict[str, object]]:
    """Give the parameters of WRITE_RECIPIENT for whoever is not as they were."""
    return [
        {"of_message": said.id.bytes, "at": at, "new_state": now.state.value, "why": failure_text(now.failure)}
        for at, (was, now) in enumerate(zip(said.recipients, then, strict=True))
        if was != now
    ]


def snapshot(row: tuple[Any, ...], recipients: Iterable[Recipient]) -> Snapshot:
    """Read a row of `SNAPSHOT_COLUMNS`."""
    (
        id_,
        state,
        profile,
        message_id,
        sender,
        subject,
        size,
        attempts,
        created_at,
        expires_at,
        due_at,
        failure,
        sandbox,
        caller,
        tags,
        metadata,
        warnings,
    ) = row
    state = MessageState(state)
    # While it is sending, due_at is the end of the lease, which is nobody's business.
    shows_due = due_at is not None and state is not MessageState.SENDING
    return Snapshot(
        id=UUID(bytes=id_),
        state=state,
        profile=profile,
        message_id=message_id,
        sender=sender,
        subject=subject,
        size=size,
        attempts=attempts,
        recipients=tuple(recipients),
        created_at=from_ms(created_at),
        expires_at=from_ms(expires_at),
        next_attempt_at=from_ms(due_at) if shows_due else None,
        failure=failure_from(failure),
        sandbox=bool(sandbox),
        caller=caller,
        tags=from_json(tags),
        metadata=from_json(metadata),
        warnings=from_json(warnings),
    )


def attempt_facts(attempt: Attempt) -> str:
    """Everything of an ended attempt that has no column of its own."""
    failure, verdict = attempt.failure, attempt.verdict
    if failure is not None:
        reply, smtp_code, enhanced_code = failure.reply, failure.smtp_code, failure.enhanced_code
    elif verdict is not None:
        reply, smtp_code, enhanced_code = str(verdict), verdict.code, verdict.enhanced
    else:
        reply = smtp_code = enhanced_code = None
    return json_text(
        {
            "host": attempt.host,
            "ip": attempt.ip,
            "port": attempt.port,
            "duration_ms": attempt.duration_ms,
            "phases": attempt.phases,
            "tls": attempt.tls,
            "tls_version": attempt.tls_version,
            "tls_cipher": attempt.tls_cipher,
            "tls_verified": attempt.tls_verified,
            "tls_names": attempt.tls_names,
            "tls_not_after": attempt.tls_not_after,
            "tls_sha256": attempt.tls_sha256,
            "tls_error": attempt.tls_error,
            "auth": attempt.auth,
            "extensions": attempt.extensions,
            "phase": attempt.phase,
            "class": failure.cls if failure else None,
            "message": failure.message if failure else None,
            "hint": failure.hint if failure else None,
            "reply": reply,
            "smtp_code": smtp_code,
            "enhanced_code": enhanced_code,
            "transcript": attempt.transcript,
        }
    )
