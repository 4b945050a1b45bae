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
from collections.abc import Iterator, Sequence
from datetime import UTC, datetime
from email.utils import format_datetime
from functools import lru_cache
from typing import TypeAlias

from app.compose.attachment import attached, wrapped
from app.compose.header import LONGEST_LINE, address_field, field, text_field
from app.mail.address import Address
from app.mail.message import Attachment, Calendar, Draft

LINE = 76  # characters of a line of quoted-printable, RFC 2045 §6.7
_7BIT = bytes([9, 10, 13, *range(32, 127)])
_PIECE = 1 << 20  # characters of a text that are encoded in one call
_BLANK_AT_END = re.compile(rb"=(?:20|09)\r\n")


def compose(draft: Draft, *, sender: Address, message_id: str, date: datetime, boundary: str) -> bytes:
    """Write the message. `message_id` has its angle brackets; `date` is written in UTC; `boundary` must not
    occur in the bodies.

    A text's line ends (CRLF, CR, LF) become CRLF and its last line gets one; everything else comes back from a
    MIME parser as it was.
    """
    head = [
        f"Message-ID: {message_id}",
        f"Date: {_date(int(date.timestamp()))}",
        address_field("From", (sender,)),
    ]
    if draft.reply_to:
        head.append(address_field("Reply-To", draft.reply_to))
    # RFC 5322 §3.6.3 lets To be absent; an empty group tells the reader that it was meant.
    head.append(address_field("To", draft.to) if draft.to else "To: undisclosed-recipients:;")
    if draft.cc:
        head.append(address_field("Cc", draft.cc))
    head.append(text_field("Subject", draft.subject))
    head.extend(line for name, value in draft.headers if (line := field(name, value)) is not None)
    head.append("MIME-Version: 1.0")
    fields, body = _body(draft, boundary)
    head.append(fields)
    return b"".join(("\r\n".join(head).encode(), b"\r\n\r\n", *body))


@lru_cache(maxsize=16)  # many messages a second
def _date(second: int) -> str:
    # Not by datetime: those of one instant are equal in every zone, so the first one's zone would be written for all.
    return format_datetime(datetime.fromtimestamp(second, UTC))


_Part: TypeAlias = tuple[str, Sequence[bytes]]  # its header fields; its bytes, which end with CRLF


def _body(draft: Draft, boundary: str) -> _Part:
    """Nest the bodies and the files: mixed(alternative(text, related(html, what it shows), calendar), the rest)."""
    shown: list[Attachment] = []
    rest: list[Attachment] = []
    for attachment in draft.attachments:
        (shown if attachment.is_inline and draft.html is not None else rest).append(attachment)
    texts = []
    if draft.text is not None or (draft.html is None and draft.calendar is None):
        texts.append(_text_part("plain", draft.text or ""))
    if draft.html is not None:
        html = _text_part("html", draft.html)
        # RFC 2387 §3.1: the type of its root is required.
        related = 'related;\r\n type="text/html"'
        texts.append(_multipart(related, boundary, [html, *map(attached, shown)]) if shown else html)
    if draft.calendar is not None:
        # Last, as Outlook and Gmail want it: what a program understands best of what it understands at all.
        texts.append(_calendar_part(draft.calendar))
        rest.append(_calendar_file(draft.calendar))
    # RFC 2046 §5.1.4: in increasing order of faithfulness, the plainest first.
    whole = _multipart("alternative", boundary, texts) if len(texts) > 1 else texts[0]
    return _multipart("mixed", boundary, [whole, *map(attached, rest)]) if rest else whole


def _calendar_part(calendar: Calendar) -> _Part:
    """Write an invitation as a mail program answers it (RFC 6047 §2.4)."""
    _, encoding, body = _encoded(calendar.content)
    content_type = f"text/calendar; method={calendar.method}; charset=utf-8"
    return f"Content-Type: {content_type}\r\nContent-Transfer-Encoding: {encoding}", body


