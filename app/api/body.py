"""What is posted: JSON in, `Draft` or `VerifyRequest` out; every fault with a pointer, what is wrong and what to do.

`""` and null equal absent for every optional field. Addresses are parsed once, here, and never again.
"""

from __future__ import annotations

import re
from codecs import BOM_UTF8
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from datetime import datetime
from itertools import islice
from pathlib import Path
from typing import Annotated, Any, Literal, TypeVar

from pydantic import BaseModel, ConfigDict, Field, PlainValidator, WithJsonSchema
from pydantic_core import from_json

from app.api.attachments import SCHEMA as ATTACHMENTS_SCHEMA
from app.api.calendar import EXAMPLE as CALENDAR_EXAMPLE
from app.api.calendar import SCHEMA as CALENDAR_SCHEMA
from app.api.fields import (
    KEY,
    LONGEST_EXPIRY,
    MAX_FAULTS,
    MAX_REPLY_TO,
    MAX_SUBJECT,
    MAX_TAGS,
    Files,
    read_addresses,
    read_attachments,
    read_calendar,
    read_expires_in,
    read_extra_fields,
    read_flag,
    read_idempotency_key,
    read_metadata,
    read_one_address,
    read_path,
    read_peer,
    read_reply_to,
    read_send_at,
    read_subject,
    read_tags,
    read_text,
    read_verdict,
    read_whose,
)
from app.api.large import LARGE
from app.api.reading import meant_by, not_json, read, unknown_in
from app.intake.accept import MAX_RECIPIENTS
from app.mail.address import Address
from app.mail.errors import Fault, InvalidMessage, TooLarge
from app.mail.message import Calendar, Draft

_MAILBOX_SCHEMA: dict[str, Any] = {
    "type": "object",
    "title": "Mailbox",
    "description": "one address and the name shown beside it",
    "properties": {
        "email": {"type": "string", "format": "email", "description": "one bare address"},
        "name": {"anyOf": [{"type": "string"}, {"type": "null"}], "description": "what is shown beside it"},
    },
    "required": ["email"],
    "additionalProperties": False,
}
# Named, and two arrays: openapi-generator makes an empty type of an anonymous union, and its Python client writes no
# array of unions. An array of both forms, or of nothing, is accepted all the same.
_ADDRESS_SCHEMA: dict[str, Any] = {
    "title": "Address",
    "description": "an address: a string such as `Ann <ann@example.org>`, or an object",
    "oneOf": [{"type": "string"}, _MAILBOX_SCHEMA],
    "examples": ["Bot <bot@example.org>", {"email": "bot@example.org", "name": "Bot"}],
}
_ADDRESSES_SCHEMA: dict[str, Any] = {
    "title": "Addresses",
    "description": "one or more addresses: a string (several separated by comma, semicolon or line break), an object "
    "or an array of either; `null`, an empty string and an empty array equal absent",
    "oneOf": [
        {"type": "string"},
        _MAILBOX_SCHEMA,
        {"type": "array", "items": {"type": "string"}, "minItems": 1},
        {"type": "array", "items": _MAILBOX_SCHEMA, "minItems": 1},
    ],
    "examples": ["ann@example.org", [{"email": "ann@example.org", "name": "Ann"}]],
}

_PEER_SCHEMA: dict[str, Any] = {"anyOf": [_ADDRESS_SCHEMA, {"type": "null"}]}


def _schema(schema: dict[str, Any], description: str) -> WithJsonSchema:
    if "title" in schema:  # it becomes a component, which has a description of its own
        return WithJsonSchema({"allOf": [schema], "description": description})
    return WithJsonSchema({**schema, "description": description})


_STRING = {"anyOf": [{"type": "string"}, {"type": "null"}]}
_Addresses = Annotated[tuple[Address, ...], PlainValidator(read_addresses)]


