"""What the doctor finds: one row a relay and a profile, with every stage's state, the failure and its hint.

A row's `stages` are nine signs, in the order of `STAGES`: + ok, ! failed, - skipped. What holds for every diagnosis,
above all that no content is ever sent, is in `holds_always()`. Below the table: how often it logs in, and the port
that answers where the profile's own does not.
"""

import asyncio
import base64
import json
import socket
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path
from time import perf_counter
from typing import Unpack

import pytest

from app.api.diagnosis import shape_of
from app.mail.errors import RateLimited
from app.mail.outcome import Phase
from app.mail.profile import AuthMode, Dialect, Profile, TlsMode
from app.smtp import doctor
from app.smtp.doctor import Diagnosis, Doctor, StageState
from app.smtp.network import Resolve, SocketAddress
from tests.contract.test_situations import (
    LOGGING_IN,
    MISTAKEN,
    OPENINGS,
    SECRETS,
    STARTTLS_FAILURES,
    Place,
    nowhere,
    offering,
    over_tls,
    resolver,
    silence,
    where_it_is,
    with_auth,
)
from tests.contract.test_situations import Row as Situation
from tests.support.factories import (
    LONG,
    NOW,
    RECIPIENT,
    SENDER,
    SHORT,
    Deliveries,
    Settings,
    address_of,
    leading_to,
    make_profile,
    on_both_loops,
    refused_port,
    timeouts,
    turns,
)
from tests.support.relay import Close, GarbageInsteadOfTLS, Hear, Relay, Reset, Stall, StartTLS, StopReading, Wait
from tests.support.tls import Answer, certificates

STAGES = ["resolve", "connect", "tls", "greeting", "ehlo", "starttls", "auth", "mail", "rcpt"]
SIGNS = {StageState.OK: "+", StageState.FAILED: "!", StageState.SKIPPED: "-"}
NONE, OPPORTUNISTIC, STARTTLS, IMPLICIT = TlsMode.NONE, TlsMode.OPPORTUNISTIC, TlsMode.STARTTLS, TlsMode.IMPLICIT
ALL_WELL = "++-++--++"  # in clear and without a login
AS_SENT = base64.b64encode(b"\0bot\0secret").decode()
FOREIGN_MAILBOX = "jörg@theirs.test"
PHASES = ("resolve", "connect", "tls", "greeting", "ehlo", "starttls", "auth", "mail", "rcpt", "reset")
HURRIED: Settings = {"timeouts": timeouts(**dict.fromkeys(PHASES, SHORT))}
UNDER_TLS: Settings = {"tls": STARTTLS, **LOGGING_IN}


@pytest.fixture(autouse=True)
def no_other_port(monkeypatch: pytest.MonkeyPatch) -> None:
    """What happens to listen on this machine's usual ports is nobody's business."""
    monkeypatch.setattr(doctor, "USUAL_PORTS", ())


class Surgery:
    """One doctor, whose patients' names lead to the relay, and a clock that the test moves."""

    def __init__(self, relay: Relay, resolve: Resolve | None = None) -> None:
        self.relay = relay
        self.now = 1000.0
        lead = resolve or leading_to(relay.port, relay.host)
        self._deliveries = Deliveries(lead)
        self._doctor = Doctor(
            open_session=self._deliveries.open, resolve=lead, now=lambda: NOW, clock=lambda: self.now + perf_counter()
        )

    async def diagnose(
        self, profile: Profile, *, sender: str | None = SENDER, recipient: str | None = RECIPIENT
    ) -> Diagnosis:
        return await self._doctor.diagnose(profile, sender=sender, recipient=recipient)

    @property
    def wire(self) -> bytes:
        """All that the relay received, over all connections."""
        return b"".join(bytes(session.wire) for session in self.relay.sessions)


def profile_of(base: Settings, **more: Unpack[Settings]) -> Profile:
    said: Settings = {**base, **more}
    return make_profile(**said)


def signs(found: Diagnosis) -> str:
    return "".join(SIGNS[stage.state] for stage in found.stages)


def in_words(found: Diagnosis) -> str:
    """Say a diagnosis as "well" or "code/reason C", with the initial of its class."""
    failure = found.failure
    return "well" if failure is None else f"{failure.code}/{failure.reason} {failure.cls.value[0].upper()}"


# --- the table -------------------------------------------------------------------------------------------

Check = Callable[[Diagnosis, Surgery], None]
Script = tuple[str, Answer] | tuple[str, Answer, int]  # verb, answer, how many times


@dataclass(frozen=True, kw_only=True)
class Row:
    """One relay, one profile, and what the doctor says."""

    id: str
    stages: str
    says: str = "well"
    script: Sequence[Script] = ()
    relay: Callable[[], Relay] = Relay
    place: Place = where_it_is
    settings: Settings = field(default_factory=Settings)
    whom: Mapping[str, str | None] = field(default_factory=dict)  # sender and recipient, where it matters
    hint: Sequence[str] = ()  # words of it
    said: Mapping[str, str] = field(default_factory=dict)  # stage → words of what is said of it
    check: Check | None = None


