"""What a relay can do to us, and what the attempt says: one row a situation, its id begins with its number.

A row holds the relay's script, what is said of the attempt ("code/reason class", or "sent"), the words that its
hint must have, and what may be on the wire. What holds for every row is in `holds_always()`. Each runs on both
event loops; those that get as far as MAIL run with PIPELINING and without.

Classes: P permanent, T temporary, U unknown, C configuration.
"""

import asyncio
import base64
import hmac
import socket
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass, field, replace
from datetime import timedelta
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from app.delivery.plan import Done, RetryAt, ending, next_step
from app.mail.address import parse_address
from app.mail.message import Claim
from app.mail.outcome import Deferred, Failure, InDoubt, MessageState, Phase, RecipientState, Rejected, Sent
from app.mail.profile import (
    MECHANISMS_IN_CLEAR,
    AuthMode,
    Dialect,
    ProfileFacts,
    Timeouts,
    TlsMode,
    TlsVersion,
    resolve_profile,
)
from app.mail.schedule import DEFAULT_SCHEDULE, Schedule
from app.smtp.network import Resolve, SocketAddress
from tests.support.factories import (
    BODY,
    CONTENT,
    LONG,
    NOW,
    RECIPIENT,
    SHORT,
    Settings,
    Tried,
    as_hinted,
    attempt,
    in_words,
    leading_to,
    make_claim,
    next_claim,
    on_both_loops,
    refused_port,
    timeouts,
)
from tests.support.relay import (
    CHALLENGES,
    EXTENSIONS,
    Close,
    Drip,
    GarbageInsteadOfTLS,
    Hear,
    Relay,
    Reset,
    Split,
    Stall,
    StopReading,
    Wait,
)
from tests.support.scram import ScramServer
from tests.support.tls import Answer, ServerContext, Step, certificates

ALICE, BOB, EVE = "alice@theirs.test", RECIPIENT, "eve@theirs.test"
EHLO = b"EHLO client.test\r\n"
MAIL = b"MAIL FROM:<ann@ours.test> SIZE=%d\r\n" % len(CONTENT)
RCPT = b"RCPT TO:<bob@theirs.test>\r\n"
SENDING = MAIL + RCPT + b"DATA\r\n" + CONTENT + b".\r\n"
QUIT = b"QUIT\r\n"
OFFERS = "\n".join(f"250-{line}" for line in ("relay.test", *EXTENSIONS)) + "\n250 HELP"
BIG = CONTENT + b"and more of it\r\n" * 1_000_000  # more than the kernel holds for a peer that does not read
SOME_OF_IT = 200_000  # bytes of BIG: surely not the end

NONE, OPPORTUNISTIC, STARTTLS, IMPLICIT = TlsMode.NONE, TlsMode.OPPORTUNISTIC, TlsMode.STARTTLS, TlsMode.IMPLICIT
VERIFYING = {"starttls": STARTTLS, "implicit": IMPLICIT}
HURRIED: Settings = {"timeouts": timeouts(**dict.fromkeys(("tls", "starttls", "greeting"), SHORT))}
LOGGING_IN: Settings = {"username": "bot", "password": "secret"}
MISTAKEN: Settings = {"username": "bot", "password": "wrong"}
AUTH_PLAIN_WRONG = b"AUTH PLAIN " + base64.b64encode(b"\0bot\0wrong") + b"\r\n"
AUTH_LOGIN_WRONG = b"AUTH LOGIN\r\n" + base64.b64encode(b"bot") + b"\r\n" + base64.b64encode(b"wrong") + b"\r\n"


def digest(password: str) -> str:
    """Give what CRAM-MD5 makes of a password and the tests' challenge (RFC 2195)."""
    return hmac.new(password.encode(), CHALLENGES["CRAM-MD5"][0], "md5").hexdigest()


def in_base64(text: str) -> str:
    return base64.b64encode(text.encode()).decode()


AUTH_CRAM = f"AUTH CRAM-MD5\r\n{in_base64('bot ' + digest('secret'))}\r\n".encode()
AUTH_CRAM_WRONG = f"AUTH CRAM-MD5\r\n{in_base64('bot ' + digest('wrong'))}\r\n".encode()
SECRETS = [
    form
    for password in ("secret", "wrong")
    for form in (
        password,
        in_base64(password),
        in_base64(f"\0bot\0{password}"),
        digest(password),
        in_base64(f"bot {digest(password)}"),
    )
]

Script = tuple[str, Answer] | tuple[str, Answer, str]  # verb, answer, what must be in the command
Place = Callable[[Relay], AbstractContextManager[Resolve]]
SettingsFor = Callable[[Relay], Settings]


class Seen:
    """One attempt, and the relay that it went to."""

    def __init__(self, relay: Relay, tried: Tried) -> None:
        self.relay = relay
        self.outcomes, self.attempt = tried

    @property
    def wire(self) -> bytes:
        """All that the relay received, over all connections."""
        return b"".join(bytes(session.wire) for session in self.relay.sessions)

    @property
    def verbs(self) -> list[str]:
        return [command.split(" ")[0] for command in self.relay.commands]

    @property
    def failures(self) -> list[Failure]:
        return [outcome.failure for outcome in self.outcomes.values() if not isinstance(outcome, Sent)]


def nothing_more(_: Seen) -> None:
    """What the row says is all there is to check."""


@dataclass(frozen=True, kw_only=True)
class Row:
    """One situation."""

    id: str
    says: str | Mapping[str, str]  # of everybody, or by address
    script: Sequence[Script] = ()
    relay: Callable[[], Relay] = Relay
    place: Place | None = None  # None: where the relay is
    settings: Settings | SettingsFor = field(default_factory=Settings)
    claim: Claim = field(default_factory=make_claim)
    hint: Sequence[str] = ()
    reply: str | None = None  # the relay's words, as they are kept
    phase: Phase | None = None  # of the failure
    wire: bytes | None = None  # all that the relay received
    never: Sequence[bytes] = ()  # not on the wire
    check: Callable[[Seen], None] = nothing_more


def row(id: str, says: str | Mapping[str, str], *script: Script, **more: Any) -> Row:
    return Row(id=id, says=says, script=script, **more)


PASSWORD_ON_THE_WIRE = [form.encode() for form in ("secret", in_base64("secret"), in_base64("\0bot\0secret"))]

# --- relays and places -----------------------------------------------------------------------------------


def over_tls(mode: TlsMode, certificate: str = "server", **said: Any) -> Callable[[], Relay]:
    """Give a relay for this mode, that shows a certificate of `tests.support.tls.Certificates`."""
    return lambda: Relay(tls=getattr(certificates(), certificate)(), implicit=mode is IMPLICIT, **said)


def with_auth(*mechanisms: str, **said: Any) -> Callable[[], Relay]:
    return lambda: Relay(auth=mechanisms or ("PLAIN", "LOGIN"), **said)


def over_old_tls(
    mode: TlsMode, certificate: str, *, closes_without_alert: bool = False, **said: Any
) -> Callable[[], Relay]:
    """Give a relay like `over_tls`, which may close where a handshake fails, and say nothing."""

    def relay() -> Relay:
        context = getattr(certificates(), certificate)()
        context.closes_without_alert = closes_without_alert
        return Relay(tls=context, implicit=mode is IMPLICIT, **said)

    return relay


def pinning(said: Settings) -> SettingsFor:
    """Add a pin for the certificate that the relay shows."""
    return lambda relay: {**said, "cert_sha256": shown(relay).sha256}


def shown(relay: Relay) -> ServerContext:
    assert relay.tls is not None
    return relay.tls


def offering(*extensions: str) -> Callable[[], Relay]:
    return lambda: Relay(extensions=extensions)


@contextmanager
def nowhere(_: Relay) -> Iterator[Resolve]:
    """Lead to a port where nobody listens."""
    yield leading_to(refused_port())


@contextmanager
def elsewhere(relay: Relay) -> Iterator[Resolve]:
    """Lead to the relay by an address that is this machine too, but not by its spelling."""
    yield leading_to(relay.port, "0.0.0.0")


@contextmanager
def silence(_: Relay) -> Iterator[Resolve]:
    """Lead to a listener whose backlog is full: the kernel drops every further SYN."""
    with socket.socket() as listener, socket.socket() as first:
        listener.bind(("127.0.0.1", 0))
        listener.listen(0)
        first.connect(listener.getsockname())
        yield leading_to(listener.getsockname()[1])


def resolver(*, error: Exception | None = None, answers: bool = True) -> Place:
    """Replace the resolver by one that raises, or says that there is no address, or does not answer at all."""

    async def resolve(_host: str, _port: int) -> list[SocketAddress]:
        if error is not None:
            raise error
        if not answers:
            await asyncio.Event().wait()
        return []

    @contextmanager
    def place(_: Relay) -> Iterator[Resolve]:
        yield resolve

    return place


# --- what a row looks at besides -------------------------------------------------------------------------


def connected_once(seen: Seen) -> None:
    assert seen.relay.connections == 1


def was_stopped_in_the_handshake(seen: Seen) -> None:
    """Whenever the relay said so: the attempt came no further than that."""
    connected_once(seen)
    assert {failure.phase for failure in seen.failures} == {seen.attempt.phase}
    assert seen.attempt.tls_error


def went_on_in_clear(seen: Seen) -> None:
    attempt = seen.attempt
    assert (attempt.tls, attempt.tls_verified, attempt.tls_version) == (False, False, None)
    assert (attempt.tls_names, attempt.tls_not_after, attempt.tls_sha256) == ((), None, None)
    assert attempt.tls_error
    assert seen.relay.connections == 2
    assert not seen.relay.sessions[1].tls
    assert b"MAIL" not in seen.relay.sessions[0].wire


def was_encrypted_unverified(seen: Seen) -> None:
    attempt = seen.attempt
    assert (attempt.tls, attempt.tls_verified, attempt.tls_error) == (True, False, None)
    assert seen.relay.connections == 1
    assert seen.relay.sessions[0].tls


def was_encrypted_and_verified(seen: Seen) -> None:
    attempt = seen.attempt
    assert (attempt.tls, attempt.tls_verified, attempt.tls_error) == (True, True, None)
    assert seen.relay.sessions[0].tls


def was_refused_by_its_pin(seen: Seen) -> None:
    """The certificate is looked at over this one connection, and the hint has what would pin it."""
    attempt, sha256 = seen.attempt, shown(seen.relay).sha256
    assert (attempt.tls, attempt.tls_verified, attempt.tls_sha256) == (True, False, sha256)
    assert attempt.tls_error
    assert all(f'cert_sha256 = "{sha256}"' in failure.hint for failure in seen.failures)
    assert seen.relay.connections == 1


def was_verified_as(name: str | None) -> Callable[[Seen], None]:
    """Check that SNI asked for this name, and the certificate was good."""

    def check(seen: Seen) -> None:
        was_encrypted_and_verified(seen)
        assert shown(seen.relay).asked_for == [name]

    return check


def was_not_verified(seen: Seen) -> None:
    assert not seen.attempt.tls_verified
    assert seen.attempt.tls_error
    assert set(seen.verbs) <= {"EHLO", "STARTTLS", "QUIT"}  # the look at the certificate sends nothing either


def shows(**facts: object) -> Callable[[Seen], None]:
    """Check facts of the attempt, such as `tls=False`."""

    def check(seen: Seen) -> None:
        assert {name: getattr(seen.attempt, name) for name in facts} == facts

    return check


def was_given_up(seen: Seen) -> None:
    """The content's end was not sent, and the connection closed without another word."""
    assert not seen.attempt.handover
    assert QUIT not in seen.wire


def hints_at_no_mechanism(seen: Seen) -> None:
    assert all("auth =" not in failure.hint for failure in seen.failures)


def hints_without(*words: str) -> Callable[[Seen], None]:
    """Check that no hint has these words."""

    def check(seen: Seen) -> None:
        assert [word for failure in seen.failures for word in words if word in failure.hint] == []

    return check


def has_no_words_of_ours(*words: str) -> Callable[[Seen], None]:
    """Check that nobody's words are in the relay's mouth."""

    def check(seen: Seen) -> None:
        said = "".join(line for _, who, line in seen.attempt.transcript if who == "S").lower()
        assert [word for word in words if word in said] == []
        assert all(failure.reply is None for failure in seen.failures)

    return check


def bears(enhanced: str | None) -> Callable[[Seen], None]:
    def check(seen: Seen) -> None:
        assert {failure.enhanced_code for failure in seen.failures} == {enhanced}

    return check


# --- the table: the opening ------------------------------------------------------------------------------

CERTIFICATES = [
    ("14-untrusted", "untrusted", "ETLS/tls_cert_untrusted C", ["ca_file", "verify = false"]),
    ("14-self-signed", "self_signed", "ETLS/tls_cert_untrusted C", ["ca_file", "verify = false"]),
    ("15-expired", "expired", "ETLS/tls_cert_expired C", ["2024-01-31", "verify = false"]),
    (
        "16-wrong-name",
        "wrong_name",
        "ETLS/tls_hostname_mismatch C",
        ["other.test", "localhost", 'server_name = "other.test"'],
    ),
]
CLIENT_CERTIFICATES: Mapping[str, Settings] = {
    "one-file": Settings(client_cert=certificates().client_file),
    "two-files": Settings(client_cert=certificates().client_cert_file, client_key=certificates().client_key_file),
}
CUTS: Mapping[str, Close | Reset] = {"closed": Close(), "reset": Reset()}
STARTTLS_FAILURES: Mapping[str, Answer] = {
    "refused-for-now": "454 4.7.0 TLS not available",
    "refused": "502 5.5.1 not really",
    "refused-and-closed": ("454 4.7.0 TLS not available", Close()),
    "closed": Close(),
    "reset": Reset(),
    "unanswered": Stall(),
    "answered-with-garbage": "hello",
    "handshake-garbage": GarbageInsteadOfTLS(),
    "handshake-closed": ("220 go", Hear(), Close()),
    "handshake-reset": ("220 go", Hear(), Reset()),
    "handshake-stalls": ("220 go", Stall()),
}

