"""What can go wrong, by name: the error codes, their reasons, and the exception tree.

    MailError
    ├── Refused                    at the door: nothing was taken, the caller can mend it
    │   ├── InvalidMessage         422, with a pointer a fault
    │   ├── TooLarge               413
    │   ├── NotFound               404
    │   ├── Unauthenticated        401
    │   └── Forbidden              403
    ├── TransactionError(failure)  a relay gave no verdict: the phase and the cause say what that means
    ├── StoreUnavailable           503: nothing was taken
    └── LeaseLost                  somebody else holds the message now; what we know is dropped
    ConfigError                    start-up only: the settings contradict each other

Codes keep nodemailer's spelling, so that its users recognise them; ours (ETOOLARGE, EEXPIRED, EINDOUBT) are
added, never respelled. HTTP statuses live in api/edge.py only.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from app.mail.outcome import Failure


class ErrorCode(StrEnum):
    """The coarse grain: which part of the road failed."""

    ECONNECTION = "ECONNECTION"
    ETIMEDOUT = "ETIMEDOUT"
    ESOCKET = "ESOCKET"
    EDNS = "EDNS"
    ETLS = "ETLS"
    EPROTOCOL = "EPROTOCOL"
    EENVELOPE = "EENVELOPE"
    EMESSAGE = "EMESSAGE"
    EAUTH = "EAUTH"
    ECONFIG = "ECONFIG"
    ETOOLARGE = "ETOOLARGE"
    EEXPIRED = "EEXPIRED"
    EINDOUBT = "EINDOUBT"


class Reason(StrEnum):
    """The fine grain: what exactly happened. Each has one meaning and one hint (`mail/hints.py`)."""

    CONNECTION_REFUSED = "connection_refused"
    HOST_UNREACHABLE = "host_unreachable"
    HOST_NOT_FOUND = "host_not_found"
    DNS_FAILURE = "dns_failure"
    CONNECT_TIMEOUT = "connect_timeout"
    GREETING_REFUSED = "greeting_refused"
    GREETING_TIMEOUT = "greeting_timeout"
    SERVICE_UNAVAILABLE = "service_unavailable"
    CONNECTION_LOST = "connection_lost"
    NOT_SMTP = "not_smtp"
    HELO_REFUSED = "helo_refused"
    TLS_NOT_OFFERED = "tls_not_offered"
    TLS_UNAVAILABLE = "tls_unavailable"
    TLS_CERT_UNTRUSTED = "tls_cert_untrusted"
    TLS_CERT_EXPIRED = "tls_cert_expired"
    TLS_HOSTNAME_MISMATCH = "tls_hostname_mismatch"
    TLS_TIMEOUT = "tls_timeout"
    TLS_CONNECTION_LOST = "tls_connection_lost"
    TLS_VERSION_UNSUPPORTED = "tls_version_unsupported"
    TLS_HANDSHAKE_FAILED = "tls_handshake_failed"
    TLS_MODE_MISMATCH = "tls_mode_mismatch"
    AUTH_NOT_OFFERED = "auth_not_offered"
    AUTH_REJECTED = "auth_rejected"
    AUTH_MECHANISM_REFUSED = "auth_mechanism_refused"
    AUTH_MECHANISM_UNSUPPORTED = "auth_mechanism_unsupported"
    AUTH_UNAVAILABLE = "auth_unavailable"
    AUTH_NEEDS_TLS = "auth_needs_tls"
    AUTH_REQUIRED = "auth_required"
    SENDER_REFUSED = "sender_refused"
    SENDER_DEFERRED = "sender_deferred"
    BAD_SEQUENCE = "bad_sequence"
    MESSAGE_TOO_LARGE = "message_too_large"
    MAILBOX_UNKNOWN = "mailbox_unknown"
    RECIPIENT_REFUSED = "recipient_refused"
    RECIPIENT_DEFERRED = "recipient_deferred"
    RELAY_DENIED = "relay_denied"
    DATA_REFUSED = "data_refused"
    DATA_DEFERRED = "data_deferred"
    CONTENT_REJECTED = "content_rejected"
    CONTENT_DEFERRED = "content_deferred"
    OUTCOME_UNKNOWN = "outcome_unknown"
    REPLY_TIMEOUT = "reply_timeout"
    MALFORMED_REPLY = "malformed_reply"
    UNEXPECTED_REPLY = "unexpected_reply"
    SMTPUTF8_NOT_OFFERED = "smtputf8_not_offered"
    PROFILE_UNKNOWN = "profile_unknown"
    WORKER_CRASHED = "worker_crashed"
    EXPIRED = "expired"
    UNEXPECTED = "unexpected"


class MailError(Exception):
    """Any expected end that is not a value."""


@dataclass(frozen=True, slots=True)
class Fault:
    """One thing wrong with a request.

    `pointer` is a JSON pointer into the body (RFC 6901; "" for the whole), `detail` names the value's fault
    and the cure in one sentence.
    """

    pointer: str
    detail: str


class Refused(MailError):
    """Nothing was taken; the caller can mend it."""

    def __init__(self, detail: str, faults: Sequence[Fault] = ()) -> None:
        super().__init__(detail)
        self.detail = detail
        self.faults = tuple(faults)


class InvalidMessage(Refused):
    """The request is not a message that we can send."""

    @classmethod
    def of(cls, faults: Sequence[Fault]) -> InvalidMessage:
        """Refuse for these faults; the first one is the sentence that people see."""
        return cls(faults[0].detail, faults)


class TooLarge(Refused):
    """The body or the composed message is over the limit."""


class NotFound(Refused):
    """No such message, profile or page for this caller."""


class Unauthenticated(Refused):
    """Who is calling is not known."""


class Forbidden(Refused):
    """The caller is known and may not."""


class TransactionError(MailError):
    """A relay gave no verdict, or could not be reached."""

    def __init__(self, failure: Failure) -> None:
        super().__init__(f"{failure.code}/{failure.reason}: {failure.message}")
        self.failure = failure


class StoreUnavailable(MailError):
    """The store cannot take a write now; nothing was taken."""


class LeaseLost(MailError):
    """The lease on this message is no longer ours."""


class ConfigError(Exception):
    """The settings cannot work as they stand. The text names the setting and the cure."""
