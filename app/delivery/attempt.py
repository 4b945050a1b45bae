"""One attempt: a profile, a session, a transaction; and an outcome for everybody it was for."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import assert_never

from app.delivery.contents import Contents
from app.mail.attempt import Attempt
from app.mail.errors import TransactionError
from app.mail.message import Claim
from app.mail.outcome import Deferred, Failure, FailureClass, InDoubt, Outcome, Phase, Rejected, Sent
from app.mail.profile import Profile
from app.mail.reply import Reply
from app.smtp import classify
from app.smtp.limits import is_too_many_recipients
from app.smtp.pool import Pool
from app.smtp.transaction import BeforeHandover, Report, StaleSession, deliver


async def carry_out(
    claim: Claim,
    contents: Contents,
    profile: Profile,
    attempt: Attempt,
    *,
    pool: Pool,
    before_handover: BeforeHandover,
    begins: Callable[[], None] = lambda: None,
) -> tuple[Mapping[str, Outcome], frozenset[str]]:
    """Try once; fill `attempt` in and give an outcome for every pending recipient, and who may follow at once.

    A warm session that turns out dead before the relay said a word is replaced within the same attempt: nothing
    had happened (situation 49). `begins` is called once there is a session, before the first transaction on one.

    Raises:
        CircuitOpen: from the pool's way of opening sessions; there was none.
        LeaseLost, StoreUnavailable: from `before_handover`, or the content cannot be read; no content was let go.
    """
    our_address = ""
    try:
        report = Report()
        for fresh in (False, True):
            session = await pool.lease(profile, attempt, fresh=fresh)
            our_address = session.our_address
            if not fresh:
                begins()
            try:
                async with contents.of(claim) as content:
                    report = await deliver(session, claim.envelope, content, attempt, before_handover=before_handover)
                break
            except StaleSession:
                if fresh:
                    raise
            finally:
                pool.give_back(session)
    except TransactionError as error:
        report = Report(failure=error.failure)
    outcomes = outcomes_of(report, claim.pending, profile, attempt, our_address=our_address)
    attempt.end()
    attempt.failure = first_failure(outcomes)
    return outcomes, may_follow(report)


def first_failure(outcomes: Mapping[str, Outcome]) -> Failure | None:
    """Give the failure that stands for an attempt, None where everybody was sent to."""
    return next((outcome.failure for outcome in outcomes.values() if not isinstance(outcome, Sent)), None)


def may_follow(report: Report) -> frozenset[str]:
    """Name who was only one too many for this transaction, which went well: the next one may carry them. Pure."""
    if not any(reply.is_positive for _, reply in report.verdicts.values()):
        return frozenset()
    return frozenset(
        address
        for address, (phase, reply) in report.verdicts.items()
        if phase is Phase.RCPT and is_too_many_recipients(reply)
    )


def outcomes_of(
    report: Report, pending: tuple[str, ...], profile: Profile, attempt: Attempt, *, our_address: str = ""
) -> Mapping[str, Outcome]:
    """Read a report into an outcome for each of `pending`. Pure.

    An access refusal condemns the profile only where it met everybody (situation 33b).
    """
    readings: dict[tuple[Phase, Reply], Outcome] = {}
    alone = len(report.verdicts) + len(report.refused) == len(pending) and all(
        phase in (Phase.MAIL, Phase.RCPT) and classify.is_access_refusal(reply)
        for phase, reply in report.verdicts.values()
    )
    outcomes: dict[str, Outcome] = {}
    for address in pending:
        if address in report.refused:
            outcomes[address] = _outcome(report.refused[address])
            continue
        verdict = report.verdicts.get(address)
        if verdict is None:
            assert report.failure is not None, "a recipient has neither verdict nor failure"  # noqa: S101
            outcomes[address] = _outcome(report.failure)
            continue
        if verdict not in readings:
            phase, reply = verdict
            readings[verdict] = (
                Sent(reply)
                if reply.is_positive
                else _outcome(
                    classify.transaction(profile, attempt, phase, reply, alone=alone, our_address=our_address)
                )
            )
        outcomes[address] = readings[verdict]
    return outcomes


def _outcome(failure: Failure) -> Outcome:
    match failure.cls:
        case FailureClass.PERMANENT:
            return Rejected(failure)
        case FailureClass.UNKNOWN:
            return InDoubt(failure)
        case FailureClass.TEMPORARY | FailureClass.CONFIGURATION:
            return Deferred(failure)
        case _:
            assert_never(failure.cls)