def _calendar_file(calendar: Calendar) -> Attachment:
    """Make the file for programs that show no invitation; of another type, or some would show two."""
    _, _, pieces = _plain(calendar.content)
    content = b2a_base64(b"".join(pieces), newline=False)
    return Attachment("invite.ics", content, 'application/ics; name="invite.ics"')


def _multipart(kind: str, boundary: str, parts: Sequence[_Part]) -> _Part:
    boundary = f"{boundary}{kind[0]}"  # each level has its own
    body: list[bytes] = []
    for fields, content in parts:
        # The CRLF before a delimiter belongs to the delimiter (RFC 2046 §5.1.1), so each part keeps its own.
        body += (f"--{boundary}\r\n{fields}\r\n\r\n".encode(), *content, b"\r\n")
    body.append(f"--{boundary}--\r\n".encode())
    return f'Content-Type: multipart/{kind};\r\n boundary="{boundary}"', body


def _text_part(kind: str, text: str) -> _Part:
    charset, encoding, body = _encoded(text)
    return f"Content-Type: text/{kind}; charset={charset}\r\nContent-Transfer-Encoding: {encoding}", body


def _plain(text: str) -> tuple[int, int, list[bytes]]:
    """Return the numbers of characters and bytes of a text with its line ends normalised, and the text in pieces."""
    pieces: list[bytes] = []
    characters = 0
    for piece in map(_with_crlf, _pieces(text)):
        characters += len(piece)
        pieces.append(piece.encode())
    if not pieces[-1].endswith(b"\r\n"):
        pieces[-1] += b"\r\n"
        characters += 2
    return characters, sum(map(len, pieces)), pieces


def _encoded(text: str) -> tuple[str, str, Sequence[bytes]]:
    """Return the charset, the transfer encoding, and the text in it."""
    characters, size, pieces = _plain(text)
    charset = "us-ascii" if size == characters else "utf-8"
    if charset == "us-ascii" and all(map(_fits_7bit, pieces)):
        return charset, "7bit", pieces
    if (size - characters) * 4 <= size:
        return charset, "quoted-printable", list(map(_quoted_printable, pieces))
    return charset, "base64", wrapped(b2a_base64(b"".join(pieces), newline=False))


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
    return len(raw) <= LONGEST_LINE or max(map(len, raw.split(b"\r\n"))) <= LONGEST_LINE


def _quoted_printable(raw: bytes) -> bytes:
    """Encode a piece of a text; one that ends within a line ends with a soft line break (RFC 2045 §6.7)."""
    # It breaks lines as the first line ends, with CRLF here: every one is intact.
    if raw.endswith(b"\r\n"):
        return _qp(raw)
    encoded = _qp(raw + b"\r\n")[:-2]
    last = encoded.rfind(b"\n") + 1
    if len(encoded) - last < LINE:
        return encoded + b"=\r\n"
    cut = last + LINE - 1
    cut -= 2 if encoded[cut - 2 : cut - 1] == b"=" else 1 if encoded[cut - 1 : cut] == b"=" else 0  # never in an =XX
    return b"%b=\r\n%b=\r\n" % (encoded[:cut], encoded[cut:])


def _qp(raw: bytes) -> bytes:
    """Encode whole lines; one that binascii leaves at 77 characters is broken once more.

    It counts a blank at the end of a line as one character, although it writes three.
    """
    encoded = b2a_qp(raw, istext=True)
    if b"=20\r\n" not in encoded and b"=09\r\n" not in encoded:  # nearly always: a search for them takes longer
        return encoded
    pieces: list[bytes] = []
    at = 0
    for found in _BLANK_AT_END.finditer(encoded):
        blank = found.start()
        if blank - encoded.rfind(b"\n", max(0, blank - LINE), blank) - 1 > LINE - len("=20"):
            pieces += (encoded[at:blank], b"=\r\n")
            at = blank
    return b"".join((*pieces, encoded[at:]))