def row(id: str, stages: str, says: str = "well", *script: Script, **more: object) -> Row:
    return Row(id=id, stages=stages, says=says, script=script, **more)  # type: ignore[arg-type]


def offers(auth: Sequence[str] = (), size: int | None = 10485760, extensions: Sequence[str] | None = None) -> Check:
    """Check what the answer says that the relay offers."""

    def check(found: Diagnosis, _: Surgery) -> None:
        shape = shape_of(found)
        assert (shape["auth_offered"], shape["size_limit"]) == (list(auth), size)
        assert extensions is None or shape["extensions"] == list(extensions)

    return check


def connected(times: int) -> Check:
    def check(_: Diagnosis, surgery: Surgery) -> None:
        assert surgery.relay.connections == times

    return check


def says_on_the_wire(*lines: bytes) -> Check:
    """Check that these lines came, in this order and one behind the other."""

    def check(_: Diagnosis, surgery: Surgery) -> None:
        assert b"".join(line + b"\r\n" for line in lines) in surgery.wire

    return check


CERTIFICATES = [
    ("untrusted", "tls_cert_untrusted", ['ca_file = "/path/to/ca.pem"', "cert_sha256"]),
    ("expired", "tls_cert_expired", ["2024-01-31", "cert_sha256"]),
    ("wrong_name", "tls_hostname_mismatch", ['server_name = "other.test"']),
]
BREAKS: Mapping[str, tuple[Answer, str]] = {
    "closed": (Close(), "ECONNECTION/connection_lost T"),
    "reset": (Reset(), "ECONNECTION/connection_lost T"),
    "stalled": (Stall(), "ETIMEDOUT/reply_timeout T"),
    "garbage": (b"\x16\x03\x01 no reply\r\n", "EPROTOCOL/malformed_reply T"),
    "out-of-turn": ("354 what?", "EPROTOCOL/unexpected_reply T"),
    "says-421": ("421 4.3.2 shutting down", "ECONNECTION/service_unavailable T"),
}
BROKEN_AT = {  # stage → what is scripted there, its profile, and the stages up to it
    "GREETING": (Settings(), Relay, "++-!"),
    "EHLO": (Settings(), Relay, "++-+!"),
    "STARTTLS": (UNDER_TLS, over_tls(STARTTLS, auth=("PLAIN",)), "++-++!"),
    "AUTH": (UNDER_TLS, over_tls(STARTTLS, auth=("PLAIN",)), "++-+++!"),
    "MAIL": (Settings(), Relay, "++-++--!"),
    "RCPT": (Settings(), Relay, "++-++--+!"),
}


def what_it_says(verb: str, how: str, says: str) -> str:
    """A greeting that does not come has a name of its own, and one of 354 is refused like any other."""
    if verb == "GREETING" and how == "stalled":
        return "ETIMEDOUT/greeting_timeout T"
    return says


