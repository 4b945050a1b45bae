"""What a refusal at AUTH means: the password, the mechanism, the command, or the relay's own trouble. Pure.

RFC 4954 §4 and §6 for the codes, RFC 3463 §3.6 and §3.8 for the enhanced ones.
"""

from __future__ import annotations

import re

from app.mail.codes import Reason
from app.mail.outcome import FailureClass
from app.mail.reply import Reply

_BY_CODE = {
    504: Reason.AUTH_MECHANISM_UNSUPPORTED,
    530: Reason.AUTH_NEEDS_TLS,
    534: Reason.AUTH_MECHANISM_REFUSED,
    538: Reason.AUTH_NEEDS_TLS,
}
_BAD_CREDENTIALS = re.compile(
    r"\b(?:auth|authentication|log-?[io]n|credentials?|password)\b.{0,20}\b(?:fail|reject|refus|incorrect|invalid|wrong|denied)"
    r"|\b(?:incorrect|invalid|wrong|bad)\b.{0,20}\b(?:user|log-?[io]n|credentials?|password)",
    re.IGNORECASE,
)


def read(reply: Reply) -> tuple[Reason, FailureClass]:
    """Return reason and class of a 4xx or 5xx at any step of a login."""
    if reply.is_transient:
        return Reason.AUTH_UNAVAILABLE, FailureClass.TEMPORARY
    if reply.code in _BY_CODE:
        return _BY_CODE[reply.code], FailureClass.CONFIGURATION
    reason = Reason.AUTH_MECHANISM_UNSUPPORTED if _is_of_command(reply) else Reason.AUTH_REJECTED
    return reason, FailureClass.CONFIGURATION


def _is_of_command(reply: Reply) -> bool:
    """Whether the command or its syntax was refused, whoever logs in: 50x (RFC 5321 §4.2.1), or x.5.z."""
    subject = (reply.enhanced or "")[2:3]
    if reply.code == 535 or subject == "7":
        return False
    return subject == "5" or (500 <= reply.code <= 509 and not _BAD_CREDENTIALS.search(reply.text))
