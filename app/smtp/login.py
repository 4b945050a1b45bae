"""The login of a session: which mechanism, which password, and how neither gets into a transcript.

One mechanism an attempt, so that one wrong password is one failed login at the relay. aiosmtplib's own `login()`
would try three, and its CRAM-MD5 answers what is no challenge. RFC 4954 (AUTH), RFC 4616 (PLAIN), RFC 2195 (CRAM-MD5).
"""

from __future__ import annotations

import asyncio
import hmac
import re
from base64 import b64decode, b64encode
from dataclasses import dataclass, field
from pathlib import Path
from typing import TypeAlias

import aiosmtplib

from app.mail.errors import TransactionError
from app.mail.host import invisible
from app.mail.outcome import Phase
from app.mail.profile import AuthMode, Profile
from app.smtp import classify

Mechanism: TypeAlias = str

# Strongest first, of those that we speak: only the first never sends the password.
_MECHANISMS = ("CRAM-MD5", "PLAIN", "LOGIN")
_IN_CLEAR = ("PLAIN", "LOGIN")
_PIECE = re.compile(r"[A-Za-z0-9+/]{12,}")  # of a line that was quoted in part


@dataclass(slots=True)
class Credentials:
    """What one session logs in with."""

    username: str
    password: str = field(repr=False)
    digest: str = field(default="", repr=False)  # of CRAM-MD5, once it was sent: the password can be guessed from it

    @property
    def answer(self) -> bytes:
        """What CRAM-MD5 sends."""
        return b64encode(f"{self.username} {self.digest}".encode())

    def mask(self, text: str) -> str:
        """Relays that do not understand a line quote it: no secret may come back into a transcript."""
        both = f"\0{self.username}\0{self.password}"
        secrets = [b64encode(both.encode()).decode(), b64encode(self.password.encode()).decode(), self.password]
        if self.digest:
            secrets += [self.answer.decode(), self.digest]
        for secret in secrets:
            text = text.replace(secret, "***")
        return _PIECE.sub(lambda piece: "***" if any(piece[0] in secret for secret in secrets) else piece[0], text)


async def credentials_of(profile: Profile) -> Credentials:
    """Give the profile's credentials as they are now: a password from a file is read again.

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


def choose_mechanism(mode: AuthMode, offered: list[str], *, in_clear: bool = False) -> Mechanism | None:
    """Pick the one mechanism of this attempt: the pinned one, else the strongest in common; None = none.

    `in_clear` leaves out those that show the password to whoever listens.
    """
    wanted = (mode.value.upper(),) if mode.is_pinned else _MECHANISMS
    return next((m for m in wanted if m in offered and not (in_clear and m in _IN_CLEAR)), None)


async def log_in(
    client: aiosmtplib.SMTP, mechanism: Mechanism, credentials: Credentials, *, timeout: float
) -> aiosmtplib.SMTPResponse:
    """Log in by one mechanism; `timeout` seconds for each of its replies.

    Raises:
        aiosmtplib.SMTPException, OSError: refused, or broken off.
    """
    if mechanism == "CRAM-MD5":
        return await _cram_md5(client, credentials, timeout=timeout)
    by = {"PLAIN": client.auth_plain, "LOGIN": client.auth_login}[mechanism]
    return await by(credentials.username, credentials.password, timeout=timeout)


async def _cram_md5(client: aiosmtplib.SMTP, credentials: Credentials, *, timeout: float) -> aiosmtplib.SMTPResponse:
    said = await client.execute_command(b"AUTH", b"CRAM-MD5", timeout=timeout)
    if said.code != 334:
        raise aiosmtplib.SMTPAuthenticationError(said.code, said.message)
    credentials.digest = hmac.new(credentials.password.encode(), _challenge(said.message), "md5").hexdigest()
    said = await client.execute_command(credentials.answer, timeout=timeout)
    if said.code != 235:
        raise aiosmtplib.SMTPAuthenticationError(said.code, said.message)
    return said


def _challenge(message: str) -> bytes:
    try:
        challenge = b64decode(message, validate=True)
    except ValueError:
        challenge = b""
    if not challenge:  # as aiosmtplib tells of a line that is no reply
        raise aiosmtplib.SMTPResponseException(-1, f"No challenge: 334 {message}")
    return challenge
