"""What every reply code means in every phase of a transaction, and which words change it."""

from __future__ import annotations

from collections.abc import Mapping

import pytest

from app.mail.outcome import Phase
from app.mail.reply import Reply
from app.smtp.transaction_replies import Session, read

PHASES = (Phase.MAIL, Phase.RCPT, Phase.DATA, Phase.CONTENT)
BY_DIGIT = {
    Phase.MAIL: ("sender_deferred temporary", "sender_refused permanent"),
    Phase.RCPT: ("recipient_deferred temporary", "recipient_refused permanent"),
    Phase.DATA: ("data_deferred temporary", "data_refused permanent"),
    Phase.CONTENT: ("content_deferred temporary", "content_rejected permanent"),
}
LOST, LOGIN, CLOSING = "bad_sequence temporary", "auth_required configuration", "service_unavailable temporary"
TOO_LARGE, UNKNOWN = "message_too_large permanent", "mailbox_unknown permanent"
# Phase → code → what it means without words; every other code goes by its first digit.
KNOWN: Mapping[Phase, Mapping[int, str]] = {
    Phase.MAIL: {421: CLOSING, 552: TOO_LARGE} | dict.fromkeys((500, 502, 503), LOST) | {530: LOGIN},
    Phase.RCPT: {421: CLOSING, 552: "recipient_deferred temporary", 530: LOGIN}
    | dict.fromkeys((500, 502, 503), LOST)
    | dict.fromkeys((550, 551, 553), UNKNOWN),
    Phase.DATA: {421: CLOSING, 552: TOO_LARGE} | dict.fromkeys(range(500, 505), LOST) | {530: LOGIN},
    Phase.CONTENT: {503: LOST, 552: TOO_LARGE},
}
PLAIN = Session(is_encrypted=False, is_logged_in=False, offers_auth=False)
OFFERED = Session(is_encrypted=False, is_logged_in=False, offers_auth=True)
LOGGED_IN = Session(is_encrypted=True, is_logged_in=True, offers_auth=True)


def reading(phase: Phase, said: str, session: Session = PLAIN, *, alone: bool = True) -> str:
    found = read(phase, Reply(int(said[:3]), (said[4:],)), session, alone=alone)
    return f"{found.reason} {found.cls}"


@pytest.mark.parametrize("code", range(400, 600))
@pytest.mark.parametrize("phase", PHASES)
def test_every_code_has_a_meaning_in_every_phase(phase: Phase, code: int) -> None:
    assert reading(phase, f"{code} odd") == KNOWN[phase].get(code, BY_DIGIT[phase][code >= 500])


@pytest.mark.parametrize("said", ["500 5.5.1 x", "500 5.5.2 x", "502 5.5.1 x", "503 5.5.1 x", "503 5.0.0 x", "503 x"])
@pytest.mark.parametrize("phase", PHASES)
def test_a_command_that_the_relay_does_not_follow_fails_nobody(phase: Phase, said: str) -> None:
    assert reading(phase, said) == reading(phase, said, LOGGED_IN) == LOST


@pytest.mark.parametrize("said", ["500 5.7.1 no", "502 5.6.0 no", "503 5.7.0 no", "503 5.1.1 no", "503 5.2.1 no"])
@pytest.mark.parametrize("phase", PHASES)
def test_an_enhanced_code_may_say_that_it_is_no_fault_of_the_session(phase: Phase, said: str) -> None:
    assert reading(phase, said) == BY_DIGIT[phase][True]


