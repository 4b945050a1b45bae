"""When a circuit opens, how often it is tried, and what takes whose place. Pure."""

from __future__ import annotations

from datetime import timedelta

import pytest

from app.mail.circuit import (
    FIRST_PACE,
    PACE_OF_LOGINS,
    SLOWEST_PACE,
    Circuit,
    Streak,
    after_failure,
    opened_by,
    tried_in_vain,
)
from app.mail.codes import CODE_OF, Reason
from app.mail.outcome import Failure, FailureClass, Phase
from tests.unit.factories import NOW, failure

T, C, P = FailureClass.TEMPORARY, FailureClass.CONFIGURATION, FailureClass.PERMANENT


def of(reason: Reason, phase: Phase, cls: FailureClass = C, code: int | None = None) -> Failure:
    return failure(cls, code=CODE_OF[reason], reason=reason, phase=phase, smtp_code=code)


REJECTED = of(Reason.AUTH_REJECTED, Phase.AUTH, C, 535)
REFUSED = of(Reason.CONNECTION_REFUSED, Phase.CONNECT, T)
DENIED = of(Reason.RELAY_DENIED, Phase.RCPT, C, 554)
LIMITED = of(Reason.RATE_LIMITED, Phase.AUTH, T, 454)
UNAVAILABLE = of(Reason.AUTH_UNAVAILABLE, Phase.AUTH, T, 454)
CUT_OFF = of(Reason.CONNECTION_LOST, Phase.AUTH, T)
DERAILED = of(Reason.UNEXPECTED_REPLY, Phase.AUTH, T, 250)
FAILED_LOGINS = [
    LIMITED,
    UNAVAILABLE,
    CUT_OFF,
    DERAILED,
    of(Reason.REPLY_TIMEOUT, Phase.AUTH, T),
    of(Reason.SERVICE_UNAVAILABLE, Phase.AUTH, T, 421),
    of(Reason.MALFORMED_REPLY, Phase.AUTH, T),
    of(Reason.AUTH_MECHANISM_REFUSED, Phase.AUTH, C, 534),
    of(Reason.AUTH_MECHANISM_UNSUPPORTED, Phase.AUTH, C, 501),
    of(Reason.AUTH_NEEDS_TLS, Phase.AUTH, C, 538),
    of(Reason.AUTH_SERVER_UNVERIFIED, Phase.AUTH, C),
]


def opens(*failures: Failure, to: str = "") -> bool:
    """Whether the last of several failures in a row opens it, each to another recipient unless `to` one."""
    streak, is_open = Streak(), False
    for at, one in enumerate(failures):
        assert not is_open
        streak, is_open = after_failure(streak, one, frozenset([to or f"r{at}@theirs.test"]))
    return is_open


@pytest.mark.parametrize(
    "one",
    [
        of(Reason.HOST_NOT_FOUND, Phase.RESOLVE),
        of(Reason.TLS_MODE_MISMATCH, Phase.TLS),
        of(Reason.NOT_SMTP, Phase.GREETING),
        of(Reason.GREETING_REFUSED, Phase.GREETING, T, 554),
        of(Reason.GREETING_REFUSED, Phase.GREETING, T, 450),
        of(Reason.SERVICE_UNAVAILABLE, Phase.GREETING, T, 421),
        of(Reason.HELO_REFUSED, Phase.EHLO, C, 550),
        of(Reason.TLS_CERT_UNTRUSTED, Phase.STARTTLS),
        of(Reason.TLS_NOT_OFFERED, Phase.STARTTLS),
        of(Reason.AUTH_NOT_OFFERED, Phase.AUTH),
        of(Reason.FILE_UNREADABLE, Phase.AUTH),
        REJECTED,
        *FAILED_LOGINS,
        of(Reason.AUTH_REQUIRED, Phase.MAIL, C, 530),
        of(Reason.AUTH_NEEDS_TLS, Phase.MAIL, C, 530),
    ],
    ids=lambda one: f"{one.reason} at {one.phase}",
)
def test_one_failure_of_the_profile_opens_it(one: Failure) -> None:
    assert opens(one)


@pytest.mark.parametrize(
    "one",
    [
        of(Reason.RATE_LIMITED, Phase.GREETING, T, 421),
        of(Reason.HELO_REFUSED, Phase.EHLO, T, 450),
        of(Reason.TLS_UNAVAILABLE, Phase.STARTTLS, T, 454),
        of(Reason.CONNECTION_LOST, Phase.MAIL, T),
        of(Reason.SENDER_DEFERRED, Phase.MAIL, T, 450),
        of(Reason.RECIPIENT_DEFERRED, Phase.RCPT, T, 450),
        of(Reason.MAILBOX_UNKNOWN, Phase.RCPT, P, 550),
        of(Reason.CONTENT_REJECTED, Phase.CONTENT, P, 550),
    ],
    ids=lambda one: f"{one.reason} at {one.phase}",
)
def test_what_is_one_messages_own_or_passes_by_itself_never_opens_it(one: Failure) -> None:
    assert not opens(*[one] * 10)


