"""Attachments come out of a mail program as they went in, whatever they are called and wherever they stand."""

from __future__ import annotations

import re
from base64 import b64encode
from datetime import UTC, datetime
from email import policy
from email.header import decode_header
from email.message import EmailMessage, MIMEPart
from email.parser import BytesParser
from time import perf_counter
from typing import Any

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from app.compose.attachment import LINE, attached
from app.compose.mime import compose
from app.mail.address import Address
from app.mail.message import Attachment, Draft
from tests.unit.strategies import printable, tricky

ANN = Address("ann", "example.org")
BOUNDARY = "=_019caa0000007000800000000000000100"


def _attachment(name: str = "a.bin", content: bytes = b"x", **said: Any) -> Attachment:
    return Attachment(name, b64encode(content), **{"content_type": "application/octet-stream"} | said)


def _composed(*attachments: Attachment, **said: Any) -> bytes:
    draft = Draft(**{"to": (ANN,), "text": "Hello", "attachments": attachments} | said)
    date = datetime(2026, 3, 1, tzinfo=UTC)
    return compose(draft, sender=ANN, message_id="<1@example.org>", date=date, boundary=BOUNDARY)


def _parsed(raw: bytes) -> EmailMessage:
    message = BytesParser(policy=policy.SMTP).parsebytes(raw)
    assert isinstance(message, EmailMessage)
    assert not message.defects
    return message


def _tree(part: MIMEPart) -> Any:
    """Give the nesting as lists: the type, then what is in it."""
    kind = part.get_content_type()
    return [kind, *map(_tree, part.iter_parts())] if part.is_multipart() else kind


# The oracle unquotes a name once too often: "<x>" comes back as "x".
names = st.one_of(st.text(printable, min_size=1, max_size=255), tricky).map(
    lambda name: name.replace("/", "").replace("\\", "").strip()[:255]
)


@given(
    name=names.filter(lambda name: bool(name) and name[0] + name[-1] not in ('""', "<>")),
    content=st.binary(max_size=300),
)
@example(name="Rechnung über 4711 €.pdf", content=b"")
@example(name='quote".pdf', content=b"")
@example(name="=?utf-8?q?x?=", content=b"")
@example(name="ü" * 255, content=b"\n.\n")
@example(name="a;b=c.pdf", content=b"")
@example(name="100%25.pdf", content=b"")
@example(name="it's 100% * [new]? {a} `b` | c: d.pdf", content=b"")
@example(name="é" + " x" * 127, content=b"")
def test_a_parser_reads_name_and_content_back(name: str, content: bytes) -> None:
    raw = _composed(_attachment(name, content))
    (part,) = _parsed(raw).iter_attachments()
    assert part.get_filename() == name
    assert part.get_payload(decode=True) == content
    assert part.get_content_type() == "application/octet-stream"
    assert raw.isascii()
    assert max(map(len, raw.split(b"\r\n"))) <= 980


@pytest.mark.parametrize(
    ("said", "tree"),
    [
        ({}, ["multipart/mixed", "text/plain", "image/png", "text/csv"]),
        (
            {"text": None, "html": "<p>"},
            ["multipart/mixed", ["multipart/related", "text/html", "image/png"], "text/csv"],
        ),
        (
            {"html": "<p>"},
            [
                "multipart/mixed",
                ["multipart/alternative", "text/plain", ["multipart/related", "text/html", "image/png"]],
                "text/csv",
            ],
        ),
    ],
    ids=["text", "html", "both"],
)
def test_an_inline_image_stands_beside_the_html_that_shows_it(said: dict[str, Any], tree: list[Any]) -> None:
    logo = _attachment("logo.png", content_type="image/png", content_id="logo", is_inline=True)
    table = _attachment("table.csv", content_type="text/csv; charset=utf-8")
    message = _parsed(_composed(logo, table, **said))
    assert _tree(message) == tree
    found = next(part for part in message.walk() if part.get_content_type() == "image/png")
    assert found["Content-ID"] == "<logo>"
    assert found.get_content_disposition() == "inline"
    csv = next(part for part in message.walk() if part.get_content_type() == "text/csv")
    assert csv.get_content_disposition() == "attachment"
    assert csv.get_content_charset() == "utf-8"


