"""The relay's end of a connection: what may happen to it, how TLS begins on it, which certificate it shows.

`Link` knows bytes, not SMTP. It records what comes at the moment it comes, whatever its owner waits for,
and goes through memory BIOs instead of `loop.start_tls`: only so does a failed handshake deliver its alert,
as real servers do, and can a connection under TLS be half closed, reset or cut without a close_notify.
"""

import asyncio
import atexit
import contextlib
import datetime
import functools
import hashlib
import shutil
import socket
import ssl
import struct
import tempfile
import warnings
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Self, assert_never, cast

import trustme
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec, rsa

LOCAL = ("localhost", "127.0.0.1", "::1")
LONG_AGO = datetime.datetime(2024, 1, 31, 12, 0, tzinfo=datetime.UTC)
FAR_AWAY = datetime.datetime(2099, 1, 1, tzinfo=datetime.UTC)
Reply = str | bytes  # a str leaves with CRLF at its end and for each "\n" in it; bytes leave as they are


class Stall:
    """Say nothing more on this connection; go on reading and recording."""


@dataclass(frozen=True, slots=True)
class Close:
    """Send FIN after all that was said; go on reading and recording until the peer closes too."""

    close_notify: bool = True  # under TLS; False cuts the stream as a killed server does


class Reset:
    """Send RST."""


class StopReading:
    """Become a black hole: the peer's writes block, once the kernels on both sides hold some megabytes.

    Its end goes unnoticed too: such a connection does not count for `Relay.closed`.
    """


@dataclass(frozen=True, slots=True)
class Wait:
    """Hold the dialogue until the test sets the event; ends it if the peer leaves first."""

    event: asyncio.Event


@dataclass(frozen=True, slots=True)
class Hear:
    """Hold the dialogue until so many bytes have come behind this command: content, a ClientHello."""

    size: int = 1


@dataclass(frozen=True, slots=True)
class Split:
    """Say the reply in two segments, the first of `at` bytes."""

    reply: Reply
    at: int


@dataclass(frozen=True, slots=True)
class Drip:
    """Say the reply in segments of `size` bytes."""

    reply: Reply
    size: int = 1


@dataclass(frozen=True, slots=True)
class StartTLS:
    """Say the reply and shake hands with this context instead of the relay's."""

    context: ssl.SSLContext
    reply: Reply = "220 2.0.0 Ready to start TLS"


Step = Reply | Stall | Close | Reset | StopReading | Wait | Hear | Split | Drip | StartTLS
Answer = Step | tuple[Step, ...] | list[Step]


def GarbageInsteadOfTLS(garbage: bytes = b"no ServerHello\r\n", reply: Reply = "220 Go") -> Answer:
    """Answer the ClientHello with rubbish and stall; sent any earlier, a careful client discards it."""
    return (reply, Hear(), garbage, Stall())


@dataclass(slots=True)
class Record:
    """What went over one connection; under TLS the decrypted bytes."""

    wire: bytearray = field(default_factory=bytearray)  # received
    sent: bytearray = field(default_factory=bytearray)
    tls: bool = False  # the handshake is done


class Over(Exception):
    """Nothing more is to be said on this connection."""


