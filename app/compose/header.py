"""Header fields as lines: unstructured text, lists of addresses, and the structured fields that callers may set.

Knows no draft. A structured field (RFC 2047 §5) holds no encoded word outside of a phrase: its blanks are normalised,
its phrases encoded, and what cannot be carried so is refused.

Follows RFC 5322 §2.1.1 (line length), §2.2.3 (folding), §3.6.4 (message ids), RFC 2047 (encoded words), RFC 2369 and
2919 (`List-*`), RFC 3834 (Auto-Submitted), RFC 8098 (dispositions), RFC 6532 (UTF-8 in an address only where its local
part needs SMTPUTF8).
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping

from app.mail import encoded_words
from app.mail.address import (
    CONTROL,
    MAX_PLAIN_NAME,
    Address,
    InvalidAddress,
    checked_name,
    parse_address,
    read_phrase,
    split_addresses,
)
from app.mail.encoded_words import LINE

LONGEST_LINE = 980  # octets without CRLF: RFC 5322 §2.1.1 allows 998, but Haraka splits longer lines at 990
_LONGEST_WORD = 900  # characters of a word in an unstructured field; a longer one is encoded

_ATOM_PHRASE = re.compile(r"[A-Za-z0-9!#$%&'*+/=?^_`{|}~-]+(?: [A-Za-z0-9!#$%&'*+/=?^_`{|}~-]+)*\Z")
_PRINTABLE = re.compile(r"[ -~]*\Z")
_WORD = re.compile(r" *[^ ]+")
_BRACKETS = re.compile(r" ?< ?([^<>]*?) ?> ?")
_NAMED_ID = re.compile(r"([^<>]*)<([^<>]*)>\Z")


class InvalidField(ValueError):
    """A value that this structured field cannot carry. The text says why, and what to write instead."""


def field(name: str, value: str) -> str | None:
    """Write a field of the caller's, folded; None where a structured one is empty.

    Raises:
        InvalidField: a structured field cannot carry `value`.
        ValueError: a control character in `value`.
    """
    write = _writer(name)
    if write is None:
        return text_field(name, value)
    if CONTROL.search(value.replace("\t", " ")):
        raise InvalidField(f"{name} may not contain line breaks or control characters; remove them")
    value = " ".join(value.split())
    return write(name, value) if value else None


def is_structured(name: str) -> bool:
    """Return whether `field()` may refuse a value of this field."""
    return _writer(name) is not None


def _writer(name: str) -> Callable[[str, str], str] | None:
    name = name.lower()
    return _STRUCTURED.get(name) or (_ascii if name.startswith("list-") else None)


def text_field(name: str, value: str) -> str:
    """Write an unstructured field, folded; encoded words where the text is not plain.

    Raises:
        ValueError: a control character in `value`.
    """
    # "=?" is encoded although it is ASCII, or a reader would decode what the writer never encoded.
    if _PRINTABLE.match(value) and "=?" not in value:
        if len(name) + len(value) + 2 <= LINE:
            return f"{name}: {value}"
        folded = _fold(name, value)
        if folded is not None:
            return folded
    elif CONTROL.search(value):
        raise ValueError(f"control character in the header field {name}")
    return _lines(name, encoded_words.encode(value, first=LINE - len(name) - 2))


def _fold(name: str, value: str) -> str | None:
    """Fold before blanks, so that none is lost or added (RFC 5322 §2.2.3); None where a word is too long for that."""
    words = _WORD.findall(value)
    if not words:
        return None
    words[-1] += value[sum(map(len, words)) :]  # a line of blanks alone may not be
    lines, line = [], f"{name}: "
    for word in words:
        if len(word) > _LONGEST_WORD:
            return None
        if len(line) + len(word) > LINE and line != f"{name}: ":
            lines.append(line)
            line = ""
        line += word
    return "\r\n".join([*lines, line])


def _lines(name: str, words: list[str]) -> str:
    joiner = "\r\n "
    start = f"{name}: " if len(name) + 2 + len(words[0]) <= LINE else f"{name}:{joiner}"
    return start + joiner.join(words)


def address_field(name: str, addresses: Iterable[Address]) -> str:
    """Write a field of addresses, one a line: never too long, and a list stays readable in the source.

    Raises:
        ValueError: a control character in a display name.
    """
    first = LINE - len(name) - 2
    return f"{name}: " + ",\r\n ".join(_mailbox(address, first) for address in addresses)


def _mailbox(address: Address, first: int) -> str:
    if not address.name:
        return address.addr_spec
    phrase = _phrase(address.name, first)
    # RFC 5322 §2.1.1: lines of 78 at most, where they can be folded.
    is_long = "\r\n" in phrase or len(phrase) + len(address.addr_spec) + len(" <>,") > first
    return f"{phrase}\r\n <{address.addr_spec}>" if is_long else f"{phrase} <{address.addr_spec}>"


def _phrase(name: str, first: int) -> str:
    """Write a display name: as it is, in quotes, or as encoded words of which the first has `first` characters."""
    if CONTROL.search(name):
        raise ValueError("control character in a display name")
    if len(name) <= MAX_PLAIN_NAME and "=?" not in name and name.isascii():
        if _ATOM_PHRASE.match(name):
            return name
        escaped = name.replace("\\", "\\\\").replace('"', '\\"')
        return f'"{escaped}"'
    return "\r\n ".join(encoded_words.encode(name, first=first))


def _ascii(name: str, value: str) -> str:
    """Write tokens, URLs, dates and the like: ASCII, folded at its blanks."""
    if not value.isascii():
        odd = next(c for c in value if not c.isascii())
        raise InvalidField(
            f"{name} cannot hold {odd!r}: such a field is ASCII and is not encoded; in a URL write it percent-encoded, "
            "in a domain as xn--…"
        )
    if encoded_words.holds_one(value):
        raise InvalidField(f"{name} cannot hold an encoded word (=?…?=); write its text, and ? in a URL as %3F")
    for word in value.split(" "):
        longest = LONGEST_LINE - len(name) - 2
        if len(word) > longest:
            raise InvalidField(
                f"{name} cannot be folded: {len(word)} characters stand without a blank, and a line takes {longest}; "
                "shorten it"
            )
    lines, line = [], f"{name}:"
    for word in value.split(" "):
        if len(line) + len(word) + 1 > LINE and line != f"{name}:":
            lines.append(line)
            line = ""
        line += f" {word}"
    return "\r\n".join([*lines, line])


def _urls(name: str, value: str) -> str:
    """Write URLs in angle brackets, which hold no blank (RFC 2369 §2)."""
    return _ascii(name, _bracketed(name, value, "a URL", "write it as %20"))


def _ids(name: str, value: str) -> str:
    """Write message ids, one blank between two of them (RFC 5322 §3.6.4)."""
    return _ascii(name, _bracketed(name, value, "a message id", "remove it").replace("><", "> <"))


def _bracketed(name: str, value: str, what: str, cure: str) -> str:
    def trimmed(found: re.Match[str]) -> str:
        if " " in found[1]:
            raise InvalidField(f"{name}: {what} holds no blank between < and >; {cure}")
        before, behind = found[0][0] == " ", found[0][-1] == " "
        return f"{' ' * before}<{found[1]}>{' ' * behind}"

    return _BRACKETS.sub(trimmed, value)


def _addresses(name: str, value: str) -> str:
    """Write addresses; their names may be anything, they themselves are ASCII (no envelope asks for SMTPUTF8)."""
    try:
        addresses = [parse_address(each) for each in split_addresses(value)]
    except InvalidAddress as error:
        raise InvalidField(f"{name} holds addresses: {error}") from None
    for address in addresses:
        if address.needs_smtputf8:
            raise InvalidField(f"{name} cannot hold {address.addr_spec!r}: the part before the @ must be ASCII here")
    return address_field(name, addresses)


def _list_id(name: str, value: str) -> str:
    """Write a list's identifier, with its description as a phrase (RFC 2919)."""
    found = _NAMED_ID.match(value)
    phrase = read_phrase(found[1]) if found else ""
    if found is None or not phrase:
        return _ascii(name, _bracketed(name, value, "a list's identifier", "remove it"))
    identifier = _bracketed(name, f"<{found[2]}>", "a list's identifier", "remove it")
    _ascii(name, identifier)
    try:
        written = _phrase(checked_name(phrase), LINE - len(name) - 2)
    except InvalidAddress as error:
        raise InvalidField(f"{name}: {error}") from None
    line_end = "\r\n" if len(name) + 2 + len(written) + 1 + len(identifier) > LINE else ""
    return f"{name}: {written}{line_end} {identifier}"


