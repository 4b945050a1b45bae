"""What a refusal at AUTH is about, in words that relays use."""

from __future__ import annotations

import pytest

from app.mail.codes import Reason
from app.mail.outcome import FailureClass
from app.mail.reply import Reply
from app.smtp.auth_replies import read


@pytest.mark.parametrize(
    ("said", "reason"),
    [
        ("535 5.7.8 Error: authentication failed: UGFzc3dvcmQ6", Reason.AUTH_REJECTED),  # Postfix
        ("535 Incorrect authentication data", Reason.AUTH_REJECTED),  # Exim
        ("535 5.7.3 Authentication unsuccessful", Reason.AUTH_REJECTED),  # Exchange
        ("500 5.7.0 authentication failed", Reason.AUTH_REJECTED),  # Sendmail
        ("501 Authentication failed!", Reason.AUTH_REJECTED),  # MDaemon
        ("501 Bad user name or password", Reason.AUTH_REJECTED),
        ("501 Login incorrect", Reason.AUTH_REJECTED),
        ("550 Invalid credentials", Reason.AUTH_REJECTED),
        ("554 go away", Reason.AUTH_REJECTED),
        ("501 5.5.2 Cannot Base64-decode Password: wrong", Reason.AUTH_MECHANISM_UNSUPPORTED),  # postscreen and kin
        ("501 5.5.4 Syntax: AUTH mechanism", Reason.AUTH_MECHANISM_UNSUPPORTED),  # Postfix
        ("501 5.5.4 cannot decode AUTH parameter", Reason.AUTH_MECHANISM_UNSUPPORTED),  # Sendmail
        ("501 Invalid base64 data", Reason.AUTH_MECHANISM_UNSUPPORTED),  # Exim
        ("501 5.5.2 Invalid base64 data", Reason.AUTH_MECHANISM_UNSUPPORTED),
        ("500 5.5.6 Authentication exchange line is too long", Reason.AUTH_MECHANISM_UNSUPPORTED),  # RFC 4954
        ("502 5.5.2 Error: command not recognized", Reason.AUTH_MECHANISM_UNSUPPORTED),
        ("503 5.5.1 Error: MAIL transaction in progress", Reason.AUTH_MECHANISM_UNSUPPORTED),
        ("504 5.7.4 Unrecognized authentication type", Reason.AUTH_MECHANISM_UNSUPPORTED),  # Exchange
        ("534 5.7.9 Application-specific password required", Reason.AUTH_MECHANISM_REFUSED),  # Google
        ("538 5.7.11 Encryption required", Reason.AUTH_NEEDS_TLS),
        ("530 5.7.0 Must issue a STARTTLS command first", Reason.AUTH_NEEDS_TLS),
    ],
)
def test_a_refusal_is_about_the_password_only_where_it_says_so(said: str, reason: Reason) -> None:
    assert read(Reply(int(said[:3]), (said[4:],))) == (reason, FailureClass.CONFIGURATION)


@pytest.mark.parametrize("code", [400, 421, 432, 451, 454, 499])
def test_every_4xx_is_the_relays_own_trouble(code: int) -> None:
    assert read(Reply(code, ("wrong password",))) == (Reason.AUTH_UNAVAILABLE, FailureClass.TEMPORARY)
