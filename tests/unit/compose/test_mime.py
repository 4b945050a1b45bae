"""What is composed is read back equal by the standard library's parser, and no input can add anything to it.

The parser is the oracle. Where it is wrong itself (Python 3.11 mends folded blanks), the encoded words are decoded
by the simpler `email.header`.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta, timezone
from email import policy
from email.header import decode_header
from email.message import EmailMessage
from email.parser import BytesParser, Parser
from email.utils import getaddresses, parsedate_to_datetime
from itertools import takewhile
from time import perf_counter
from typing import Any

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from app.compose.header import text_field
from app.compose.mime import compose
from app.mail.address import Address, parse_address
from app.mail.message import Calendar, Draft
from tests.unit.strategies import addresses, bodies, header_texts

BOT = Address("bot", "example.org", "Bot")
ANN = Address("ann", "example.org")
MESSAGE_ID = "<019caa00-0000-7000-8000-000000000001@example.org>"
DATE = datetime(2026, 3, 1, 12, 30, 15, tzinfo=UTC)
BOUNDARY = "=_019caa0000007000800000000000000100"
HIDDEN = Address("hidden-canary", "secret-canary.example", "Hidden Canary")
HOSTILE = "x=?UTF-8?Q?=0A?=Bcc: evil@x"

_ENCODED_WORD = re.compile(rb"=\?utf-8\?B\?([A-Za-z0-9+/=]*)\?=")
_STANDING = ["Message-ID", "Date", "From", "To", "Subject", "MIME-Version", "Content-Type"]
field_names = st.from_regex(r"\AX-[A-Za-z0-9-]{1,40}\Z")
custom_fields = st.lists(st.tuples(field_names, header_texts), max_size=4).map(tuple)


def _compose(draft: Draft, sender: Address = BOT) -> bytes:
    return compose(draft, sender=sender, message_id=MESSAGE_ID, date=DATE, boundary=BOUNDARY)


def _draft(**fields: Any) -> Draft:
    return Draft(**{"to": (ANN,), "subject": "Hi", "text": "Hello"} | fields)


def _parsed(raw: bytes, *, by: policy.EmailPolicy[EmailMessage] = policy.SMTP) -> EmailMessage:
    message = BytesParser(policy=by).parsebytes(raw)
    assert isinstance(message, EmailMessage)
    return message


def _head(raw: bytes) -> list[bytes]:
    return list(takewhile(bool, raw.split(b"\r\n")))


def _field(raw: bytes, name: str) -> str:
    """Give a field's value unfolded: its line breaks removed, nothing else (RFC 5322 §2.2.3)."""
    head = b"\r\n".join(_head(raw)) + b"\r\n"
    found = re.search(rb"^" + re.escape(name.encode()) + rb":((?:.*\r\n)(?:[ \t].*\r\n)*)", head, re.MULTILINE)
    assert found is not None
    return found[1].replace(b"\r\n", b"").decode().removeprefix(" ")


def _decoded(value: str) -> str:
    """Decode an unstructured value; blanks between encoded words are dropped (RFC 2047 §6.2)."""
    return "".join(
        part.decode(charset or "ascii") if isinstance(part, bytes) else part for part, charset in decode_header(value)
    )


def _lines(text: str) -> str:
    """Give a text with its line ends as they come back: LF, and one at the end."""
    text = text.replace("\r\n", "\n").replace("\r", "\n")
    return text if text.endswith("\n") else text + "\n"


def _text_of(part: EmailMessage) -> str:
    return str(part.get_content()).replace("\r\n", "\n")


def _parts(message: EmailMessage) -> Iterator[EmailMessage]:
    for part in message.iter_parts():
        assert isinstance(part, EmailMessage)
        yield part


def _assert_fit_for_the_wire(raw: bytes) -> None:
    """7-bit, CRLF only, no line over 998, folded as RFC 2047 asks, and nothing that a parser frowns at."""
    assert raw.isascii()
    assert b"\x00" not in raw
    assert raw.count(b"\r") == raw.count(b"\n") == raw.count(b"\r\n")
    assert raw.endswith(b"\r\n")
    assert max(map(len, raw.split(b"\r\n"))) <= 980  # Haraka splits lines of more than 990 octets
    for line in _head(raw):
        assert re.match(rb"[!-9;-~]+:|[ \t]", line)
        assert line.strip()
        for word in _ENCODED_WORD.finditer(line):
            assert len(word[0]) <= 75
            assert len(line) <= 76
    message = _parsed(raw)
    assert not message.defects
    assert all(not part.defects for part in message.walk())