TABLE = [
    # all is well
    row("in-clear", ALL_WELL, said={"ehlo": "PIPELINING, SIZE 10485760", "connect": "127.0.0.1:", "starttls": "none"}),
    row(
        "over-starttls-with-a-login",
        "++-++++++",
        relay=over_tls(STARTTLS, auth=("PLAIN", "LOGIN")),
        settings=UNDER_TLS,
        said={"starttls": "certificate for localhost, 127.0.0.1, ::1, verified", "auth": "PLAIN", "tls": "starttls"},
        check=offers(["PLAIN", "LOGIN"]),
    ),
    row(
        "over-implicit-tls-with-a-login",
        "+++++-+++",
        relay=over_tls(IMPLICIT, auth=("CRAM-MD5", "PLAIN")),
        settings={"tls": IMPLICIT, **LOGGING_IN},
        said={"tls": "TLSv1.3, certificate for localhost", "auth": "CRAM-MD5", "starttls": "tls is implicit"},
        check=offers(["CRAM-MD5", "PLAIN"]),
    ),
    row(
        "not-verified-where-that-was-said",
        "++-+++-++",
        relay=over_tls(STARTTLS, "self_signed"),
        settings={"tls": STARTTLS, "verify": False},
        said={"starttls": "not verified"},
    ),
    row(
        "in-clear-with-a-login-by-LOGIN",
        "++-++-+++",
        relay=with_auth("LOGIN"),
        settings=LOGGING_IN,
        said={"auth": "LOGIN"},
    ),
    row(
        "offered-auth-is-not-used-without-credentials",
        ALL_WELL,
        relay=with_auth("PLAIN"),
        said={"auth": "no credentials: no AUTH"},
        check=offers(["PLAIN"]),
    ),
    row("helo-where-ehlo-is-unknown", ALL_WELL, "well", ("EHLO", "502 5.5.1 what?"), check=offers([], None, [])),
    row("no-size-is-told", ALL_WELL, relay=offering("8BITMIME"), check=offers([], None, ["8BITMIME", "HELP"])),
    row("a-size-without-a-bound", ALL_WELL, relay=offering("SIZE"), check=offers([], None)),
    row("a-size-of-zero-is-no-bound", ALL_WELL, relay=offering("SIZE 0"), check=offers([], None)),
    row("a-size-that-is-none", ALL_WELL, relay=offering("SIZE many"), check=offers([], None)),
    row("a-size-beyond-all-numbers", ALL_WELL, relay=offering("SIZE " + "9" * 500), check=offers([], None)),
    row(
        "auth-in-the-old-spelling", ALL_WELL, relay=offering("AUTH=LOGIN PLAIN"), check=offers(["LOGIN", "PLAIN"], None)
    ),
    row("nobody-to-ask-for", "++-++----", whom={"sender": None}, said={"mail": "no address", "rcpt": "no address"}),
    row(
        "where-no-recipient-is-said-the-sender-is-asked-for",
        ALL_WELL,
        whom={"recipient": None},
        check=says_on_the_wire(f"RCPT TO:<{SENDER}>".encode()),
    ),
    row("a-refused-RSET-harms-nobody", ALL_WELL, "well", ("RSET", "502 5.5.1 what?")),
    row("an-RSET-that-is-never-answered", ALL_WELL, "well", ("RSET", Stall()), settings=HURRIED),
    row("an-RSET-answered-by-the-end", ALL_WELL, "well", ("RSET", Close())),
    # opportunistic
    row(
        "opportunistic-and-nothing-offered",
        ALL_WELL,
        settings={"tls": OPPORTUNISTIC},
        said={"starttls": "the relay does not offer it"},
        check=connected(1),
    ),
    row(
        "opportunistic-under-any-certificate",
        "++-+++-++",
        relay=over_tls(OPPORTUNISTIC, "expired"),
        settings={"tls": OPPORTUNISTIC},
        said={"starttls": "not verified"},
        check=connected(1),
    ),
    *(
        row(
            f"opportunistic-goes-on-in-clear-{how}",
            "++-++!-++",
            "well",
            ("STARTTLS", answer),
            relay=over_tls(OPPORTUNISTIC),
            settings={"tls": OPPORTUNISTIC, **HURRIED},
            said={"starttls": "went on in clear: "},
            check=connected(2),
        )
        for how, answer in STARTTLS_FAILURES.items()
    ),
    row(
        "opportunistic-goes-on-in-clear-and-is-refused",
        "++-++!-!-",
        "EENVELOPE/sender_refused P",
        ("STARTTLS", "454 4.7.0 no"),
        ("MAIL", "550 5.7.1 not you"),
        relay=over_tls(OPPORTUNISTIC),
        settings={"tls": OPPORTUNISTIC},
    ),
    # resolve
    row(
        "no-such-name",
        "!--------",
        "EDNS/host_not_found C",
        place=resolver(error=socket.gaierror(socket.EAI_NONAME, "Name or service not known")),
        hint=["localhost does not exist", "host"],
        check=connected(0),
    ),
    row(
        "resolver-does-not-answer",
        "!--------",
        "EDNS/dns_failure T",
        place=resolver(answers=False),
        settings=HURRIED,
        hint=["DNS"],
    ),
    # connect
    row(
        "nothing-listens",
        "+!-------",
        "ECONNECTION/connection_refused T",
        place=nowhere,
        hint=["host", "port"],
    ),
    row(
        "nothing-answers",
        "+!-------",
        "ETIMEDOUT/connect_timeout T",
        place=silence,
        settings=HURRIED,
        hint=["firewalls"],
    ),
    # tls
    row(
        "implicit-tls-against-a-plain-port",
        "++!------",
        "ETLS/tls_mode_mismatch C",
        settings={"tls": IMPLICIT},
        hint=['tls = "none"'],
    ),
    row(
        "implicit-tls-stalls",
        "++!------",
        "ETIMEDOUT/tls_timeout T",
        ("GREETING", Stall()),
        settings={"tls": IMPLICIT, **HURRIED},
    ),
    row(
        "implicit-tls-cut",
        "++!------",
        "ESOCKET/tls_connection_lost T",
        ("GREETING", (Hear(), Close())),
        settings={"tls": IMPLICIT},
    ),
    *(
        row(
            f"implicit-tls-{certificate}",
            "++!------",
            f"ETLS/{reason} C",
            relay=over_tls(IMPLICIT, certificate, auth=("PLAIN",)),
            settings={"tls": IMPLICIT, **LOGGING_IN},
            hint=hint,
        )
        for certificate, reason, hint in CERTIFICATES
    ),
    # greeting
    row(
        "turned-away",
        "++-!-----",
        "EPROTOCOL/greeting_refused T",
        ("GREETING", "554 5.7.1 not you"),
        hint=["our address"],
        said={"greeting": "554 5.7.1 not you"},
    ),
    row(
        "turned-away-under-tls",
        "+++!-----",
        "EPROTOCOL/greeting_refused T",
        ("GREETING", "554 5.7.1 not you"),
        relay=over_tls(IMPLICIT),
        settings={"tls": IMPLICIT},
    ),
    row(
        "a-web-server",
        "++-!-----",
        "EPROTOCOL/not_smtp C",
        ("GREETING", b"HTTP/1.1 400 Bad Request\r\n\r\n"),
        hint=["not a mail server", "port"],
    ),
    # ehlo
    row(
        "our-name-refused",
        "++-+!----",
        "EPROTOCOL/helo_refused C",
        ("EHLO", "550 5.7.1 bad name"),
        ("HELO", "550 5.7.1 bad name"),
        hint=["helo_name"],
    ),
    row(
        "ehlo-cut-under-tls",
        "++-+!+---",
        "ECONNECTION/connection_lost T",
        ("EHLO", Close()),
        ("EHLO", "250-relay.test\n250 STARTTLS", 1),
        relay=over_tls(STARTTLS),
        settings={"tls": STARTTLS},
    ),
    # starttls
    row(
        "starttls-not-offered",
        "++-++!---",
        "ETLS/tls_not_offered C",
        settings={"tls": STARTTLS},
        hint=['tls = "implicit"', 'tls = "opportunistic"'],
    ),
    row(
        "starttls-refused",
        "++-++!---",
        "ETLS/tls_unavailable T",
        ("STARTTLS", "454 4.7.0 not now"),
        relay=over_tls(STARTTLS),
        settings={"tls": STARTTLS},
        said={"starttls": "454 4.7.0 not now"},
    ),
    row(
        "starttls-handshake-of-garbage",
        "++-++!---",
        "ETLS/tls_mode_mismatch C",
        ("STARTTLS", GarbageInsteadOfTLS()),
        relay=over_tls(STARTTLS),
        settings={"tls": STARTTLS},
    ),
    row(
        "starttls-of-an-old-version",
        "++-++!---",
        "ETLS/tls_version_unsupported C",
        relay=over_tls(STARTTLS, "tls10_only"),
        settings={"tls": STARTTLS},
        hint=['min_tls = "1.0"'],
    ),
    *(
        row(
            f"starttls-{certificate}",
            "++-++!---",
            f"ETLS/{reason} C",
            relay=over_tls(STARTTLS, certificate, auth=("PLAIN",)),
            settings=UNDER_TLS,
            hint=hint,
        )
        for certificate, reason, hint in CERTIFICATES
    ),
    # auth
    row(
        "no-auth-offered",
        "++-++-!--",
        "EAUTH/auth_not_offered C",
        settings=LOGGING_IN,
        hint=['auth = "none"'],
    ),
    row(
        "no-auth-offered-in-the-words-of-the-environment",
        "++-++-!--",
        "EAUTH/auth_not_offered C",
        settings={"name": "default", "dialect": Dialect.ENVIRONMENT, **LOGGING_IN},
        hint=["SMTP_AUTH=none"],
    ),
    row(
        "no-mechanism-in-common",
        "++-++-!--",
        "EAUTH/auth_mechanism_unsupported C",
        relay=with_auth("XOAUTH2"),
        settings=LOGGING_IN,
        hint=["XOAUTH2"],
        check=offers(["XOAUTH2"]),
    ),
    *(
        row(
            f"wrong-password-{mechanism}",
            "++-++-!--",
            "EAUTH/auth_rejected C",
            relay=with_auth("CRAM-MD5", "PLAIN", "LOGIN"),
            settings={"auth": AuthMode(mechanism), **MISTAKEN},
            hint=["username", "password", "one login was tried"],
        )
        for mechanism in ("auto", "plain", "login", "cram-md5")
    ),
    row(
        "the-login-is-refused-with-the-password-in-it",
        "++-++-!--",
        "EAUTH/auth_rejected C",
        ("AUTH", f"535 5.7.8 {AS_SENT} (secret) is no login"),
        relay=with_auth("PLAIN"),
        settings=LOGGING_IN,
        said={"auth": "*** (***) is no login"},
    ),
    row(
        "logins-cannot-be-checked-now",
        "++-++-!--",
        "EAUTH/auth_unavailable T",
        ("AUTH", "454 4.7.0 later"),
        relay=with_auth("PLAIN"),
        settings=LOGGING_IN,
    ),
    row(
        "too-many-logins",
        "++-++-!--",
        "ECONNECTION/rate_limited T",
        ("AUTH", "454 4.7.0 Too many login attempts, please try again later."),
        relay=with_auth("PLAIN"),
        settings=LOGGING_IN,
    ),
    # mail
    row(
        "sender-refused",
        "++-++--!-",
        "EENVELOPE/sender_refused P",
        ("MAIL", "550 5.7.1 not as her"),
        hint=["From"],
        said={"mail": "550 5.7.1 not as her"},
        check=says_on_the_wire(b"MAIL FROM:<ann@ours.test>", b"QUIT"),
    ),
    row("sender-deferred", "++-++--!-", "EENVELOPE/sender_deferred T", ("MAIL", "451 4.3.0 later")),
    row(
        "a-login-is-wanted",
        "++-++--!-",
        "EAUTH/auth_required C",
        relay=with_auth("PLAIN", auth_required=True),
        hint=["username", "password"],
        said={"mail": "530 5.7.0 Authentication required"},
    ),
    row(
        "tls-is-wanted",
        "++-++--!-",
        "EAUTH/auth_needs_tls C",
        ("MAIL", "530 5.7.0 Must issue a STARTTLS command first"),
        hint=['tls = "starttls"'],
    ),
    row(
        "an-address-that-the-relay-cannot-carry",
        "++-++--!-",
        "EENVELOPE/smtputf8_not_offered P",
        relay=offering("SIZE"),
        whom={"recipient": FOREIGN_MAILBOX},
        hint=["ASCII"],
    ),
    row(
        "an-address-that-needs-SMTPUTF8",
        ALL_WELL,
        whom={"sender": FOREIGN_MAILBOX},
        check=says_on_the_wire(f"MAIL FROM:<{FOREIGN_MAILBOX}> SMTPUTF8".encode(), b"RCPT TO:<bob@theirs.test>"),
    ),
    # rcpt
    row("no-such-mailbox", "++-++--+!", "EENVELOPE/mailbox_unknown P", ("RCPT", "550 5.1.1 no such user")),
    row("mailbox-busy", "++-++--+!", "EENVELOPE/recipient_deferred T", ("RCPT", "450 4.2.0 busy")),
    row("greylisted", "++-++--+!", "EENVELOPE/greylisted T", ("RCPT", "450 4.2.0 Greylisted, come back")),
    row(
        "relay-denied",
        "++-++--+!",
        "EENVELOPE/relay_denied C",
        ("RCPT", "554 5.7.1 <bob@theirs.test>: Relay access denied"),
        hint=["127.0.0.1", "mynetworks"],
        said={"rcpt": "Relay access denied"},
        check=says_on_the_wire(b"RCPT TO:<bob@theirs.test>", b"QUIT"),
    ),
    row(
        "relay-denied-where-a-login-is-offered",
        "++-++--+!",
        "EAUTH/auth_required C",
        ("RCPT", "554 5.7.1 <bob@theirs.test>: Relay access denied"),
        relay=with_auth("PLAIN"),
        hint=["username"],
    ),
    # breaks
    *(
        row(
            f"{how}-at-{verb.lower()}",
            before.ljust(9, "-"),
            what_it_says(verb, how, says),
            (verb, answer),
            relay=relay,
            settings={**HURRIED, **settings} if how == "stalled" else settings,
        )
        for verb, (settings, relay, before) in BROKEN_AT.items()
        for how, (answer, says) in BREAKS.items()
    ),
]


