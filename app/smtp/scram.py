"""SCRAM-SHA-1 and SCRAM-SHA-256 as a client: the password is proven and never sent, and the relay proves itself too.

Pure, but for the CPU that the relay's iteration count asks for. RFC 5802, RFC 7677; no channel binding. Why this is
written here: docs/adr/0015-scram.md.
"""

from __future__ import annotations

import hashlib
import hmac
import re
import stringprep
import unicodedata
from base64 import b64decode, b64encode

from app.mail.codes import Reason
from app.smtp.mechanisms import BrokenOff, decode, encode, quoted

# OWASP asks for 1.3 million with SHA-1; this many take half a second on one core of 2026. More is an attack, or a slip.
MOST_ITERATIONS = 2_000_000

_SERVER_FIRST = re.compile(r"r=([\x21-\x2b\x2d-\x7e]+),s=([A-Za-z0-9+/=]+),i=([1-9][0-9]*)(?:,.*)?", re.DOTALL)
_SERVER_FINAL = re.compile(r"v=([A-Za-z0-9+/=]+)(?:,.*)?", re.DOTALL)
_PROHIBITED = (
    stringprep.in_table_c12,
    stringprep.in_table_c21_c22,
    stringprep.in_table_c3,
    stringprep.in_table_c4,
    stringprep.in_table_c5,
    stringprep.in_table_c6,
    stringprep.in_table_c7,
    stringprep.in_table_c8,
    stringprep.in_table_c9,
)


class Scram:
    """One SCRAM login. `hash_name` is "sha1" or "sha256"; `nonce` is random, printable and has no comma."""

    def __init__(self, username: str, password: str, *, hash_name: str, nonce: str) -> None:
        self._hash = hash_name
        self._password = encode(saslprep(password))
        self._nonce = nonce
        name = saslprep(username).replace("=", "=3D").replace(",", "=2C")  # RFC 5802 §5.1
        self._first_bare = f"n={name},r={nonce}"
        self._signature: bytes | None = None  # the relay's, once we can tell what it must be
        self._is_verified = self._is_refused = False
        self.first: bytes | None = encode(f"n,,{self._first_bare}")
        self.secrets: tuple[str, ...] = ()

    def answer(self, challenge: str) -> bytes:
        try:
            message = decode(challenge).decode()
        except UnicodeDecodeError as error:
            raise _malformed(challenge) from error
        if self._is_verified or self._is_refused:
            raise BrokenOff(Reason.UNEXPECTED_REPLY, "the relay goes on after the end of SCRAM")
        if message.startswith("e="):
            self._is_refused = True
            return b""  # RFC 4954 §4: the reply that follows says what it comes to
        if self._signature is None:
            return self._prove(message)
        self._verify(message)
        return b""

    def accepted(self) -> None:
        if not self._is_verified:
            raise BrokenOff(
                Reason.AUTH_SERVER_UNVERIFIED, "the relay accepted the login without proving that it knows the password"
            )

    def _prove(self, server_first: str) -> bytes:
        """RFC 5802 §3."""
        nonce, salt, iterations = self._read(server_first)
        salted = hashlib.pbkdf2_hmac(self._hash, self._password, salt, iterations)
        client_key = self._hmac(salted, "Client Key")
        without_proof = f"c=biws,r={nonce}"  # "n,,": no channel binding
        auth_message = f"{self._first_bare},{server_first},{without_proof}"
        signature = self._hmac(hashlib.new(self._hash, client_key).digest(), auth_message)
        proof = b64encode(bytes(a ^ b for a, b in zip(client_key, signature, strict=True))).decode()
        self._signature = self._hmac(self._hmac(salted, "Server Key"), auth_message)
        final = f"v={b64encode(self._signature).decode()}"
        self.secrets = (proof, final.removeprefix("v="), b64encode(final.encode()).decode())
        return f"{without_proof},p={proof}".encode()

    def _read(self, server_first: str) -> tuple[str, bytes, int]:
        found = _SERVER_FIRST.fullmatch(server_first)
        if found is None:
            raise _malformed(server_first)
        nonce, iterations = found[1], found[3]
        if not nonce.startswith(self._nonce) or nonce == self._nonce:
            raise BrokenOff(Reason.MALFORMED_REPLY, "the relay's challenge for SCRAM does not continue our nonce")
        if len(iterations) > len(str(MOST_ITERATIONS)) or int(iterations) > MOST_ITERATIONS:
            raise BrokenOff(
                Reason.AUTH_MECHANISM_UNSUPPORTED,
                f"the relay asks for {iterations[:20]} iterations of SCRAM, and Mailchute computes {MOST_ITERATIONS} "
                "at most",
            )
        salt = _from_base64(found[2])
        if not salt:
            raise _malformed(server_first)
        return nonce, salt, int(iterations)

    def _verify(self, server_final: str) -> None:
        found = _SERVER_FINAL.fullmatch(server_final)
        if found is None:
            raise _malformed(server_final)
        if not hmac.compare_digest(_from_base64(found[1]), self._signature or b""):
            raise BrokenOff(Reason.AUTH_SERVER_UNVERIFIED, "the relay's signature is not one that the password makes")
        self._is_verified = True

    def _hmac(self, key: bytes, text: str) -> bytes:
        return hmac.new(key, encode(text), self._hash).digest()


def saslprep(text: str) -> str:
    """Prepare a user name or a password for comparison (RFC 4013).

    What RFC 4013 prohibits stays as it is: the relay decides, and may have stored it so.
    """
    if text.isascii():
        return text
    mapped = "".join(
        " " if stringprep.in_table_c12(char) else char for char in text if not stringprep.in_table_b1(char)
    )
    prepared = unicodedata.ucd_3_2_0.normalize("NFKC", mapped)  # RFC 3454 §4
    right_to_left = [stringprep.in_table_d1(char) for char in prepared]
    is_prohibited = any(prohibits(char) for char in prepared for prohibits in _PROHIBITED)
    if any(right_to_left):  # RFC 3454 §6
        is_prohibited |= any(stringprep.in_table_d2(char) for char in prepared)
        is_prohibited |= not (right_to_left[0] and right_to_left[-1])
    return prepared if prepared and not is_prohibited else text


def _from_base64(text: str) -> bytes:
    try:
        return b64decode(text, validate=True)
    except ValueError:
        return b""


def _malformed(message: str) -> BrokenOff:
    return BrokenOff(Reason.MALFORMED_REPLY, f"the relay's challenge is not one of SCRAM: {quoted(message)}")
