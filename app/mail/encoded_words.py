"""RFC 2047 encoded words: text beyond ASCII in a header field, as base64, and back again. Pure."""

from __future__ import annotations

import re
from binascii import a2b_base64, a2b_qp, b2a_base64

LINE = 76  # characters of a line that holds an encoded word, RFC 2047 §2
_WORD_BYTES = 45  # payload of one encoded word: 60 characters of base64, 72 in all
_WORD = r"=\?[A-Za-z0-9_.:+-]{1,40}(?:\*[A-Za-z0-9-]*)?\?[BbQq]\?[^?]*\?="  # with a language: RFC 2231 §5
_ONE = re.compile(r"=\?([^?*]*)[^?]*\?([BbQq])\?([^?]*)\?=")
_RUN = re.compile(rf"(?<!\S){_WORD}(?:\s*{_WORD})*(?!\S)")


def encode(text: str, *, first: int = LINE - 1) -> list[str]:
    """Cut `text` into encoded words, never inside a character; the first one has `first` characters at most.

    Where `first` is too few for a word, the first one is of full length: it belongs on the next line.
    """
    words: list[str] = []
    chunk = bytearray()
    limit = min(_WORD_BYTES, max(0, (first - 12) // 4 * 3)) or _WORD_BYTES
    for c in text:
        raw = c.encode()
        if len(chunk) + len(raw) > limit and chunk:
            words.append(_word(chunk))
            chunk = bytearray()
            limit = _WORD_BYTES
        chunk += raw
    words.append(_word(chunk))
    return words


def _word(raw: bytes | bytearray) -> str:
    return f"=?utf-8?B?{b2a_base64(raw, newline=False).decode('ascii')}?="


def holds_one(text: str) -> bool:
    """Return whether a reader would find an encoded word in `text`."""
    return re.search(_WORD, text) is not None


def decode(text: str) -> str:
    """Decode the encoded words that stand alone between blanks; one that cannot be decoded is left as it is.

    Blanks between two of them are dropped (§6.2). A character that is cut between two is mended.
    """
    return _RUN.sub(_decoded, text) if "=?" in text else text


def _decoded(run: re.Match[str]) -> str:
    pieces: list[tuple[str, bytes]] = []
    try:
        for charset, encoding, payload in _ONE.findall(run[0]):
            raw = _payload(encoding, payload.encode("ascii"))
            if pieces and pieces[-1][0] == charset.lower():
                raw = pieces.pop()[1] + raw
            pieces.append((charset.lower(), raw))
        return "".join(raw.decode(charset) for charset, raw in pieces)
    except (LookupError, ValueError):  # an unknown charset, or bytes that are not of it
        return run[0]


def _payload(encoding: str, payload: bytes) -> bytes:
    if encoding in "Qq":
        return a2b_qp(payload, header=True)
    return a2b_base64(payload.rstrip(b"=") + b"=" * (-len(payload.rstrip(b"=")) % 4))