def test_only_inline_images_need_no_mixed() -> None:
    logo = _attachment("logo.png", content_type="image/png", content_id="logo", is_inline=True)
    assert _tree(_parsed(_composed(logo, html="<p>", text=None))) == ["multipart/related", "text/html", "image/png"]


@given(st.lists(st.binary(max_size=500), min_size=1, max_size=5), st.booleans())
def test_every_attachment_is_there_once_and_in_order(contents: list[bytes], html: bool) -> None:
    files = [_attachment(f"{at}.bin", content) for at, content in enumerate(contents)]
    message = _parsed(_composed(*files, html="<p>hi</p>" if html else None))
    parts = list(message.iter_attachments())
    assert [part.get_filename() for part in parts] == [f"{at}.bin" for at in range(len(contents))]
    assert [part.get_payload(decode=True) for part in parts] == contents


@pytest.mark.parametrize(
    "name", ["a" * 251 + ".pdf", "Quarterly report (final) of the department of long names, 2026.pdf", "it's 100%.pdf"]
)
def test_an_ascii_name_stays_one_plain_parameter(name: str) -> None:
    fields, _ = attached(_attachment(name))
    assert f'Content-Disposition: attachment;\r\n filename="{name}"' in fields
    assert "name*" not in fields
    assert "=?" not in fields


@pytest.mark.parametrize("name", ["Rechnung über 4711 €.pdf", "ü" * 255, "日本語.pdf"])
def test_a_name_beyond_ascii_is_there_for_outlook_too(name: str) -> None:
    raw = _composed(_attachment(name, content_type="application/pdf"))
    (part,) = _parsed(raw).iter_attachments()
    assert part.get_content_type() == "application/pdf"
    assert part.get_filename() == name
    fields, _ = attached(_attachment(name, content_type="application/pdf"))
    written = fields.replace("\r\n", "").split('name="')[1].split('"')[0]
    assert "".join(str(raw, charset or "") for raw, charset in decode_header(written)) == name
    assert max(map(len, fields.split("\r\n"))) <= 76
    assert "name=" not in attached(_attachment(name, content_type='a/b; name="x"'))[0].replace('; name="x"', "")


def test_a_related_names_the_type_of_what_it_shows() -> None:
    logo = _attachment("logo.png", content_type="image/png", content_id="logo", is_inline=True)
    message = _parsed(_composed(logo, html="<p>", text=None))
    assert message.get_param("type") == "text/html"  # RFC 2387 §3.1


# Messages and multiparts may not be base64 (RFC 2046 §5.1, §5.2.1).

