"""Parse and validate a JSON body; name every fault with its pointer, and unknown fields with the nearest known one."""

from __future__ import annotations

import re
from codecs import BOM_UTF8, BOM_UTF16_BE, BOM_UTF16_LE, BOM_UTF32_BE, BOM_UTF32_LE, getincrementaldecoder
from collections.abc import Iterable, Mapping, Sequence
from difflib import get_close_matches
from itertools import islice
from typing import TypeVar

from pydantic import BaseModel, ValidationError
from pydantic_core import from_json

from app.api.fields import MAX_FAULTS
from app.api.large import LARGE, PIECE, NotJson, parse
from app.mail.errors import Fault, InvalidMessage, escaped

Model = TypeVar("Model", bound=BaseModel)

_GZIP = b"\x1f\x8b"
# What other mail APIs and people call our fields; the first one that a model has is meant.
_ALIASES: Mapping[str, tuple[str, ...]] = {
    **dict.fromkeys(
        ("body", "message", "content", "msg", "plain", "plaintext", "textbody", "bodytext", "mailbody", "emailbody"),
        ("text", "html"),
    ),
    **dict.fromkeys(("htmlbody", "bodyhtml", "htmlcontent", "messagehtml"), ("html",)),
    **dict.fromkeys(("textcontent", "textpart", "messagetext"), ("text",)),
    **dict.fromkeys(
        (
            "recipient",
            "recipients",
            "email",
            "emails",
            "mail",
            "address",
            "toemail",
            "toaddress",
        ),
        ("to", "address"),
    ),
    **dict.fromkeys(("sender", "fromemail", "fromaddress", "mailfrom"), ("from",)),
    **dict.fromkeys(("title", "topic", "betreff"), ("subject",)),
    **dict.fromkeys(("file", "files", "attachment"), ("attachments",)),
    **dict.fromkeys(("customheaders", "header"), ("headers",)),
    **dict.fromkeys(("sendat", "scheduledat", "schedule", "deliverytime"), ("send_at",)),
}


def read(model: type[Model], body: bytes, *, unknown_are_faults: bool = True) -> Model:
    """Read a body of any size. With `unknown_are_faults`, other faults are told together with the unknown fields.

    Unknown fields alone raise nothing here: they are in `model_extra`.

    Raises:
        InvalidMessage: not JSON, or a fault for every field that is wrong.
    """
    value: object = None
    body = body.removeprefix(BOM_UTF8)
    try:
        if len(body) <= LARGE:
            return model.__pydantic_validator__.validate_json(body)  # type: ignore[no-any-return]
        value = parse(body)
        return model.model_validate(value)
    except NotJson as error:
        raise InvalidMessage.of([Fault("", not_json(body, str(error)))]) from None
    except ValidationError as error:
        faults = _faults(body, value, error)
        if unknown_are_faults and all(fault.pointer for fault in faults):
            # One of them may be the field that is missing, misspelt.
            names = value if isinstance(value, dict) else from_json(body)
            faults += unknown_in(model, names)
        raise InvalidMessage.of(faults[:MAX_FAULTS]) from None


def unknown_in(model: type[BaseModel], names: Iterable[str], *, list_known: bool = True) -> list[Fault]:
    """Name the fields that `model` does not have, `MAX_FAULTS` at most.

    With `list_known` the first one that is near none lists the known ones; to a body that has none of them, the list
    would say nothing.
    """
    known = [field.alias or name for name, field in model.model_fields.items()]
    unknown = list(islice((name for name in names if name not in known), MAX_FAULTS))
    faults = []
    for name in unknown:
        near = meant_by(name, known)
        if near:
            cure = f"do you mean {' or '.join(map(repr, near))}?"
        elif list_known:
            cure, list_known = f"known are: {', '.join(known)}", False
        else:
            cure = "remove it"
        short = name[:80]
        faults.append(Fault(f"/{escaped(short)}", f"{short!r} is not a field here; {cure}"))
    return faults


def meant_by(name: str, known: Sequence[str]) -> tuple[str, ...]:
    """Return the known fields that an unknown one probably means."""
    short = name[:80].lower()  # what is compared grows with its length
    aliased = tuple(field for field in _ALIASES.get(re.sub(r"[^a-z]", "", short), ()) if field in known)
    return aliased or tuple(get_close_matches(short, known, n=1))


