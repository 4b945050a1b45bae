"""E-mail addresses: from what people write to what may stand on the wire.

Knows RFC 5321 §4.1.2 and RFC 5322 §3.4 in the strict reading: a dot-atom local part, a host name, and perhaps
a display name. Quoted local parts, comments, groups, address literals and obsolete forms are refused, because
two parsers that disagree on them are how one address becomes another (CVE-2023-27043). Internationalised
addresses follow RFC 6531 by email-validator; a domain always comes out as A-labels (RFC 5890).

Pure and linear in the length of the text.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from functools import lru_cache

from app.mail import encoded_words
from app.mail.slips import DOT_ATOM, HOST, MAX_SPEC, invisible_character, slip_in

MAX_TEXT = 1000  # characters of one written address, display name included
MAX_ENCODED_NAME = 320  # characters of a display name as encoded words; Sendmail drops the whole field of a longer one
MAX_PLAIN_NAME = 60  # characters of a display name that is written as it is; a longer one is encoded, to be folded

_QUOTED_STRING = re.compile(r'"((?:[^"\\]|\\.)*)"', re.DOTALL)
_ANGLE = re.compile(r'((?:"(?:[^"\\]|\\.)*"|[^"<>])*)<([^<>]*)>\Z', re.DOTALL)
_RESERVED_LABEL = re.compile(r"(?:\A|\.)[^.]{2}--")  # RFC 5890 §2.3.1: A-labels, and what may be one some day
# Begins only where a word does, so that a long one is gone through once.
_LOOKS_LIKE_ONE = re.compile(r"(?<![^\s<>()\[\],;:\"@])[^\s<>()\[\],;:\"@]++@[^\s<>()\[\],;:\"@]++")
_SEPARATORS = frozenset(",;\r\n")
_NEVER_BARE = _SEPARATORS | {":"}  # in a display name without quotes
CONTROL = re.compile(r"[\x00-\x1f\x7f\x80-\x9f\u2028\u2029]")


class InvalidAddress(ValueError):
    """Not one strict address. The text says why, and what to write instead."""


@dataclass(frozen=True, slots=True)
class Address:
    """One mailbox. `domain` is ASCII and lower case; `local` may be non-ASCII, then SMTPUTF8 is needed."""

    local: str
    domain: str
    name: str = ""

    @property
    def addr_spec(self) -> str:
        """`local@domain`, as it stands in the envelope."""
        return f"{self.local}@{self.domain}"

    @property
    def needs_smtputf8(self) -> bool:
        return not self.local.isascii()

    @property
    def key(self) -> str:
        """Equal for two spellings of one mailbox: the domain has no case, and no real relay's local part has."""
        return self.addr_spec.lower()


def split_addresses(text: str) -> list[str]:
    """Split a list of addresses at `,`, `;` and line breaks outside quotes and angle brackets.

    Empty pieces are dropped, so that a trailing comma does no harm. Every other piece must be a whole address:
    `parse_address()` refuses what is left of a name or a command.
    """
    if _SEPARATORS.isdisjoint(text):
        return [text.strip()] if text.strip() else []
    pieces, start, quoted, escaped, inside = [], 0, False, False, False
    for at, c in enumerate(text):
        if escaped:
            escaped = False
        elif quoted and c == "\\":
            escaped = True
        elif c == '"':
            quoted = not quoted
        elif not quoted and c in "<>":
            inside = c == "<"
        elif not quoted and not inside and c in _SEPARATORS:
            pieces.append(text[start:at])
            start = at + 1
    pieces.append(text[start:])
    return [piece.strip() for piece in pieces if piece.strip()]


@lru_cache(maxsize=4096)
def parse_address(text: str) -> Address:
    """Read one address: `a@b`, `<a@b>`, `Name <a@b>`, `"Na, me" <a@b>`; the name may be encoded words.

    Raises:
        InvalidAddress: anything else; the text never repeats more than 80 characters of the input.
    """
    text = text.strip()
    if len(text) > MAX_TEXT:
        raise InvalidAddress(f"an address of {len(text)} characters is too long; at most {MAX_TEXT} are taken")
    found = _ANGLE.match(text)
    if found is None:
        return _parse_spec(text, name="")
    phrase, spec = found.groups()
    name = read_phrase(phrase)
    if name is None:
        raise InvalidAddress(f'{shown(text)}: quote the name, as in "Miller, Ann" <ann@example.org>')
    return _parse_spec(spec.strip(), name=checked_name(name))


