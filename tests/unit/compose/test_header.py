"""Structured fields are read back as they were meant, and hold an encoded word in a phrase only (RFC 2047 §5)."""

from __future__ import annotations

import re
from email import policy
from email.header import decode_header
from email.parser import Parser
from email.utils import getaddresses
from typing import Any

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from app.compose.header import LONGEST_LINE, InvalidField, address_field, field, is_structured, text_field
from app.mail import encoded_words
from app.mail.address import Address
from tests.unit.strategies import domains, header_texts, locals_, printable

ENCODED = re.compile(r"=\?[^?\s]+\?[BbQq]\?[^?\s]*\?=")
LONG_URL = "<https://example.org/" + "u" * 900 + ">"
IDS = " ".join(f"<{at}.{'x' * 40}@example.org>" for at in range(60))


def _unfolded(written: str | None) -> str:
    assert written is not None
    lines = written.split("\r\n")
    assert all(line.startswith(" ") and line.strip() for line in lines[1:])
    assert max(map(len, lines)) <= LONGEST_LINE
    return "".join(lines)


def _parsed(written: str | None) -> Any:
    assert written is not None
    name = written.partition(":")[0]
    return Parser(policy=policy.default).parsestr(f"{written}\r\n\r\n")[name]


def _people_in(written: str | None) -> list[tuple[str, str]]:
    """Give names and addresses as other parsers read them: Python 3.11's newer one puts blanks into folded names."""
    unfolded = _unfolded(written)
    found = getaddresses([unfolded.partition(":")[2]])
    return [("".join(_text(*part) for part in decode_header(name)), spec) for name, spec in found]


def _text(raw: bytes | str, charset: str | None) -> str:
    return raw.decode(charset or "ascii") if isinstance(raw, bytes) else raw


@pytest.mark.parametrize(
    ("name", "value", "written"),
    [
        ("In-Reply-To", "<a@example.org>", "<a@example.org>"),
        ("In-Reply-To", "<a@example.org> ", "<a@example.org>"),
        ("in-reply-to", "  <a@example.org>", "<a@example.org>"),
        ("In-Reply-To", "\t<a@example.org>\t", "<a@example.org>"),
        ("In-Reply-To", "<a@example.org>\u00a0", "<a@example.org>"),
        ("In-Reply-To", "< a@example.org >", "<a@example.org>"),
        ("In-Reply-To", "a@example.org", "a@example.org"),
        ("In-Reply-To", "<a=?b@example.org>", "<a=?b@example.org>"),
        ("References", "<a@example.org>  <b@example.org>", "<a@example.org> <b@example.org>"),
        ("References", "<a@example.org><b@example.org>", "<a@example.org> <b@example.org>"),
        ("References", "<a@example.org>\t<b@example.org>", "<a@example.org> <b@example.org>"),
        ("References", IDS, IDS),
        ("References", IDS.replace(" ", ""), IDS),
        ("Supersedes", " <a@example.org>", "<a@example.org>"),
        ("List-Unsubscribe", LONG_URL, LONG_URL),
        ("List-Unsubscribe", "<https://example.org/u?next=?a>", "<https://example.org/u?next=?a>"),
        ("List-Unsubscribe", f"{LONG_URL},  <mailto:u@example.org>", f"{LONG_URL}, <mailto:u@example.org>"),
        (
            "LIST-UNSUBSCRIBE",
            "<https://a.example/?a=?b>,<mailto:u@b.example>",
            "<https://a.example/?a=?b>,<mailto:u@b.example>",
        ),
        ("List-Unsubscribe", "< https://example.org/u >", "<https://example.org/u>"),
        ("List-Unsubscribe-Post", "List-Unsubscribe=One-Click ", "List-Unsubscribe=One-Click"),
        ("List-Post", "NO  (see the archive)", "NO (see the archive)"),
        ("List-Id", "  <news.example.org> ", "<news.example.org>"),
        ("List-Id", "news.example.org", "news.example.org"),
        ("List-Id", "News  of today <news.example.org>", "News of today <news.example.org>"),
        ("List-Id", '"News, daily" <news.example.org>', '"News, daily" <news.example.org>'),
        ("List-Id", "Neues für Köln <news.example.org>", None),
        ("List-Owner", "<mailto:o@example.org>  (Ann)", "<mailto:o@example.org> (Ann)"),
        ("List-Whatever", "a  b", "a b"),
        ("Disposition-Notification-To", "j@example.org ", "j@example.org"),
        ("Disposition-Notification-To", "Jörg <j@example.org>", None),
        ("Disposition-Notification-To", "=?utf-8?q?J=C3=B6rg?= <j@example.org>", None),
        ("Disposition-Notification-To", "j@bücher.example", "j@xn--bcher-kva.example"),
        (
            "Errors-To",
            'Ann <ann@example.org>,  "B, C" <b@example.org>',
            'Ann <ann@example.org>, "B, C" <b@example.org>',
        ),
        ("Return-Receipt-To", "Ann <ann@example.org>", "Ann <ann@example.org>"),
        ("Auto-Submitted", " auto-replied ", "auto-replied"),
        ("Precedence", "bulk ", "bulk"),
        ("Content-Language", "de,  en", "de, en"),
        ("Thread-Index", "Ac=?" + "x" * 90, "Ac=?" + "x" * 90),
    ],
)
def test_a_structured_field_has_normal_blanks_and_no_encoded_word(name: str, value: str, written: str | None) -> None:
    found = _unfolded(field(name, value)).removeprefix(f"{name}: ")
    if written is None:
        phrase, spec = found.rsplit(" ", 1)
        assert ENCODED.fullmatch(phrase)
        assert spec in value
        assert encoded_words.decode(phrase) == encoded_words.decode(value.rpartition(" ")[0])
    else:
        assert found == written
    assert field(name, found) == field(name, value)


