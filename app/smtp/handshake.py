"""What a relay shows and asks for in a TLS handshake, whatever comes of it.

Python returns no certificate after a failed verification, and never says that one of ours was asked for. OpenSSL
reports every message of a handshake (`SSLContext._msg_callback`, which has no public name); without it, hints know
less. RFC 5246 §7.4.2, §7.4.4, RFC 8446 §4.2.4, §4.3.2, §4.4.2.

A relay that refuses our certificate says so in an alert: under TLS 1.2 in the handshake, under TLS 1.3 when that is
over for us, instead of the greeting or the reply to EHLO (RFC 8446 §4.4.2.4). `Connection` hears it there too.
"""

from __future__ import annotations

import ssl
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from typing import Any

MOST_AUTHORITIES = 5  # of those that a relay names, that are kept
_HANDSHAKE = 22  # content type, RFC 8446 §5.1
_CERTIFICATE, _CERTIFICATE_REQUEST = 11, 13
_TLS_1_2, _TLS_1_3 = 0x0303, 0x0304
_AUTHORITIES = 47  # extension, RFC 8446 §4.2.4
_COMMON_NAME, _ORGANISATION = b"\x55\x04\x03", b"\x55\x04\x0a"
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


@dataclass(slots=True)
class Seen:
    """What the relay sent in the latest handshake. `chain` is DER, its own certificate first."""

    chain: tuple[bytes, ...] = ()
    asks_for_ours: bool = False
    authorities: tuple[str, ...] = ()  # by which ours should be signed; empty = it does not say


_seen: ContextVar[Seen] = ContextVar("seen")


@contextmanager
def watched(seen: Seen) -> Iterator[None]:
    """Fill `seen` in by the handshakes of connections that are made inside."""
    token = _seen.set(seen)
    try:
        yield
    finally:
        _seen.reset(token)


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
        _stop_watching(self)

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


# Below ssl.SSLContext, whose own setter turns four numbers into enums for every record.
_CALLBACK = getattr(ssl.SSLContext.__base__, "_msg_callback", None)


def watch(context: ssl.SSLContext) -> None:
    """Have handshakes of this context fill in what `watched()` was given."""
    if _CALLBACK is not None:
        _CALLBACK.__set__(context, _on_message)


def _stop_watching(connection: ssl.SSLObject) -> None:
    """Spare a connection the call for every record: it takes its callback from its context whenever that is set."""
    if _CALLBACK is not None:
        context = connection.context
        _CALLBACK.__set__(context, None)
        connection.context = context
        _CALLBACK.__set__(context, _on_message)


def _on_message(_: object, direction: str, version: int, content: int, kind: int, data: bytes) -> None:
    if content != _HANDSHAKE or direction != "read" or kind not in (_CERTIFICATE, _CERTIFICATE_REQUEST):
        return
    seen = _seen.get(None)
    if seen is None:
        return
    try:
        if kind == _CERTIFICATE:
            seen.chain = tuple(certificates_in(data, version))
        else:
            seen.asks_for_ours = True
            seen.authorities = tuple(authorities_in(data, version))[:MOST_AUTHORITIES]
    except (IndexError, ValueError):  # OpenSSL refuses such a message by itself
        return


def certificates_in(message: bytes, version: int) -> Iterator[bytes]:
    """Read the certificates of a Certificate message, with its four bytes of header."""
    body = message[4:]
    if version >= _TLS_1_3:
        body = body[1 + body[0] :]  # the request's context
    left, _ = _cut(body, 3)
    while left:
        certificate, left = _cut(left, 3)
        if version >= _TLS_1_3:
            _, left = _cut(left, 2)  # extensions
        yield certificate


def authorities_in(message: bytes, version: int) -> Iterator[str]:
    """Read whom a CertificateRequest wants ours to be signed by, with its four bytes of header."""
    _, body = _cut(message[4:], 1)  # types of certificates, or the request's context
    if version >= _TLS_1_3:
        extensions, names = _cut(body, 2)[0], b""
        while extensions:
            kind = int.from_bytes(extensions[:2], "big")
            value, extensions = _cut(extensions[2:], 2)
            if kind == _AUTHORITIES:
                names = _cut(value, 2)[0]
    else:
        if version == _TLS_1_2:
            _, body = _cut(body, 2)  # signature algorithms
        names = _cut(body, 2)[0]
    while names:
        name, names = _cut(names, 2)
        yield name_in(name)


def _cut(data: bytes, size: int) -> tuple[bytes, bytes]:
    """Return what a length of `size` bytes stands in front of, and what follows."""
    end = size + int.from_bytes(data[:size], "big")
    if len(data) < end:
        raise ValueError("cut off")
    return data[size:end], data[end:]


def name_in(der: bytes) -> str:
    """Return the common name of a distinguished name, else its organisation, else "" (X.501, DER)."""
    found: dict[bytes, str] = {}
    names, _ = _value(der)
    while names:
        relative, names = _value(names)
        pair, _ = _value(relative)
        oid, rest = _value(pair)
        found.setdefault(oid, _value(rest)[0].decode("utf-8", "replace"))
    text = found.get(_COMMON_NAME) or found.get(_ORGANISATION) or ""
    return "".join(c for c in text if c.isprintable())[:100]


def _value(der: bytes) -> tuple[bytes, bytes]:
    """Return the first value in DER, and what follows it."""
    length, at = der[1], 2
    if length & 0x80:
        at += length & 0x7F
        length = int.from_bytes(der[2:at], "big")
    return der[at : at + length], der[at + length :]
