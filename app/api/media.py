"""Which bodies are taken: JSON in UTF-8, as it is."""

from __future__ import annotations

from app.api.body import json_fault
from app.api.edge import Headers
from app.api.problems import UnsupportedMedia


def check_media_type(headers: Headers, body: bytes) -> None:
    """Hold a request to JSON.

    Raises:
        UnsupportedMedia: another type, and what to do about it.
        InvalidMessage: text/plain that is not JSON either: Typebot sends a broken body so.
    """
    raw = headers.get(b"content-type", b"")
    if raw == b"application/json" and b"content-encoding" not in headers:
        return
    kind, _, parameters = raw.decode("latin-1").lower().partition(";")
    encoding = headers.get(b"content-encoding", b"identity").decode("latin-1").strip().lower()
    if encoding != "identity":
        raise UnsupportedMedia(f"The body is compressed ({encoding[:40]}); send it as it is")
    kind = kind.strip()
    if kind == "text/plain":
        # Typebot sends a body that is not JSON as text/plain: say what is wrong with it, not with its type.
        fault = json_fault(body)
        if fault is not None:
            raise fault
    if kind != "application/json":
        was = f"it was {kind[:80]}" if kind else "there was none"
        raise UnsupportedMedia(f"Send the body as JSON, with the header Content-Type: application/json ({was})")
    said = dict(p.strip().partition("=")[::2] for p in parameters.split(";"))
    charset = said.get("charset", "").strip('"')
    if charset not in ("", "utf-8", "utf8", "us-ascii"):
        raise UnsupportedMedia(f"Send the body in UTF-8, not {charset[:40]}")
