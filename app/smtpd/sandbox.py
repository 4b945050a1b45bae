"""The sandbox's profiles: one that keeps what it is given, and three that fail, each as a real relay would.

All of them are on loopback, and the failures are real ones: a login that is refused, a port where nobody listens, a
certificate that has expired.
"""

from __future__ import annotations

import socket
import ssl
from collections.abc import Mapping
from contextlib import AsyncExitStack
from functools import lru_cache
from pathlib import Path
from typing import Any

from app.mail.profile import (
    SANDBOX_DOWN,
    SANDBOX_EAUTH,
    SANDBOX_PROFILE,
    SANDBOX_TLS_EXPIRED,
    AuthMode,
    Dialect,
    Profile,
    ProfileFacts,
    TlsMode,
    resolve_profile,
)
from app.smtpd.sink import Sink

HOST = "127.0.0.1"
_CERTIFICATE = Path(__file__).parent / "expired" / "certificate.pem"
_KEY = _CERTIFICATE.with_name("key.pem")


class Sandbox:
    """Everything that listens in the sandbox. `close()` is idempotent."""

    profiles: Mapping[str, Profile]

    def __init__(self) -> None:
        self._parts = AsyncExitStack()

    @classmethod
    async def open(cls) -> Sandbox:
        """Listen on free ports of loopback, and give the profiles that lead there."""
        sandbox = cls()
        try:
            await sandbox._open()
        except BaseException:
            await sandbox.close()
            raise
        return sandbox

    async def close(self) -> None:
        await self._parts.aclose()

    async def _open(self) -> None:
        keeps = await self._sink()
        guarded = await self._sink(refuses_logins=True)
        expired = await self._sink(tls=_expired())
        # Bound and not listening: whoever connects is refused, and nobody else is given the port.
        nobody = self._parts.enter_context(socket.socket())
        nobody.bind((HOST, 0))
        profiles = (
            _profile(SANDBOX_PROFILE, keeps),
            _profile(SANDBOX_EAUTH, guarded, auth=AuthMode.AUTO, username="sandbox", password="always-refused"),  # noqa: S106
            _profile(SANDBOX_DOWN, nobody.getsockname()[1]),
            # It is trusted, so that its date is all that is wrong with it.
            _profile(SANDBOX_TLS_EXPIRED, expired, tls=TlsMode.IMPLICIT, ca_file=str(_CERTIFICATE)),
        )
        self.profiles = {profile.name: profile for profile in profiles}

    async def _sink(self, *, refuses_logins: bool = False, tls: ssl.SSLContext | None = None) -> int:
        sink = await Sink.open(refuses_logins=refuses_logins, tls=tls)
        self._parts.push_async_callback(sink.close)
        return sink.port


def _profile(
    name: str, port: int, *, tls: TlsMode = TlsMode.NONE, auth: AuthMode = AuthMode.NONE, **facts: Any
) -> Profile:
    profile, _ = resolve_profile(
        ProfileFacts(name=name, dialect=Dialect.FILE, host=HOST, port=port, tls=tls, auth=auth, sandbox=True, **facts)
    )
    return profile


def _expired() -> ssl.SSLContext:
    """Give a context that reads its certificate with the first handshake: few will ask for it."""

    def show(tls: ssl.SSLObject, _name: str | None, _context: ssl.SSLContext) -> None:
        tls.context = _showing_expired()

    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.sni_callback = show
    return context


@lru_cache(maxsize=1)
def _showing_expired() -> ssl.SSLContext:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(_CERTIFICATE, _KEY)
    return context
