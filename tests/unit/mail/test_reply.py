"""Replies come out of bytes the same way however the network cut them, and nothing a relay says can grow."""

from __future__ import annotations

import re
from collections.abc import Iterable
from itertools import pairwise, repeat

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from app.mail.reply import LONGEST_SHOWN, MAX_LINE, MAX_REPLY, MalformedReply, Reply, ReplyReader, printable

_text = st.binary(max_size=60).map(lambda raw: raw.replace(b"\n", b""))
_line_end = st.sampled_from([b"\r\n", b"\r\n", b"\n"])
_code = st.integers(200, 599).map(lambda code: str(code).encode())


@st.composite
def _reply(draw: st.DrawFn) -> bytes:
    code = draw(_code)
    lines = [b"-" + draw(_text) for _ in range(draw(st.integers(0, 3)))]
    lines.append(draw(st.one_of(st.just(b""), st.builds(b" %b".__mod__, _text))))
    return b"".join(code + line + draw(_line_end) for line in lines)


_stream = st.lists(st.one_of(_reply(), _reply(), _reply(), st.binary(max_size=40)), max_size=6).map(b"".join)


def _read(chunks: Iterable[bytes]) -> tuple[list[Reply], str | None]:
    """Feed chunk by chunk; give the replies, and the line that ended it if one did."""
    reader, replies = ReplyReader(), []
    try:
        for chunk in chunks:
            for reply in reader.feed(chunk):
                replies.append(reply)  # noqa: PERF402 (what came before the error counts)
    except MalformedReply as error:
        return replies, error.line
    return replies, None


def _cut(stream: bytes, at: Iterable[int]) -> list[bytes]:
    points = sorted({0, len(stream), *(point % (len(stream) + 1) for point in at)})
    return [stream[a:b] for a, b in pairwise(points)]


@given(_stream, st.lists(st.integers(0, 10_000), max_size=12))
def test_a_stream_split_anywhere_gives_the_same_replies(stream: bytes, at: list[int]) -> None:
    assert _read(_cut(stream, at)) == _read([stream])


@given(_stream)
def test_a_stream_that_drips_byte_by_byte_gives_the_same_replies(stream: bytes) -> None:
    assert _read(bytes([byte]) for byte in stream) == _read([stream])


@pytest.mark.parametrize("length", range(MAX_LINE - 2, MAX_LINE + 3))
@pytest.mark.parametrize("end", [b"\r\n", b"\n"])
def test_a_line_as_long_as_may_be_is_read_alike_wherever_it_is_split(length: int, end: bytes) -> None:
    stream = b"250 " + b"x" * (length - 4) + end
    whole = _read([stream])
    assert [_read(_cut(stream, [at])) for at in range(length - 3, len(stream))] == [whole] * (len(end) + 3)
    assert (whole[1] is None) is (length <= MAX_LINE)


@given(st.lists(_reply(), max_size=4).map(b"".join), st.sampled_from([b"what?\r\n", b"1", b"250_x\r\n", b"\r\n"]))
def test_replies_before_a_malformed_line_come_out_first(stream: bytes, rubbish: bytes) -> None:
    good, none = _read([stream])
    assert none is None
    replies, _ = _read([stream + rubbish])
    assert replies == good


def test_nothing_after_a_malformed_line_comes_out() -> None:
    assert _read([b"250 one\r\nrubbish\r\n250 two\r\n"]) == ([Reply(250, ("one",))], "rubbish")


@pytest.mark.parametrize(
    ("stream", "replies"),
    [
        (b"250 OK\r\n", [Reply(250, ("OK",))]),
        (b"250 OK\n", [Reply(250, ("OK",))]),
        (b"250\r\n", [Reply(250, ("",))]),
        (b"250 \r\n", [Reply(250, ("",))]),
        (b"250-\r\n250 \r\n", [Reply(250, ("", ""))]),
        (b"250-a\r\n250-b\r\n250 c\r\n", [Reply(250, ("a", "b", "c"))]),
        (b"250-a\r\n250\r\n", [Reply(250, ("a", ""))]),
        (b"250 a\r\n550 b\r\n", [Reply(250, ("a",)), Reply(550, ("b",))]),
        (b"250  two blanks\r\n", [Reply(250, (" two blanks",))]),
        (b"250-half", []),
        (b"", []),
        (b"299 x\r\n", [Reply(299, ("x",))]),
        (b"599 x\r\n", [Reply(599, ("x",))]),
    ],
)
def test_replies_are_read_as_rfc_5321_writes_them(stream: bytes, replies: list[Reply]) -> None:
    assert _read([stream]) == (replies, None)


@pytest.mark.parametrize(
    "line",
    [
        b"",
        b" ",
        b"OK",
        b"25",
        b"25O OK",
        b"2500 OK",
        b"250\tOK",
        b"250_OK",
        b" 250 OK",
        b"000 OK",
        b"100 OK",
        b"199 OK",
        b"600 OK",
        b"999 OK",
        b"-50 OK",
        "２５０ OK".encode(),
        b"\x00\x00\x00",
        b"\x16\x03\x01\x02\x00",
        b"HTTP/1.1 400 Bad Request",
        b"SSH-2.0-OpenSSH_9.2",
        b"\xef\xbb\xbf250 OK",
    ],
)
def test_what_is_no_reply_line_is_malformed(line: bytes) -> None:
    assert _read([line + b"\r\n"]) == ([], printable(line))


