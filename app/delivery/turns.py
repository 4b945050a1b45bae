"""In what order an attempt asks for its recipients, and who may be asked again in a further transaction. Pure.

Many relays end a session after so many refused recipients (Postfix: 421 after 20), and some end it at one recipient. So
that nobody is held up by those who are refused, an attempt has turns, each a transaction of its own: first whoever was
accepted or not asked last time, then those whom the relay refused by name, last those at whom it ended the session.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

from app.mail.circuit import is_of_opening
from app.mail.codes import Reason
from app.mail.message import Recipient
from app.mail.outcome import Deferred, Failure, FailureClass, InDoubt, Outcome, Phase, RecipientState, Rejected, Sent
from app.smtp.limits import is_too_many_recipients
from app.smtp.transaction import Report

MOST_IN_VAIN = 50  # transactions of one attempt that send to nobody; the next attempt goes on from there

_OF_SESSION = (Reason.SERVICE_UNAVAILABLE, Reason.CONNECTION_LOST)


@dataclass(frozen=True, slots=True)
class Following:
    """Who may be asked again in the same attempt: `at_once`, and `last`, behind everybody else.

    `last` is the recipient at whom a session ended that had refused others: it may end the next one, too.
    """

    at_once: frozenset[str] = frozenset()
    last: frozenset[str] = frozenset()


NOBODY = Following()


def turns(recipients: Sequence[Recipient]) -> list[frozenset[str]]:
    """Return the pending recipients by turn, without empty turns."""
    by_turn: list[list[str]] = [[], [], []]
    for recipient in recipients:
        if recipient.state is RecipientState.PENDING:
            by_turn[_turn(recipient.failure)].append(recipient.address)
    return [frozenset(addresses) for addresses in by_turn if addresses]


def _turn(failure: Failure | None) -> int:
    if failure is None or not failure.by_name:
        return 0
    return 2 if failure.smtp_code in (None, 421) else 1


def who_follows(report: Report, pending: Sequence[str]) -> Following:
    """Say who may be asked again in the same attempt.

    Those are recipients who were one too many for a transaction that went well (RFC 5321 §4.5.3.1.10), and those
    whom a session left without a verdict when it ended after it had refused others. A 421 that comes alone may mean
    that the relay is going down: it is not asked again at once.
    """
    if report.failure is not None:
        if not _ended_for_others(report, report.failure):
            return NOBODY
        ended_at = frozenset() if report.ended_at is None else frozenset({report.ended_at})
        return Following(frozenset(pending) - report.verdicts.keys() - ended_at, ended_at)
    if not any(reply.is_positive for _, reply in report.verdicts.values()):
        return NOBODY
    too_many = (
        address
        for address, (phase, reply) in report.verdicts.items()
        if phase is Phase.RCPT and is_too_many_recipients(reply)
    )
    return Following(frozenset(too_many))


def _ended_for_others(report: Report, failure: Failure) -> bool:
    """Whether a session ended before its content, and the recipients it had refused may be the cause."""
    if failure.cls is not FailureClass.TEMPORARY or failure.reason not in _OF_SESSION:
        return False
    if failure.phase not in (Phase.RCPT, Phase.DATA):
        return False
    return any(phase is Phase.RCPT for phase, _ in report.verdicts.values())


def may_go_on(outcomes: Mapping[str, Outcome]) -> bool:
    """Whether the next turn may follow: nobody was put off for a cause that is not their own."""
    return not any(
        isinstance(outcome, InDoubt) or (isinstance(outcome, Deferred) and not outcome.failure.by_name)
        for outcome in outcomes.values()
    )


def of_all_turns(outcomes: Mapping[str, Outcome]) -> Mapping[str, Outcome]:
    """Judge what met everybody in one transaction of an attempt by all of them.

    A refusal to relay condemns the profile only where nobody was accepted or refused otherwise (situation 33b).
    """
    if all(_is_relay_denied(outcome) or not _was_asked(outcome) for outcome in outcomes.values()):
        return outcomes
    return {address: _of_recipient(outcome) for address, outcome in outcomes.items()}


def _was_asked(outcome: Outcome) -> bool:
    """Whether the relay has answered for this recipient."""
    if isinstance(outcome, Sent):
        return True
    return _turn(outcome.failure) == 1 or outcome.failure.phase in (Phase.DATA, Phase.CONTENT)


def _is_relay_denied(outcome: Outcome) -> bool:
    return not isinstance(outcome, Sent) and outcome.failure.reason is Reason.RELAY_DENIED


def _of_recipient(outcome: Outcome) -> Outcome:
    if not isinstance(outcome, Deferred) or not _is_relay_denied(outcome):
        return outcome
    if (outcome.failure.smtp_code or 0) >= 500:
        return Rejected(replace(outcome.failure, cls=FailureClass.PERMANENT))
    return Deferred(replace(outcome.failure, cls=FailureClass.TEMPORARY))


def went_through(outcomes: Mapping[str, Outcome]) -> bool:
    """Whether somebody was sent to."""
    return any(isinstance(outcome, Sent) for outcome in outcomes.values())


def with_the_rest(
    recipients: Sequence[Recipient], outcomes: Mapping[str, Outcome], failure: Failure | None
) -> Mapping[str, Outcome]:
    """Add an outcome for whoever is pending and had no turn.

    They keep the failure they have; where no session could be opened, they share that failure, and keep their turn.
    """
    rest: dict[str, Outcome] = {}
    for recipient in recipients:
        if recipient.state is not RecipientState.PENDING or recipient.address in outcomes:
            continue
        last = recipient.failure
        assert last is not None, "a recipient without a failure has the first turn"  # noqa: S101
        if failure is not None and is_of_opening(failure):
            last = replace(failure, by_name=last.by_name)
        rest[recipient.address] = Deferred(last)
    return {**outcomes, **rest} if rest else outcomes