class SendRequest(BaseModel):
    """A message to send. At least one recipient, and at least one of text, html, calendar and attachments."""

    model_config = ConfigDict(extra="allow", title="SendRequest", json_schema_extra={"additionalProperties": False})

    to: Annotated[_Addresses, _schema(_ADDRESSES_SCHEMA, f"recipients; at most {MAX_RECIPIENTS} a message")] = ()
    cc: Annotated[_Addresses, _schema(_ADDRESSES_SCHEMA, "shown recipients of a copy")] = ()
    bcc: Annotated[_Addresses, _schema(_ADDRESSES_SCHEMA, "hidden recipients; never in the message")] = ()
    reply_to: Annotated[
        tuple[Address, ...],
        PlainValidator(read_reply_to),
        _schema(_ADDRESSES_SCHEMA, f"where replies go; at most {MAX_REPLY_TO} addresses"),
    ] = ()
    from_: Annotated[
        Address | None,
        PlainValidator(read_one_address),
        _schema(_ADDRESS_SCHEMA, "sender; default: the profile's, else default_from"),
    ] = Field(default=None, alias="from")
    subject: Annotated[str, PlainValidator(read_subject), _schema({**_STRING, "maxLength": MAX_SUBJECT}, "subject")] = (
        ""
    )
    text: Annotated[str | None, PlainValidator(read_text), _schema(_STRING, "the plain text body")] = None
    html: Annotated[str | None, PlainValidator(read_text), _schema(_STRING, "the HTML body")] = None
    calendar: Annotated[
        Calendar | None,
        PlainValidator(read_calendar),
        _schema(CALENDAR_SCHEMA, "an invitation: shown as one by mail programs, and attached as invite.ics"),
    ] = None
    headers: Annotated[
        tuple[tuple[str, str], ...],
        PlainValidator(read_extra_fields),
        _schema(
            {"anyOf": [{"type": "object", "additionalProperties": {"type": "string"}}, {"type": "null"}]},
            "extra header fields; structural ones (From, Date, MIME-*, Content-* …) are refused by name",
        ),
    ] = ()
    attachments: Annotated[
        Files,
        PlainValidator(read_attachments),
        _schema(ATTACHMENTS_SCHEMA, "files, their content in base64; nothing is fetched from elsewhere"),
    ] = Files()
    profile: Annotated[
        str | None, PlainValidator(read_text), _schema(_STRING, "which relay; default: default_profile")
    ] = None
    tags: Annotated[
        tuple[str, ...],
        PlainValidator(read_tags),
        _schema(
            {
                "anyOf": [
                    {"type": "array", "items": {"type": "string"}, "maxItems": MAX_TAGS},
                    {"type": "null"},
                ]
            },
            "your own labels",
        ),
    ] = ()
    metadata: Annotated[
        dict[str, str],
        PlainValidator(read_metadata),
        _schema(
            {"anyOf": [{"type": "object", "additionalProperties": {"type": "string"}}, {"type": "null"}]},
            "your own flat facts, 4 kB at most; given back, never sent",
        ),
    ] = {}
    expires_in: Annotated[
        float | None,
        PlainValidator(read_expires_in),
        _schema(
            {"anyOf": [{"type": "number", "minimum": 1, "maximum": LONGEST_EXPIRY}, {"type": "null"}]},
            "seconds after which it is better not sent at all, such as 600 for a code",
        ),
    ] = None
    send_at: Annotated[
        datetime | None,
        PlainValidator(read_send_at),
        _schema({"anyOf": [{"type": "string", "format": "date-time"}, {"type": "null"}]}, "not before this instant"),
    ] = None
    idempotency_key: Annotated[
        str | None,
        PlainValidator(read_idempotency_key),
        _schema(
            {"anyOf": [{"type": "string", "maxLength": 255}, {"type": "null"}]},
            "the same as the header Idempotency-Key, for callers that cannot set one",
        ),
    ] = None
    dry_run: Annotated[
        bool,
        PlainValidator(read_flag),
        _schema(
            {"anyOf": [{"type": "boolean"}, {"type": "null"}]}, "check and compose only; nothing is stored or sent"
        ),
    ] = False


@dataclass(frozen=True, slots=True)
class Asked:
    """What a body asks for. `key` is its idempotency_key, None where it has none."""

    draft: Draft
    key: str | None = None
    is_dry_run: bool = False