# A way to log in: the TLS mode, what the profile says besides, and where the relay is.
WAYS: Mapping[str, tuple[TlsMode, Settings, Place | None]] = {
    "starttls": (STARTTLS, Settings(), None),
    "implicit": (IMPLICIT, Settings(), None),
    "on-loopback": (NONE, Settings(), None),
    "in-clear": (NONE, Settings(), elsewhere),
    "in-clear-and-allowed": (NONE, Settings(host="mail.test", allow_cleartext_auth=True), elsewhere),
}
CHOICES: Mapping[str, tuple[Sequence[str], AuthMode, str]] = {
    "all": (("LOGIN", "PLAIN", "CRAM-MD5", "SCRAM-SHA-1", "SCRAM-SHA-256"), AuthMode.AUTO, "SCRAM-SHA-256"),
    "all-but-scram": (("LOGIN", "PLAIN", "CRAM-MD5"), AuthMode.AUTO, "CRAM-MD5"),
    "scram-alone": (("SCRAM-SHA-1",), AuthMode.AUTO, "SCRAM-SHA-1"),
    "scram-with-channel-binding": (("SCRAM-SHA-256-PLUS", "SCRAM-SHA-256"), AuthMode.REQUIRED, "SCRAM-SHA-256"),
    "all-and-required": (("PLAIN", "CRAM-MD5", "LOGIN"), AuthMode.REQUIRED, "CRAM-MD5"),
    "plain-and-login": (("XOAUTH2", "LOGIN", "PLAIN"), AuthMode.AUTO, "PLAIN"),
    "cram-md5-and-login": (("LOGIN", "CRAM-MD5"), AuthMode.AUTO, "CRAM-MD5"),
    "login": (("LOGIN", "NTLM"), AuthMode.AUTO, "LOGIN"),
    "pinned-plain": (("LOGIN", "PLAIN", "CRAM-MD5"), AuthMode.PLAIN, "PLAIN"),
    "pinned-login": (("LOGIN", "PLAIN", "CRAM-MD5"), AuthMode.LOGIN, "LOGIN"),
    "pinned-cram-md5": (("LOGIN", "PLAIN", "CRAM-MD5"), AuthMode.CRAM_MD5, "CRAM-MD5"),
    "pinned-scram": (("SCRAM-SHA-1", "PLAIN", "SCRAM-SHA-256"), AuthMode.SCRAM_SHA_1, "SCRAM-SHA-1"),
}
NO_CHALLENGES: Mapping[str, Answer] = {
    "nothing": "334 ",
    "a-code-alone": "334",
    "words": "334 Go ahead, please",
    "marks": "334 !!!",
    "base64-cut-off": "334 PDE4OTZ",
    "padding-alone": "334 ====",
    "binary": b"334 \xff\xfe\r\n",
    "two-lines": f"334-{in_base64('<1896')}\n334 {in_base64('@relay.test>')}",
}
LOGINS = [
    *(
        row(
            f"25b-{choice}-{way}",
            "sent",
            relay=over_tls(mode, auth=offered, auth_required=True)
            if mode in (STARTTLS, IMPLICIT)
            else with_auth(*offered, auth_required=True),
            place=place,
            settings={"tls": mode, "auth": auth, **more, **LOGGING_IN},
            never=PASSWORD_ON_THE_WIRE if mechanism in MECHANISMS_IN_CLEAR else [],
            check=shows(auth=mechanism, tls=mode in (STARTTLS, IMPLICIT)),
        )
        for choice, (offered, auth, mechanism) in CHOICES.items()
        for way, (mode, more, place) in WAYS.items()
        if way != "in-clear" or mechanism in MECHANISMS_IN_CLEAR
    ),
    *(
        row(
            f"27b-{choice}-in-clear",
            "EAUTH/auth_needs_tls C",
            relay=with_auth(*offered),
            place=elsewhere,
            settings={"auth": auth, **LOGGING_IN},
            hint=['tls = "starttls"'],
            phase=Phase.AUTH,
            wire=EHLO,
            check=shows(auth=None),
        )
        for choice, (offered, auth, mechanism) in CHOICES.items()
        if mechanism not in MECHANISMS_IN_CLEAR
    ),
    row(
        "27b-cram-md5-to-another-machine-in-clear",
        "sent",
        relay=with_auth("PLAIN", "CRAM-MD5", auth_required=True),
        place=elsewhere,
        settings={"host": "mail.test", "auth": AuthMode.CRAM_MD5, **LOGGING_IN},
        wire=EHLO + AUTH_CRAM + SENDING + QUIT,
    ),
    *(
        row(
            f"25-{what}-in-clear",
            "EAUTH/auth_mechanism_unsupported C",
            relay=with_auth(*offered),
            place=elsewhere,
            settings={"auth": auth, **LOGGING_IN},
            hint=hint,
            wire=EHLO,
        )
        for what, offered, auth, hint in [
            ("no-common-mechanism", ("GSSAPI", "NTLM"), AuthMode.AUTO, ["GSSAPI NTLM"]),
            ("pinned-cram-md5-not-offered", ("PLAIN", "LOGIN"), AuthMode.CRAM_MD5, ["PLAIN LOGIN"]),
        ]
    ),
    row(
        "27b-no-common-mechanism-before-starttls",
        "EAUTH/auth_needs_tls C",
        relay=over_tls(STARTTLS, auth=("GSSAPI", "NTLM")),
        place=elsewhere,
        settings=LOGGING_IN,
        hint=['tls = "starttls"'],
        wire=EHLO,
    ),
    row(
        "25b-offered-in-lower-case",
        "sent",
        ("EHLO", "250-relay.test\n250 auth cram-md5 plain"),
        relay=with_auth("CRAM-MD5", auth_required=True),
        settings=LOGGING_IN,
        check=shows(auth="CRAM-MD5"),
    ),
    row(
        "25-pinned-cram-md5-not-offered",
        "EAUTH/auth_mechanism_unsupported C",
        relay=with_auth("PLAIN", "NTLM"),
        settings={"auth": AuthMode.CRAM_MD5, **LOGGING_IN},
        hint=["PLAIN NTLM", 'auth = "plain"'],
        wire=EHLO,
    ),
    *(
        row(
            f"23-535-to-cram-md5-beside-{'-and-'.join(others) or 'nothing'}".lower(),
            "EAUTH/auth_rejected C",
            relay=with_auth("CRAM-MD5", *others),
            settings=MISTAKEN,
            hint=["username", "password", *([f'auth = "{instead}"'] if instead else [])],
            reply="535 5.7.8 authentication failed",
            phase=Phase.AUTH,
            wire=EHLO + AUTH_CRAM_WRONG,
            check=connected_once if instead else hints_at_no_mechanism,
        )
        for others, instead in {(): None, ("PLAIN",): "plain", ("LOGIN",): "login", ("LOGIN", "PLAIN"): "plain"}.items()
    ),
    *(
        row(
            f"23-535-to-cram-md5-under-{name}",
            "EAUTH/auth_rejected C",
            relay=over_tls(mode, auth=("PLAIN", "CRAM-MD5")),
            settings={"tls": mode, **MISTAKEN},
            hint=['auth = "plain"'],
            wire=(EHLO if mode is IMPLICIT else EHLO + b"STARTTLS\r\n" + EHLO) + AUTH_CRAM_WRONG,
        )
        for name, mode in VERIFYING.items()
    ),
    row(
        "23-535-to-plain-beside-cram-md5",
        "EAUTH/auth_rejected C",
        relay=with_auth("PLAIN", "CRAM-MD5"),
        settings={"auth": AuthMode.PLAIN, **MISTAKEN},
        wire=EHLO + AUTH_PLAIN_WRONG,
        check=hints_at_no_mechanism,
    ),
    *(
        row(
            f"23-the-relay-repeats-{what}-of-cram-md5-with-{code}",
            says,
            ("AUTH2", f"{code} x {said} y"),
            relay=with_auth("CRAM-MD5"),
            settings=LOGGING_IN,
            reply=None if code == 235 else f"{code} x {kept} y",
        )
        for code, says in [
            (235, "sent"),
            (454, "EAUTH/auth_unavailable T"),
            (500, "EAUTH/auth_mechanism_unsupported C"),
            (535, "EAUTH/auth_rejected C"),
        ]
        for what, said, kept in [
            ("the-line", in_base64("bot " + digest("secret")), "***"),
            ("some-of-the-line", in_base64("bot " + digest("secret"))[:40], "***"),
            ("the-digest", digest("secret"), "***"),
            ("name-and-digest", f"bot {digest('secret')}", "bot ***"),
        ]
    ),
    *(
        row(
            f"23-{code}-instead-of-a-challenge",
            says,
            ("AUTH", f"{code} not so"),
            relay=with_auth("CRAM-MD5", "PLAIN"),
            settings=LOGGING_IN,
            hint=hint,
            reply=f"{code} not so",
            phase=Phase.AUTH,
            wire=EHLO + b"AUTH CRAM-MD5\r\n",
        )
        for code, says, hint in [
            (235, "EPROTOCOL/unexpected_reply T", []),
            (421, "ECONNECTION/service_unavailable T", []),
            (454, "EAUTH/auth_unavailable T", []),
            (500, "EAUTH/auth_mechanism_unsupported C", ['set auth = "plain".']),
            (504, "EAUTH/auth_mechanism_unsupported C", ['set auth = "plain".']),
            (535, "EAUTH/auth_rejected C", ['auth = "plain"']),
            (538, "EAUTH/auth_needs_tls C", ['tls = "starttls"']),
        ]
    ),
    *(
        row(
            f"23-{who}-says-why-with-{'-and-'.join(mechanisms).lower()}",
            "EAUTH/auth_rejected C",
            ("AUTH2" if mechanisms[0] == "CRAM-MD5" else "AUTH", f"535 {said}"),
            relay=with_auth(*mechanisms),
            settings=LOGGING_IN,
            reply=f"535 {said}",
        )
        for who, said in {
            "exchange-online": (
                "5.7.139 Authentication unsuccessful, SmtpClientAuthentication is disabled for the Tenant. "
                "Visit https://aka.ms/smtp_auth_disabled for more information."
            ),
            "google": "5.7.8 Learn more at https://support.google.com/accounts/answer/185833 u12-20020a170902",
        }.items()
        for mechanisms in (("PLAIN", "LOGIN"), ("CRAM-MD5",))
    ),
    *(
        row(
            f"23-{what}-for-a-challenge",
            "EPROTOCOL/malformed_reply T",
            ("AUTH", said),
            relay=with_auth("CRAM-MD5", "PLAIN"),
            settings=LOGGING_IN,
            phase=Phase.AUTH,
            wire=EHLO + b"AUTH CRAM-MD5\r\n*\r\n",
            check=has_no_words_of_ours("challenge"),
        )
        for what, said in NO_CHALLENGES.items()
    ),
    *(
        row(
            f"29-{how}-at-{verb.lower()}-of-cram-md5",
            "ECONNECTION/connection_lost T",
            (verb, cut),
            relay=with_auth("CRAM-MD5"),
            settings=LOGGING_IN,
            phase=Phase.AUTH,
        )
        for how, cut in CUTS.items()
        for verb in ("AUTH", "AUTH2")
    ),
    *(
        row(
            f"29-no-reply-to-{verb.lower()}-of-cram-md5",
            "ETIMEDOUT/reply_timeout T",
            (verb, Stall()),
            relay=with_auth("CRAM-MD5"),
            settings={"timeouts": timeouts(auth=SHORT), **LOGGING_IN},
            hint=["timeouts.auth"],
            phase=Phase.AUTH,
        )
        for verb in ("AUTH", "AUTH2")
    ),
]

# --- the table: every step of every login ----------------------------------------------------------------

USER, PASSWORD = in_base64("bot"), in_base64("secret")
ASK_USER, ASK_PASSWORD = f"334 {in_base64('Username:')}", f"334 {in_base64('Password:')}"
AUTH_PLAIN = f"AUTH PLAIN {in_base64(chr(0) + 'bot' + chr(0) + 'secret')}\r\n".encode()
AUTH_LOGIN = b"AUTH LOGIN\r\n"
LONG_PASSWORD = "x" * 400
PROMPTS: Mapping[str, tuple[Answer, Answer]] = {
    "as-usual": (ASK_USER, ASK_PASSWORD),
    "of-windows": (f"334 {in_base64('User Name' + chr(0))}", f"334 {in_base64('Password' + chr(0))}"),
    "in-lower-case": (f"334 {in_base64('username:')}", f"334 {in_base64('password:')}"),
    "after-two-spaces": (f"334  {in_base64('Username:')}", f"334  {in_base64('Password:')}"),
    "without-padding-or-base64": ("334 Username:", "334 Password:"),
    "that-happen-to-be-base64": ("334 Username", "334 Password"),
    "empty": ("334 ", "334 "),
    "that-are-a-code-alone": ("334", "334"),
    "in-german": (f"334 {in_base64('Benutzerkennung:')}", f"334 {in_base64('Kennwort:')}"),
    "in-french": (f"334 {in_base64('Identifiant :')}", f"334 {in_base64('Mot de passe :')}"),
    "in-chinese": (f"334 {in_base64('用户名：')}", f"334 {in_base64('密码：')}"),
    "without-meaning": (f"334 {in_base64('1')}", f"334 {in_base64('2')}"),
    "about-both": (f"334 {in_base64('Login (user, then password):')}", f"334 {in_base64('Password for user bot:')}"),
    "of-which-the-first-is-empty": ("334 ", ASK_PASSWORD),
    "of-which-the-second-is-empty": (ASK_USER, "334 "),
}
ASKED_AGAIN: Mapping[str, tuple[Answer, Answer]] = {
    "in-the-same-words": (ASK_USER, ASK_USER),
    "in-other-words": (ASK_USER, f"334 {in_base64('Login name:')}"),
    "in-windows-words": (ASK_USER, f"334 {in_base64('User Name' + chr(0))}"),
    "after-an-empty-prompt": ("334 ", ASK_USER),
    "without-base64": ("334 ", "334 Username:"),
    "in-what-happens-to-be-base64": ("334 ", "334 Username"),
    "in-a-foreign-language": (f"334 {in_base64('用户名：')}", f"334 {in_base64('用户名：')}"),
}
NO_PROMPTS: Mapping[str, tuple[Answer, str]] = {
    "of-two-lines": (f"334-{in_base64('Welcome')}\n{ASK_USER}", "malformed_reply"),
    "of-marks": ("334 !!!", "malformed_reply"),
    "of-binary": (b"334 \xff\xfe\r\n", "malformed_reply"),
    "of-base64-cut-off": ("334 VXNlcm5hbW", "malformed_reply"),
    "without-end": (b"334 " + b"A" * 10_000 + b"\r\n", "malformed_reply"),
    "twice-at-once": (f"{ASK_USER}\n{ASK_PASSWORD}", "unexpected_reply"),
}

# A mechanism, and each of its steps: the verb, what is in the line, and all that was said up to there.
STEPS: Mapping[str, Sequence[tuple[str, str, bytes]]] = {
    "PLAIN": [("AUTH", "PLAIN", AUTH_PLAIN)],
    "LOGIN": [
        ("AUTH", "LOGIN", AUTH_LOGIN),
        ("AUTH2", USER, AUTH_LOGIN + f"{USER}\r\n".encode()),
        ("AUTH2", PASSWORD, AUTH_LOGIN + f"{USER}\r\n{PASSWORD}\r\n".encode()),
    ],
    "CRAM-MD5": [("AUTH", "CRAM", b"AUTH CRAM-MD5\r\n"), ("AUTH2", "", AUTH_CRAM)],
    "SCRAM-SHA-256": [("AUTH", "SCRAM", b""), ("AUTH2", in_base64("c=biws"), b"")],
}
# What may come at any step instead of what should, and what that makes of the attempt.
REFUSALS: Mapping[str, tuple[Answer, str]] = {
    "200": ("200 fine", "EPROTOCOL/unexpected_reply T"),
    "250": ("250 2.0.0 What?", "EPROTOCOL/unexpected_reply T"),
    "354": ("354 go ahead", "EPROTOCOL/unexpected_reply T"),
    "399": ("399 hm", "EPROTOCOL/unexpected_reply T"),
    "421": ("421 4.7.0 bye", "ECONNECTION/service_unavailable T"),
    "432": ("432 4.7.12 A password transition is needed", "EAUTH/auth_mechanism_refused C"),
    "451": ("451 4.3.0 not now", "EAUTH/auth_unavailable T"),
    "454": ("454 4.7.0 Temporary authentication failure", "EAUTH/auth_unavailable T"),
    "454-too-many": ("454 4.7.0 Too many login attempts", "ECONNECTION/rate_limited T"),
    "500": ("500 5.5.2 Syntax error", "EAUTH/auth_mechanism_unsupported C"),
    "500-too-long": ("500 5.5.6 Authentication exchange line is too long", "EAUTH/auth_mechanism_unsupported C"),
    "501-syntax": ("501 5.5.2 Syntax error in parameters", "EAUTH/auth_mechanism_unsupported C"),
    "501-argument": ("501 5.5.4 Invalid argument", "EAUTH/auth_mechanism_unsupported C"),
    "501-bare": ("501 no", "EAUTH/auth_mechanism_unsupported C"),
    "501-credentials": ("501 Authentication failed!", "EAUTH/auth_rejected C"),
    "501-security": ("501 5.7.0 no", "EAUTH/auth_rejected C"),
    "502": ("502 5.5.1 Not implemented", "EAUTH/auth_mechanism_unsupported C"),
    "503": ("503 5.5.1 Bad sequence", "EAUTH/auth_mechanism_unsupported C"),
    "504": ("504 5.5.4 Unrecognized authentication type", "EAUTH/auth_mechanism_unsupported C"),
    "530": ("530 5.7.0 Must issue a STARTTLS command first", "EAUTH/auth_needs_tls C"),
    "534": ("534 5.7.9 too weak", "EAUTH/auth_mechanism_refused C"),
    "535": ("535 5.7.8 no", "EAUTH/auth_rejected C"),
    "535-bare": ("535 no", "EAUTH/auth_rejected C"),
    "535-protocol": ("535 5.5.4 authentication failed: bad protocol / cancel", "EAUTH/auth_rejected C"),
    "538": ("538 5.7.11 encrypt", "EAUTH/auth_needs_tls C"),
    "550": ("550 no", "EAUTH/auth_rejected C"),
    "554": ("554 5.7.1 no", "EAUTH/auth_rejected C"),
    "554-protocol": ("554 5.5.1 no", "EAUTH/auth_mechanism_unsupported C"),
    "599": ("599 no", "EAUTH/auth_rejected C"),
    "199": (b"199 hm\r\n", "EPROTOCOL/malformed_reply T"),
    "garbage": (b"\x00\xff rubbish\r\n", "EPROTOCOL/malformed_reply T"),
    "two-lines-with-two-codes": (b"334-\r\n235 in\r\n", "EPROTOCOL/malformed_reply T"),
    "two-replies": ("535 5.7.8 no\n250 yes", "EAUTH/auth_rejected C"),
    "close": (Close(), "ECONNECTION/connection_lost T"),
    "reset": (Reset(), "ECONNECTION/connection_lost T"),
    "silence": (Stall(), "ETIMEDOUT/reply_timeout T"),
}


