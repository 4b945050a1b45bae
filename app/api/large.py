"""Read a large JSON body: count what it holds before anything is built of it, and decode its long strings in pieces.

A parser builds everything that a body holds before a reader can refuse it: 59 MB of `[],[],…` become 20 million lists,
1 GB in one C call of seconds, in which no other thread runs. So the values are counted first, and a string of megabytes
is decoded piece by piece; what is left for the parser is small.

Meant for a thread beside the event loop: no call in here holds the interpreter for more than some 30 ms. RFC 8259.
"""

from __future__ import annotations

import re
import secrets
from collections.abc import Mapping, Sequence
from typing import TypeAlias

from pydantic_core import from_json

from app.mail.errors import Fault, InvalidMessage, escaped

LARGE = 64 * 1024  # bytes; a smaller body holds nothing that takes long
MAX_VALUES = 30_000  # names, strings, objects and arrays; a message to 1,000 recipients has some 10,000
MAX_DEPTH = 200  # the parser's own
PIECE = 1024 * 1024  # bytes that are looked at, or decoded, in one call; a string of twice as many is a long one

_QUOTE, _BACKSLASH = b'"'[0], b"\\"[0]
_IN_STRING = re.compile(rb'(?:[^"\\]++|\\.)*+', re.DOTALL)
_NAME_ENDS = re.compile(rb"[ \t\r\n]*+:")
_PLACE = re.compile(r" at line (\d+) column (\d+)\Z")
_LONGEST_SEQUENCE = 12  # bytes that must stay together: an escaped surrogate pair

_Span: TypeAlias = tuple[int, int]  # of a string, without its quotes


class NotJson(ValueError):
    """The body is not JSON; the text says why, and on which line and column."""


def parse(body: bytes, *, piece: int = PIECE) -> object:
    """Parse a body of any size; `piece` is 16 bytes or more.

    Raises:
        InvalidMessage: it holds more than `MAX_VALUES` values.
        NotJson: it is not JSON.
    """
    long = _long_strings(body, piece)
    token = secrets.token_hex(16)  # nothing in a body is taken for the place of a string by accident, or on purpose
    texts: dict[str, str] = {}
    rest: list[bytes] = []
    at = 0
    for start, end in long:
        place = f"{token}{len(texts):08}"
        texts[place] = _decoded(body, start, end, piece)
        rest += (body[at:start], place.encode())
        at = end
    reduced = b"".join((*rest, body[at:])) if long else body
    try:
        value = from_json(reduced)
    except ValueError as error:
        why, index = _place_of(str(error), reduced)
        raise NotJson(f"{why}{_line_and_column(body, _in_full(index, long, width=len(token) + 8))}") from None
    return _restored(value, texts) if texts else value


def _long_strings(body: bytes, piece: int) -> list[_Span]:
    """Count the values of a body; return its long strings that have to be decoded, and not only copied."""
    long: list[_Span] = []
    field: _Span = (0, 0)
    values = depth = at = 0
    while at < len(body):
        quote = body.find(b'"', at, at + piece)
        stop = quote if quote >= 0 else min(at + piece, len(body))
        opened = body.count(b"{", at, stop) + body.count(b"[", at, stop)
        depth += opened - body.count(b"}", at, stop) - body.count(b"]", at, stop)
        if depth > MAX_DEPTH:
            break  # the parser gets no further
        values += opened + body.count(b",", at, stop) + (quote >= 0)
        if values > MAX_VALUES:
            raise _too_many(body[slice(*field)] if depth > 1 else b"")
        at = stop
        if quote >= 0:
            end, has_escapes = _string_end(body, quote + 1, piece)
            if depth == 1 and _NAME_ENDS.match(body, end + 1, end + 80):
                field = (quote + 1, min(end, quote + 81))
            if end - quote > 2 * piece and (has_escapes or not body[quote:end].isascii()):
                long.append((quote + 1, end))
            at = end + 1
    return long


def _string_end(body: bytes, start: int, piece: int) -> tuple[int, bool]:
    """Find the closing quote of the string that begins at `start`; also return whether the string has escapes."""
    quote = body.find(b'"', start)
    at = body.find(b"\\", start, quote if quote >= 0 else len(body))
    if at < 0:
        return (quote if quote >= 0 else len(body)), False
    while at < len(body):
        found = _IN_STRING.match(body, at, at + piece)
        begins, at = at, found.end() if found else at
        if at < len(body) and body[at] == _QUOTE:
            return at, True
        if at == begins:  # a backslash, and nothing behind it
            break
    return len(body), True


def _too_many(field: bytes) -> InvalidMessage:
    name = field.decode("utf-8", "replace")
    what = f"with {name!r} the body holds" if name else "the body holds"
    return InvalidMessage.of(
        [
            Fault(
                f"/{escaped(name)}" if name else "",
                f"{what} too many values: more than {MAX_VALUES} are not taken, and no message needs so many",
            )
        ]
    )


def _decoded(body: bytes, start: int, end: int, piece: int) -> str:
    """Decode a string piece by piece. A piece that ends within a sequence is no JSON, so it is cut a little earlier."""
    pieces: list[str] = []
    while start < end:
        stop = min(start + piece, end)
        stop, text = _longest_piece(body, start, stop, is_last=stop == end)
        pieces.append(text)
        start = stop
    return "".join(pieces)


def _longest_piece(body: bytes, start: int, stop: int, *, is_last: bool) -> tuple[int, str]:
    why = ""  # of the whole piece: what is really wrong comes before what the cut breaks
    for at in range(stop, stop - (1 if is_last else _LONGEST_SEQUENCE), -1):
        try:
            return at, from_json(b'"%b"' % body[start:at])
        except ValueError as error:
            why = why or str(error)
    reason, index = _place_of(why, b'"' + body[start:stop])
    raise NotJson(f"{reason}{_line_and_column(body, start + index - 1)}")


def _place_of(why: str, text: bytes) -> tuple[str, int]:
    """Split a parser's error into its reason and the index that it points at in `text`."""
    found = _PLACE.search(why)
    if found is None:
        return why, 0
    index = 0
    for _ in range(int(found[1]) - 1):
        index = text.find(b"\n", index) + 1
    return why[: found.start()], index + int(found[2]) - 1


def _in_full(index: int, long: Sequence[_Span], *, width: int) -> int:
    """Where in the full body an index of the reduced one points."""
    for start, end in long:
        if index < start + width:
            break
        index += end - start - width
    return index


def _line_and_column(body: bytes, index: int) -> str:
    line, column = body.count(b"\n", 0, index + 1) + 1, index - body.rfind(b"\n", 0, index + 1)
    return f" at line {line} column {column}"


def _restored(value: object, texts: Mapping[str, str]) -> object:
    """Put the long strings back where they were, be it in the place of a name."""
    match value:
        case str():
            return texts.get(value, value)
        case list():
            return [_restored(item, texts) for item in value]
        case dict():
            return {texts.get(name, name): _restored(item, texts) for name, item in value.items()}
        case _:
            return value
