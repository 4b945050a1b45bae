"""Sending to a relay without SMTPUTF8 what can be sent: who takes part, and fields without 8-bit addresses. Pure.

RFC 6531 §3.2 lets a client leave out the recipients whose addresses are not ASCII. RFC 6857 §3.1.8: in a header field
such a mailbox becomes an empty group, whose name shows the address.
"""

from __future__ import annotations

import re
from binascii import b2a_base64
from dataclasses import replace

from app.mail.message import Envelope

_FIELD = re.compile(rb"[^\r\n]*(?:\r\n[ \t][^\r\n]*)*\r\n")
_LONGEST = 42  # bytes in an encoded word, which has 75 characters at most (RFC 2047 §2)
# <ünï@example.org>, or the same bare: without quotes and comments (mail/address.py).
_ADDRESS = re.compile(rb"<[^<>@\s]*[\x80-\xff][^<>\s]*>|[^\s<>,:;@]*[\x80-\xff][^\s<>,:;@]*@[^\s<>,:;]+")


def without_smtputf8(envelope: Envelope, content: bytes) -> tuple[Envelope, bytes]:
    """Return the envelope of those whom the relay can be asked for, and the content with ASCII header fields.

    The envelope has no recipients where the sender or every recipient needs SMTPUTF8.
    """
    ascii_only = tuple(address for address in envelope.recipients if address.isascii())
    recipients = ascii_only if envelope.sender.isascii() else ()
    return replace(envelope, recipients=recipients, smtputf8=False), downgraded(content)


def downgraded(content: bytes) -> bytes:
    """Rewrite the mailboxes of the header that are not ASCII; the body stays as it is."""
    end = content.find(b"\r\n\r\n") + 2
    if end < 2 or content[:end].isascii():
        return content
    header = b"".join(
        field if field.isascii() else _ADDRESS.sub(_as_group, field) for field in _FIELD.findall(content[:end])
    )
    return header + content[end:]


def _as_group(found: re.Match[bytes]) -> bytes:
    text, words = found[0].decode("utf-8", "replace"), [b""]
    for character in text:
        raw = character.encode()
        if len(words[-1]) + len(raw) > _LONGEST:
            words.append(b"")
        words[-1] += raw
    encoded = (b"=?utf-8?B?" + b2a_base64(word, newline=False) + b"?=" for word in words)
    return b"".join(b"\r\n " + word for word in encoded) + b" :;"
