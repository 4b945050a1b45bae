"""Parse and validate a JSON body; name every fault with its pointer, and unknown fields with the nearest known one."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from difflib import get_close_matches
from itertools import islice
from typing import TypeVar

from pydantic import BaseModel, ValidationError
from pydantic_core import from_json

from app.api.fields import MAX_FAULTS
from app.api.large import LARGE, NotJson, parse
from app.mail.errors import Fault, InvalidMessage, escaped

Model = TypeVar("Model", bound=BaseModel)


def read(model: type[Model], body: bytes, *, unknown_are_faults: bool = True) -> Model:
    """Read a body of any size. With `unknown_are_faults`, other faults are told together with the unknown fields.

    Unknown fields alone raise nothing here: they are in `model_extra`.

    Raises:
        InvalidMessage: not JSON, or a fault for every field that is wrong.
    """
    value: object = None
    try:
        if len(body) <= LARGE:
            return model.__pydantic_validator__.validate_json(body)  # type: ignore[no-any-return]
        value = parse(body)
        return model.model_validate(value)
    except NotJson as error:
        raise InvalidMessage.of([Fault("", not_json(body, str(error)))]) from None
    except ValidationError as error:
        faults = _faults(body, error)
        if unknown_are_faults and all(fault.pointer for fault in faults):
            # One of them may be the field that is missing, misspelt.
            names = value if isinstance(value, dict) else from_json(body)
            faults += unknown_in(model, names)
        raise InvalidMessage.of(faults[:MAX_FAULTS]) from None


def unknown_in(model: type[BaseModel], names: Iterable[str]) -> list[Fault]:
    """Name the fields that `model` does not have, `MAX_FAULTS` at most."""
    known = [field.alias or name for name, field in model.model_fields.items()]
    return [_unknown(name, known) for name in islice((name for name in names if name not in known), MAX_FAULTS)]


def _faults(body: bytes, error: ValidationError) -> list[Fault]:
    faults: list[Fault] = []
    for said in error.errors(include_url=False, include_input=False):
        if said["type"] == "json_invalid":
            return [Fault("", not_json(body, said["ctx"]["error"]))]
        if said["type"] == "missing":
            faults.append(Fault(f"/{said['loc'][0]}", f"{said['loc'][0]} is missing"))
            continue
        if said["type"] != "faults":
            return [Fault("", 'the body is a JSON object such as {"to": …, "text": …}')]
        at = f"/{said['loc'][0]}"
        faults.extend(Fault(at + below, detail) for below, detail in said["ctx"]["faults"])
    return faults


def not_json(body: bytes, why: str) -> str:
    """Return what is wrong with a body that is not JSON, and the usual cause."""
    if not body[:1024].strip() and not body.strip():
        return 'the body is empty; send a JSON object such as {"to": …, "subject": …, "text": …}'
    if why.startswith("recursion"):
        return f"the body is not taken: it is nested too deeply ({why}); no message needs more than four levels"
    return (
        f"the body is not valid JSON: {why}; the usual cause is a variable that contains an unescaped quote or "
        "line break"
    )


def _unknown(name: str, known: Sequence[str]) -> Fault:
    short = name[:80]  # what is compared grows with its length
    near = get_close_matches(short.lower(), known, n=1)
    cure = f"do you mean {near[0]!r}?" if near else f"known are: {', '.join(known)}"
    return Fault(f"/{escaped(short)}", f"{short!r} is not a field here; {cure}")
