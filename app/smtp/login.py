"""The login of a session: which mechanism, which password, the exchange itself, and what of it a transcript may show.

One mechanism an attempt, so that one wrong password is one failed login at the relay. aiosmtplib's own would try three,
send the user name along with AUTH LOGIN, and answer whatever prompt comes with the password. RFC 4954 (AUTH).
"""

from __future__ import annotations

import asyncio
import re
import secrets
from base64 import b64encode
from dataclasses import dataclass, field
from pathlib import Path

from app.mail.attempt import Attempt
from app.mail.codes import Reason
from app.mail.errors import TransactionError
from app.mail.host import invisible
from app.mail.outcome import Phase
from app.mail.profile import MECHANISMS, MECHANISMS_IN_CLEAR, AuthMode, Profile
from app.mail.reply import Reply, printable
from app.smtp import classify
from app.smtp.mechanisms import BrokenOff, CramMd5, Exchange, Login, Plain, encode
from app.smtp.scram import Scram
from app.smtp.wire import Breach, Wire

LONGEST_COMMAND = 512  # bytes with CRLF; a first message that does not fit waits for a challenge (RFC 4954 §4)

_SHORTEST_PIECE = 12  # characters of a line that was quoted in part
_PIECE = re.compile(rf"[A-Za-z0-9+/]{{{_SHORTEST_PIECE},}}")
_SHORTEST_BEGINNING = 4  # characters of a password where a quotation was cut off


@dataclass(frozen=True, slots=True)
class Credentials:
    """What a session logs in with."""

    username: str
    password: str = field(repr=False)


class Mask:
    """Hides the secrets of one login: relays that do not understand a line quote it back."""

    def __init__(self, credentials: Credentials) -> None:
        password, both = credentials.password, f"\0{credentials.username}\0{credentials.password}"
        self._password = printable(encode(password))
        self._secrets: set[str] = set()
        self.add(password, self._password, _base64(encode(password)), _base64(encode(both)))

    def add(self, *found: str) -> None:
        """Hide these too, from now on."""
        self._secrets.update(secret for secret in found if secret)

    def __call__(self, text: str) -> str:
        for secret in sorted(self._secrets, key=len, reverse=True):
            text = text.replace(secret, "***")
        return _PIECE.sub(self._piece, self._without_beginning(text))

    def reply(self, reply: Reply) -> Reply:
        return Reply(reply.code, tuple(self(line) for line in reply.lines))

    def _piece(self, found: re.Match[str]) -> str:
        return "***" if any(found[0] in secret for secret in self._secrets) else found[0]

    def _without_beginning(self, text: str) -> str:
        """Cut off the password's beginning at the end of a text that was shortened in the middle of it."""
        for length in range(len(self._password) - 1, _SHORTEST_BEGINNING - 1, -1):
            if text.endswith(self._password[:length]):
                return f"{text[:-length]}***"
        return text


async def credentials_of(profile: Profile) -> Credentials:
    """Return the profile's credentials as they are now: a password from a file is read again.

    Raises:
        TransactionError: the file cannot be read, or holds nothing.
    """
    if profile.password_file is None:
        return Credentials(profile.username, profile.password)
    try:
        # A mounted secret may lie on a network's disk.
        password = await asyncio.to_thread(Path(profile.password_file).read_text, "utf-8")
    except (OSError, UnicodeDecodeError) as error:
        why = getattr(error, "strerror", None) or "it is not UTF-8 text"
        raise TransactionError(classify.unreadable(profile, Phase.AUTH, "password_file", why)) from error
    if not (password := password.rstrip("\r\n")):
        raise TransactionError(classify.unreadable(profile, Phase.AUTH, "password_file", "it is empty"))
    if strange := invisible(password):
        raise TransactionError(classify.unreadable(profile, Phase.AUTH, "password_file", f"it holds {strange}"))
    return Credentials(profile.username, password)


def choose_mechanism(mode: AuthMode, offered: list[str], *, in_clear: bool = False) -> str | None:
    """Return the one mechanism of this attempt: the pinned one, else the strongest in common; None = none.

    `in_clear` leaves out those that show the password to whoever listens.
    """
    wanted = (mode.value.upper(),) if mode.is_pinned else MECHANISMS
    return next((m for m in wanted if m in offered and (not in_clear or m in MECHANISMS_IN_CLEAR)), None)


