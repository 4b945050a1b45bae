"""What a head says of its body and its target."""

import pytest

from app.api.problems import MalformedRequest, UnsupportedMedia
from app.http1.framing import body_length, lines_of, split_target, without_upgrade
from app.mail.errors import Refused


@pytest.mark.parametrize(
    ("fields", "version", "length"),
    [
        pytest.param([], "1.1", 0, id="no-body"),
        pytest.param([(b"content-length", b"12")], "1.1", 12, id="length"),
        pytest.param([(b"content-length", b"0")], "1.0", 0, id="length-of-nothing"),
        pytest.param([(b"transfer-encoding", b"chunked")], "1.1", None, id="chunked"),
        pytest.param([(b"transfer-encoding", b" CHUNKED ")], "1.1", None, id="chunked-in-any-case"),
    ],
)
def test_the_length_of_a_body_is_what_the_head_says(
    fields: list[tuple[bytes, bytes]], version: str, length: int | None
) -> None:
    assert body_length(fields, version) == length


@pytest.mark.parametrize(
    ("fields", "version", "refusal"),
    [
        pytest.param([(b"transfer-encoding", b"gzip, chunked")], "1.1", UnsupportedMedia, id="gzip-chunked"),
        pytest.param([(b"transfer-encoding", b"chunked, gzip")], "1.1", UnsupportedMedia, id="chunked-gzip"),
        pytest.param([(b"transfer-encoding", b"chunked, chunked")], "1.1", UnsupportedMedia, id="chunked-twice"),
        pytest.param([(b"transfer-encoding", b"identity")], "1.1", UnsupportedMedia, id="identity"),
        pytest.param([(b"transfer-encoding", b"")], "1.1", UnsupportedMedia, id="empty"),
        pytest.param([(b"transfer-encoding", b"\x0bchunked")], "1.1", UnsupportedMedia, id="vertical-tab"),
        pytest.param(
            [(b"transfer-encoding", b"chunked"), (b"transfer-encoding", b"chunked")],
            "1.1",
            UnsupportedMedia,
            id="two-fields",
        ),
        pytest.param([(b"transfer-encoding", b"chunked")], "1.0", MalformedRequest, id="http-1.0"),
        pytest.param([(b"host", b"a"), (b"host", b"a")], "1.1", MalformedRequest, id="two-hosts"),
    ],
)
def test_framing_that_is_not_certain_is_refused(
    fields: list[tuple[bytes, bytes]], version: str, refusal: type[Refused]
) -> None:
    with pytest.raises(refusal):
        body_length(fields, version)


@pytest.mark.parametrize(
    ("target", "parts"),
    [
        (b"/", ("/", b"", None)),
        (b"/a/b?c=d&e", ("/a/b", b"c=d&e", None)),
        (b"/a#b", ("/a", b"", None)),
        (b"//evil.test/a", ("//evil.test/a", b"", None)),
        (b"/http://evil.test/", ("/http://evil.test/", b"", None)),
        (b"*", ("*", b"", None)),
        (b"http://evil.test/a?b", ("/a", b"b", b"evil.test")),
        (b"HTTP://evil.test", ("/", b"", b"evil.test")),
        (b"http://evil.test:8587/", ("/", b"", b"evil.test:8587")),
        (b"https://[::1]:8587/a", ("/a", b"", b"[::1]:8587")),
    ],
    ids=lambda value: value.decode() if isinstance(value, bytes) else "",
)
def test_a_target_is_split(target: bytes, parts: tuple[str, bytes, bytes | None]) -> None:
    assert split_target(target) == parts


@pytest.mark.parametrize(
    "target", [b"", b"a", b"a:80", b"http://", b"http:///a", b"ftp://a/", b"http://user:secret@127.0.0.1/", b"?a"]
)
def test_what_is_no_target_is_refused_without_repeating_it(target: bytes) -> None:
    with pytest.raises(MalformedRequest) as refused:
        split_target(target)
    assert "secret" not in refused.value.detail


@pytest.mark.parametrize(
    ("connection", "kept"),
    [
        (b"Upgrade, HTTP2-Settings", b""),
        (b"upgrade", b""),
        (b"keep-alive, Upgrade", b"keep-alive"),
        (b"close", b"close"),
    ],
)
def test_an_offer_to_upgrade_is_taken_out_and_nothing_else(connection: bytes, kept: bytes) -> None:
    fields = [(b"host", b"a"), (b"connection", connection), (b"upgrade", b"h2c"), (b"http2-settings", b"AAM")]
    assert without_upgrade(fields) == [(b"host", b"a"), (b"connection", kept)]


@pytest.mark.parametrize("value", [b"a\r\nb: c", b"a\nb", b"a\rb", b"a\n\r"])
def test_a_value_never_ends_its_line(value: bytes) -> None:
    with pytest.raises(ValueError, match="line break"):
        lines_of([(b"a", value)])