@pytest.mark.parametrize("row", TABLE, ids=lambda row: row.id)
@on_both_loops
async def test_the_doctor_says_what_the_table_says(row: Row) -> None:
    async with row.relay() as relay:
        for verb, answer, *times in row.script:
            relay.on(verb, answer, times=times[0] if times else None)
        with row.place(relay) as resolve:
            surgery = Surgery(relay, resolve)
            found = await surgery.diagnose(make_profile(**row.settings), **row.whom)
        async with asyncio.timeout(1):
            await relay.closed(relay.connections)
        assert (signs(found), in_words(found)) == (row.stages, row.says)
        holds_always(found, surgery)
        hint = found.failure.hint if found.failure else ""
        assert [word for word in row.hint if word not in hint] == []
        said = {stage.phase.value: stage.said for stage in found.stages}
        assert {stage: said[stage] for stage, words in row.said.items() if words not in said[stage]} == {}
        if row.check is not None:
            row.check(found, surgery)


def holds_always(found: Diagnosis, surgery: Surgery) -> None:
    """What is true of every diagnosis, whatever the relay did."""
    attempt, failure, relay = found.attempt, found.failure, surgery.relay
    assert [stage.phase.value for stage in found.stages] == STAGES
    assert attempt.failure is failure
    for stage in found.stages:
        assert (stage.ms is None) == (stage.state is StageState.SKIPPED)
        assert stage.ms is None or 0 <= stage.ms < LONG * 1000
    failed = [stage for stage in found.stages if stage.state is StageState.FAILED]
    if failure is not None:
        assert failure.message in [stage.said for stage in failed if stage.phase is failure.phase]
    assert {stage.phase for stage in failed} <= {Phase.STARTTLS if failure is None else failure.phase, Phase.STARTTLS}
    assert attempt.duration_ms is not None
    assert attempt.duration_ms < 1500, "it waited for a time-out that nobody expected"

    verbs = [command.partition(" ")[0].upper() for command in relay.commands]
    assert not {"DATA", "BDAT"} & set(verbs), "content was about to be sent"
    assert relay.mails == []
    assert verbs.count("AUTH") <= 1
    assert verbs.count("MAIL") <= 1
    if found.is_ok:
        asked = [verb for verb in verbs if verb in ("MAIL", "RCPT", "RSET", "QUIT")]
        assert asked[-1:] == ["QUIT"] or "RSET" in asked  # who does not answer RSET gets no QUIT
        assert ("RSET" in asked) == ("MAIL" in asked)
    told = json.dumps(shape_of(found), ensure_ascii=False) + repr(found.stages)
    assert [secret for secret in SECRETS if secret in told] == []


