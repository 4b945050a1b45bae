"""What the codes mean: every one, how often it came in the last 24 hours, and what cures it.

A problem's `type` (`/errors/EAUTH`, `/errors/invalid-message`) leads here.
"""

from __future__ import annotations

from collections.abc import Mapping
from difflib import get_close_matches
from typing import Any

from fastapi import APIRouter, Depends, Request, Response
from pydantic import BaseModel, Field

from app.api.document import KEYS, problems
from app.api.edge import answer_json
from app.api.problems import DOORS
from app.api.routes import caller_of, runtime_of, to_response
from app.mail.codes import ErrorCode
from app.mail.errors import NotFound
from app.mail.explain import CODES, EXPLANATIONS, NODEMAILER, cure, reasons_of

router = APIRouter(tags=["errors"], dependencies=[Depends(caller_of), *KEYS])


class ReasonExplained(BaseModel):
    """One fine grain of a code."""

    reason: str
    classes: list[str] = Field(description="whose turn it is")
    meaning: str
    causes: list[str]
    cure: str = Field(description="as a profile of mailchute.toml gets it")
    count_24h: int = Field(description="failed attempts of the last 24 hours; of `expired`, messages")


class ErrorExplained(BaseModel):
    """A code: of a failed attempt (`EAUTH`), or of a request that was refused (`invalid-message`)."""

    code: str
    status: int | None = Field(description="HTTP status, where a request was refused")
    meaning: str
    nodemailer: str | None = Field(description="what nodemailer says of the same event, where it differs")
    cure: str | None = Field(description="where a request was refused")
    count_24h: int | None
    reasons: list[ReasonExplained]


class ErrorList(BaseModel):
    """Every code."""

    data: list[ErrorExplained]


@router.get(
    "/errors",
    operation_id="listErrors",
    summary="List every error code",
    response_model=ErrorList,
    responses=problems(401, 503),
)
async def list_errors(request: Request) -> Response:
    """Give every code with its reasons, their meaning, usual causes and cure, and how often they came."""
    counts = await _counts(request)
    data = [_explained(code, counts) for code in ErrorCode] + [_refusal(code) for code in _REFUSALS]
    return to_response(answer_json({"data": data}))


@router.get(
    "/errors/{code}",
    operation_id="getError",
    summary="Explain an error code",
    response_model=ErrorExplained,
    responses=problems(401, 404, 503),
)
async def get_error(request: Request, code: str) -> Response:
    """Explain one code; a problem's `type` is this path."""
    if code in _REFUSALS:
        return to_response(answer_json(_refusal(code)))
    try:
        known = ErrorCode(code.upper())
    except ValueError:
        code = code[:80]
        near = get_close_matches(code.upper(), list(ErrorCode), n=1) or get_close_matches(code, _REFUSALS, n=1)
        cure = f"do you mean {near[0]}?" if near else "GET /errors lists them"
        raise NotFound(f"There is no error code {code!r}; {cure}") from None
    return to_response(answer_json(_explained(known, await _counts(request))))


_REFUSALS = {door.code: door for door in DOORS}


async def _counts(request: Request) -> Mapping[str, int]:
    runtime = runtime_of(request)
    return await runtime.history.failures(now=runtime.now())


def _explained(code: ErrorCode, counts: Mapping[str, int]) -> dict[str, Any]:
    reasons = [
        {
            "reason": reason.value,
            "classes": EXPLANATIONS[reason].classes,
            "meaning": EXPLANATIONS[reason].meaning,
            "causes": EXPLANATIONS[reason].causes,
            "cure": cure(reason),
            "count_24h": counts.get(reason, 0),
        }
        for reason in reasons_of(code)
    ]
    return {
        "code": code.value,
        "status": None,
        "meaning": CODES[code],
        "nodemailer": NODEMAILER.get(code),
        "cure": None,
        "count_24h": sum(reason["count_24h"] for reason in reasons),
        "reasons": reasons,
    }


def _refusal(code: str) -> dict[str, Any]:
    door = _REFUSALS[code]
    return {
        "code": code,
        "status": door.status,
        "meaning": door.title,
        "nodemailer": None,
        "cure": door.cure,
        "count_24h": None,
        "reasons": [],
    }
