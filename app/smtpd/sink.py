"""The sandbox's relay: takes all, never sends.

To delivery it is just a relay on loopback and a profile. It keeps nothing: what was "sent" is read from our own
store, like any other message.
"""

from __future__ import annotations

import asyncio

from aiosmtpd.smtp import SMTP, Envelope, Session

MAX_BYTES = 256 * 1024 * 1024


class _TakesAll:
    async def handle_DATA(self, server: SMTP, session: Session, envelope: Envelope) -> str:  # noqa: N802, ARG002
        return "250 2.0.0 kept in the sandbox, not sent"


class Sink:
    """A listening sink. `close()` is idempotent."""

    def __init__(self, server: asyncio.Server) -> None:
        self._server = server

    @classmethod
    async def open(cls) -> Sink:
        """Listen on a free port of 127.0.0.1."""
        loop = asyncio.get_running_loop()
        server = await loop.create_server(
            lambda: SMTP(_TakesAll(), hostname="sandbox", data_size_limit=MAX_BYTES, enable_SMTPUTF8=True, loop=loop),
            host="127.0.0.1",
            port=0,
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
