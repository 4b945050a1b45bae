"""Draft → RFC 5322 bytes, always 7-bit, with CRLF line ends.

Written by hand because it is what this service is for: the standard library's generator costs a hundred times
as much, and in Python 3.11 lets an encoded word carry a line break into a header (CVE-2024-6923). The parser of
the standard library is the oracle of the tests: what is written here it reads back equal.

Order of the fields: Message-ID, Date, From, Reply-To, To, Cc, Subject, the caller's own, MIME. Bcc is never
written. Follows RFC 5322 §2.1.1 (line length) and §3.6, RFC 2045 §6 (transfer encodings), RFC 2046 §5.1
(multipart), RFC 2047 (encoded words), RFC 6532 (UTF-8 in an address only where its local part needs SMTPUTF8).

Whoever calls has checked that no header value holds control characters; this room checks it again, because
a header that can be injected is worth two locks.
"""

from __future__ import annotations

import re
from binascii import b2a_base64, b2a_qp
from collections.abc import Iterable, Iterator, Sequence
from datetime import UTC, datetime
from email.utils import format_datetime
from functools import lru_cache
from typing import TypeAlias

from app.compose.attachment import attached, wrapped
from app.mail.address import CONTROL, Address
from app.mail.message import Attachment, Draft

_LINE = 76  # characters a line is folded at, RFC 2047 §2
_WORD_BYTES = 45  # payload of one encoded word: 60 characters of base64, 72 in all
_LONGEST_PLAIN = 60  # a display name longer than this is encoded, so that it can be folded

_ATOM_PHRASE = re.compile(r"[A-Za-z0-9!#$%&'*+/=?^_`{|}~-]+(?: [A-Za-z0-9!#$%&'*+/=?^_`{|}~-]+)*\Z")
_PLAIN_TEXT = re.compile(r"[!-~]+(?: [!-~]+)*\Z")
_7BIT = bytes([9, 10, 13, *range(32, 127)])
_PIECE = 1 << 20  # characters of a text that are encoded in one call
_LONGEST_LINE = 980  # octets without CRLF: RFC 5322 §2.1.1 allows 998, but Haraka splits longer lines at 990
# binascii counts a blank at the end of a line as one character, although it is written as three.
_TOO_LONG = re.compile(rb"^(.{74})(=(?:20|09)\r$)", re.MULTILINE)


def compose(draft: Draft, *, sender: Address, message_id: str, date: datetime, boundary: str) -> bytes:
    """Write the message. `message_id` has its angle brackets; `date` is written in UTC; `boundary` must not
    occur in the bodies.

    A text's line ends (CRLF, CR, LF) become CRLF and its last line gets one; everything else comes back from a
    MIME parser as it was.
    """
    head = [
        f"Message-ID: {message_id}",
        f"Date: {_date(int(date.timestamp()))}",
        _address_field("From", (sender,)),
    ]
    if draft.reply_to:
        head.append(_address_field("Reply-To", draft.reply_to))
    # RFC 5322 §3.6.3 lets To be absent; an empty group tells the reader that it was meant.
    head.append(_address_field("To", draft.to) if draft.to else "To: undisclosed-recipients:;")
    if draft.cc:
        head.append(_address_field("Cc", draft.cc))
    head.append(text_field("Subject", draft.subject))
    head.extend(text_field(name, value) for name, value in draft.headers)
    head.append("MIME-Version: 1.0")
    fields, body = _body(draft, boundary)
    head.append(fields)
    return b"".join(("\r\n".join(head).encode(), b"\r\n\r\n", *body))


@lru_cache(maxsize=16)  # many messages a second
def _date(second: int) -> str:
    # Not by datetime: those of one instant are equal in every zone, so the first one's zone would be written for all.
    return format_datetime(datetime.fromtimestamp(second, UTC))


def text_field(name: str, value: str) -> str:
    """Write an unstructured field, folded; encoded words where the text is not plain.

    Raises:
        ValueError: a control character in `value`.
    """
    if CONTROL.search(value):
        raise ValueError(f"control character in the header field {name}")
    # "=?" is encoded although it is ASCII, or a reader would decode what the writer never encoded.
    if not value or (_PLAIN_TEXT.match(value) and "=?" not in value):
        if len(name) + len(value) + 2 <= _LINE:
            return f"{name}: {value}"
        folded = _fold(name, value.split(" "))
        if folded is not None:
            return folded
    return _lines(name, _encoded_words(value, first=_LINE - len(name) - 2))


def _fold(name: str, words: list[str]) -> str | None:
    """Fold at single spaces; None where a word is too long for that (RFC 5322 §2.1.1: 998)."""
    lines, line = [], f"{name}:"
    for word in words:
        if len(word) > 900:
            return None
        if len(line) + len(word) + 1 > _LINE and line != f"{name}:":
            lines.append(line)
            line = ""
        line = f"{line} {word}"
    return "\r\n".join([*lines, line])


def _lines(name: str, words: list[str]) -> str:
    joiner = "\r\n "
    start = f"{name}: " if len(name) + 2 + len(words[0]) <= _LINE else f"{name}:{joiner}"
    return start + joiner.join(words)


