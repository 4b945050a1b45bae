"""One connection's way to a session: connect, tls, greeting, ehlo, starttls, ehlo, auth, in this order.

Implicit TLS comes before the greeting. We connect ourselves, so that phases are true; aiosmtplib greets and upgrades,
one command at a time; then the `Wire` takes the transport over, for the login (`login.py`) and all that follows. Two
defaults of aiosmtplib are kept out: an opportunistic STARTTLS, and `getfqdn` on each connection.

RFC 5321 §3.1–3.2, RFC 3207 (STARTTLS), RFC 4954 (AUTH), RFC 8314 (implicit TLS).
"""

from __future__ import annotations

import asyncio
import socket
import ssl
from collections.abc import Sequence
from typing import cast

import aiosmtplib

from app.mail.attempt import Attempt
from app.mail.errors import TransactionError
from app.mail.outcome import Failure, Phase
from app.mail.profile import Profile, TlsMode, is_loopback
from app.mail.reply import Reply, printable
from app.smtp import classify
from app.smtp.banners import server_of
from app.smtp.handshake import Connection, OursRefused, Seen, watched
from app.smtp.login import choose_mechanism, credentials_of, log_in
from app.smtp.mechanisms import BrokenOff
from app.smtp.network import OwnName, SocketAddress, connect_to_any
from app.smtp.session import Session
from app.smtp.tls import certificate_of, context_for
from app.smtp.wire import Breach, Unexpected, Wire

LONG_SILENCE = 5.0  # seconds without a greeting, from which on a hang-up counts as a time-out


class _Client(aiosmtplib.SMTP):
    """aiosmtplib's client, but it does not wait for a close_notify that a dead peer owes us for 30 s."""

    def close(self) -> None:
        transport = self.transport
        super().close()
        if transport is not None:
            cast("asyncio.Transport", transport).abort()


class HandshakeFailed(Exception):
    """TLS did not come about on this connection. `cause` is what was raised, or our reading of it."""

    def __init__(self, cause: BaseException) -> None:
        super().__init__(str(cause))
        self.cause = cause


class ClosedBehindHandshake(Exception):
    """The relay closed at the first word under TLS: so do some that want a certificate of ours (RFC 8446 §4.4.2.4)."""

    def __init__(self, failure: Failure) -> None:
        super().__init__(failure.message)
        self.failure = failure


