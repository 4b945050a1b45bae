"""Mails read back: what is in them, whatever was written; and HTML from which is taken what no policy reaches."""

import re
from base64 import b64encode
from unittest.mock import patch

import pytest
from hypothesis import given
from hypothesis import strategies as st

from app.inspector import reading
from app.inspector.reading import MOST_HTML, MOST_LINES, Mail, Part, read, shown

LOGO = Part("logo.png", "image/png", b"\x89PNG", "logo")
LOGO_URL = f"data:image/png;base64,{b64encode(LOGO.content).decode()}"


def mail(*parts: str, kind: str = "mixed") -> bytes:
    """Write a multipart by hand; each part is header fields, an empty line and a body."""
    lines = ["From: bot@ours.test", f'Content-Type: multipart/{kind}; boundary="b"', ""]
    for part in parts:
        lines += ["--b", *part.split("\n")]
    return "\r\n".join([*lines, "--b--", ""]).encode()


def test_text_html_and_files_are_told_apart() -> None:
    found = read(
        mail(
            "Content-Type: text/plain; charset=utf-8\n\nGrüße",
            "Content-Type: text/html; charset=utf-8\n\n<p>Grüße</p>",
            "Content-Type: image/png\nContent-Transfer-Encoding: base64\nContent-ID: <logo>\n"
            "Content-Disposition: inline; filename=logo.png\n\niVBORw==",
            "Content-Type: text/plain\nContent-Disposition: attachment; filename=notes.txt\n\nnoted",
        )
    )
    assert (found.text, found.html) == ("Grüße", "<p>Grüße</p>")
    assert found.parts == (LOGO, Part("notes.txt", "text/plain", b"noted"))
    assert dict(found.fields)["From"] == "bot@ours.test"


def test_a_mail_with_nothing_but_a_file_has_that_file() -> None:
    found = read(b"Content-Type: application/pdf\r\n\r\n%PDF")
    assert (found.text, found.html) == (None, None)
    assert found.parts == (Part("", "application/pdf", b"%PDF"),)


def test_a_mail_in_a_mail_is_a_file() -> None:
    found = read(mail("Content-Type: message/rfc822\n\nSubject: inner\nContent-Type: text/html\n\n<b>inner</b>"))
    (part,) = found.parts
    assert (part.content_type, found.html) == ("message/rfc822", None)
    assert b"<b>inner</b>" in part.content


@pytest.mark.parametrize(
    ("written", "name"),
    [
        ('filename="a\\"b.txt"', 'a"b.txt'),
        ("filename*=utf-8''a%0D%0ASet-Cookie%3A%20x.txt", "a\r\nSet-Cookie: x.txt"),
        ("filename*=utf-8''%C3%BCber.txt", "über.txt"),
        ('filename="<script>.txt"', "<script>.txt"),
        ("filename=", ""),
    ],
)
def test_a_name_is_read_as_it_is_meant(written: str, name: str) -> None:
    (part,) = read(mail(f"Content-Type: text/plain\nContent-Disposition: attachment; {written}\n\nx")).parts
    assert part.name == name


@pytest.mark.parametrize("charset", ["no-such", "rot13", "punycode", "undefined", "utf-16", "'", "utf-8\x00"])
def test_a_charset_that_is_none_hides_nothing(charset: str) -> None:
    found = read(f'Content-Type: text/plain; charset="{charset}"\r\n\r\nhello'.encode())
    assert found.text is not None


MALFORMED = [
    b"",
    b"\r\n",
    b"\x00\xff\xfe",
    b"no header at all",
    b"Content-Type: multipart/mixed\r\n\r\nno boundary",
    b'Content-Type: multipart/mixed; boundary="b"\r\n\r\n--b\r\nnever ends',
    b'Content-Type: multipart/mixed; boundary=""\r\n\r\n--\r\n\r\nx\r\n----\r\n',
    b"Content-Type: text/plain\r\nContent-Transfer-Encoding: base64\r\n\r\n====not base64",
    b"Content-Type: text/plain\r\nContent-Transfer-Encoding: no-such\r\n\r\nx",
    b"Content-Type: ;;;=\r\nFrom: <<<@,;:\r\nTo: =?utf-8?q?=0D=0AX:y?= <a@b>\r\n\r\nx",
    b"Content-Type: message/rfc822\r\nContent-Transfer-Encoding: base64\r\n\r\nAAAA",
    b"Content-Disposition: attachment; filename*0*=x; filename*2=y\r\n\r\nx",
    b'Content-Type: multipart/alternative; boundary="b"\r\n\r\n' * 3000,
    b"".join(b'Content-Type: multipart/mixed; boundary="%d"\r\n\r\n--%d\r\n' % (n, n) for n in range(2000)),
    b"A: " + b"x" * 1_000_000 + b"\r\n\r\nx",
    b"Date: Thu, 99 Foo 99999 99:99\r\nMessage-ID: <\r\n\r\nx",
]


@pytest.mark.parametrize("content", MALFORMED, ids=range(len(MALFORMED)))
def test_what_is_no_mail_is_read_as_far_as_it_goes(content: bytes) -> None:
    shown(read(content))