BAD_SCRAM: Mapping[str, tuple[Mapping[str, Any], str, Sequence[str]]] = {
    "the-relay-proves-nothing": ({"final": "v=AAAA"}, "EAUTH/auth_server_unverified C", ["host"]),
    "the-relay-proves-it-with-words": ({"final": "v=!"}, "EPROTOCOL/malformed_reply T", ["AUTH SCRAM-SHA-256"]),
    "the-relay-ends-with-words": ({"final": "welcome"}, "EPROTOCOL/malformed_reply T", []),
    "the-relay-ends-with-an-error-and-535": (
        {"final": "e=invalid-proof", "verdict": "535 no"},
        "EAUTH/auth_rejected C",
        ["password"],
    ),
    "the-relay-ends-with-an-error-and-235": ({"final": "e=other-error"}, "EAUTH/auth_server_unverified C", ["host"]),
    "the-relay-begins-with-an-error-and-535": (
        {"first": "e=unknown-user", "final": "{signature}"},
        "EAUTH/auth_rejected C",
        ["username"],
    ),
    "too-many-iterations": (
        {"iterations": "2000001"},
        "EAUTH/auth_mechanism_unsupported C",
        ["2000000", "iterations of SCRAM-SHA-256"],
    ),
    "very-many-iterations": ({"iterations": "9" * 400}, "EAUTH/auth_mechanism_unsupported C", ["2000000"]),
    "no-iterations": ({"iterations": "0"}, "EPROTOCOL/malformed_reply T", []),
    "less-than-no-iterations": ({"iterations": "-4096"}, "EPROTOCOL/malformed_reply T", []),
    "no-salt": ({"salt": b""}, "EPROTOCOL/malformed_reply T", []),
    "bad-salt": ({"first": "r={nonce}x,s=a,i=4096"}, "EPROTOCOL/malformed_reply T", []),
    "our-nonce-alone": ({"first": "r={nonce},s={salt},i=4096"}, "EPROTOCOL/malformed_reply T", []),
    "another-nonce": ({"first": "r=x{nonce},s={salt},i=4096"}, "EPROTOCOL/malformed_reply T", []),
    "an-extension-that-must-be-known": ({"first": "m=x,r={nonce}x,s={salt},i=4096"}, "EPROTOCOL/malformed_reply T", []),
    "another-order": ({"first": "s={salt},r={nonce}x,i=4096"}, "EPROTOCOL/malformed_reply T", []),
}
GOOD_SCRAM: Mapping[str, Mapping[str, Any]] = {
    "few-iterations": {"iterations": "1"},
    "more-iterations-than-usual": {"iterations": "20000"},
    "a-short-salt": {"salt": b"x"},
    "extensions": {"first": "r={nonce}x,s={salt},i={iterations},x=y", "final": "v={signature},x=y"},
}


def asking(*prompts: Answer) -> list[Script]:
    """Script a relay whose first prompts are these, whatever is answered."""
    return [("AUTH", prompts[0]), *(("AUTH2", prompt, USER) for prompt in prompts[1:])]


def scram(**said: Any) -> Callable[[], Relay]:
    return with_auth("SCRAM-SHA-256", auth_required=True, scram=ScramServer(**said))


def masked(*lines: str) -> Callable[[Seen], None]:
    """Check what the transcript shows of our side of the login."""

    def check(seen: Seen) -> None:
        said = [line for _, who, line in seen.attempt.transcript if who == "C"]
        assert said[1 : 1 + len(lines)] == list(lines)

    return check


EXCHANGES = [
    *(
        row(
            f"23b-prompts-{what}",
            "sent",
            *asking(*prompts),
            relay=with_auth("LOGIN", auth_required=True),
            settings=LOGGING_IN,
            wire=EHLO + STEPS["LOGIN"][2][2] + SENDING + QUIT,
            check=masked("AUTH LOGIN", "***", "***"),
        )
        for what, prompts in PROMPTS.items()
    ),
    row(
        "23b-the-password-is-asked-for-first",
        "sent",
        ("AUTH", ASK_PASSWORD),
        ("AUTH2", ASK_USER, PASSWORD),
        ("AUTH2", "235 2.7.0 in", USER),
        relay=with_auth("LOGIN"),
        settings=LOGGING_IN,
        wire=EHLO + AUTH_LOGIN + f"{PASSWORD}\r\n{USER}\r\n".encode() + SENDING + QUIT,
    ),
    *(
        row(
            f"23b-the-user-name-is-asked-for-again-{how}",
            "EPROTOCOL/unexpected_reply T",
            *asking(*prompts),
            relay=with_auth("LOGIN", "PLAIN"),
            settings={"auth": AuthMode.LOGIN, **LOGGING_IN},
            hint=["AUTH LOGIN", 'auth = "plain"'],
            phase=Phase.AUTH,
            wire=EHLO + STEPS["LOGIN"][1][2] + b"*\r\n",
            check=masked("AUTH LOGIN", "***", "*"),
        )
        for how, prompts in ASKED_AGAIN.items()
    ),
    row(
        "23b-a-third-prompt",
        "EPROTOCOL/unexpected_reply T",
        ("AUTH2", ASK_PASSWORD, PASSWORD),
        relay=with_auth("LOGIN"),
        settings=LOGGING_IN,
        wire=EHLO + STEPS["LOGIN"][2][2] + b"*\r\n",
        check=masked("AUTH LOGIN", "***", "***", "*"),
    ),
    *(
        row(
            f"23b-a-prompt-{what}",
            f"EPROTOCOL/{reason} T",
            ("AUTH", said),
            relay=with_auth("LOGIN"),
            settings=LOGGING_IN,
            phase=Phase.AUTH,
            never=[USER.encode(), PASSWORD.encode()],
        )
        for what, (said, reason) in NO_PROMPTS.items()
    ),
    *(
        row(
            f"23b-{what}-at-step-{number}-of-{mechanism.lower()}",
            says,
            (verb, answer, match),
            relay=with_auth(mechanism),
            settings={"timeouts": timeouts(auth=SHORT), **LOGGING_IN},
            phase=Phase.AUTH,
            wire=EHLO + wire if wire else None,
            never=[b"MAIL", b"QUIT"],
            check=shows(auth=mechanism),
        )
        for mechanism, steps_of_it in STEPS.items()
        for number, (verb, match, wire) in enumerate(steps_of_it, start=1)
        for what, (answer, says) in REFUSALS.items()
    ),
    *(
        row(
            f"23b-235-at-step-{number}-of-{mechanism.lower()}",
            says,
            (verb, "235 2.7.0 welcome", match),
            relay=with_auth(mechanism),
            settings=LOGGING_IN,
            reply="235 2.7.0 welcome",
            phase=Phase.AUTH,
            never=[b"MAIL"],
        )
        for mechanism, number, says in [
            ("LOGIN", 1, "EPROTOCOL/unexpected_reply T"),
            ("LOGIN", 2, "EPROTOCOL/unexpected_reply T"),
            ("CRAM-MD5", 1, "EPROTOCOL/unexpected_reply T"),
            ("SCRAM-SHA-256", 1, "EAUTH/auth_server_unverified C"),
            ("SCRAM-SHA-256", 2, "EAUTH/auth_server_unverified C"),
        ]
        for verb, match, _ in [STEPS[mechanism][number - 1]]
    ),
    *(
        row(
            f"23b-the-235-comes-with-{what}-by-{mechanism.lower()}",
            says,
            (*STEPS[mechanism][-1][:1], more, STEPS[mechanism][-1][1]),
            relay=with_auth(mechanism),
            settings=LOGGING_IN,
            never=[b"MAIL"],
        )
        for mechanism in ("PLAIN", "LOGIN", "CRAM-MD5")
        for what, more, says in [
            ("another", "235 2.7.0 in\n235 2.7.0 in", "EPROTOCOL/unexpected_reply T"),
            ("a-challenge", "235 2.7.0 in\n334 ", "EPROTOCOL/unexpected_reply T"),
            ("a-421", "235 2.7.0 in\n421 4.3.2 out", "ECONNECTION/connection_lost T"),
        ]
    ),
    row(
        "23b-plain-is-asked-for-again",
        "sent",
        ("AUTH", "334 "),
        relay=with_auth("PLAIN", auth_required=True),
        settings=LOGGING_IN,
        wire=EHLO + AUTH_PLAIN + AUTH_PLAIN.removeprefix(b"AUTH PLAIN ") + SENDING + QUIT,
        check=masked("AUTH PLAIN ***", "***"),
    ),
    row(
        "23b-plain-is-asked-for-a-third-time",
        "EPROTOCOL/unexpected_reply T",
        ("AUTH", "334 "),
        ("AUTH2", "334 "),
        relay=with_auth("PLAIN"),
        settings=LOGGING_IN,
        wire=EHLO + AUTH_PLAIN + AUTH_PLAIN.removeprefix(b"AUTH PLAIN ") + b"*\r\n",
        check=masked("AUTH PLAIN ***", "***", "*"),
    ),
    *(
        row(
            f"23b-plain-is-asked-for-{what}",
            says,
            ("AUTH", said),
            relay=with_auth("PLAIN"),
            settings=LOGGING_IN,
            phase=Phase.AUTH,
            wire=EHLO + AUTH_PLAIN + b"*\r\n",
        )
        for what, said, says in [
            ("a-user-name", ASK_USER, "EPROTOCOL/unexpected_reply T"),
            ("a-password", ASK_PASSWORD, "EPROTOCOL/unexpected_reply T"),
            ("more", f"334 {in_base64('go on')}", "EPROTOCOL/unexpected_reply T"),
            ("two-lines", "334-\n334 ", "EPROTOCOL/malformed_reply T"),
        ]
    ),
    row(
        "23b-plain-that-is-too-long-for-a-command",
        "sent",
        relay=with_auth("PLAIN", users={"bot": LONG_PASSWORD}, auth_required=True),
        settings={"username": "bot", "password": LONG_PASSWORD},
        wire=EHLO + f"AUTH PLAIN\r\n{in_base64(f'{chr(0)}bot{chr(0)}{LONG_PASSWORD}')}\r\n".encode() + SENDING + QUIT,
        check=masked("AUTH PLAIN", "***"),
    ),
    *(
        row(
            f"23b-235-to-a-{mechanism}-that-was-not-sent-yet",
            says,
            ("AUTH", "235 2.7.0 in"),
            relay=with_auth(mechanism),
            settings={"username": "bot" * 200, "password": LONG_PASSWORD},
            wire=EHLO + f"AUTH {mechanism}\r\n".encode(),
        )
        for mechanism, says in [
            ("PLAIN", "EPROTOCOL/unexpected_reply T"),
            ("SCRAM-SHA-1", "EPROTOCOL/unexpected_reply T"),
        ]
    ),
    row(
        "23b-cram-md5-has-a-second-challenge",
        "EPROTOCOL/unexpected_reply T",
        ("AUTH2", f"334 {in_base64('<2@relay.test>')}"),
        relay=with_auth("CRAM-MD5"),
        settings=LOGGING_IN,
        wire=EHLO + AUTH_CRAM + b"*\r\n",
    ),
    row(
        "23b-a-challenge-of-cram-md5-without-end",
        "EPROTOCOL/malformed_reply T",
        ("AUTH", b"334 " + b"A" * 10_000 + b"\r\n"),
        relay=with_auth("CRAM-MD5"),
        settings=LOGGING_IN,
        wire=EHLO + b"AUTH CRAM-MD5\r\n",
    ),
    # SCRAM
    *(
        row(
            f"23c-{what}",
            says,
            relay=scram(**said),
            settings=LOGGING_IN,
            never=PASSWORD_ON_THE_WIRE,
            phase=Phase.AUTH,
            hint=hint,
        )
        for what, (said, says, hint) in BAD_SCRAM.items()
    ),
    *(
        row(
            f"23c-{what}",
            "sent",
            relay=scram(**said),
            settings=LOGGING_IN,
            never=PASSWORD_ON_THE_WIRE,
            check=masked("AUTH SCRAM-SHA-256 ***", "***", ""),
        )
        for what, said in GOOD_SCRAM.items()
    ),
    row(
        "23c-the-first-message-is-asked-for-again",
        "sent",
        ("AUTH", "334 "),
        relay=scram(),
        settings=LOGGING_IN,
        check=masked("AUTH SCRAM-SHA-256 ***", "***", "***", ""),
    ),
    row(
        "23c-wrong-password",
        "EAUTH/auth_rejected C",
        relay=with_auth("SCRAM-SHA-1", "PLAIN"),
        settings=MISTAKEN,
        hint=["one login was tried", "SCRAM-SHA-1", 'auth = "plain"'],
        never=PASSWORD_ON_THE_WIRE,
        check=connected_once,
    ),
    *(
        row(
            f"23c-{what}-at-the-end-of-scram",
            says,
            relay=scram(verdict=said),
            settings=LOGGING_IN,
            phase=Phase.AUTH,
        )
        for what, said, says in [
            ("334", "334 ", "EPROTOCOL/unexpected_reply T"),
            ("250", "250 in", "EPROTOCOL/unexpected_reply T"),
            ("454", "454 later", "EAUTH/auth_unavailable T"),
            ("535", "535 5.7.8 no", "EAUTH/auth_rejected C"),
        ]
    ),
    row(
        "27b-scram-to-another-machine-in-clear",
        "sent",
        relay=with_auth("PLAIN", "SCRAM-SHA-1", auth_required=True),
        place=elsewhere,
        settings={"host": "mail.test", "auth": AuthMode.SCRAM_SHA_1, **LOGGING_IN},
        never=PASSWORD_ON_THE_WIRE,
    ),
    row(
        "25-pinned-scram-not-offered",
        "EAUTH/auth_mechanism_unsupported C",
        relay=with_auth("SCRAM-SHA-1", "LOGIN"),
        settings={"auth": AuthMode.SCRAM_SHA_256, **LOGGING_IN},
        hint=["SCRAM-SHA-1 LOGIN", 'auth = "scram-sha-1"'],
        wire=EHLO,
    ),
    row(
        "25-501-to-login",
        "EAUTH/auth_mechanism_unsupported C",
        ("AUTH", "501 5.5.2 Syntax error"),
        relay=with_auth("LOGIN", "PLAIN"),
        settings={"auth": AuthMode.LOGIN, **LOGGING_IN},
        hint=["refused AUTH LOGIN itself, not the password", 'auth = "plain"'],
        wire=EHLO + AUTH_LOGIN,
    ),
]

