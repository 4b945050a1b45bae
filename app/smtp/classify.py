"""What a reply, a break or an exception means, by the phase it came in: no I/O.

RFC 4954 §6 for AUTH (`auth_replies`), RFC 3207 §4 for STARTTLS; `transaction_replies` from MAIL on. A classification
comes from phase and reply first; an exception's type only says which phase it was. What is unknown is temporary.
"""

from __future__ import annotations

import socket
from dataclasses import replace

from app.mail.attempt import Attempt
from app.mail.codes import CODE_OF, Reason
from app.mail.hints import Facts, hint
from app.mail.outcome import Failure, FailureClass, Phase
from app.mail.profile import MECHANISMS, Profile, TlsMode
from app.mail.reply import Reply
from app.smtp import auth_replies, tls_errors, transaction_replies
from app.smtp.banners import server_of
from app.smtp.limits import counts_messages, limit
from app.smtp.mechanisms import BrokenOff
from app.smtp.relays import Login, recognise
from app.smtp.scram import MOST_ITERATIONS
from app.smtp.tls import Certificate
from app.smtp.tls_errors import Known
from app.smtp.wire import Breach, Malformed, TimedOut, Unexpected

_P = FailureClass.PERMANENT
_T = FailureClass.TEMPORARY
_U = FailureClass.UNKNOWN
_C = FailureClass.CONFIGURATION


_CLOSING = (Reason.SERVICE_UNAVAILABLE, _T, "The relay is closing the connection")  # 421, RFC 5321 §3.8


def failure(
    profile: Profile,
    phase: Phase,
    reason: Reason,
    cls: FailureClass,
    said: str,
    *,
    reply: Reply | None = None,
    facts: Facts | None = None,
) -> Failure:
    """Make a failure with its hint. `said` is our own sentence; the relay's words follow it."""
    words = str(reply) if reply else None
    return Failure(
        code=CODE_OF[reason],
        reason=reason,
        cls=cls,
        phase=phase,
        message=f"{said}: {words}" if words else said,
        hint=hint(reason, profile, facts),
        smtp_code=reply.code if reply else None,
        enhanced_code=reply.enhanced if reply else None,
        reply=words,
    )


def _refusal(
    profile: Profile, phase: Phase, reply: Reply, read: tuple[Reason, FailureClass], said: str, facts: Facts
) -> Failure:
    """Make a failure of a reply that was `read` by its code: limits and known relays may know better."""
    reason, cls = read
    limited = limit(phase, reply)
    if limited is not None:
        reason, cls = limited, _T
        facts = {**facts, "limited": "messages" if counts_messages(phase, reply) else ""}
    known = recognise(profile, reply, login=_login(facts), helo_name=facts.get("helo_name", ""))
    if known is not None and known.reason is not None:
        reason, cls = known.reason
    found = failure(profile, phase, reason, cls, said, reply=reply, facts=facts)
    own_hint = known.hint_for(profile, offered=facts.get("offered", "")) if known is not None else ""
    return replace(found, hint=own_hint) if own_hint else found


def _login(facts: Facts) -> Login:
    if facts.get("login"):
        return Login.DONE
    speaks = set(facts.get("offered", "").split()) & set(MECHANISMS)
    return Login.POSSIBLE if speaks else Login.IMPOSSIBLE


# --- replies in the opening phases -----------------------------------------------------------------------


