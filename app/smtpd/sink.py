"""The sandbox's relay: takes all, never sends, and fails where it is asked to.

To delivery it is just a relay on loopback and a profile. It keeps nothing: what was "sent" is read from our own
store, like any other message. A recipient asks for a failure by what stands before its @ (docs/sandbox.md).
"""

from __future__ import annotations

import asyncio
import ssl
from typing import cast

from aiosmtpd.smtp import SMTP, Envelope, Session

MAX_BYTES = 256 * 1024 * 1024
SLOW = 12.0  # seconds; longer than a bot waits, and than POST /send does by default

_AT_RCPT = {
    "550": "550 5.1.1 No such mailbox, as this address asks",
    "451": "451 4.3.0 Not now, as this address asks",
    "421": "421 4.3.2 Service not available, as this address asks",
}


class _Answers:
    async def handle_RCPT(  # noqa: N802
        self,
        server: SMTP,
        session: Session,  # noqa: ARG002
        envelope: Envelope,
        address: str,
        options: list[str],  # noqa: ARG002
    ) -> str:
        local = _local_part(address)
        if local == "421":
            server.loop.call_soon(_transport(server).close)  # RFC 5321 §3.8: it says so, and closes
        if local in _AT_RCPT:
            return _AT_RCPT[local]
        envelope.rcpt_tos.append(address)
        return "250 2.1.5 OK"

    async def handle_DATA(self, server: SMTP, session: Session, envelope: Envelope) -> str:  # noqa: N802, ARG002
        asked = {_local_part(address) for address in envelope.rcpt_tos}
        if "drop" in asked:
            _transport(server).abort()
            await asyncio.Future()  # aiosmtpd cancels this once it hears of the loss
        if "slow" in asked:
            await asyncio.sleep(SLOW)
        if "552" in asked:
            # Not at RCPT, where it would mean too many recipients (RFC 5321 §4.5.3.1.10).
            return "552 5.3.4 Message too big, as an address asks"
        return "250 2.0.0 kept in the sandbox, not sent"


def _local_part(address: str) -> str:
    return address.rpartition("@")[0].lower()


def _transport(server: SMTP) -> asyncio.Transport:
    return cast("asyncio.Transport", server.transport)


class Sink:
    """A listening sink. `close()` is idempotent."""

    def __init__(self, server: asyncio.Server) -> None:
        self._server = server

    @classmethod
    async def open(cls, *, refuses_logins: bool = False, tls: ssl.SSLContext | None = None) -> Sink:
        """Listen on a free port of 127.0.0.1.

        `refuses_logins` = it offers AUTH and refuses whoever tries; `tls` = it speaks TLS from the first byte.
        """
        loop = asyncio.get_running_loop()
        server = await loop.create_server(
            lambda: SMTP(
                _Answers(),
                hostname="sandbox",
                data_size_limit=MAX_BYTES,
                enable_SMTPUTF8=True,
                auth_require_tls=not refuses_logins,  # without TLS it offers none; who logs in is refused by default
                loop=loop,
            ),
            host="127.0.0.1",
            port=0,
            ssl=tls,
        )
        return cls(server)

    @property
    def port(self) -> int:
        port: int = self._server.sockets[0].getsockname()[1]
        return port

    async def close(self) -> None:
        """Stop listening; open connections end with their peer."""
        self._server.close()
        await self._server.wait_closed()