@pytest.mark.parametrize(
    "one",
    [
        REFUSED,
        of(Reason.CONNECT_TIMEOUT, Phase.CONNECT, T),
        of(Reason.DNS_FAILURE, Phase.RESOLVE, T),
        of(Reason.GREETING_TIMEOUT, Phase.GREETING, T),
        of(Reason.TLS_TIMEOUT, Phase.TLS, T),
    ],
    ids=lambda one: f"{one.reason} at {one.phase}",
)
def test_three_times_unreachable_in_a_row_opens_it(one: Failure) -> None:
    assert not opens(one, one)
    assert opens(one, one, one)


@pytest.mark.parametrize("one", [DENIED, of(Reason.AUTH_REQUIRED, Phase.RCPT, C, 554)], ids=lambda one: one.reason)
def test_three_different_recipients_denied_in_a_row_open_it_and_one_thrice_does_not(one: Failure) -> None:
    assert not opens(one, one)
    assert opens(one, one, one)
    assert not opens(*[one] * 9, to="ann@theirs.test")


def test_a_probe_is_enough_before_the_login_and_a_message_must_try_from_there_on() -> None:
    assert opened_by(REFUSED, NOW).is_probed
    assert opened_by(of(Reason.TLS_CERT_EXPIRED, Phase.STARTTLS), NOW).is_probed
    assert not opened_by(REJECTED, NOW).is_probed
    assert not opened_by(of(Reason.AUTH_NOT_OFFERED, Phase.AUTH), NOW).is_probed
    assert not opened_by(DENIED, NOW).is_probed


def waits(first: Failure, *later: Failure) -> list[timedelta]:
    """Give the waits before each trial."""
    circuit, found, now = opened_by(first, NOW), [], NOW
    for one in later:
        found.append(circuit.next_trial_at - now)
        now = circuit.next_trial_at
        circuit = tried_in_vain(circuit, one, now)
    return [*found, circuit.next_trial_at - now]


def test_it_is_tried_every_half_minute_growing_to_ten() -> None:
    seconds = [wait.total_seconds() for wait in waits(REFUSED, *[REFUSED] * 6)]
    assert seconds == [30, 60, 120, 240, 480, 600, 600]
    assert waits(REFUSED, *[REFUSED] * 2000)[-1] == SLOWEST_PACE


def test_too_many_logins_with_credentials_that_work_mean_how_many_at_once_and_do_not_open_it() -> None:
    streak, is_open = after_failure(Streak(), LIMITED, frozenset(), is_proven=True)
    assert (streak, is_open) == (Streak(), False)
    assert all(after_failure(Streak(), one, frozenset(), is_proven=True)[1] for one in FAILED_LOGINS[1:])


@pytest.mark.parametrize("login", [DERAILED, *FAILED_LOGINS[6:8], FAILED_LOGINS[-1]], ids=lambda one: one.reason)
def test_a_login_whose_end_nobody_can_tell_is_as_rare_as_a_refused_one(login: Failure) -> None:
    assert waits(login, login, CUT_OFF, REFUSED) == [PACE_OF_LOGINS] * 4
    assert waits(UNAVAILABLE, login) == [FIRST_PACE, PACE_OF_LOGINS]


@pytest.mark.parametrize("login", [LIMITED, UNAVAILABLE, CUT_OFF, *FAILED_LOGINS[4:6]], ids=lambda one: one.reason)
def test_a_login_without_a_verdict_is_tried_soon_once_and_rarely_from_then_on(login: Failure) -> None:
    assert waits(login, login, CUT_OFF, login) == [FIRST_PACE, SLOWEST_PACE, SLOWEST_PACE, SLOWEST_PACE]


def test_where_no_password_was_looked_at_it_is_tried_like_any_other_setting() -> None:
    for one in FAILED_LOGINS[8:10]:
        assert waits(one, one, one) == [FIRST_PACE, FIRST_PACE * 2, FIRST_PACE * 4]


def test_after_a_refused_login_it_is_tried_once_an_hour() -> None:
    assert waits(REJECTED, REJECTED, REJECTED) == [PACE_OF_LOGINS] * 3
    assert waits(REJECTED, REFUSED, REFUSED) == [PACE_OF_LOGINS] * 3  # unreachable says nothing of the password
    assert waits(REJECTED, CUT_OFF, UNAVAILABLE) == [PACE_OF_LOGINS] * 3  # nor does a relay that is busy


def test_another_trouble_takes_the_first_ones_place_and_its_pace() -> None:
    closed_port = opened_by(REFUSED, NOW)
    later = NOW + timedelta(hours=5)
    now_the_password = tried_in_vain(tried_in_vain(closed_port, REFUSED, NOW), REJECTED, later)
    assert now_the_password == Circuit(REJECTED, NOW, later + PACE_OF_LOGINS, tried=0)
    assert tried_in_vain(opened_by(REJECTED, NOW), DENIED, later) == Circuit(DENIED, NOW, later + FIRST_PACE, tried=0)
    assert tried_in_vain(opened_by(REJECTED, NOW), REFUSED, later).failure == REJECTED
