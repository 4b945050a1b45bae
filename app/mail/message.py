"""The one aggregate: a message, from what was asked to what became of it.

    Draft      what a caller asked for, addresses checked, nothing decided
    Message    composed and routed, ready to be stored
    Envelope   what MAIL and RCPT say; Bcc lives only here (RFC 5321 §2.3.1)
    Claim      the exclusive, expiring hold of one worker on one message, for one attempt
    Snapshot   what is known of a stored message at one moment

Frozen, pure.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from uuid import UUID

from app.mail.address import Address
from app.mail.codes import ErrorCode
from app.mail.outcome import Failure, MessageState, RecipientState

NULL_SENDER = "<>"  # how people write the reverse-path that is "" (RFC 5321 §4.5.5)


@dataclass(frozen=True, slots=True)
class Attachment:
    """A file that goes with a message.

    `base64` is the content as it was given: checked, without blanks and line breaks, padded (RFC 4648 §4). With a
    `content_id` the HTML can show it as `cid:…` (RFC 2392); `is_inline` = it is shown, not offered.
    """

    filename: str
    base64: bytes = field(repr=False)
    content_type: str  # with its parameters, such as text/csv; charset=utf-8
    content_id: str | None = None  # without angle brackets
    is_inline: bool = False


@dataclass(frozen=True, slots=True)
class Calendar:
    """An invitation, or what became of one (RFC 5546): the method, in upper case, and an iCalendar object as text."""

    method: str
    content: str = field(repr=False)


@dataclass(frozen=True, slots=True)
class Draft:
    """What a caller asked for. `expires_in` is in seconds, from `send_at` on; None = the default."""

    to: tuple[Address, ...] = ()
    cc: tuple[Address, ...] = ()
    bcc: tuple[Address, ...] = ()
    reply_to: tuple[Address, ...] = ()
    sender: Address | None = None
    subject: str = ""
    text: str | None = None
    html: str | None = None
    calendar: Calendar | None = None
    headers: tuple[tuple[str, str], ...] = ()
    attachments: tuple[Attachment, ...] = ()
    profile: str | None = None
    tags: tuple[str, ...] = ()
    metadata: Mapping[str, str] = field(default_factory=dict)
    send_at: datetime | None = None  # not before; None = now
    expires_in: float | None = None
    warnings: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Repeat:
    """What makes a second request the same as the first: the caller's key, and what was asked with it."""

    key: str
    fingerprint: bytes  # 32 bytes, over the validated body


@dataclass(frozen=True, slots=True)
class Envelope:
    """Reverse-path and forward-paths, as bare `local@domain`; `smtputf8` where one of them is not ASCII.

    `sender` "" = the null sender.
    """

    sender: str
    recipients: tuple[str, ...]
    smtputf8: bool = False


@dataclass(frozen=True, slots=True)
class Message:
    """Composed and routed. `content` is what every attempt sends, byte for byte; CRLF line ends only."""

    id: UUID
    message_id: str  # of the header, angle brackets included
    content: bytes
    envelope: Envelope
    subject: str
    profile: str
    created_at: datetime
    expires_at: datetime
    send_at: datetime | None = None  # not before; None = now
    sandbox: bool = False
    caller: str = ""  # "" = the one key, or no key
    tags: tuple[str, ...] = ()
    metadata: Mapping[str, str] = field(default_factory=dict)
    warnings: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Recipient:
    """One forward-path and what became of it. `position` is its place in the request, which names its row."""

    address: str
    state: RecipientState = RecipientState.PENDING
    failure: Failure | None = None
    position: int = field(default=0, compare=False)


@dataclass(frozen=True, slots=True)
class Lease:
    """A worker's hold on a message: `token` fences every later write, `until` is when it lapses."""

    token: int
    until: datetime


@dataclass(frozen=True, slots=True)
class Snapshot:
    """What is known of a message. `failure` is the latest one, or None while nothing has failed."""

    id: UUID
    state: MessageState
    profile: str
    message_id: str
    sender: str
    subject: str
    size: int  # bytes of content
    attempts: int
    recipients: tuple[Recipient, ...]
    created_at: datetime
    expires_at: datetime
    next_attempt_at: datetime | None = None
    failure: Failure | None = None
    sandbox: bool = False
    caller: str = ""
    tags: Sequence[str] = ()
    metadata: Mapping[str, str] = field(default_factory=dict)
    warnings: Sequence[str] = ()


@dataclass(frozen=True, slots=True)
class Claim:
    """One attempt's worth of exclusive hold. `content` is None where it is still to be read from the store.

    `only` names whom the rest of the attempt is for, where others have had their turn in it; None = all pending.
    """

    snapshot: Snapshot
    lease: Lease
    smtputf8: bool = False
    content: bytes | None = field(default=None, repr=False)
    only: frozenset[str] | None = None

    @property
    def pending(self) -> tuple[str, ...]:
        """Whom this attempt is for."""
        pending = tuple(r.address for r in self.snapshot.recipients if r.state is RecipientState.PENDING)
        return pending if self.only is None else tuple(address for address in pending if address in self.only)

    @property
    def is_doubtful(self) -> bool:
        """Whether a relay may have the message already, for somebody this attempt is for."""
        return may_arrive_twice(self.snapshot.recipients)

    @property
    def envelope(self) -> Envelope:
        return Envelope(self.snapshot.sender, self.pending, self.smtputf8)


@dataclass(frozen=True, slots=True)
class Receipt:
    """The promise: this message is durable.

    `claim` is there where it was leased to this process at once. `is_replay` = the caller's key was known, and this
    is the message of the first request; nothing was added. `is_revived` = that one had expired and is queued again.
    """

    snapshot: Snapshot
    claim: Claim | None = None
    is_replay: bool = False
    is_revived: bool = False


def may_arrive_twice(recipients: Iterable[Recipient]) -> bool:
    """Whether one of them is pending though a relay may have the message."""
    return any(
        r.state is RecipientState.PENDING and r.failure is not None and r.failure.code is ErrorCode.EINDOUBT
        for r in recipients
    )


def leading_failure(recipients: Sequence[Recipient]) -> Failure | None:
    """The one failure that stands for the message: of the recipient whose state matters most, the first."""
    for state in (
        RecipientState.PENDING,
        RecipientState.IN_DOUBT,
        RecipientState.EXPIRED,
        RecipientState.REJECTED,
    ):
        for recipient in recipients:
            if recipient.state is state and recipient.failure is not None:
                return recipient.failure
    return None