class VerifyRequest(BaseModel):
    """Whom a diagnosis asks the relay for."""

    model_config = ConfigDict(extra="allow", title="VerifyRequest", json_schema_extra={"additionalProperties": False})

    from_: Annotated[
        Address | None,
        PlainValidator(read_peer),
        _schema(_PEER_SCHEMA, "whom MAIL names; default: the profile's sender"),
    ] = Field(default=None, alias="from")
    to: Annotated[
        Address | None,
        PlainValidator(read_peer),
        _schema(_PEER_SCHEMA, "whom RCPT names; default: the sender"),
    ] = None


MOST_INLINE = 100  # addresses; one with a non-ASCII domain takes some 100 µs
MAX_SMALL = 64 * 1024  # bytes of the body of an act


def is_heavy(body: bytes) -> bool:
    """Return whether `asked_of()` may take longer than the event loop should wait."""
    return len(body) > LARGE or body.count(b"@") + body.count(b"\\u0040") > MOST_INLINE


def asked_of(body: bytes, *, lenient: bool) -> Asked:
    """Read a body. `lenient` lists unknown fields in the warnings where they would be refused.

    Raises:
        InvalidMessage: not JSON, or a fault for every field that is wrong.
    """
    said = read(SendRequest, body, unknown_are_faults=not lenient)
    warnings: tuple[str, ...] = ()
    if said.model_extra:
        unknown = unknown_in(
            SendRequest, said.model_extra, list_known=len(said.model_fields_set) > len(said.model_extra)
        )
        if not lenient:
            missing = _missing(said, said.model_extra)
            detail = "; ".join(fault.detail for fault in missing)
            raise InvalidMessage.of([*unknown[: MAX_FAULTS - len(missing)], *missing], detail=detail)
        warnings = tuple(fault.detail for fault in unknown)
        if more := len(said.model_extra) - len(unknown):
            warnings += (f"{more} more fields are not known here",)
    draft = Draft(
        to=said.to,
        cc=said.cc,
        bcc=said.bcc,
        reply_to=said.reply_to,
        sender=said.from_,
        subject=said.subject,
        text=said.text,
        html=said.html,
        calendar=said.calendar,
        headers=said.headers,
        attachments=said.attachments.attachments,
        profile=said.profile,
        tags=said.tags,
        metadata=said.metadata,
        send_at=said.send_at,
        expires_in=said.expires_in,
        warnings=warnings + said.attachments.warnings,
    )
    return Asked(draft, said.idempotency_key, said.dry_run)


def _missing(said: SendRequest, unknown: Iterable[str]) -> list[Fault]:
    """Ask for what a message needs and the body lacks, unless an unknown field is probably meant for it."""
    meant = {field for name in islice(unknown, MAX_FAULTS) for field in meant_by(name, _FIELDS)}
    faults = []
    if not (said.to or said.cc or said.bcc or meant & {"to", "cc", "bcc"}):
        faults.append(Fault("/to", "a recipient is missing: give at least one address in to, cc or bcc"))
    if not (said.text or said.html or said.calendar or said.attachments.attachments or meant & _CONTENT):
        faults.append(Fault("/text", "the content is missing: text or html?"))
    return faults


_CONTENT = {"text", "html", "calendar", "attachments"}
_FIELDS = [field.alias or name for name, field in SendRequest.model_fields.items()]


def key_of(values: Iterable[bytes], in_body: str | None) -> str | None:
    """Return the idempotency key, from the header (quoted or bare) or the body; None where there is none.

    `values` are those of each header line; equal ones are one.

    Raises:
        InvalidMessage: two that differ, or what is in the header is no key.
    """
    keys = {key for value in values if (key := _unquoted(value))}
    if not keys:
        return in_body
    if len(keys) > 1:
        detail = f"the header Idempotency-Key is sent {len(keys)} times with different values; send it once"
        raise InvalidMessage.of([Fault("", detail)])
    (key,) = keys
    if not KEY.match(key):
        raise InvalidMessage.of([Fault("", "the header Idempotency-Key is 1 to 255 printable ASCII characters")])
    if in_body is not None and in_body != key:
        detail = "idempotency_key and the header Idempotency-Key differ; send one of them, or the same in both"
        raise InvalidMessage.of([Fault("/idempotency_key", detail)])
    return key


def _unquoted(value: bytes) -> str:
    said = value.decode("latin-1").strip()
    quoted = len(said) >= 2 and said[0] == said[-1] == '"'
    return re.sub(r"\\(.)", r"\1", said[1:-1]) if quoted else said  # RFC 9651 §3.3.3