class Link(asyncio.Protocol):
    """One accepted connection; `record` is filled, `inbox` holds what its owner has not consumed yet."""

    def __init__(self, record: Record) -> None:
        self.record = record
        self.inbox, self._outbox = bytearray(), bytearray()
        self.ended, self.lost = asyncio.Event(), asyncio.Event()  # ended: by FIN, close_notify or loss
        self._news = asyncio.Event()
        self._tls: ssl.SSLObject | None = None
        self._bug: Exception | None = None
        self._fin = False  # sent by us

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = cast(asyncio.Transport, transport)
        self._socket: socket.socket = transport.get_extra_info("socket")
        self._socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)

    def data_received(self, data: bytes) -> None:
        if self._tls is None:
            self._take(data)
        else:
            self._decrypt(self._tls, data)

    def eof_received(self) -> bool:
        self._end()
        return True  # keeps our own direction open

    def connection_lost(self, exc: Exception | None) -> None:
        self._bug = None if isinstance(exc, OSError) else exc  # what data_received raised, asyncio only logs
        self.lost.set()
        self._end()

    async def play(self, answer: Answer, said: bytearray) -> None:
        """Go through the steps, keep in `said` what was said; raises `Over` where they end the dialogue."""
        for step in answer if isinstance(answer, tuple | list) else (answer,):
            match step:
                case str() | bytes():
                    said += self.say(step)
                case StartTLS(context, reply):
                    said += self.say(reply)
                    await self.start_tls(context)
                case Split(reply, at):
                    await self.say_apart([_raw(reply)[:at], _raw(reply)[at:]], said)
                case Drip(reply, size):
                    raw = _raw(reply)
                    await self.say_apart([raw[i : i + size] for i in range(0, len(raw), size)], said)
                case Wait(event):
                    await self.held(event)
                case Hear(size):
                    self.flush()
                    while len(self.inbox) < size:
                        await self.more()
                case Stall():
                    self.flush()
                    raise Over
                case Close(close_notify):
                    self.half_close(close_notify=close_notify)
                    raise Over
                case Reset():
                    self.reset()
                    raise Over
                case StopReading():
                    self.stop_reading()
                    raise Over
                case _:
                    assert_never(step)

    def say(self, reply: Reply) -> bytes:
        """Collect for the next `flush`, so that replies to pipelined commands share a segment."""
        raw = _raw(reply)
        self._outbox += raw
        return raw

    async def say_apart(self, pieces: Iterable[bytes], said: bytearray) -> None:
        """Send each piece in a segment of its own, that a peer in this event loop reads before the next."""
        await self._flushed()
        for piece in pieces:
            said += self.say(piece)
            await self._flushed()

    async def _flushed(self) -> None:
        self.flush()
        for _ in range(3):  # one round is not enough: what a poll brings runs behind what is already due
            await asyncio.sleep(0)

    def flush(self) -> None:
        data = bytes(self._outbox)
        self._outbox.clear()
        if data and not self.lost.is_set():
            self.record.sent += data
            if self._tls is None:
                self.transport.write(data)
            else:
                self._tls.write(data)
                self.transport.write(self._cipher_out.read())

    async def more(self) -> None:
        """Flush, then wait for news: bytes, a finished handshake, or the peer's end (raises `Over`)."""
        self.flush()
        if self.ended.is_set():
            raise Over
        self._news.clear()
        await self._news.wait()

    async def held(self, event: asyncio.Event) -> None:
        """Flush, then wait for the event; raises `Over` if the peer ends first."""
        self.flush()
        either = [asyncio.ensure_future(e.wait()) for e in (event, self.ended)]
        try:
            await asyncio.wait(either, return_when=asyncio.FIRST_COMPLETED)
        finally:
            for waiting in either:
                waiting.cancel()
        if not event.is_set():
            raise Over

    async def left(self) -> None:
        """Wait until the peer has ended, and close; raises what went wrong in receiving."""
        await self.ended.wait()
        self.transport.close()
        await self.lost.wait()
        if self._bug is not None:
            raise self._bug

    def wrap(self, context: ssl.SSLContext | None) -> None:
        """Let TLS begin with the next byte, or with those already in the inbox."""
        if context is None:
            raise ValueError("TLS was to begin without a context: give tls= or StartTLS(context)")
        self._cipher_in, self._cipher_out = ssl.MemoryBIO(), ssl.MemoryBIO()
        self._tls = context.wrap_bio(self._cipher_in, self._cipher_out, server_side=True)
        if early := bytes(self.inbox):
            self.inbox.clear()
            del self.record.wire[-len(early) :]
            self._decrypt(self._tls, early)

    async def start_tls(self, context: ssl.SSLContext | None) -> None:
        """Shake hands; raises `Over` if that fails."""
        self.flush()
        self.wrap(context)
        while not self.record.tls:
            await self.more()

    def half_close(self, *, close_notify: bool = True) -> None:
        self.flush()
        if self.lost.is_set():
            return
        if self._tls is not None and close_notify:
            with contextlib.suppress(ssl.SSLError):  # wants the peer's own close_notify, which may never come
                self._tls.unwrap()
            self.transport.write(self._cipher_out.read())
        self._fin = True
        with contextlib.suppress(OSError):  # ENOTCONN: the peer's RST came, though nobody read it yet
            self.transport.write_eof()

    def reset(self) -> None:
        """Send RST instead of FIN; what the kernel took before still arrives."""
        self.flush()
        if not self.lost.is_set():
            self._socket.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            self.transport.abort()

    def stop_reading(self) -> None:
        self.flush()
        if not self.lost.is_set():
            self._socket.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 1)  # the window grows no further
            self.transport.pause_reading()

    def _take(self, plain: bytes) -> None:
        self.record.wire += plain
        self.inbox += plain
        self._news.set()

    def _end(self) -> None:
        self.ended.set()
        self._news.set()

    def _decrypt(self, tls: ssl.SSLObject, data: bytes) -> None:
        self._cipher_in.write(data)
        try:
            if not self.record.tls:
                tls.do_handshake()
                self.record.tls = True
                self._news.set()
            while plain := tls.read(65536):
                self._take(plain)
            self._end()
        except ssl.SSLWantReadError:
            pass
        except ssl.SSLError:
            self._end()
            if getattr(tls.context, "closes_without_alert", False):
                self._cipher_out.read()
                self.transport.close()
                return
        if not self._fin:
            self.transport.write(self._cipher_out.read())  # of a failed handshake: the alert


