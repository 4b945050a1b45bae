"""The error codes and their reasons: what can go wrong, by name.

Codes keep nodemailer's spelling, so that its users recognise them; ours (ETOOLARGE, EEXPIRED, EINDOUBT) are
added, never respelled.
"""

from __future__ import annotations

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
