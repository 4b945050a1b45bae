"""One flat shape for every answer about a message, so that a bot can map `data.ok`, `data.error_code`, `data.hint`.

Pure: Snapshot in, plain values out. The models below only describe the shapes for OpenAPI.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from typing import Any, Literal

from pydantic import BaseModel, Field

from app.mail.message import NULL_SENDER, Recipient, Snapshot, may_arrive_twice
from app.mail.outcome import FailureClass, MessageState, RecipientState
from app.store.history import AttemptRecord

SHOWN_RECIPIENTS = 3  # of a message in a list


class RejectedRecipient(BaseModel):
    """A recipient that this message will never reach."""

    address: str
    error_code: str | None
    reason: str | None
    smtp_code: int | None
    enhanced_code: str | None
    message: str | None


class _MessageFacts(BaseModel):
    """What every answer about a message says."""

    id: str = Field(description="UUIDv7")
    state: MessageState
    ok: bool = Field(description="false as soon as something went wrong, though it may still be sent")
    final: bool = Field(description="nothing more will happen by itself")
    will_retry: bool
    message: str = Field(description="one sentence for people")
    message_id: str = Field(description="the Message-ID header field")
    profile: str
    error_code: str | None
    reason: str | None
    class_: FailureClass | None = Field(alias="class")
    smtp_code: int | None
    enhanced_code: str | None
    hint: str | None = Field(description="what to change, naming the setting")
    accepted: list[str]
    rejected: list[RejectedRecipient]
    created_at: datetime
    next_attempt_at: datetime | None
    expires_at: datetime
    sandbox: bool = Field(description="true: kept here, not sent")
    warnings: list[str]


class MessageAnswer(_MessageFacts):
    """What is known of a message. 2xx means that we have it: never send it again, look at `ok`."""

    attempts: int = Field(description="how many there were")


class MessageEntry(MessageAnswer):
    """A message in a list."""

    subject: str
    to: list[str] = Field(description=f"the first {SHOWN_RECIPIENTS} recipients")
    recipient_count: int = Field(description="how many there are in all")


class MessageNotSent(MessageAnswer):
    """Refused for good: the flat shape, with RFC 9457's fields before it."""

    type: str = Field(description="/errors/{code}")
    title: str
    status: int
    detail: str


class ComposedEnvelope(BaseModel):
    """Who the relay would be told, RFC 5321."""

    from_: str = Field(alias="from", description="MAIL FROM; `<>` is the null sender")
    to: list[str] = Field(description="RCPT TO, hidden recipients too")


class DryRunAnswer(BaseModel):
    """What would be stored and sent."""

    dry_run: Literal[True] = Field(description="nothing was")
    ok: bool = Field(description="it would be taken")
    profile: str
    envelope: ComposedEnvelope = Field(description="who the relay would be told")
    raw: str = Field(description="the source, as every attempt would send it")
    warnings: list[str]


class RecipientAnswer(BaseModel):
    """One recipient and what became of it."""

    address: str
    state: RecipientState
    error_code: str | None
    reason: str | None
    smtp_code: int | None
    enhanced_code: str | None
    message: str | None


class TranscriptLine(BaseModel):
    """One line on the wire; credentials and content are left out."""

    ms: float
    dir: str = Field(description="C = we said it, S = the relay said it")
    line: str


class AttemptAnswer(BaseModel):
    """One try through one profile. Most fields are null while it runs."""

    number: int
    profile: str
    host: str | None
    ip: str | None
    port: int | None
    started_at: datetime
    duration_ms: float | None
    phases: dict[str, float]
    tls: bool
    tls_version: str | None
    tls_cipher: str | None
    tls_verified: bool
    tls_names: list[str] = Field(description="whom the relay's certificate is for")
    tls_not_after: str | None = Field(description="its last day, YYYY-MM-DD")
    tls_sha256: str | None = Field(description="its fingerprint; `cert_sha256` trusts it")
    tls_error: str | None
    auth: str | None = Field(description="the AUTH mechanism, null = none was sent")
    extensions: list[str]
    phase: str | None = Field(description="how far it got")
    error_code: str | None
    reason: str | None
    class_: FailureClass | None = Field(alias="class")
    message: str | None
    hint: str | None
    reply: str | None
    smtp_code: int | None
    enhanced_code: str | None
    handover: bool = Field(description="the end of the content was let go")
    transcript: list[TranscriptLine]


