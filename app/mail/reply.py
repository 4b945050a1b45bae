"""What a relay says: replies, and the bounded reader that cuts a byte stream into them.

Follows RFC 5321 §4.2 (reply grammar), §4.5.3.1.5 (line length) and RFC 3463 (enhanced status codes). Sans I/O:
bytes in, replies out, however they were split. A relay may lie, drip or never stop: line and reply length are
bounded, and nothing here raises on content except `MalformedReply`.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass

from app.mail.escaping import escape

MAX_LINE = 4096  # bytes; RFC 5321 asks for 512, real EHLO lines stay under 1,000
LONGEST_SHOWN = 1000  # characters of a reply that are kept
MAX_REPLY = 64 * 1024  # bytes over all lines of one reply

# RFC 5321 §4.2: the first digit is 2 to 5 (1yz is never used), the second 0 to 5 by grammar; real relays use
# other second digits, so only the first is held.
_LINE = re.compile(rb"([2-5][0-9][0-9])(?:([ -])(.*))?\Z", re.DOTALL)
_ENHANCED = re.compile(r"([245])\.[0-9]{1,3}\.[0-9]{1,3}(?=\s|$)")


class MalformedReply(Exception):
    """The peer's bytes are not an SMTP reply. `line` is what it said, shortened and escaped."""

    def __init__(self, line: bytes) -> None:
        self.line = printable(line[:200])
        super().__init__(self.line)


@dataclass(frozen=True, slots=True)
class Reply:
    """One reply: a code of 200 to 599 and its text, one entry a line, control characters escaped."""

    code: int
    lines: tuple[str, ...]

    @property
    def text(self) -> str:
        """All lines joined by a space, without the code."""
        return " ".join(self.lines)

    @property
    def enhanced(self) -> str | None:
        """The enhanced status code, or None where there is none or its class contradicts the reply code.

        RFC 3463 §2: the reply code rules.
        """
        found = _ENHANCED.match(self.lines[0]) if self.lines else None
        if found is None or int(found[1]) != self.code // 100:
            return None
        return found[0]

    @property
    def is_positive(self) -> bool:
        return self.code < 300

    @property
    def is_transient(self) -> bool:
        return 400 <= self.code < 500

    @property
    def is_permanent(self) -> bool:
        return self.code >= 500

    def wire_lines(self) -> list[str]:
        """As it stood on the wire, one entry a line."""
        last = len(self.lines) - 1
        return [f"{self.code}{' ' if at == last else '-'}{line}" for at, line in enumerate(self.lines)]

    def __str__(self) -> str:
        """Code and text in one line, as they are kept and shown: shortened, since one reply may have 64 kB."""
        text = f"{self.code} {self.text}".rstrip()
        return text if len(text) <= LONGEST_SHOWN else f"{text[:LONGEST_SHOWN]}…"


def printable(raw: bytes) -> str:
    """Decode what a peer sent, as one printable line; bytes that are not UTF-8 are escaped too."""
    return escape(raw.decode("utf-8", "backslashreplace"))


class ReplyReader:
    """Cuts a byte stream into replies. Once `feed()` has raised, the stream is lost: do not feed it again."""

    __slots__ = ("_buffer", "_code", "_lines", "_size")

    def __init__(self) -> None:
        self._buffer = b""
        self._lines: list[str] = []
        self._code = 0
        self._size = 0

    def feed(self, data: bytes) -> Iterator[Reply]:
        """Take `data`; give every reply that is whole now, in order, before anything is raised.

        Raises:
            MalformedReply: not a reply line, codes that differ within one reply, or longer than the bounds.
        """
        if self._buffer:
            data = self._buffer + data
        *whole, self._buffer = data.split(b"\n")
        for line in whole:
            reply = self._take(line)
            if reply is not None:
                yield reply
        if len(self._buffer) > MAX_LINE + 1:  # a CR may be the last byte yet
            raise MalformedReply(self._buffer)

    def _take(self, line: bytes) -> Reply | None:
        line = line.removesuffix(b"\r")
        found = _LINE.match(line)
        self._size += len(line)
        if found is None or len(line) > MAX_LINE or self._size > MAX_REPLY:
            raise MalformedReply(line)
        code = int(found[1])
        if self._lines and code != self._code:
            raise MalformedReply(line)
        self._code = code
        self._lines.append(printable(found[3] or b""))
        if found[2] == b"-":
            return None
        reply = Reply(code, tuple(self._lines))
        self._lines = []
        self._size = 0
        return reply