@pytest.mark.parametrize(
    ("phase", "said", "means"),
    [
        (Phase.MAIL, "501 5.1.7 Bad sender address syntax", "sender_refused permanent"),  # Postfix
        (Phase.MAIL, "504 5.5.2 <ann>: Sender address rejected: need fully-qualified address", "sender_refused permanent"),
        (Phase.MAIL, "555 5.5.2 Syntax error", "sender_refused permanent"),  # Google
        (Phase.RCPT, "501 5.1.3 Bad recipient address syntax", "recipient_refused permanent"),
        (Phase.RCPT, "504 5.5.2 <b>: Recipient address rejected: need fully-qualified", "recipient_refused permanent"),
        (Phase.RCPT, "550 5.1.8 <a@x>: Sender address rejected: Domain not found", "sender_refused permanent"),
        (Phase.RCPT, "503 5.5.1 Error: need MAIL command", LOST),  # Postfix
        (Phase.RCPT, "503 sender not yet given", LOST),  # Exim
        (Phase.DATA, "503 valid RCPT command must precede DATA", LOST),  # Exim
        (Phase.DATA, "501 5.5.4 Syntax: DATA", LOST),
        (Phase.DATA, "554 5.5.1 Error: no valid recipients", "data_refused permanent"),
        (Phase.DATA, "552 5.3.4 too big", TOO_LARGE),
        (Phase.CONTENT, "530 From/Sender name is not valid", "content_rejected permanent"),  # Postal
        (Phase.CONTENT, "500 spam", "content_rejected permanent"),
        (Phase.CONTENT, "501 headers are malformed", "content_rejected permanent"),
        (Phase.CONTENT, "421 4.3.2 bye", "content_deferred temporary"),
        (Phase.CONTENT, "554 5.2.3 too long", TOO_LARGE),
        (Phase.RCPT, "552 5.2.2 mailbox full", "recipient_deferred temporary"),
        (Phase.RCPT, "550 5.2.2 mailbox full", "recipient_refused permanent"),
        (Phase.MAIL, "554 5.7.0 Error: too many errors", "sender_deferred temporary"),
        (Phase.RCPT, "554 5.7.0 Error: too many errors", "recipient_deferred temporary"),
        (Phase.RCPT, "550 Too many invalid recipients", "recipient_deferred temporary"),
        (Phase.DATA, "550 too many unknown users", "data_deferred temporary"),
        (Phase.CONTENT, "554 5.4.6 Too many hops", "content_rejected permanent"),
    ],
)  # fmt: skip
def test_words_and_enhanced_codes_say_whose_fault_it_is(phase: Phase, said: str, means: str) -> None:
    assert reading(phase, said) == means


@pytest.mark.parametrize(
    "said",
    [
        "503 Error: need EHLO and AUTH first !",  # QQ
        "503 5.5.4 Error: send AUTH command first",  # 163.com
        "503 This mail server requires authentication when attempting to send to a non-local e-mail address.",
        "503 Authentication required",
        "503 Log in first",
        "530 5.7.0 Authentication required",
        "530 log in first",
    ],
)
@pytest.mark.parametrize("phase", PHASES)
def test_a_relay_that_wants_a_login_says_so_in_any_phase(phase: Phase, said: str) -> None:
    assert reading(phase, said) == LOGIN
    assert said.startswith("530") or reading(phase, said, LOGGED_IN) == LOST  # there was one, so that is not it


@pytest.mark.parametrize("said", ["530 5.7.0 Must issue a STARTTLS command first", "538 5.7.11 Encryption required"])
@pytest.mark.parametrize("phase", PHASES)
def test_a_relay_that_wants_tls_says_so_in_any_phase(phase: Phase, said: str) -> None:
    assert reading(phase, said) == "auth_needs_tls configuration"


@pytest.mark.parametrize(
    ("session", "alone", "means"),
    [
        (PLAIN, True, "relay_denied configuration"),
        (PLAIN, False, "relay_denied permanent"),
        (OFFERED, True, LOGIN),
        (OFFERED, False, LOGIN),
        (LOGGED_IN, True, "relay_denied configuration"),
    ],
)
def test_who_may_not_relay_wants_a_login_where_one_is_offered(session: Session, alone: bool, means: str) -> None:
    assert reading(Phase.RCPT, "554 5.7.1 Relay access denied", session, alone=alone) == means
