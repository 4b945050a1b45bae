"""TLS contexts, and what a refused certificate says of itself.

A context costs 20 ms of CPU to build, so there is one a way of verifying. Python gives no certificate after a
failed verification; `read_certificate()` asks for it over a second connection that verifies nothing, sends no
credentials and no mail, and counts as no attempt.

A relay that does not like our own certificate says so in an alert: under TLS 1.2 in the handshake, under TLS 1.3 when
that is over for us, instead of the greeting or the reply to EHLO (RFC 8446 §4.4.2.4). `Connection` hears it there too.
"""

from __future__ import annotations

import asyncio
import ssl
import warnings
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from functools import lru_cache
from hashlib import sha256
from pathlib import Path
from typing import Any, TypeAlias, cast

import aiosmtplib

from app.mail.profile import Profile, TlsMode, TlsVersion
from app.smtp.network import SocketAddress, connect_to_any

_File: TypeAlias = tuple[str, int]  # path, and when it was last written
_VERSIONS = {
    TlsVersion.V1_0: ssl.TLSVersion.TLSv1,
    TlsVersion.V1_1: ssl.TLSVersion.TLSv1_1,
    TlsVersion.V1_2: ssl.TLSVersion.TLSv1_2,
    TlsVersion.V1_3: ssl.TLSVersion.TLSv1_3,
}
MOST_NAMES = 20  # of a certificate's, that are kept
# Alerts that are about our certificate: RFC 5246 §7.2.2, RFC 8446 §6.2.
_ABOUT_OURS = frozenset(
    {
        "SSLV3_ALERT_NO_CERTIFICATE",
        "SSLV3_ALERT_BAD_CERTIFICATE",
        "SSLV3_ALERT_UNSUPPORTED_CERTIFICATE",
        "SSLV3_ALERT_CERTIFICATE_REVOKED",
        "SSLV3_ALERT_CERTIFICATE_EXPIRED",
        "SSLV3_ALERT_CERTIFICATE_UNKNOWN",
        "TLSV1_ALERT_UNKNOWN_CA",
        "TLSV1_ALERT_ACCESS_DENIED",
        "TLSV13_ALERT_CERTIFICATE_REQUIRED",
    }
)


@dataclass(frozen=True, slots=True)
class Certificate:
    """What a relay's certificate says of itself."""

    names: tuple[str, ...]  # that it is for; like the next two empty where they cannot be read
    not_after: str  # YYYY-MM-DD, its last day
    issuer: str  # its common name
    sha256: str  # lower-case hex


class OursRefused(ssl.SSLError):
    """The relay wants a certificate of ours that it knows."""


class Connection(ssl.SSLObject):
    """One connection under TLS. Keeps a refusal of our certificate: nobody may be waiting when it comes."""

    refusal: OursRefused | None = None

    def do_handshake(self) -> None:
        try:
            super().do_handshake()
        except ssl.SSLError as error:
            raise self._heard(error) from None

    def read(self, len: int = 1024, buffer: Any = None) -> Any:
        try:
            return super().read(len, buffer)
        except ssl.SSLError as error:
            raise self._heard(error) from None

    def _heard(self, error: ssl.SSLError) -> ssl.SSLError:
        # With a cipher agreed upon, "handshake failure" is what TLS 1.2 has for none of ours (RFC 5246 §7.4.6).
        late = error.reason == "SSLV3_ALERT_HANDSHAKE_FAILURE" and self.cipher() is not None
        if error.reason not in _ABOUT_OURS and not late:
            return error
        self.refusal = OursRefused(error.errno, error.reason)
        return self.refusal


def context_for(profile: Profile) -> ssl.SSLContext:
    """Give the cached context by which this profile's handshakes are judged.

    Files are looked at each time: a renewed certificate counts from the next connection on.

    Raises:
        OSError: a file cannot be read any more; `filename` says which.
    """
    verifies = profile.verify and profile.requires_tls and not profile.cert_sha256
    return _context(
        ca=_dated(profile.ca_file) if verifies else None,
        client=(_dated(profile.client_cert), _dated(profile.client_key)),
        min_tls=None if profile.tls is TlsMode.OPPORTUNISTIC else profile.min_tls,
        verifies=verifies,
    )


def _dated(path: str | None) -> _File | None:
    return None if path is None else (path, Path(path).stat().st_mtime_ns)


