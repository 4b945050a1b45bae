"""What a reply, a break or an exception means, by the phase it came in: one table, no I/O.

RFC 5321 §4.2.1: an unknown code counts by its first digit; §4.5.3.1.10: 552 at RCPT means 452. RFC 3463 for
the enhanced codes, RFC 4954 §6 for AUTH, RFC 3207 §4 for STARTTLS. A classification comes from phase and reply
first; an exception's type only says which phase it was. What is unknown is temporary.
"""

from __future__ import annotations

import re
import socket
import ssl

from app.mail.attempt import Attempt
from app.mail.codes import ErrorCode, Reason
from app.mail.hints import Facts, hint
from app.mail.outcome import Failure, FailureClass, Phase
from app.mail.profile import Profile, TlsMode
from app.mail.reply import Reply
from app.smtp.wire import Breach, Malformed, TimedOut, Unexpected

_P = FailureClass.PERMANENT
_T = FailureClass.TEMPORARY
_U = FailureClass.UNKNOWN
_C = FailureClass.CONFIGURATION

# 5.7.1 is also what relays say to spam; only at MAIL and RCPT does it mean that the peer may not relay.
_ACCESS_CODES = frozenset({454, 550, 551, 553, 554, 571})
_ACCESS_TEXT = re.compile(
    r"relay(ing)?\b.{0,40}\b(denied|not permitted|not allowed|prohibited|disallowed)"
    r"|\b(unable to|not permitted to|cannot) relay|(relay|client host) rejected: access denied"
    r"|\brelay access denied|client (was )?not authenticated|5\.7\.5[47]",
    re.IGNORECASE,
)
_ENDED_ON = re.compile(r"certificate has expired|certificate is not yet valid", re.IGNORECASE)


def failure(
    profile: Profile,
    phase: Phase,
    code: ErrorCode,
    reason: Reason,
    cls: FailureClass,
    message: str,
    *,
    reply: Reply | None = None,
    facts: Facts | None = None,
) -> Failure:
    """Make a failure with its hint. `message` is our own sentence; where there is a reply it follows it."""
    return Failure(
        code=code,
        reason=reason,
        cls=cls,
        phase=phase,
        message=f"{message}: {reply}" if reply else message,
        hint=hint(reason, profile, facts),
        smtp_code=reply.code if reply else None,
        enhanced_code=reply.enhanced if reply else None,
        reply=str(reply) if reply else None,
    )


# --- replies ---------------------------------------------------------------------------------------------


def greeting(profile: Profile, reply: Reply) -> Failure:
    """Read a greeting that is not 220."""
    if reply.code == 421:
        return _unavailable(profile, Phase.GREETING, reply)
    return failure(
        profile,
        Phase.GREETING,
        ErrorCode.EPROTOCOL,
        Reason.GREETING_REFUSED,
        _T,
        "The relay greeted with a refusal",
        reply=reply,
    )


def ehlo(profile: Profile, reply: Reply) -> Failure:
    """Read a refusal of both EHLO and HELO, or of EHLO by 421."""
    if reply.code == 421:
        return _unavailable(profile, Phase.EHLO, reply)
    cls = _T if reply.is_transient else _C
    return failure(
        profile,
        Phase.EHLO,
        ErrorCode.EPROTOCOL,
        Reason.HELO_REFUSED,
        cls,
        "The relay refused EHLO",
        reply=reply,
    )


def starttls(profile: Profile, reply: Reply) -> Failure:
    """Read a reply to STARTTLS that is not 220 (RFC 3207 §4)."""
    if reply.code == 421:
        return _unavailable(profile, Phase.STARTTLS, reply)
    if reply.is_permanent:
        reason, cls = Reason.TLS_NOT_OFFERED, _C
    else:
        reason, cls = Reason.TLS_UNAVAILABLE, _T
    return failure(profile, Phase.STARTTLS, ErrorCode.ETLS, reason, cls, "The relay refused STARTTLS", reply=reply)


