"""SASL mechanisms as a client speaks them: what to send first, and how to answer each challenge.

Pure: challenges in, responses out. Knows neither the connection nor the profile. An exchange is used for one login.
RFC 4954 §4 (AUTH), RFC 4616 (PLAIN), RFC 2195 (CRAM-MD5), draft-murchison-sasl-login-00 (LOGIN). SCRAM: `scram.py`.
"""

from __future__ import annotations

import hmac
import re
from base64 import b64decode
from typing import Protocol

from app.mail.codes import Reason
from app.mail.reply import Reply

_LONGEST_QUOTED = 80  # characters of a challenge in a message
_AROUND_A_PROMPT = "\0 \t\r\n"  # Windows sends "User Name\0"


class BrokenOff(Exception):
    """The exchange cannot go on and nothing more may be sent. `why` says so in words that may follow a colon."""

    def __init__(self, reason: Reason, why: str, *, reply: Reply | None = None) -> None:
        super().__init__(why)
        self.reason = reason
        self.why = why
        self.reply = reply  # the one that ended it; None = a challenge, which has no words for people


class Exchange(Protocol):
    """One login by one mechanism."""

    first: bytes | None  # the client's first message; None = the relay begins
    secrets: tuple[str, ...]  # in what was sent so far: of each, a password can be guessed

    def answer(self, challenge: str) -> bytes:
        """Return the response to a challenge, given in base64 as it came. May take a second of CPU.

        Raises:
            BrokenOff: the challenge cannot be used, or asks for what may not be sent.
        """

    def accepted(self) -> None:
        """Check that the relay may accept the login at this point.

        Raises:
            BrokenOff: it has not been told, or has not proven, enough.
        """


class Plain:
    """RFC 4616: everything in the first message."""

    def __init__(self, username: str, password: str) -> None:
        self.first: bytes | None = encode(f"\0{username}\0{password}")
        self.secrets: tuple[str, ...] = ()

    def answer(self, challenge: str) -> bytes:
        raise BrokenOff(
            Reason.UNEXPECTED_REPLY, f"the relay asks for more than PLAIN has to say: {quoted(readable(challenge))}"
        )

    def accepted(self) -> None:
        """Accept at any time: the first message says all."""


class Login:
    """User name and password, each in answer to a prompt.

    The prompts' wording is no standard, so they are answered in order, unless one clearly asks for the other: the
    password never goes to a prompt for the user name. Each is sent once.
    """

    first: bytes | None = None
    secrets: tuple[str, ...] = ()

    def __init__(self, username: str, password: str) -> None:
        self._left = {"user name": username, "password": password}
        self._prompts: set[str] = set()

    def answer(self, challenge: str) -> bytes:
        prompt = readable(challenge)
        asked_for = _asked_for(prompt)
        if asked_for is None and not _is_base64(challenge):
            raise BrokenOff(Reason.MALFORMED_REPLY, f"the relay's prompt is not base64: {quoted(challenge)}")
        if not self._left:
            raise BrokenOff(Reason.UNEXPECTED_REPLY, f"the relay asks again after the password: {quoted(prompt)}")
        what = asked_for or next(iter(self._left))
        if what not in self._left:
            raise BrokenOff(Reason.UNEXPECTED_REPLY, f"the relay asks for the {what} again: {quoted(prompt)}")
        if prompt and prompt in self._prompts:
            raise BrokenOff(Reason.UNEXPECTED_REPLY, f"the relay repeats its prompt: {quoted(prompt)}")
        self._prompts.add(prompt)
        return encode(self._left.pop(what))

    def accepted(self) -> None:
        if self._left:
            raise BrokenOff(Reason.UNEXPECTED_REPLY, f"the relay accepted the login without the {[*self._left][-1]}")


class CramMd5:
    """RFC 2195: an HMAC of the relay's challenge, keyed with the password."""

    first: bytes | None = None

    def __init__(self, username: str, password: str) -> None:
        self._username = username
        self._password = password
        self.secrets: tuple[str, ...] = ()

    def answer(self, challenge: str) -> bytes:
        if self.secrets:
            raise BrokenOff(Reason.UNEXPECTED_REPLY, "the relay sends a second challenge for CRAM-MD5")
        decoded = decode(challenge)
        if not decoded:
            raise BrokenOff(Reason.MALFORMED_REPLY, "the relay's challenge for CRAM-MD5 is empty")
        digest = hmac.new(encode(self._password), decoded, "md5").hexdigest()
        self.secrets = (digest,)
        return encode(f"{self._username} {digest}")

    def accepted(self) -> None:
        if not self.secrets:
            raise BrokenOff(Reason.UNEXPECTED_REPLY, "the relay accepted the login without a challenge")


def encode(text: str) -> bytes:
    """Encode as UTF-8; bytes of the environment that were not UTF-8 come out as they were (PEP 383)."""
    return text.encode("utf-8", "surrogateescape")


def decode(challenge: str) -> bytes:
    """Decode a challenge from base64, strictly (RFC 4954 §4).

    Raises:
        BrokenOff: it is not base64.
    """
    try:
        return b64decode(challenge.strip(), validate=True)
    except ValueError as error:
        raise BrokenOff(Reason.MALFORMED_REPLY, f"the relay's challenge is not base64: {quoted(challenge)}") from error


def readable(challenge: str) -> str:
    """Return a challenge as text for people: decoded where it is base64 of text, else as it came."""
    try:
        text = decode(challenge).decode().strip(_AROUND_A_PROMPT)
    except (BrokenOff, UnicodeDecodeError):
        return challenge.strip()
    return text if text.isprintable() else challenge.strip()


def quoted(text: str) -> str:
    """Return a challenge in quotes, shortened, control characters escaped."""
    return repr(text if len(text) <= _LONGEST_QUOTED else f"{text[:_LONGEST_QUOTED]}…")


def _is_base64(challenge: str) -> bool:
    try:
        decode(challenge)
    except BrokenOff:
        return False
    return True


_USERNAME = re.compile(r"user|\bname|log-?[io]n\b|account|e-?mail|benutzer|utili[sz]|usuario|utente", re.IGNORECASE)
_PASSWORD = re.compile(r"pass|pwd|kennwort|contrase|senha|wachtwoord", re.IGNORECASE)


def _asked_for(prompt: str) -> str | None:
    """Return which of the two a prompt clearly asks for; None = its words do not tell."""
    is_username, is_password = _USERNAME.search(prompt) is not None, _PASSWORD.search(prompt) is not None
    if is_username == is_password:
        return None
    return "user name" if is_username else "password"
