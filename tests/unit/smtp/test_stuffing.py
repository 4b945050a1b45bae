"""Content made ready for DATA ends where it ends, whatever it holds (RFC 5321 §4.5.2; SMTP smuggling)."""

from __future__ import annotations

import re

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from app.smtp.transaction import stuffed

_pieces = st.sampled_from(
    [b".", b"..", b"\r\n", b"\r", b"\n", b"a", b"\r\n.\r\n", b"\n.\n", b"\r.\r", b"\xff", b"\x00"]
)
contents = st.one_of(st.lists(_pieces, max_size=20).map(b"".join), st.binary(max_size=60))


def _received(wire: bytes) -> bytes:
    """What a relay takes out of the wire: lines up to the final dot, a leading dot dropped."""
    end = wire.index(b"\r\n.\r\n") if not wire.startswith(b".\r\n") else -2
    assert end + 5 == len(wire)
    lines = wire[: end + 2].split(b"\r\n")[:-1]
    return b"".join(line.removeprefix(b".") + b"\r\n" for line in lines)


def _lines(content: bytes) -> bytes:
    content = re.sub(rb"\r\n|\r|\n", b"\r\n", content)
    return content if content.endswith(b"\r\n") or not content else content + b"\r\n"


@given(contents.filter(bool))
@example(b".")
@example(b"..")
@example(b".\r\n")
@example(b"a\r\n.\r\nQUIT\r\n")
@example(b"a\n.\nQUIT\n")
@example(b"a\r.\rQUIT\r")
@example(b"a\r\n.\nQUIT")
@example(b"a\r\n.\rQUIT")
@example(b"a\n.\r\nQUIT")
@example(b"\r\r\n.\r\n")
def test_a_relay_takes_out_what_was_put_in(content: bytes) -> None:
    assert _received(b"".join(stuffed(content))) == _lines(content)


@given(contents)
def test_only_crlf_ends_a_line_and_only_one_dot_stands_alone(content: bytes) -> None:
    wire = b"".join(stuffed(content))
    assert wire.count(b"\r") == wire.count(b"\n") == wire.count(b"\r\n")
    assert [line for line in wire.split(b"\r\n") if line == b"."] == [b"."]
    assert wire.endswith(b".\r\n")


@pytest.mark.parametrize(
    ("content", "wire"),
    [
        (b"a\r\n", b"a\r\n.\r\n"),
        (b"a", b"a\r\n.\r\n"),
        (b".", b"..\r\n.\r\n"),
        (b"a\r\n.b\r\n", b"a\r\n..b\r\n.\r\n"),
        (b"a\r\n..\r\n", b"a\r\n...\r\n.\r\n"),
        (b"a.b\r\n", b"a.b\r\n.\r\n"),
        (b"a\nb\rc", b"a\r\nb\r\nc\r\n.\r\n"),
    ],
)
def test_dots_are_doubled_at_the_beginning_of_a_line_only(content: bytes, wire: bytes) -> None:
    assert b"".join(stuffed(content)) == wire