def auth(profile: Profile, reply: Reply, *, offered: str) -> Failure:
    """Read a reply to AUTH that is not 235 (RFC 4954 §6). `offered` are the mechanisms of EHLO."""
    if reply.code == 421:
        return _unavailable(profile, Phase.AUTH, reply)
    if reply.code < 400:
        return _out_of_turn(profile, Phase.AUTH, reply)
    if reply.is_transient:
        reason, cls = Reason.AUTH_UNAVAILABLE, _T
    elif reply.code in (530, 538):
        reason, cls = Reason.AUTH_NEEDS_TLS, _C
    elif reply.code == 534:
        reason, cls = Reason.AUTH_MECHANISM_REFUSED, _C
    elif reply.code == 504:
        reason, cls = Reason.AUTH_MECHANISM_UNSUPPORTED, _C
    else:
        reason, cls = Reason.AUTH_REJECTED, _C
    return failure(
        profile,
        Phase.AUTH,
        ErrorCode.EAUTH,
        reason,
        cls,
        "The relay refused the login",
        reply=reply,
        facts={"offered": offered},
    )


def transaction(
    profile: Profile,
    attempt: Attempt,
    phase: Phase,
    reply: Reply,
    *,
    alone: bool = True,
    our_address: str = "",
) -> Failure:
    """Read a refusal at MAIL, RCPT, DATA or after the content.

    `alone` is True where every recipient met the same fate: only then does an access refusal condemn the
    profile and not the recipient.
    """
    if reply.code < 400:
        return _out_of_turn(profile, phase, reply)
    if reply.code == 421 and phase is not Phase.CONTENT:
        return _unavailable(profile, phase, reply)
    match phase:
        case Phase.MAIL:
            return _at_mail(profile, attempt, reply)
        case Phase.RCPT:
            return _at_rcpt(profile, attempt, reply, alone=alone, our_address=our_address)
        case Phase.DATA:
            reason = Reason.DATA_REFUSED if reply.is_permanent else Reason.DATA_DEFERRED
            return failure(
                profile,
                phase,
                ErrorCode.EMESSAGE,
                reason,
                _by_digit(reply),
                "The relay refused DATA",
                reply=reply,
            )
        case _:
            return _after_content(profile, reply)


def _at_mail(profile: Profile, attempt: Attempt, reply: Reply) -> Failure:
    said = "The relay refused the sender"
    if reply.code == 530 or _wants_login(attempt, reply):
        return failure(
            profile,
            Phase.MAIL,
            ErrorCode.EAUTH,
            Reason.AUTH_REQUIRED,
            _C,
            "The relay wants a login",
            reply=reply,
        )
    if reply.code == 552:
        return failure(profile, Phase.MAIL, ErrorCode.ETOOLARGE, Reason.MESSAGE_TOO_LARGE, _P, "Too large", reply=reply)
    if reply.code == 503:
        return failure(
            profile,
            Phase.MAIL,
            ErrorCode.EPROTOCOL,
            Reason.BAD_SEQUENCE,
            _T,
            "The relay lost its place",
            reply=reply,
        )
    reason = Reason.SENDER_REFUSED if reply.is_permanent else Reason.SENDER_DEFERRED
    return failure(profile, Phase.MAIL, ErrorCode.EENVELOPE, reason, _by_digit(reply), said, reply=reply)


def _at_rcpt(profile: Profile, attempt: Attempt, reply: Reply, *, alone: bool, our_address: str) -> Failure:
    if reply.code == 530 or _wants_login(attempt, reply):
        return failure(
            profile,
            Phase.RCPT,
            ErrorCode.EAUTH,
            Reason.AUTH_REQUIRED,
            _C,
            "The relay wants a login",
            reply=reply,
        )
    said = "The relay refused the recipient"
    if is_access_refusal(reply):
        cls = _C if alone else _by_digit(reply)
        return failure(
            profile,
            Phase.RCPT,
            ErrorCode.EENVELOPE,
            Reason.RELAY_DENIED,
            cls,
            said,
            reply=reply,
            facts={"our_address": our_address},
        )
    if reply.is_transient or reply.code == 552:  # RFC 5321 §4.5.3.1.10: 552 at RCPT means 452
        reason, cls = Reason.RECIPIENT_DEFERRED, _T
    elif (reply.enhanced or "5.1.1")[2:] in ("1.1", "1.2", "1.3", "1.10") and reply.code in (550, 551, 553):
        reason, cls = Reason.MAILBOX_UNKNOWN, _P
    else:
        reason, cls = Reason.RECIPIENT_REFUSED, _P
    return failure(profile, Phase.RCPT, ErrorCode.EENVELOPE, reason, cls, said, reply=reply)