OPENING = [
    row("1-connection-refused", "ECONNECTION/connection_refused T", place=nowhere, hint=["host", "port"], wire=b""),
    row(
        "2-no-such-name",
        "EDNS/host_not_found C",
        place=resolver(error=socket.gaierror(socket.EAI_NONAME, "Name or service not known")),
        hint=["host", "localhost"],
        phase=Phase.RESOLVE,
        wire=b"",
    ),
    row(
        "2-name-without-address",
        "EDNS/host_not_found C",
        place=resolver(error=socket.gaierror(socket.EAI_NODATA, "No address associated with hostname")),
    ),
    row("2-no-address-at-all", "EDNS/host_not_found C", place=resolver()),
    row(
        "2-resolver-fails-for-now",
        "EDNS/dns_failure T",
        place=resolver(error=socket.gaierror(socket.EAI_AGAIN, "Temporary failure in name resolution")),
        hint=["DNS"],
        phase=Phase.RESOLVE,
    ),
    row(
        "2-resolver-fails-for-good",
        "EDNS/dns_failure T",
        place=resolver(error=socket.gaierror(socket.EAI_FAIL, "Non-recoverable failure in name resolution")),
    ),
    row("2-resolver-unreachable", "EDNS/dns_failure T", place=resolver(error=OSError(101, "Network is unreachable"))),
    row(
        "2-resolver-does-not-answer",
        "EDNS/dns_failure T",
        place=resolver(answers=False),
        settings={"timeouts": timeouts(resolve=SHORT)},
    ),
    row(
        "3-connect-times-out",
        "ETIMEDOUT/connect_timeout T",
        place=silence,
        settings={"timeouts": timeouts(connect=SHORT)},
        hint=["host", "port"],
        phase=Phase.CONNECT,
    ),
    *(
        row(
            f"4-greeting-{code}",
            "EPROTOCOL/greeting_refused T",
            ("GREETING", f"{code} relay.test not for you"),
            reply=f"{code} relay.test not for you",
            phase=Phase.GREETING,
            wire=b"",
        )
        for code in (554, 550, 521, 450, 499, 599)
    ),
    row(
        "4-greeting-554-of-two-lines-and-closed",
        "EPROTOCOL/greeting_refused T",
        ("GREETING", ("554-relay.test\n554 5.7.1 blocked", Close())),
        reply="554 relay.test 5.7.1 blocked",
    ),
    row("5-greeting-421", "ECONNECTION/service_unavailable T", ("GREETING", "421 4.3.2 busy"), reply="421 4.3.2 busy"),
    *(
        row(
            f"48-rate-limited-at-{verb.lower()}-{code}",
            "ECONNECTION/rate_limited T",
            (verb, f"{code} {words}"),
            relay=with_auth(),
            settings=LOGGING_IN,
            hint=["max_connections = "],
        )
        for verb, code, words in (
            ("GREETING", 421, "4.7.0 Error: too many connections from 192.0.2.1"),
            ("GREETING", 421, "4.3.2 The maximum number of concurrent server connections has exceeded a limit"),
            ("EHLO", 421, "4.7.0 Try again later, closing connection. (EHLO)"),
            ("AUTH", 454, "4.7.0 Too many login attempts, please try again later."),
        )
    ),
    row("5-greeting-421-and-closed", "ECONNECTION/service_unavailable T", ("GREETING", ("421 4.3.2 busy", Close()))),
    *(
        row(
            f"6-no-greeting-{mode.value}",
            "ETIMEDOUT/greeting_timeout T",
            ("GREETING", Stall()),
            relay=over_tls(STARTTLS),
            settings={"tls": mode, **HURRIED},
            hint=['tls = "implicit"'],
            phase=Phase.GREETING,
            wire=b"",
        )
        for mode in (NONE, OPPORTUNISTIC, STARTTLS)
    ),
    row(
        "6-no-greeting-under-tls",
        "ETIMEDOUT/greeting_timeout T",
        ("GREETING", Stall()),
        relay=over_tls(IMPLICIT),
        settings={"tls": IMPLICIT, **HURRIED},
        phase=Phase.GREETING,
    ),
    row(
        "6-half-a-greeting",
        "ETIMEDOUT/greeting_timeout T",
        ("GREETING", (b"220 relay.te", Stall())),
        settings={**HURRIED},
    ),
    *(
        row(f"7-{how}-before-the-greeting", "ECONNECTION/connection_lost T", ("GREETING", cut), wire=b"")
        for how, cut in CUTS.items()
    ),
    row(
        "7-closed-before-the-greeting-under-tls",
        "ECONNECTION/connection_lost T",
        ("GREETING", Close()),
        relay=over_tls(IMPLICIT),
        settings={"tls": IMPLICIT},
    ),
    row("7-closed-in-mid-greeting", "ECONNECTION/connection_lost T", ("GREETING", (b"220 relay.te", Close()))),
    *(
        row(
            f"8-{what}",
            "EPROTOCOL/not_smtp C",
            ("GREETING", (said, Close())),
            relay=over_tls(IMPLICIT) if tls else Relay,
            settings={"tls": IMPLICIT if tls else NONE},
            hint=["host", "port"],
        )
        for what, said, tls in [
            ("http", b"HTTP/1.1 400 Bad Request\r\nServer: nginx\r\n\r\n", False),
            ("https", b"HTTP/1.0 408 Request Time-out\r\n\r\n<html>", True),
            ("ssh", b"SSH-2.0-OpenSSH_9.2p1 Debian-2\r\n", False),
        ]
    ),
    *(
        row(
            f"9-ehlo-{code}-helo-accepted",
            "sent",
            ("EHLO", f"{code} 5.5.1 what?"),
            relay=with_auth(),
            wire=EHLO
            + b"HELO client.test\r\nMAIL FROM:<ann@ours.test>\r\n"
            + RCPT
            + b"DATA\r\n"
            + CONTENT
            + b".\r\n"
            + QUIT,
            check=shows(extensions=[], auth=None),
        )
        for code in (500, 501, 502, 550, 554, 599)
    ),
    row(
        "9-credentials-and-helo-only",
        "EAUTH/auth_not_offered C",
        ("EHLO", "502 5.5.1 what?"),
        relay=with_auth(),
        settings=LOGGING_IN,
        never=[b"AUTH", b"MAIL"],
    ),
    row(
        "9-starttls-and-helo-only",
        "ETLS/tls_not_offered C",
        ("EHLO", "502 5.5.1 what?"),
        relay=over_tls(STARTTLS),
        settings={"tls": STARTTLS},
        never=[b"STARTTLS", b"MAIL"],
    ),
    row(
        "10-ehlo-and-helo-refused",
        "EPROTOCOL/helo_refused C",
        ("EHLO", "550 5.7.1 bad name"),
        ("HELO", "550 5.7.1 bad name"),
        hint=["helo_name"],
        reply="550 5.7.1 bad name",
        phase=Phase.EHLO,
        wire=EHLO + b"HELO client.test\r\n",
    ),
    *(
        row(
            f"10-ehlo-421-of-google-to-{name}",
            "EPROTOCOL/helo_refused C",
            (
                "EHLO",
                "421-4.7.0 Try again later, closing connection. (EHLO)\n421 4.7.0 About SMTP error messages - gsmtp",
            ),
            settings={"helo_name": name},
            hint=["helo_name"],
            check=hints_without("max_connections"),
        )
        for name in ("[127.0.0.1]", "[IPv6:::1]", "localhost", "web-7d9f", "host.localdomain", "pc.local")
    ),
    *(
        row(
            f"4-greeting-{code}-for-now",
            "EPROTOCOL/greeting_refused T",
            ("GREETING", f"{code} {words}"),
            hint=["tried again"],
            check=hints_without("operator"),
        )
        for code, words in [
            (450, "4.3.2 relay.test try again later"),
            (451, "4.3.0 ESMTP temporarily refused"),
            (452, "out of disk"),
            (499, "hm"),
        ]
    ),
    row("10-ehlo-refused-for-now", "EPROTOCOL/helo_refused T", ("EHLO", "450 4.7.1 later"), wire=EHLO),
    row("10-helo-refused-for-now", "EPROTOCOL/helo_refused T", ("EHLO", "502 what?"), ("HELO", "450 4.7.1 later")),
    row(
        "11-ehlo-421", "ECONNECTION/service_unavailable T", ("EHLO", ("421 4.3.2 bye", Close())), reply="421 4.3.2 bye"
    ),
    row(
        "11-helo-421", "ECONNECTION/service_unavailable T", ("EHLO", "502 what?"), ("HELO", ("421 4.3.2 bye", Close()))
    ),
    *(
        row(f"11-{how}-at-ehlo", "ECONNECTION/connection_lost T", ("EHLO", cut), phase=Phase.EHLO)
        for how, cut in CUTS.items()
    ),
    *(
        row(
            f"11-closed-behind-the-reply-to-ehlo-{name}",
            "ECONNECTION/connection_lost T",
            ("EHLO", (f"{OFFERS.replace('250 HELP', more)}", Close())),
            relay=over_tls(STARTTLS, auth=("PLAIN",)),
            settings=said,
            never=[BODY],
        )
        for name, more, said in [
            ("in-clear", "250 HELP", Settings()),
            ("opportunistic", "250 HELP", Settings(tls=OPPORTUNISTIC)),
            ("starttls", "250 STARTTLS", Settings(tls=STARTTLS)),
            ("auth", "250 AUTH PLAIN", LOGGING_IN),
        ]
    ),
    *(
        row(
            f"12-starttls-not-offered-{name}",
            "ETLS/tls_not_offered C",
            relay=with_auth(),
            settings={"tls": STARTTLS, **more},
            hint=['tls = "implicit"', *hints],
            phase=Phase.STARTTLS,
            wire=EHLO,
            check=connected_once,
        )
        for name, more, hints in [
            ("without-login", Settings(), ['tls = "opportunistic"']),
            ("with-login", LOGGING_IN, ["password"]),
        ]
    ),
    *(
        row(
            f"13-starttls-{reply[:3]}-{name}",
            says,
            ("STARTTLS", reply),
            relay=over_tls(STARTTLS, auth=("PLAIN",)),
            settings={"tls": STARTTLS, **more},
            reply=reply,
            phase=Phase.STARTTLS,
            wire=EHLO + b"STARTTLS\r\n",
        )
        for reply, says in [
            ("454 4.7.0 TLS not available", "ETLS/tls_unavailable T"),
            ("499 4.0.0 odd", "ETLS/tls_unavailable T"),
            ("502 5.5.1 not really", "ETLS/tls_not_offered C"),
            ("421 4.3.2 bye", "ECONNECTION/service_unavailable T"),
        ]
        for name, more in [("without-login", Settings()), ("with-login", LOGGING_IN)]
    ),
    *(
        row(
            f"13-{how}-at-starttls",
            "ECONNECTION/connection_lost T",
            ("STARTTLS", cut),
            relay=over_tls(STARTTLS),
            settings={"tls": STARTTLS},
        )
        for how, cut in CUTS.items()
    ),
    row(
        "13-no-reply-to-starttls",
        "ETIMEDOUT/reply_timeout T",
        ("STARTTLS", Stall()),
        relay=over_tls(STARTTLS),
        settings={"tls": STARTTLS, **HURRIED},
    ),
    *(
        row(
            f"{number}-{name}",
            says,
            relay=over_tls(mode, certificate, auth=("PLAIN",)),
            settings={"tls": mode, **LOGGING_IN},
            hint=hint,
            check=was_not_verified,
        )
        for number, certificate, says, hint in CERTIFICATES
        for name, mode in VERIFYING.items()
    ),
    *(
        row(
            f"14-{certificate}-and-verify-false-{name}",
            "sent",
            relay=over_tls(mode, certificate),
            settings={"tls": mode, "verify": False},
            check=was_encrypted_unverified,
        )
        for certificate in ("untrusted", "self_signed", "expired", "wrong_name")
        for name, mode in VERIFYING.items()
    ),
    *(
        row(
            f"14-trusted-by-ca-file-{name}",
            "sent",
            relay=over_tls(mode),
            settings={"tls": mode},
            check=was_encrypted_and_verified,
        )
        for name, mode in VERIFYING.items()
    ),
    *(
        row(
            f"14b-pinned-{certificate}-{name}",
            "sent",
            relay=over_tls(mode, certificate, auth=("PLAIN",), auth_required=True),
            settings=pinning({"tls": mode, **LOGGING_IN}),
            check=was_encrypted_and_verified,
        )
        for certificate in ("server", "untrusted", "self_signed", "expired", "wrong_name")
        for name, mode in VERIFYING.items()
    ),
    *(
        row(
            f"14c-{certificate}-and-another-pinned-{name}",
            "ETLS/tls_pin_mismatch C",
            relay=over_tls(mode, certificate, auth=("PLAIN",)),
            settings={"tls": mode, "cert_sha256": "ab" * 32, **LOGGING_IN},
            hint=["cert_sha256", "localhost", until],
            phase=Phase.TLS if mode is IMPLICIT else Phase.STARTTLS,
            wire=b"" if mode is IMPLICIT else EHLO + b"STARTTLS\r\n",
            check=was_refused_by_its_pin,
        )
        for certificate, until in [("server", "until "), ("expired", "until 2024-01-31")]
        for name, mode in VERIFYING.items()
    ),
    *(
        row(
            f"16b-{what}-{name}",
            "sent",
            relay=over_tls(mode, certificate),
            settings={"tls": mode, **more},
            check=was_verified_as(asks_for),
        )
        for what, certificate, more, asks_for in [
            ("for-host", "server", Settings(), "localhost"),
            ("for-host-that-is-an-address", "server", Settings(host="127.0.0.1"), None),
            ("for-server-name", "wrong_name", Settings(server_name="other.test"), "other.test"),
            ("for-server-name-and-host", "server", Settings(host="10.0.0.1", server_name="localhost"), "localhost"),
        ]
        for name, mode in VERIFYING.items()
    ),
    *(
        row(
            f"16b-not-for-server-name-{name}",
            "ETLS/tls_hostname_mismatch C",
            relay=over_tls(mode, auth=("PLAIN",)),
            settings={"tls": mode, "server_name": "other.test", **LOGGING_IN},
            hint=["is for localhost", "not for other.test", 'server_name = "localhost"'],
            check=was_not_verified,
        )
        for name, mode in VERIFYING.items()
    ),
    row(
        "17-handshake-stalls-starttls",
        "ETIMEDOUT/tls_timeout T",
        ("STARTTLS", ("220 go", Stall())),
        settings={"tls": STARTTLS, **HURRIED},
        relay=over_tls(STARTTLS),
        hint=["host", "port"],
    ),
    row(
        "17-handshake-stalls-implicit",
        "ETIMEDOUT/tls_timeout T",
        ("GREETING", Stall()),
        settings={"tls": IMPLICIT, **HURRIED},
        hint=["host", "port"],
        phase=Phase.TLS,
    ),
    *(
        row(
            f"18-handshake-{how}-starttls",
            "ESOCKET/tls_connection_lost T",
            ("STARTTLS", ("220 go", Hear(), cut)),
            relay=over_tls(STARTTLS),
            settings={"tls": STARTTLS},
        )
        for how, cut in CUTS.items()
    ),
    *(
        row(
            f"18-handshake-{how}-implicit",
            "ESOCKET/tls_connection_lost T",
            ("GREETING", (Hear(), cut)),
            settings={"tls": IMPLICIT},
            phase=Phase.TLS,
        )
        for how, cut in CUTS.items()
    ),
    row(
        "18-no-cipher-in-common",
        "ETLS/tls_handshake_failed C",
        relay=over_tls(STARTTLS, "odd_cipher_only"),
        settings={"tls": STARTTLS},
    ),
    *(
        row(
            f"18b-only-tls-{speaks}-and-at-least-{least or 'what-is-usual'}-{name}",
            "sent" if speaks >= (least or "1.2") else "ETLS/tls_version_unsupported C",
            relay=over_tls(mode, f"tls{speaks.replace('.', '')}_only"),
            settings={"tls": mode, **({"min_tls": least, "tls_security_level": 0} if least else {})},
            hint=[] if speaks >= (least or "1.2") else [f'min_tls = "{speaks}"'],
            check=shows(tls_version=f"TLSv{speaks.removesuffix('.0')}" if speaks >= (least or "1.2") else None),
        )
        for speaks in ("1.0", "1.2", "1.3")
        for least in (None, *TlsVersion)
        for name, mode in VERIFYING.items()
    ),
    *(
        row(
            f"18d-{demands}-and-{shows}-{name}",
            "sent",
            relay=over_tls(mode, demands, auth=("PLAIN",), auth_required=True),
            settings={"tls": mode, **of_ours, **LOGGING_IN},
            check=was_encrypted_and_verified,
        )
        for demands in ("tls12_demanding", "tls13_demanding")
        for shows, of_ours in CLIENT_CERTIFICATES.items()
        for name, mode in VERIFYING.items()
    ),
    *(
        row(
            f"18d-{demands}-and-{shows}-{name}",
            "ETLS/tls_client_cert_required C",
            relay=over_tls(mode, demands, auth=("PLAIN",)),
            settings={"tls": mode, **of_ours, **LOGGING_IN},
            hint=['client_cert = "', "client_key"],
            phase=Phase.TLS if mode is IMPLICIT else Phase.STARTTLS,
            wire=b"" if mode is IMPLICIT else EHLO + b"STARTTLS\r\n",
            check=was_stopped_in_the_handshake,
        )
        for demands in ("tls12_demanding", "tls13_demanding")
        for shows, of_ours in {
            "nothing": Settings(),
            "a-stranger": Settings(client_cert=certificates().stranger_file),
        }.items()
        for name, mode in VERIFYING.items()
    ),
    *(
        row(
            f"18d-{demands}-and-{shows}-and-closes-without-an-alert-{name}",
            "ETLS/tls_client_cert_required C",
            relay=over_old_tls(mode, demands, closes_without_alert=True, auth=("PLAIN",)),
            settings={"tls": mode, **of_ours, **LOGGING_IN},
            hint=['client_cert = "', "client_key"],
            phase=Phase.TLS if mode is IMPLICIT else Phase.STARTTLS,
            check=was_stopped_in_the_handshake,
        )
        for demands in ("tls12_demanding", "tls13_demanding")
        for shows, of_ours in {
            "nothing": Settings(),
            "a-stranger": Settings(client_cert=certificates().stranger_file),
        }.items()
        for name, mode in VERIFYING.items()
    ),
    *(
        row(
            f"18d-{what}-in-reply-to-ehlo-under-tls",
            "ETLS/tls_client_cert_required C",
            ("EHLO", said),
            ("HELO", said),
            relay=over_tls(IMPLICIT),
            settings={"tls": IMPLICIT, **of_ours},
            hint=['client_cert = "', *words],
            reply=said,
            phase=Phase.EHLO,
        )
        for what, said, of_ours, words in [
            (
                "none-presented",
                "421 4.7.1 mx.test Error: No client certificate presented",
                Settings(),
                ["asks for a certificate"],
            ),
            (
                "not-trusted",
                "421 4.7.1 mx.test Error: Client certificate not trusted",
                Settings(client_cert=certificates().stranger_file),
                ["does not accept our certificate"],
            ),
            ("required", "550 5.7.0 A valid client certificate is required", Settings(), []),
            ("must-be-provided", "530 5.7.0 You must provide a client certificate", Settings(), []),
        ]
    ),
    *(
        row(
            f"18e-{what}-{how}-{name}",
            says,
            relay=over_old_tls(mode, certificate, closes_without_alert=how == "closing"),
            settings={"tls": mode, **more},
            hint=hint,
        )
        for what, certificate, more, says, hint in [
            ("dh-of-1024-bits", "short_dh", {}, "ETLS/tls_handshake_failed C", ["tls_security_level = 1"]),
            ("rsa-cipher-only", "rsa_cipher_only", {}, "ETLS/tls_handshake_failed C", ["tls_security_level = 2"]),
            ("sha1-cipher-only", "sha1_cipher_only", {}, "ETLS/tls_handshake_failed C", ["tls_security_level = 2"]),
            ("key-of-1024-bits", "short_key", {}, "ETLS/tls_handshake_failed C", ["tls_security_level = 1"]),
            *(
                (
                    f"{certificate.replace('_', '-')}-and-min-tls-{least}",
                    certificate,
                    {"min_tls": least},
                    "ETLS/tls_handshake_failed C",
                    [f"tls_security_level = {level}"],
                )
                for least in (TlsVersion.V1_0, TlsVersion.V1_1)
                for certificate, level in [("short_dh", 1), ("rsa_cipher_only", 2), ("short_key", 1), ("tls10_only", 0)]
                if (certificate, least) != ("tls10_only", TlsVersion.V1_1)
            ),
        ]
        for how in ("alert", "closing")
        for name, mode in VERIFYING.items()
    ),
    *(
        row(
            f"14d-without-its-intermediate-{name}",
            "ETLS/tls_cert_untrusted C",
            relay=over_tls(mode, "without_intermediate"),
            settings={"tls": mode},
            hint=["does not send", "its root", "ca_file", "cert_sha256", "verify = false"],
            check=was_not_verified,
        )
        for name, mode in VERIFYING.items()
    ),
    *(
        row(
            f"14d-without-its-intermediate-and-{what}-in-ca-file-{name}",
            "sent",
            relay=over_tls(mode, "without_intermediate"),
            settings={"tls": mode, "ca_file": file},
            check=was_encrypted_and_verified,
        )
        for what, file in {
            "both": certificates().whole_chain_file,
            "the-intermediate": certificates().intermediate_file,
        }.items()
        for name, mode in VERIFYING.items()
    ),
    *(
        row(
            f"18d-alert-{number}",
            says,
            ("STARTTLS", ("220 go", Hear(), b"\x15\x03\x03\x00\x02\x02" + bytes([number]), Close())),
            relay=over_tls(STARTTLS),
            settings={"tls": STARTTLS},
        )
        for number, says in {
            40: "ETLS/tls_handshake_failed C",  # in answer to the ClientHello it is about ciphers
            42: "ETLS/tls_client_cert_required C",
            43: "ETLS/tls_client_cert_required C",
            44: "ETLS/tls_client_cert_required C",
            45: "ETLS/tls_client_cert_required C",
            46: "ETLS/tls_client_cert_required C",
            48: "ETLS/tls_client_cert_required C",
            49: "ETLS/tls_client_cert_required C",
            70: "ETLS/tls_version_unsupported C",
            80: "ETLS/tls_handshake_failed C",
            116: "ETLS/tls_client_cert_required C",
        }.items()
    ),
    *(
        row(
            f"18c-{demands}",
            "sent",
            relay=over_tls(OPPORTUNISTIC, demands),
            settings={"tls": OPPORTUNISTIC},
            check=went_on_in_clear,
        )
        for demands in ("tls12_demanding", "tls13_demanding")
    ),
    *(
        row(
            f"18c-starttls-{name}",
            "sent",
            ("STARTTLS", answer),
            relay=over_tls(OPPORTUNISTIC),
            settings={"tls": OPPORTUNISTIC, **HURRIED},
            check=went_on_in_clear,
        )
        for name, answer in STARTTLS_FAILURES.items()
    ),
    *(
        row(
            f"18c-bad-certificate-{certificate}",
            "sent",
            relay=over_tls(OPPORTUNISTIC, certificate),
            settings={"tls": OPPORTUNISTIC},
            check=was_encrypted_unverified,
        )
        for certificate in ("untrusted", "self_signed", "expired", "wrong_name", "tls10_only", "server")
    ),
    row(
        "18c-nothing-offered",
        "sent",
        settings={"tls": OPPORTUNISTIC},
        wire=EHLO + SENDING + QUIT,
        check=shows(tls=False, tls_verified=False, tls_error=None),
    ),
    row(
        "19-implicit-tls-against-a-plain-port",
        "ETLS/tls_mode_mismatch C",
        settings={"tls": IMPLICIT},
        hint=['tls = "starttls"', 'tls = "none"'],
        phase=Phase.TLS,
    ),
    row(
        "19-implicit-tls-with-login-against-a-plain-port",
        "ETLS/tls_mode_mismatch C",
        relay=with_auth(),
        settings={"tls": IMPLICIT, **LOGGING_IN},
        hint=['tls = "starttls"'],
        never=[b"AUTH"],
    ),
    *(
        row(
            f"20-{mode.value}-against-implicit-tls-on-{port}",
            says,
            relay=over_tls(IMPLICIT),
            settings={"tls": mode, "port": port, **HURRIED},
            hint=['tls = "implicit"'],
            wire=b"",
        )
        for port, says in [(465, "ETLS/tls_mode_mismatch C"), (587, "ETIMEDOUT/greeting_timeout T")]
        for mode in (NONE, OPPORTUNISTIC, STARTTLS)
    ),
    row(
        "21-credentials-and-no-auth",
        "EAUTH/auth_not_offered C",
        settings=LOGGING_IN,
        hint=['auth = "none"'],
        phase=Phase.AUTH,
        wire=EHLO,
    ),
    row(
        "21-credentials-and-no-auth-under-tls",
        "EAUTH/auth_not_offered C",
        relay=over_tls(STARTTLS),
        settings={"tls": STARTTLS, **LOGGING_IN},
        wire=EHLO + b"STARTTLS\r\n" + EHLO,
    ),
    row(
        "21-credentials-and-no-auth-in-the-words-of-the-environment",
        "EAUTH/auth_not_offered C",
        settings={"name": "default", "dialect": Dialect.ENVIRONMENT, **LOGGING_IN},
        hint=["SMTP_AUTH=none", "SMTP_USERNAME", "SMTP_PASSWORD"],
    ),
    row(
        "21-auth-required-and-not-offered",
        "EAUTH/auth_not_offered C",
        settings={"auth": AuthMode.REQUIRED, **LOGGING_IN},
        never=[b"MAIL"],
    ),
    *(
        row(
            f"22-no-auth-on-{port}-{mode.value}",
            "sent",
            relay=with_auth("PLAIN", "LOGIN", "CRAM-MD5"),
            settings={"port": port, "tls": mode},
            wire=EHLO + SENDING + QUIT,
            check=shows(auth=None),
        )
        for port in (25, 465, 587)
        for mode in (NONE, OPPORTUNISTIC)
    ),
    *(
        row(
            f"22-no-auth-under-{name}-tls",
            "sent",
            relay=over_tls(mode, auth=("PLAIN", "LOGIN")),
            settings={"tls": mode},
            wire=(EHLO if mode is IMPLICIT else EHLO + b"STARTTLS\r\n" + EHLO) + SENDING + QUIT,
        )
        for name, mode in {**VERIFYING, "opportunistic": OPPORTUNISTIC}.items()
    ),
    *(
        row(f"22-no-auth-with-{name}", "sent", relay=with_auth(), settings=said, wire=EHLO + SENDING + QUIT)
        for name, said in [
            ("empty-credentials", Settings(username="", password="")),
            ("credentials-and-auth-none", Settings(auth=AuthMode.NONE, **LOGGING_IN)),
        ]
    ),
    *(
        row(
            f"23-{code}-to-plain",
            "EAUTH/auth_rejected C",
            ("AUTH", f"{code} 5.7.8 authentication failed"),
            relay=with_auth(),
            settings=MISTAKEN,
            hint=["username", "password"],
            reply=f"{code} 5.7.8 authentication failed",
            phase=Phase.AUTH,
            wire=EHLO + AUTH_PLAIN_WRONG,
            check=connected_once,
        )
        for code in (535, 550, 599)
    ),
    row(
        "23-535-to-login",
        "EAUTH/auth_rejected C",
        relay=with_auth("LOGIN"),
        settings=MISTAKEN,
        wire=EHLO + AUTH_LOGIN_WRONG,
        check=connected_once,
    ),
    row(
        "23-535-to-the-pinned-login",
        "EAUTH/auth_rejected C",
        relay=with_auth("PLAIN", "LOGIN"),
        settings={"auth": AuthMode.LOGIN, **MISTAKEN},
        wire=EHLO + AUTH_LOGIN_WRONG,
    ),
    *(
        row(
            f"23-535-under-{name}",
            "EAUTH/auth_rejected C",
            relay=over_tls(mode, auth=("PLAIN", "LOGIN"), auth_only_under_tls=True),
            settings={"tls": mode, **MISTAKEN},
            wire=(EHLO if mode is IMPLICIT else EHLO + b"STARTTLS\r\n" + EHLO) + AUTH_PLAIN_WRONG,
        )
        for name, mode in VERIFYING.items()
    ),
    row(
        "23-the-relay-repeats-the-command-with-the-password",
        "EAUTH/auth_rejected C",
        ("AUTH", f"535 5.7.8 rejected: {AUTH_PLAIN_WRONG.decode().strip()}"),
        relay=with_auth(),
        settings=MISTAKEN,
    ),
    row(
        "23-the-relay-repeats-the-password-of-login",
        "EAUTH/auth_mechanism_unsupported C",
        ("AUTH2", f"500 5.5.1 Command unrecognized: {base64.b64encode(b'wrong').decode()}"),
        relay=with_auth("LOGIN"),
        settings=MISTAKEN,
    ),
    row(
        "24-app-password-wanted",
        "EAUTH/auth_mechanism_refused C",
        ("AUTH", "534-5.7.9 Application-specific password required.\n534 5.7.9 See help"),
        relay=with_auth(),
        settings=LOGGING_IN,
        hint=["app password", "password"],
    ),
    row(
        "25-no-common-mechanism",
        "EAUTH/auth_mechanism_unsupported C",
        relay=with_auth("GSSAPI", "NTLM"),
        settings=LOGGING_IN,
        hint=["GSSAPI", "NTLM", "SCRAM-SHA-256, SCRAM-SHA-1, CRAM-MD5, PLAIN and LOGIN"],
        wire=EHLO,
    ),
    row(
        "25-pinned-mechanism-not-offered",
        "EAUTH/auth_mechanism_unsupported C",
        relay=with_auth("LOGIN", "NTLM"),
        settings={"auth": AuthMode.PLAIN, **LOGGING_IN},
        hint=["LOGIN", 'auth = "login"'],
        wire=EHLO,
    ),
    row(
        "25-504",
        "EAUTH/auth_mechanism_unsupported C",
        ("AUTH", "504 5.5.4 Unrecognized authentication type"),
        relay=with_auth("PLAIN", "XOAUTH2"),
        settings=LOGGING_IN,
        hint=["PLAIN", "XOAUTH2"],
    ),
    *(
        row(
            f"26-auth-{code}",
            "EAUTH/auth_unavailable T",
            ("AUTH", f"{code} 4.7.0 Temporary authentication failure"),
            relay=with_auth(),
            settings=LOGGING_IN,
            reply=f"{code} 4.7.0 Temporary authentication failure",
        )
        for code in (454, 451, 499)
    ),
    *(
        row(
            f"27-auth-{code}-wants-starttls",
            "EAUTH/auth_needs_tls C",
            ("AUTH", f"{code} 5.7.0 Must issue a STARTTLS command first"),
            relay=with_auth(),
            settings=LOGGING_IN,
            hint=['tls = "starttls"'],
        )
        for code in (530, 538)
    ),
    row(
        "29-auth-421",
        "ECONNECTION/service_unavailable T",
        ("AUTH", ("421 4.7.0 Too many errors", Close())),
        relay=with_auth(),
        settings=LOGGING_IN,
        reply="421 4.7.0 Too many errors",
        phase=Phase.AUTH,
    ),
    *(
        row(
            f"29-{how}-at-{verb.lower()}",
            "ECONNECTION/connection_lost T",
            (verb, cut),
            relay=with_auth("LOGIN"),
            settings=LOGGING_IN,
            phase=Phase.AUTH,
        )
        for how, cut in CUTS.items()
        for verb in ("AUTH", "AUTH2")
    ),
    row(
        "29-closed-behind-the-235",
        "ECONNECTION/connection_lost T",
        ("AUTH", ("235 2.7.0 fine", Close())),
        relay=with_auth(),
        settings=LOGGING_IN,
    ),
    row(
        "29-no-reply-to-auth",
        "ETIMEDOUT/reply_timeout T",
        ("AUTH", Stall()),
        relay=with_auth(),
        settings={"timeouts": timeouts(auth=SHORT), **LOGGING_IN},
        hint=["timeouts"],
        phase=Phase.AUTH,
    ),
    row(
        "43-no-reply-to-ehlo",
        "ETIMEDOUT/reply_timeout T",
        ("EHLO", Stall()),
        settings={"timeouts": timeouts(ehlo=SHORT)},
        phase=Phase.EHLO,
    ),
]

