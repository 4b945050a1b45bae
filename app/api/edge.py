"""What every route shares: who is calling, how errors and answers look on the wire, and the outer middleware.

Plain functions on scope, headers and body; FastAPI's routes are thin wrappers of them, and the hot route calls
them without FastAPI. RFC 9457 (problem details), RFC 7240 (Prefer).

The rule for callers: 2xx = we have it, never send it again; 4xx = change something; 5xx = we do not have it, send it
again; no answer = unknown: repeat with the same Idempotency-Key. Never used: 400, 408, 500 (Typebot invents them), 502,
504 (proxies do).
"""

from __future__ import annotations

import asyncio
import re
import secrets
from base64 import b64decode
from collections.abc import Awaitable, Callable, Iterable, Mapping, MutableMapping
from contextlib import suppress
from dataclasses import dataclass
from functools import lru_cache
from io import BytesIO
from math import ceil
from time import perf_counter
from typing import Any, TypeAlias

import structlog
from pydantic_core import to_json

from app.api.answers import flat
from app.api.problems import DOORS, MethodNotAllowed
from app.intake.callers import Visit
from app.intake.in_flight import BytesInFlight, Hold
from app.intake.refused import RefusedCallers
from app.mail.errors import (
    Fault,
    MailError,
    NoRoom,
    NotFound,
    Overloaded,
    RateLimited,
    Refused,
    TooLarge,
)
from app.mail.message import Snapshot
from app.mail.outcome import MessageState
from app.runtime import Runtime
from app.telemetry import REQUEST_ID, Metrics

Scope: TypeAlias = MutableMapping[str, Any]
Event: TypeAlias = MutableMapping[str, Any]
Receive: TypeAlias = Callable[[], Awaitable[Event]]
Send: TypeAlias = Callable[[Event], Awaitable[None]]
App: TypeAlias = Callable[[Scope, Receive, Send], Awaitable[None]]
Headers: TypeAlias = Mapping[bytes, bytes]

JSON = (b"content-type", b"application/json")
RETRY_AFTER_STORE = b"5"
RETRY_AFTER_OVERLOAD = b"2"
RETRY_AFTER_NO_ROOM = b"30"  # an operator makes room, or a queue shrinks: neither is done in a moment

log = structlog.get_logger()


@dataclass(frozen=True, slots=True)
class Answer:
    """A whole response."""

    status: int
    body: bytes
    headers: tuple[tuple[bytes, bytes], ...] = (JSON,)


# --- what a request says -----------------------------------------------------------------------------------


def headers_of(scope: Scope) -> Headers:
    """Return the headers by lower-case name; two that differ are joined by a comma (RFC 9110 §5.3)."""
    known: Headers | None = scope.get("mailchute.headers")
    if known is not None:
        return known
    headers: dict[bytes, bytes] = {}
    for name, value in scope["headers"]:
        known_value = headers.get(name)
        if known_value is None:
            headers[name] = value
        elif known_value != value:
            headers[name] = known_value + b", " + value
    return headers


def values_of(scope: Scope, name: bytes) -> list[bytes]:
    """Return the value of each header line with this lower-case name."""
    return [value for known, value in scope["headers"] if known == name]


def once(value: bytes) -> bytes:
    """Return `x` for `x, x`: a header that was set twice, and joined on its way (`Headers.append()` of fetch)."""
    first, comma, rest = value.partition(b",")
    return first.strip() if comma and all(part.strip() == first.strip() for part in rest.split(b",")) else value


def hold_of(scope: Scope) -> Hold:
    """Return what the request holds of the bytes in flight; the Gate gives it back when the answer has been read."""
    hold: Hold = scope["mailchute.hold"]
    return hold


def began_at(scope: Scope) -> float:
    """Give the loop's time of the request's first byte; now, where no Gate stands in front."""
    began: float = scope.get("mailchute.began") or asyncio.get_running_loop().time()
    return began


# Header fields by which proxies, balancers and CDNs tell for whom they ask: Forwarded (RFC 7239), Via (RFC 9110 §7.6.3)
# and their many older kin, such as X-Real-IP, True-Client-IP, WL-Proxy-Client-IP, X-ProxyUser-Ip, X-Remote-Addr.
_FORWARDING = re.compile(
    rb"(?:forwarded|via|max-forwards|x-host)\Z"
    rb"|(?:x-forwarded|x-original-|x-envoy-|x-azure-|x-amzn-|x-amz-cf-|x-arr-|x-cloud-trace|x-sucuri-|x-vercel-|x-nf-"
    rb"|cf-|cdn-|cloudfront-|fastly-|akamai-|fly-|do-|ali-)"
    rb"|.*(?:client|connecting|real|remote|user|source|origin|originating|peer|visitor)[-_]?(?:ip|addr|address)\Z"
)
_LONGEST_NAME = 64  # bytes of a header's name that are looked at