@given(
    head=st.lists(
        st.tuples(
            st.sampled_from(["Content-Type", "Content-Disposition", "Content-ID", "To", "Date", "MIME-Version"]),
            st.binary(max_size=40) | st.sampled_from([b"multipart/mixed; boundary=b", b"text/html", b"attachment"]),
        ),
        max_size=5,
    ),
    body=st.binary(max_size=200) | st.just(b"--b\r\n\r\nx\r\n--b--\r\n"),
)
def test_whatever_the_bytes_there_is_an_answer(head: list[tuple[str, bytes]], body: bytes) -> None:
    content = b"".join(b"%s: %s\r\n" % (name.encode(), value) for name, value in head) + b"\r\n" + body
    shown(read(content))


@pytest.mark.parametrize(
    "html",
    [
        '<link rel="preconnect" href="http://theirs.test">',
        "<LINK rel=dns-prefetch href=//theirs.test>",
        "<link\trel=preload href=//theirs.test>",
        "<link/rel=preload/href=//theirs.test>",
        '<link\n\nrel="stylesheet" href="//theirs.test">',
        '<meta http-equiv="refresh" content="0;url=http://theirs.test">',
        "<Meta/http-equiv=refresh content='0'>",
        '<base href="http://theirs.test/">',
        "<base>",
        "<svg><base href=//theirs.test></svg>",
        "<!-- --!><link rel=preconnect href=//theirs.test> -->",
        "<style></style><link rel=preconnect href=//theirs.test>",
        '<p title="<link rel=preconnect>">x</p>',
        "<iframe src=//theirs.test></iframe>",
        "<FRAMESET><frame src=//theirs.test></frameset>",
        "<object data=//theirs.test></object><embed/src=//theirs.test>",
        "<svg><a><animate attributeName=href to=//theirs.test><set attributeName=href to=//theirs.test></a></svg>",
        "<animateTransform attributeName=href>",
    ],
)
def test_what_no_policy_reaches_is_turned_off(html: str) -> None:
    off = r"<(link|meta|base|i?frame|object|embed|animate\w*|set)[\s/>]"
    assert not re.search(off, shown(Mail(html=html)), re.IGNORECASE)


@pytest.mark.parametrize(
    ("html", "expected"),
    [
        ('<a href="http://theirs.test">', '<a href="#http://theirs.test">'),
        ("<a href='javascript:x'>", "<a href='#javascript:x'>"),
        ("<a href=//theirs.test>", "<a href=#//theirs.test>"),
        ('<a HREF\n=\n" http://theirs.test">', '<a HREF\n=\n"# http://theirs.test">'),
        ('<a href="&#104;ttp://theirs.test">', '<a href="#&#104;ttp://theirs.test">'),
        ("<svg><a xlink:href='//theirs.test'>", "<svg><a xlink:href='#//theirs.test'>"),
        ("<area/href=//theirs.test>", "<area/href=#//theirs.test>"),
        ("<a href=>", "<a href=#>"),
    ],
)
def test_a_link_leads_to_the_mail_itself(html: str, expected: str) -> None:
    assert shown(Mail(html=html)) == expected


@pytest.mark.parametrize(
    "html", ["<basement>", "<b>a link</b>", "<links>", "a < link", "<p>meta</p>", "<section>x</section>"]
)
def test_what_only_looks_like_it_stays(html: str) -> None:
    assert shown(Mail(html=html)).startswith(html)


@pytest.mark.parametrize(
    ("html", "expected"),
    [
        ('<img src="cid:logo">', f'<img src="{LOGO_URL}">'),
        ("<img src=cid:logo>", f"<img src={LOGO_URL}>"),
        ("<img src='CID:logo'>", f"<img src='{LOGO_URL}'>"),
        ('<td style="background: url(cid:logo)">', f'<td style="background: url({LOGO_URL})">'),
        ('<img src="cid:%6Cogo">', f'<img src="{LOGO_URL}">'),
        ('<img src="cid:other">', '<img src="cid:other">'),
        ("<p>write cid:logo there</p>", "<p>write cid:logo there</p>"),
    ],
)
def test_an_image_of_the_mails_own_is_put_in(html: str, expected: str) -> None:
    assert shown(Mail(html=html, parts=(LOGO,))).startswith(expected)


@pytest.mark.parametrize("kind", ["text/html", "image/svg;evil", 'image/x"onerror=', "application/javascript"])
def test_what_is_no_image_is_not_put_in(kind: str) -> None:
    assert "data:" not in shown(Mail(html='<img src="cid:logo">', parts=(Part("x", kind, b"x", "logo"),)))


def test_a_mail_of_a_million_lines_is_not_taken_apart() -> None:
    assert read(b"Subject: x\r\n\r\n" + b"\r\n" * MOST_LINES) == Mail()
    assert read(b"Subject: x\r\n\r\n" + b"\r\n" * 1000).fields == (("Subject", "x"),)


def test_of_a_long_document_the_beginning_is_shown() -> None:
    assert shown(Mail(html="<" * (MOST_HTML + 1))) == "<" * MOST_HTML


def test_an_image_that_is_named_a_million_times_does_not_fill_the_memory() -> None:
    big = Part("big.png", "image/png", b"x" * 1000, "big")
    with patch.object(reading, "MOST_IMAGES", 10_000):
        said = shown(Mail(html='<img src="cid:big">' * 100, parts=(big,)))
    assert 0 < said.count("data:") < 10
    assert len(said) < 15_000
