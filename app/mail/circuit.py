"""When a profile's circuit opens, when it is tried, and what closes it.

A relay that is down, or a password that is wrong, is everybody's trouble at once: the circuit keeps it from costing
every message an attempt, and every attempt a login. While it is open messages wait, with the failure that opened it.

    before a login (refused, no such name, certificate …)   a probe: connect … EHLO, without a login
    at the login or later (535, 530 at MAIL, relay denied)   one waiting message tries

Whatever goes wrong in a login opens it: relays count logins and lock accounts, and one that breaks off, answers
nonsense or is busy may have counted too. Where the password was judged, or nobody can tell, it is tried once an hour.

Pure. RFC 5321 §4.5.4.1 (a host that is down is not to be tried for every message anew), RFC 4954 §6 (535).
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from datetime import datetime, timedelta

from app.mail.codes import Reason
from app.mail.outcome import Failure, FailureClass, Phase

IN_A_ROW = 3  # failures of the kind that may be one message's own bad luck
FIRST_PACE, SLOWEST_PACE = timedelta(seconds=30), timedelta(minutes=10)
PACE_OF_LOGINS = timedelta(hours=1)  # after a refused one: relays lock accounts for less

# At AUTH: the relay has looked at the credentials, or does not keep to the protocol and may have.
_SPENT = frozenset(
    {
        Reason.AUTH_REJECTED,
        Reason.AUTH_MECHANISM_REFUSED,
        Reason.AUTH_SERVER_UNVERIFIED,
        Reason.MALFORMED_REPLY,
        Reason.UNEXPECTED_REPLY,
    }
)

_ORDER = tuple(Phase)


@dataclass(frozen=True, slots=True)
class Circuit:
    """One that is open. `failure` opened it, `tried` = how often it was tried in vain since then."""

    failure: Failure
    opened_at: datetime
    next_trial_at: datetime
    tried: int = 0

    @property
    def is_probed(self) -> bool:
        """Whether a probe without a login can tell that it is over; else a message must try."""
        return is_before(self.failure.phase, Phase.AUTH)


@dataclass(frozen=True, slots=True)
class Streak:
    """What has failed in a row, with no success between."""

    unreachable: int = 0
    denied: frozenset[str] = frozenset()  # recipients


def is_before(phase: Phase, other: Phase) -> bool:
    """Whether a conversation comes to `phase` before `other`."""
    return _ORDER.index(phase) < _ORDER.index(other)


def is_of_opening(failure: Failure) -> bool:
    """Whether it came before there was a session that could carry a message."""
    return is_before(failure.phase, Phase.MAIL)


def is_of_profile(failure: Failure) -> bool:
    """Whether the way to the relay failed, not the message or a recipient: a profile that works cures it."""
    return failure.cls is FailureClass.CONFIGURATION or is_of_opening(failure)


def condemns(failure: Failure, *, is_proven: bool = False) -> bool:
    """Whether this one failure says that no message would fare better.

    `is_proven` = these credentials have worked, and no login has failed since: then a relay that takes no more of
    them means how many at once.
    """
    if failure.reason is Reason.RATE_LIMITED:
        return failure.phase is Phase.AUTH and not is_proven
    if failure.phase is Phase.AUTH or (failure.phase is Phase.GREETING and failure.smtp_code is not None):
        return True
    if failure.cls is not FailureClass.CONFIGURATION:
        return False
    return is_of_opening(failure) or (failure.phase is Phase.MAIL and failure.smtp_code == 530)


def after_failure(
    streak: Streak, failure: Failure, recipients: frozenset[str], *, is_proven: bool = False
) -> tuple[Streak, bool]:
    """Count a failure; return the streak with it, and whether the circuit opens now. `is_proven`: see `condemns()`."""
    if condemns(failure, is_proven=is_proven):
        return streak, True
    if failure.cls is FailureClass.CONFIGURATION:
        streak = replace(streak, denied=streak.denied | recipients)
        return streak, len(streak.denied) >= IN_A_ROW
    if is_before(failure.phase, Phase.EHLO) and failure.smtp_code is None:
        streak = replace(streak, unreachable=streak.unreachable + 1)
        return streak, streak.unreachable >= IN_A_ROW
    return streak, False


def opened_by(failure: Failure, now: datetime) -> Circuit:
    """Open one."""
    return Circuit(failure, now, now + _pace(failure, 0))


def tried_in_vain(circuit: Circuit, failure: Failure, now: datetime) -> Circuit:
    """Return the circuit after a trial that failed; another trouble with the profile takes the first one's place."""
    is_of_profile = condemns(failure) and (failure.phase is not Phase.AUTH or _is_spent(failure))
    is_of_profile |= failure.cls is FailureClass.CONFIGURATION
    if is_of_profile and failure.reason is not circuit.failure.reason:
        return replace(opened_by(failure, now), opened_at=circuit.opened_at)
    tried = circuit.tried + 1
    return replace(circuit, tried=tried, next_trial_at=now + _pace(circuit.failure, tried))


def _is_spent(failure: Failure) -> bool:
    """Whether the relay has counted a failed login, or may have."""
    return failure.reason is Reason.AUTH_REJECTED or (failure.phase is Phase.AUTH and failure.reason in _SPENT)


def _pace(failure: Failure, tried: int) -> timedelta:
    if _is_spent(failure):
        return PACE_OF_LOGINS
    if tried and failure.phase is Phase.AUTH and failure.cls is FailureClass.TEMPORARY:
        return SLOWEST_PACE  # once is bad luck, twice may be the login's fault
    return min(FIRST_PACE * (1 << min(tried, 10)), SLOWEST_PACE)
