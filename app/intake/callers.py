"""Who is calling. Pure; knows no HTTP beyond the facts of a visit that decide.

With a key, the key decides. Without one only this machine is served, and only what was not sent on by a proxy
or by a page of another site: Host must be a loopback name (DNS rebinding) and Origin absent or the same (CSRF).
Whoever can open the operator socket is the operator: the file system has let them in.
"""

from __future__ import annotations

import hmac
import re
from dataclasses import dataclass
from hashlib import sha256

from app.mail.errors import Unauthenticated
from app.mail.profile import is_loopback


@dataclass(frozen=True, slots=True)
class Visit:
    """What of a request says who is calling. None = the header is absent."""

    peer: str | None  # the socket's other end; None = the operator socket
    host: str = ""
    origin: str | None = None
    fetch_site: str | None = None
    credentials: tuple[bytes, ...] = ()  # every key that is presented
    forwarded: bool = False  # a proxy is in between: one of its headers, or HTTP/1.0 (nginx to its upstreams)


@dataclass(frozen=True, slots=True)
class Caller:
    """Who is calling. `name` is "" for the one key and for this machine."""

    name: str = ""
    is_operator: bool = False


_HOST = re.compile(r"(?:\[([0-9A-Fa-f:.]+)\]|([A-Za-z0-9.-]+))(?::\d{1,5})?\Z")  # RFC 9110 §7.2
_ANYONE = Caller()
_OPERATOR = Caller(is_operator=True)


class Callers:
    """Knows the one key, or that there is none."""

    def __init__(self, api_key: str | None) -> None:
        self.change_key(api_key)

    def change_key(self, api_key: str | None) -> None:
        """Know this key alone from now on."""
        self._digest = sha256(api_key.encode()).digest() if api_key is not None else None

    def identify(self, visit: Visit) -> Caller:
        """Say who is calling.

        Raises:
            Unauthenticated: nobody we know; the text is the same for a missing and a wrong key.
        """
        if visit.peer is None:
            return _OPERATOR
        if self._digest is not None:
            # Both sides hashed: the comparison takes the same time whatever was sent.
            given = [sha256(credential).digest() for credential in visit.credentials or (b"",)]
            if any(hmac.compare_digest(one, self._digest) for one in given):
                return _ANYONE
            raise Unauthenticated(
                "A valid API key is needed: send it as Authorization: Bearer …, as X-API-Key, or as the password of "
                "Basic authentication with any user name"
            )
        if _is_local(visit):
            return _ANYONE
        raise Unauthenticated(
            "No API key is configured, so only direct requests from this machine are served. Set MAILCHUTE_API_KEY "
            "(16 characters or more), restart, and send it as Authorization: Bearer …"
        )


def _is_local(visit: Visit) -> bool:
    if visit.forwarded or not is_loopback(visit.peer or "") or not is_loopback(_host_name(visit.host)):
        return False
    if visit.fetch_site not in (None, "same-origin", "none"):
        return False
    return visit.origin is None or visit.origin.partition("://")[2] == visit.host


def _host_name(host: str) -> str:
    """Host without its port: `[::1]:8587` → `::1`; "" where it is neither a name nor an address."""
    found = _HOST.match(host)
    return (found[1] or found[2]) if found else ""