# --- the table: odd bytes in the opening -----------------------------------------------------------------

NOT_REPLIES: Mapping[str, Answer] = {
    "words": "hello there",
    "binary": b"\x00\xff\xfe\x80\r\n",
    "empty-line": b"\r\n",
    "letter-o": "25O Ok",
    "two-digits": "25 Ok",
    "1xx": "150 starting",
    "0xx": "050 nothing",
    "600": "600 odd",
    "999": "999 odd",
    "negative": "-25 odd",
    "blank-first": " 250 odd",
    "line-of-1-mb": b"250 " + b"x" * 1_000_000 + b"\r\n",
    "1-mb-without-end": b"250-" + b"x" * 1_000_000,
    "endless-lines": b"250-more\r\n" * 100_000,
}
OPENING_VERBS = ("GREETING", "EHLO", "STARTTLS", "AUTH")
UNKNOWN_IN_THE_OPENING = [
    row(
        f"45-{what}-at-{verb.lower()}",
        "EPROTOCOL/malformed_reply T",
        (verb, (said, Stall()) if isinstance(said, bytes) and not said.endswith(b"\n") else said),
        relay=over_tls(STARTTLS, auth=("PLAIN",)),
        settings={"tls": STARTTLS, **LOGGING_IN},
        phase=Phase(verb.lower()),
        never=[b"MAIL"],
    )
    for verb in OPENING_VERBS
    for what, said in NOT_REPLIES.items()
]
OUT_OF_TURN_IN_THE_OPENING = [
    row(
        f"45-{code}-at-{verb.lower()}",
        "EPROTOCOL/unexpected_reply T",
        (verb, f"{code} odd"),
        relay=over_tls(STARTTLS, auth=("PLAIN",)),
        settings={"tls": STARTTLS, **LOGGING_IN},
        never=[b"MAIL"],
    )
    for verb in OPENING_VERBS
    for code in (299, 354, 399)
]
SURPLUS_IN_THE_OPENING = [
    row(
        f"45-two-replies-to-{name}",
        "EPROTOCOL/unexpected_reply T",
        (verb, said),
        relay=over_tls(STARTTLS, auth=("PLAIN",)),
        settings=settings,
        never=[b"MAIL"],
    )
    for name, verb, said, settings in [
        ("greeting", "GREETING", "220 relay.test\n250 2.0.0 surplus", Settings()),
        ("greeting-before-starttls", "GREETING", "220 relay.test\n250 2.0.0 surplus", Settings(tls=STARTTLS)),
        ("greeting-before-auth", "GREETING", "220 relay.test\n250 AUTH PLAIN", LOGGING_IN),
        ("ehlo", "EHLO", f"{OFFERS}\n250 2.0.0 surplus", Settings()),
        ("ehlo-before-a-wrong-password", "EHLO", "250-relay.test\n250 AUTH PLAIN\n235 2.7.0 in", MISTAKEN),
        ("auth", "AUTH", "235 2.7.0 in\n250 2.0.0 surplus", LOGGING_IN),
    ]
] + [
    row(
        f"45-two-replies-to-cram-md5-{name}",
        "EPROTOCOL/unexpected_reply T",
        ("AUTH", f"334 {in_base64('<1896@relay.test>')}\n{surplus}"),
        relay=with_auth("CRAM-MD5"),
        settings=settings,
        never=[b"MAIL"],
    )
    for name, surplus, settings in [
        ("right", "235 2.7.0 in", LOGGING_IN),
        ("wrong", "235 2.7.0 in", MISTAKEN),
    ]
]
GREETINGS: Mapping[str, Answer] = {
    "code-alone": b"220\r\n",
    "code-and-blank": b"220 \r\n",
    "bare-lf": b"220-relay.test\n220 ready\n",
    "many-lines": "220-relay.test\n220-\n220-no spam\n220 ready",
    "binary-text": b"220 \xff\x00\x1b[31m\r\n",
    "dripping": Drip("220-relay.test\n220 ready"),
}
EHLO_REPLIES: Mapping[str, Answer] = {
    "code-alone": b"250\r\n",
    "bare-lf": OFFERS.replace("\r", "").encode() + b"\n",
    "lower-case": OFFERS.lower(),
    "empty-lines": "250-relay.test\n250-\n250-SIZE\n250 ",
    "size-0": "250-relay.test\n250 SIZE 0",
    "size-of-5000-digits": f"250-relay.test\n250 SIZE {'9' * 5000}",
    "size-of-words": "250-relay.test\n250 SIZE no limit",
    "binary-text": b"250-\xff\x00\r\n250 \xfe\r\n",
    "dripping": Drip(OFFERS),
}
ODD_BUT_GOOD = [
    *(
        row(f"45-{what}-at-greeting", "sent", ("GREETING", said), check=connected_once)
        for what, said in GREETINGS.items()
    ),
    *(
        row(f"45-{what}-at-ehlo", "sent", ("EHLO", said), relay=with_auth(), check=connected_once)
        for what, said in EHLO_REPLIES.items()
    ),
    row(
        "45-auth-offered-in-the-old-style",
        "sent",
        ("EHLO", "250-relay.test\n250-AUTH=LOGIN PLAIN\n250 HELP"),
        relay=with_auth(auth_required=True),
        settings=LOGGING_IN,
        check=shows(auth="PLAIN", tls=False),
    ),
    row(
        "45-plain-text-behind-the-220-to-starttls-is-not-heard",
        "sent",
        ("STARTTLS", "220 go\n250-injected\n250 SIZE 1"),
        relay=over_tls(STARTTLS),
        settings={"tls": STARTTLS},
    ),
]