@pytest.mark.parametrize("stream", [b"250-a\r\n550 b\r\n", b"250-a\r\n250-b\r\n251 c\r\n", b"250-a\r\nb\r\n"])
def test_two_codes_in_one_reply_are_malformed(stream: bytes) -> None:
    replies, line = _read([stream])
    assert not replies
    assert line is not None


def _fed_until_given_up(chunk: bytes) -> int:
    """Feed the same bytes again and again; give how many it took until the reader gave up."""
    reader, fed = ReplyReader(), 0
    for again in repeat(chunk, 2_000_000 // len(chunk) + 1):
        fed += len(again)
        try:
            list(reader.feed(again))
        except MalformedReply:
            return fed
    pytest.fail("it reads for ever")


@pytest.mark.parametrize("chunk", [1, 1000, 100_000, 1_000_000])
def test_a_line_that_never_ends_is_given_up_soon(chunk: int) -> None:
    assert _fed_until_given_up(b"2" * chunk) <= MAX_LINE + 2 + chunk


def test_continuations_that_never_end_are_given_up_soon() -> None:
    assert _fed_until_given_up(b"250-" + b"x" * 96 + b"\r\n") <= MAX_REPLY * 1.1


def test_many_replies_may_be_longer_together_than_one_may_be() -> None:
    line = b"250 " + b"x" * 996 + b"\r\n"
    replies, malformed = _read([line * 200])
    assert len(replies) == 200
    assert malformed is None


def test_what_is_kept_of_a_malformed_line_is_short() -> None:
    replies, line = _read([b"\x00" * 1_000_000 + b"\r\n"])
    assert not replies
    assert line is not None
    assert len(line) <= 800


@pytest.mark.parametrize(
    ("code", "text", "enhanced"),
    [
        (250, "2.0.0 OK", "2.0.0"),
        (250, "2.1.5", "2.1.5"),
        (550, "5.1.1 no such user", "5.1.1"),
        (450, "4.7.1 greylisted", "4.7.1"),
        (554, "5.7.999 x", "5.7.999"),
        (250, "5.1.1 contradicts", None),
        (550, "2.0.0 contradicts", None),
        (450, "5.7.1 contradicts", None),
        (354, "3.0.0 no such class", None),
        (250, "OK 2.0.0", None),
        (550, "5.1.1: no", None),
        (550, "5.1.1000 x", None),
        (550, "5.1 x", None),
        (550, "5.1.1.1 x", None),
        (550, "", None),
        (550, "5.１.1 x", None),
    ],
)
def test_an_enhanced_code_counts_only_where_its_class_agrees_with_the_reply(
    code: int, text: str, enhanced: str | None
) -> None:
    assert Reply(code, (text,)).enhanced == enhanced


@given(_stream)
@example(b"550-5.1.1 a\r\n550 5.1.1 b\r\n")
def test_an_enhanced_code_is_ascii_and_of_the_replys_class(stream: bytes) -> None:
    for reply in _read([stream])[0]:
        if reply.enhanced is not None:
            assert re.fullmatch(r"[245]\.[0-9]{1,3}\.[0-9]{1,3}", reply.enhanced)
            assert int(reply.enhanced[0]) == reply.code // 100


@given(st.integers(200, 599))
def test_a_code_counts_by_its_first_digit(code: int) -> None:
    reply = Reply(code, ("x",))
    assert reply.is_positive is (code // 100 == 2)
    assert reply.is_transient is (code // 100 == 4)
    assert reply.is_permanent is (code // 100 == 5)


@given(st.binary(max_size=200))
@example(b"\x1b[31mred\r\x00\x7f\xc2\x85\xe2\x80\xa8")
def test_what_a_relay_says_is_printable_and_one_line(raw: bytes) -> None:
    text = printable(raw)
    assert text.isprintable()
    assert len(text.splitlines()) <= 1


@given(st.text(st.characters(codec="utf-8", exclude_categories=("C", "Z")), max_size=60))
def test_plain_text_from_a_relay_stays_as_it_is(text: str) -> None:
    assert printable(text.encode()) == text


@given(st.lists(_reply(), min_size=1, max_size=1).map(b"".join))
def test_every_line_of_a_reply_is_printable_and_one_entry_a_line(stream: bytes) -> None:
    (reply,), _ = _read([stream])
    assert all(line.isprintable() for line in [*reply.lines, *reply.wire_lines(), str(reply)])
    assert len(reply.wire_lines()) == stream.count(b"\n")


def test_a_reply_reads_as_it_stood_on_the_wire() -> None:
    reply = Reply(250, ("relay.example", "SIZE 1000", "STARTTLS"))
    assert reply.wire_lines() == ["250-relay.example", "250-SIZE 1000", "250 STARTTLS"]
    assert str(reply) == "250 relay.example SIZE 1000 STARTTLS"
    assert str(Reply(250, ("",))) == "250"


def test_a_long_reply_is_shown_shortened() -> None:
    reply = Reply(550, tuple("x" * 4000 for _ in range(10)))
    assert str(reply) == "550 " + "x" * (LONGEST_SHOWN - 4) + "…"
    assert len(reply.text) > 40_000