def _after_content(profile: Profile, reply: Reply) -> Failure:
    if reply.code == 552:
        return failure(
            profile,
            Phase.CONTENT,
            ErrorCode.ETOOLARGE,
            Reason.MESSAGE_TOO_LARGE,
            _P,
            "Too large",
            reply=reply,
        )
    reason = Reason.CONTENT_REJECTED if reply.is_permanent else Reason.CONTENT_DEFERRED
    return failure(
        profile,
        Phase.CONTENT,
        ErrorCode.EMESSAGE,
        reason,
        _by_digit(reply),
        "The relay did not take the message",
        reply=reply,
    )


def is_access_refusal(reply: Reply) -> bool:
    """Whether this reply at MAIL or RCPT says that we, not the mailbox, are unwelcome."""
    if reply.code not in _ACCESS_CODES:
        return False
    return (reply.enhanced or "")[1:] == ".7.1" or bool(_ACCESS_TEXT.search(reply.text))


def _wants_login(attempt: Attempt, reply: Reply) -> bool:
    """Whether the relay says that we may not, offers AUTH, and we did not use it."""
    offers_auth = any(line.upper().startswith("AUTH") for line in attempt.extensions)
    return attempt.auth is None and offers_auth and is_access_refusal(reply)


def _by_digit(reply: Reply) -> FailureClass:
    return _P if reply.is_permanent else _T


def _unavailable(profile: Profile, phase: Phase, reply: Reply) -> Failure:
    return failure(
        profile,
        phase,
        ErrorCode.ECONNECTION,
        Reason.SERVICE_UNAVAILABLE,
        _T,
        "The relay is closing the connection",
        reply=reply,
    )


def _out_of_turn(profile: Profile, phase: Phase, reply: Reply) -> Failure:
    return failure(
        profile,
        phase,
        ErrorCode.EPROTOCOL,
        Reason.UNEXPECTED_REPLY,
        _T,
        f"The relay's answer cannot be here ({phase})",
        reply=reply,
    )


# --- what is known without asking ------------------------------------------------------------------------


def too_large(profile: Profile, size: int, limit: int) -> Failure:
    """The relay's SIZE says that it will not take this message (RFC 1870 §6.1)."""
    return failure(
        profile,
        Phase.MAIL,
        ErrorCode.ETOOLARGE,
        Reason.MESSAGE_TOO_LARGE,
        _P,
        f"The message has {size} bytes, the relay takes at most {limit}",
        facts={"limit": str(limit)},
    )


def smtputf8_not_offered(profile: Profile) -> Failure:
    """A non-ASCII local part needs SMTPUTF8 (RFC 6531 §3.1)."""
    return failure(
        profile,
        Phase.MAIL,
        ErrorCode.EENVELOPE,
        Reason.SMTPUTF8_NOT_OFFERED,
        _P,
        "An address has non-ASCII characters before the @, which the relay does not take",
    )


def tls_not_offered(profile: Profile) -> Failure:
    return failure(
        profile,
        Phase.STARTTLS,
        ErrorCode.ETLS,
        Reason.TLS_NOT_OFFERED,
        _C,
        f"The relay at {profile.host}:{profile.port} offers no STARTTLS",
    )


def auth_not_offered(profile: Profile) -> Failure:
    return failure(
        profile,
        Phase.AUTH,
        ErrorCode.EAUTH,
        Reason.AUTH_NOT_OFFERED,
        _C,
        f"There are credentials, but the relay at {profile.host}:{profile.port} offers no AUTH",
    )


def auth_mechanism_unsupported(profile: Profile, offered: str) -> Failure:
    return failure(
        profile,
        Phase.AUTH,
        ErrorCode.EAUTH,
        Reason.AUTH_MECHANISM_UNSUPPORTED,
        _C,
        f"No AUTH mechanism in common; the relay offers {offered or 'none'}",
        facts={"offered": offered},
    )