def read_phrase(phrase: str) -> str | None:
    """Return what a phrase of words and quoted strings (RFC 5322 §3.2.5) shows; None where a part needs quotes."""
    phrase = phrase.strip()
    bare = _QUOTED_STRING.sub("", phrase) if '"' in phrase else phrase
    # A bare colon begins a group (RFC 5322 §3.4). It is also what a header field or an SMTP command has that was
    # smuggled in behind a line break: "a@example.org\r\nRCPT TO:<b@example.org>" is not two recipients.
    if not _NEVER_BARE.isdisjoint(bare):
        return None
    return phrase if bare is phrase else _QUOTED_STRING.sub(_unquoted, phrase)


def _unquoted(quoted: re.Match[str]) -> str:
    return re.sub(r"\\(.)", r"\1", quoted[1], flags=re.DOTALL)


def mailbox(addr_spec: str, name: str) -> Address:
    """Make an address of its two parts; `name` may be empty.

    Raises:
        InvalidAddress: `addr_spec` is not a bare `local@domain`, or `name` holds control characters.
    """
    if len(addr_spec) > MAX_TEXT:
        raise InvalidAddress(f"an address of {len(addr_spec)} characters is too long; at most {MAX_TEXT} are taken")
    return _parse_spec(addr_spec.strip(), name=checked_name(name.strip()))


def without_addresses(text: str) -> str:
    """Give what a relay said as it may stand in a log: with "…" wherever something has the look of an address."""
    return _LOOKS_LIKE_ONE.sub("…", text)


def checked_name(name: str) -> str:
    """Decode a display name that came as encoded words, and refuse one that could not stand in a header field."""
    if len(name) > MAX_TEXT:
        raise InvalidAddress(f"a display name of {len(name)} characters is too long; at most {MAX_TEXT} are taken")
    name = encoded_words.decode(name)
    if CONTROL.search(name) or not _is_encodable(name):
        raise InvalidAddress("a display name may not contain line breaks or control characters; remove them")
    if len(name) > MAX_PLAIN_NAME:
        length = len(" ".join(encoded_words.encode(name)))
        if length > MAX_ENCODED_NAME:
            raise InvalidAddress(
                f"the display name {shown(name)} is too long: it has {length} characters when encoded, and relays drop "
                f"one of more than {MAX_ENCODED_NAME}; shorten it"
            )
    return name


def _is_encodable(text: str) -> bool:
    return text.isascii() or not any("\ud800" <= c <= "\udfff" for c in text)


def shown(text: str) -> str:
    """The input, shortened and escaped, for an error text."""
    text = repr(text)
    return text if len(text) <= 80 else f"{text[:76]}...'"


def _parse_spec(spec: str, *, name: str) -> Address:
    local, at, domain = spec.rpartition("@")
    if at and len(spec) <= MAX_SPEC and _is_plain(local) and _is_host(domain):
        return Address(local, domain.lower(), name)
    fault = slip_in(spec)
    if fault is not None:
        raise InvalidAddress(f"{shown(spec)}: {fault}")
    return _parse_international(spec, name=name)


def _is_plain(local: str) -> bool:
    # "=?" is made of atext, but parsers decode an encoded word wherever it stands, and then it is another address.
    return bool(DOT_ATOM.match(local)) and "=?" not in local


def _is_host(domain: str) -> bool:
    """A host name that needs no second look; an A-label has rules of its own."""
    return bool(HOST.match(domain)) and not _RESERVED_LABEL.search(domain) and not domain.rpartition(".")[2].isdecimal()


def _parse_international(spec: str, *, name: str) -> Address:
    # Imported here: most services never see such an address, and the module costs 10 ms at start.
    from email_validator import EmailNotValidError, validate_email

    try:
        valid = validate_email(spec, check_deliverability=False, strict=True, test_environment=True)
    except EmailNotValidError as error:
        text = invisible_character(spec) or (
            "it is no valid internationalised address; write name@example.org, the domain as A-labels (xn--…)"
        )
        raise InvalidAddress(f"{shown(spec)}: {text}") from error
    domain = valid.ascii_domain
    if not HOST.match(domain) or CONTROL.search(valid.local_part):
        raise InvalidAddress(f"{shown(spec)}: the domain is not a host name; write name@example.org")
    return Address(valid.local_part, domain.lower(), name)