MAIL = b"From: ann@example.org\nSubject: x\n folded\n\nHello \n.\n..\n-- \nAnn\n"
PARTS = b"Preamble\n--abc\nContent-Type: text/plain\n\nHello\n--abc\n\n\n--abc--\n"
AS_IT_IS = {
    "LF": ("message/rfc822", MAIL),
    "CRLF": ("message/rfc822", MAIL.replace(b"\n", b"\r\n")),
    "no line end at the end": ("Message/RFC822", MAIL + b"Bye"),
    "fields only": ("message/rfc822", b"Subject: x\n\n"),
    "a tab": ("message/rfc822", MAIL + b"\t.\n"),
    "lines of 980": ("message/rfc822", MAIL + b"x" * 980 + b"\n" + b"y" * 980),
    "megabytes": ("message/rfc822", MAIL + b"x" * 97 + b"\n" + (b"y" * 99 + b"\r\n") * 20_000),
    "a mail with parts": ("message/rfc822", b"Content-Type: multipart/mixed; boundary=abc\n\n" + PARTS),
    "a mail with parts that do not end": ("message/rfc822", b"Content-Type: multipart/mixed; boundary=a\n\n--a\n\nx"),
    "a mail in a mail": ("message/rfc822", b"Content-Type: message/rfc822\n\n" + MAIL),
    "a status": ("message/delivery-status", b"Reporting-MTA: dns; x\n\nAction: failed\n\n"),
    "a notification": ("message/disposition-notification", b"Final-Recipient: rfc822;x\n\n"),
    "parts": ("multipart/mixed; boundary=abc", PARTS),
    "parts, quoted": ('multipart/related; type="text/plain"; boundary="abc"', PARTS),
}
OCTETS = {
    "8-bit": ("message/rfc822", MAIL + "é".encode()),
    "8-bit at the end of megabytes": ("message/rfc822", MAIL + (b"y" * 99 + b"\n") * 20_000 + b"\xff"),
    "NUL": ("message/rfc822", MAIL + b"\0"),
    "a bare CR": ("message/rfc822", MAIL + b"a\rb"),
    "a CR at the end": ("message/rfc822", MAIL + b"a\r"),
    "a line of 981": ("message/rfc822", MAIL + b"x" * 981),
    "a line of megabytes": ("message/rfc822", MAIL + b"x" * 2_000_000),
    "nothing": ("message/rfc822", b""),
    "no fields": ("message/rfc822", b"Hello\n"),
    "no fields at the start": ("message/rfc822", b"\n" + MAIL),
    "broken fields": ("message/rfc822", b"Subject: x\nHello\n\n"),
    "a part of a message": ("message/partial; id=1; number=1", MAIL),
    "a message elsewhere": ("message/external-body; access-type=URL", MAIL),
    "a message that no MIME parser knows": ("message/http", b"GET / HTTP/1.1\n\n"),
    "parts without a boundary": ("multipart/mixed", PARTS),
    "parts with another boundary": ("multipart/mixed; boundary=abcd", PARTS),
    "parts that do not end": ("multipart/mixed; boundary=abc", PARTS.replace(b"--abc--", b"")),
    "parts that end twice": ("multipart/mixed; boundary=abc", PARTS + PARTS),
    "no parts": ("multipart/mixed; boundary=abc", b"--abc--\n"),
    "parts, 8-bit": ("multipart/mixed; boundary=abc", PARTS + "é".encode()),
    "an odd boundary": ('multipart/mixed; boundary="a b "', PARTS),
}


def _lines(content: bytes) -> bytes:
    return re.sub(rb"\r?\n", b"\r\n", content)


@pytest.mark.parametrize(("content_type", "content"), AS_IT_IS.values(), ids=AS_IT_IS.keys())
def test_a_message_goes_as_it_is_where_its_bytes_allow_it(content_type: str, content: bytes) -> None:
    raw = _composed(_attachment("a.eml", content, content_type=content_type))
    part = list(_parsed(raw).iter_parts())[1]
    assert part.get_content_type() == content_type.lower().partition(";")[0]
    assert part["Content-Transfer-Encoding"] == "7bit"
    assert part.get_filename() == "a.eml"
    start = raw.index(b'filename="a.eml"\r\n\r\n') + len(b'filename="a.eml"\r\n\r\n')
    assert raw[start:] == _lines(content) + f"\r\n--{BOUNDARY}m--\r\n".encode()
    assert part.is_multipart()
    if part.get_content_type() == "message/rfc822":
        (inner,) = part.iter_parts()
        alone = BytesParser(policy=policy.SMTP).parsebytes(_lines(content))
        assert inner.items() == alone.items()
        assert inner.get_payload() == alone.get_payload() or inner.is_multipart()
        assert inner.as_bytes() == alone.as_bytes()


@pytest.mark.parametrize(("content_type", "content"), OCTETS.values(), ids=OCTETS.keys())
def test_a_message_that_cannot_go_as_it_is_arrives_as_octets(content_type: str, content: bytes) -> None:
    raw = _composed(_attachment("a.eml", content, content_type=content_type))
    (part,) = _parsed(raw).iter_attachments()
    assert part.get_content_type() == "application/octet-stream"
    assert part.get_filename() == "a.eml"
    assert part.get_payload(decode=True) == content


_mail_like = st.builds(
    lambda head, body: head + b"\n" + body,
    st.sampled_from([b"", b"Subject: x\n", b"Content-Type: multipart/mixed; boundary=x\n", b"A: b\n c\nD:\n", b" x\n"]),
    st.lists(
        st.sampled_from(
            [b"\n", b"\r\n", b"\r", b"--x", b"--x--", b".", b"From x\n", b"a" * 500, b"\xc3\xa9", b"\t ", b"\0"]
        )
        | st.binary(max_size=20),
        max_size=12,
    ).map(b"".join),
)