class ServerContext(ssl.SSLContext):
    """A relay's side of TLS, which knows the certificate that it shows and the names that it was asked for."""

    sha256: str  # of the certificate, lower-case hex
    asked_for: list[str | None]  # SNI, an entry a handshake; None = there was none
    closes_without_alert: bool = False  # where a handshake fails

    @classmethod
    def showing(cls, pem: bytes) -> Self:
        """Show the first certificate in `pem`, where its key is too."""
        context = cls(ssl.PROTOCOL_TLS_SERVER)
        context.set_ciphers("DEFAULT:@SECLEVEL=0")  # to load short keys
        with tempfile.NamedTemporaryFile(suffix=".pem") as file:
            file.write(pem)
            file.flush()
            context.load_cert_chain(file.name)
        first, end, _ = pem[pem.index(b"-----BEGIN CERTIFICATE") :].decode().partition("-----END CERTIFICATE-----")
        context.sha256 = hashlib.sha256(ssl.PEM_cert_to_DER_cert(first + end)).hexdigest()
        context.asked_for = []
        context.sni_callback = lambda _tls, name, _context: context.asked_for.append(name)
        return context


@dataclass(frozen=True, slots=True)
class Certificates:
    """One authority for all tests of a process; clients trust it by `ca_file`."""

    _authority: trustme.CA
    _intermediate: trustme.CA
    ca_file: Path
    self_signed_file: Path  # what `self_signed` shows, to be trusted by itself
    client_file: Path  # a client's certificate of this authority, and its key
    client_cert_file: Path  # the same without the key
    client_key_file: Path
    stranger_file: Path  # a client's certificate of an authority nobody knows, and its key
    intermediate_file: Path  # an intermediate authority's certificate
    whole_chain_file: Path  # the same and its root's

    def server(self, *names: str, until: datetime.datetime | None = None) -> ServerContext:
        """Show a good certificate, by default for localhost, 127.0.0.1 and ::1."""
        return _context(self._authority.issue_cert(*(names or LOCAL), not_after=until))

    def expired(self, *names: str) -> ServerContext:
        """Show one that ended on 2024-01-31."""
        return self.server(*names, until=LONG_AGO)

    def wrong_name(self, name: str = "other.test") -> ServerContext:
        return _context(self._authority.issue_cert(name))

    def untrusted(self) -> ServerContext:
        """Show a certificate of an authority nobody knows."""
        return _context(trustme.CA().issue_cert(*LOCAL))

    def self_signed(self) -> ServerContext:
        return ServerContext.showing(self.self_signed_file.read_bytes())

    def tls10_only(self) -> ServerContext:
        """Speak TLS 1.0 and nothing newer; OpenSSL 3 does so at security level 0 only."""
        return self._only(ssl.TLSVersion.TLSv1)

    def tls12_only(self) -> ServerContext:
        return self._only(ssl.TLSVersion.TLSv1_2)

    def tls13_only(self) -> ServerContext:
        return self._only(ssl.TLSVersion.TLSv1_3)

    def odd_cipher_only(self) -> ServerContext:
        """Know only ciphers that go with another kind of key than the one there is."""
        context = self.tls12_only()
        context.set_ciphers("AES128-SHA:@SECLEVEL=0")
        return context

    def tls12_demanding(self) -> ServerContext:
        """Demand a client's certificate of this authority; where there is none, the handshake fails."""
        return self._demanding(self.tls12_only())

    def tls13_demanding(self) -> ServerContext:
        """Demand one too; the client learns of its failure only when its own handshake is done (RFC 8446 §4.4.2.4)."""
        return self._demanding(self.tls13_only())

    def without_intermediate(self) -> ServerContext:
        """Show a certificate of an intermediate authority, and not the authority's own."""
        leaf = self._intermediate.issue_cert(*LOCAL)
        return ServerContext.showing(leaf.private_key_pem.bytes() + leaf.cert_chain_pems[0].bytes())

    def short_dh(self) -> ServerContext:
        """Agree on keys by 1,024 bits of DHE only."""
        context = self._old("DHE-RSA-AES256-GCM-SHA384")
        with tempfile.NamedTemporaryFile() as file:
            file.write(_DH_1024)
            file.flush()
            context.load_dh_params(file.name)
        return context

    def rsa_cipher_only(self) -> ServerContext:
        return self._old("AES256-GCM-SHA384")

    def sha1_cipher_only(self) -> ServerContext:
        return self._old("ECDHE-RSA-AES256-SHA")

    def short_key(self) -> ServerContext:
        """Show a good certificate for an RSA key of 1,024 bits."""
        return self._old("DEFAULT", bits=1024)

    def _old(self, ciphers: str, *, bits: int = 2048) -> ServerContext:
        context = ServerContext.showing(_rsa(self._authority, bits))
        context.minimum_version = context.maximum_version = ssl.TLSVersion.TLSv1_2
        context.set_ciphers(f"{ciphers}:@SECLEVEL=0")
        return context

    def _only(self, version: ssl.TLSVersion) -> ServerContext:
        context = self.server()
        context.set_ciphers("ALL:@SECLEVEL=0")
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", DeprecationWarning)
            context.minimum_version = context.maximum_version = version
        return context

    def _demanding(self, context: ServerContext) -> ServerContext:
        context.verify_mode = ssl.CERT_REQUIRED
        self._authority.configure_trust(context)
        return context