def test_every_stage_fails_in_some_row() -> None:
    failing = {stage for row in TABLE for stage, sign in zip(STAGES, row.stages, strict=True) if sign == "!"}
    assert failing == set(STAGES)


@pytest.mark.parametrize("situation", OPENINGS, ids=lambda row: row.id)
async def test_the_doctor_meets_what_a_message_would_meet(situation: Situation) -> None:
    """Every row of tests/contract/test_situations.py that ends before MAIL, put to the doctor."""
    async with situation.relay() as relay:
        for verb, answer, *match in situation.script:
            relay.on(verb, answer, match="".join(match))
        with (situation.place or where_it_is)(relay) as resolve:
            surgery = Surgery(relay, resolve)
            said = situation.settings(relay) if callable(situation.settings) else situation.settings
            settings: Settings = {"port": relay.port, **said}
            found = await surgery.diagnose(profile_of(settings))
        assert in_words(found).replace("well", "sent") == situation.says
        holds_always(found, surgery)


# --- the conversation ------------------------------------------------------------------------------------


async def test_all_that_is_said_to_a_relay_is_this() -> None:
    async with Relay() as relay:
        surgery = Surgery(relay)
        await surgery.diagnose(make_profile())
        await relay.closed()
    lines = ["EHLO client.test", "MAIL FROM:<ann@ours.test>", "RCPT TO:<bob@theirs.test>", "RSET", "QUIT"]
    assert relay.commands == lines