def auth_needs_tls(profile: Profile) -> Failure:
    return failure(
        profile,
        Phase.AUTH,
        ErrorCode.EAUTH,
        Reason.AUTH_NEEDS_TLS,
        _C,
        "The connection is not encrypted, and a password is not sent in clear",
    )


# --- breaks and exceptions -------------------------------------------------------------------------------


def breach(profile: Profile, phase: Phase, cause: Breach, *, handed_over: bool = False) -> Failure:
    """Read a break of the wire. `handed_over`: the content's end had been written (RFC 1047)."""
    cls = _U if handed_over else _T
    match cause:
        case Malformed():
            code, reason, said = (
                ErrorCode.EPROTOCOL,
                Reason.MALFORMED_REPLY,
                f"The relay's answer is not SMTP: {cause}",
            )
        case Unexpected():
            code, reason, said = (
                ErrorCode.EPROTOCOL,
                Reason.UNEXPECTED_REPLY,
                f"The relay answered out of turn: {cause}",
            )
        case _ if handed_over:
            code, reason = ErrorCode.EINDOUBT, Reason.OUTCOME_UNKNOWN
            said = f"The message was handed over and the relay's verdict did not come: {cause}"
        case TimedOut():
            code, reason, said = (
                ErrorCode.ETIMEDOUT,
                Reason.REPLY_TIMEOUT,
                f"No answer in phase {phase}: {cause}",
            )
        case _:
            code, reason, said = ErrorCode.ECONNECTION, Reason.CONNECTION_LOST, f"In phase {phase}, {cause}"
    return failure(profile, phase, code, reason, cls, said)


def malformed(profile: Profile, phase: Phase, line: str) -> Failure:
    """Read a line that is no reply, in the opening phases."""
    said = line.strip()
    if said.upper().startswith(("HTTP/", "SSH-", "<HTML", "<!DOCTYPE")):
        return failure(
            profile,
            phase,
            ErrorCode.EPROTOCOL,
            Reason.NOT_SMTP,
            _C,
            f"{profile.host}:{profile.port} is not a mail server: it said {said[:80]!r}",
        )
    return failure(
        profile,
        phase,
        ErrorCode.EPROTOCOL,
        Reason.MALFORMED_REPLY,
        _T,
        f"The relay's answer is not SMTP: {said[:200]!r}",
    )


def lookup(profile: Profile, error: BaseException) -> Failure:
    """Read what the resolver raised."""
    if isinstance(error, socket.gaierror) and error.errno in (
        socket.EAI_NONAME,
        getattr(socket, "EAI_NODATA", -5),
    ):
        return failure(
            profile,
            Phase.RESOLVE,
            ErrorCode.EDNS,
            Reason.HOST_NOT_FOUND,
            _C,
            f"The name {profile.host} does not exist",
        )
    said = "no answer in time" if isinstance(error, TimeoutError) else str(error)
    return failure(
        profile,
        Phase.RESOLVE,
        ErrorCode.EDNS,
        Reason.DNS_FAILURE,
        _T,
        f"The name {profile.host} could not be looked up: {said}",
    )


def connecting(profile: Profile, error: OSError | TimeoutError) -> Failure:
    """Read what connecting the socket raised."""
    at = f"{profile.host}:{profile.port}"
    if isinstance(error, TimeoutError):
        code, reason, said = ErrorCode.ETIMEDOUT, Reason.CONNECT_TIMEOUT, f"{at} does not answer"
    elif isinstance(error, ConnectionRefusedError):
        code, reason, said = ErrorCode.ECONNECTION, Reason.CONNECTION_REFUSED, f"{at} refuses connections"
    elif isinstance(error, ConnectionError):
        code, reason, said = (
            ErrorCode.ECONNECTION,
            Reason.CONNECTION_LOST,
            f"{at} cut the connection: {error}",
        )
    else:
        code, reason = ErrorCode.ECONNECTION, Reason.HOST_UNREACHABLE
        said = f"{at} cannot be reached: {error.strerror or error}"
    return failure(profile, Phase.CONNECT, code, reason, _T, said)