def _faults(body: bytes, value: object, error: ValidationError) -> list[Fault]:
    faults: list[Fault] = []
    for said in error.errors(include_url=False, include_input=False):
        if said["type"] == "json_invalid":
            return [Fault("", not_json(body, said["ctx"]["error"]))]
        if said["type"] == "missing":
            faults.append(Fault(f"/{said['loc'][0]}", f"{said['loc'][0]} is missing"))
            continue
        if said["type"] != "faults":
            return [Fault("", _no_object(value if len(body) > LARGE else from_json(body)))]
        at = f"/{said['loc'][0]}"
        faults.extend(Fault(at + below, detail) for below, detail in said["ctx"]["faults"])
    return faults


def _no_object(value: object) -> str:
    """Return what to do about a body that is JSON and no object."""
    wanted = 'the body is a JSON object such as {"to": …, "text": …}'
    if isinstance(value, list):
        return f"{wanted}, not an array; send each message in a request of its own"
    if not isinstance(value, str) or value.lstrip()[:1] not in ("{", "["):
        return wanted
    twice = f"{wanted}; this one is a JSON string that holds JSON: it was encoded twice"
    try:
        if len(value) <= LARGE:  # of a larger one nothing is built, as of any large body
            from_json(value)
    except ValueError as error:
        return (
            f"{twice}, and what is in the string is not valid JSON: {error}. axios does this to a text with a raw line "
            "break or an unescaped quote; give it an object, not a text"
        )
    return f"{twice}; pass the object itself, or its JSON text once, without another JSON.stringify() or json.dumps()"


def not_json(body: bytes, why: str) -> str:
    """Return what is wrong with a body that is not JSON, and the usual cause."""
    body = body.removeprefix(BOM_UTF8)
    if not body[:1024].strip() and not body.strip():
        return 'the body is empty; send a JSON object such as {"to": …, "subject": …, "text": …}'
    if why.startswith("recursion"):
        return f"the body is not taken: it is nested too deeply ({why}); no message needs more than four levels"
    if encoding := _utf_16_or_32(body):
        return f"the body is not valid JSON: {why}; it is in {encoding}; send it in UTF-8"
    if "unicode" in why and (at := _first_not_utf_8(body)) is not None:
        return f"the body is not valid JSON: {why}; it {_not_utf_8(body, at)}"
    if "surrogate" in why or "hex escape" in why:
        return (
            f"the body is not valid JSON: {why}; one half of a surrogate pair (\\ud800 to \\udfff) stands alone: a "
            "text was probably cut in the middle of an emoji. Cut it between characters, or drop the half"
        )
    return f"the body is not valid JSON: {why}; {_usual_cause(body, why)}"


def _usual_cause(body: bytes, why: str) -> str:
    start = body[:1024].lstrip()
    if start.startswith(_GZIP):
        return "it is compressed with gzip; send it uncompressed"
    if start.startswith((b"<", b"--")):
        return "it is XML, HTML or multipart form data; send JSON"
    if start.startswith(b"{'") or (why.startswith("key must be") and b"'" in start):
        return "it has single quotes, as Python or JavaScript write an object; use json.dumps() or JSON.stringify()"
    if why.startswith("trailing comma"):
        return "remove the comma before the closing bracket"
    return "the usual cause is a variable that contains an unescaped quote or line break"


def _first_not_utf_8(body: bytes) -> int | None:
    """Return the index of the first byte that is not UTF-8, reading in pieces that are freed one by one."""
    decoder = getincrementaldecoder("utf-8")()
    for at in range(0, len(body), PIECE):
        held = len(decoder.getstate()[0])
        try:
            decoder.decode(body[at : at + PIECE], final=at + PIECE >= len(body))
        except UnicodeDecodeError as error:
            return at - held + error.start
    return None


def _utf_16_or_32(body: bytes) -> str:
    """Name the encoding by the byte order mark, or by where the zero bytes of ASCII are (RFC 4627 §3)."""
    start = body[:4]
    if start.startswith((BOM_UTF32_LE, BOM_UTF32_BE)) or (len(start) == 4 and start.count(0) == 3):
        return "UTF-32"
    if start.startswith((BOM_UTF16_LE, BOM_UTF16_BE)) or (0 in start[:2] and any(start[:2])):
        return "UTF-16"
    return ""


def _not_utf_8(body: bytes, at: int) -> str:
    place = f"byte 0x{body[at]:02X} at position {at + 1}"
    if body[at] == 0xED and body[at + 1 : at + 2] >= b"\xa0":
        return (
            f"is not UTF-8: {place} begins one half of a surrogate pair: a text was probably cut in the "
            "middle of an emoji. Cut it between characters, or drop the half"
        )
    return f"is not UTF-8 ({place}); it is probably Latin-1 or Windows-1252: encode it in UTF-8"
