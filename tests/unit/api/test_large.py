"""A large body is counted before it is parsed, and comes out as any parser reads it, down to the place of a mistake."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from pydantic_core import from_json

from app.api.large import MAX_VALUES, NotJson, parse
from app.mail.errors import InvalidMessage

SMALL = 16  # bytes of a piece, so that short strings are long ones

_strings = st.text(max_size=60) | st.text('"\\\n\u00e9\u6f22\U0001f600', max_size=60) | st.just("\U0001f600" * 20)
_json = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**60), 2**60) | _strings,
    lambda below: st.lists(below, max_size=4) | st.dictionaries(_strings, below, max_size=4),
    max_leaves=12,
)


def _written(value: Any, *, ascii_only: bool, indent: int | None) -> bytes:
    return json.dumps(value, ensure_ascii=ascii_only, indent=indent).encode("utf-8", "surrogatepass")


def _read(body: bytes, *, piece: int) -> object:
    try:
        return parse(body, piece=piece)
    except NotJson as error:
        return str(error)


def _read_whole(body: bytes) -> object:
    try:
        return from_json(body)
    except ValueError as error:
        return str(error)


@given(_json, st.booleans(), st.sampled_from([None, 1]), st.integers(SMALL, 40))
@example({"a" * 40 + '"': ["\\" * 40, "\U0001f600" * 40]}, True, None, SMALL)
@example("\U0001f600" * 40, True, None, 17)
@example("\u6f22" * 40, False, None, 19)
def test_any_json_is_read_in_pieces_as_it_is_read_whole(
    value: Any, ascii_only: bool, indent: int | None, piece: int
) -> None:
    body = _written(value, ascii_only=ascii_only, indent=indent)
    assert _read(body, piece=piece) == _read_whole(body)


@settings(max_examples=500)
@given(_json, st.integers(0, 400), st.binary(max_size=3), st.integers(SMALL, 40))
def test_broken_json_is_told_with_the_same_place(value: Any, at: int, over: bytes, piece: int) -> None:
    whole = _written(value, ascii_only=False, indent=1)
    body = whole[:at] + over + whole[at + 1 :]
    said, expected = _read(body, piece=piece), _read_whole(body)
    assert type(said) is type(expected)
    if isinstance(expected, str) and " at line " in expected and "unicode" not in expected:
        # Of bytes that are no UTF-8 the parser itself names a place near by only.
        assert isinstance(said, str)
        assert said.rpartition(" at ")[2] == expected.rpartition(" at ")[2]


@pytest.mark.parametrize(
    ("text", "written"),
    [
        ("a" * 5_000_000, None),
        ('"' * 3_000_000, None),
        ("\\" * 3_000_000, None),
        ("\n" * 3_000_000, None),
        ("\u00fc" * 2_000_000, None),
        ("\U0001f600" * 1_000_000, None),
        ("x" + "\U0001f600" * 1_000_000, b'"x' + b"\\ud83d\\ude00" * 1_000_000 + b'"'),
        ("xy" + "\u00fc" * 1_000_000, b'"xy' + b"\\u00fc" * 1_000_000 + b'"'),
    ],
    ids=["ascii", "quotes", "backslashes", "line breaks", "umlauts", "emoji", "escaped emoji", "escaped umlauts"],
)
def test_a_string_of_megabytes_comes_out_whole(text: str, written: bytes | None) -> None:
    assert parse(b'{"text": %b}' % (written or json.dumps(text, ensure_ascii=False).encode())) == {"text": text}


MANY = 2_000_000
HOSTILE = {
    "arrays": (b'{"to":[' + b"[]," * MANY, "/to"),
    "objects": (b'{"cc":[' + b"{}," * MANY, "/cc"),
    "numbers": (b'{"reply_to":[' + b"1," * MANY, "/reply_to"),
    "nulls": (b'{"x":1,"attachments":[' + b"null," * MANY, "/attachments"),
    "empty strings": (b'{"tags":[' + b'"",' * MANY, "/tags"),
    "metadata": (b'{"metadata":{' + b'"a":"b",' * MANY, "/metadata"),
    "a name with escapes": (b'{"a\\"/b":[' + b"1," * MANY, '/a\\"~1b'),
    "unknown fields": (b"{" + b'"a":1,' * MANY, ""),
    "an array of all": (b"[" + b"1," * MANY, ""),
    "quotes": (b'"' * MANY, ""),
    "commas": (b"," * MANY, ""),
}


@pytest.mark.parametrize(("body", "pointer"), HOSTILE.values(), ids=HOSTILE)
def test_a_body_of_too_many_values_is_refused_before_it_is_parsed(body: bytes, pointer: str) -> None:
    with pytest.raises(InvalidMessage) as refused:
        parse(body)
    (fault,) = refused.value.faults
    assert fault.pointer == pointer
    assert f"more than {MAX_VALUES}" in fault.detail


@pytest.mark.parametrize("opening", [b"[", b'{"a":', b'[{"a":'])
def test_a_body_that_is_nested_too_deeply_is_no_json(opening: bytes) -> None:
    with pytest.raises(NotJson, match="recursion"):
        parse(opening * 1_000_000)


def test_what_stands_in_strings_is_not_counted() -> None:
    text = '[{",' * 1_000_000
    assert parse(json.dumps({"text": text}).encode()) == {"text": text}