@pytest.mark.parametrize(
    ("name", "value", "why"),
    [
        ("In-Reply-To", "<jörg@example.org>", "cannot hold 'ö'"),
        ("References", "<a b@example.org>", "no blank between < and >"),
        ("References", "=?utf-8?q?x?=", "encoded word"),
        ("References", "<" + "x" * 980 + "@example.org>", "shorten it"),
        ("List-Unsubscribe", "<https://example.org/ü>", "percent-encoded"),
        ("List-Unsubscribe", "<https://example.org/a b>", "%20"),
        ("List-Unsubscribe", "<https://example.org/?a=?utf-8?q?b?=>", "%3F"),
        ("List-Unsubscribe", "<https://example.org/" + "u" * 970 + ">", "a line takes 962"),
        ("List-Id", "Neues <nüws.example.org>", "cannot hold 'ü'"),
        ("List-Id", "News: daily, <news.example.org", "xn--"),
        ("List-Id", "ü" * 300 + " <news.example.org>", "too long"),
        ("List-Post", "NO (Ankündigung)", "cannot hold 'ü'"),
        ("Disposition-Notification-To", "Jörg", "no @"),
        ("Disposition-Notification-To", "jörg@example.org", "ASCII"),
        ("Disposition-Notification-To", "Jörg, <j@example.org>", "no @"),
        ("Errors-To", "=?utf-8?q?a=0Db?= <j@example.org>", "control characters"),
        ("Auto-Submitted", "automatisch ✓", "cannot hold '✓'"),
        ("Precedence", "a\r\nBcc: evil@example.org", "line breaks"),
        ("In-Reply-To", "<a@b>\r\n <c@d>", "line breaks"),
        ("Content-Language", "de\x00", "control characters"),
    ],
)
def test_what_a_structured_field_cannot_carry_is_refused_with_a_cure(name: str, value: str, why: str) -> None:
    if why == "xn--":
        value = value.replace("News", "Nüws")
    with pytest.raises(InvalidField, match=re.escape(why)) as refused:
        field(name, value)
    assert str(refused.value).isprintable()
    assert name in str(refused.value)


@pytest.mark.parametrize("name", ["In-Reply-To", "List-Unsubscribe", "Disposition-Notification-To", "List-Id"])
@pytest.mark.parametrize("value", ["", " ", "\t", "\u00a0 "])
def test_an_empty_structured_field_is_not_written(name: str, value: str) -> None:
    assert field(name, value) is None


_names = st.text(printable, min_size=1, max_size=60).filter(lambda name: "=?" not in name)
_people = st.builds(Address, locals_, domains, _names.map(lambda name: " ".join(name.split())))


@given(st.lists(_people, min_size=1, max_size=5), st.sampled_from(["Disposition-Notification-To", "Errors-To"]))
def test_addresses_are_read_back_by_another_parser(people: list[Address], name: str) -> None:
    written = field(name, address_field("X", people)[3:].replace("\r\n", ""))
    assert _people_in(written) == [(a.name, a.addr_spec) for a in people]


_ids = st.lists(st.builds("<{}@{}>".format, locals_, domains), min_size=1, max_size=30)


@given(_ids, st.sampled_from(["", " ", "  ", "\t", " \t "]), st.sampled_from(["References", "In-Reply-To"]))
def test_message_ids_are_read_back_one_by_one(ids: list[str], between: str, name: str) -> None:
    assert _unfolded(field(name, between.join(ids))) == f"{name}: {' '.join(ids)}"


@given(header_texts, st.sampled_from(["References", "List-Id", "List-Help", "Errors-To", "Precedence", "List-X"]))
@example("<" * 2000, "References")
@example("< " * 1000, "List-Help")
@example(" " * 4000 + "x", "References")
@example('"' * 4000, "List-Id")
def test_any_text_is_carried_without_an_encoded_word_or_refused(value: str, name: str) -> None:
    assert is_structured(name)
    try:
        written = field(name, value)
    except InvalidField:
        return
    if written is not None:
        unfolded = _unfolded(written)
        assert unfolded.isascii()
        if name not in ("List-Id", "Errors-To"):
            assert not ENCODED.search(unfolded)
            assert unfolded == f"{name}: {unfolded[len(name) + 2 :].strip()}"


@pytest.mark.parametrize(
    "subject",
    [
        "Order  4711",
        " Order 4711",
        "Order 4711 ",
        "a   b    c",
        "x " * 60 + "  y",
        "a" + " " * 200 + "b",
        "a" * 70 + "   b ",
    ],
)
def test_ascii_is_not_encoded_for_its_blanks(subject: str) -> None:
    written = text_field("Subject", subject)
    assert "=?" not in written
    assert _unfolded(written) == f"Subject: {subject}"
    assert str(_parsed(written)).strip() == subject.strip()


@pytest.mark.parametrize("subject", ["a" + " " * 1500 + "b", "x" * 901, "Grüße", "a =? b"])
def test_what_cannot_be_folded_or_would_be_misread_is_encoded(subject: str) -> None:
    written = text_field("Subject", subject)
    assert ENCODED.search(written)
    assert str(_parsed(written)) == subject


@pytest.mark.parametrize(
    "name", ["ü" * 30, "é" * 80, "x" * 100, "Dr. Ann Miller of the Department of Long Names, Sales and Support"]
)
@pytest.mark.parametrize("field_name", ["To", "Reply-To", "Disposition-Notification-To"])
def test_a_long_display_name_is_folded_at_76(name: str, field_name: str) -> None:
    written = address_field(field_name, [Address("ann", "example.org", name)] * 3)
    assert max(map(len, written.split("\r\n"))) <= 76
    assert _people_in(written) == [(name, "ann@example.org")] * 3