_STRUCTURED: Mapping[str, Callable[[str, str], str]] = {
    **dict.fromkeys(["in-reply-to", "references", "original-message-id", "supersedes", "obsoletes"], _ids),
    **dict.fromkeys(
        [
            *("disposition-notification-to", "return-receipt-to", "errors-to", "x-confirm-reading-to"),
            *("mail-followup-to", "mail-reply-to", "apparently-to"),
        ],
        _addresses,
    ),
    "list-id": _list_id,
    **dict.fromkeys(
        [
            *("list-help", "list-unsubscribe", "list-subscribe", "list-post", "list-owner", "list-archive"),
            "archived-at",
        ],
        _urls,
    ),
    **dict.fromkeys(
        [
            *("disposition-notification-options", "original-recipient", "auto-submitted", "x-auto-response-suppress"),
            *("precedence", "priority", "importance", "sensitivity", "x-priority", "x-msmail-priority", "mt-priority"),
            *("content-language", "accept-language", "message-context", "tls-required", "feedback-id", "autocrypt"),
            *("expires", "expiry-date", "reply-by", "deferred-delivery", "latest-delivery-time", "alternate-recipient"),
            *("conversion", "conversion-with-loss", "require-recipient-valid-since", "bimi-selector"),
            *("newsgroups", "followup-to", "distribution", "thread-index"),
        ],
        _ascii,
    ),
}