def _expected_names(draft: Draft) -> list[str]:
    names = ["Message-ID", "Date", "From", *(["Reply-To"] if draft.reply_to else []), "To"]
    names += [*(["Cc"] if draft.cc else []), "Subject", *(name for name, _ in draft.headers), "MIME-Version"]
    both = draft.text is not None and draft.html is not None
    return [*names, "Content-Type", *([] if both else ["Content-Transfer-Encoding"])]


# Any text.


@given(header_texts)
@example(HOSTILE)
@example("")
@example(" ")
@example(" leading and trailing ")
@example("two  blanks")
@example("=?utf-8?q?x?=")
@example("😀" * 300)
@example("x" * 2000)
@example("x" * 899)
@example("x" * 901)
@example("word " * 399 + "word")
@example("ü" + "x" * 1900)
@example("e\u0301" * 500)
@example("\u202eevil\u202c")
@example("\u00a0\u3000\u200b\ufeff")
def test_any_subject_is_read_back_as_it_was(subject: str) -> None:
    raw = _compose(_draft(subject=subject))
    _assert_fit_for_the_wire(raw)
    assert [name for name, _ in _parsed(raw).items()] == [*_STANDING, "Content-Transfer-Encoding"]
    assert _decoded(_field(raw, "Subject")) == subject
    for by in (policy.SMTP, policy.default):
        assert _parsed(raw, by=by)["Subject"].strip() == subject.strip()


@given(custom_fields)
@example((("X-A", HOSTILE), ("X-B", ""), ("X-A", " ")))
@example((("X" * 76, "x" * 4000), ("Y" * 76, "ü" * 4000), ("Z" * 76, "w " * 1999 + "w")))
@example((("X" * 64, "😀"), ("X" * 60, "😀😀"), ("X" * 62, "é")))
def test_any_custom_field_is_read_back_as_it_was(fields: tuple[tuple[str, str], ...]) -> None:
    raw = _compose(_draft(headers=fields))
    _assert_fit_for_the_wire(raw)
    message = _parsed(raw)
    assert [name for name, _ in message.items()] == _expected_names(_draft(headers=fields))
    for name, value in fields:
        assert value.strip() in [found.strip() for found in message.get_all(name, [])]
    names = [name for name, _ in fields]
    for name, value in fields:
        if names.count(name) == 1:
            assert _decoded(_field(raw, name)) == value


@given(bodies)
@example("")
@example("\n")
@example(".")
@example(".\r\n.\r\n")
@example("\n.\n")
@example("\r.\r")
@example("a\rb\nc\r\nd")
@example("\r\n\r\n\r\n")
@example("no final line end")
@example("trailing blank \n\ttab\t\n ")
@example("x" * 998)
@example("x" * 999)
@example("\x00\x01\x1b\x7f")
@example("\u2028\u2029\x85\x0b\x0c\x1c\x1d\x1e")
@example("--=_019caa0000007000800000000000000100x")
@example("From here\n>From there\n")
@example("שלום " * 50)
@example("a" * 300 + "é" + "b" * 800)
@example("=" * 500)
def test_any_text_is_read_back_with_its_line_ends_normalised(text: str) -> None:
    for html in (False, True):
        raw = _compose(_draft(text=None, html=text) if html else _draft(text=text))
        _assert_fit_for_the_wire(raw)
        message = _parsed(raw)
        assert message.get_content_type() == ("text/html" if html else "text/plain")
        assert _text_of(message) == _lines(text)


