"""A session: a greeted, perhaps encrypted, perhaps logged-in connection to one relay.

`opening.open_session()` makes one, the pool keeps it, a transaction uses it. RFC 5321 §3.1, §4.1.1.5 (RSET).
"""

from __future__ import annotations

import re

from app.mail.attempt import Attempt
from app.mail.profile import Profile
from app.smtp.wire import Breach, Wire

_MOST = 100  # messages a session carries unless the profile says otherwise
# Exim takes more on one connection, but lets them lie until its next queue run (docs/quirks.md).
_MOST_FOR_EXIM = 10
_EXIM = re.compile(r"\bExim\b")


class Session:
    """One open connection. Used by one transaction at a time; `close()` is idempotent."""

    def __init__(
        self, profile: Profile, wire: Wire, opened: Attempt, extensions: dict[str, str], *, greeting: str = ""
    ) -> None:
        self.profile = profile
        self.wire = wire
        self.extensions = extensions  # upper-case keyword → its parameters
        self.transactions = 0  # how many it has carried
        most = profile.max_messages_per_connection
        self._most_transactions = most if most is not None else _MOST_FOR_EXIM if _EXIM.search(greeting) else _MOST
        self.needs_reset = False  # a refused transaction is still open at the relay
        self.idle_since = 0.0
        self._opened = opened

    @property
    def is_warm(self) -> bool:
        """Whether it was kept from one transaction to the next, and may have died in between."""
        return self.transactions > 0

    @property
    def is_used_up(self) -> bool:
        """Whether it has carried as many messages as its profile allows."""
        return 0 < self._most_transactions <= self.transactions

    @property
    def our_address(self) -> str:
        """The address that the relay sees, as far as this side knows it."""
        address = self.wire.local_address
        return str(address[0]) if address else ""

    def describe(self, attempt: Attempt) -> None:
        """Copy what was learned at the opening into an attempt that found this session warm."""
        if attempt is self._opened:
            return
        opened = self._opened
        attempt.host, attempt.ip, attempt.port = opened.host, opened.ip, opened.port
        attempt.tls, attempt.tls_version, attempt.tls_cipher = (
            opened.tls,
            opened.tls_version,
            opened.tls_cipher,
        )
        attempt.tls_verified, attempt.tls_error = opened.tls_verified, opened.tls_error
        attempt.tls_names, attempt.tls_not_after = opened.tls_names, opened.tls_not_after
        attempt.tls_sha256 = opened.tls_sha256
        attempt.auth, attempt.extensions = opened.auth, opened.extensions

    async def reset(self) -> bool:
        """Drop the relay's half-made transaction (RFC 5321 §4.1.1.5); False = the session is of no more use."""
        try:
            self.wire.send(b"RSET\r\n", replies=1)
            reply = await self.wire.next_reply(self.profile.timeouts.reset)
        except Breach:
            return False
        self.needs_reset = False
        return reply.is_positive

    def close(self) -> None:
        """Say QUIT where that is still possible, wait for nothing, and close."""
        self.wire.close(b"QUIT\r\n" if self.wire.is_open else b"")
