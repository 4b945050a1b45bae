"""What a refusal in a mail transaction means, by phase and code: the message, a recipient, the profile or the session.

The one table for MAIL, RCPT, DATA and the reply to the content. A fault of the session never condemns the message or a
recipient: such a reply is temporary, whatever its first digit. RFC 5321 §4.2.1 (an unknown code counts by its first
digit), §4.3.2 (codes by command), §4.5.3.1.10 (552 at RCPT means 452), RFC 3463 (enhanced codes). Pure.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass

from app.mail.codes import Reason
from app.mail.outcome import FailureClass, Phase
from app.mail.reply import Reply
from app.smtp.limits import is_worn_out

_P = FailureClass.PERMANENT
_T = FailureClass.TEMPORARY
_C = FailureClass.CONFIGURATION

# RFC 5321 §4.2.2: the command is unknown (500), not implemented (502) or out of sequence (503). We send only commands
# that RFC 5321 demands, in its order, so the relay or a proxy lost its place. DATA has no parameters to be wrong in.
_LOST_ITS_PLACE: Mapping[Phase, frozenset[int]] = {
    Phase.MAIL: frozenset({500, 502, 503}),
    Phase.RCPT: frozenset({500, 502, 503}),
    Phase.DATA: frozenset({500, 501, 502, 503, 504}),
    Phase.CONTENT: frozenset({500, 502, 503}),
}
# Phase → what the reply means when nothing more is known than its first digit: for now, for good, and in words.
_BY_DIGIT: Mapping[Phase, tuple[Reason, Reason, str]] = {
    Phase.MAIL: (Reason.SENDER_DEFERRED, Reason.SENDER_REFUSED, "The relay refused the sender"),
    Phase.RCPT: (Reason.RECIPIENT_DEFERRED, Reason.RECIPIENT_REFUSED, "The relay refused the recipient"),
    Phase.DATA: (Reason.DATA_DEFERRED, Reason.DATA_REFUSED, "The relay refused DATA"),
    Phase.CONTENT: (Reason.CONTENT_DEFERRED, Reason.CONTENT_REJECTED, "The relay did not take the message"),
}
# 5.7.1 is also what relays say to spam; only at MAIL and RCPT does it mean that the peer may not relay.
_ACCESS_CODES = frozenset({454, 550, 551, 553, 554, 571})
_ACCESS_TEXT = re.compile(
    r"relay(ing)?\b.{0,40}\b(denied|not permitted|not allowed|prohibited|disallowed)"
    r"|\b(unable to|not permitted to|cannot) relay|(relay|client host) rejected: access denied"
    r"|\brelay access denied|client (was )?not authenticated|5\.7\.5[47]",
    re.IGNORECASE,
)
# "need EHLO and AUTH first" (QQ), "This mail server requires authentication …" (MailEnable), both as 503.
_LOGIN_FIRST = re.compile(
    r"\bauth(?:enticat\w+|orization)?\b.{0,20}\b(?:required|first|needed)\b"
    r"|\b(?:requires?|needs?|must|send)\b.{0,20}\b(?:auth(?:enticat\w+|orization)?|log ?in)\b|\blog ?in first\b",
    re.IGNORECASE,
)
_OF_SENDER = re.compile(r"\bsender address rejected\b", re.IGNORECASE)  # Postfix says it at RCPT (smtpd_delay_reject)
_TLS_FIRST = re.compile(r"\b(START)?TLS\b|\bencrypt", re.IGNORECASE)


@dataclass(frozen=True, slots=True)
class Session:
    """What a reply's meaning depends on besides: TLS, a login that was made, and AUTH that was offered."""

    is_encrypted: bool
    is_logged_in: bool
    offers_auth: bool


@dataclass(frozen=True, slots=True)
class Reading:
    """What a reply means; `said` is our own sentence for it."""

    reason: Reason
    cls: FailureClass
    said: str


