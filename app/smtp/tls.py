"""TLS contexts, what a certificate says of itself, and whether weaker TLS than the profile's would do.

A context costs 20 ms of CPU to build, so there is one for each way of verifying.
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
from typing import TypeAlias, cast

import aiosmtplib

from app.mail.profile import Profile, TlsMode, TlsVersion
from app.smtp.handshake import Connection, watch
from app.smtp.network import SocketAddress, connect_to_any

_File: TypeAlias = tuple[str, int]  # path, and when it was last written
_VERSIONS = {
    TlsVersion.V1_0: ssl.TLSVersion.TLSv1,
    TlsVersion.V1_1: ssl.TLSVersion.TLSv1_1,
    TlsVersion.V1_2: ssl.TLSVersion.TLSv1_2,
    TlsVersion.V1_3: ssl.TLSVersion.TLSv1_3,
}
_BY_NAME = {
    "TLSv1": TlsVersion.V1_0,
    "TLSv1.1": TlsVersion.V1_1,
    "TLSv1.2": TlsVersion.V1_2,
    "TLSv1.3": TlsVersion.V1_3,
}
MOST_NAMES = 20  # of a certificate's, that are kept


@dataclass(frozen=True, slots=True)
class Certificate:
    """What a relay's certificate says of itself."""

    names: tuple[str, ...]  # that it is for; like the next two empty where they cannot be read
    not_after: str  # YYYY-MM-DD, its last day
    issuer: str  # its common name
    is_self_signed: bool
    strength: int  # of its key in bits of security (NIST SP 800-57), as far as OpenSSL's levels ask: 0, 80 or 112
    sha256: str  # lower-case hex


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
        level=0 if profile.tls is TlsMode.OPPORTUNISTIC else profile.tls_security_level,
        verifies=verifies,
    )


def _dated(path: str | None) -> _File | None:
    return None if path is None else (path, Path(path).stat().st_mtime_ns)


@lru_cache(maxsize=64)
def _context(
    *,
    ca: _File | None,
    client: tuple[_File | None, _File | None],
    min_tls: TlsVersion | None,
    level: int | None,
    verifies: bool,
) -> ssl.SSLContext:
    """Build a context.

    `min_tls` None = any version: an old TLS is better than none (RFC 7435). `level` None = Python's own choice of
    ciphers at this machine's security level.
    """
    with _reading(ca):
        context = ssl.create_default_context(cafile=ca[0] if ca else None)
    context.sslobject_class = Connection
    watch(context)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # there was a warning at start
        # Said in any case: Debian's Python leaves it to OpenSSL's settings, which take anything.
        context.minimum_version = _VERSIONS[min_tls] if min_tls else ssl.TLSVersion.MINIMUM_SUPPORTED
    if ca is not None:
        # Internal CAs rarely carry what RFC 5280 wants; Python 3.13 began to insist.
        context.verify_flags &= ~getattr(ssl, "VERIFY_X509_STRICT", 0)
        # An intermediate in ca_file is trusted by itself; Python 3.13 began to do so.
        context.verify_flags |= ssl.VERIFY_X509_PARTIAL_CHAIN
    if not verifies:
        context.check_hostname = False
        context.verify_mode = ssl.CERT_NONE
    if level is not None:
        with suppress(ssl.SSLError):
            context.set_ciphers(f"DEFAULT:@SECLEVEL={level}")
    certificate, key = client
    if certificate is not None:
        with _reading(certificate):
            ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT).load_verify_locations(certificate[0])  # whether it is one
        with _reading(key or certificate):
            context.load_cert_chain(certificate[0], key[0] if key else None, password="")
    return context


def lax_context() -> ssl.SSLContext:
    """Return the cached context that verifies nothing and takes any version, cipher and key."""
    return _context(ca=None, client=(None, None), min_tls=None, level=0, verifies=False)


@contextmanager
def _reading(file: _File | None) -> Iterator[None]:
    """Put into an error the file that it is about: OpenSSL does not say."""
    try:
        yield
    except OSError as error:  # SSLError is one
        error.filename = file[0] if file else None
        raise


@dataclass(frozen=True, slots=True)
class Weaker:
    """TLS that the relay does at security level 0, from any version on."""

    version: TlsVersion
    level: int  # the highest security level at which the rest would do


async def weakest(profile: Profile, address: SocketAddress, helo_name: str) -> Weaker:
    """Shake hands once more, with any version, cipher and key; over a connection of its own, which verifies nothing.

    Raises:
        OSError, aiosmtplib.SMTPException: it does not work so either.
    """
    async with asyncio.timeout(profile.timeouts.tls):
        sock, _ = await connect_to_any([address], within=profile.timeouts.connect)
        client = aiosmtplib.SMTP(
            hostname=profile.server_name or profile.host,
            local_hostname=helo_name,
            use_tls=profile.tls is TlsMode.IMPLICIT,
            start_tls=False,
            tls_context=lax_context(),
            sock=sock,
        )
        try:
            await client.connect()
            if profile.tls is not TlsMode.IMPLICIT:
                await client.starttls()
            tls = client.get_transport_info("ssl_object")
            certificate = await certificate_of(tls)
        finally:
            if client.transport is not None:
                cast("asyncio.Transport", client.transport).abort()  # a dead peer owes us a close_notify for 30 s
            client.close()
    version = _BY_NAME[tls.version()]
    if version in (TlsVersion.V1_0, TlsVersion.V1_1):
        level = 0  # OpenSSL 3 does these at level 0 only
    else:
        # Levels 1 and 2 take RSA keys from 1,024 and 2,048 bits; the size of a DHE key is not to be had.
        strength = certificate.strength if certificate else 0
        level = 0 if strength < 80 else 1 if strength < 112 or tls.cipher()[0].startswith("DHE-") else 2
    return Weaker(version, level)


async def certificate_of(tls: ssl.SSLObject) -> Certificate | None:
    """Read the certificate that the peer of a TLS connection showed."""
    der = tls.getpeercert(binary_form=True)
    return None if der is None else await read_certificate(der)


async def read_certificate(der: bytes) -> Certificate:
    """Read a certificate, whatever it is worth."""
    # In a thread: it takes a millisecond; later ones are remembered.
    return await asyncio.to_thread(_certificate, der)


def prepare() -> None:
    """Import what reads certificates: 8 MB, which only a profile with TLS needs."""
    import cryptography.x509  # noqa: F401


@lru_cache(maxsize=64)
def _certificate(der: bytes) -> Certificate:
    from cryptography import x509
    from cryptography.x509.oid import NameOID

    names: list[str] = []
    not_after = issuer = ""
    is_self_signed, strength = False, 112
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
        is_self_signed = certificate.issuer == certificate.subject
        with suppress(Exception):
            strength = _strength(certificate.public_key())
    return Certificate(
        names=tuple(name[:255] for name in names[:MOST_NAMES]),
        not_after=not_after,
        issuer=issuer,
        is_self_signed=is_self_signed,
        strength=strength,
        sha256=sha256(der).hexdigest(),
    )


def _strength(key: object) -> int:
    bits = int(getattr(key, "key_size", 0) or 256)  # Ed25519 and Ed448 have no size
    weak, short = (160, 224) if hasattr(key, "curve") or not hasattr(key, "key_size") else (1024, 2048)
    return 0 if bits < weak else 80 if bits < short else 112


def _text(value: str | bytes) -> str:
    return value if isinstance(value, str) else value.decode("utf-8", "replace")