@given(bodies, bodies)
@example("", "")
@example(".", "<p>.</p>")
def test_text_and_html_are_two_parts_the_plainest_first(text: str, html: str) -> None:
    raw = _compose(_draft(text=text, html=html))
    _assert_fit_for_the_wire(raw)
    message = _parsed(raw)
    assert message.get_content_type() == "multipart/alternative"
    plain, rich = _parts(message)
    assert [plain.get_content_type(), rich.get_content_type()] == ["text/plain", "text/html"]
    assert [name for part in (plain, rich) for name, _ in part.items()] == [
        "Content-Type",
        "Content-Transfer-Encoding",
    ] * 2
    assert _text_of(plain) == _lines(text)
    assert _text_of(rich) == _lines(html)


INVITATION = "BEGIN:VCALENDAR\nMETHOD:REQUEST\nBEGIN:VEVENT\nSUMMARY:Mittagessen für Köln 😀\nEND:VEVENT\nEND:VCALENDAR"


@pytest.mark.parametrize(
    "content", [INVITATION, INVITATION.replace("für Köln 😀", ""), "BEGIN:VCALENDAR\r\n" + "あ" * 900]
)
@pytest.mark.parametrize(
    ("said", "kinds"),
    [
        ({"text": "x"}, ["multipart/alternative", "text/plain", "text/calendar"]),
        ({"text": "x", "html": "<p>"}, ["multipart/alternative", "text/plain", "text/html", "text/calendar"]),
        ({"text": None, "html": "<p>"}, ["multipart/alternative", "text/html", "text/calendar"]),
        ({"text": None}, ["text/calendar"]),
    ],
    ids=["text", "both", "html", "alone"],
)
def test_an_invitation_is_the_last_alternative_and_a_file(said: dict[str, Any], kinds: list[str], content: str) -> None:
    raw = _compose(_draft(calendar=Calendar("REQUEST", content), **said))
    _assert_fit_for_the_wire(raw)
    message = _parsed(raw)
    assert [part.get_content_type() for part in message.walk()] == ["multipart/mixed", *kinds, "application/ics"]
    *_, invitation, file = message.walk()
    assert isinstance(invitation, EmailMessage)
    assert (invitation.get_param("method"), invitation.get_content_charset()) == ("REQUEST", "utf-8")
    assert _text_of(invitation) == _lines(content)
    assert (file.get_filename(), file.get_content_disposition()) == ("invite.ics", "attachment")
    written = file.get_payload(decode=True)
    assert isinstance(written, bytes)
    assert written.decode() == _lines(content).replace("\n", "\r\n")


@given(st.lists(addresses, min_size=1, max_size=6), addresses, st.lists(addresses, max_size=3))
@example([Address("ann", "example.org", HOSTILE)], Address("bot", "example.org", '"'), [])
@example([Address("a" * 64, "b" * 63 + ".example", "x" * 1000)], Address("bot", "example.org", "ü" * 1000), [])
@example([Address("ann", "example.org", "x" * 60)], Address("bot", "example.org", "\\" * 60), [])
@example([Address("ann", "example.org", "Miller, Ann")], Address("bot", "example.org", "a@b"), [])
@example([Address("ann", "example.org", "Ann (Sales)")], Address("bot", "example.org", "<evil@evil.example>"), [])
@example([Address("ann", "example.org", "x>, evil@evil.example, <y")], Address("bot", "example.org", "."), [])
def test_any_addresses_are_read_back_as_they_were(to: list[Address], sender: Address, cc: list[Address]) -> None:
    raw = _compose(_draft(to=tuple(to), cc=tuple(cc), reply_to=(sender,)), sender)
    _assert_fit_for_the_wire(raw)
    message = _parsed(raw)
    for field, asked in {"To": to, "From": [sender], "Reply-To": [sender], "Cc": cc}.items():
        header = message[field]
        found = list(header.addresses) if header else []
        assert [a.addr_spec for a in found] == [a.addr_spec for a in asked]
        if asked:
            others = getaddresses([_field(raw, field)])
            assert [spec for _, spec in others] == [a.addr_spec for a in asked]
            assert [_decoded(name) for name, _ in others] == [a.name for a in asked]


# Nothing can be added.


