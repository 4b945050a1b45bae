"""What happens next is decided once for everybody who is still pending, and never for anybody else."""

from __future__ import annotations

from dataclasses import replace
from datetime import timedelta
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from app.delivery.plan import Done, FallBack, GiveUp, RetryAt, Step, ending, expired, next_step
from app.mail.circuit import Circuit
from app.mail.codes import ErrorCode, Reason
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
)
from app.mail.profile import InDoubtPolicy
from app.mail.schedule import Schedule
from tests.unit.factories import NOW, claim, failure, recipients, reply

P, S, R, D, E, C = RecipientState
LATER = failure(message="450 later")
NEVER = failure(FailureClass.PERMANENT, message="550 never", code=ErrorCode.EENVELOPE, reason=Reason.MAILBOX_UNKNOWN)
LOST = failure(FailureClass.UNKNOWN, message="lost", code=ErrorCode.EINDOUBT, reason=Reason.OUTCOME_UNKNOWN)
BROKEN = failure(FailureClass.CONFIGURATION, message="535 no", code=ErrorCode.EAUTH, reason=Reason.AUTH_REJECTED)
SENT, DEFERRED, REJECTED, IN_DOUBT = Sent(reply()), Deferred(LATER), Rejected(NEVER), InDoubt(LOST)
SCHEDULE = Schedule.parse("30s, 1m*3, 2h")
AT = NOW + timedelta(seconds=30)


def _outcomes(held: Claim, *outcomes: Outcome) -> dict[str, Outcome]:
    return dict(zip(held.pending, outcomes, strict=True))


def _next(held: Claim, outcomes: dict[str, Outcome], jitter: float = 1.0, **more: Any) -> Step:
    return next_step(held, outcomes, schedule=SCHEDULE, now=NOW, jitter=jitter, **more)


@pytest.mark.parametrize(
    ("outcomes", "step"),
    [
        ([SENT], Done()),
        ([REJECTED], Done()),
        ([IN_DOUBT], Done()),
        ([DEFERRED], RetryAt(AT)),
        ([Deferred(BROKEN)], RetryAt(AT)),
        ([SENT, REJECTED, IN_DOUBT], Done()),
        ([SENT, DEFERRED], RetryAt(AT)),
        ([DEFERRED, REJECTED], RetryAt(AT)),
        ([IN_DOUBT, DEFERRED], RetryAt(AT)),
    ],
)
def test_it_is_tried_again_exactly_where_somebody_was_deferred(outcomes: list[Outcome], step: Step) -> None:
    held = claim(recipients(*[P] * len(outcomes)))
    assert _next(held, _outcomes(held, *outcomes)) == step


@pytest.mark.parametrize(("attempt", "seconds"), [(1, 30), (2, 60), (3, 60), (4, 60), (5, 7200), (6, 7200), (99, 7200)])
def test_the_wait_is_the_schedules_and_its_last_one_repeats(attempt: int, seconds: float) -> None:
    held = claim(attempts=attempt)
    assert _next(held, _outcomes(held, DEFERRED)) == RetryAt(NOW + timedelta(seconds=seconds))


@pytest.mark.parametrize(
    ("left", "step"),
    [(31, RetryAt(AT)), (30.001, RetryAt(AT)), (30, GiveUp()), (29, GiveUp()), (0, GiveUp()), (-5, GiveUp())],
)
def test_a_retry_that_would_come_too_late_is_not_waited_for(left: float, step: Step) -> None:
    held = claim(expires_at=NOW + timedelta(seconds=left))
    assert _next(held, _outcomes(held, DEFERRED)) == step