def exchange_for(mechanism: str, credentials: Credentials) -> Exchange:
    """Begin one login by one of `MECHANISMS`."""
    username, password = credentials.username, credentials.password
    match mechanism:
        case "SCRAM-SHA-256" | "SCRAM-SHA-1":
            hash_name = "sha256" if mechanism == "SCRAM-SHA-256" else "sha1"
            return Scram(username, password, hash_name=hash_name, nonce=secrets.token_urlsafe(18))
        case "CRAM-MD5":
            return CramMd5(username, password)
        case "PLAIN":
            return Plain(username, password)
        case _:
            return Login(username, password)


async def log_in(wire: Wire, mechanism: str, credentials: Credentials, *, attempt: Attempt, timeout: float) -> Reply:
    """Log in once; return the relay's last reply, 235 or a refusal. Everything returned, raised or noted is masked.

    `timeout` seconds for each reply. The transcript gets every line, credentials as `***`.

    Raises:
        BrokenOff: the relay does not keep to the mechanism; the exchange is cancelled and the connection closed.
        Breach: lost, timed out, or said what is no reply or more than it was asked.
    """
    mask = Mask(credentials)
    conversation = _Conversation(wire, mechanism, exchange_for(mechanism, credentials), mask, attempt, timeout)
    try:
        return mask.reply(await conversation.run())
    except BrokenOff as broken:
        raise BrokenOff(broken.reason, mask(broken.why), reply=broken.reply) from None
    except Breach as breach:
        raise type(breach)(mask(str(breach))) from None
    finally:
        wire.heard = None


class _Conversation:
    """One AUTH command on the wire, and what follows it."""

    def __init__(
        self, wire: Wire, mechanism: str, exchange: Exchange, mask: Mask, attempt: Attempt, timeout: float
    ) -> None:
        self._wire = wire
        self._mechanism = mechanism
        self._exchange = exchange
        self._mask = mask
        self._attempt = attempt
        self._timeout = timeout
        self._sent_first = False
        self._is_at_the_start = True
        wire.heard = self._note

    async def run(self) -> Reply:
        reply = await self._begin()
        while reply.code == 334:
            try:
                response = await self._answer(reply)
            except BrokenOff:
                self._cancel()
                raise
            reply = await self._respond(response)
        if reply.code == 235:
            await self._check_acceptance(reply)
        return reply

    async def _begin(self) -> Reply:
        command, first = f"AUTH {self._mechanism}", self._exchange.first
        if first is None or len(command) + len(_base64(first)) + len(" \r\n") > LONGEST_COMMAND:
            return await self._ask(command, shown=command)
        self._sent_first = True
        self._mask.add(_base64(first))
        return await self._ask(f"{command} {_base64(first)}", shown=f"{command} ***")

    async def _answer(self, reply: Reply) -> bytes:
        if len(reply.lines) > 1:  # RFC 4954 §8: a challenge is one line
            raise BrokenOff(Reason.MALFORMED_REPLY, f"the relay's challenge has {len(reply.lines)} lines")
        is_at_the_start, self._is_at_the_start = self._is_at_the_start, False
        if is_at_the_start and self._exchange.first is not None and not reply.text.strip():
            # RFC 4954 §4: an empty challenge asks for the first message; a relay that ignored it with AUTH asks again.
            self._sent_first = True
            return self._exchange.first
        # SCRAM hashes as often as the relay asks for.
        return await asyncio.to_thread(self._exchange.answer, reply.text)

    async def _respond(self, response: bytes) -> Reply:
        line = _base64(response)
        self._mask.add(line, *self._exchange.secrets)
        return await self._ask(line, shown="***" if line else "")

    async def _ask(self, line: str, *, shown: str) -> Reply:
        self._attempt.say(shown)
        self._wire.send(f"{line}\r\n".encode(), replies=1)
        return await self._wire.next_reply(self._timeout)

    async def _check_acceptance(self, reply: Reply) -> None:
        try:
            if self._exchange.first is not None and not self._sent_first:
                raise BrokenOff(Reason.UNEXPECTED_REPLY, "the relay accepted the login without credentials")
            self._exchange.accepted()
        except BrokenOff as broken:
            raise BrokenOff(broken.reason, broken.why, reply=self._mask.reply(reply)) from None
        if not self._wire.is_open:
            await self._wire.next_reply(self._timeout)  # raises why

    def _cancel(self) -> None:
        """RFC 4954 §4: what cannot be answered is cancelled; nobody waits for the 501."""
        self._attempt.say("*")
        self._wire.close(b"*\r\n")

    def _note(self, reply: Reply) -> None:
        # The signature of SCRAM lets a password be guessed as the proof does, and its challenge is a part of both.
        is_secret = reply.code == 334 and self._mechanism.startswith("SCRAM-")
        self._attempt.hear(Reply(334, ("***",)) if is_secret else self._mask.reply(reply))


def _base64(data: bytes) -> str:
    return b64encode(data).decode()
