"""A host as people write it into a setting: one name or address, and the slips that are made instead. Pure.

Removed without a word: blanks and line breaks around it, and a trailing dot. Everything else that is not part of a name
is a slip, which says how the host is written right, and never repeats a user name or password. RFC 1123 §2.1 (names),
RFC 4291 §2.2 (IPv6), RFC 5890 (a non-ASCII name becomes A-labels).
"""

from __future__ import annotations

import ipaddress
import re
import unicodedata

from app.mail.address import InvalidAddress, parse_address

_QUOTES = "\"'`\u201c\u201d\u201e\u2018\u2019\u00ab\u00bb"
_BRACKETS = "[](){}<>"
_SCHEME = re.compile(r"(?:([A-Za-z][A-Za-z0-9+.-]*):)?//")
_IMPLICIT = ("smtps", "ssl", "tls", "submissions")
_PORT = re.compile(r"([^:]*):(\d{1,5})?\Z")
_IPV6_PORT = re.compile(r"\[([0-9A-Fa-f:.%]+)\]:(\d{1,5})\Z")
_ADDRESS = re.compile(r"[0-9A-Fa-f:.]+(?:%[A-Za-z0-9._~-]{1,32})?\Z")
_SHORT_ADDRESS = re.compile(r"\d{1,10}(?:\.\d{1,10}){0,3}\Z")  # 127.1, as inet_aton(3) reads it
_NAME = re.compile(r"(?=.{1,253}\Z)(?!-)[A-Za-z0-9_-]{1,63}(?:\.(?!-)[A-Za-z0-9_-]{1,63})*\Z")
# Of other categories than those below, and yet nothing is seen of them.
_BLANK_LETTERS = "\u115f\u1160\u2800\u3164\uffa0"


class HostSlip(ValueError):
    """Not one host. The text says what it is instead; the rest is what can be read out of it.

    `host` is "" where none can, `port` is None where none is in it.
    """

    def __init__(
        self, what: str, *, host: str = "", port: int | None = None, has_login: bool = False, is_implicit: bool = False
    ) -> None:
        super().__init__(what)
        self.what = what
        self.host = host
        self.port = port
        self.has_login = has_login
        self.is_implicit = is_implicit

    def renamed(self, what: str) -> HostSlip:
        """Return the same slip under another description."""
        return HostSlip(what, host=self.host, port=self.port, has_login=self.has_login, is_implicit=self.is_implicit)


def host_of(text: str) -> str:
    """Read one host name or address; "" where there is none.

    Raises:
        HostSlip: anything else.
    """
    text = text.strip()
    bare = text.strip(_QUOTES + " \t\r\n")
    if bare != text:
        raise _again("is in quotes, which are part of the value", bare)
    found = _SCHEME.match(text)
    if found:
        raise _slip("is a URL", text[found.end() :], is_implicit=(found[1] or "").lower() in _IMPLICIT)
    if "@" in text:
        raise _slip("holds a user name", text)
    if strange := invisible(text):
        first, *more = re.split(r"[\r\n\t]", text)
        raise _again(f"holds {strange}", first if more else "".join(c for c in text if not invisible(c)))
    if re.search(r"[\s,;]", text):
        raise HostSlip("holds more than one name")
    if re.search(r"[/?#\\]", text):
        raise _slip("holds a path", text)
    if any(c in _BRACKETS for c in text):
        raise _slip("holds brackets", text)
    if _is_address(text):
        return text
    if ":" in text:
        raise _slip("holds a port", text) if _PORT.match(text) else HostSlip("holds a colon")
    return _name(text)


def invisible(text: str) -> str:
    """Describe the first character that nobody sees; "" where there is none. A blank (U+0020) is seen."""
    for c in text:
        if c in "\r\n\t":
            return "a tab" if c == "\t" else "a line break"
        if "\ud800" <= c <= "\udfff":
            return "a byte that is not UTF-8"
        if c != " " and (unicodedata.category(c)[0] in "CZ" or c in _BLANK_LETTERS):
            return f"an invisible character (U+{ord(c):04X} {unicodedata.name(c, '')}".rstrip() + ")"
    return ""


def _is_address(text: str) -> bool:
    if not _ADDRESS.match(text):  # of a zone (RFC 4007 §11) the library takes any characters
        return False
    try:
        ipaddress.ip_address(text)
    except ValueError:
        return False
    return True


def _name(text: str) -> str:
    name = text.removesuffix(".")
    if not name.isascii():
        try:
            name = parse_address(f"x@{name}").domain
        except InvalidAddress:
            raise HostSlip("is not a host name") from None
    if name.isdecimal() and int(name[:6]) <= 65535:
        raise HostSlip("is a number, as a port is")
    is_numeric = name.rpartition(".")[2].isdecimal()
    if name and not (_NAME.match(name) and (not is_numeric or _SHORT_ADDRESS.match(name))):
        raise HostSlip("is not a host name or address")
    return name


def _again(what: str, text: str) -> HostSlip:
    """Make a slip of what is still one, or none, without the characters that made it one."""
    try:
        return HostSlip(what, host=host_of(text))
    except HostSlip as inner:
        return inner.renamed(what)


def _slip(what: str, rest: str, *, is_implicit: bool = False) -> HostSlip:
    """Read host and port out of what stands behind a scheme, a user name or nothing; the rest of it is left alone."""
    authority = re.split(r"[/?#\\]", rest.rpartition("@")[2], maxsplit=1)[0].strip()
    port = None
    if not _is_address(authority.strip(_BRACKETS)) and (found := _PORT.match(authority) or _IPV6_PORT.match(authority)):
        authority, port = found[1], int(found[2]) if found[2] else None
    host = authority.strip(_BRACKETS + _QUOTES + " ")
    try:
        host = host if _is_address(host) else _name(host)
    except HostSlip:
        host = ""
    known = port if port and port <= 65535 else None
    return HostSlip(what, host=host, port=known, has_login="@" in rest, is_implicit=is_implicit)