# --- the table: from MAIL on -----------------------------------------------------------------------------


def people(*addresses: str) -> Claim:
    return make_claim(*addresses)


def small_relay() -> Relay:
    return Relay(extensions=("PIPELINING", "SIZE 72"))


TO_BE_BIG = make_claim(content=BIG)
CUTS_AND_HALVES: Mapping[str, Answer] = {
    **CUTS,
    "closed-in-mid-reply": (b"25", Close()),
    "closed-behind-a-code-without-end": (b"250", Close()),
    "closed-between-lines": (b"250-2.0.0 first\r\n", Close()),
}
AFTER_AN_EARLY_VERDICT: Mapping[str, tuple[Step, ...]] = {"on": (), "closed": (Close(),), "deaf": (StopReading(),)}


def readable(code: int) -> Mapping[str, Answer]:
    """Give replies that are good, however they look."""
    return {
        "code-alone": f"{code}",
        "code-and-blank": f"{code} ",
        "bare-lf": f"{code}-first\n{code} second".encode() + b"\n",
        "many-lines": "\n".join(f"{code}-line {n}" for n in range(50)) + f"\n{code} end",
        "binary-text": f"{code} ".encode() + b"\xff\x00\x1b[31m\x85\r\n",
        "dripping": Drip(f"{code} byte by byte"),
    }


ACCESS_REFUSALS = {
    "550-5.7.1": "550 5.7.1 <bob@theirs.test>: Recipient address rejected",
    "554-5.7.1": "554 5.7.1 <bob@theirs.test>: Relay access denied",
    "454-4.7.1": "454 4.7.1 <bob@theirs.test>: Relay access denied",
    "550-in-words": "550 Unable to relay for bob@theirs.test",
    "550-relaying-denied": "550 relaying mail to theirs.test is not allowed",
    "550-5.7.54": "550 5.7.54 SMTP; Unable to relay recipient in non-accepted domain",
    "550-5.7.57": "550 5.7.57 SMTP; Client was not authenticated to send anonymous mail during MAIL FROM",
}