@given(
    st.lists(addresses, max_size=4),
    st.lists(addresses, max_size=3),
    addresses,
    header_texts,
    custom_fields,
    st.one_of(st.none(), bodies),
    bodies,
)
def test_no_input_can_add_a_field_a_recipient_or_a_part(
    to: list[Address],
    cc: list[Address],
    sender: Address,
    subject: str,
    headers: tuple[tuple[str, str], ...],
    html: str | None,
    text: str,
) -> None:
    draft = Draft(to=tuple(to), cc=tuple(cc), bcc=(HIDDEN,), subject=subject, headers=headers, html=html, text=text)
    raw = _compose(draft, sender)
    _assert_fit_for_the_wire(raw)
    message = _parsed(raw)
    assert [name for name, _ in message.items()] == _expected_names(draft)
    assert [a.addr_spec for a in message["To"].addresses] == [a.addr_spec for a in to]
    assert b"canary" not in raw.lower()
    assert len(list(message.walk())) == (1 if html is None else 3)


def test_bcc_is_never_written() -> None:
    raw = _compose(_draft(to=(), bcc=(HIDDEN,)))
    assert b"canary" not in raw.lower()
    assert b"bcc" not in raw.lower()
    assert _field(raw, "To") == "undisclosed-recipients:;"
    assert not _parsed(raw)["To"].addresses


@pytest.mark.parametrize("code", [*range(0x20), 0x7F, *range(0x80, 0xA0), 0x2028, 0x2029])
def test_a_control_character_in_a_header_is_never_composed(code: int) -> None:
    text = f"a{chr(code)}b"
    with pytest.raises(ValueError, match="control character"):
        _compose(_draft(subject=text))
    with pytest.raises(ValueError, match="control character"):
        _compose(_draft(headers=(("X-A", text),)))
    with pytest.raises(ValueError, match="control character"):
        _compose(_draft(to=(Address("ann", "example.org", text),)))
    with pytest.raises(ValueError, match="control character"):
        _compose(_draft(), Address("bot", "example.org", text))


@pytest.mark.parametrize(
    "make",
    [
        lambda text: _draft(subject=text),
        lambda text: _draft(headers=(("X-A", text),)),
        lambda text: _draft(text=text),
        lambda text: _draft(html=text),
        lambda text: _draft(to=(Address("ann", "example.org", text),)),
    ],
    ids=["subject", "field", "text", "html", "name"],
)
def test_a_lone_surrogate_is_never_composed(make: Any) -> None:
    with pytest.raises(ValueError, match="surrogates"):
        _compose(make("a\ud800b"))


def test_the_shape_of_cve_2024_6923_stays_one_subject() -> None:
    raw = _compose(_draft(subject=HOSTILE))
    assert b"Bcc" not in raw
    assert _parsed(raw)["Subject"] == HOSTILE
    assert _parsed(raw)["Bcc"] is None


# The parts of it, by example.


def test_a_message_is_written_in_one_order() -> None:
    draft = _draft(
        cc=(Address("bob", "example.org", "Bob"),),
        reply_to=(Address("desk", "example.org"),),
        headers=(("X-Ticket", "4711"), ("X-Again", "1"), ("X-Again", "2")),
    )
    assert _compose(draft).decode() == (
        f"Message-ID: {MESSAGE_ID}\r\n"
        "Date: Sun, 01 Mar 2026 12:30:15 +0000\r\n"
        "From: Bot <bot@example.org>\r\n"
        "Reply-To: desk@example.org\r\n"
        "To: ann@example.org\r\n"
        "Cc: Bob <bob@example.org>\r\n"
        "Subject: Hi\r\n"
        "X-Ticket: 4711\r\n"
        "X-Again: 1\r\n"
        "X-Again: 2\r\n"
        "MIME-Version: 1.0\r\n"
        "Content-Type: text/plain; charset=us-ascii\r\n"
        "Content-Transfer-Encoding: 7bit\r\n"
        "\r\n"
        "Hello\r\n"
    )


@pytest.mark.parametrize("zone", [UTC, timezone(timedelta(hours=5, minutes=30)), timezone(timedelta(hours=-8))])
def test_the_date_is_the_instant_it_was_given_in_utc(zone: timezone) -> None:
    date = datetime(2026, 3, 2, 12, 30, 15, tzinfo=zone)
    raw = compose(_draft(), sender=BOT, message_id=MESSAGE_ID, date=date, boundary=BOUNDARY)
    written = _field(raw, "Date")
    assert parsedate_to_datetime(written) == date
    assert written.endswith(" +0000")