@functools.cache
def certificates() -> Certificates:
    """Make the authority and its files once for this process; they go with it."""
    authority = trustme.CA()
    directory = tempfile.mkdtemp(prefix="relay-tls-")
    atexit.register(shutil.rmtree, directory, ignore_errors=True)
    root = trustme.CA(organization_name="Old Root")
    intermediate = root.create_child_ca()
    client, stranger = authority.issue_cert("client.test"), trustme.CA().issue_cert("client.test")
    contents = {
        "ca": authority.cert_pem.bytes(),
        "self-signed": _self_signed(),
        "client": client.private_key_and_cert_chain_pem.bytes(),
        "client-cert": client.cert_chain_pems[0].bytes(),
        "client-key": client.private_key_pem.bytes(),
        "stranger": stranger.private_key_and_cert_chain_pem.bytes(),
        "intermediate": intermediate.cert_pem.bytes(),
        "whole-chain": intermediate.cert_pem.bytes() + root.cert_pem.bytes(),
    }
    files = [Path(directory, f"{name}.pem") for name in contents]
    for file, content in zip(files, contents.values(), strict=True):
        file.write_bytes(content)
    return Certificates(authority, intermediate, *files)


def _raw(reply: Reply) -> bytes:
    if isinstance(reply, bytes):
        return reply
    return f"{reply}\n".replace("\n", "\r\n").encode(errors="surrogateescape")