def _encoded_words(text: str, *, first: int) -> list[str]:
    """Cut `text` into RFC 2047 words, never inside a character; the first has only `first` characters of room."""
    words: list[str] = []
    chunk = bytearray()
    room = min(_WORD_BYTES, max(0, (first - 12) // 4 * 3)) or _WORD_BYTES
    for c in text:
        raw = c.encode()
        if len(chunk) + len(raw) > room and chunk:
            words.append(_encoded_word(chunk))
            chunk = bytearray()
            room = _WORD_BYTES
        chunk += raw
    words.append(_encoded_word(chunk))
    return words


def _encoded_word(raw: bytes | bytearray) -> str:
    return f"=?utf-8?B?{b2a_base64(raw, newline=False).decode('ascii')}?="


def _address_field(name: str, addresses: Iterable[Address]) -> str:
    # One address a line: legal, never too long, and a recipient list stays readable in the source.
    return f"{name}: " + ",\r\n ".join(_mailbox(address) for address in addresses)


def _mailbox(address: Address) -> str:
    name = address.name
    if not name:
        return address.addr_spec
    if CONTROL.search(name):
        raise ValueError("control character in a display name")
    if len(name) <= _LONGEST_PLAIN and "=?" not in name and name.isascii():
        if _ATOM_PHRASE.match(name):
            return f"{name} <{address.addr_spec}>"
        escaped = name.replace("\\", "\\\\").replace('"', '\\"')
        return f'"{escaped}" <{address.addr_spec}>'
    words = "\r\n ".join(_encoded_words(name, first=_LINE - 10))
    return f"{words}\r\n <{address.addr_spec}>"


_Part: TypeAlias = tuple[str, Sequence[bytes]]  # its header fields; its bytes, which end with CRLF


def _body(draft: Draft, boundary: str) -> _Part:
    """Nest the bodies and the attachments: mixed(alternative(text, related(html, what it shows)), the rest)."""
    shown: list[Attachment] = []
    rest: list[Attachment] = []
    for attachment in draft.attachments:
        (shown if attachment.is_inline and draft.html is not None else rest).append(attachment)
    texts = []
    if draft.text is not None or draft.html is None:
        texts.append(_text_part("plain", draft.text or ""))
    if draft.html is not None:
        html = _text_part("html", draft.html)
        texts.append(_multipart("related", boundary, [html, *map(attached, shown)]) if shown else html)
    # RFC 2046 §5.1.4: in increasing order of faithfulness, the plainest first.
    whole = _multipart("alternative", boundary, texts) if len(texts) > 1 else texts[0]
    return _multipart("mixed", boundary, [whole, *map(attached, rest)]) if rest else whole


def _multipart(kind: str, boundary: str, parts: Sequence[_Part]) -> _Part:
    boundary = f"{boundary}{kind[0]}"  # each level has its own
    body: list[bytes] = []
    for fields, content in parts:
        # The CRLF before a delimiter belongs to the delimiter (RFC 2046 §5.1.1), so each part keeps its own.
        body += (f"--{boundary}\r\n{fields}\r\n\r\n".encode(), *content, b"\r\n")
    body.append(f"--{boundary}--\r\n".encode())
    return f'Content-Type: multipart/{kind};\r\n boundary="{boundary}"', body


def _text_part(kind: str, text: str) -> _Part:
    """Encode one text."""
    pieces: list[bytes] = []
    characters = 0
    for piece in map(_with_crlf, _pieces(text)):
        characters += len(piece)
        pieces.append(piece.encode())
    if not pieces[-1].endswith(b"\r\n"):
        pieces[-1] += b"\r\n"
        characters += 2
    size = sum(map(len, pieces))
    charset = "us-ascii" if size == characters else "utf-8"
    if charset == "us-ascii" and all(map(_fits_7bit, pieces)):
        encoding, body = "7bit", pieces
    elif (size - characters) * 4 <= size:
        encoding, body = "quoted-printable", list(map(_quoted_printable, pieces))
    else:
        encoding, body = "base64", wrapped(b2a_base64(b"".join(pieces), newline=False))
    return f"Content-Type: text/{kind}; charset={charset}\r\nContent-Transfer-Encoding: {encoding}", body


def _pieces(text: str) -> Iterator[str]:
    """Cut a long text into pieces of some `_PIECE` characters, behind line ends where it has any.

    A single call over many megabytes would hold the event loop up, in whatever thread it runs.
    """
    at = 0
    while len(text) - at > _PIECE:
        end = text.rfind("\n", at, at + _PIECE) + 1
        if not end:
            end = at + _PIECE - (text[at + _PIECE - 1] == "\r")  # a CRLF stays together
        yield text[at:end]
        at = end
    yield text[at:]


def _with_crlf(text: str) -> str:
    if "\r" in text:
        text = text.replace("\r\n", "\n").replace("\r", "\n")
    return text.replace("\n", "\r\n")


def _fits_7bit(raw: bytes) -> bool:
    """Whether ASCII text with CRLF line ends survives as it stands (relays may strip blanks at a line's end)."""
    if raw.translate(None, _7BIT) or b" \r\n" in raw or b"\t\r\n" in raw:
        return False
    return len(raw) <= _LONGEST_LINE or max(map(len, raw.split(b"\r\n"))) <= _LONGEST_LINE


def _quoted_printable(raw: bytes) -> bytes:
    """Encode a piece of a text; one that ends within a line ends with a soft line break (RFC 2045 §6.7)."""
    # It breaks lines as the first line ends, with CRLF here: every one is intact.
    if raw.endswith(b"\r\n"):
        return _qp(raw)
    encoded = _qp(raw + b"\r\n")[:-2]
    last = encoded.rfind(b"\n") + 1
    if len(encoded) - last < _LINE:
        return encoded + b"=\r\n"
    cut = last + _LINE - 1
    cut -= 2 if encoded[cut - 2 : cut - 1] == b"=" else 1 if encoded[cut - 1 : cut] == b"=" else 0  # never in an =XX
    return b"%b=\r\n%b=\r\n" % (encoded[:cut], encoded[cut:])


def _qp(raw: bytes) -> bytes:
    return _TOO_LONG.sub(rb"\1=\r\n\2", b2a_qp(raw, istext=True))
