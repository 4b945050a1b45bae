"""TLS contexts, and what a refused certificate says of itself.

A context costs 20 ms of CPU to build, so there is one a way of verifying. Python gives no certificate after a
failed verification; `read_certificate()` asks for it over a second connection that verifies nothing, sends no
credentials and no mail, and counts as no attempt.
"""

from __future__ import annotations

import asyncio
import ssl
from collections.abc import Mapping
from contextlib import suppress
from functools import lru_cache

import aiosmtplib

from app.mail.profile import Profile, TlsMode
from app.smtp.network import SocketAddress, connect_to_any


def context_for(profile: Profile) -> ssl.SSLContext:
    """Give the cached context by which this profile's handshakes are judged.

    Raises:
        OSError, ssl.SSLError: the CA file cannot be read any more.
    """
    verifies = profile.verify and profile.tls in (TlsMode.STARTTLS, TlsMode.IMPLICIT)
    return _context(verifies, profile.ca_file if verifies else None, profile.tls is TlsMode.OPPORTUNISTIC)


@lru_cache(maxsize=64)
def _context(verifies: bool, ca_file: str | None, takes_anything: bool) -> ssl.SSLContext:  # noqa: FBT001
    context = ssl.create_default_context(cafile=ca_file)
    context.minimum_version = ssl.TLSVersion.TLSv1_2  # RFC 8996; Debian's Python leaves it to OpenSSL's settings
    if ca_file is not None:
        # Internal CAs rarely carry what RFC 5280 wants; Python 3.13 began to insist.
        context.verify_flags &= ~getattr(ssl, "VERIFY_X509_STRICT", 0)
    if not verifies:
        context.check_hostname = False
        context.verify_mode = ssl.CERT_NONE
    if takes_anything:
        # RFC 7435: better an old TLS than none. OpenSSL 3 refuses TLS 1.0 above security level 0.
        with suppress(ssl.SSLError):
            context.set_ciphers("DEFAULT:@SECLEVEL=0")
        context.minimum_version = ssl.TLSVersion.MINIMUM_SUPPORTED
    return context


async def read_certificate(profile: Profile, address: SocketAddress) -> bytes:
    """Ask the relay for its certificate, whatever it is worth; DER.

    Raises:
        OSError, aiosmtplib.SMTPException: it was not to be had.
    """
    async with asyncio.timeout(profile.timeouts.tls):
        sock, _ = await connect_to_any([address], within=profile.timeouts.connect)
        client = aiosmtplib.SMTP(
            hostname=profile.host,
            local_hostname="[127.0.0.1]",
            use_tls=profile.tls is TlsMode.IMPLICIT,
            start_tls=False,
            tls_context=_context(False, None, False),
            sock=sock,
        )
        try:
            await client.connect()
            if profile.tls is not TlsMode.IMPLICIT:
                await client.starttls()
            der: bytes = client.get_transport_info("ssl_object").getpeercert(binary_form=True)
            return der
        finally:
            client.close()


def certificate_facts(der: bytes) -> Mapping[str, str]:
    """Read a DER certificate: `names` (joined by ", "), `not_after` (YYYY-MM-DD), `issuer` (its common name)."""
    # Imported here: 5 MB and 60 ms that only a refused certificate needs.
    from cryptography import x509
    from cryptography.x509.oid import NameOID

    certificate = x509.load_der_x509_certificate(der)
    names: list[str] = []
    with suppress(x509.ExtensionNotFound, ValueError):
        alternatives = certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
        names += alternatives.get_values_for_type(x509.DNSName)
        names += [str(ip) for ip in alternatives.get_values_for_type(x509.IPAddress)]
    if not names:
        names = [_text(a.value) for a in certificate.subject.get_attributes_for_oid(NameOID.COMMON_NAME)]
    issuer = certificate.issuer.get_attributes_for_oid(NameOID.COMMON_NAME) or list(certificate.issuer)
    return {
        "names": ", ".join(names[:5]),
        "not_after": f"{certificate.not_valid_after_utc:%Y-%m-%d}",
        "issuer": _text(issuer[0].value)[:100] if issuer else "",
    }


def _text(value: str | bytes) -> str:
    return value if isinstance(value, str) else value.decode("utf-8", "replace")
