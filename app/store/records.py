"""How facts become columns, and how rows are read back. Pure.

Reading never raises: a newer version may have written the row (a rollback keeps the schema), or a disk may have
damaged it, and one row must not stop the queue, a list or a start. An unknown value is read as `unexpected`, an
unreadable one as its nearest safe meaning: what may have been sent is in doubt, and never sent again by itself.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from datetime import datetime, timedelta
from typing import Any
from uuid import UUID

from pydantic_core import to_json
from sqlalchemy import ColumnElement, bindparam, func, insert, select, update
from sqlalchemy.dialects.sqlite import insert as upsert

from app.mail.attempt import Attempt
from app.mail.circuit import Circuit
from app.mail.codes import CODE_OF, ErrorCode, Reason
from app.mail.message import Recipient, Snapshot
from app.mail.outcome import Failure, FailureClass, MessageState, Phase, RecipientState, message_state
from app.store.database import attempts, messages, recipients
from app.store.values import (
    duration,
    from_ms,
    json_from,
    known,
    mapping,
    number,
    string,
    strings,
    text_from,
    to_ms,
    whole,
)

_LIFE = timedelta(hours=24)  # of a message whose expires_at cannot be read
_UNREADABLE = "What is stored of this failure cannot be read"
_LOOK_AT_THE_ROW = (
    "A newer version of Mailchute wrote this, or the database is damaged: start the version that wrote it, or settle "
    "the message by hand."
)


def has_id(column: ColumnElement[Any]) -> ColumnElement[bool]:
    """Whether a row has an id that can be named; one that has none is left where it is."""
    return (func.typeof(column) == "blob") & (func.length(column) == 16)


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
STATE, DUE_AT = SNAPSHOT_COLUMNS.index(messages.c.state), SNAPSHOT_COLUMNS.index(messages.c.due_at)

MESSAGE_BY_ID = select(*SNAPSHOT_COLUMNS).where(messages.c.id == bindparam("of_message"))
RECIPIENTS_OF = (
    select(recipients.c.address, recipients.c.state, recipients.c.failure, recipients.c.position)
    .where(recipients.c.message_id == bindparam("of_message"))
    .order_by(recipients.c.position)
)
INSERT_ATTEMPT = insert(attempts).values(
    {
        c: bindparam(c.name)
        for c in (attempts.c.message_id, attempts.c.number, attempts.c.profile, attempts.c.started_at)
    }
)
# For a claim: where the message's counter was damaged, the attempt takes the place of the one that has its number.
BEGIN_ATTEMPT = upsert(attempts).values(
    {
        c: bindparam(c.name)
        for c in (attempts.c.message_id, attempts.c.number, attempts.c.profile, attempts.c.started_at)
    }
)
BEGIN_ATTEMPT = BEGIN_ATTEMPT.on_conflict_do_update(
    index_elements=[attempts.c.message_id, attempts.c.number],
    set_={
        **{name: BEGIN_ATTEMPT.excluded[name] for name in ("profile", "started_at")},
        "handover": False,
        "error_code": None,
        "reason": None,
        "facts": None,
    },
)
WRITE_RECIPIENT = (
    update(recipients)
    .where(recipients.c.message_id == bindparam("of_message"), recipients.c.position == bindparam("at"))
    .values(state=bindparam("new_state"), failure=bindparam("why"))
)


def first_of(instant: datetime, *, and_its_millisecond: bool = False) -> bytes:
    """The least id that can be made at an instant, or behind it: a UUIDv7 begins with its millisecond."""
    return max(0, to_ms(instant) + and_its_millisecond).to_bytes(6) + bytes(10)


def json_text(value: Any) -> str:
    return to_json(value).decode()


def failure_text(failure: Failure | None) -> str | None:
    return None if failure is None else json_text(failure)


def failure_from(text: object) -> Failure | None:
    return None if text is None else _failure(mapping(text), is_doubtful="EINDOUBT" in text_from(text))


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


def circuit_from(text: object) -> tuple[Circuit, str] | None:
    """Read a circuit, and the fingerprint of what the profile was then; None where its failure cannot be read.

    A profile without a readable circuit is tried: it opens again at the first failure.
    """
    said = mapping(text)
    failure = said.get("failure")
    if not isinstance(failure, dict):
        return None
    circuit = Circuit(
        failure=_failure(failure, is_doubtful=False),
        opened_at=from_ms(said.get("opened_at")),
        next_trial_at=from_ms(said.get("next_trial_at")),
        tried=whole(said.get("tried")),
    )
    return circuit, text_from(said.get("fingerprint"))


def _failure(said: Mapping[str, Any], *, is_doubtful: bool) -> Failure:
    reason = known(Reason, said.get("reason"), Reason.UNEXPECTED)
    code = known(ErrorCode, said.get("code"), ErrorCode.EINDOUBT if is_doubtful else CODE_OF[reason])
    return Failure(
        code=code,
        reason=reason,
        cls=class_from(said.get("cls"), code),
        phase=known(Phase, said.get("phase"), Phase.CONTENT),
        message=_UNREADABLE if (message := string(said.get("message"))) is None else message,
        hint=_LOOK_AT_THE_ROW if (hint := string(said.get("hint"))) is None else hint,
        smtp_code=number(said.get("smtp_code")),
        enhanced_code=string(said.get("enhanced_code")),
        reply=string(said.get("reply")),
        by_name=said.get("by_name") is True,  # older rows have neither
        message_id=string(said.get("message_id")),
    )


def class_from(value: object, code: object) -> FailureClass:
    """Read a class; one that is not known is temporary, unless the message may have been taken."""
    return known(FailureClass, value, FailureClass.UNKNOWN if code == ErrorCode.EINDOUBT else FailureClass.TEMPORARY)


def recipient_from(address: object, state: object, failure: object, position: Any = 0) -> Recipient:
    """Read a recipient. In a state that is not known it is in doubt: nobody can say that it was not sent to."""
    why = failure_from(failure)
    read = known(RecipientState, state, None)
    if read is None:
        read = RecipientState.IN_DOUBT
        why = why or _of_unknown_state(state, ErrorCode.EINDOUBT)
    return Recipient(text_from(address), read, why, position)


def _of_unknown_state(state: object, code: ErrorCode) -> Failure:
    return Failure(
        code=code,
        reason=Reason.UNEXPECTED,
        cls=class_from(None, code),
        phase=Phase.CONTENT,
        message=f"The stored state {text_from(state)[:40]!r} is not known to this version",
        hint=_LOOK_AT_THE_ROW,
    )


def changed_recipients(said: Snapshot, then: Iterable[Recipient]) -> list[dict[str, object]]:
    """Return the parameters of WRITE_RECIPIENT for every recipient that has changed."""
    return [
        {
            "of_message": said.id.bytes,
            "at": was.position,
            "new_state": now.state.value,
            "why": failure_text(now.failure),
        }
        for was, now in zip(said.recipients, then, strict=True)
        if was != now
    ]


def counted_state(state: object, due_at: object) -> MessageState | None:
    """The state that the census counts a row under; None = it counts only what waits or is in doubt."""
    read = known(MessageState, state, None)
    if due_at is None:
        return read if read is MessageState.IN_DOUBT else None
    return read or MessageState.QUEUED


def snapshot(row: tuple[Any, ...], recipients: Iterable[Recipient]) -> Snapshot:
    """Read a row of `SNAPSHOT_COLUMNS`."""
    (
        id_,
        stored_state,
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
    recipients = tuple(recipients)
    why = failure_from(failure)
    state = known(MessageState, stored_state, None)
    if state is None:  # it follows from the recipients', as it always does
        state = message_state((r.state for r in recipients), while_pending=MessageState.QUEUED)
        if state is not MessageState.SENT:
            doubtful = state is MessageState.IN_DOUBT
            code = ErrorCode.EINDOUBT if doubtful else CODE_OF[Reason.UNEXPECTED]
            why = why or _of_unknown_state(stored_state, code)
    # While it is sending, due_at is the end of the lease, which is nobody's business.
    shows_due = due_at is not None and state is not MessageState.SENDING
    created = from_ms(created_at, from_ms(int.from_bytes(id_[:6])))
    return Snapshot(
        id=UUID(bytes=id_),
        state=state,
        profile=text_from(profile),
        message_id=text_from(message_id),
        sender=text_from(sender),
        subject=text_from(subject),
        size=whole(size),
        attempts=whole(attempts),
        recipients=recipients,
        created_at=created,
        expires_at=from_ms(expires_at, created + _LIFE),
        next_attempt_at=from_ms(due_at) if shows_due else None,
        failure=why,
        sandbox=sandbox == 1,
        caller=text_from(caller),
        tags=strings(json_from(tags)),
        metadata={name: value for name, value in mapping(metadata).items() if isinstance(value, str)},
        warnings=strings(json_from(warnings)),
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


def facts_from(text: object, code: object) -> dict[str, Any]:
    """Read what `attempt_facts` wrote, as far as it is there; a fact of another kind is empty."""
    said = mapping(text)
    facts = {name: read(said[name]) for name, read in _FACTS.items() if name in said}
    if facts.get("class") is not None:
        facts["class"] = class_from(facts["class"], code)
    return facts


def _phase(value: object) -> str | None:
    return None if value is None else known(Phase, value, Reason.UNEXPECTED)


def _phases(value: object) -> dict[str, float]:
    return {name: ms for name, ms in value.items() if duration(ms) is not None} if isinstance(value, dict) else {}


def _transcript(value: object) -> list[Any]:
    return [entry for entry in value if _is_line(entry)] if isinstance(value, list) else []


def _is_line(entry: object) -> bool:
    match entry:
        case [int() | float(), str(), str()]:
            return True
        case _:
            return False


_FACTS: Mapping[str, Callable[[object], Any]] = {
    **dict.fromkeys(("host", "ip", "tls_version", "tls_cipher", "tls_not_after", "tls_sha256", "tls_error"), string),
    **dict.fromkeys(("auth", "message", "hint", "reply", "enhanced_code"), string),
    **dict.fromkeys(("port", "smtp_code"), number),
    **dict.fromkeys(("tls", "tls_verified"), bool),
    **dict.fromkeys(("tls_names", "extensions"), strings),
    "duration_ms": duration,
    "phases": _phases,
    "phase": _phase,
    "class": lambda value: value,
    "transcript": _transcript,
}
