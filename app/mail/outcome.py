"""How an attempt can end, and what state that leaves a message in.

Pure. A failure is a value: code and reason (`mail/errors.py`), the phase it happened in, the class that says
whose turn it is, the relay's own words and a hint. RFC 5321 §4.2.1 (first digit), RFC 1047 (in doubt).
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from enum import StrEnum
from typing import TypeAlias

from app.mail.codes import ErrorCode, Reason
from app.mail.reply import Reply


class Phase(StrEnum):
    """How far a conversation got, in order."""

    RESOLVE = "resolve"
    CONNECT = "connect"
    TLS = "tls"
    GREETING = "greeting"
    EHLO = "ehlo"
    STARTTLS = "starttls"
    AUTH = "auth"
    MAIL = "mail"
    RCPT = "rcpt"
    DATA = "data"
    CONTENT = "content"


class FailureClass(StrEnum):
    """Whose turn it is after a failure."""

    PERMANENT = "permanent"  # this message or recipient: final
    TEMPORARY = "temporary"  # certainly not taken: the schedule
    UNKNOWN = "unknown"  # content let go, verdict lost
    CONFIGURATION = "configuration"  # this profile, until somebody mends it


@dataclass(frozen=True, slots=True)
class Failure:
    """Why something was not sent.

    `message` is one sentence with the relay's words in it. `hint` names the setting that cures it, in the dialect
    that the profile was set in. `message_id` is the id of the message whose attempt failed, where an open circuit
    applies that failure to other messages; None = the attempt was the message's own, or a probe.
    """

    code: ErrorCode
    reason: Reason
    cls: FailureClass
    phase: Phase
    message: str
    hint: str
    smtp_code: int | None = None
    enhanced_code: str | None = None
    reply: str | None = None  # the relay's own words, code included
    by_name: bool = False  # the relay refused this very recipient, or ended the session at it
    message_id: str | None = field(default=None, compare=False)


@dataclass(frozen=True, slots=True)
class Sent:
    """The next hop took it. We only ever know *sent*, never *delivered*."""

    reply: Reply


@dataclass(frozen=True, slots=True)
class Deferred:
    """Not taken, will be tried again."""

    failure: Failure


@dataclass(frozen=True, slots=True)
class Rejected:
    """Refused for good, in the dialogue."""

    failure: Failure


@dataclass(frozen=True, slots=True)
class InDoubt:
    """The content was let go and the verdict was lost (RFC 1047): it may or may not have arrived."""

    failure: Failure


Outcome: TypeAlias = Sent | Deferred | Rejected | InDoubt


class RecipientState(StrEnum):
    PENDING = "pending"
    SENT = "sent"
    REJECTED = "rejected"
    IN_DOUBT = "in_doubt"
    EXPIRED = "expired"
    CANCELLED = "cancelled"


class MessageState(StrEnum):
    SCHEDULED = "scheduled"
    QUEUED = "queued"
    SENDING = "sending"
    DEFERRED = "deferred"
    SENT = "sent"
    PARTIAL = "partial"
    FAILED = "failed"
    IN_DOUBT = "in_doubt"
    CANCELLED = "cancelled"

    @property
    def is_final(self) -> bool:
        """Nothing more will happen by itself."""
        return self not in _MOVING

    @property
    def is_waiting(self) -> bool:
        """No verdict of any kind yet: a caller that waits goes on waiting."""
        return self in (MessageState.QUEUED, MessageState.SENDING)


_MOVING = frozenset({MessageState.SCHEDULED, MessageState.QUEUED, MessageState.SENDING, MessageState.DEFERRED})


def message_state(recipients: Iterable[RecipientState], *, while_pending: MessageState) -> MessageState:
    """Say what the recipients' states make of the message: the first rule that holds.

    `while_pending` is the state where somebody is still pending (queued, scheduled, sending or deferred).
    """
    states = set(recipients)
    if RecipientState.PENDING in states:
        return while_pending
    if RecipientState.IN_DOUBT in states:
        return MessageState.IN_DOUBT
    if RecipientState.SENT in states:
        return MessageState.SENT if len(states) == 1 else MessageState.PARTIAL
    if states == {RecipientState.CANCELLED}:
        return MessageState.CANCELLED
    return MessageState.FAILED