def opening(
    profile: Profile, phase: Phase, reply: Reply, *, offered: str = "", mechanism: str = "", helo_name: str = ""
) -> Failure:
    """Read a refusal at the greeting, EHLO, STARTTLS or AUTH.

    `offered` are the mechanisms of EHLO, `mechanism` the one that was tried, `helo_name` the name that we greeted with.
    """
    if reply.code < 400:
        return _out_of_turn(profile, phase, reply)
    match phase:
        case _ if reply.code == 421:
            reason, cls, said = _CLOSING
        case Phase.GREETING:
            reason, cls, said = Reason.GREETING_REFUSED, _T, "The relay greeted with a refusal"
        case Phase.STARTTLS:
            reason, cls = (Reason.TLS_NOT_OFFERED, _C) if reply.is_permanent else (Reason.TLS_UNAVAILABLE, _T)
            said = "The relay refused STARTTLS"
        case Phase.AUTH:
            reason, cls = auth_replies.read(reply)
            command = reason is Reason.AUTH_MECHANISM_UNSUPPORTED
            said = f"The relay refused AUTH {mechanism} itself" if command else "The relay refused the login"
        case _:
            reason, cls, said = Reason.HELO_REFUSED, _T if reply.is_transient else _C, "The relay refused EHLO"
    facts = {"offered": offered, "mechanism": mechanism, "helo_name": helo_name, "login": "yes" if mechanism else ""}
    if reply.is_transient:
        facts["for_now"] = "yes"
    return _refusal(profile, phase, reply, (reason, cls), said, facts)


# --- replies in the transaction --------------------------------------------------------------------------


def transaction(
    profile: Profile, attempt: Attempt, phase: Phase, reply: Reply, *, alone: bool = True, our_address: str = ""
) -> Failure:
    """Read a refusal at MAIL, RCPT, DATA or after the content.

    `alone` is True where every recipient met the same fate: only then does an access refusal condemn the profile
    and not the recipient.
    """
    if reply.code < 400:
        return _out_of_turn(profile, phase, reply)
    session = transaction_replies.Session(
        is_encrypted=attempt.tls,
        is_logged_in=attempt.auth is not None,
        offers_auth=any(line.upper().startswith("AUTH") for line in attempt.extensions),
    )
    found = transaction_replies.read(phase, reply, session, alone=alone)
    facts = {"our_address": our_address, **_of_session(attempt)}
    return _refusal(profile, phase, reply, (found.reason, found.cls), found.said, facts)


def _of_session(attempt: Attempt) -> dict[str, str]:
    """Return what a hint must know of the session: whether there was a login, and what is on offer."""
    offers = [line.upper() for line in attempt.extensions]
    mechanisms = " ".join(line[5:] for line in offers if line.startswith(("AUTH ", "AUTH=")))
    return {
        "session": "known" if offers else "",
        "login": "yes" if attempt.auth else "",
        "offered": mechanisms,
        "starttls": "offered" if "STARTTLS" in offers and not (attempt.tls or attempt.tls_error) else "",
        "tls_error": "" if attempt.tls else attempt.tls_error or "",
    }


def _out_of_turn(profile: Profile, phase: Phase, reply: Reply) -> Failure:
    said = f"The relay's answer cannot be here ({phase})"
    return failure(profile, phase, Reason.UNEXPECTED_REPLY, _T, said, reply=reply)


# --- what is known without asking ------------------------------------------------------------------------


def too_large(profile: Profile, size: int, limit: int) -> Failure:
    """The relay's SIZE says that it will not take this message (RFC 1870 §6.1)."""
    said = f"The message has {size} bytes, the relay takes at most {limit}"
    return failure(profile, Phase.MAIL, Reason.MESSAGE_TOO_LARGE, _P, said, facts={"limit": str(limit)})


def smtputf8_not_offered(profile: Profile) -> Failure:
    """A non-ASCII local part needs SMTPUTF8 (RFC 6531 §3.1)."""
    said = "An address has non-ASCII characters before the @, which the relay does not take"
    return failure(profile, Phase.MAIL, Reason.SMTPUTF8_NOT_OFFERED, _P, said)


def tls_not_offered(profile: Profile, *, auth_offered: str) -> Failure:
    said = f"The relay at {profile.host}:{profile.port} offers no STARTTLS"
    return failure(profile, Phase.STARTTLS, Reason.TLS_NOT_OFFERED, _C, said, facts={"offered": auth_offered})


def auth_not_offered(profile: Profile, *, before_starttls: bool) -> Failure:
    said = f"There are credentials, but the relay at {profile.host}:{profile.port} offers no AUTH"
    facts = {"starttls": "offered"} if before_starttls else {}
    return failure(profile, Phase.AUTH, Reason.AUTH_NOT_OFFERED, _C, said, facts=facts)


