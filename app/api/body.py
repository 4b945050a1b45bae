"""What is posted: JSON in, `Draft` or `VerifyRequest` out; every fault with a pointer, what is wrong and what to do.

`""` and null equal absent for every optional field. Addresses are parsed once, here, and never again.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from difflib import get_close_matches
from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, Field, PlainValidator, ValidationError, WithJsonSchema
from pydantic_core import PydanticCustomError

from app.mail.address import CONTROL, Address, InvalidAddress, mailbox, parse_address, split_addresses
from app.mail.errors import Fault, InvalidMessage
from app.mail.message import Draft

MAX_TAGS = 10
MAX_TAG = 100  # characters
MAX_METADATA = 4096  # bytes, keys and values together
MAX_SUBJECT = 2000  # characters; RFC 5322 has no bound, mailbox programs do
MAX_FIELDS = 50  # extra header fields
MAX_FIELD = 4000  # characters of one of their values
MAX_FAULTS = 20  # told at once
LONGEST_EXPIRY = 30 * 86400  # seconds

_ADDRESS_SCHEMA: dict[str, Any] = {
    "anyOf": [
        {
            "type": "string",
            "description": "one or more addresses, separated by comma, semicolon or line break",
        },
        {
            "type": "object",
            "properties": {"email": {"type": "string"}, "name": {"type": "string"}},
            "required": ["email"],
            "additionalProperties": False,
        },
    ]
}
_RECIPIENTS_SCHEMA: dict[str, Any] = {
    "anyOf": [*_ADDRESS_SCHEMA["anyOf"], {"type": "array", "items": _ADDRESS_SCHEMA}, {"type": "null"}],
    "examples": ["ann@example.org", [{"email": "ann@example.org", "name": "Ann"}]],
}
_ONE_ADDRESS_SCHEMA: dict[str, Any] = {"anyOf": [{"type": "string"}, _ADDRESS_SCHEMA["anyOf"][1], {"type": "null"}]}
_FIELD_NAME = re.compile(r"[!-9;-~]{1,76}\Z")  # RFC 5322 §3.6.8
_STRUCTURAL = frozenset(
    [
        "from",
        "sender",
        "to",
        "cc",
        "bcc",
        "reply-to",
        "subject",
        "date",
        "message-id",
        "received",
        "return-path",
        "dkim-signature",
        "authentication-results",
        "delivered-to",
    ]
)
_STRUCTURAL_PREFIXES = ("content-", "mime-", "resent-", "arc-")
_OWN_FIELD = {
    "from": "from",
    "to": "to",
    "cc": "cc",
    "bcc": "bcc",
    "reply-to": "reply_to",
    "subject": "subject",
}


def _wrong(faults: Iterable[tuple[str, str]]) -> PydanticCustomError:
    return PydanticCustomError("faults", "wrong", {"faults": tuple(faults)})


def _kind(value: object) -> str:
    match value:
        case bool():
            return "true or false"
        case int() | float():
            return "a number"
        case str():
            return "a string"
        case list():
            return "an array"
        case dict():
            return "an object"
        case _:
            return "null"


def _addresses(value: object) -> tuple[Address, ...]:
    """Read every written form of a list of addresses."""
    if value is None or value == "":
        return ()
    items: list[object] = value if isinstance(value, list) else [value]
    addresses: list[Address] = []
    faults: list[tuple[str, str]] = []
    for at, item in enumerate(items):
        where = f"/{at}" if isinstance(value, list) else ""
        try:
            addresses.extend(_one_or_more(item))
        except InvalidAddress as error:
            faults.append((where, str(error)))
            if len(faults) >= MAX_FAULTS:
                break
    if faults:
        raise _wrong(faults)
    return tuple(addresses)


def _one_or_more(item: object) -> list[Address]:
    if isinstance(item, str):
        return [parse_address(piece) for piece in split_addresses(item)]
    if not isinstance(item, dict):
        raise InvalidAddress(
            f'an address is a string or {{"email": …, "name": …}}, not {_kind(item)}; write "name@example.org"'
        )
    unknown = item.keys() - {"email", "name"}
    if unknown:
        raise InvalidAddress(f"{min(unknown)[:80]!r} is not a field of an address; only email and name are")
    email, name = item.get("email"), item.get("name") or ""
    if not isinstance(email, str) or not isinstance(name, str):
        raise InvalidAddress('an address needs "email", a string, and may have "name", a string')
    try:
        return [mailbox(email, name)]
    except InvalidAddress as error:
        raise InvalidAddress(f'{error}; "email" is one bare address, its display name goes into "name"') from error


def _one_address(value: object) -> Address | None:
    addresses = _addresses(value)
    if len(addresses) > 1:
        raise _wrong([("", f"one address is taken here, not {len(addresses)}")])
    return addresses[0] if addresses else None


def _subject(value: object) -> str:
    if value is None:
        return ""
    if not isinstance(value, str):
        raise _wrong([("", f"the subject is a string, not {_kind(value)}; put it in quotes")])
    if CONTROL.search(value):
        raise _wrong([("", "the subject may not contain line breaks or control characters; remove them")])
    if len(value) > MAX_SUBJECT:
        raise _wrong([("", f"the subject has {len(value)} characters; at most {MAX_SUBJECT} are taken")])
    return value


def _text(value: object) -> str | None:
    if value is None or value == "":
        return None
    if not isinstance(value, str):
        raise _wrong([("", f"this is a string, not {_kind(value)}; put it in quotes")])
    return value


def _fields(value: object) -> tuple[tuple[str, str], ...]:
    if value is None or value == "":
        return ()
    if not isinstance(value, dict):
        raise _wrong([("", f'headers is an object such as {{"X-Ticket": "4711"}}, not {_kind(value)}')])
    if len(value) > MAX_FIELDS:
        raise _wrong([("", f"{len(value)} header fields are too many; at most {MAX_FIELDS} are taken")])
    faults = [(f"/{_escaped(name[:80])}", why) for name, text in value.items() if (why := _field_fault(name, text))]
    if faults:
        raise _wrong(faults)
    return tuple(value.items())


def _field_fault(name: str, text: object) -> str | None:
    low = name.lower()
    if not _FIELD_NAME.match(name):
        return "a header field's name is printable ASCII without space and colon, at most 76 characters"
    if low in _OWN_FIELD:
        return f"{name} is not an extra header field; use the field {_OWN_FIELD[low]!r} of the body"
    if low in _STRUCTURAL or low.startswith(_STRUCTURAL_PREFIXES):
        return f"{name} is written by the service and cannot be set; remove it"
    if not isinstance(text, str):
        return f"a header field's value is a string, not {_kind(text)}; put it in quotes"
    if CONTROL.search(text):
        return "a header field's value may not contain line breaks or control characters; remove them"
    if len(text) > MAX_FIELD:
        return f"a header field's value of {len(text)} characters is too long; at most {MAX_FIELD} are taken"
    return None


def _tags(value: object) -> tuple[str, ...]:
    if value is None or value == "":
        return ()
    tags = [value] if isinstance(value, str) else value
    if not isinstance(tags, list) or not all(isinstance(tag, str) for tag in tags):
        raise _wrong([("", 'tags is an array of strings, such as ["order", "vip"]')])
    if len(tags) > MAX_TAGS:
        raise _wrong([("", f"{len(tags)} tags are too many; at most {MAX_TAGS} are taken")])
    faults = [
        (f"/{at}", f"a tag has 1 to {MAX_TAG} characters, none of them a control character")
        for at, tag in enumerate(tags)
        if not 0 < len(tag) <= MAX_TAG or CONTROL.search(tag)
    ]
    if faults:
        raise _wrong(faults)
    return tuple(dict.fromkeys(tags))


def _metadata(value: object) -> dict[str, str]:
    if value is None or value == "":
        return {}
    if not isinstance(value, dict) or not all(isinstance(text, str) for text in value.values()):
        raise _wrong([("", 'metadata is a flat object of strings, such as {"order": "4711"}')])
    size = sum(len(key.encode()) + len(text.encode()) for key, text in value.items())
    if size > MAX_METADATA:
        raise _wrong([("", f"metadata has {size} bytes; at most {MAX_METADATA} are taken")])
    return value


def _expires_in(value: object) -> float | None:
    if value is None or value == "":
        return None
    if isinstance(value, bool) or not isinstance(value, int | float) or not 1 <= value <= LONGEST_EXPIRY:
        raise _wrong([("", f"expires_in is a number of seconds from 1 to {LONGEST_EXPIRY}, such as 600")])
    return float(value)


def _schema(schema: dict[str, Any], description: str) -> WithJsonSchema:
    return WithJsonSchema({**schema, "description": description})


_STRING = {"anyOf": [{"type": "string"}, {"type": "null"}]}
_Addresses = Annotated[tuple[Address, ...], PlainValidator(_addresses)]


class SendRequest(BaseModel):
    """A message to send. At least one recipient, and at least one of text and html."""

    model_config = ConfigDict(extra="allow", title="SendRequest", json_schema_extra={"additionalProperties": False})

    to: Annotated[_Addresses, _schema(_RECIPIENTS_SCHEMA, "recipients")] = ()
    cc: Annotated[_Addresses, _schema(_RECIPIENTS_SCHEMA, "shown recipients of a copy")] = ()
    bcc: Annotated[_Addresses, _schema(_RECIPIENTS_SCHEMA, "hidden recipients; never in the message")] = ()
    reply_to: Annotated[_Addresses, _schema(_RECIPIENTS_SCHEMA, "where replies go")] = ()
    from_: Annotated[
        Address | None,
        PlainValidator(_one_address),
        _schema(_RECIPIENTS_SCHEMA, "sender; default: the profile's, else default_from"),
    ] = Field(default=None, alias="from")
    subject: Annotated[str, PlainValidator(_subject), _schema({**_STRING, "maxLength": MAX_SUBJECT}, "subject")] = ""
    text: Annotated[str | None, PlainValidator(_text), _schema(_STRING, "the plain text body")] = None
    html: Annotated[str | None, PlainValidator(_text), _schema(_STRING, "the HTML body")] = None
    headers: Annotated[
        tuple[tuple[str, str], ...],
        PlainValidator(_fields),
        _schema(
            {"anyOf": [{"type": "object", "additionalProperties": {"type": "string"}}, {"type": "null"}]},
            "extra header fields; structural ones (From, Date, MIME-*, Content-* …) are refused by name",
        ),
    ] = ()
    profile: Annotated[str | None, PlainValidator(_text), _schema(_STRING, "which relay; default: default_profile")] = (
        None
    )
    tags: Annotated[
        tuple[str, ...],
        PlainValidator(_tags),
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
        PlainValidator(_metadata),
        _schema(
            {"anyOf": [{"type": "object", "additionalProperties": {"type": "string"}}, {"type": "null"}]},
            "your own flat facts, 4 kB at most; given back, never sent",
        ),
    ] = {}
    expires_in: Annotated[
        float | None,
        PlainValidator(_expires_in),
        _schema(
            {"anyOf": [{"type": "number", "minimum": 1, "maximum": LONGEST_EXPIRY}, {"type": "null"}]},
            "seconds after which it is better not sent at all, such as 600 for a code",
        ),
    ] = None


class VerifyRequest(BaseModel):
    """Whom a diagnosis asks the relay for."""

    model_config = ConfigDict(extra="allow", title="VerifyRequest", json_schema_extra={"additionalProperties": False})

    from_: Annotated[
        Address | None,
        PlainValidator(_one_address),
        _schema(_ONE_ADDRESS_SCHEMA, "whom MAIL names; default: the profile's sender"),
    ] = Field(default=None, alias="from")
    to: Annotated[
        Address | None,
        PlainValidator(_one_address),
        _schema(_ONE_ADDRESS_SCHEMA, "whom RCPT names; default: the sender"),
    ] = None


_parse: Callable[[bytes], SendRequest] = SendRequest.__pydantic_validator__.validate_json


def draft_of(body: bytes, *, lenient: bool, warnings: tuple[str, ...] = ()) -> Draft:
    """Read a body. `lenient` lists unknown fields in the warnings where they would be refused.

    Raises:
        InvalidMessage: not JSON, or a fault for every field that is wrong.
    """
    try:
        said = _parse(body)
    except ValidationError as error:
        raise _refusal(body, error) from None
    if said.model_extra:
        unknown = _unknown_in(said, said.model_extra)
        if not lenient:
            raise InvalidMessage.of(unknown)
        warnings += tuple(fault.detail for fault in unknown)
    return Draft(
        to=said.to,
        cc=said.cc,
        bcc=said.bcc,
        reply_to=said.reply_to,
        sender=said.from_,
        subject=said.subject,
        text=said.text,
        html=said.html,
        headers=said.headers,
        profile=said.profile,
        tags=said.tags,
        metadata=said.metadata,
        expires_in=said.expires_in,
        warnings=warnings,
    )


def verify_of(body: bytes) -> VerifyRequest:
    """Read the body of a verify.

    Raises:
        InvalidMessage: not JSON, or a fault for every field that is wrong.
    """
    try:
        said = VerifyRequest.model_validate_json(body)
    except ValidationError as error:
        raise _refusal(body, error) from None
    if said.model_extra:
        raise InvalidMessage.of(_unknown_in(said, said.model_extra))
    return said


def json_fault(body: bytes) -> InvalidMessage | None:
    """Say where the body stops being JSON; None where it does not."""
    try:
        _parse(body)
    except ValidationError as error:
        if error.errors(include_url=False, include_input=False)[0]["type"] == "json_invalid":
            return _refusal(body, error)
    return None


def _refusal(body: bytes, error: ValidationError) -> InvalidMessage:
    faults: list[Fault] = []
    for said in error.errors(include_url=False, include_input=False):
        if said["type"] == "json_invalid":
            return InvalidMessage.of([Fault("", _not_json(body, said["ctx"]["error"]))])
        if said["type"] != "faults":
            return InvalidMessage.of([Fault("", 'the body is a JSON object such as {"to": …, "text": …}')])
        at = f"/{said['loc'][0]}"
        faults.extend(Fault(at + below, detail) for below, detail in said["ctx"]["faults"])
    return InvalidMessage.of(faults[:MAX_FAULTS])


def _not_json(body: bytes, why: str) -> str:
    if not body.strip():
        return 'the body is empty; send a JSON object such as {"to": …, "subject": …, "text": …}'
    return (
        f"the body is not valid JSON: {why}; the usual cause is a variable that contains an unescaped quote or "
        "line break"
    )


def _unknown_in(said: BaseModel, extra: Iterable[str]) -> list[Fault]:
    known = [field.alias or name for name, field in type(said).model_fields.items()]
    return [_unknown(name, known) for name in list(extra)[:MAX_FAULTS]]


def _unknown(name: str, known: Sequence[str]) -> Fault:
    near = get_close_matches(name.lower(), known, n=1)
    cure = f"do you mean {near[0]!r}?" if near else f"known are: {', '.join(known)}"
    return Fault(f"/{_escaped(name[:80])}", f"{name[:80]!r} is not a field here; {cure}")


def _escaped(name: str) -> str:
    """RFC 6901 §3."""
    return name.replace("~", "~0").replace("/", "~1")


def example() -> Mapping[str, Any]:
    """The body that the documentation shows, and that works in the sandbox as it stands."""
    return {
        "from": "Bot <bot@example.org>",
        "to": "ann@example.org",
        "subject": "Your order 4711",
        "text": "It is on its way.",
    }
