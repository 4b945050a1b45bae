"""The error codes and their reasons: what can go wrong, by name.

Codes keep nodemailer's spelling, so that its users recognise them; ours (ETOOLARGE, EEXPIRED, EINDOUBT) are
added, never respelled.
"""

from __future__ import annotations

from collections.abc import Mapping
from enum import StrEnum


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
    """The fine grain: what exactly happened. Each has one code, one meaning and one hint (`mail/hints.py`)."""

    CONNECTION_REFUSED = "connection_refused"
    HOST_UNREACHABLE = "host_unreachable"
    HOST_NOT_FOUND = "host_not_found"
    DNS_FAILURE = "dns_failure"
    CONNECT_TIMEOUT = "connect_timeout"
    GREETING_REFUSED = "greeting_refused"
    GREETING_TIMEOUT = "greeting_timeout"
    SERVICE_UNAVAILABLE = "service_unavailable"
    RATE_LIMITED = "rate_limited"
    CONNECTION_LOST = "connection_lost"
    NOT_SMTP = "not_smtp"
    HELO_REFUSED = "helo_refused"
    TLS_NOT_OFFERED = "tls_not_offered"
    TLS_UNAVAILABLE = "tls_unavailable"
    TLS_CERT_UNTRUSTED = "tls_cert_untrusted"
    TLS_CERT_EXPIRED = "tls_cert_expired"
    TLS_HOSTNAME_MISMATCH = "tls_hostname_mismatch"
    TLS_PIN_MISMATCH = "tls_pin_mismatch"
    TLS_CLIENT_CERT_REQUIRED = "tls_client_cert_required"
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
    AUTH_SERVER_UNVERIFIED = "auth_server_unverified"
    AUTH_REQUIRED = "auth_required"
    SENDER_REFUSED = "sender_refused"
    SENDER_DEFERRED = "sender_deferred"
    BAD_SEQUENCE = "bad_sequence"
    MESSAGE_TOO_LARGE = "message_too_large"
    MAILBOX_UNKNOWN = "mailbox_unknown"
    RECIPIENT_REFUSED = "recipient_refused"
    RECIPIENT_DEFERRED = "recipient_deferred"
    GREYLISTED = "greylisted"
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
    FILE_UNREADABLE = "file_unreadable"
    WORKER_CRASHED = "worker_crashed"
    EXPIRED = "expired"
    UNEXPECTED = "unexpected"


CODE_OF: Mapping[Reason, ErrorCode] = {
    Reason.CONNECTION_REFUSED: ErrorCode.ECONNECTION,
    Reason.HOST_UNREACHABLE: ErrorCode.ECONNECTION,
    Reason.SERVICE_UNAVAILABLE: ErrorCode.ECONNECTION,
    Reason.RATE_LIMITED: ErrorCode.ECONNECTION,
    Reason.CONNECTION_LOST: ErrorCode.ECONNECTION,
    Reason.UNEXPECTED: ErrorCode.ECONNECTION,
    Reason.HOST_NOT_FOUND: ErrorCode.EDNS,
    Reason.DNS_FAILURE: ErrorCode.EDNS,
    Reason.CONNECT_TIMEOUT: ErrorCode.ETIMEDOUT,
    Reason.GREETING_TIMEOUT: ErrorCode.ETIMEDOUT,
    Reason.TLS_TIMEOUT: ErrorCode.ETIMEDOUT,
    Reason.REPLY_TIMEOUT: ErrorCode.ETIMEDOUT,
    Reason.GREETING_REFUSED: ErrorCode.EPROTOCOL,
    Reason.NOT_SMTP: ErrorCode.EPROTOCOL,
    Reason.HELO_REFUSED: ErrorCode.EPROTOCOL,
    Reason.BAD_SEQUENCE: ErrorCode.EPROTOCOL,
    Reason.MALFORMED_REPLY: ErrorCode.EPROTOCOL,
    Reason.UNEXPECTED_REPLY: ErrorCode.EPROTOCOL,
    Reason.TLS_CONNECTION_LOST: ErrorCode.ESOCKET,
    Reason.TLS_NOT_OFFERED: ErrorCode.ETLS,
    Reason.TLS_UNAVAILABLE: ErrorCode.ETLS,
    Reason.TLS_CERT_UNTRUSTED: ErrorCode.ETLS,
    Reason.TLS_CERT_EXPIRED: ErrorCode.ETLS,
    Reason.TLS_HOSTNAME_MISMATCH: ErrorCode.ETLS,
    Reason.TLS_PIN_MISMATCH: ErrorCode.ETLS,
    Reason.TLS_CLIENT_CERT_REQUIRED: ErrorCode.ETLS,
    Reason.TLS_VERSION_UNSUPPORTED: ErrorCode.ETLS,
    Reason.TLS_HANDSHAKE_FAILED: ErrorCode.ETLS,
    Reason.TLS_MODE_MISMATCH: ErrorCode.ETLS,
    Reason.AUTH_NOT_OFFERED: ErrorCode.EAUTH,
    Reason.AUTH_REJECTED: ErrorCode.EAUTH,
    Reason.AUTH_MECHANISM_REFUSED: ErrorCode.EAUTH,
    Reason.AUTH_MECHANISM_UNSUPPORTED: ErrorCode.EAUTH,
    Reason.AUTH_UNAVAILABLE: ErrorCode.EAUTH,
    Reason.AUTH_NEEDS_TLS: ErrorCode.EAUTH,
    Reason.AUTH_SERVER_UNVERIFIED: ErrorCode.EAUTH,
    Reason.AUTH_REQUIRED: ErrorCode.EAUTH,
    Reason.SENDER_REFUSED: ErrorCode.EENVELOPE,
    Reason.SENDER_DEFERRED: ErrorCode.EENVELOPE,
    Reason.MAILBOX_UNKNOWN: ErrorCode.EENVELOPE,
    Reason.RECIPIENT_REFUSED: ErrorCode.EENVELOPE,
    Reason.RECIPIENT_DEFERRED: ErrorCode.EENVELOPE,
    Reason.GREYLISTED: ErrorCode.EENVELOPE,
    Reason.RELAY_DENIED: ErrorCode.EENVELOPE,
    Reason.SMTPUTF8_NOT_OFFERED: ErrorCode.EENVELOPE,
    Reason.DATA_REFUSED: ErrorCode.EMESSAGE,
    Reason.DATA_DEFERRED: ErrorCode.EMESSAGE,
    Reason.CONTENT_REJECTED: ErrorCode.EMESSAGE,
    Reason.CONTENT_DEFERRED: ErrorCode.EMESSAGE,
    Reason.WORKER_CRASHED: ErrorCode.EMESSAGE,
    Reason.MESSAGE_TOO_LARGE: ErrorCode.ETOOLARGE,
    Reason.OUTCOME_UNKNOWN: ErrorCode.EINDOUBT,
    Reason.PROFILE_UNKNOWN: ErrorCode.ECONFIG,
    Reason.FILE_UNREADABLE: ErrorCode.ECONFIG,
    Reason.EXPIRED: ErrorCode.EEXPIRED,
}
