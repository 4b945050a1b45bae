"""Refusals at the door: every kind, its HTTP status, and the problem that says so. RFC 9457.

The only place that knows HTTP statuses, beside those of a message's state (`edge.answer_to_post`).
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import structlog
from pydantic import BaseModel, Field

from app.mail.errors import (
    Conflict,
    Forbidden,
    InvalidMessage,
    KeyReused,
    MailError,
    NoRoom,
    NotFound,
    Overloaded,
    RateLimited,
    Refused,
    StoreUnavailable,
    TooLarge,
    Unauthenticated,
)

log = structlog.get_logger()


class MalformedRequest(Refused):
    """It is not HTTP/1.1, or its framing is ambiguous."""


class HeadTooLarge(Refused):
    """The request's head has too many bytes or fields."""


class UnsupportedMedia(Refused):
    """The body is of a type or in a coding that is not supported."""


class MethodNotAllowed(Refused):
    """The path is known, the method is not; `allow` lists what is."""

    def __init__(self, detail: str, allow: str) -> None:
        super().__init__(detail)
        self.allow = allow


class ProblemError(BaseModel):
    """One fault of a request."""

    detail: str = Field(description="the value's fault and the cure")
    pointer: str = Field(description="JSON pointer into the body")


class Problem(BaseModel):
    """RFC 9457. A refusal at the door: nothing was taken."""

    type: str = Field(description="/errors/{code}")
    title: str
    status: int
    detail: str
    ok: bool = False
    errors: list[ProblemError]


@dataclass(frozen=True, slots=True)
class Door:
    """A refusal of a request: its status, and the name and title of its problem."""

    kind: type[MailError]
    status: int
    code: str
    title: str
    cure: str


DOORS = (
    Door(
        InvalidMessage,
        422,
        "invalid-message",
        "The message cannot be taken as it is",
        "Change what `errors` points at; its detail says how.",
    ),
    Door(
        KeyReused,
        422,
        "key-reused",
        "The idempotency key stands for another message",
        "Use a new key for a new message; the same key only to send the very same body again.",
    ),
    Door(
        UnsupportedMedia,
        415,
        "unsupported-media-type",
        "The body is of a type that is not taken",
        "Send JSON, uncompressed, with Content-Type: application/json.",
    ),
    Door(
        Conflict,
        409,
        "conflict",
        "The message's state forbids that",
        "Look at the message's state first; what is sent, or just being sent, cannot be taken back.",
    ),
    Door(
        MalformedRequest,
        400,
        "malformed-request",
        "Malformed HTTP request",
        "Speak HTTP/1.1 with one Host, and one Content-Length or Transfer-Encoding: chunked.",
    ),
    Door(
        HeadTooLarge,
        431,
        "head-too-large",
        "Request header fields too large",
        "Send at most 100 header fields and 64 kB of them; what is large belongs into the body.",
    ),
    Door(TooLarge, 413, "too-large", "The message is too large", "Send less, or raise max_message_bytes."),
    Door(
        Unauthenticated,
        401,
        "unauthenticated",
        "Who is calling is not known",
        "Send the key as Authorization: Bearer …; without a key only this machine is served.",
    ),
    Door(Forbidden, 403, "forbidden", "This caller may not do that", "Use a key that may."),
    Door(NotFound, 404, "not-found", "There is no such thing here", "Check the path and the id."),
    Door(
        MethodNotAllowed,
        405,
        "method-not-allowed",
        "This path does not take that method",
        "Use a method that the header Allow names.",
    ),
    Door(
        RateLimited,
        429,
        "rate-limited",
        "This was done too often",
        "Wait as many seconds as the header Retry-After says.",
    ),
    Door(
        NoRoom,
        503,
        "no-room",
        "There is no room for another message; nothing was taken",
        "Send it again later. Whoever runs the service finds in `detail` and /health what is full, and what cures it.",
    ),
    Door(
        Overloaded,
        503,
        "overloaded",
        "Too much arrives at once; nothing was taken",
        "Send it again after as many seconds as Retry-After says. If it happens often, raise max_in_flight_bytes and "
        "the memory limit with it, or send large mail one after the other.",
    ),
    Door(
        StoreUnavailable,
        503,
        "store-unavailable",
        "The store cannot take the message now; nothing was taken",
        "Send it again a little later; /health says what hinders the store.",
    ),
    Door(
        MailError,
        503,
        "unavailable",
        "Something unforeseen happened; nothing was taken",
        "Send it again a little later; the log has the request's X-Request-Id and what happened.",
    ),
)


def packaged(path: Path) -> bytes:
    """Read a file of the package.

    Raises:
        MailError: not now, as for want of a descriptor.
    """
    try:
        return path.read_bytes()
    except OSError as error:
        log.error("http.file_unreadable", file=path.name, error=str(error))
        raise MailError from error