@pytest.mark.parametrize(
    ("name", "written"),
    [
        ("", "ann@example.org"),
        ("Ann", "Ann <ann@example.org>"),
        ("Ann Miller", "Ann Miller <ann@example.org>"),
        ("Miller, Ann", '"Miller, Ann" <ann@example.org>'),
        ("Dr. Ann", '"Dr. Ann" <ann@example.org>'),
        ('A "B" \\', '"A \\"B\\" \\\\" <ann@example.org>'),
        ("Ann  Miller", '"Ann  Miller" <ann@example.org>'),
    ],
)
def test_a_plain_name_stays_readable_in_the_source(name: str, written: str) -> None:
    assert _field(_compose(_draft(to=(Address("ann", "example.org", name),))), "To") == written


@pytest.mark.parametrize(
    ("text", "encoding"),
    [
        ("Hello", "7bit"),
        ("x" * 980, "7bit"),
        ("x" * 981, "quoted-printable"),
        ("trailing blank \n", "quoted-printable"),
        ("\x00", "quoted-printable"),
        ("Grüße aus Köln", "quoted-printable"),
        ("こんにちは", "base64"),
        ("😀", "base64"),
    ],
)
def test_the_smallest_readable_encoding_is_chosen(text: str, encoding: str) -> None:
    assert _field(_compose(_draft(text=text)), "Content-Transfer-Encoding") == encoding


@pytest.mark.parametrize("text", ["a\nb", "a\r\nb", "a\rb", "a\nb\n", "é\nb", "é\rb\r", "あ\nい"])
def test_every_line_end_becomes_crlf_and_the_last_line_gets_one(text: str) -> None:
    raw = _compose(_draft(text=text))
    body = _parsed(raw).get_payload(decode=True)
    assert isinstance(body, bytes)
    assert body.decode() == _lines(text).replace("\n", "\r\n")


_ends = st.sampled_from(["", " ", "\t", "  ", " \t", "=", "é", "é ", "."])
_qp_lines = st.builds(
    lambda body, end: body + end,
    st.one_of(st.integers(68, 82).map("a".__mul__), st.text("a =\té.", min_size=60, max_size=200)),
    _ends,
)


@given(st.lists(_qp_lines, min_size=1, max_size=5).map("\n".join))
@example("a" * 74 + " \nb")
@example("a" * 74 + "\t\nb")
@example("a" * 73 + " \t\nb")
@example("é" * 12 + "a" * 2 + " \nb")
@example("a" * 74 + " ")
def test_no_line_of_quoted_printable_is_longer_than_76(text: str) -> None:
    raw = _compose(_draft(text=text + "\né"))
    body = raw.partition(b"\r\n\r\n")[2]
    assert b"quoted-printable" in raw or b"base64" in raw
    assert max(map(len, body.split(b"\r\n"))) <= 76  # RFC 2045 §6.7
    assert not re.search(rb"[ \t]\r\n", body)
    assert _text_of(_parsed(raw)) == _lines(text + "\né")


MEGABYTE = 1 << 20  # characters; longer texts are encoded in pieces