async def test_every_stage_has_the_time_that_it_took() -> None:
    go_on = asyncio.Event()
    async with Relay() as relay:
        relay.on("MAIL", (Wait(go_on), "250 2.1.0 at last"))
        asyncio.get_running_loop().call_later(SHORT, go_on.set)
        found = await Surgery(relay).diagnose(make_profile())
    took = {stage.phase.value: stage.ms for stage in found.stages if stage.ms is not None}
    assert took.keys() == {"resolve", "connect", "greeting", "ehlo", "mail", "rcpt"}
    assert took["mail"] >= SHORT * 1000 * 0.9
    assert max(took, key=took.__getitem__) == "mail"


async def test_the_transcript_has_both_sides_and_no_secret() -> None:
    async with Relay(auth=["PLAIN"]) as relay:
        found = await Surgery(relay).diagnose(make_profile(**LOGGING_IN))
    said = [(who, line) for _, who, line in found.attempt.transcript]
    assert said[0] == ("S", "220 relay.test ESMTP")
    assert ("C", "AUTH PLAIN ***") in said
    assert said[-6:] == [
        ("C", "MAIL FROM:<ann@ours.test>"),
        ("S", "250 2.0.0 Ok"),
        ("C", "RCPT TO:<bob@theirs.test>"),
        ("S", "250 2.0.0 Ok"),
        ("C", "RSET"),
        ("S", "250 2.0.0 Ok"),
    ]
    stamps = [ms for ms, _, _ in found.attempt.transcript]
    assert all(before <= after for before, after in pairwise(stamps))


async def test_a_password_file_that_is_gone_costs_no_login(tmp_path: Path) -> None:
    async with Relay(auth=["PLAIN"]) as relay:
        surgery = Surgery(relay)
        profile = profile_of(LOGGING_IN, password_file=str(tmp_path / "gone"))
        for _ in range(2):
            found = await surgery.diagnose(profile)
            assert (signs(found), in_words(found)) == ("++-++-!--", "ECONFIG/file_unreadable C")
            assert found.failure is not None
            assert "password_file" in found.failure.hint
    assert not [command for command in relay.commands if command.startswith("AUTH")]


async def test_a_ca_file_that_is_gone_fails_the_stage_that_needs_it(tmp_path: Path) -> None:
    for mode, expected in ((IMPLICIT, "++!------"), (STARTTLS, "++-++!---")):
        async with Relay(tls=certificates().server(), implicit=mode is IMPLICIT) as relay:
            found = await Surgery(relay).diagnose(make_profile(tls=mode, ca_file=tmp_path / "gone"))
        assert (signs(found), in_words(found)) == (expected, "ECONFIG/file_unreadable C")


# --- how often it logs in --------------------------------------------------------------------------------


def logins(relay: Relay) -> int:
    return sum(command.startswith("AUTH") for command in relay.commands)


async def test_a_second_login_within_a_minute_is_refused_and_nothing_is_opened() -> None:
    async with Relay(auth=["PLAIN"]) as relay:
        surgery, profile = Surgery(relay), make_profile(**LOGGING_IN)
        assert (await surgery.diagnose(profile)).is_ok
        surgery.now += 12.5
        with pytest.raises(RateLimited, match=r"relay .*once a minute.* try again in 48 s") as refusal:
            await surgery.diagnose(profile)
        assert refusal.value.retry_after == pytest.approx(47.5, abs=0.5)
        assert (relay.connections, logins(relay)) == (1, 1)
        surgery.now += 47.5
        assert (await surgery.diagnose(profile)).is_ok
    assert logins(relay) == 2


async def test_a_login_that_was_refused_counts_like_any_other() -> None:
    async with Relay(auth=["PLAIN"]) as relay:
        surgery = Surgery(relay)
        assert in_words(await surgery.diagnose(make_profile(**MISTAKEN))) == "EAUTH/auth_rejected C"
        with pytest.raises(RateLimited):
            await surgery.diagnose(make_profile(**MISTAKEN))
    assert (relay.connections, logins(relay)) == (1, 1)