def auth_mechanism_unsupported(profile: Profile, offered: str) -> Failure:
    said = f"No AUTH mechanism in common; the relay offers {offered or 'none'}"
    return failure(profile, Phase.AUTH, Reason.AUTH_MECHANISM_UNSUPPORTED, _C, said, facts={"offered": offered})


def broken_off(profile: Profile, broken: BrokenOff, facts: Facts) -> Failure:
    """Read a login that was broken off because the relay does not keep to the mechanism."""
    cls = _C if broken.reason in (Reason.AUTH_SERVER_UNVERIFIED, Reason.AUTH_MECHANISM_UNSUPPORTED) else _T
    if broken.reason is Reason.AUTH_MECHANISM_UNSUPPORTED:
        facts = {**facts, "iterations": str(MOST_ITERATIONS)}
    said = f"AUTH {facts['mechanism']} failed: {broken.why}"
    return failure(profile, Phase.AUTH, broken.reason, cls, said, reply=broken.reply, facts=facts)


def auth_needs_tls(profile: Profile) -> Failure:
    said = "The connection is not encrypted, and a password is not sent in clear"
    return failure(profile, Phase.AUTH, Reason.AUTH_NEEDS_TLS, _C, said)


def unreadable(profile: Profile, phase: Phase, key: str, why: str) -> Failure:
    """A file that a setting names cannot be used any more."""
    said = f"{profile.setting(key)}: {getattr(profile, key)} cannot be used: {why}"
    return failure(profile, phase, Reason.FILE_UNREADABLE, _C, said, facts={"setting": profile.setting(key)})


# --- breaks and exceptions -------------------------------------------------------------------------------


def breach(
    profile: Profile, phase: Phase, cause: Breach, *, handed_over: bool = False, facts: Facts | None = None
) -> Failure:
    """Read a break of the wire. `handed_over`: the content's end had been written (RFC 1047)."""
    match cause:
        case Malformed():
            reason, said = Reason.MALFORMED_REPLY, f"The relay's answer is not SMTP: {cause}"
        case Unexpected():
            reason, said = Reason.UNEXPECTED_REPLY, f"The relay answered out of turn: {cause}"
        case _ if handed_over:
            reason = Reason.OUTCOME_UNKNOWN
            said = f"The message was handed over and the relay's verdict did not come: {cause}"
        case TimedOut():
            reason, said = Reason.REPLY_TIMEOUT, f"No answer in phase {phase}: {cause}"
        case _:
            reason, said = Reason.CONNECTION_LOST, f"In phase {phase}, {cause}"
    known = {"phase": phase.value, **(facts or {})}
    return failure(profile, phase, reason, _U if handed_over else _T, said, facts=known)


def not_smtp(profile: Profile, phase: Phase, server: str, line: str) -> Failure:
    """Another kind of server answers there; `line` is what it said."""
    said = f"{profile.host}:{profile.port} is {server}, not a mail relay: it said {line[:80]!r}"
    return failure(profile, phase, Reason.NOT_SMTP, _C, said, facts={"server": server})


def malformed(profile: Profile, phase: Phase, line: str) -> Failure:
    """Read a line that is no reply, in the opening phases."""
    said = line.strip()[:200]
    server = server_of(said)
    if server:
        return not_smtp(profile, phase, server, said)
    return failure(profile, phase, Reason.MALFORMED_REPLY, _T, f"The relay's answer is not SMTP: {said!r}")


def lookup(profile: Profile, error: BaseException) -> Failure:
    """Read what the resolver raised."""
    no_such_name = (socket.EAI_NONAME, getattr(socket, "EAI_NODATA", -5))
    if isinstance(error, socket.gaierror) and error.errno in no_such_name:
        said = f"The name {profile.host} does not exist"
        return failure(profile, Phase.RESOLVE, Reason.HOST_NOT_FOUND, _C, said)
    why = "no answer in time" if isinstance(error, TimeoutError) else str(error)
    said = f"The name {profile.host} could not be looked up: {why}"
    return failure(profile, Phase.RESOLVE, Reason.DNS_FAILURE, _T, said)