@pytest.mark.parametrize(
    ("before", "outcomes", "step", "after", "state"),
    [
        ([P], [SENT], Done(), [S], MessageState.SENT),
        ([P], [REJECTED], Done(), [R], MessageState.FAILED),
        ([P], [IN_DOUBT], Done(), [D], MessageState.IN_DOUBT),
        ([P], [DEFERRED], RetryAt(AT), [P], MessageState.DEFERRED),
        ([P], [DEFERRED], GiveUp(), [E], MessageState.FAILED),
        ([P, P], [SENT, SENT], Done(), [S, S], MessageState.SENT),
        ([P, P], [SENT, REJECTED], Done(), [S, R], MessageState.PARTIAL),
        ([P, P], [SENT, DEFERRED], RetryAt(AT), [S, P], MessageState.DEFERRED),
        ([P, P], [SENT, DEFERRED], GiveUp(), [S, E], MessageState.PARTIAL),
        ([P, P], [REJECTED, DEFERRED], GiveUp(), [R, E], MessageState.FAILED),
        ([P, P], [IN_DOUBT, DEFERRED], RetryAt(AT), [D, P], MessageState.DEFERRED),
        ([P, P], [IN_DOUBT, DEFERRED], GiveUp(), [D, E], MessageState.IN_DOUBT),
        ([S, P], [SENT], Done(), [S, S], MessageState.SENT),
        ([S, P], [REJECTED], Done(), [S, R], MessageState.PARTIAL),
        ([R, P], [SENT], Done(), [R, S], MessageState.PARTIAL),
        ([D, P], [SENT], Done(), [D, S], MessageState.IN_DOUBT),
        ([C, P], [REJECTED], Done(), [C, R], MessageState.FAILED),
        ([C, P], [SENT], Done(), [C, S], MessageState.PARTIAL),
    ],
)
def test_what_an_attempt_leaves_behind(
    before: list[RecipientState],
    outcomes: list[Outcome],
    step: Step,
    after: list[RecipientState],
    state: MessageState,
) -> None:
    held = claim(recipients(*before))
    end = ending(held, _outcomes(held, *outcomes), step)
    assert [r.state for r in end.recipients] == after
    assert end.state is state
    assert end.next_attempt_at == (AT if isinstance(step, RetryAt) else None)


def test_everybody_keeps_the_failure_that_was_theirs() -> None:
    held = claim(recipients(P, P, P, P))
    end = ending(held, _outcomes(held, SENT, DEFERRED, REJECTED, IN_DOUBT), RetryAt(AT))
    assert [r.failure for r in end.recipients] == [None, LATER, NEVER, LOST]


def test_who_is_given_up_has_the_failure_of_the_end() -> None:
    held = claim(recipients(P, P))
    end = ending(held, _outcomes(held, SENT, Deferred(BROKEN)), GiveUp())
    assert [r.failure for r in end.recipients] == [None, expired(BROKEN)]
    assert end.failure == expired(BROKEN)


def test_who_is_sent_at_last_has_no_failure_any_more() -> None:
    held = claim((Recipient("a@example.org", P, LATER),))
    end = ending(held, _outcomes(held, SENT), Done())
    assert end.recipients == (Recipient("a@example.org", S),)
    assert end.failure is None


def test_the_end_by_time_names_the_last_failure() -> None:
    last = expired(BROKEN)
    assert (last.code, last.reason, last.cls) == (ErrorCode.EEXPIRED, Reason.EXPIRED, FailureClass.PERMANENT)
    assert BROKEN.message in last.message
    assert "EAUTH/auth_rejected" in last.message
    assert (last.phase, last.smtp_code, last.reply) == (BROKEN.phase, BROKEN.smtp_code, BROKEN.reply)


@pytest.mark.parametrize(
    ("people", "stands"),
    [
        ([], None),
        ([(S, None)], None),
        ([(S, None), (C, None)], None),
        ([(R, NEVER)], NEVER),
        ([(R, NEVER), (P, LATER)], LATER),
        ([(R, NEVER), (D, LOST)], LOST),
        ([(D, LOST), (P, LATER)], LATER),
        ([(R, NEVER), (E, BROKEN)], BROKEN),
        ([(P, None), (R, NEVER)], NEVER),
        ([(P, LATER), (P, BROKEN)], LATER),
        ([(S, None), (R, NEVER)], NEVER),
    ],
)
def test_one_failure_stands_for_the_message(
    people: list[tuple[RecipientState, Failure | None]], stands: Failure | None
) -> None:
    assert leading_failure([Recipient(f"{n}@x.org", state, why) for n, (state, why) in enumerate(people)]) is stands


