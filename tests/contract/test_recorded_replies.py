"""What real relays said, byte for byte, and what each is taken for.

recorded_replies.json has the relay, the phase, the lines as on the wire (formats of source code are filled with
example values), what is said of it ("reason class"), and where it was found, on 2026-11-24. The profile has no login,
and the relay offers no AUTH. Mailboxes in it are renamed.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from app.mail.codes import Reason
from app.mail.explain import EXPLANATIONS
from app.mail.outcome import Failure, Phase
from app.mail.profile import Dialect, Profile, ProfileFacts, TlsMode, resolve_profile
from app.mail.reply import Reply, ReplyReader
from app.smtp import classify
from app.smtp.limits import limit
from tests.support.factories import make_attempt

RECORDED: list[dict[str, Any]] = json.loads(Path(__file__).with_name("recorded_replies.json").read_text("utf-8"))
OPENING = (Phase.GREETING, Phase.EHLO, Phase.STARTTLS, Phase.AUTH)


def profile_for(host: str, dialect: Dialect = Dialect.FILE) -> Profile:
    return resolve_profile(ProfileFacts(name="corp", dialect=dialect, host=host, port=587, tls=TlsMode.STARTTLS))[0]


def reply_of(lines: list[str]) -> Reply:
    (reply,) = ReplyReader().feed("".join(f"{line}\r\n" for line in lines).encode())
    return reply


def failure_of(recorded: dict[str, Any], dialect: Dialect = Dialect.FILE) -> Failure:
    profile, phase, reply = profile_for(recorded["host"], dialect), Phase(recorded["phase"]), reply_of(recorded["wire"])
    if phase in OPENING:
        return classify.opening(profile, phase, reply)
    attempt = make_attempt(profile)
    attempt.tls = True
    return classify.transaction(profile, attempt, phase, reply)


@pytest.mark.parametrize("recorded", RECORDED, ids=lambda r: f"{r['relay'][:24]}-{r['phase']}-{r['wire'][0][:40]}")
def test_a_recorded_reply_is_taken_for_what_it_means(recorded: dict[str, Any]) -> None:
    failure = failure_of(recorded)
    assert f"{failure.reason} {failure.cls}" == recorded["says"]
    assert failure.cls in EXPLANATIONS[failure.reason].classes
    assert failure.smtp_code == int(recorded["wire"][0][:3])
    assert failure.hint.endswith(".")
    assert "{" not in failure.hint


HINTS = {
    "Application-specific password required": "myaccount.google.com/apppasswords",
    "535-5.7.8 Username and Password not accepted": "app password",
    "Invalid credentials for relay": "Admin console",
    "SmtpClientAuthentication is disabled for the Tenant": "Set-TransportConfig",
    "SmtpClientAuthentication is disabled for the Mailbox": "Authenticated SMTP",
    "530 5.7.57 SMTP; Client was not authenticated": "username",
    "550 5.7.60": "Send As",
    "432 4.3.2 Concurrent connections": "max_connections",
    "535 Authentication Credentials Invalid": "SES console",
    "Email address is not verified": "verified identities",
    "does not match a verified Sender Identity": "Sender Authentication",
    "Mailgun is not loving": "SMTP credentials",
    "Unauthorized IP address": "Authorized IPs",
    "535 5.7.8 Authentication failed": "xsmtpsib-",
    "Helo command rejected": "helo_name",
    "not owned by user": "username",
    "Unable to relay": "receive connector",
    ": Relay access denied": "mynetworks",
    "AUTH command used when not advertised": "starttls",
    "Max message per connection reached": "max_messages_per_connection",
    "too many messages in this connection": "max_messages_per_connection",
    "Too many messages sent": "max_messages_per_connection",
    "Bad DNS PTR resource record": "PTR",
    "that IP address is not allowed to send": "this machine's address",
    "traffic not accepted from this IP": "this machine's address",
    "invalid DNS MX or A/AAAA": "sender's domain",
    "Unconfigured Sending Domain": "sender's domain",
    "From header sender domain not verified": "sender's domain",
    "MapiExceptionShutoffQuotaExceeded": "mailbox of the account",
    "From/Sender name is not valid": "From address",
    "does not have access rights to this service": "enabled for the account",
    "Please turn on SMTP Authentication": "username",
    "exceeded the max emails per hour": "rate",
    "Daily message limit exceeded": "rate",
    "too many connections from": "max_connections",
}


@pytest.mark.parametrize(("said", "cure"), HINTS.items())
@pytest.mark.parametrize("dialect", Dialect)
def test_the_hint_is_what_cures_it_at_this_relay(said: str, cure: str, dialect: Dialect) -> None:
    found = [failure_of(r, dialect) for r in RECORDED if said in " ".join(r["wire"])]
    assert found
    cures = {cure, profile_for("relay.example", dialect).setting(cure)} if cure.islower() else {cure}
    for failure in found:
        assert any(c in failure.hint for c in cures), failure.hint


@pytest.mark.parametrize("phase", Phase)
@given(code=st.integers(400, 599), lines=st.lists(st.text(max_size=120), min_size=1, max_size=4))
def test_whatever_a_relay_says_has_a_reason_a_class_and_a_hint(phase: Phase, code: int, lines: list[str]) -> None:
    reply = Reply(code, tuple(lines))
    profile = profile_for("relay.example")
    failure = (
        classify.opening(profile, phase, reply)
        if phase in OPENING
        else classify.transaction(profile, make_attempt(profile), phase, reply)
    )
    assert failure.cls in EXPLANATIONS[failure.reason].classes
    assert failure.hint


@pytest.mark.parametrize(
    "words",
    [
        "421 4.4.2 mail.example.com Error: timeout exceeded",
        "450 4.2.1 mailbox busy",
        "452 4.5.3 Error: too many recipients",
        "452 4.3.1 Insufficient system storage",
        "552 5.2.2 mailbox full, quota exceeded",
        "554 5.4.6 Too many hops",
        "421 4.3.2 Service not available, closing transmission channel",
        "550 5.7.1 <u@example.com>: Recipient address rejected: not greylisted but blocked",
        "450 4.1.1 <greylist@example.com>: Recipient address rejected: unverified address",
        "451 4.3.0 <rate-limit@example.com>: Temporary lookup failure",
        "450 4.2.1 The recipient has exceeded message rate limit. Try again later.",
        "554 5.7.1 Mail Score (59) over MessageScoringUpperLimit (50)",
        "450 4.7.0 Message deferred, try again later",
    ],
)
@pytest.mark.parametrize("phase", [Phase.GREETING, Phase.AUTH, Phase.MAIL, Phase.RCPT, Phase.DATA, Phase.CONTENT])
def test_what_looks_like_a_limit_is_none(phase: Phase, words: str) -> None:
    assert limit(phase, reply_of([words])) is None


@pytest.mark.parametrize(
    ("phase", "words", "reason"),
    [
        (Phase.RCPT, "450 4.7.1 Greylisted, see http://example.org", Reason.GREYLISTED),
        (Phase.RCPT, "451 4.7.1 Please try again in 300 seconds", Reason.GREYLISTED),
        (Phase.RCPT, "450 4.2.0 come back in 00:05:00", Reason.GREYLISTED),
        (Phase.CONTENT, "451 4.7.1 Greylisting in action", Reason.GREYLISTED),
        (Phase.GREETING, "421 4.3.2 too many connections", Reason.RATE_LIMITED),
        (Phase.EHLO, "421 4.7.0 too many connections from 192.0.2.1", Reason.RATE_LIMITED),
        (Phase.CONTENT, "432 4.3.2 anything", Reason.RATE_LIMITED),
        (Phase.AUTH, "454 4.7.0 Too many login attempts, please try again later.", Reason.RATE_LIMITED),
    ],
)
def test_a_limit_is_told_by_its_words(phase: Phase, words: str, reason: Reason) -> None:
    assert limit(phase, reply_of([words])) is reason