@lru_cache(maxsize=64)
def _context(
    *, ca: _File | None, client: tuple[_File | None, _File | None], min_tls: TlsVersion | None, verifies: bool
) -> ssl.SSLContext:
    """Build a context; `min_tls` None = an old TLS is better than none (RFC 7435)."""
    with _reading(ca):
        context = ssl.create_default_context(cafile=ca[0] if ca else None)
    context.sslobject_class = Connection
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # who asks for 1.0 or 1.1 was warned at start
        # Said in any case: Debian's Python leaves it to OpenSSL's settings, which take anything.
        context.minimum_version = _VERSIONS[min_tls] if min_tls else ssl.TLSVersion.MINIMUM_SUPPORTED
    if ca is not None:
        # Internal CAs rarely carry what RFC 5280 wants; Python 3.13 began to insist.
        context.verify_flags &= ~getattr(ssl, "VERIFY_X509_STRICT", 0)
    if not verifies:
        context.check_hostname = False
        context.verify_mode = ssl.CERT_NONE
    if min_tls not in (TlsVersion.V1_2, TlsVersion.V1_3):
        with suppress(ssl.SSLError):
            context.set_ciphers("DEFAULT:@SECLEVEL=0")  # OpenSSL 3 refuses TLS 1.0 and 1.1 above that
    certificate, key = client
    if certificate is not None:
        with _reading(certificate):
            ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT).load_verify_locations(certificate[0])  # whether it is one
        with _reading(key or certificate):
            context.load_cert_chain(certificate[0], key[0] if key else None, password="")
    return context


@contextmanager
def _reading(file: _File | None) -> Iterator[None]:
    """Put into an error the file that it is about: OpenSSL does not say."""
    try:
        yield
    except OSError as error:  # SSLError is one
        error.filename = file[0] if file else None
        raise


async def read_certificate(profile: Profile, address: SocketAddress) -> Certificate:
    """Ask the relay for its certificate, whatever it is worth.

    Raises:
        OSError, aiosmtplib.SMTPException: it was not to be had.
    """
    async with asyncio.timeout(profile.timeouts.tls):
        sock, _ = await connect_to_any([address], within=profile.timeouts.connect)
        client = aiosmtplib.SMTP(
            hostname=profile.server_name or profile.host,
            local_hostname="[127.0.0.1]",
            use_tls=profile.tls is TlsMode.IMPLICIT,
            start_tls=False,
            tls_context=_context(ca=None, client=(None, None), min_tls=None, verifies=False),
            sock=sock,
        )
        try:
            await client.connect()
            if profile.tls is not TlsMode.IMPLICIT:
                await client.starttls()
            certificate = await certificate_of(client.get_transport_info("ssl_object"))
        finally:
            if client.transport is not None:
                cast("asyncio.Transport", client.transport).abort()  # a dead peer owes us a close_notify for 30 s
            client.close()
    if certificate is None:
        raise OSError("the relay shows no certificate")
    return certificate


async def certificate_of(tls: ssl.SSLObject) -> Certificate | None:
    """Read the certificate that the peer of a TLS connection showed."""
    der = tls.getpeercert(binary_form=True)
    # In a thread: it takes a millisecond; later ones are remembered.
    return None if der is None else await asyncio.to_thread(_certificate, der)


def prepare() -> None:
    """Import what reads certificates: 8 MB, which only a profile with TLS needs."""
    import cryptography.x509  # noqa: F401


@lru_cache(maxsize=64)
def _certificate(der: bytes) -> Certificate:
    from cryptography import x509
    from cryptography.x509.oid import NameOID

    names: list[str] = []
    not_after = issuer = ""
    # What is not verified may be anything; cryptography has many errors for it, some only where it is looked at.
    with suppress(Exception):
        certificate = x509.load_der_x509_certificate(der)
        with suppress(Exception):
            not_after = f"{certificate.not_valid_after_utc:%Y-%m-%d}"
        with suppress(Exception):
            alternatives = certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
            names += alternatives.get_values_for_type(x509.DNSName)
            names += [str(ip) for ip in alternatives.get_values_for_type(x509.IPAddress)]
        with suppress(Exception):
            common = certificate.subject.get_attributes_for_oid(NameOID.COMMON_NAME)
            names = names or [_text(attribute.value) for attribute in common]
        with suppress(Exception):
            said = certificate.issuer.get_attributes_for_oid(NameOID.COMMON_NAME) or list(certificate.issuer)
            issuer = _text(said[0].value)[:100]
    return Certificate(
        names=tuple(name[:255] for name in names[:MOST_NAMES]),
        not_after=not_after,
        issuer=issuer,
        sha256=sha256(der).hexdigest(),
    )


def _text(value: str | bytes) -> str:
    return value if isinstance(value, str) else value.decode("utf-8", "replace")
