"""What happens next to a message: done, try again, or give up.

Pure: no clock, no I/O. The worker asks, the outbox remembers.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from datetime import datetime, timedelta
from typing import TypeAlias, assert_never

from app.mail.codes import ErrorCode, Reason
from app.mail.message import Claim, Recipient, leading_failure
from app.mail.outcome import (
    Deferred,
    Failure,
    FailureClass,
    InDoubt,
    MessageState,
    Outcome,
    RecipientState,
    Rejected,
    Sent,
    message_state,
)
from app.mail.schedule import Schedule


@dataclass(frozen=True, slots=True)
class Done:
    """Nobody is pending any more."""


@dataclass(frozen=True, slots=True)
class RetryAt:
    """Somebody is still pending: again at `at`."""

    at: datetime


@dataclass(frozen=True, slots=True)
class GiveUp:
    """Somebody is still pending, and there is no time for another try."""


Step: TypeAlias = Done | RetryAt | GiveUp


@dataclass(frozen=True, slots=True)
class Ending:
    """What an attempt leaves behind: everybody's state, and the message's."""

    state: MessageState
    recipients: tuple[Recipient, ...]
    failure: Failure | None
    next_attempt_at: datetime | None


def next_step(
    claim: Claim, outcomes: Mapping[str, Outcome], *, schedule: Schedule, now: datetime, jitter: float
) -> Step:
    """Decide once for all recipients still pending.

    `jitter` is a factor in [0.9, 1.1] so that replicas do not retry in step. A `Rejected` recipient never comes
    back, and an `InDoubt` one is held, because resending may duplicate (RFC 1047). A retry that could only come
    after the message has expired is not waited for.
    """
    if not any(isinstance(outcome, Deferred) for outcome in outcomes.values()):
        return Done()
    at = now + timedelta(seconds=schedule.wait_after(claim.snapshot.attempts) * jitter)
    return RetryAt(at) if at < claim.snapshot.expires_at else GiveUp()


def ending(claim: Claim, outcomes: Mapping[str, Outcome], step: Step) -> Ending:
    """Say what everybody's state is after this attempt."""
    recipients = tuple(_after(r, outcomes.get(r.address), step) for r in claim.snapshot.recipients)
    state = message_state((r.state for r in recipients), while_pending=MessageState.DEFERRED)
    return Ending(
        state=state,
        recipients=recipients,
        failure=leading_failure(recipients),
        next_attempt_at=step.at if isinstance(step, RetryAt) else None,
    )


def _after(recipient: Recipient, outcome: Outcome | None, step: Step) -> Recipient:
    match outcome:
        case None:
            return recipient
        case Sent():
            return replace(recipient, state=RecipientState.SENT, failure=None)
        case Rejected(failure):
            return replace(recipient, state=RecipientState.REJECTED, failure=failure)
        case InDoubt(failure):
            return replace(recipient, state=RecipientState.IN_DOUBT, failure=failure)
        case Deferred(failure):
            if isinstance(step, GiveUp):
                return replace(recipient, state=RecipientState.EXPIRED, failure=expired(failure))
            return replace(recipient, failure=failure)
        case _:
            assert_never(outcome)


def expired(last: Failure) -> Failure:
    """The end of a message that was never taken: its text names the last failure, its hint what mends that."""
    if last.reason is Reason.EXPIRED:
        return last  # it was never tried
    return replace(
        last,
        code=ErrorCode.EEXPIRED,
        reason=Reason.EXPIRED,
        cls=FailureClass.PERMANENT,
        message=f"Given up after the last try failed ({last.code}/{last.reason}): {last.message}",
    )