async def test_without_a_login_there_is_no_limit() -> None:
    async with Relay(auth=["PLAIN"]) as relay:
        surgery = Surgery(relay)
        found = [await surgery.diagnose(make_profile()) for _ in range(3)]
        found += [await surgery.diagnose(profile_of(LOGGING_IN, auth=AuthMode.NONE))]
    assert [in_words(one) for one in found] == ["well"] * 4
    assert (relay.connections, logins(relay)) == (4, 0)


async def test_the_limit_is_a_profiles_own() -> None:
    async with Relay(auth=["PLAIN"]) as relay:
        surgery = Surgery(relay)
        for name in ("one", "another"):
            assert (await surgery.diagnose(profile_of(LOGGING_IN, name=name))).is_ok
            with pytest.raises(RateLimited, match=name):
                await surgery.diagnose(profile_of(LOGGING_IN, name=name))
    assert logins(relay) == 2


async def test_who_did_not_get_as_far_as_the_login_may_try_again_at_once() -> None:
    async with Relay(auth=["PLAIN"]) as relay:
        surgery, profile = Surgery(relay), make_profile(**LOGGING_IN)
        relay.on("GREETING", "554 5.7.1 not you", times=1)
        assert not (await surgery.diagnose(profile)).is_ok
        assert (await surgery.diagnose(profile)).is_ok
    assert (relay.connections, logins(relay)) == (2, 1)


async def test_a_failure_before_the_login_does_not_end_the_minute_of_the_one_before() -> None:
    async with Relay(auth=["PLAIN"]) as relay:
        surgery, profile = Surgery(relay), make_profile(**LOGGING_IN)
        await surgery.diagnose(profile)
        surgery.now += 60
        relay.on("GREETING", "554 5.7.1 not you", times=1)
        await surgery.diagnose(profile)
        assert (await surgery.diagnose(profile)).is_ok
        with pytest.raises(RateLimited):
            await surgery.diagnose(profile)


async def test_two_at_once_log_in_once() -> None:
    async with Relay(auth=["PLAIN"]) as relay:
        surgery, profile = Surgery(relay), make_profile(**LOGGING_IN)
        ends = await asyncio.gather(*(surgery.diagnose(profile) for _ in range(5)), return_exceptions=True)
    assert sorted(type(end).__name__ for end in ends) == ["Diagnosis", *["RateLimited"] * 4]
    assert (relay.connections, logins(relay)) == (1, 1)


async def test_one_that_takes_longer_than_a_minute_keeps_the_next_out_until_it_has_ended() -> None:
    go_on = asyncio.Event()
    async with Relay(auth=["PLAIN"]) as relay:
        relay.on("AUTH", (Wait(go_on), "235 2.7.0 at last"))
        surgery, profile = Surgery(relay), make_profile(**LOGGING_IN)
        slow = asyncio.create_task(surgery.diagnose(profile))
        await relay.seen("AUTH")
        surgery.now += 75
        with pytest.raises(RateLimited) as refusal:
            await surgery.diagnose(profile)
        assert 0 < refusal.value.retry_after <= 60
        go_on.set()
        assert (await slow).is_ok
        surgery.now += 59
        with pytest.raises(RateLimited):
            await surgery.diagnose(profile)
        surgery.now += 1
        assert (await surgery.diagnose(profile)).is_ok
    assert logins(relay) == 2


@pytest.mark.parametrize(("verb", "counts"), [("EHLO", False), ("AUTH", True)])
async def test_one_that_is_called_off_hangs_up_and_counts_if_it_had_logged_in(verb: str, counts: bool) -> None:
    async with Relay(auth=["PLAIN"]) as relay:
        relay.on(verb, Stall(), times=1)
        surgery, profile = Surgery(relay), make_profile(**LOGGING_IN)
        stalled = asyncio.create_task(surgery.diagnose(profile))
        await relay.seen(verb)
        stalled.cancel()
        with pytest.raises(asyncio.CancelledError):
            await stalled
        await relay.closed()
        if counts:
            with pytest.raises(RateLimited):
                await surgery.diagnose(profile)
        else:
            assert (await surgery.diagnose(profile)).is_ok


# --- a port that answers ---------------------------------------------------------------------------------


async def at_each_port(_host: str, port: int) -> list[SocketAddress]:
    return [address_of(port)]


PORT_FAULTS: Mapping[str, tuple[str, Answer | None]] = {
    "nothing listens": ("connection_refused", None),
    "no greeting": ("greeting_timeout", Stall()),
    "a web server": ("not_smtp", b"HTTP/1.1 400 Bad Request\r\n\r\n"),
    "no SMTP": ("malformed_reply", b"\x00\x00\x00\r\n"),
}


