"""The relay's side of SCRAM (RFC 5802, RFC 7677), step by step; it knows nothing of the code under test."""

import base64
import hashlib
import hmac
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

HASHES = {"SCRAM-SHA-1": "sha1", "SCRAM-SHA-256": "sha256"}


@dataclass(frozen=True, kw_only=True)
class ScramServer:
    """What a relay keeps and says. In `first` and `final` the messages' own parts may be named, such as {nonce}."""

    salt: bytes = b"sixteen bytes ok"
    iterations: str = "4096"
    first: str = "r={nonce}3rfcNHYJY1ZVvWVs7j,s={salt},i={iterations}"
    final: str = "v={signature}"
    verdict: str = "235 2.7.0 Authentication successful"  # to who proved to know the password

    def say(self, mechanism: str, users: Mapping[str, str], responses: Sequence[bytes]) -> bytes | None:
        """Return the challenge after these responses, or None = the exchange is over and all was right.

        Raises:
            ValueError: the user is unknown, or the proof is wrong.
        """
        if not responses:
            return b""
        bare = responses[0].decode().removeprefix("n,,")
        name, nonce = (part[2:] for part in bare.split(","))
        salt = base64.b64encode(self.salt).decode()
        first = self.first.format(nonce=nonce, salt=salt, iterations=self.iterations)
        if len(responses) == 1:
            return first.encode()
        if len(responses) == 2:
            user = name.replace("=2C", ",").replace("=3D", "=")
            if user not in users:
                raise ValueError("unknown user")
            without_proof, _, proof = responses[1].decode().partition(",p=")
            if without_proof != f"c=biws,{first.partition(',')[0]}":
                raise ValueError("another nonce")
            signature = self._check(HASHES[mechanism], users[user], f"{bare},{first},{without_proof}", proof)
            return self.final.format(signature=base64.b64encode(signature).decode()).encode()
        return None

    def _check(self, name: str, password: str, message: str, proof: str) -> bytes:
        salted = hashlib.pbkdf2_hmac(name, password.encode(), self.salt, int(self.iterations))
        stored = hashlib.new(name, mac(name, salted, "Client Key")).digest()
        client_key = bytes(a ^ b for a, b in zip(base64.b64decode(proof), mac(name, stored, message), strict=True))
        if hashlib.new(name, client_key).digest() != stored:
            raise ValueError("wrong proof")
        return mac(name, mac(name, salted, "Server Key"), message)


def mac(name: str, key: bytes, text: str) -> bytes:
    return hmac.new(key, text.encode(), name).digest()
