"""One attempt: a profile, a session, a transaction; and an outcome for everybody it was for."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import assert_never

from app.delivery.contents import Contents
from app.delivery.turns import Following, who_follows
from app.mail.attempt import Attempt
from app.mail.errors import TransactionError
from app.mail.message import Claim
from app.mail.outcome import Deferred, Failure, FailureClass, InDoubt, Outcome, Phase, Rejected, Sent
from app.mail.profile import Profile
from app.mail.reply import Reply
from app.smtp import classify
from app.smtp.limits import is_too_many_recipients, is_worn_out
from app.smtp.pool import Pool
from app.smtp.transaction import BeforeHandover, Report, StaleSession, deliver
from app.smtp.transaction_replies import is_access_refusal


async def carry_out(
    claim: Claim,
    contents: Contents,
    profile: Profile,
    attempt: Attempt,
    *,
    pool: Pool,
    before_handover: BeforeHandover,
    begins: Callable[[], None] = lambda: None,
) -> tuple[Mapping[str, Outcome], Following]:
    """Try once; fill `attempt` in and return an outcome for every pending recipient, and who may be asked again.

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
    return outcomes, who_follows(report, claim.pending)


def first_failure(outcomes: Mapping[str, Outcome]) -> Failure | None:
    """Give the failure that stands for an attempt, None where everybody was sent to."""
    return next((outcome.failure for outcome in outcomes.values() if not isinstance(outcome, Sent)), None)


def outcomes_of(
    report: Report, pending: tuple[str, ...], profile: Profile, attempt: Attempt, *, our_address: str = ""
) -> Mapping[str, Outcome]:
    """Read a report into an outcome for each of `pending`. Pure.

    An access refusal condemns the profile only where it met everybody who was asked (situation 33b).
    """
    readings: dict[tuple[Phase, Reply], Outcome] = {}
    alone = not report.accepted and all(
        phase in (Phase.MAIL, Phase.RCPT) and is_access_refusal(reply) for phase, reply in report.verdicts.values()
    )
    outcomes: dict[str, Outcome] = {}
    for address in pending:
        if address in report.refused:
            outcomes[address] = _outcome(report.refused[address])
            continue
        verdict = report.verdicts.get(address)
        if verdict is None:
            assert report.failure is not None, "a recipient has neither verdict nor failure"  # noqa: S101
            outcomes[address] = _outcome(replace(report.failure, by_name=address == report.ended_at))
            continue
        if verdict not in readings:
            phase, reply = verdict
            if reply.is_positive:
                readings[verdict] = Sent(reply)
            else:
                said = classify.transaction(profile, attempt, phase, reply, alone=alone, our_address=our_address)
                readings[verdict] = _outcome(replace(said, by_name=_is_by_name(phase, reply)))
        outcomes[address] = readings[verdict]
    return outcomes


def _is_by_name(phase: Phase, reply: Reply) -> bool:
    """Whether a refusal is about the recipient, and not about how many there are or what came before."""
    return phase is Phase.RCPT and not is_too_many_recipients(reply) and not is_worn_out(reply)


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