class Resolution(BaseModel):
    """What became of a message in doubt, as somebody found out."""

    model_config = ConfigDict(extra="allow", title="Resolution", json_schema_extra={"additionalProperties": False})

    as_: Annotated[
        Literal["sent", "failed"],
        PlainValidator(read_verdict),
        _schema({"type": "string", "enum": ["sent", "failed"]}, "what the relay's log says"),
    ] = Field(alias="as")


class EraseRequest(BaseModel):
    """Who is to be forgotten."""

    model_config = ConfigDict(extra="allow", title="EraseRequest", json_schema_extra={"additionalProperties": False})

    address: Annotated[
        Address,
        PlainValidator(read_whose),
        _schema({"type": "string", "format": "email"}, "one bare address; its local part as it was written"),
    ]


class BackupRequest(BaseModel):
    """Where the backup goes."""

    model_config = ConfigDict(extra="allow")

    file: Annotated[Path, PlainValidator(read_path)]


_Small = TypeVar("_Small", VerifyRequest, Resolution, EraseRequest, BackupRequest)


def small_of(model: type[_Small], body: bytes) -> _Small:
    """Read the small body of an act.

    Raises:
        InvalidMessage: not JSON, or a fault for every field that is wrong.
        TooLarge: it has more than `MAX_SMALL` bytes.
    """
    if len(body) > MAX_SMALL:
        raise TooLarge(f"The body has {len(body)} bytes; this request takes at most {MAX_SMALL}")
    said = read(model, body)
    if said.model_extra:
        raise InvalidMessage.of(unknown_in(model, said.model_extra))
    return said


def json_fault(body: bytes) -> InvalidMessage | None:
    """Return where the body stops being JSON; None where it does not, or where it is too large to be looked through."""
    try:
        if len(body) <= LARGE:
            from_json(body.removeprefix(BOM_UTF8))
    except ValueError as error:
        return InvalidMessage.of([Fault("", not_json(body, str(error)))])
    return None


def examples() -> Mapping[str, Mapping[str, Any]]:
    """The bodies that the documentation shows, the smallest first; they work in the sandbox as they stand."""
    bot = {
        "from": "Bot <bot@example.org>",
        "to": "Ann <ann@example.org>, bob@example.org",
        "subject": "Your code",
        "text": "It is 4711, for ten minutes.",
        "html": "<p>It is <b>4711</b>, for ten minutes.</p>",
        "expires_in": 600,
        "tags": ["code"],
        "metadata": {"conversation": "c-17"},
        "idempotency_key": "c-17-code",
    }
    attachment = {
        "from": {"email": "shop@example.org", "name": "Shop"},
        "to": [{"email": "ann@example.org", "name": "Ann"}],
        "reply_to": "help@example.org",
        "subject": "Your invoice",
        "html": '<img src="cid:logo" alt="Shop"><p>The invoice is attached.</p>',
        "attachments": [
            {"filename": "invoice.txt", "content": "SW52b2ljZSA0NzExDQo="},
            {
                "filename": "logo.gif",
                "content": "R0lGODlhAQABAIAAAAAAAP///ywAAAAAAQABAAACAUwAOw==",
                "content_id": "logo",
            },
        ],
    }
    invitation = {
        "from": "Ann <ann@example.org>",
        "to": "bob@example.org",
        "subject": "Lunch",
        "text": "On Thursday at noon?",
        "calendar": CALENDAR_EXAMPLE,
    }
    return {
        "smallest": {"summary": "The smallest", "value": dict(example())},
        "bot": {"summary": "A bot's: late or never, and never twice", "value": bot},
        "attachment": {"summary": "With a file and an image in the text", "value": attachment},
        "invitation": {"summary": "An invitation", "value": invitation},
        "dry_run": {"summary": "Checked and composed only", "value": {**example(), "dry_run": True}},
    }


def example() -> Mapping[str, Any]:
    """The body that the start-up text shows too."""
    return {
        "from": "Bot <bot@example.org>",
        "to": "ann@example.org",
        "subject": "Your order 4711",
        "text": "It is on its way.",
    }