def is_operator_socket(scope: Scope) -> bool:
    """Whether a request came through the operator socket, which has a path and no port (ASGI)."""
    server = scope.get("server")
    return server is not None and server[1] is None


def visit_of(scope: Scope, headers: Headers) -> Visit:
    """Gather what says who is calling. The operator socket is known by its path in place of a port."""
    client = scope.get("client")
    if is_operator_socket(scope):
        return Visit(peer=None)
    return Visit(
        peer=client[0] if client else "",
        host=headers.get(b"host", b"").decode("latin-1"),
        origin=_text(headers.get(b"origin")),
        fetch_site=_text(headers.get(b"sec-fetch-site")),
        credentials=_credentials(headers),
        forwarded=scope.get("http_version") == "1.0" or any(_is_forwarding(name[:_LONGEST_NAME]) for name in headers),
    )


def _credentials(headers: Headers) -> tuple[bytes, ...]:
    """Return every key that a request presents: as Bearer, as the password of Basic (RFC 7617), as X-API-Key."""
    found = []
    scheme, _, value = headers.get(b"authorization", b"").strip().partition(b" ")
    match scheme.lower():
        case b"bearer":
            found.append(value.strip())
        case b"basic":
            with suppress(ValueError):  # no base64
                found.append(b64decode(value.strip(), validate=True).partition(b":")[2].strip())
    if (key := headers.get(b"x-api-key")) is not None:
        found.append(key.strip())
    return tuple(filter(None, found))


@lru_cache(maxsize=256)
def _is_forwarding(name: bytes) -> bool:
    return _FORWARDING.match(name) is not None


def _text(value: bytes | None) -> str | None:
    return None if value is None else value.decode("latin-1")


@dataclass(frozen=True, slots=True)
class Preference:
    """What `Prefer` asks for. `wait` in seconds, None = not said."""

    wait: float | None = None
    respond_async: bool = False
    lenient: bool = False

    def seconds(self, default: float) -> float:
        """How long the answer may be held."""
        return 0.0 if self.respond_async else default if self.wait is None else self.wait

    @property
    def applied(self) -> str:
        """What `Preference-Applied` says (RFC 7240 §3)."""
        waited = f"wait={self.wait:g}" if self.wait is not None else ""
        said = ("respond-async" if self.respond_async else waited, "handling=lenient" if self.lenient else "")
        return ", ".join(filter(None, said))


MAX_WAIT = 30.0
# A preference, its value, and its parameters, which are not read; quoted strings may hold anything (RFC 7240 §2).
# Possessive throughout, and matched one behind the other: linear in whatever was sent.
_PREFERENCE = re.compile(
    r'[\s,]*+([^\s=;,"]++)(?:\s*+=\s*+(?:"((?:[^"\\]|\\.)*+)"|([^\s;,"]*+)))?+(?:[^,"]|"(?:[^"\\]|\\.)*+")*+(?:,|\Z)'
)


def preference_of(headers: Headers) -> Preference:
    """Read `Prefer` (RFC 7240); what is not known in it is ignored, and of two the first counts, as the RFC asks."""
    raw = headers.get(b"prefer")
    if raw is None:
        return _NO_PREFERENCE
    said: dict[str, str] = {}
    text, at = raw.decode("latin-1"), 0
    while found := _PREFERENCE.match(text, at):
        said.setdefault(found[1].lower(), found[2] or found[3] or "")
        at = found.end()
    wait = said.get("wait", "")
    return Preference(
        wait=min(float(wait), MAX_WAIT) if wait.isascii() and wait.isdigit() else None,
        respond_async=said.get("respond-async") == "",
        lenient=said.get("handling", "").lower() == "lenient",
    )


_NO_PREFERENCE = Preference()


# --- answers -----------------------------------------------------------------------------------------------

_TITLES: Mapping[MessageState, str] = {MessageState.FAILED: "The message was not sent"}
_STATUS_OF_POST: Mapping[MessageState, int] = {
    MessageState.SENT: 200,
    MessageState.PARTIAL: 200,
    MessageState.CANCELLED: 200,
    MessageState.QUEUED: 202,
    MessageState.SCHEDULED: 202,
    MessageState.SENDING: 202,
    MessageState.DEFERRED: 202,
    MessageState.IN_DOUBT: 202,
    MessageState.FAILED: 424,
}


