"""Which bodies are taken: JSON in UTF-8, as it is."""

from __future__ import annotations

import re

from app.api.body import json_fault
from app.api.edge import Headers, once
from app.api.problems import UnsupportedMedia

_UTF_8 = ("", "utf-8", "utf8", "us-ascii", "ascii")
_CHARSET = re.compile(r"(?:utf|ucs|iso|latin|windows|cp\d|us-?ascii|ascii|koi8|shift|euc|gb\d|big5)[\w-]*\Z")
_OF_MIME = frozenset(["7bit", "8bit", "binary", "base64", "quoted-printable"])


def check_media_type(headers: Headers, body: bytes) -> None:
    """Hold a request to JSON.

    Raises:
        UnsupportedMedia: another type, and what to do about it.
        InvalidMessage: text/plain that is not JSON either: Typebot sends a broken body so.
    """
    raw = headers.get(b"content-type", b"")
    if raw == b"application/json" and b"content-encoding" not in headers:
        return
    _check_encoding(headers.get(b"content-encoding", b"").decode("latin-1").lower())
    whole = once(raw).decode("latin-1").lower()
    kind, _, parameters = whole.partition(";")
    kind = kind.strip()
    if kind == "text/plain":
        # Typebot sends a body that is not JSON as text/plain: say what is wrong with it, not with its type.
        fault = json_fault(body)
        if fault is not None:
            raise fault
    if "," in kind or ("," in parameters and '"' not in parameters):
        raise UnsupportedMedia(
            f"The header Content-Type is sent more than once, with different values ({whole[:80]}); send it once, "
            "Content-Type: application/json"
        )
    if kind != "application/json":
        was = f"it was {kind[:80]}" if kind else "there was none"
        raise UnsupportedMedia(f"Send the body as JSON, with the header Content-Type: application/json ({was})")
    said = dict(p.strip().partition("=")[::2] for p in parameters.split(";"))
    charset = said.get("charset", "").strip("\"'")
    if charset not in _UTF_8:
        raise UnsupportedMedia(f"Send the body in UTF-8, not {charset[:40]}")


def _check_encoding(value: str) -> None:
    """Refuse every coding but identity; an empty header is none (RFC 9110 §8.4)."""
    named = [coding.strip() for coding in value.split(",")]
    coding = next((coding for coding in named if coding not in ("", "identity")), "")[:40]
    if not coding:
        return
    cure = "leave the header Content-Encoding out"
    if coding == "chunked":
        raise UnsupportedMedia(f"Content-Encoding: chunked is a transfer coding, not a compression; {cure}")
    if coding in _OF_MIME:
        raise UnsupportedMedia(f"Content-Encoding: {coding} is an encoding of MIME, not a compression; {cure}")
    if coding.startswith(("application/", "text/")):
        raise UnsupportedMedia(f"Content-Encoding: {coding} is a media type; send it as Content-Type, and {cure}")
    if _CHARSET.match(coding):
        charset = "Content-Type: application/json; charset=utf-8"
        raise UnsupportedMedia(f"Content-Encoding: {coding} is a charset, not a compression; {cure}, or send {charset}")
    raise UnsupportedMedia(
        f"The body is compressed (Content-Encoding: {value.strip()[:40]}); send it uncompressed, and {cure}"
    )