# For any recipients and any outcomes.

_failures = st.sampled_from([LATER, NEVER, LOST, BROKEN])
_outcome = st.one_of(
    st.just(SENT), st.builds(Deferred, _failures), st.builds(Rejected, _failures), st.builds(InDoubt, _failures)
)


@st.composite
def _attempts(draw: st.DrawFn) -> tuple[Claim, dict[str, Outcome]]:
    states = [P, *draw(st.lists(st.sampled_from(RecipientState), max_size=6))]
    held = claim(
        recipients(*states),
        attempts=draw(st.integers(1, 40)),
        expires_at=NOW + timedelta(seconds=draw(st.integers(-10, 20_000))),
    )
    return held, {address: draw(_outcome) for address in held.pending}


@given(_attempts(), st.floats(0.9, 1.1))
def test_after_any_attempt_only_the_deferred_are_still_pending(
    tried: tuple[Claim, dict[str, Outcome]], jitter: float
) -> None:
    held, outcomes = tried
    step = _next(held, outcomes, jitter)
    end = ending(held, outcomes, step)
    for before, after in zip(held.snapshot.recipients, end.recipients, strict=True):
        assert after.address == before.address
        match outcomes.get(before.address):
            case None:
                assert after == before
            case Sent():
                assert after.state is S
            case Rejected(why):
                assert (after.state, after.failure) == (R, why)
            case InDoubt(why):
                assert (after.state, after.failure) == (D, why)
            case Deferred():
                assert after.state is (E if isinstance(step, GiveUp) else P)


@given(_attempts(), st.floats(0.9, 1.1))
def test_a_message_waits_exactly_where_a_retry_is_set(tried: tuple[Claim, dict[str, Outcome]], jitter: float) -> None:
    held, outcomes = tried
    step = _next(held, outcomes, jitter)
    end = ending(held, outcomes, step)
    assert (end.state is MessageState.DEFERRED) is isinstance(step, RetryAt) is (end.next_attempt_at is not None)
    assert end.state.is_final is not isinstance(step, RetryAt)


@given(_attempts(), st.floats(0.9, 1.1))
def test_a_retry_comes_after_its_wait_within_the_jitter_and_before_the_end(
    tried: tuple[Claim, dict[str, Outcome]], jitter: float
) -> None:
    held, outcomes = tried
    step = _next(held, outcomes, jitter)
    if isinstance(step, RetryAt):
        wait = SCHEDULE.wait_after(held.snapshot.attempts)
        assert (step.at - NOW).total_seconds() == pytest.approx(wait * jitter, abs=1e-5)
        assert NOW < step.at < held.snapshot.expires_at


@given(_attempts(), st.floats(0.9, 1.1))
def test_whatever_did_not_go_well_has_a_failure_that_says_why(
    tried: tuple[Claim, dict[str, Outcome]], jitter: float
) -> None:
    held, outcomes = tried
    end = ending(held, outcomes, _next(held, outcomes, jitter))
    for recipient in end.recipients:
        if recipient.address in outcomes:
            assert (recipient.failure is None) is (recipient.state is S)


# Other profiles, circuits, and messages that are sent again although in doubt.

UNREACHABLE = failure(
    message="refused", code=ErrorCode.ECONNECTION, reason=Reason.CONNECTION_REFUSED, phase=Phase.CONNECT
)
OPEN = Circuit(BROKEN, NOW, NOW + timedelta(minutes=10))