class AttemptOfMessage(AttemptAnswer):
    """An attempt, with its message's id."""

    id: str


class MessageDetails(_MessageFacts):
    """A message with its recipients, and its attempts in place of their number."""

    subject: str
    blocked_by: str | None = Field(
        description="id of the message whose failed attempt opened the profile's circuit, which holds this one back; "
        "null = nothing does"
    )
    sender: str = Field(description="MAIL FROM; `<>` is the null sender")
    size: int = Field(description="bytes of the composed message")
    tags: list[str]
    metadata: dict[str, str]
    recipients: list[RecipientAnswer]
    attempts: list[AttemptAnswer]


class MessageList(BaseModel):
    """One page, newest first."""

    data: list[MessageEntry]
    has_more: bool
    next_cursor: str | None


def flat(snapshot: Snapshot) -> dict[str, Any]:
    """Give the flat shape."""
    failure = snapshot.failure
    state = snapshot.state
    return {
        "id": str(snapshot.id),
        "state": state.value,
        "ok": is_ok(snapshot),
        "final": state.is_final,
        "will_retry": state is MessageState.DEFERRED,
        "message": sentence(snapshot),
        "message_id": snapshot.message_id,
        "profile": snapshot.profile,
        "attempts": snapshot.attempts,
        "error_code": failure.code.value if failure else None,
        "reason": failure.reason.value if failure else None,
        "class": failure.cls.value if failure else None,
        "smtp_code": failure.smtp_code if failure else None,
        "enhanced_code": failure.enhanced_code if failure else None,
        "hint": failure.hint if failure else None,
        "accepted": [r.address for r in snapshot.recipients if r.state is RecipientState.SENT],
        "rejected": [
            _with_failure(r)
            for r in snapshot.recipients
            if r.state in (RecipientState.REJECTED, RecipientState.EXPIRED)
        ],
        "created_at": instant(snapshot.created_at),
        "next_attempt_at": instant(snapshot.next_attempt_at) if snapshot.next_attempt_at else None,
        "expires_at": instant(snapshot.expires_at),
        "sandbox": snapshot.sandbox,
        "warnings": list(snapshot.warnings),
    }


def entry(snapshot: Snapshot) -> dict[str, Any]:
    """Give the flat shape and the fields that identify a message in a list."""
    return flat(snapshot) | {
        "subject": snapshot.subject,
        "to": [recipient.address for recipient in snapshot.recipients[:SHOWN_RECIPIENTS]],
        "recipient_count": len(snapshot.recipients),
    }


def details(snapshot: Snapshot, attempts: Sequence[AttemptRecord]) -> dict[str, Any]:
    """Give the flat shape and all that belongs to it; `attempts` becomes the list of them."""
    return flat(snapshot) | {
        "subject": snapshot.subject,
        "blocked_by": blocked_by(snapshot),
        "sender": snapshot.sender or NULL_SENDER,
        "size": snapshot.size,
        "tags": list(snapshot.tags),
        "metadata": dict(snapshot.metadata),
        "recipients": [{"state": r.state.value, **_with_failure(r)} for r in snapshot.recipients],
        "attempts": [attempt(record) for record in attempts],
    }


def attempt(record: AttemptRecord) -> dict[str, Any]:
    """Give one attempt; what is not known yet is null."""
    facts: Mapping[str, Any] = record.facts
    return {
        "number": record.number,
        "profile": record.profile,
        "host": facts.get("host") or None,
        "ip": facts.get("ip"),
        "port": facts.get("port") or None,
        "started_at": instant(record.started_at),
        "duration_ms": facts.get("duration_ms"),
        "phases": facts.get("phases", {}),
        "tls": facts.get("tls", False),
        "tls_version": facts.get("tls_version"),
        "tls_cipher": facts.get("tls_cipher"),
        "tls_verified": facts.get("tls_verified", False),
        "tls_names": facts.get("tls_names", []),
        "tls_not_after": facts.get("tls_not_after"),
        "tls_sha256": facts.get("tls_sha256"),
        "tls_error": facts.get("tls_error"),
        "auth": facts.get("auth"),
        "extensions": facts.get("extensions", []),
        "phase": facts.get("phase"),
        "error_code": record.error_code,
        "reason": record.reason,
        "class": facts.get("class"),
        "message": facts.get("message"),
        "hint": facts.get("hint"),
        "reply": facts.get("reply"),
        "smtp_code": facts.get("smtp_code"),
        "enhanced_code": facts.get("enhanced_code"),
        "handover": record.handover,
        "transcript": [{"ms": ms, "dir": dir_, "line": line} for ms, dir_, line in facts.get("transcript", [])],
    }