FROM_MAIL = [
    row("0-sent", "sent", wire=EHLO + SENDING + QUIT, check=shows(handover=True, phase=Phase.CONTENT, failure=None)),
    *(
        row(
            f"28-530-at-{verb.lower()}{'-and-no-auth-offered' if not mechanisms else ''}",
            "EAUTH/auth_required C",
            (verb, "530 5.7.0 Authentication required"),
            relay=lambda mechanisms=mechanisms: Relay(auth=mechanisms),
            hint=["username", "password"],
            reply="530 5.7.0 Authentication required",
            phase=Phase(verb.lower()),
            never=[BODY],
        )
        for verb in ("MAIL", "RCPT")
        for mechanisms in (("PLAIN", "LOGIN"), ())
    ),
    *(
        row(
            f"28b-{name}-at-{verb.lower()}",
            "EAUTH/auth_required C",
            (verb, reply),
            relay=with_auth(),
            hint=["username", "password"],
            reply=reply,
            phase=Phase(verb.lower()),
            never=[BODY],
        )
        for verb in ("MAIL", "RCPT")
        for name, reply in ACCESS_REFUSALS.items()
    ),
    *(
        row(
            f"28c-{what}-at-{verb.lower()}",
            "EAUTH/auth_required C",
            (verb, said),
            relay=with_auth("NTLM", "GSSAPI"),
            hint=["NTLM GSSAPI", "a user name will not do"],
            check=hints_without("The account of", "username", 'auth = "'),
        )
        for verb in ("MAIL", "RCPT")
        for what, said in {
            "send-as-refused-without-a-login": "550 5.7.1 Client does not have permissions to send as this sender",
            "530-and-no-mechanism-that-we-speak": "530 5.7.1 Authentication required",
            "denied-and-no-mechanism-that-we-speak": "550 5.7.1 Unauthenticated senders may not relay",
        }.items()
    ),
    row(
        "28c-send-as-refused-without-a-login-that-would-do",
        "EAUTH/auth_required C",
        ("MAIL", "550 5.7.1 Client does not have permissions to send as this sender"),
        relay=with_auth("LOGIN"),
        hint=["username", "Send As"],
        check=hints_without("The account of"),
    ),
    row(
        "28c-send-as-refused-after-a-login",
        "EENVELOPE/sender_refused P",
        ("MAIL", "550 5.7.60 Client does not have permissions to send as this sender"),
        relay=with_auth("LOGIN"),
        settings=LOGGING_IN,
        hint=["The account of username", "Send As"],
    ),
    row(
        "28c-530-before-starttls-where-auth-may-be-behind-it",
        "EAUTH/auth_required C",
        ("MAIL", "530 5.7.0 Authentication required"),
        relay=over_tls(STARTTLS, auth=("PLAIN",), auth_only_under_tls=True),
        hint=['tls = "starttls"', "username", "password"],
    ),
    *(
        row(
            f"28d-starttls-wanted-after-it-failed-by-{name}",
            "EAUTH/auth_needs_tls C",
            ("STARTTLS", answer),
            ("MAIL", "530 5.7.0 Must issue a STARTTLS command first"),
            relay=over_tls(OPPORTUNISTIC),
            settings={"tls": OPPORTUNISTIC, **HURRIED},
            hint=["TLS failed"],
            check=hints_without('"starttls"'),
        )
        for name, answer in STARTTLS_FAILURES.items()
    ),
    *(
        row(
            f"28d-login-wanted-after-starttls-failed-by-{name}",
            "EAUTH/auth_required C",
            ("STARTTLS", answer),
            ("MAIL", "530 5.7.0 Authentication required"),
            relay=over_tls(OPPORTUNISTIC, auth=("PLAIN",), auth_only_under_tls=True),
            settings={"tls": OPPORTUNISTIC, **HURRIED},
            hint=["username", "password", "port"],
            check=hints_without('"starttls"'),
        )
        for name, answer in STARTTLS_FAILURES.items()
    ),
    row(
        "28b-of-one-recipient",
        {ALICE: "sent", BOB: "EAUTH/auth_required C"},
        ("RCPT", "554 5.7.1 Relay access denied", BOB),
        relay=with_auth(),
        claim=people(ALICE, BOB),
    ),
    row(
        "28b-not-5.7.1-but-no-such-user",
        "EENVELOPE/mailbox_unknown P",
        ("RCPT", "550 5.1.1 no such user"),
        relay=with_auth(),
    ),
    *(
        row(
            f"30-mail-{reply[:3]}-{how}",
            "EENVELOPE/sender_refused P",
            ("MAIL", (reply, Close()) if how == "and-closed" else reply),
            reply=reply,
            phase=Phase.MAIL,
            never=[BODY],
            check=shows(phase=Phase.MAIL),
        )
        for reply in ("550 5.1.8 no such sender", "553 5.7.1 not owned by user", "501 5.1.7 bad syntax")
        for how in ("and-on", "and-closed")
    ),
    row(
        "30-mail-refused-for-everybody",
        "EENVELOPE/sender_refused P",
        ("MAIL", "550 5.1.8 no"),
        claim=people(ALICE, BOB),
    ),
    row(
        "30-mail-refused-and-data-taken",
        "EENVELOPE/sender_refused P",
        ("MAIL", "550 5.1.8 no"),
        ("DATA", "354 go"),
        never=[BODY],
    ),
    *(
        row(
            f"31-mail-{reply[:3]}-{how}",
            says,
            ("MAIL", (reply, Close()) if how == "and-closed" else reply),
            reply=reply,
            phase=Phase.MAIL,
            never=[BODY],
        )
        for reply, says in [
            ("451 4.3.0 later", "EENVELOPE/sender_deferred T"),
            ("452 4.3.1 full", "EENVELOPE/sender_deferred T"),
            ("503 5.5.1 send EHLO first", "EPROTOCOL/bad_sequence T"),
            ("421 4.3.2 bye", "ECONNECTION/service_unavailable T"),
        ]
        for how in ("and-on", "and-closed")
    ),
    *(
        row(
            f"31b-{reply[:3]}-at-{verb.lower()}-of-{len(claim.pending)}",
            "EPROTOCOL/bad_sequence T",
            (verb, reply),
            claim=claim,
            reply=reply,
            phase=Phase(verb.lower()),
            hint=["tried again"],
            check=shows(phase=Phase(verb.lower())),
        )
        for verb in ("MAIL", "RCPT", "DATA", "CONTENT")
        for reply in ("503 5.5.1 Error: need MAIL command", "500 5.5.2 what?", "502 5.5.1 not implemented")
        for claim in (people(BOB), people(ALICE, BOB))
    ),
    row(
        "31b-503-at-rcpt-of-one-recipient",
        {ALICE: "sent", BOB: "EPROTOCOL/bad_sequence T"},
        ("RCPT", "503 5.5.1 Error: need MAIL command", BOB),
        claim=people(ALICE, BOB),
    ),
    *(
        row(
            f"31b-503-at-{verb.lower()}-that-wants-a-login",
            "EAUTH/auth_required C",
            (verb, "503 Error: need EHLO and AUTH first !"),
            hint=["username", "password"],
        )
        for verb in ("MAIL", "RCPT", "DATA")
    ),
    row(
        "32-larger-than-size-says",
        "ETOOLARGE/message_too_large P",
        relay=small_relay,
        hint=["72"],
        phase=Phase.MAIL,
        wire=EHLO + QUIT,
    ),
    row("32-as-large-as-size-says", "sent", relay=lambda: Relay(extensions=("PIPELINING", f"SIZE {len(CONTENT)}"))),
    *(
        row(
            f"32-552-at-mail-{how}",
            "ETOOLARGE/message_too_large P",
            ("MAIL", ("552 5.3.4 too big", Close()) if how == "and-closed" else "552 5.3.4 too big"),
            reply="552 5.3.4 too big",
            never=[BODY],
        )
        for how in ("and-on", "and-closed")
    ),
    *(
        row(
            f"33-every-rcpt-{name}",
            "EENVELOPE/mailbox_unknown P",
            ("RCPT", (reply, Close()) if closed else reply),
            claim=claim,
            reply=reply,
            phase=None if closed else Phase.RCPT,
            never=[BODY],
            check=nothing_more if closed else shows(phase=Phase.RCPT),
        )
        for name, reply, claim, closed in [
            ("550-5.1.1", "550 5.1.1 no such user", people(BOB), False),
            ("550-5.1.1-of-three", "550 5.1.1 no such user", people(ALICE, BOB, EVE), False),
            ("550-without-more", "550 no such user", people(BOB), False),
            ("553-5.1.3", "553 5.1.3 bad address", people(BOB), False),
            ("550-5.1.10", "550 5.1.10 RecipientNotFound", people(BOB), False),
            ("550-and-closed", "550 5.1.1 no such user", people(BOB), True),
        ]
    ),
    *(
        row(
            f"33-every-rcpt-refused-and-data-{answer[:3]}",
            "EENVELOPE/mailbox_unknown P",
            ("RCPT", "550 5.1.1 no such user"),
            ("DATA", answer),
            never=[BODY],
            check=shows(handover=False, phase=Phase.RCPT),
        )
        for answer in (
            "354 go on",
            "250 fine",
            "503 5.5.1 no recipients",
            "451 4.3.0 later",
            "354 go on\n554 5.5.1 no recipients",
        )
    ),
    row("33-rcpt-5.2.1-disabled", "EENVELOPE/recipient_refused P", ("RCPT", "550 5.2.1 mailbox disabled")),
    row("33-rcpt-554-policy", "EENVELOPE/recipient_refused P", ("RCPT", "554 5.7.0 policy")),
    row("33-rcpt-552-means-452", "EENVELOPE/recipient_deferred T", ("RCPT", "552 5.2.2 too many recipients")),
    row(
        "33-the-enhanced-code-contradicts", "EENVELOPE/mailbox_unknown P", ("RCPT", "550 2.1.5 odd"), check=bears(None)
    ),
    row(
        "33-the-enhanced-code-is-kept",
        "EENVELOPE/mailbox_unknown P",
        ("RCPT", "550-5.1.1 no\n550 5.1.1 such user"),
        reply="550 5.1.1 no 5.1.1 such user",
        check=bears("5.1.1"),
    ),
    *(
        row(
            f"33b-{name}",
            "EENVELOPE/relay_denied C",
            ("RCPT", reply),
            claim=people(ALICE, BOB),
            hint=["127.0.0.1", "mynetworks", "receive connector"],
            reply=reply,
            phase=Phase.RCPT,
            never=[BODY],
        )
        for name, reply in ACCESS_REFUSALS.items()
    ),
    row(
        "33b-after-a-login",
        "EENVELOPE/relay_denied C",
        ("RCPT", "554 5.7.1 Relay access denied"),
        relay=with_auth(),
        settings=LOGGING_IN,
        hint=["127.0.0.1"],
        check=shows(auth="PLAIN"),
    ),
    *(
        row(
            f"33b-of-one-recipient-{reply[:3]}",
            {ALICE: "sent", BOB: f"EENVELOPE/relay_denied {cls}"},
            ("RCPT", reply, BOB),
            claim=people(ALICE, BOB),
        )
        for reply, cls in [("554 5.7.1 Relay access denied", "P"), ("454 4.7.1 Relay access denied", "T")]
    ),
    row(
        "33b-of-one-and-the-other-unknown",
        {ALICE: "EENVELOPE/mailbox_unknown P", BOB: "EENVELOPE/relay_denied P"},
        ("RCPT", "550 5.1.1 no such user", ALICE),
        ("RCPT", "554 5.7.1 Relay access denied", BOB),
        claim=people(ALICE, BOB),
    ),
    row(
        "34-every-rcpt-refused-some-for-now",
        {
            ALICE: "EENVELOPE/mailbox_unknown P",
            BOB: "EENVELOPE/recipient_deferred T",
            EVE: "EENVELOPE/recipient_refused P",
        },
        ("RCPT", "550 5.1.1 no such user", ALICE),
        ("RCPT", "450 4.2.1 mailbox busy", BOB),
        ("RCPT", "550 5.2.1 mailbox disabled", EVE),
        claim=people(ALICE, BOB, EVE),
        never=[BODY],
        phase=Phase.RCPT,
    ),
    *(
        row(
            f"34-every-rcpt-{code}",
            "EENVELOPE/recipient_deferred T",
            ("RCPT", f"{code} 4.2.0 later"),
            claim=people(ALICE, BOB),
            never=[BODY],
        )
        for code in (450, 451, 452, 499)
    ),
    *(
        row(
            f"47-greylisted-at-{verb.lower()}-{code}",
            "EENVELOPE/greylisted T",
            (verb, f"{code} {words}"),
            reply=f"{code} {words}",
            hint=["nothing to change"],
            check=bears("4.7.1" if words.startswith("4.7.1") else None),
        )
        for verb, code, words in (
            ("RCPT", 450, "4.7.1 Greylisted, see http://example.org/greylist"),
            ("RCPT", 451, "4.7.1 Please try again in 300 seconds"),
            ("RCPT", 450, "Recipient address rejected: Greylisted for 5 minutes"),
            ("MAIL", 451, "4.7.1 Greylisting in action, please come back in 00:05:00"),
            ("DATA", 451, "4.7.1 greylisted"),
            ("CONTENT", 451, "4.7.1 Greylisting in action, please come back later"),
        )
    ),
    *(
        row(
            f"48-rate-limited-at-{verb.lower()}-{code}",
            "ECONNECTION/rate_limited T",
            (verb, f"{code} {words}"),
            reply=f"{code} {words}",
            hint=["max_connections = ", *(['rate = "30/m"'] if "mail" in words or "message" in words else [])],
        )
        for verb, code, words in (
            ("MAIL", 432, "4.3.2 STOREDRV.ClientSubmit; sender thread limit exceeded"),
            ("MAIL", 421, "4.3.2 too many connections"),
            ("RCPT", 421, "4.7.0 Error: too many connections from 192.0.2.1"),
            ("RCPT", 450, "4.7.1 Error: too much mail from 192.0.2.1"),
            ("CONTENT", 451, "4.7.1 message rate limit reached, please try again later"),
        )
    ),
    row(
        "35-some-rcpt-refused",
        {ALICE: "EENVELOPE/mailbox_unknown P", BOB: "sent", EVE: "EENVELOPE/recipient_deferred T"},
        ("RCPT", "550 5.1.1 no such user", ALICE),
        ("RCPT", "452 4.2.2 over quota", EVE),
        claim=people(ALICE, BOB, EVE),
    ),
    row(
        "35-some-rcpt-refused-and-the-content-too",
        {ALICE: "EENVELOPE/mailbox_unknown P", BOB: "EMESSAGE/content_deferred T"},
        ("RCPT", "550 5.1.1 no such user", ALICE),
        ("CONTENT", "451 4.3.0 later"),
        claim=people(ALICE, BOB),
    ),
    row(
        "35-some-rcpt-refused-and-the-verdict-lost",
        {ALICE: "EENVELOPE/mailbox_unknown P", BOB: "EINDOUBT/outcome_unknown U"},
        ("RCPT", "550 5.1.1 no such user", ALICE),
        ("CONTENT", Close()),
        claim=people(ALICE, BOB),
    ),
    row(
        "35-some-rcpt-refused-then-dropped",
        {ALICE: "EENVELOPE/mailbox_unknown P", BOB: "ECONNECTION/connection_lost T"},
        ("RCPT", "550 5.1.1 no such user", ALICE),
        ("RCPT", Close(), BOB),
        claim=people(ALICE, BOB),
        never=[BODY],
    ),
    *(
        row(
            f"36-data-{reply[:3]}-{how}",
            says,
            ("DATA", (reply, Close()) if how == "and-closed" else reply),
            reply=reply,
            phase=Phase.DATA,
            never=[BODY],
        )
        for reply, says in [
            ("451 4.3.0 later", "EMESSAGE/data_deferred T"),
            ("452 4.3.1 full", "EMESSAGE/data_deferred T"),
            ("550 5.7.1 go away", "EMESSAGE/data_refused P"),
            ("554 5.5.1 no", "EMESSAGE/data_refused P"),
            ("421 4.3.2 bye", "ECONNECTION/service_unavailable T"),
        ]
        for how in ("and-on", "and-closed")
    ),
    *(
        row(
            f"{37 if reply[0] == '5' else 38}-content-{reply[:3]}-{how}",
            says,
            ("CONTENT", (reply, Close()) if how == "and-closed" else reply),
            reply=reply,
            phase=Phase.CONTENT,
            claim=people(ALICE, BOB),
            check=shows(handover=True),
        )
        for reply, says in [
            ("550 5.7.1 spam", "EMESSAGE/content_rejected P"),
            ("554 5.6.0 no", "EMESSAGE/content_rejected P"),
            ("552 5.3.4 too big", "ETOOLARGE/message_too_large P"),
            ("451 4.3.0 later", "EMESSAGE/content_deferred T"),
            ("452 4.3.1 full", "EMESSAGE/content_deferred T"),
            ("421 4.3.2 bye", "EMESSAGE/content_deferred T"),
        ]
        for how in ("and-on", "and-closed")
    ),
    *(
        row(f"37-content-{code}-is-taken", "sent", ("CONTENT", f"{code} 2.0.0 fine"))
        for code in (200, 250, 251, 252, 299)
    ),
    row("37-taken-and-closed", "sent", ("CONTENT", ("250 2.0.0 fine", Close()))),
    row("37-taken-and-reset", "sent", ("CONTENT", (Split("250 2.0.0 fine", at=20), Reset()))),
    row("37-taken-with-a-contradiction", "sent", ("CONTENT", "250 5.1.1 fine")),
    *(
        row(
            f"39-421-at-rcpt{name}",
            "ECONNECTION/service_unavailable T",
            ("RCPT", ("421 4.3.2 shutting down", Close()) if closed else "421 4.3.2 shutting down", match),
            claim=people(ALICE, BOB),
            reply="421 4.3.2 shutting down",
            phase=Phase.RCPT,
            never=[BODY],
        )
        for name, closed, match in [
            ("", False, ""),
            ("-and-closed", True, ""),
            ("-the-second", False, BOB),
            ("-the-second-and-closed", True, BOB),
        ]
    ),
    *(
        row(
            f"40-{how}-at-{verb.lower()}",
            "ECONNECTION/connection_lost T",
            (verb, answer),
            never=[BODY],
            check=shows(handover=False),
        )
        for how, answer in CUTS_AND_HALVES.items()
        for verb in ("MAIL", "RCPT", "DATA")
    ),
    *(
        row(
            f"40-{how}-in-mid-content",
            "ECONNECTION/connection_lost T",
            ("DATA", ("354 go", Hear(SOME_OF_IT), cut)),
            relay=offering("PIPELINING"),
            claim=TO_BE_BIG,
            phase=Phase.CONTENT,
            check=was_given_up,
        )
        for how, cut in CUTS.items()
    ),
    *(
        row(
            f"41-{how}-after-the-dot",
            "EINDOUBT/outcome_unknown U",
            ("CONTENT", answer),
            claim=people(ALICE, BOB),
            hint=["Message-ID"],
            phase=Phase.CONTENT,
            check=shows(handover=True),
        )
        for how, answer in CUTS_AND_HALVES.items()
    ),
    row(
        "41-closed-after-the-dot-under-tls",
        "EINDOUBT/outcome_unknown U",
        ("CONTENT", Close(close_notify=False)),
        relay=over_tls(STARTTLS),
        settings={"tls": STARTTLS},
    ),
    row(
        "42-no-reply-after-the-dot",
        "EINDOUBT/outcome_unknown U",
        ("CONTENT", Stall()),
        settings={"timeouts": timeouts(content=SHORT)},
        hint=["Message-ID"],
        phase=Phase.CONTENT,
    ),
    *(
        row(
            f"43-no-reply-to-{verb.lower()}",
            "ETIMEDOUT/reply_timeout T",
            (verb, Stall()),
            settings={"timeouts": timeouts(**{verb.lower(): SHORT})},
            hint=["timeouts"],
            phase=Phase(verb.lower()),
            never=[BODY],
            check=shows(handover=False),
        )
        for verb in ("MAIL", "RCPT", "DATA")
    ),
    row(
        "43-the-relay-stops-reading",
        "ETIMEDOUT/reply_timeout T",
        ("DATA", ("354 go", StopReading())),
        settings={"timeouts": timeouts(block=SHORT)},
        relay=offering("PIPELINING"),
        claim=TO_BE_BIG,
        phase=Phase.CONTENT,
        check=was_given_up,
    ),
    *(
        row(
            f"45-{what}-at-{verb.lower()}",
            f"EPROTOCOL/malformed_reply {'U' if verb == 'CONTENT' else 'T'}",
            (verb, (said, Stall()) if isinstance(said, bytes) and not said.endswith(b"\n") else said),
            phase=Phase(verb.lower()),
        )
        for verb in ("MAIL", "RCPT", "DATA", "CONTENT")
        for what, said in {
            **NOT_REPLIES,
            "no-blank": "250Ok",
            "codes-that-differ": "250-first\n550 second",
            "http": "HTTP/1.1 200 OK",
        }.items()
    ),
    *(
        row(f"45-{code}-at-{verb.lower()}", says, (verb, f"{code} odd"))
        for verb, by_code in {
            "MAIL": {
                299: "sent",
                399: "EPROTOCOL/unexpected_reply T",
                354: "EPROTOCOL/unexpected_reply T",
                499: "EENVELOPE/sender_deferred T",
                599: "EENVELOPE/sender_refused P",
            },
            "RCPT": {
                299: "sent",
                399: "EPROTOCOL/unexpected_reply T",
                354: "EPROTOCOL/unexpected_reply T",
                499: "EENVELOPE/recipient_deferred T",
                599: "EENVELOPE/recipient_refused P",
            },
            "DATA": {
                250: "EPROTOCOL/unexpected_reply T",
                299: "EPROTOCOL/unexpected_reply T",
                399: "EPROTOCOL/unexpected_reply T",
                499: "EMESSAGE/data_deferred T",
                599: "EMESSAGE/data_refused P",
            },
            "CONTENT": {
                299: "sent",
                354: "EPROTOCOL/unexpected_reply U",
                399: "EPROTOCOL/unexpected_reply U",
                499: "EMESSAGE/content_deferred T",
                599: "EMESSAGE/content_rejected P",
            },
        }.items()
        for code, says in by_code.items()
    ),
    *(
        row(f"45-{what}-at-{verb.lower()}", "sent", (verb, answer))
        for verb, code in {"MAIL": 250, "RCPT": 250, "DATA": 354, "CONTENT": 250}.items()
        for what, answer in readable(code).items()
        if (verb, what) != ("DATA", "many-lines")  # the relay takes a second line for an early verdict
    ),
    *(
        row(
            f"45-two-replies-to-{verb.lower()}-{surplus[:3]}",
            "EPROTOCOL/unexpected_reply T",
            (verb, f"250 2.0.0 Ok\n{surplus}"),
            never=[BODY],
            check=was_given_up,
        )
        for verb in ("MAIL", "RCPT")
        for surplus in ("250 2.0.0 Ok", "550 5.1.1 of whom?", "450 4.2.0 of whom?", "354 go")
    ),
    *(
        row(
            f"45-354-and-{surplus[:3]}-together",
            "EPROTOCOL/unexpected_reply T",
            ("DATA", f"354 go\n{surplus}"),
            never=[BODY],
            check=was_given_up,
        )
        for surplus in ("250 2.0.0 Ok", "354 go")
    ),
    *(
        row(
            f"45-354-and-{reply[:3]}-together{'-and-closed' if closed else ''}",
            says,
            ("DATA", (f"354 go\n{reply}", Close()) if closed else f"354 go\n{reply}"),
            reply=reply,
            phase=Phase.CONTENT,
            never=[BODY],
            check=was_given_up,
        )
        for reply, says in [
            ("552 5.3.4 too big", "ETOOLARGE/message_too_large P"),
            ("550 5.7.1 spam", "EMESSAGE/content_rejected P"),
            ("451 4.3.0 later", "EMESSAGE/content_deferred T"),
            ("421 4.3.2 bye", "EMESSAGE/content_deferred T"),
        ]
        for closed in (False, True)
    ),
    *(
        row(
            f"45-{reply[:3]}-in-mid-content-and-{how}",
            says,
            ("DATA", ("354 go", Hear(SOME_OF_IT), reply, *then)),
            reply=reply,
            relay=offering("PIPELINING"),
            claim=TO_BE_BIG,
            phase=Phase.CONTENT,
            check=was_given_up,
        )
        for reply, says in [
            ("552 5.3.4 too big", "ETOOLARGE/message_too_large P"),
            ("451 4.3.0 later", "EMESSAGE/content_deferred T"),
        ]
        for how, then in AFTER_AN_EARLY_VERDICT.items()
    ),
    row("45-two-replies-to-the-content", "sent", ("CONTENT", "250 2.0.0 queued\n250 2.0.0 again")),
    row(
        "45-a-refusal-and-a-surplus-reply-to-the-content",
        "EMESSAGE/content_rejected P",
        ("CONTENT", "550 5.7.1 spam\n250 2.0.0 queued"),
    ),
    row(
        "46-non-ascii-local-part",
        "sent",
        claim=make_claim("jürgen@theirs.test", smtputf8=True),
        wire=EHLO
        + MAIL.replace(b"\r\n", b" SMTPUTF8 BODY=8BITMIME\r\n")
        + "RCPT TO:<jürgen@theirs.test>\r\n".encode()
        + b"DATA\r\n"
        + CONTENT
        + b".\r\n"
        + QUIT,
    ),
    row(
        "46-non-ascii-local-part-and-no-smtputf8",
        "EENVELOPE/smtputf8_not_offered P",
        relay=offering("PIPELINING", "8BITMIME"),
        claim=make_claim("jürgen@theirs.test", smtputf8=True),
        hint=["ASCII"],
        wire=EHLO + QUIT,
    ),
    row(
        "46-one-non-ascii-local-part-among-others-and-no-smtputf8",
        {ALICE: "sent", "jürgen@theirs.test": "EENVELOPE/smtputf8_not_offered P", EVE: "EENVELOPE/mailbox_unknown P"},
        ("RCPT", "550 5.1.1 no such user", "eve"),
        relay=offering("PIPELINING"),
        claim=make_claim(ALICE, "jürgen@theirs.test", EVE, smtputf8=True),
        never=["jürgen".encode(), b"SMTPUTF8"],
    ),
    row(
        "46-one-non-ascii-local-part-and-the-others-refused",
        {"jürgen@theirs.test": "EENVELOPE/smtputf8_not_offered P", BOB: "EENVELOPE/relay_denied C"},
        ("RCPT", "554 5.7.1 Relay access denied"),
        relay=offering("PIPELINING"),
        claim=make_claim("jürgen@theirs.test", BOB, smtputf8=True),
    ),
    row(
        "46-non-ascii-sender-and-no-smtputf8",
        "EENVELOPE/smtputf8_not_offered P",
        relay=offering("PIPELINING"),
        claim=make_claim(BOB, sender="jürgen@ours.test", smtputf8=True),
        never=[b"MAIL"],
    ),
    row(
        "46-idn-domain",
        "sent",
        relay=offering("PIPELINING"),
        claim=make_claim(parse_address("bob@bücher.example").addr_spec),
        wire=EHLO
        + b"MAIL FROM:<ann@ours.test>\r\nRCPT TO:<bob@xn--bcher-kva.example>\r\nDATA\r\n"
        + CONTENT
        + b".\r\n"
        + QUIT,
    ),
]