@pytest.mark.parametrize(
    ("outcomes", "circuit", "falls_back"),
    [
        ([Deferred(UNREACHABLE)], None, True),
        ([Deferred(replace(BROKEN, phase=Phase.AUTH))], None, True),
        ([Deferred(UNREACHABLE)], OPEN, True),
        ([DEFERRED], None, False),
        ([Deferred(BROKEN)], OPEN, True),
        ([DEFERRED], OPEN, False),
        ([Deferred(UNREACHABLE), DEFERRED], OPEN, False),
        ([SENT, Deferred(UNREACHABLE)], OPEN, False),
        ([REJECTED, Deferred(UNREACHABLE)], OPEN, False),
        ([IN_DOUBT, Deferred(UNREACHABLE)], OPEN, False),
        ([Deferred(replace(LATER, phase=Phase.MAIL))], None, False),
        ([REJECTED], OPEN, False),
        ([IN_DOUBT], OPEN, False),
        ([SENT, DEFERRED], None, False),
    ],
)
def test_another_profile_is_for_failures_before_there_was_a_session_or_of_the_profile(
    outcomes: list[Outcome], circuit: Circuit | None, falls_back: bool
) -> None:
    held = claim(recipients(*[P] * len(outcomes)))
    there_are_others = _next(held, _outcomes(held, *outcomes), circuit=circuit, may_fall_back=True)
    assert isinstance(there_are_others, FallBack) is falls_back
    assert not isinstance(_next(held, _outcomes(held, *outcomes), circuit=circuit), FallBack)


def test_behind_an_open_circuit_it_waits_for_the_trial_and_at_most_to_its_end() -> None:
    held = claim()
    assert _next(held, _outcomes(held, DEFERRED), circuit=OPEN) == RetryAt(OPEN.next_trial_at)
    held = claim(expires_at=NOW + timedelta(minutes=3))
    assert _next(held, _outcomes(held, DEFERRED), circuit=OPEN) == RetryAt(NOW + timedelta(minutes=3))


@pytest.mark.parametrize(
    ("reply", "seconds"),
    [
        ("451 4.7.1 Greylisted, please try again in 300 seconds", 300),
        ("450 4.2.0 Greylisting in action, come back in 00:05:30", 330),
        ("451 4.7.1 Try again after 5 minutes", 300),
        ("451 4.7.1 try again in 1 hour", 3600),
        ("451 4.7.1 try again in 99999 seconds", 3600),
        ("451 4.7.1 try again in 3 seconds", 30),
        ("451 4.7.1 try again later", 30),
    ],
)
def test_the_relays_own_wait_is_kept_where_it_is_the_longer_one(reply: str, seconds: float) -> None:
    held = claim()
    assert _next(held, _outcomes(held, Deferred(replace(LATER, reply=reply)))) == RetryAt(
        NOW + timedelta(seconds=seconds)
    )


RETRY = InDoubtPolicy.RETRY
DOUBTFUL = (Recipient("r0@example.org", P, LOST),)


def test_what_is_in_doubt_is_sent_again_only_where_that_is_the_policy() -> None:
    held = claim()
    assert _next(held, _outcomes(held, IN_DOUBT)) == Done()
    step = _next(held, _outcomes(held, IN_DOUBT), in_doubt=RETRY, may_fall_back=True)
    assert step == RetryAt(AT)
    end = ending(held, _outcomes(held, IN_DOUBT), step, in_doubt=RETRY)
    assert (end.state, end.failure, end.recipients[0].state) == (MessageState.DEFERRED, LOST, P)


@pytest.mark.parametrize(
    ("outcome", "step", "state", "why"),
    [
        (SENT, Done(), S, None),
        (DEFERRED, RetryAt(AT), P, LOST),
        (DEFERRED, GiveUp(), D, LOST),
        (REJECTED, Done(), D, LOST),
        (IN_DOUBT, GiveUp(), D, LOST),
    ],
)
def test_what_may_have_arrived_ends_sent_or_in_doubt(
    outcome: Outcome, step: Step, state: RecipientState, why: Failure | None
) -> None:
    held = claim(DOUBTFUL)
    assert held.is_doubtful
    (after,) = ending(held, _outcomes(held, outcome), step, in_doubt=RETRY).recipients
    assert (after.state, after.failure) == (state, why)