def opening_broke(profile: Profile, phase: Phase, *, is_timeout: bool) -> Failure:
    """Read a time-out or a lost connection between the greeting and the first MAIL."""
    at = f"{profile.host}:{profile.port}"
    if is_timeout:
        said = f"{at} did not answer in phase {phase}"
        return failure(profile, phase, ErrorCode.ETIMEDOUT, Reason.REPLY_TIMEOUT, _T, said)
    said = f"{at} closed the connection in phase {phase}"
    return failure(profile, phase, ErrorCode.ECONNECTION, Reason.CONNECTION_LOST, _T, said)


def greeting_timeout(profile: Profile) -> Failure:
    """Nobody greeted; on port 465 that is a TLS port waiting for a handshake (RFC 8314 §3)."""
    if profile.port == 465 and profile.tls is not TlsMode.IMPLICIT:
        said = f"{profile.host}:465 waits for TLS"
        return failure(profile, Phase.GREETING, ErrorCode.ETLS, Reason.TLS_MODE_MISMATCH, _C, said)
    return failure(
        profile,
        Phase.GREETING,
        ErrorCode.ETIMEDOUT,
        Reason.GREETING_TIMEOUT,
        _T,
        f"{profile.host}:{profile.port} took the connection and said nothing",
    )


def tls(profile: Profile, error: BaseException, *, facts: Facts | None = None) -> Failure:
    """Read what a TLS handshake raised."""
    code, reason, cls = _tls_reason(error)
    said = getattr(error, "verify_message", None) or getattr(error, "reason", None) or str(error) or "cut"
    return failure(
        profile,
        Phase.STARTTLS if profile.tls is not TlsMode.IMPLICIT else Phase.TLS,
        code,
        reason,
        cls,
        f"The TLS handshake with {profile.host}:{profile.port} failed: {said}",
        facts=facts,
    )


def _tls_reason(error: BaseException) -> tuple[ErrorCode, Reason, FailureClass]:
    if isinstance(error, ssl.SSLCertVerificationError):
        if error.verify_code == 62 or "mismatch" in str(error).lower():  # X509_V_ERR_HOSTNAME_MISMATCH
            return ErrorCode.ETLS, Reason.TLS_HOSTNAME_MISMATCH, _C
        if _ENDED_ON.search(error.verify_message or ""):
            return ErrorCode.ETLS, Reason.TLS_CERT_EXPIRED, _C
        return ErrorCode.ETLS, Reason.TLS_CERT_UNTRUSTED, _C
    if isinstance(error, TimeoutError):
        return ErrorCode.ETIMEDOUT, Reason.TLS_TIMEOUT, _T
    if isinstance(error, ssl.SSLEOFError | ssl.SSLZeroReturnError) or not isinstance(error, ssl.SSLError):
        return ErrorCode.ESOCKET, Reason.TLS_CONNECTION_LOST, _T
    if error.reason in (
        "WRONG_VERSION_NUMBER",
        "RECORD_LAYER_FAILURE",
        "PACKET_LENGTH_TOO_LONG",
        "HTTP_REQUEST",
    ):
        # OpenSSL says this where the peer's first bytes are no TLS record at all.
        return ErrorCode.ETLS, Reason.TLS_MODE_MISMATCH, _C
    if error.reason in ("UNSUPPORTED_PROTOCOL", "TLSV1_ALERT_PROTOCOL_VERSION", "NO_PROTOCOLS_AVAILABLE"):
        return ErrorCode.ETLS, Reason.TLS_VERSION_UNSUPPORTED, _C
    return ErrorCode.ETLS, Reason.TLS_HANDSHAKE_FAILED, _C


def unexpected(profile: Profile, phase: Phase, error: BaseException) -> Failure:
    """Read an exception that nobody foresaw: temporary, and the log has its type."""
    return failure(
        profile,
        phase,
        ErrorCode.ECONNECTION,
        Reason.UNEXPECTED,
        _T,
        f"Something unforeseen in phase {phase}: {type(error).__name__}",
    )