def relative(path: str, to: str) -> str:
    """Refer to `to` from a page at `path`, both absolute, so that it holds behind any prefix (RFC 3986 §4.2)."""
    return "../" * (path.count("/") - 1) + to.removeprefix("/")


def answer_to_post(
    snapshot: Snapshot, runtime: Runtime, scope: Scope, *, applied: str = "", is_replay: bool = False
) -> Answer:
    """Answer an act on a message: the status says whether we have it, `ok` whether all is well."""
    headers = headers_of(scope)
    status = _STATUS_OF_POST[snapshot.state]
    shape = flat(snapshot)
    extra: list[tuple[bytes, bytes]] = []
    content_type = JSON
    if snapshot.state is MessageState.QUEUED and snapshot.profile in runtime.profiles:
        paused_at = runtime.worker.standing(snapshot.profile).paused_at
        if paused_at is not None:
            waits = f"the profile {snapshot.profile} is paused: the message waits until somebody resumes it"
            shape["warnings"] = [*shape["warnings"], waits]
    if status == 202:
        extra.append((b"location", relative(scope["path"], f"/messages/{snapshot.id}").encode()))
    if snapshot.state is MessageState.DEFERRED and snapshot.next_attempt_at is not None:
        seconds = (snapshot.next_attempt_at - runtime.now()).total_seconds()
        extra.append((b"retry-after", str(max(1, round(seconds))).encode()))
    if status == 424:
        content_type = _problem_type(headers)
        shape = {
            "type": f"/errors/{shape['error_code']}",
            "title": _TITLES[snapshot.state],
            "status": status,
            "detail": shape["message"],
            **shape,
        }
    if applied:
        extra.append((b"preference-applied", applied.encode()))
    if is_replay:
        extra.append((b"idempotent-replayed", b"true"))
    return Answer(status, to_json(shape), (content_type, *extra))


def answer_json(shape: Any, *, status: int = 200, content_type: bytes = b"application/json") -> Answer:
    """Answer with any JSON value."""
    return Answer(status, to_json(shape), ((b"content-type", content_type),))


def answer_to(error: MailError, headers: Headers) -> Answer:
    """Answer a refusal at the door: nothing was taken."""
    door = next(door for door in DOORS if isinstance(error, door.kind))
    status = door.status
    detail = error.detail if isinstance(error, Refused) else door.title
    faults = (error.faults if isinstance(error, Refused) else ()) or (Fault("", detail),)
    shape = {
        "type": f"/errors/{door.code}",
        "title": door.title,
        "status": status,
        "detail": detail,
        "ok": False,
        "errors": [{"detail": fault.detail, "pointer": fault.pointer} for fault in faults],
    }
    extra: list[tuple[bytes, bytes]] = []
    if status == 401:
        extra.append((b"www-authenticate", b'Bearer realm="mailchute"'))
        if b"text/html" in headers.get(b"accept", b""):  # a browser asks for a name and a password, and only then
            extra.append((b"www-authenticate", b'Basic realm="Mailchute: any name, the API key as password"'))
    if status == 503:
        extra.append((b"retry-after", _retry_after(error)))
    if isinstance(error, RateLimited):
        extra.append((b"retry-after", str(max(1, ceil(error.retry_after))).encode()))
    if isinstance(error, MethodNotAllowed):
        extra.append((b"allow", error.allow.encode()))
    return Answer(status, to_json(shape), (_problem_type(headers), *extra))


def _retry_after(error: MailError) -> bytes:
    match error:
        case NoRoom():
            return RETRY_AFTER_NO_ROOM
        case Overloaded():
            return RETRY_AFTER_OVERLOAD
        case _:
            return RETRY_AFTER_STORE


def _problem_type(headers: Headers) -> tuple[bytes, bytes]:
    named = {kind.partition(b";")[0].strip().lower() for kind in headers.get(b"accept", b"").split(b",")}
    if b"application/json" in named and b"application/problem+json" not in named:
        return JSON  # n8n shows a body only where its type is plain JSON
    return (b"content-type", b"application/problem+json")


async def send_answer(answer: Answer, send: Send) -> None:
    """Write a whole response."""
    headers = [*answer.headers, (b"content-length", str(len(answer.body)).encode())]
    await send({"type": "http.response.start", "status": answer.status, "headers": headers})
    await send({"type": "http.response.body", "body": answer.body})


async def body_of(receive: Receive) -> bytes:
    """Collect the body; the outer middleware bounds its size and its time."""
    event = await receive()
    body: bytes = event.get("body", b"")
    if not event.get("more_body"):
        return body
    whole = BytesIO()  # grows in place, and gives its buffer away: a large body is held once
    whole.write(body)
    while event.get("more_body"):
        event = await receive()
        whole.write(event.get("body", b""))
    return whole.getvalue()