def connecting(profile: Profile, error: OSError) -> Failure:
    """Read what connecting the socket raised."""
    at = f"{profile.host}:{profile.port}"
    if isinstance(error, TimeoutError):
        reason, said = Reason.CONNECT_TIMEOUT, f"{at} does not answer"
    elif isinstance(error, ConnectionRefusedError):
        reason, said = Reason.CONNECTION_REFUSED, f"{at} refuses connections"
    elif isinstance(error, ConnectionError):
        reason, said = Reason.CONNECTION_LOST, f"{at} cut the connection: {error}"
    else:
        reason, said = Reason.HOST_UNREACHABLE, f"{at} cannot be reached: {error.strerror or error}"
    return failure(profile, Phase.CONNECT, reason, _T, said)


def no_greeting(profile: Profile) -> Failure:
    """The relay took the connection and cut it before it greeted."""
    said = f"{profile.host}:{profile.port} cut the connection before it greeted"
    return failure(profile, Phase.GREETING, Reason.CONNECTION_LOST, _T, said)


def opening_broke(profile: Profile, phase: Phase, *, is_timeout: bool) -> Failure:
    """Read a time-out or a lost connection between the greeting and the first MAIL."""
    at = f"{profile.host}:{profile.port}"
    if is_timeout:
        said = f"{at} did not answer in phase {phase}"
        return failure(profile, phase, Reason.REPLY_TIMEOUT, _T, said, facts={"phase": phase.value})
    return failure(profile, phase, Reason.CONNECTION_LOST, _T, f"{at} closed the connection in phase {phase}")


def greeting_timeout(profile: Profile) -> Failure:
    """Nobody greeted; on port 465 that is a TLS port waiting for a handshake (RFC 8314 §3)."""
    if profile.port == 465 and profile.tls is not TlsMode.IMPLICIT:
        said = f"{profile.host}:465 waits for TLS"
        return failure(profile, Phase.GREETING, Reason.TLS_MODE_MISMATCH, _C, said)
    said = f"{profile.host}:{profile.port} took the connection and said nothing"
    return failure(profile, Phase.GREETING, Reason.GREETING_TIMEOUT, _T, said)


def tls(profile: Profile, error: BaseException, known: Known | None = None) -> Failure:
    """Read what a TLS handshake raised."""
    known = known or Known()
    reason, cls = tls_errors.read(profile, error, known)
    why = getattr(error, "verify_message", None) or getattr(error, "reason", None) or str(error) or "cut"
    said = f"The TLS handshake with {profile.host}:{profile.port} failed: {why}"
    return failure(profile, _phase_of_tls(profile), reason, cls, said, facts=tls_errors.facts_of(profile, known))


def pin_mismatch(profile: Profile, certificate: Certificate | None) -> Failure:
    """The relay shows another certificate than the one that `cert_sha256` names."""
    said = f"{profile.host}:{profile.port} shows another certificate than the pinned one"
    facts = tls_errors.facts_of(profile, Known(certificate=certificate))
    return failure(profile, _phase_of_tls(profile), Reason.TLS_PIN_MISMATCH, _C, said, facts=facts)


def _phase_of_tls(profile: Profile) -> Phase:
    return Phase.TLS if profile.tls is TlsMode.IMPLICIT else Phase.STARTTLS


def stopping(profile: Profile) -> Failure:
    """The pool is closed: nothing more is opened."""
    return failure(profile, Phase.CONNECT, Reason.CONNECTION_LOST, _T, "The service is stopping")


def unexpected(profile: Profile, phase: Phase, error: BaseException) -> Failure:
    """Read an exception that nobody foresaw: temporary, and the log has its type."""
    said = f"Something unforeseen in phase {phase}: {type(error).__name__}"
    return failure(profile, phase, Reason.UNEXPECTED, _T, said)
