"""Attachments come out of a mail program as they went in, whatever they are called and wherever they stand."""

from __future__ import annotations

from base64 import b64encode
from datetime import UTC, datetime
from email import policy
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
def test_a_parser_reads_name_and_content_back(name: str, content: bytes) -> None:
    raw = _composed(_attachment(name, content))
    (part,) = _parsed(raw).iter_attachments()
    assert part.get_filename() == name
    assert part.get_payload(decode=True) == content
    assert raw.isascii()
    assert max(map(len, raw.split(b"\r\n"))) <= 998


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