class Opening:
    """One walk through the opening phases; holds the half-open connection."""

    def __init__(
        self,
        profile: Profile,
        attempt: Attempt,
        addresses: Sequence[SocketAddress],
        own_name: OwnName,
        *,
        in_clear: bool = False,
    ) -> None:
        self._profile = profile
        self._attempt = attempt
        self._addresses = addresses
        self._own_name = own_name
        self._in_clear = in_clear or profile.tls is TlsMode.NONE
        self.address: SocketAddress | None = None  # the one that took the connection
        self._client: _Client | None = None
        self._wire: Wire | None = None  # in the client's place, once it is there
        self.local_name = ""  # by which we introduce ourselves
        self.seen = Seen()
        self._tls: Connection | None = None
        self._is_behind_handshake = False  # until the relay says its first word under TLS
        self._connected_at = 0.0
        self._greeting = ""

    async def run(self) -> Session:
        """Return a session.

        Raises:
            TransactionError: it did not come about; nothing was sent.
            HandshakeFailed: the same, and TLS is why, or may be.
        """
        try:
            with watched(self.seen):
                return await self._walk()
        except BaseException:
            if self._wire is not None:
                self._wire.close()
            elif self._client is not None:
                self._client.close()
            raise

    async def _walk(self) -> Session:
        sock = await self._connect()
        client = await self._greet(sock)
        await self._note_tls(client)
        await self._ehlo(client)
        if self._profile.tls in (TlsMode.STARTTLS, TlsMode.OPPORTUNISTIC) and not self._in_clear:
            await self._upgrade(client)
        # uvloop's transports are no subclass of asyncio's, but they are transports.
        transport = cast("asyncio.Transport | None", client.transport)
        if transport is None or transport.is_closing():
            raise TransactionError(classify.opening_broke(self._profile, self._attempt.phase, is_timeout=False))
        extensions = {key.upper(): value for key, value in client.esmtp_extensions.items()}
        wire = self._wire = Wire(transport)
        if self._profile.wants_login:
            await self._log_in(wire, extensions)
        return Session(self._profile, wire, self._attempt, extensions, greeting=self._greeting)

    @property
    def _server_name(self) -> str:
        return self._profile.server_name or self._profile.host

    async def _connect(self) -> socket.socket:
        self._attempt.enter(Phase.CONNECT)
        try:
            sock, self.address = await connect_to_any(self._addresses, within=self._profile.timeouts.connect)
        except OSError as error:
            raise TransactionError(classify.connecting(self._profile, error)) from error
        self._attempt.ip = self.address[1][0]
        self._connected_at = self._attempt.clock()
        return sock

    async def _greet(self, sock: socket.socket) -> _Client:
        implicit = self._profile.tls is TlsMode.IMPLICIT
        timeouts = self._profile.timeouts
        self._attempt.enter(Phase.TLS if implicit else Phase.GREETING)
        try:
            self.local_name = await self._helo_name(sock)
            client = self._client = _Client(
                hostname=self._server_name,
                local_hostname=self.local_name,
                use_tls=implicit,
                start_tls=False,
                tls_context=self._context() if implicit else None,
                # aiosmtplib has one bound for the handshake and again for the greeting.
                timeout=max(timeouts.tls, timeouts.greeting) if implicit else timeouts.greeting,
                sock=sock,
            )
        except BaseException:
            sock.close()
            raise
        try:
            greeting = await client.connect()
        except aiosmtplib.SMTPConnectResponseError as error:
            raise self._refused(Phase.GREETING, error) from error
        except (aiosmtplib.SMTPException, OSError) as error:
            raise self._greeting_failed(error, implicit=implicit) from error
        self._attempt.enter(Phase.GREETING)
        self._greeting = greeting.message
        self._attempt.hear(_reply(greeting.code, greeting.message))
        self._refuse_surplus(client)
        return client

    def _greeting_failed(self, error: Exception, *, implicit: bool) -> Exception:
        """Tell a failed handshake from a missing greeting: aiosmtplib does both in one call."""
        if isinstance(error, aiosmtplib.SMTPResponseException):
            return self._refused(Phase.GREETING, error)
        cause = error.__cause__
        if cause is not None and isinstance(cause.__cause__, OursRefused):
            return HandshakeFailed(cause.__cause__)
        greets = isinstance(cause, aiosmtplib.SMTPReadTimeoutError | aiosmtplib.SMTPServerDisconnected)
        if implicit and not greets:
            cause = _handshake_cause(error)
            gave_up = not isinstance(cause, ssl.SSLError) and self._was_silent_for_long(self._profile.timeouts.tls)
            return HandshakeFailed(TimeoutError() if gave_up else cause)
        self._attempt.enter(Phase.GREETING)
        if _is_timeout(error) or self._was_silent_for_long(self._profile.timeouts.greeting):
            return TransactionError(classify.greeting_timeout(self._profile))
        failure = classify.no_greeting(self._profile)
        return HandshakeFailed(ClosedBehindHandshake(failure)) if implicit else TransactionError(failure)

    def _was_silent_for_long(self, timeout: float) -> bool:
        """Whether a relay that hung up gave up waiting for us: both ends have a time-out, and either may be first."""
        waited = self._attempt.clock() - self._connected_at
        return waited >= min(LONG_SILENCE, timeout / 2)

    async def _helo_name(self, sock: socket.socket) -> str:
        """RFC 5321 §4.1.3: the FQDN, or the address literal where there is none."""
        name = self._profile.helo_name or await self._own_name()
        if name:
            return name
        ip = sock.getsockname()[0]
        return f"[IPv6:{ip}]" if ":" in ip else f"[{ip}]"

    async def _ehlo(self, client: _Client) -> None:
        self._attempt.enter(Phase.EHLO)
        self._attempt.say(f"EHLO {client.local_hostname}")
        timeout = self._profile.timeouts.ehlo
        try:
            reply = await client.ehlo(timeout=timeout)
            self._attempt.hear(_reply(reply.code, reply.message))
            self._refuse_surplus(client)
            self._attempt.extensions = [f"{k.upper()} {v}".rstrip() for k, v in client.esmtp_extensions.items()]
            return
        except aiosmtplib.SMTPHeloError as error:
            if not 500 <= error.code < 600:
                raise self._refused(Phase.EHLO, error) from error
            self._attempt.hear(_reply(error.code, error.message))
        except (aiosmtplib.SMTPException, OSError) as error:
            raise self._refused(Phase.EHLO, error) from error
        self._attempt.extensions = []
        self._attempt.say(f"HELO {client.local_hostname}")  # RFC 5321 §3.2
        try:
            reply = await client.helo(timeout=timeout)
        except (aiosmtplib.SMTPException, OSError) as error:
            raise self._refused(Phase.EHLO, error) from error
        self._attempt.hear(_reply(reply.code, reply.message))

    def _refuse_surplus(self, client: _Client) -> None:
        """Close where the relay said more than it was asked: aiosmtplib would take it for the next reply.

        It has no public way to ask; without the attribute (another version) the surplus is only not seen here.
        """
        surplus = bytes(getattr(client.protocol, "_buffer", b""))
        if surplus:
            raise TransactionError(
                classify.breach(self._profile, self._attempt.phase, Unexpected(printable(surplus[:200])))
            )

    async def _upgrade(self, client: _Client) -> None:
        optional = self._profile.tls is TlsMode.OPPORTUNISTIC
        if not client.supports_extension("STARTTLS"):
            if optional:
                return
            self._attempt.enter(Phase.STARTTLS)
            offered = client.esmtp_extensions.get("auth", "")
            raise TransactionError(classify.tls_not_offered(self._profile, auth_offered=offered))
        self._attempt.enter(Phase.STARTTLS)
        context = self._context()
        self._attempt.say("STARTTLS")
        timeouts = self._profile.timeouts
        try:
            reply = await client.starttls(
                server_hostname=self._server_name,
                tls_context=context,
                timeout=max(timeouts.starttls, timeouts.tls),
            )
        except aiosmtplib.SMTPResponseException as error:
            refusal = self._refused(Phase.STARTTLS, error)
            if optional:
                raise HandshakeFailed(refusal) from error
            raise refusal from error
        except (aiosmtplib.SMTPException, OSError) as error:
            in_handshake = "upgrading" in str(error) or isinstance(error, ssl.SSLError)
            if not in_handshake and not optional:
                raise self._refused(Phase.STARTTLS, error) from error
            raise HandshakeFailed(_handshake_cause(error)) from error
        self._attempt.hear(_reply(reply.code, reply.message))
        await self._note_tls(client)
        # RFC 3207 §4.2: what was learned before is forgotten; aiosmtplib has emptied its buffer.
        self._is_behind_handshake = True
        await self._ehlo(client)
        self._is_behind_handshake = False

    async def _log_in(self, wire: Wire, extensions: dict[str, str]) -> None:
        profile = self._profile
        self._attempt.enter(Phase.AUTH)
        offered, mechanism = self._choose(extensions)
        credentials = await credentials_of(profile)
        self._attempt.auth = mechanism
        facts = {"offered": offered, "mechanism": mechanism}
        try:
            reply = await log_in(wire, mechanism, credentials, attempt=self._attempt, timeout=profile.timeouts.auth)
        except BrokenOff as broken:
            raise TransactionError(classify.broken_off(profile, broken, facts)) from broken
        except Breach as breach:
            raise TransactionError(classify.breach(profile, Phase.AUTH, breach, facts=facts)) from breach
        if reply.code != 235:
            raise TransactionError(classify.opening(profile, Phase.AUTH, reply, offered=offered, mechanism=mechanism))

    def _choose(self, extensions: dict[str, str]) -> tuple[str, str]:
        """Return the mechanisms on offer, and the one to use."""
        profile = self._profile
        in_clear = not (self._attempt.tls or profile.allow_cleartext_auth or is_loopback(self._attempt.ip or ""))
        if "AUTH" not in extensions:
            before_starttls = "STARTTLS" in extensions and not self._attempt.tls
            raise TransactionError(classify.auth_not_offered(profile, before_starttls=before_starttls))
        offered = extensions["AUTH"].upper()
        mechanism = choose_mechanism(profile.auth, offered.split(), in_clear=in_clear)
        # Under TLS what is offered would do, or more may be offered.
        tls_would_do = choose_mechanism(profile.auth, offered.split()) is not None or "STARTTLS" in extensions
        if mechanism is None and in_clear and tls_would_do:
            raise TransactionError(classify.auth_needs_tls(profile))
        if mechanism is None:
            raise TransactionError(classify.auth_mechanism_unsupported(profile, offered))
        return offered, mechanism

    def _context(self) -> ssl.SSLContext:
        try:
            return context_for(self._profile)
        except OSError as error:
            files = {key: getattr(self._profile, key) for key in ("ca_file", "client_cert", "client_key")}
            key = next((key for key, path in files.items() if path and path == error.filename), "ca_file")
            why = error.strerror or str(error)
            raise TransactionError(classify.unreadable(self._profile, self._attempt.phase, key, why)) from error

    async def _note_tls(self, client: _Client) -> None:
        """Keep what TLS came to, and refuse another certificate than the pinned one."""
        if not client.is_connected:
            return  # which the next command finds
        tls = self._tls = client.get_transport_info("ssl_object")
        if tls is None:
            return
        attempt, pin = self._attempt, self._profile.cert_sha256
        attempt.tls = True
        attempt.tls_version = tls.version()
        attempt.tls_cipher = tls.cipher()[0]
        certificate = await certificate_of(tls)
        if certificate is not None:
            attempt.tls_names = certificate.names
            attempt.tls_not_after = certificate.not_after or None
            attempt.tls_sha256 = certificate.sha256
        if pin and (certificate is None or certificate.sha256 != pin):
            failure = classify.pin_mismatch(self._profile, certificate)
            attempt.phase, attempt.tls_error = failure.phase, failure.message
            raise TransactionError(failure)
        attempt.tls_verified = bool(pin) or self._context().verify_mode is ssl.CERT_REQUIRED

    def _refused(self, phase: Phase, error: Exception) -> Exception:
        """Map what aiosmtplib raised in an opening phase."""
        if self._attempt.phase is not phase:
            self._attempt.enter(phase)
        profile = self._profile
        if isinstance(error, aiosmtplib.SMTPResponseException):
            if error.code < 200:
                return TransactionError(classify.malformed(profile, phase, error.message.partition(": ")[2]))
            if error.code > 599:
                return TransactionError(classify.malformed(profile, phase, f"{error.code} {error.message}"))
            said = _reply(error.code, error.message)
            self._attempt.hear(said)
            lines = (f"{error.code} {said.text}", f"220 {self._greeting}")
            server = next((name for line in lines if (name := server_of(line))), "")
            if server and phase in (Phase.GREETING, Phase.EHLO):
                return TransactionError(classify.not_smtp(profile, phase, server, lines[0]))
            return TransactionError(classify.opening(profile, phase, said, helo_name=self.local_name))
        if self._tls is not None and self._tls.refusal is not None:
            return HandshakeFailed(self._tls.refusal)
        failure = classify.opening_broke(profile, phase, is_timeout=_is_timeout(error))
        if self._is_behind_handshake and not _is_timeout(error):
            return HandshakeFailed(ClosedBehindHandshake(failure))
        return TransactionError(failure)


def _reply(code: int, message: str) -> Reply:
    return Reply(code, tuple(printable(line.encode("utf-8", "surrogateescape")) for line in message.split("\n")))


def _is_timeout(error: BaseException) -> bool:
    return isinstance(error, TimeoutError)


def _handshake_cause(error: Exception) -> BaseException:
    """What really ended the handshake; asyncio reports its own time-out as an aborted connection."""
    cause = error if isinstance(error, ssl.SSLError) else error.__cause__ or error
    return TimeoutError() if isinstance(cause, TimeoutError | ConnectionAbortedError) else cause
