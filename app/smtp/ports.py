"""What listens where a relay was expected, and on which of its usual ports one does.

Asked after a failure that another port or TLS mode may cure, over connections of its own, with no login and no mail.
What is found is remembered for a while, and nothing is asked about a port that has served us before: then the relay
is down, and not the setting wrong.
"""

from __future__ import annotations

import asyncio
import ssl
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace

from app.mail.codes import Reason
from app.mail.hints import hint
from app.mail.outcome import Failure, FailureClass, Phase
from app.mail.profile import Profile, TlsMode
from app.mail.reply import printable
from app.smtp import classify
from app.smtp.banners import named_in, server_of
from app.smtp.network import Resolve, SocketAddress, connect_to_any
from app.smtp.tls import lax_context

USUAL_PORTS = (587, 465, 25, 2525)
PATIENCE = 2.0  # seconds for each thing that is waited for
REMEMBERED = 600.0  # seconds
_WRONG_PORT = (
    Reason.CONNECTION_REFUSED,
    Reason.CONNECT_TIMEOUT,
    Reason.GREETING_TIMEOUT,
    Reason.NOT_SMTP,
    Reason.MALFORMED_REPLY,
    Reason.TLS_MODE_MISMATCH,
    Reason.TLS_TIMEOUT,
    Reason.TLS_CONNECTION_LOST,
)
_SAYS_NOTHING = (  # of what is there
    Reason.GREETING_TIMEOUT,
    Reason.TLS_MODE_MISMATCH,
    Reason.TLS_TIMEOUT,
    Reason.TLS_CONNECTION_LOST,
)
_BEFORE_EHLO = (Phase.CONNECT, Phase.TLS, Phase.GREETING)
_ASK_THE_WEB = b"HEAD / HTTP/1.0\r\n\r\n"
_ALERT = b"\x15\x03"  # how a TLS server begins its answer to words in clear (RFC 8446 §5.1)


@dataclass(frozen=True, slots=True)
class Found:
    """What was found. `server` is what answers at the port itself, "" where that is a relay or unknown."""

    server: str = ""
    is_relay: bool = False
    is_tls: bool = False  # from the first byte
    offers: tuple[str, ...] = ()  # the keywords of a relay's EHLO in clear, with their parameters
    answers: tuple[int, ...] = ()  # usual ports where a relay answers


class Ports:
    """Explains failures by what listens there; owned by the event loop."""

    def __init__(self, *, resolve: Resolve, clock: Callable[[], float], patience: float = PATIENCE) -> None:
        self._resolve = resolve
        self._clock = clock
        self._patience = patience
        self._served: set[tuple[str, int]] = set()
        self._found: dict[tuple[str, int, TlsMode], tuple[float, Found]] = {}
        self._turn = asyncio.Lock()

    def served(self, profile: Profile) -> None:
        """Remember that a relay answered there as it should."""
        self._served.add((profile.host, profile.port))

    async def explained(
        self,
        profile: Profile,
        failure: Failure,
        *,
        anew: bool = False,
        usual_ports: Sequence[int] = USUAL_PORTS,
    ) -> Failure:
        """Return the failure with what was found; unchanged where there is nothing to find.

        `anew` asks whatever is remembered; `usual_ports` are the relay's other ports to try.
        """
        if failure.reason not in _WRONG_PORT or failure.phase not in _BEFORE_EHLO:
            return failure
        if not anew and (profile.host, profile.port) in self._served:
            return failure
        key = profile.host, profile.port, profile.tls
        async with self._turn:
            until, found = self._found.get(key, (0.0, Found()))
            if anew or until <= self._clock():
                found = await self._look(profile, failure.reason, usual_ports)
                self._found[key] = self._clock() + REMEMBERED, found
        return explain(profile, failure, found)

    async def _look(self, profile: Profile, reason: Reason, usual_ports: Sequence[int]) -> Found:
        addresses: list[SocketAddress] = []
        with suppress(OSError, UnicodeError):
            async with asyncio.timeout(profile.timeouts.resolve):
                addresses = await self._resolve(profile.host, profile.port)
        if not addresses:
            return Found()
        others = [_answers(addresses, port, self._patience) for port in usual_ports if port != profile.port]
        looking = [_look_at(profile, addresses, self._patience)] if reason in _SAYS_NOTHING else []
        results = await asyncio.gather(*looking, *others, return_exceptions=True)
        answers = [result for result in results if isinstance(result, int)]
        found = next((result for result in results if isinstance(result, Found)), Found())
        return replace(found, answers=tuple(answers))