def read(phase: Phase, reply: Reply, session: Session, *, alone: bool) -> Reading:
    """Return what a reply of 400 to 599 means in a phase from MAIL on; any other phase counts as CONTENT.

    `alone` is True where every recipient was refused like this: only then does an access refusal condemn the profile.
    """
    if phase not in _BY_DIGIT:
        phase = Phase.CONTENT
    if reply.code == 421 and phase is not Phase.CONTENT:  # RFC 5321 §3.8
        return Reading(Reason.SERVICE_UNAVAILABLE, _T, "The relay is closing the connection")
    if reply.is_permanent:
        of_profile = _of_profile(phase, reply, session)
        if of_profile is not None:
            return of_profile
        if lost_its_place(phase, reply):
            return Reading(Reason.BAD_SEQUENCE, _T, "The relay lost its place")
    if phase in (Phase.MAIL, Phase.RCPT) and is_access_refusal(reply):
        if session.offers_auth and not session.is_logged_in:
            return Reading(Reason.AUTH_REQUIRED, _C, "The relay wants a login")
        if phase is Phase.RCPT:
            cls = _C if alone else _P if reply.is_permanent else _T
            return Reading(Reason.RELAY_DENIED, cls, "The relay does not relay for us")
    if phase is Phase.RCPT and _OF_SENDER.search(reply.text):
        phase = Phase.MAIL
    return _of_message(phase, reply)


def is_access_refusal(reply: Reply) -> bool:
    """Whether this reply at MAIL or RCPT says that we, not the mailbox, are unwelcome."""
    if reply.code not in _ACCESS_CODES:
        return False
    return (reply.enhanced or "")[1:] == ".7.1" or bool(_ACCESS_TEXT.search(reply.text))


def lost_its_place(phase: Phase, reply: Reply) -> bool:
    """Whether the command was refused, and not what it carries: an enhanced code may say that it is the latter.

    Behind the content no command was sent. Relays refuse content with any code there, so 500 and 502 must say 5.5.z.
    """
    unsaid = "5.6.0" if phase is Phase.CONTENT and reply.code != 503 else "5.5.0"
    return reply.code in _LOST_ITS_PLACE[phase] and (reply.enhanced or unsaid)[2:4] in ("0.", "5.")


def _of_profile(phase: Phase, reply: Reply, session: Session) -> Reading | None:
    """Read a demand for TLS or a login (RFC 3207 §4, RFC 4954 §6), None where it is no such demand."""
    if reply.code in (530, 538) and not session.is_encrypted and _TLS_FIRST.search(reply.text):
        return Reading(Reason.AUTH_NEEDS_TLS, _C, "The relay wants TLS first")
    out_of_order = reply.code in _LOST_ITS_PLACE[phase] and not session.is_logged_in
    is_login = reply.code == 530 and phase is not Phase.CONTENT
    if is_login or ((reply.code == 530 or out_of_order) and _LOGIN_FIRST.search(reply.text)):
        return Reading(Reason.AUTH_REQUIRED, _C, "The relay wants a login")
    return None


def _of_message(phase: Phase, reply: Reply) -> Reading:
    """Read a refusal of the sender, a recipient or the content."""
    for_now, for_good, said = _BY_DIGIT[phase]
    if phase is not Phase.RCPT and _is_too_large(reply):
        return Reading(Reason.MESSAGE_TOO_LARGE, _P, "The message is too large for the relay")
    is_session = phase is not Phase.CONTENT and is_worn_out(reply)
    if reply.is_transient or is_session or (phase is Phase.RCPT and reply.code == 552):
        return Reading(for_now, _T, said)
    subject = (reply.enhanced or "5.1.1")[2:]  # RFC 3463 §3.2: x.1.z is about the address
    if phase is Phase.RCPT and reply.code in (550, 551, 553) and subject in ("1.1", "1.2", "1.3", "1.10"):
        for_good = Reason.MAILBOX_UNKNOWN
    return Reading(for_good, _P, said)


def _is_too_large(reply: Reply) -> bool:
    """RFC 5321 §4.2.3: 552; RFC 3463 §3.3, §3.4: too big for the system, too long for the mailbox."""
    return reply.code == 552 or reply.enhanced in ("5.3.4", "5.2.3")
