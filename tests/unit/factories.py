"""Whole records for tests that care about one field of them."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import UTC, datetime, timedelta
from typing import Any
from uuid import UUID

from app.mail.codes import ErrorCode, Reason
from app.mail.message import Claim, Lease, Recipient, Snapshot
from app.mail.outcome import Failure, FailureClass, MessageState, Phase, RecipientState
from app.mail.profile import Profile, ProfileFacts, resolve_profile
from app.mail.reply import Reply

NOW = datetime(2026, 3, 1, 12, 0, 0, 123_000, tzinfo=UTC)
ID = UUID("019caa00-0000-7000-8000-000000000001")


def failure(cls: FailureClass = FailureClass.TEMPORARY, **fields: Any) -> Failure:
    """Make a failure; by default a greylisting."""
    known: dict[str, Any] = {
        "code": ErrorCode.EENVELOPE,
        "reason": Reason.RECIPIENT_DEFERRED,
        "cls": cls,
        "phase": Phase.RCPT,
        "message": "The relay refused the recipient: 450 4.2.0 greylisted",
        "hint": "Nothing to change; it is tried again.",
        "smtp_code": 450,
        "enhanced_code": "4.2.0",
        "reply": "450 4.2.0 greylisted",
    }
    return Failure(**known | fields)


def reply(code: int = 250, *lines: str) -> Reply:
    """Make a reply."""
    return Reply(code, lines or ("2.0.0 queued",))


def recipients(*states: RecipientState) -> tuple[Recipient, ...]:
    """Make one recipient for each state, r0@example.org and so on."""
    return tuple(Recipient(f"r{at}@example.org", state) for at, state in enumerate(states))


def snapshot(state: MessageState = MessageState.QUEUED, **fields: Any) -> Snapshot:
    """Make a snapshot of a message to one recipient who is still pending."""
    known: dict[str, Any] = {
        "id": ID,
        "state": state,
        "profile": "corp",
        "message_id": f"<{ID}@example.org>",
        "sender": "bot@example.org",
        "subject": "Your order",
        "size": 512,
        "attempts": 1,
        "recipients": recipients(RecipientState.PENDING),
        "created_at": NOW,
        "expires_at": NOW + timedelta(hours=24),
    }
    return Snapshot(**known | fields)


def claim(people: Sequence[Recipient] = (), **fields: Any) -> Claim:
    """Make a claim on a message that is being sent."""
    said = snapshot(MessageState.SENDING, **({"recipients": tuple(people)} if people else {}) | fields)
    return Claim(said, Lease(token=7, until=NOW + timedelta(hours=1)))


def profile(said: ProfileFacts) -> Profile:
    """Resolve what was said, without its warnings."""
    return resolve_profile(said)[0]