def blocked_by(snapshot: Snapshot) -> str | None:
    """Return the id of the message whose failed attempt holds this one back, None where it failed by itself."""
    opener = snapshot.failure.message_id if snapshot.failure else None
    return opener if snapshot.state is MessageState.DEFERRED and opener != str(snapshot.id) else None


def is_ok(snapshot: Snapshot) -> bool:
    """Nothing has gone wrong: sent, or on its way without a failure."""
    return snapshot.state in (
        MessageState.SENT,
        MessageState.QUEUED,
        MessageState.SCHEDULED,
        MessageState.SENDING,
    )


def instant(at: datetime) -> str:
    """RFC 3339, UTC, milliseconds."""
    return f"{at.astimezone(UTC).replace(tzinfo=None).isoformat(timespec='milliseconds')}Z"


_MAY_ARRIVE_TWICE = "whether it was taken is unknown, so it may arrive twice"


def sentence(snapshot: Snapshot) -> str:
    """Say in one sentence how things stand."""
    total = len(snapshot.recipients)
    sent = sum(r.state is RecipientState.SENT for r in snapshot.recipients)
    said = _why(snapshot)
    match snapshot.state:
        case MessageState.SENT if snapshot.sandbox:
            return "kept in the sandbox, not sent: read it at /sandbox"
        case MessageState.SENT:
            return f"sent to {_people(total)} through {snapshot.profile}"
        case MessageState.PARTIAL:
            return "; ".join(filter(None, (f"sent to {sent} of {_people(total)}", said)))
        case MessageState.QUEUED:
            return "accepted, waiting to be sent"
        case MessageState.SCHEDULED:
            return "accepted, to be sent later"
        case MessageState.SENDING:
            return "accepted, being sent"
        case MessageState.DEFERRED if snapshot.failure and snapshot.failure.cls is FailureClass.CONFIGURATION:
            so_far = _MAY_ARRIVE_TWICE if may_arrive_twice(snapshot.recipients) else "not sent"
            return f"{so_far}; {said}; will be sent once the profile works, until {instant(snapshot.expires_at)}"
        case MessageState.DEFERRED:
            at = instant(snapshot.next_attempt_at) if snapshot.next_attempt_at else "its time"
            if snapshot.failure and snapshot.failure.cls is FailureClass.UNKNOWN:
                return f"{_MAY_ARRIVE_TWICE}; {said}; sent again at {at}"
            return f"not sent yet; {said}; tried again at {at}"
        case MessageState.IN_DOUBT:
            return f"handed over, but nobody knows whether it was taken; {said}"
        case MessageState.CANCELLED:
            return "cancelled before it was sent"
        case MessageState.FAILED:
            return f"not sent; {said}"


def _why(snapshot: Snapshot) -> str:
    if snapshot.failure is None:
        return ""
    opener = blocked_by(snapshot)
    return f"{f'the attempt of message {opener} failed: ' if opener else ''}{snapshot.failure.message}"


def _people(count: int) -> str:
    return "1 recipient" if count == 1 else f"{count} recipients"


def _with_failure(recipient: Recipient) -> dict[str, Any]:
    failure = recipient.failure
    return {
        "address": recipient.address,
        "error_code": failure.code.value if failure else None,
        "reason": failure.reason.value if failure else None,
        "smtp_code": failure.smtp_code if failure else None,
        "enhanced_code": failure.enhanced_code if failure else None,
        "message": failure.message if failure else None,
    }
