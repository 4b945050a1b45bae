"""Whatever the library below raises while a connection opens, an attempt ends in a failure with a hint.

Every exception class of aiosmtplib, and every OSError and SSLError of Python's own, is raised by each of the
calls in turn that an opening makes, against a relay that behaves. Nothing may escape, nobody may be rejected for
good by it, and what nobody has foreseen is temporary.
"""

import asyncio
import builtins
import inspect
import socket
import ssl
from collections.abc import Awaitable, Callable, Iterable
from typing import Any

import aiosmtplib
import pytest

from app.mail.codes import CODE_OF, Reason
from app.mail.outcome import Deferred, Failure, FailureClass, Phase
from app.mail.profile import TlsMode
from app.mail.reply import Reply
from app.smtp import classify
from app.smtp.network import SocketAddress
from app.smtp.wire import Breach, Lost, Malformed, TimedOut, Unexpected
from tests.support.factories import Settings, Tried, attempt, make_attempt, make_profile
from tests.support.relay import Relay
from tests.support.tls import certificates

LOGGING_IN: Settings = {"username": "bot", "password": "secret"}


def family(root: type[Exception]) -> list[type[Exception]]:
    """Give a class and all below it that Python itself or aiosmtplib defines."""
    found = {root: None}
    for child in root.__subclasses__():
        found |= dict.fromkeys(family(child))
    homes = ("builtins", "socket", "ssl", "asyncio", "aiosmtplib")
    return [cls for cls in found if cls.__module__.partition(".")[0] in homes]


def made(cls: type[Exception]) -> list[Exception]:
    """Make one of a class, as its library would; of a class that carries a reply one for each first digit."""
    if issubclass(cls, aiosmtplib.SMTPRecipientsRefused):
        return [cls([aiosmtplib.SMTPRecipientRefused(550, "no", "bob@theirs.test")])]
    if issubclass(cls, aiosmtplib.SMTPResponseException):
        more = ["bob@theirs.test"] * (len(inspect.signature(cls).parameters) - 2)
        return [cls(code, "odd", *more) for code in (-1, 0, 150, 250, 299, 354, 421, 454, 499, 535, 554, 599, 600, 999)]
    if issubclass(cls, aiosmtplib.SMTPException):
        return [cls("odd")]
    if issubclass(cls, OSError):
        return [cls(), cls("odd"), cls(71, "odd")]
    return [cls("odd")]


def named(errors: Iterable[Exception]) -> list[object]:
    return [pytest.param(error, id=f"{type(error).__name__}{error.args}".replace(" ", "")) for error in errors]


AIOSMTPLIB = [error for cls in family(aiosmtplib.SMTPException) for error in made(cls)]
SYSTEM = [error for cls in family(OSError) if cls not in family(aiosmtplib.SMTPException) for error in made(cls)]
TLS = [error for error in SYSTEM if isinstance(error, ssl.SSLError)]
BREACHES: list[type[Breach]] = [Breach, *Breach.__subclasses__()]
CALLS = ("connect", "ehlo", "helo", "starttls")


def raising(error: Exception) -> Callable[..., Awaitable[object]]:
    """Return a method that raises; a client's socket is closed, as aiosmtplib does when it cannot connect."""

    async def call(*args: Any, **_: Any) -> object:
        if args and isinstance(args[0], aiosmtplib.SMTP) and args[0].sock is not None and not args[0].is_connected:
            args[0].sock.close()
        raise error

    return call


def the_failure(tried: Tried) -> Failure:
    """Check that it is a deferral as it should be, and give what it says."""
    (outcome,) = tried.outcomes.values()
    assert isinstance(outcome, Deferred)
    check(outcome.failure)
    assert outcome.failure is tried.attempt.failure
    assert not tried.attempt.handover
    return outcome.failure


def check(failure: Failure) -> None:
    assert failure.cls in (FailureClass.TEMPORARY, FailureClass.CONFIGURATION)
    assert failure.code is CODE_OF[failure.reason]
    assert failure.hint.endswith(".")
    assert failure.message
    assert failure.message.isprintable()


def test_the_families_are_whole() -> None:
    assert {name for name in aiosmtplib.__all__ if name.startswith("SMTP") and name != "SMTP"} >= {
        cls.__name__ for cls in family(aiosmtplib.SMTPException)
    } - {"SMTPConnectResponseError"}
    assert len(family(aiosmtplib.SMTPException)) >= 15
    assert {ssl.SSLCertVerificationError, ssl.SSLEOFError, socket.gaierror, socket.herror} <= set(family(OSError))
    of_python = {cls for cls in vars(builtins).values() if inspect.isclass(cls) and issubclass(cls, OSError)}
    assert of_python <= set(family(OSError))