# --- the outer middleware ----------------------------------------------------------------------------------

_SECURITY = (
    (b"x-content-type-options", b"nosniff"),
    (b"referrer-policy", b"no-referrer"),
    (b"cache-control", b"no-store"),
)
_CLOSED_POLICY = (b"content-security-policy", b"default-src 'none'; frame-ancestors 'none'")
_REQUEST_ID = re.compile(rb"[A-Za-z0-9._:-]{1,128}\Z")


class Gate:
    """Outside of everything: request id, security headers, the body's bounds, and the time it took.

    `max_body` in bytes. A body over it is refused, before it is read where its length is announced and while it
    arrives where not; so is one for which `in_flight` has no room.
    """

    def __init__(
        self, inner: App, *, max_body: int, in_flight: BytesInFlight, metrics: Metrics, base_path: str = ""
    ) -> None:
        self._inner = inner
        self._base_path = base_path  # below which everything is served, such as /mail
        self._max_body = max_body
        self._in_flight = in_flight
        self._metrics = metrics
        self._refused = RefusedCallers()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._inner(scope, receive, send)
            return
        if scope["method"] == "HEAD":
            # RFC 9110 §9.3.2: as GET without the body, which the server keeps back: its own scope says HEAD.
            scope = {**scope, "method": "GET"}
        began = perf_counter()
        headers = scope["mailchute.headers"] = headers_of(scope)
        scope["mailchute.began"] = asyncio.get_running_loop().time()
        hold = scope["mailchute.hold"] = self._in_flight.hold()
        given = headers.get(b"x-request-id", b"")
        request_id = given if _REQUEST_ID.match(given) else secrets.token_hex(8).encode()
        status = 0
        of_request = REQUEST_ID.set(request_id.decode())

        async def answer(event: Event) -> None:
            nonlocal status
            if event["type"] == "http.response.start":
                status = event["status"]
                if status == 401:
                    self._tell_of_refusal(scope, headers)
                event["headers"] = self._complete(event.get("headers", ()), request_id)
            await send(event)

        try:
            if self._base_path and not is_operator_socket(scope):
                scope["path"] = self._below_base(scope["path"])
            await self._inner(scope, self._bounded(receive, headers, hold), answer)
        except MailError as error:
            if status:
                raise
            await send_answer(answer_to(error, headers), answer)
        except Exception:
            log.exception("http.unexpected", path=scope["path"])
            if not status:
                await send_answer(answer_to(MailError(), headers), answer)
        finally:
            hold.release()
            REQUEST_ID.reset(of_request)
            route = scope.get("route")
            label = scope.get("mailchute.route") or getattr(route, "path", "other")
            self._metrics.http_request(label, str(status)).observe(perf_counter() - began)

    def _tell_of_refusal(self, scope: Scope, headers: Headers) -> None:
        peer = (scope.get("client") or ("",))[0]
        times = self._refused.note(peer, asyncio.get_running_loop().time())
        if times is not None:
            key = "wrong" if _credentials(headers) else "missing"
            log.warning("http.unauthenticated", peer=peer, path=scope["path"][:80], key=key, times=times)

    def _below_base(self, path: str) -> str:
        below = path.removeprefix(self._base_path)
        if below == path or not below.startswith("/"):
            raise NotFound(f"There is nothing at {path[:80]}; everything is below {self._base_path}/")
        return below

    def _complete(self, headers: Iterable[tuple[bytes, bytes]], request_id: bytes) -> list[tuple[bytes, bytes]]:
        whole = [*headers, (b"x-request-id", request_id)]
        names = {name for name, _ in whole}
        whole.extend(header for header in (*_SECURITY, _CLOSED_POLICY) if header[0] not in names)
        return whole

    def _bounded(self, receive: Receive, headers: Headers, hold: Hold) -> Receive:
        limit = self._max_body
        length = headers.get(b"content-length", b"")
        announced = int(length) if length.isdigit() else 0
        taken = 0
        is_whole = False

        async def bounded() -> Event:
            nonlocal taken, is_whole
            if is_whole:
                return await receive()  # nothing more comes but the disconnect
            if announced > limit:
                raise TooLarge(f"The body has {announced} bytes; at most {limit} are taken")
            hold.grow_to(max(announced, taken))
            event = await receive()
            is_whole = not event.get("more_body")
            taken += len(event.get("body", b""))
            if taken > limit:
                raise TooLarge(f"The body has more than {limit} bytes; at most {limit} are taken")
            hold.grow_to(max(announced, taken))
            return event

        return bounded