@pytest.mark.parametrize("fault", PORT_FAULTS)
@pytest.mark.parametrize("dialect", [Dialect.FILE, Dialect.ENVIRONMENT])
async def test_a_port_that_answers_is_named(fault: str, dialect: Dialect, monkeypatch: pytest.MonkeyPatch) -> None:
    reason, greeting = PORT_FAULTS[fault]
    async with Relay() as good, Relay(greeting=greeting or "220 never") as bad:
        port = refused_port() if greeting is None else bad.port
        monkeypatch.setattr(doctor, "USUAL_PORTS", (refused_port(), good.port, port))
        profile = profile_of(HURRIED, name="default", port=port, dialect=dialect)
        found = await Surgery(bad, at_each_port).diagnose(profile)
        assert found.failure is not None
        assert found.failure.reason == reason
        assert f"port {good.port} answers there, so set {profile.setting('port', good.port)}" in found.failure.hint
        assert found.attempt.failure is found.failure
        await good.closed()
        assert good.commands == [], "it was greeted, and nothing more"
        assert bad.connections >= (0 if greeting is None else 1)
        assert bad.commands in ([], ["HEAD / HTTP/1.0", ""]), "no more than what a silent port is asked"


async def test_the_first_of_those_that_answer_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    async with Relay() as first, Relay() as second:
        monkeypatch.setattr(doctor, "USUAL_PORTS", (first.port, second.port))
        found = await Surgery(first, at_each_port).diagnose(make_profile(port=refused_port()))
    assert found.failure is not None
    assert f"port = {first.port}; or" in found.failure.hint
    assert str(second.port) not in found.failure.hint


@pytest.mark.parametrize(
    "greeting",
    ["554 5.7.1 not you", b"HTTP/1.1 400 Bad Request\r\n\r\n", Close(), Reset()],
    ids=["refusal", "web server", "closed", "reset"],
)
async def test_a_port_that_does_not_greet_as_a_relay_is_not_named(
    greeting: Answer, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with Relay(greeting=greeting) as other:
        monkeypatch.setattr(doctor, "USUAL_PORTS", (other.port,))
        found = await Surgery(other, at_each_port).diagnose(make_profile(port=refused_port()))
        assert other.connections == 1
    assert found.failure is not None
    assert "answers there" not in found.failure.hint


async def test_a_port_that_keeps_silent_does_not_hold_the_answer_up_for_long(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(doctor, "_PORT_SECONDS", SHORT)
    async with Relay(greeting=Stall()) as silent, Relay() as good:
        monkeypatch.setattr(doctor, "USUAL_PORTS", (silent.port, good.port))
        async with asyncio.timeout(SHORT * 5):
            found = await Surgery(silent, at_each_port).diagnose(make_profile(port=refused_port()))
    assert found.failure is not None
    assert f"port = {good.port}" in found.failure.hint
    assert found.attempt.duration_ms is not None
    assert found.attempt.duration_ms < SHORT * 1000, "looking around is no part of the diagnosis"


async def test_a_resolver_that_answers_once_and_no_more_does_not_hold_the_answer_up() -> None:
    answers = [[address_of(refused_port())]]

    async def resolve(_host: str, _port: int) -> list[SocketAddress]:
        if not answers:
            await asyncio.Event().wait()
        return answers.pop()

    async with Relay() as relay, asyncio.timeout(SHORT * 5):
        found = await Surgery(relay, resolve).diagnose(make_profile(**HURRIED))
    assert in_words(found) == "ECONNECTION/connection_refused T"


@pytest.mark.parametrize(
    ("script", "settings"),
    [
        (("GREETING", "554 5.7.1 not you"), Settings()),
        (("MAIL", "550 5.7.1 not you"), Settings()),
        (("AUTH", "535 5.7.8 wrong"), LOGGING_IN),
    ],
    ids=["greeting refused", "sender refused", "login refused"],
)
async def test_no_other_port_is_tried_where_it_could_not_help(
    script: tuple[str, Answer], settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with Relay(auth=["PLAIN"]) as relay, Relay() as other:
        relay.on(*script)
        monkeypatch.setattr(doctor, "USUAL_PORTS", (other.port,))
        found = await Surgery(relay, at_each_port).diagnose(profile_of(settings, port=relay.port))
        assert not found.is_ok
        assert other.connections == 0


# --- what is left behind ---------------------------------------------------------------------------------


@pytest.mark.parametrize("mode", [STARTTLS, IMPLICIT])
async def test_a_look_at_a_refused_certificate_waits_for_no_farewell(mode: TlsMode) -> None:
    """Under TLS a connection that is closed politely stays open until the peer says so too, or for 30 s."""
    context = certificates().untrusted()
    async with Relay(tls=context, implicit=mode is IMPLICIT) as relay:
        relay.on(
            "GREETING" if mode is IMPLICIT else "STARTTLS",
            ("220 go" if mode is IMPLICIT else StartTLS(context), StopReading()),
        )
        found = await Surgery(relay).diagnose(make_profile(tls=mode))
        assert in_words(found) == "ETLS/tls_cert_untrusted C"
        assert found.failure is not None
        assert "cert_sha256" in found.failure.hint, "it had its look"
        await turns()
        transports = vars(asyncio.get_running_loop())["_transports"].values()
        still_open = [t.get_extra_info("peername") for t in transports if not t.is_closing()]
        assert relay.port not in [peer[1] for peer in still_open]