@pytest.mark.parametrize("call", CALLS)
@pytest.mark.parametrize("error", named([*AIOSMTPLIB, *SYSTEM]))
async def test_what_a_call_of_the_opening_raises_is_a_failure_with_a_hint(
    call: str, error: Exception, monkeypatch: pytest.MonkeyPatch
) -> None:
    said: Settings = {**LOGGING_IN, "tls": TlsMode.STARTTLS}
    async with Relay(tls=certificates().server(), auth=("PLAIN",)) as relay:
        if call == "helo":
            relay.on("EHLO", "502 5.5.1 what?")
            said = {}
        monkeypatch.setattr(aiosmtplib.SMTP, call, raising(error))
        tried = await attempt(relay, **said)
        monkeypatch.undo()
        failure = the_failure(tried)
        assert relay.mails == []
        if not isinstance(error, ssl.SSLError | aiosmtplib.SMTPResponseException):
            assert failure.cls is FailureClass.TEMPORARY


@pytest.mark.parametrize("mode", [TlsMode.STARTTLS, TlsMode.IMPLICIT])
@pytest.mark.parametrize("error", named(SYSTEM))
async def test_what_a_handshake_raises_is_a_failure_with_a_hint(
    mode: TlsMode, error: OSError, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As aiosmtplib hands it on: wrapped where the connection begins with TLS."""
    async with Relay(tls=certificates().server(), implicit=mode is TlsMode.IMPLICIT) as relay:
        if mode is TlsMode.IMPLICIT:
            wrapped: Exception = aiosmtplib.SMTPConnectError(f"Error connecting to localhost: {error}")
            wrapped.__cause__ = error
            monkeypatch.setattr(aiosmtplib.SMTP, "connect", raising(wrapped))
        else:
            monkeypatch.setattr(aiosmtplib.SMTP, "starttls", raising(error))
        failure = the_failure(await attempt(relay, tls=mode))
        assert failure.phase in (Phase.TLS, Phase.STARTTLS)
        if not isinstance(error, ssl.SSLError):
            assert failure.cls is FailureClass.TEMPORARY


@pytest.mark.parametrize("error", named(TLS))
def test_a_tls_error_without_a_known_reason_is_temporary_unless_it_is_about_the_certificate(
    error: ssl.SSLError,
) -> None:
    failure = classify.tls(make_profile(tls=TlsMode.STARTTLS), error)
    check(failure)
    about_the_certificate = isinstance(error, ssl.SSLCertVerificationError)
    assert (failure.cls is FailureClass.CONFIGURATION) == about_the_certificate


@pytest.mark.parametrize(
    "error", named([*SYSTEM, UnicodeError("label too long"), UnicodeEncodeError("idna", "", 0, 1, "no")])
)
async def test_what_the_resolver_raises_is_a_failure_with_a_hint(error: Exception) -> None:
    async def resolve(_host: str, _port: int) -> list[SocketAddress]:
        raise error

    async with Relay() as relay:
        failure = the_failure(await attempt(relay, resolve=resolve))
        assert failure.phase is Phase.RESOLVE
        assert failure.cls is FailureClass.TEMPORARY


@pytest.mark.parametrize("error", named(error for error in SYSTEM if not isinstance(error, ssl.SSLError)))
async def test_what_connecting_raises_is_a_failure_with_a_hint(
    error: Exception, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with Relay() as relay:
        monkeypatch.setattr(asyncio.get_running_loop(), "sock_connect", raising(error))
        failure = the_failure(await attempt(relay))
        assert failure.phase is Phase.CONNECT
        assert failure.cls is FailureClass.TEMPORARY
        assert relay.connections == 0


@pytest.mark.parametrize(
    "error", named([OSError(24, "Too many open files"), OSError(97, "Address family not supported")])
)
async def test_a_socket_that_cannot_be_made_is_a_failure_with_a_hint(
    error: OSError, monkeypatch: pytest.MonkeyPatch
) -> None:
    def no_socket(*_: object, **__: object) -> None:
        raise error

    async with Relay() as relay:
        monkeypatch.setattr(socket, "socket", no_socket)
        tried = await attempt(relay)
        monkeypatch.undo()
        assert the_failure(tried).phase is Phase.CONNECT


@pytest.mark.parametrize("mode", [TlsMode.STARTTLS, TlsMode.IMPLICIT])
@pytest.mark.parametrize(
    "content", [None, "", "no certificate", "-----BEGIN CERTIFICATE-----\nx\n-----END CERTIFICATE-----\n"]
)
async def test_a_ca_file_that_cannot_be_read_any_more_is_the_profiles_failure(
    mode: TlsMode, content: str | None, tmp_path_factory: pytest.TempPathFactory
) -> None:
    ca_file = tmp_path_factory.mktemp("ca") / "ca.pem"
    if content is not None:
        ca_file.write_text(content)
    async with Relay(tls=certificates().server(), implicit=mode is TlsMode.IMPLICIT) as relay:
        failure = the_failure(await attempt(relay, tls=mode, ca_file=ca_file))
        assert failure.cls is FailureClass.CONFIGURATION
        assert "ca_file" in failure.hint
        assert "ca_file" in failure.message
        await relay.closed(relay.connections)
        assert relay.mails == []


@pytest.mark.parametrize("error", [ValueError("odd"), KeyError("odd"), RuntimeError("odd"), AssertionError(), Breach()])
@pytest.mark.parametrize("phase", list(Phase))
def test_what_nobody_foresaw_is_temporary_and_named(phase: Phase, error: Exception) -> None:
    failure = classify.unexpected(make_profile(), phase, error)
    check(failure)
    assert (failure.reason, failure.cls, failure.phase) == (Reason.UNEXPECTED, FailureClass.TEMPORARY, phase)
    assert type(error).__name__ in failure.message


@pytest.mark.parametrize("handed_over", [False, True])
@pytest.mark.parametrize("phase", [Phase.MAIL, Phase.RCPT, Phase.DATA, Phase.CONTENT])
@pytest.mark.parametrize("kind", BREACHES)
def test_a_break_is_in_doubt_if_and_only_if_the_end_was_handed_over(
    kind: type[Breach], phase: Phase, handed_over: bool
) -> None:
    assert set(BREACHES) >= {Lost, TimedOut, Malformed, Unexpected}
    failure = classify.breach(make_profile(), phase, kind("odd"), handed_over=handed_over)
    assert failure.cls is (FailureClass.UNKNOWN if handed_over else FailureClass.TEMPORARY)
    assert failure.code is CODE_OF[failure.reason]
    assert failure.hint.endswith(".")


@pytest.mark.parametrize("phase", [Phase.GREETING, Phase.EHLO, Phase.STARTTLS, Phase.AUTH])
def test_every_code_of_the_opening_is_a_failure_and_never_final_for_a_message(phase: Phase) -> None:
    for code in range(200, 600):
        failure = classify.opening(make_profile(), phase, Reply(code, ("odd",)))
        check(failure)
        assert failure.cls is FailureClass.TEMPORARY or code >= 500
        assert failure.smtp_code == code
        assert failure.reply == f"{code} odd"


@pytest.mark.parametrize("phase", [Phase.MAIL, Phase.RCPT, Phase.DATA, Phase.CONTENT])
def test_every_code_of_a_transaction_is_read_by_its_first_digit_unless_it_is_known(phase: Phase) -> None:
    """The whole table is in tests/unit/smtp/test_transaction_replies.py."""
    profile = make_profile()
    known = {
        (phase, 503): FailureClass.TEMPORARY,
        (Phase.RCPT, 552): FailureClass.TEMPORARY,  # RFC 5321 §4.5.3.1.10
        (Phase.DATA, 501): FailureClass.TEMPORARY,
        (Phase.DATA, 504): FailureClass.TEMPORARY,
        **{
            (before, code): cls
            for before in (Phase.MAIL, Phase.RCPT, Phase.DATA)
            for code, cls in {
                500: FailureClass.TEMPORARY,
                502: FailureClass.TEMPORARY,
                530: FailureClass.CONFIGURATION,
            }.items()
        },
    }
    for code in range(300, 600):
        failure = classify.transaction(profile, make_attempt(profile), phase, Reply(code, ("odd",)))
        by_digit = FailureClass.PERMANENT if code >= 500 else FailureClass.TEMPORARY
        assert failure.cls is known.get((phase, code), by_digit), code
        assert failure.code is CODE_OF[failure.reason]
        assert failure.hint.endswith(".")
