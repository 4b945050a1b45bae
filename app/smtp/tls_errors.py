"""What a failed TLS handshake was about: a certificate, a version, a cipher, or no TLS at all. Pure.

OpenSSL names most of it in `SSLError.reason`. Where it does not, what the relay sent before (`Seen`) and whether weaker
TLS would do (`Weaker`) say more. RFC 5246 §7.2.2 and RFC 8446 §6.2 for the alerts.
"""

from __future__ import annotations

import re
import ssl
from collections.abc import Mapping
from dataclasses import dataclass, field

from app.mail.codes import Reason
from app.mail.outcome import FailureClass
from app.mail.profile import Profile, TlsVersion
from app.smtp.handshake import OursRefused, Seen
from app.smtp.tls import Certificate, Weaker

_T = FailureClass.TEMPORARY
_C = FailureClass.CONFIGURATION
_NOT_VALID_NOW = re.compile(r"certificate has expired|certificate is not yet valid", re.IGNORECASE)
_HOSTNAME_MISMATCH, _IP_MISMATCH = 62, 64  # X509_V_ERR_…
_TOO_WEAK = frozenset({66, 67, 68})  # X509_V_ERR_EE_KEY_TOO_SMALL, _CA_KEY_TOO_SMALL, _CA_MD_TOO_WEAK
_NO_TLS = ("WRONG_VERSION_NUMBER", "RECORD_LAYER_FAILURE", "PACKET_LENGTH_TOO_LONG", "HTTP_REQUEST")
_VERSION = ("UNSUPPORTED_PROTOCOL", "TLSV1_ALERT_PROTOCOL_VERSION", "NO_PROTOCOLS_AVAILABLE")


@dataclass(frozen=True, slots=True)
class Known:
    """What is known of a handshake besides the error."""

    seen: Seen = field(default_factory=Seen)
    certificate: Certificate | None = None  # the relay's own
    top: Certificate | None = None  # the last one that it sent
    weaker: Weaker | None = None


def may_be_too_weak(error: BaseException, seen: Seen) -> bool:
    """Whether the relay's TLS may be weaker than the profile allows, so that it is worth trying."""
    if isinstance(error, TimeoutError | OursRefused) or seen.asks_for_ours:
        return False
    if isinstance(error, ssl.SSLCertVerificationError):
        return getattr(error, "verify_code", 0) in _TOO_WEAK
    return getattr(error, "reason", None) not in _NO_TLS


def facts_of_request(seen: Seen) -> Mapping[str, str]:
    """Return what a hint can say of the certificate that the relay wants from us."""
    return {"authorities": ", ".join(name for name in seen.authorities if name)}


def facts_of(profile: Profile, known: Known) -> Mapping[str, str]:
    """Return what a hint can say of a handshake."""
    facts = dict(facts_of_request(known.seen))
    if known.certificate is not None:
        facts |= {
            "names": ", ".join(known.certificate.names[:5]),
            "not_after": known.certificate.not_after,
            "issuer": (known.top or known.certificate).issuer,
            "sha256": known.certificate.sha256,
        }
        if len(known.seen.chain) == 1 and not known.certificate.is_self_signed:
            facts["sends_no_issuer"] = "yes"
    if known.weaker is not None:
        if _is_older(known.weaker, profile):
            facts["version"] = known.weaker.version.value
        if profile.tls_security_level is None or known.weaker.level < profile.tls_security_level:
            facts["level"] = str(known.weaker.level)
    return facts


def _is_older(weaker: Weaker, profile: Profile) -> bool:
    order = list(TlsVersion)
    return order.index(weaker.version) < order.index(profile.min_tls)


def read(profile: Profile, error: BaseException, known: Known) -> tuple[Reason, FailureClass]:
    """Return reason and class of what a TLS handshake raised."""
    if isinstance(error, ssl.SSLCertVerificationError):
        return _of_certificate(error), _C
    if isinstance(error, TimeoutError):
        return Reason.TLS_TIMEOUT, _T
    if isinstance(error, OursRefused):
        return Reason.TLS_CLIENT_CERT_REQUIRED, _C
    if isinstance(error, ssl.SSLEOFError | ssl.SSLZeroReturnError) or not isinstance(error, ssl.SSLError):
        return _of_a_cut(profile, known)
    reason = getattr(error, "reason", None)
    if reason in _NO_TLS:
        return Reason.TLS_MODE_MISMATCH, _C  # OpenSSL: the peer's first bytes are no TLS record at all
    if reason in _VERSION or (known.weaker is not None and _is_older(known.weaker, profile)):
        return Reason.TLS_VERSION_UNSUPPORTED, _C
    return Reason.TLS_HANDSHAKE_FAILED, _C if reason else _T  # OpenSSL names what is about settings


def _of_certificate(error: ssl.SSLCertVerificationError) -> Reason:
    code = getattr(error, "verify_code", 0)
    if code in (_HOSTNAME_MISMATCH, _IP_MISMATCH) or "mismatch" in str(error).lower():
        return Reason.TLS_HOSTNAME_MISMATCH
    if _NOT_VALID_NOW.search(getattr(error, "verify_message", None) or ""):
        return Reason.TLS_CERT_EXPIRED
    return Reason.TLS_HANDSHAKE_FAILED if code in _TOO_WEAK else Reason.TLS_CERT_UNTRUSTED


def _of_a_cut(profile: Profile, known: Known) -> tuple[Reason, FailureClass]:
    """Read a connection that the relay closed in the handshake, without the alert that it owes us."""
    if known.seen.asks_for_ours:
        return Reason.TLS_CLIENT_CERT_REQUIRED, _C
    if known.weaker is None:
        return Reason.TLS_CONNECTION_LOST, _T
    older = _is_older(known.weaker, profile)
    return Reason.TLS_VERSION_UNSUPPORTED if older else Reason.TLS_HANDSHAKE_FAILED, _C