@given(_mail_like)
def test_any_mail_that_is_attached_arrives(content: bytes) -> None:
    after = _attachment("b.bin", b"after")
    raw = _composed(_attachment("a.eml", content, content_type="message/rfc822"), after)
    assert raw.isascii()
    assert raw.count(b"\r") == raw.count(b"\n") == raw.count(b"\r\n")
    assert max(map(len, raw.split(b"\r\n"))) <= 980
    _, first, second = BytesParser(policy=policy.SMTP).parsebytes(raw).iter_parts()
    assert second.get_payload(decode=True) == b"after"
    if first.get_content_type() == "message/rfc822":
        assert first["Content-Transfer-Encoding"] == "7bit"
        assert raw.count(b'"a.eml"\r\n\r\n' + _lines(content) + f"\r\n--{BOUNDARY}m\r\n".encode()) == 1
    else:
        assert first.get_content_type() == "application/octet-stream"
        assert first.get_payload(decode=True) == content


# A text says its charset.


@pytest.mark.parametrize(
    ("content_type", "content", "charset"),
    [
        ("text/csv", b"a;b\n", "utf-8"),
        ("text/csv", "ä;€\n".encode(), "utf-8"),
        ("TEXT/Plain", "\ufeffä".encode(), "utf-8"),
        ("text/csv; header=present", "ä".encode(), "utf-8"),
        ('text/csv; x="charset=y"', "ä".encode(), "utf-8"),
        ("text/calendar; method=REQUEST", "ä".encode(), "utf-8"),
        ("text/plain", b"", "utf-8"),
        ("text/plain", "é€😀".encode() * 200_000, "utf-8"),
        ("text/plain", b"x" * 3_000_000 + "é".encode()[:1], None),
        ("text/plain", b"x" * 196_607 + "é".encode() + b"x", "utf-8"),
        ("text/csv; charset=iso-8859-1", "ä".encode("latin-1"), "iso-8859-1"),
        ("text/csv; Charset=US-ASCII", "ä".encode(), "us-ascii"),
        ("text/csv", "ä".encode("latin-1"), None),
        ("text/plain", "ä".encode("utf-16"), None),
        ("text/plain", "a".encode("utf-16-le"), None),
        ("text/plain", "あ".encode("iso2022_jp"), None),
        ("application/json", "ä".encode(), None),
    ],
    ids=lambda value: repr(value)[:40],
)
def test_a_text_that_is_utf_8_says_so(content_type: str, content: bytes, charset: str | None) -> None:
    (part,) = _parsed(_composed(_attachment("a.txt", content, content_type=content_type))).iter_attachments()
    assert part.get_content_charset() == charset
    assert part.get_content_type() == content_type.partition(";")[0].lower()
    assert part.get_payload(decode=True) == content


def test_the_base64_is_broken_at_76_characters() -> None:
    _, (body,) = attached(_attachment(content=bytes(1000)))
    lines = body.split(b"\r\n")
    assert lines.pop() == b""
    assert [len(line) for line in lines[:-1]] == [LINE] * (len(lines) - 1)
    assert 0 < len(lines[-1]) <= LINE


@pytest.mark.parametrize("field", ["filename", "content_type", "content_id"])
@pytest.mark.parametrize("evil", ["a\r\nBcc: evil@example.org", "a\nb", "a\x00b"])
def test_no_attachment_can_add_a_header_field(field: str, evil: str) -> None:
    said = {"filename": "a", "base64": b"", "content_type": "a/b", "content_id": "c"} | {field: evil}
    with pytest.raises(ValueError, match="control character"):
        attached(Attachment(**said))  # type: ignore[arg-type]


def test_ten_megabytes_are_composed_in_a_moment() -> None:
    big = _attachment(content=bytes(10_000_000))
    began = perf_counter()
    raw = _composed(big)
    assert len(raw) > 13_000_000
    assert perf_counter() - began < 2