@pytest.mark.parametrize(
    ("text", "encoding"),
    [
        ("Hello\n" * 400_000, "7bit"),
        ("Hello\r" * 400_000, "7bit"),
        ("Hello\r\n" * 400_000, "7bit"),
        ("\n" * 3_000_000, "7bit"),
        ("\r\n" * 1_500_000 + "x", "7bit"),
        ("Hello" * 500_000 + "\n", "quoted-printable"),
        (("x" * 1999 + "\n") * 1200, "quoted-printable"),
        ("blank \n" * 400_000, "quoted-printable"),
        ("Grüße aus Köln\n" * 200_000, "quoted-printable"),
        ("Grüße aus Köln\r" * 200_000, "quoted-printable"),
        ("Grüße aus Köln" * 200_000, "quoted-printable"),
        ("こんにちは\n" * 300_000, "base64"),
        ("こ" * 2_000_000, "base64"),
        *[("x" * (MEGABYTE + at) + "\r\n" + "=é \t\n" * 9, "quoted-printable") for at in range(-3, 3)],
        *[("=" * (MEGABYTE + at) + "é" * 80, "quoted-printable") for at in range(-3, 3)],
        *[("é" + " x" * (MEGABYTE // 2) + "y" * at + "é", "quoted-printable") for at in range(3)],
        *[("x" * (MEGABYTE + 74 + at) + " \r\né", "quoted-printable") for at in range(-2, 2)],
        (("a" * 74 + " \n") * 40_000 + "é", "quoted-printable"),
    ],
)
def test_a_text_of_megabytes_is_encoded_as_a_short_one_is(text: str, encoding: str) -> None:
    raw = _compose(_draft(text=text))
    assert _field(raw, "Content-Transfer-Encoding") == encoding
    lines = raw.split(b"\r\n")
    assert max(map(len, lines)) <= (980 if encoding == "7bit" else 76)
    assert not any(b"\r" in line or b"\n" in line for line in lines)
    body = _parsed(raw).get_payload(decode=True)
    assert isinstance(body, bytes)
    assert body.decode() == _lines(text).replace("\n", "\r\n")


@pytest.mark.parametrize("line", ["x" * 1_000_000, "ü" * 500_000, "😀" * 250_000, ". " * 500_000, "=\r" * 500_000])
def test_a_megabyte_in_one_line_is_read_back(line: str) -> None:
    began = perf_counter()
    raw = _compose(_draft(text=line))
    assert perf_counter() - began < 2
    assert max(map(len, raw.split(b"\r\n"))) <= 998
    assert _text_of(_parsed(raw)) == _lines(line)


def test_the_longest_fields_that_the_door_takes_fit_their_lines() -> None:
    people = tuple(Address("a" * 64, ".".join(["b" * 63] * 3 + ["example"]), "ö" * 1000) for _ in range(50))
    raw = _compose(_draft(to=people, subject="ü" * 2000, headers=(("X" * 76, "😀" * 4000),)))
    _assert_fit_for_the_wire(raw)
    assert len(_parsed(raw)["To"].addresses) == 50


def test_a_thousand_recipients_stand_a_line_each() -> None:
    people = tuple(Address(f"r{at}", "example.org", "Ann" if at % 2 else "") for at in range(1000))
    raw = _compose(_draft(to=people))
    assert getaddresses([_field(raw, "To")]) == [(a.name, a.addr_spec) for a in people]
    assert max(map(len, _head(raw))) < 100


@pytest.mark.parametrize(
    "subject",
    ["Hello", "Your order 4711 is on its way", "100% = a? (b) [c] <d> \"e\" 'f' @g", "?=", "=?", "a =? b", "x=?y"],
)
def test_a_subject_is_encoded_only_where_it_must_be(subject: str) -> None:
    written = _field(_compose(_draft(subject=subject)), "Subject")
    assert (written == subject) is ("=?" not in subject)


@given(header_texts, field_names)
def test_a_field_begins_with_its_name_and_holds_no_line_of_another(value: str, name: str) -> None:
    first, *more = text_field(name, value).split("\r\n")
    assert first.startswith(f"{name}:")
    assert all(line.startswith(" ") and line.strip() for line in more)


# An address that needs SMTPUTF8 stands in UTF-8 (RFC 6532), and all else still does not.


@pytest.mark.parametrize("name", ["", "Jürgen", "Miller, J", HOSTILE])
def test_a_non_ascii_local_part_stands_as_it_is(name: str) -> None:
    to = parse_address("jürgen@bücher.example")
    raw = _compose(_draft(to=(Address(to.local, to.domain, name),), subject="Grüße", text="Grüße"))
    assert [line for line in raw.split(b"\r\n") if not line.isascii()] == [
        line for line in raw.split(b"\r\n") if "jürgen@".encode() in line
    ]
    message = Parser(policy=policy.SMTPUTF8).parsestr(raw.decode())
    (found,) = message["To"].addresses
    assert (found.username, found.domain, found.display_name) == ("jürgen", "xn--bcher-kva.example", name)
    assert message["Subject"] == "Grüße"
