"""Whatever is written for a host, one host comes out of it, or a slip that gives nothing of a login away."""

from __future__ import annotations

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from app.mail.host import HostSlip, host_of, invisible

PIECES = [
    "mail",
    ".",
    "example",
    ":",
    "587",
    "/",
    "//",
    "smtp:",
    "@",
    "[",
    "]",
    '"',
    "'",
    " ",
    "\n",
    "\u200b",
    "\ufeff",
    "ü",
    "-",
]
written = st.text(max_size=30) | st.lists(st.sampled_from(PIECES), max_size=10).map("".join)


@given(written)
@example("\udcff")
@example("smtp://" * 50)
@example("[" * 100)
@example("a[b]c")
@example("//" * 5000)
@example('\u200b"h"\u200b')
@example('"' * 100)
def test_any_text_is_a_host_or_a_slip(text: str) -> None:
    said = _read(text)
    if isinstance(said, HostSlip):
        assert said.what.isprintable()
        assert said.host == host_of(said.host)
        assert said.port is None or 0 < said.port <= 65535
    else:
        assert said.isascii()
        assert said == host_of(f" {said}\r\n")


def _read(text: str) -> str | HostSlip:
    try:
        return host_of(text)
    except HostSlip as slip:
        return slip


@given(st.text("abcdefgh0123456789:/?#[]@!$&'()*+,;=%-._~", min_size=6).filter(lambda text: "x" not in text))
def test_no_slip_gives_away_what_stands_before_the_at(login: str) -> None:
    with pytest.raises(HostSlip) as refused:
        host_of(f"smtp://{login}@x.x:25")
    assert (refused.value.host, refused.value.port, refused.value.has_login) == ("x.x", 25, True)
    assert login not in refused.value.what


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("secret", ""),
        (" two words ", ""),
        ("pässwörd€😀漢", ""),
        ("a\tb", "a tab"),
        ("a\r\n", "a line break"),
        ("a\x00", "an invisible character (U+0000)"),
        ("a\u00a0b", "an invisible character (U+00A0 NO-BREAK SPACE)"),
        ("\u3164", "an invisible character (U+3164 HANGUL FILLER)"),
        ("a\u202eb", "an invisible character (U+202E RIGHT-TO-LEFT OVERRIDE)"),
        ("a\udc80", "a byte that is not UTF-8"),
    ],
)
def test_the_first_character_that_nobody_sees_is_named(text: str, said: str) -> None:
    assert invisible(text) == said
