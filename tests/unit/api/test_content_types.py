"""A file's type follows its name's ending; what is compressed is not what is in it."""

from __future__ import annotations

import pytest

from app.api.attachments import _TYPE as WRITTEN
from app.api.content_types import _TYPES, DEFAULT, type_of

WORD = "application/vnd.openxmlformats-officedocument.wordprocessingml.document"


@pytest.mark.parametrize(
    ("filename", "content_type"),
    [
        ("report.csv", "text/csv"),
        ("report.CSV", "text/csv"),
        ("report.csv.gz", "application/gzip"),
        ("report.tar.gz", "application/gzip"),
        ("report.tgz", "application/gzip"),
        ("report.csv.bz2", "application/x-bzip2"),
        ("report.csv.xz", "application/x-xz"),
        ("report.csv.zst", "application/zstd"),
        ("report.csv.br", "application/x-brotli"),
        ("report.csv.Z", "application/x-compress"),
        ("drawing.svgz", "application/gzip"),
        ("a.docx", WORD),
        ("a.DOCX", WORD),
        ("a.xlsx", "application/vnd.openxmlformats-officedocument.spreadsheetml.sheet"),
        ("a.pptx", "application/vnd.openxmlformats-officedocument.presentationml.presentation"),
        ("a.odt", "application/vnd.oasis.opendocument.text"),
        ("a.ods", "application/vnd.oasis.opendocument.spreadsheet"),
        ("a.odp", "application/vnd.oasis.opendocument.presentation"),
        ("a.ics", "text/calendar"),
        ("a.vcf", "text/vcard"),
        ("a.md", "text/markdown"),
        ("a.log", "text/plain"),
        ("a.yaml", "application/yaml"),
        ("a.sql", "application/sql"),
        ("a.epub", "application/epub+zip"),
        ("a.webp", "image/webp"),
        ("a.avif", "image/avif"),
        ("a.heic", "image/heic"),
        ("a.7z", "application/x-7z-compressed"),
        ("a.rar", "application/vnd.rar"),
        ("a.msg", "application/vnd.ms-outlook"),
        ("a.apk", "application/vnd.android.package-archive"),
        ("a.eml", "message/rfc822"),
        ("a.mht", "message/rfc822"),
        ("a.pdf", "application/pdf"),
        ("a.jpg", "image/jpeg"),
        ("a.tar.pdf", "application/pdf"),
        ("invoice", DEFAULT),
        ("csv", DEFAULT),
        (".csv", DEFAULT),
        ("..csv", DEFAULT),
        ("a.", DEFAULT),
        ("a.unknown", DEFAULT),
        ("data:,a.pdf", "application/pdf"),
        ("a.pdf ", "application/pdf"),
        ("", DEFAULT),
    ],
)
def test_the_ending_says_the_type(filename: str, content_type: str) -> None:
    assert type_of(filename) == content_type


def test_every_type_is_one_that_a_caller_could_write() -> None:
    assert all(WRITTEN.match(content_type) for content_type in _TYPES.values())
    assert all(ending == ending.lower() for ending in _TYPES)
