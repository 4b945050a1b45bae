"""/docs and /redoc without internet: the vendored viewers, under a policy that lets them reach only us."""

from __future__ import annotations

from functools import lru_cache
from pathlib import Path

from fastapi import APIRouter, Response

from app.api.edge import Answer
from app.api.problems import packaged
from app.api.routes import to_response
from app.mail.errors import NotFound

_FOLDER = Path(__file__).parent / "static"
_TYPES = {
    ".css": b"text/css; charset=utf-8",
    ".js": b"text/javascript; charset=utf-8",
    ".svg": b"image/svg+xml",
}
_DOCS_POLICY = (
    b"default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' data:; connect-src 'self'; "
    b"base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
)
# The two hashes: the empty style element that Redoc fills by script, and its scrollbars (static/VERSIONS.md).
_REDOC_POLICY = (
    b"default-src 'none'; script-src 'self'; "
    b"style-src 'self' 'sha256-47DEQpj8HBSa+/TImW+5JCeuQeRkm5NMpJWZG3hSuFU=' "
    b"'sha256-QMIg+bpjm3JdElJ388KYke01izlUW0UoNOeKjpMxdgc='; "
    b"img-src 'self'; connect-src 'self'; worker-src 'none'; "
    b"base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
)

router = APIRouter(include_in_schema=False)


@router.get("/docs")
async def docs() -> Response:
    return _page("docs.html", _DOCS_POLICY)


@router.get("/redoc")
async def redoc() -> Response:
    return _page("redoc.html", _REDOC_POLICY)


@router.get("/docs/static/{name}")
async def asset(name: str) -> Response:
    content_type = _TYPES.get(Path(name).suffix)
    if content_type is None or name not in _names():
        raise NotFound(f"There is no {name[:80]} here")
    body = packaged(_FOLDER / name)  # read each time: the viewers have megabytes
    return to_response(Answer(200, body, ((b"content-type", content_type), (b"cache-control", b"max-age=3600"))))


def prepare() -> None:
    """Read the folder."""
    _names()


def _page(name: str, policy: bytes) -> Response:
    body = packaged(_FOLDER / name)
    headers = ((b"content-type", b"text/html; charset=utf-8"), (b"content-security-policy", policy))
    return to_response(Answer(200, body, headers))


@lru_cache(maxsize=1)
def _names() -> frozenset[str]:
    return frozenset(path.name for path in _FOLDER.iterdir())