def _context(leaf: trustme.LeafCert) -> ServerContext:
    return ServerContext.showing(leaf.private_key_and_cert_chain_pem.bytes())


# openssl dhparam -dsaparam 1024
_DH_1024 = b"""-----BEGIN X9.42 DH PARAMETERS-----
MIIBJgKBgQC7u+HiDhoe3IQb5iY7yYmMGXVckd0c9JFmoDfKEnjhttXT1JVFQZcs
gotSvCg5zIFY8wYorw/fP92mzoSZlnlWeB1GEPEQTTxCGzKJfjm3XvUZQ+sN08LL
n8hnbkW2KQstn27aO+aiMEZPQGrgnM1creg94ofO4pVSZnn6nVjyAQKBgBnfrg+7
k+HiOj9Ukl9bRWgBHJ9OyrmPPwyLBW3herjHGIi7LCr/SmldfWu4zi736SudwepW
+QU3jbmT60vcIaferKxjbxfA5eDaNra+X33LfxxS/X/6UiLbboiV02JsvzwnQAlY
O6f+PM0DiQCvoyR0dJfX578YTTB0cOVNcVYWAh0AsTKq2mbxV5xlSmrdZhSGR0uD
uzbIU4i/a3Z2fw==
-----END X9.42 DH PARAMETERS-----
"""


@functools.cache
def _rsa(authority: trustme.CA, bits: int) -> bytes:
    """Make an RSA key of so many bits and a certificate of this authority for it (PEM)."""
    key = rsa.generate_private_key(65537, bits)
    issuer = x509.load_pem_x509_certificate(authority.cert_pem.bytes())
    signer = serialization.load_pem_private_key(authority.private_key_pem.bytes(), None)
    leaf = x509.load_pem_x509_certificate(authority.issue_cert(*LOCAL).cert_chain_pems[0].bytes())
    builder = x509.CertificateBuilder(
        issuer.subject, leaf.subject, key.public_key(), x509.random_serial_number(), LONG_AGO, FAR_AWAY
    )
    names = leaf.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    certificate = builder.add_extension(names, critical=False).sign(
        cast(ec.EllipticCurvePrivateKey, signer), hashes.SHA256()
    )
    return _pem(key) + certificate.public_bytes(serialization.Encoding.PEM)


def _pem(key: rsa.RSAPrivateKey | ec.EllipticCurvePrivateKey) -> bytes:
    return key.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )


def _self_signed() -> bytes:
    """Make key and certificate for localhost, 127.0.0.1 and ::1, signed by no authority (PEM)."""
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, "localhost")])
    # trustme keeps the parsing of names to itself; a leaf of its own has the ones needed here
    leaf = x509.load_pem_x509_certificate(trustme.CA().issue_cert(*LOCAL).cert_chain_pems[0].bytes())
    names = leaf.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    certificate = (
        x509.CertificateBuilder(name, name, key.public_key(), x509.random_serial_number())
        .not_valid_before(LONG_AGO)
        .not_valid_after(FAR_AWAY)
        .add_extension(names, critical=False)
        .sign(key, hashes.SHA256())
    )
    return _pem(key) + certificate.public_bytes(serialization.Encoding.PEM)