def step_by_step(row: Row) -> Row:
    """The same with a relay that knows no PIPELINING."""

    def relay() -> Relay:
        made = row.relay()
        made.extensions = [extension for extension in made.extensions if extension != "PIPELINING"]
        return made

    return replace(row, id=f"{row.id}-step-by-step", relay=relay)


OPENINGS = [
    *OPENING,
    *LOGINS,
    *EXCHANGES,
    *UNKNOWN_IN_THE_OPENING,
    *OUT_OF_TURN_IN_THE_OPENING,
    *SURPLUS_IN_THE_OPENING,
    *ODD_BUT_GOOD,
]
TABLE = [*OPENINGS, *FROM_MAIL, *map(step_by_step, FROM_MAIL)]


@pytest.mark.parametrize("row", [pytest.param(row, id=row.id) for row in TABLE])
@on_both_loops
async def test_the_attempt_says_what_the_table_says(row: Row) -> None:
    async with row.relay() as relay:
        for verb, answer, *match in row.script:
            relay.on(verb, answer, match="".join(match))
        said = row.settings(relay) if callable(row.settings) else row.settings
        with (row.place or where_it_is)(relay) as resolve:
            seen = Seen(relay, await attempt(relay, row.claim, resolve=resolve, **said))
        if not any(isinstance(step, StopReading) for _, answer, *_ in row.script for step in steps(answer)):
            async with asyncio.timeout(1):
                await relay.closed(relay.connections)
        says = row.says if isinstance(row.says, Mapping) else dict.fromkeys(row.claim.pending, row.says)
        assert {address: in_words(outcome) for address, outcome in seen.outcomes.items()} == says
        holds_always(row.claim, seen)
        assert seen.attempt.handover == reached(row.claim, seen)
        for failure in seen.failures:
            assert [word for word in row.hint if word not in failure.hint] == []
            assert row.reply in (None, failure.reply)
            assert row.phase in (None, failure.phase)
        assert row.wire in (None, seen.wire)
        assert [bytes_ for bytes_ in row.never if bytes_ in seen.wire] == []
        row.check(seen)


@contextmanager
def where_it_is(relay: Relay) -> Iterator[Resolve]:
    yield leading_to(relay.port, relay.host)


def steps(answer: Answer) -> Sequence[Step]:
    return answer if isinstance(answer, tuple | list) else (answer,)


def holds_always(claim: Claim, seen: Seen) -> None:
    """What is true of every attempt, whatever the relay did."""
    attempt, failures = seen.attempt, seen.failures
    for outcome in seen.outcomes.values():
        match outcome:
            case Sent():
                continue
            case Rejected(failure):
                classes = {"permanent"}
            case InDoubt(failure):
                classes = {"unknown"}
            case Deferred(failure):
                classes = {"temporary", "configuration"}
        assert failure.cls.value in classes
        assert failure.hint.endswith(".")
        assert 0 < len(failure.message) < 70_000
        assert failure.message.isprintable()
    assert (attempt.failure in failures) if failures else attempt.failure is None
    assert attempt.duration_ms is not None
    assert attempt.duration_ms < 1500, "it waited for a time-out that nobody expected"
    said = "\n".join(line for _, _, line in attempt.transcript)
    assert all(line.isprintable() for line in said.split("\n"))
    assert len(said) < 200_000
    everything = said + "".join(f"{failure.message}{failure.reply}{failure.hint}" for failure in failures)
    assert [secret for secret in SECRETS if secret in everything] == []
    assert BODY.decode() not in said
    holds_always_on_the_wire(claim, seen)


def holds_always_on_the_wire(claim: Claim, seen: Seen) -> None:
    sent_to = [address for address, outcome in seen.outcomes.items() if isinstance(outcome, Sent)]
    taken = [mail for mail in seen.relay.mails if mail.taken]
    if not any(isinstance(outcome, InDoubt) for outcome in seen.outcomes.values()):
        assert len(taken) == (1 if sent_to else 0)
    for mail in taken if sent_to else []:
        assert (mail.mail_from, mail.rcpt_to, mail.content) == (claim.snapshot.sender, sent_to, claim.content)
    assert seen.attempt.handover or not reached(claim, seen)
    if seen.attempt.phase is not Phase.CONTENT:
        assert BODY not in seen.wire
    assert seen.relay.connections <= 2
    assert seen.verbs.count("AUTH") <= 1  # one wrong password is one failed login


def reached(claim: Claim, seen: Seen) -> bool:
    """Whether the content's end came to the relay."""
    return (claim.content or b"") + b".\r\n" in seen.wire


# --- what a hint says to set -----------------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True)
class Way:
    """A relay and a profile that do not go together, and the setting by which the hint puts that right."""

    relay: Callable[[], Relay]
    settings: Settings
    set: str
    script: Sequence[Script] = ()


WAYS_OUT: Mapping[str, Way] = {
    **{
        f"{number}-{certificate}-{name}": Way(
            relay=over_tls(mode, certificate), settings={"tls": mode}, set="cert_sha256"
        )
        for number, certificate in [("14", "untrusted"), ("14", "self_signed"), ("15", "expired")]
        for name, mode in VERIFYING.items()
    },
    **{
        f"14c-another-certificate-{name}": Way(
            relay=over_tls(mode), settings={"tls": mode, "cert_sha256": "ab" * 32}, set="cert_sha256"
        )
        for name, mode in VERIFYING.items()
    },
    "16-wrong-name": Way(relay=over_tls(STARTTLS, "wrong_name"), settings={"tls": STARTTLS}, set="server_name"),
    **{
        f"18b-only-tls-{speaks}-and-at-least-{least}": Way(
            relay=over_tls(STARTTLS, f"tls{speaks.replace('.', '')}_only"),
            settings={"tls": STARTTLS, "min_tls": TlsVersion(least)},
            set="min_tls tls_security_level",
        )
        for speaks, least in [("1.0", "1.1"), ("1.0", "1.2"), ("1.0", "1.3"), ("1.2", "1.3")]
    },
    **{
        f"18e-{certificate}-{how}-{name}": Way(
            relay=over_old_tls(mode, certificate, closes_without_alert=how == "closing"),
            settings={"tls": mode},
            set="tls_security_level",
        )
        for certificate in ("short_dh", "rsa_cipher_only", "sha1_cipher_only", "short_key")
        for how in ("alert", "closing")
        for name, mode in VERIFYING.items()
    },
    "14d-without-its-intermediate": Way(
        relay=over_tls(STARTTLS, "without_intermediate"), settings={"tls": STARTTLS}, set="cert_sha256"
    ),
    "19-implicit-against-a-plain-port": Way(relay=over_tls(STARTTLS), settings={"tls": IMPLICIT}, set="tls"),
    "20-starttls-against-implicit-tls": Way(
        relay=over_tls(IMPLICIT), settings={"tls": STARTTLS, "timeouts": timeouts(greeting=SHORT)}, set="tls"
    ),
    "23-no-cram-md5-though-it-is-offered": Way(
        relay=with_auth("CRAM-MD5", "PLAIN", auth_required=True),
        script=[("AUTH2", "535 5.7.8 authentication failed")],
        settings=LOGGING_IN,
        set="auth",
    ),
    "25-504-to-cram-md5": Way(
        relay=with_auth("CRAM-MD5", "PLAIN", auth_required=True),
        script=[("AUTH", "504 5.5.4 Unrecognized authentication type", "CRAM-MD5")],
        settings=LOGGING_IN,
        set="auth",
    ),
    "25-504-to-plain": Way(
        relay=with_auth("PLAIN", "LOGIN", auth_required=True),
        script=[("AUTH", "504 5.5.4 Unrecognized authentication type", "PLAIN")],
        settings=LOGGING_IN,
        set="auth",
    ),
    "25-pinned-mechanism-not-offered": Way(
        relay=with_auth("LOGIN", auth_required=True), settings={"auth": AuthMode.PLAIN, **LOGGING_IN}, set="auth"
    ),
}


@pytest.mark.parametrize("way", WAYS_OUT.values(), ids=WAYS_OUT)
async def test_what_the_hint_says_to_set_is_then_sent(way: Way) -> None:
    async with way.relay() as relay:
        for verb, answer, *match in way.script:
            relay.on(verb, answer, match="".join(match))
        tried, settings = await attempt(relay, **way.settings), way.settings
        assert tried.attempt.failure is not None
        for _ in range(2):  # from TLS 1.3 down to 1.0 it is two steps
            if tried.attempt.failure is not None:
                settings = as_hinted(way.set, settings, tried.attempt.failure)
                tried = await attempt(relay, **settings)
        assert tried.in_words == "sent"


# --- situations that need more than a row ----------------------------------------------------------------


@pytest.mark.parametrize("port", [25, 465, 587, 2525])
@pytest.mark.parametrize("tls", [None, TlsMode.NONE, TlsMode.OPPORTUNISTIC])
def test_22_without_credentials_no_profile_logs_in_on_whatever_port(port: int, tls: TlsMode | None) -> None:
    for username, password in ((None, None), ("", ""), (None, ""), ("", None)):
        profile, warnings = resolve_profile(
            ProfileFacts(
                name="relay",
                dialect=Dialect.ENVIRONMENT,
                host="mail.test",
                port=port,
                tls=tls,
                username=username,
                password=password,
            )
        )
        assert (profile.wants_login, warnings) == (False, [])


@pytest.mark.parametrize("extensions", [EXTENSIONS, EXTENSIONS[1:]], ids=["pipelined", "step-by-step"])
@on_both_loops
async def test_35_the_retry_goes_to_the_deferred_recipients_only(extensions: Sequence[str]) -> None:
    async with Relay(extensions=extensions) as relay:
        relay.on("RCPT", "550 5.1.1 no such user", match=ALICE)
        relay.on("RCPT", "452 4.2.2 over quota", match=EVE, times=1)
        claim = people(ALICE, BOB, EVE)

        outcomes, _ = await attempt(relay, claim)
        schedule = Schedule.parse(DEFAULT_SCHEDULE)
        step = next_step(claim, outcomes, schedule=schedule, now=NOW, jitter=1.0)
        assert step == RetryAt(NOW + timedelta(seconds=30))
        end = ending(claim, outcomes, step)
        assert end.state is MessageState.DEFERRED
        assert [r.state for r in end.recipients] == [
            RecipientState.REJECTED,
            RecipientState.SENT,
            RecipientState.PENDING,
        ]
        assert end.failure is not None
        assert end.failure.reply == "452 4.2.2 over quota"

        again = next_claim(claim, end)
        assert again.pending == (EVE,)
        outcomes, _ = await attempt(relay, again)
        step = next_step(again, outcomes, schedule=schedule, now=NOW, jitter=1.0)
        assert isinstance(step, Done)
        assert ending(again, outcomes, step).state is MessageState.PARTIAL
        assert [mail.rcpt_to for mail in relay.mails] == [[BOB], [EVE]]
        assert relay.sessions[1].commands.count(f"RCPT TO:<{EVE}>") == 1
        assert f"RCPT TO:<{BOB}>" not in relay.sessions[1].commands


@pytest.mark.parametrize(
    ("verb", "phase", "settings"),
    [
        pytest.param("EHLO", "ehlo", Settings(), id="ehlo"),
        pytest.param("AUTH", "auth", LOGGING_IN, id="auth"),
        pytest.param("MAIL", "mail", Settings(), id="mail"),
        pytest.param("DATA", "data", Settings(), id="data"),
        pytest.param("CONTENT", "content", Settings(), id="content"),
    ],
)
@on_both_loops
async def test_43_a_reply_that_drips_in_does_not_put_its_deadline_off(
    verb: str, phase: str, settings: Settings
) -> None:
    """Each byte comes well within the time-out, and all of them would need ten times as long."""
    loop = asyncio.get_running_loop()
    drops = [asyncio.Event() for _ in range(40)]
    for number, drop in enumerate(drops, start=1):
        loop.call_later(number * SHORT / 4, drop.set)
    async with Relay(auth=("PLAIN",)) as relay:
        relay.on(verb, [b"250-x\r\n", *(step for drop in drops for step in (Wait(drop), b"250-x\r\n"))])
        said: Settings = {"timeouts": timeouts(**{phase: SHORT}), **settings}
        outcomes, seen = await attempt(relay, **said)
    expected = "EINDOUBT/outcome_unknown U" if phase == "content" else "ETIMEDOUT/reply_timeout T"
    assert [in_words(outcome) for outcome in outcomes.values()] == [expected]
    assert seen.phase == phase
    assert seen.phases[phase] < SHORT * 1000 * 7


@pytest.mark.parametrize(("mechanism", "verb"), [("PLAIN", "AUTH"), ("CRAM-MD5", "AUTH2")])
@on_both_loops
async def test_29_a_relay_that_holds_its_answer_to_a_login_back_is_waited_for(mechanism: str, verb: str) -> None:
    """Many do so with a wrong password for 30 s, longer than a relay may take to greet."""
    answer = asyncio.Event()
    async with Relay(auth=(mechanism,), auth_required=True) as relay:
        relay.on(verb, (Wait(answer), "235 2.7.0 in"))
        asyncio.get_running_loop().call_later(4 * SHORT, answer.set)
        others = Timeouts(*[3 * SHORT] * len(Timeouts.__dataclass_fields__))
        said: Settings = {"timeouts": replace(others, auth=LONG), **LOGGING_IN}
        outcomes, seen = await attempt(relay, **said)
    assert [in_words(outcome) for outcome in outcomes.values()] == ["sent"]
    assert seen.phases["auth"] > 3 * SHORT * 1000


REPLIES = {
    "GREETING": "220-relay.test ESMTP\n220 ready",
    "EHLO": OFFERS,
    "MAIL": "250-2.1.0 sender\n250 2.1.0 Ok",
    "RCPT": "250 2.1.5 Ok",
    "DATA": "354 go",
    "CONTENT": "250-2.0.0 queued\n250 2.0.0 as 4711",
}


@settings(max_examples=150, deadline=None, derandomize=True, database=None)
@given(
    cuts=st.fixed_dictionaries({verb: st.integers(0, len(said) + 4) for verb, said in REPLIES.items()}),
    pipelined=st.booleans(),
)
def test_45_replies_split_at_any_byte_say_the_same(cuts: Mapping[str, int], pipelined: bool) -> None:
    async def send() -> None:
        async with Relay() as relay:
            for verb, said in REPLIES.items():
                relay.on(verb, Split(said if pipelined else said.replace("250-PIPELINING\n", ""), at=cuts[verb]))
            outcomes, seen = await attempt(relay)
            await relay.closed()
            assert [in_words(outcome) for outcome in outcomes.values()] == ["sent"]
            assert relay.sessions[0].wire == EHLO + SENDING + QUIT
            assert seen.verdict is not None
            assert str(seen.verdict) == "250 2.0.0 queued 2.0.0 as 4711"

    asyncio.run(send())