def explain(profile: Profile, failure: Failure, found: Found) -> Failure:
    """Say what a failure was about, now that it is known what listens there. Pure."""
    facts = {"answers": " ".join(map(str, found.answers)), "looked": "yes"}
    if found.server:
        facts["server"] = found.server
        said, cls = f"{profile.host}:{profile.port} is {found.server}, not a mail relay", FailureClass.CONFIGURATION
        return classify.failure(profile, failure.phase, Reason.NOT_SMTP, cls, said, facts=facts)
    if found.is_tls and profile.tls is not TlsMode.IMPLICIT:
        facts["tls"] = "yes"
    elif found.is_relay and failure.reason is Reason.GREETING_TIMEOUT:
        facts["greets"] = "yes"
    elif found.is_relay and not found.is_tls and profile.tls is TlsMode.IMPLICIT:
        facts["plain"] = "starttls" if "STARTTLS" in found.offers else "none"
        facts["plain_auth"] = next((line for line in found.offers if line.startswith("AUTH")), "")
        if failure.reason is not Reason.TLS_MODE_MISMATCH:
            said = f"{profile.host}:{profile.port} does not begin with TLS"
            reason, cls = Reason.TLS_MODE_MISMATCH, FailureClass.CONFIGURATION
            return classify.failure(profile, failure.phase, reason, cls, said, facts=facts)
    if failure.reason is Reason.NOT_SMTP:
        facts["server"] = named_in(failure.message)
    return replace(failure, hint=hint(failure.reason, profile, facts))


async def _look_at(profile: Profile, addresses: Sequence[SocketAddress], patience: float) -> Found:
    """Ask the port itself: what it says unasked, to a web browser, and under TLS."""
    with suppress(OSError):
        async with _Connection(addresses, patience) as plain:
            said = await plain.hear()
            if said.startswith(b"220"):
                return Found(server=server_of(printable(said)), is_relay=True, offers=await plain.ehlo())
            if not said:
                said = await plain.ask(_ASK_THE_WEB)
        # A web server that wants TLS says so in clear; others send an alert, or hang up.
        if said and not said.startswith(_ALERT):
            return Found(server=server_of(printable(said)))
    with suppress(OSError):
        async with _Connection(
            addresses, patience, tls=lax_context(), name=profile.server_name or profile.host
        ) as hidden:
            said = await hidden.hear() or await hidden.ask(_ASK_THE_WEB)
            return Found(server=server_of(printable(said)), is_relay=said.startswith(b"220"), is_tls=True)
    return Found()


class _Connection:
    """A short one: what cannot be had within `patience` seconds is empty."""

    def __init__(
        self,
        addresses: Sequence[SocketAddress],
        patience: float,
        *,
        tls: ssl.SSLContext | None = None,
        name: str | None = None,
    ) -> None:
        self._addresses = addresses
        self._patience = patience
        self._tls = tls
        self._server_name = name

    async def __aenter__(self) -> _Connection:
        sock, _ = await connect_to_any(self._addresses, within=self._patience)
        async with asyncio.timeout(self._patience):
            # From here on the transport closes the socket, also where the handshake fails.
            self._reader, self._writer = await asyncio.open_connection(
                sock=sock, ssl=self._tls, server_hostname=self._server_name if self._tls else None
            )
        return self

    async def __aexit__(self, *_: object) -> None:
        self._writer.transport.abort()

    async def hear(self) -> bytes:
        """Return the first bytes that come, b"" where none do."""
        try:
            async with asyncio.timeout(self._patience):
                return await self._reader.read(1024)
        except OSError:
            return b""

    async def ask(self, words: bytes) -> bytes:
        self._writer.write(words)
        return await self.hear()

    async def ehlo(self) -> tuple[str, ...]:
        """Return what a relay offers in clear."""
        self._writer.write(b"EHLO [127.0.0.1]\r\n")
        offers: list[str] = []
        with suppress(OSError, ValueError):  # ValueError: a line without end
            async with asyncio.timeout(self._patience):
                while (line := await self._reader.readline()).startswith(b"250"):
                    offers.append(printable(line[4:].strip()).upper())
                    if line[3:4] != b"-":
                        break
        return tuple(offers)


async def _answers(addresses: Sequence[SocketAddress], port: int, patience: float) -> int:
    """Return `port` where something takes connections that greets as a relay, or waits for TLS as 465 does."""
    there = [(family, (address[0], port, *address[2:])) for family, address in addresses]
    async with _Connection(there, patience) as connection:
        if port != 465 and not (await connection.hear()).startswith(b"220"):
            raise ConnectionError("it does not greet")
    return port
