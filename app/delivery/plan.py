"""What happens next to a message: done, another profile, try again, or give up.

Pure: no clock, no I/O. The worker asks, the outbox remembers.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from datetime import datetime, timedelta
from typing import TypeAlias, assert_never

from app.mail.attempt import Attempt
from app.mail.circuit import Circuit, is_of_opening
from app.mail.codes import CODE_OF, ErrorCode, Reason
from app.mail.hints import at_the_end, hint
from app.mail.message import Claim, Recipient, leading_failure
from app.mail.outcome import (
    Deferred,
    Failure,
    FailureClass,
    InDoubt,
    MessageState,
    Outcome,
    Phase,
    RecipientState,
    Rejected,
    Sent,
    message_state,
)
from app.mail.profile import InDoubtPolicy, Profile
from app.mail.schedule import Schedule
from app.smtp.limits import wait_asked_for


@dataclass(frozen=True, slots=True)
class Done:
    """Nobody is pending any more."""


@dataclass(frozen=True, slots=True)
class RetryAt:
    """Somebody is still pending: again at `at`."""

    at: datetime


@dataclass(frozen=True, slots=True)
class FallBack:
    """Somebody is still pending, and the failure was the relay's: at once through another profile, if there is one."""


@dataclass(frozen=True, slots=True)
class GiveUp:
    """Somebody is still pending, and there is no time for another try."""


Step: TypeAlias = Done | FallBack | RetryAt | GiveUp


@dataclass(frozen=True, slots=True)
class Ending:
    """What an attempt leaves behind: everybody's state, and the message's."""

    state: MessageState
    recipients: tuple[Recipient, ...]
    failure: Failure | None
    next_attempt_at: datetime | None


def next_step(
    claim: Claim,
    outcomes: Mapping[str, Outcome],
    *,
    schedule: Schedule,
    now: datetime,
    jitter: float,
    in_doubt: InDoubtPolicy = InDoubtPolicy.HOLD,
    circuit: Circuit | None = None,
    may_fall_back: bool = False,
) -> Step:
    """Decide once for all recipients still pending.

    `jitter` is a factor in [0.9, 1.1] so that replicas do not retry in step. A `Rejected` recipient never comes back;
    an `InDoubt` one is held unless the profile's policy is to send again, because that may duplicate (RFC 1047). Where
    the profile's `circuit` is open, or the failure came before there was a session, another profile may do.

    A retry that could only come after the message has expired is not waited for; behind an open circuit it is, since
    whoever mends the profile may do so in time.
    """
    again = [o for o in outcomes.values() if isinstance(o, Deferred) or _is_sent_again(o, in_doubt)]
    if not again:
        return Done()
    deferred = [outcome.failure for outcome in again if isinstance(outcome, Deferred)]
    if may_fall_back and _nobody_was_answered(claim, outcomes, circuit):
        return FallBack()
    if circuit is not None:
        return RetryAt(min(circuit.next_trial_at, claim.snapshot.expires_at))
    wait = schedule.wait_after(claim.snapshot.attempts) * jitter
    asked = max((wait_asked_for(failure.reply) for failure in deferred if failure.reply), default=0.0)
    at = now + timedelta(seconds=max(wait, asked))
    return RetryAt(at) if at < claim.snapshot.expires_at else GiveUp()


def _nobody_was_answered(claim: Claim, outcomes: Mapping[str, Outcome], circuit: Circuit | None) -> bool:
    """Whether the profile's own failure deferred all who are pending: the relay has said nothing of anybody."""
    pending = [outcomes.get(r.address) for r in claim.snapshot.recipients if r.state is RecipientState.PENDING]
    return all(
        isinstance(outcome, Deferred)
        and (
            is_of_opening(outcome.failure)
            or (circuit is not None and outcome.failure.cls is FailureClass.CONFIGURATION)
        )
        for outcome in pending
    )


def _is_sent_again(outcome: Outcome, in_doubt: InDoubtPolicy) -> bool:
    return isinstance(outcome, InDoubt) and in_doubt is InDoubtPolicy.RETRY


def ending(
    claim: Claim, outcomes: Mapping[str, Outcome], step: Step, *, in_doubt: InDoubtPolicy = InDoubtPolicy.HOLD
) -> Ending:
    """Say what everybody's state is after this attempt."""
    recipients = tuple(_after(r, outcomes.get(r.address), step, in_doubt) for r in claim.snapshot.recipients)
    state = message_state((r.state for r in recipients), while_pending=MessageState.DEFERRED)
    return Ending(
        state=state,
        recipients=recipients,
        failure=leading_failure(recipients),
        next_attempt_at=step.at if isinstance(step, RetryAt) else None,
    )


def ending_of_nobody(claim: Claim) -> Ending:
    """End a message that was due though nobody is pending: another version wrote its rows, or they are damaged."""
    people = claim.snapshot.recipients
    state = message_state((r.state for r in people), while_pending=MessageState.DEFERRED)
    return Ending(state, people, leading_failure(people) if people else NO_RECIPIENTS, next_attempt_at=None)


def _damaged(message: str) -> Failure:
    return Failure(
        code=CODE_OF[Reason.UNEXPECTED],
        reason=Reason.UNEXPECTED,
        cls=FailureClass.PERMANENT,
        phase=Phase.RESOLVE,  # nothing was begun
        message=message,
        hint="The database is damaged: check its disk, and send the message again.",
    )


NO_RECIPIENTS = _damaged("The recipients of the message are not in the database any more")
NO_CONTENT = _damaged("The content of the message is not in the database any more, or not all of it")


def _after(recipient: Recipient, outcome: Outcome | None, step: Step, in_doubt: InDoubtPolicy) -> Recipient:
    if outcome is None or isinstance(outcome, Sent):
        return recipient if outcome is None else replace(recipient, state=RecipientState.SENT, failure=None)
    # Sent again, and in doubt before: no later failure takes back that it may have arrived.
    doubt = recipient.failure if recipient.failure and recipient.failure.code is ErrorCode.EINDOUBT else None
    match outcome:
        case Rejected(failure):
            state = RecipientState.IN_DOUBT if doubt else RecipientState.REJECTED
        case InDoubt(failure):
            is_pending = _is_sent_again(outcome, in_doubt) and isinstance(step, RetryAt)
            state = RecipientState.PENDING if is_pending else RecipientState.IN_DOUBT
        case Deferred(failure) if isinstance(step, GiveUp):
            state = RecipientState.IN_DOUBT if doubt else RecipientState.EXPIRED
            failure = expired(failure)
        case Deferred(failure):
            state = RecipientState.PENDING
        case _:
            assert_never(outcome)
    return replace(recipient, state=state, failure=doubt or failure)


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
        hint=at_the_end(last.hint),
    )


def policy_of(claim: Claim, profile: Profile) -> InDoubtPolicy:
    """What may be in doubt at another profile's relay is held: the message's own would be another relay."""
    return profile.in_doubt if profile.name == claim.snapshot.profile else InDoubtPolicy.HOLD


def saying_where(lost: Failure, claim: Claim, profile: Profile, attempt: Attempt) -> Failure:
    """Have the hint of a lost verdict name what to look for, where, and from when on."""
    facts = {"message_id": claim.snapshot.message_id, "since": f"{attempt.started_at:%Y-%m-%dT%H:%M:%SZ}"}
    if policy_of(claim, profile) is InDoubtPolicy.RETRY:
        facts["again"] = "yes"
    return replace(lost, hint=hint(Reason.OUTCOME_UNKNOWN, profile, facts))
