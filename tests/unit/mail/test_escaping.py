"""Text of strangers, made safe for a terminal."""

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from app.mail.escaping import escape


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        pytest.param("Grüße, 注文 👍", "Grüße, 注文 👍", id="plain text"),
        pytest.param("\x1b[2J", r"\x1b[2J", id="an ANSI sequence"),
        pytest.param("a\r\nb\tc\x00\x7f", r"a\r\nb\tc\x00\x7f", id="C0 and DEL"),
        pytest.param("\x9b31m\x85", r"\x9b31m\x85", id="C1: CSI in one character, NEL"),
        pytest.param("\u202egpj.exe\u2066\u200f", r"\u202egpj.exe\u2066\u200f", id="bidirectional controls"),
        pytest.param("pay\u200bpal\ufeff\u2060\u00ad", r"pay\u200bpal\ufeff\u2060\xad", id="zero-width"),
        pytest.param("a\u2028b\u2029", r"a\u2028b\u2029", id="line and paragraph separators"),
        pytest.param("\ud800x\udfff", r"\ud800x\udfff", id="lone surrogates"),
        pytest.param("\U000e0041\U000e007f", r"\U000e0041\U000e007f", id="tag characters"),
        pytest.param("\ufff9\ue000", r"\ufff9\ue000", id="interlinear annotation, private use"),
    ],
)
def test_what_a_terminal_would_obey_is_escaped(text: str, shown: str) -> None:
    assert escape(text) == shown


@given(st.text(st.characters()))
@example("\ud800")
def test_whatever_is_escaped_is_one_printable_line(text: str) -> None:
    shown = escape(text)
    assert shown.isprintable()
    shown.encode()
    assert escape(shown) == shown
