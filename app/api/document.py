"""What /openapi.json says beyond what FastAPI finds by itself: problems, their media types, and the keys.

Pure but for FastAPI's own classes.
"""

from __future__ import annotations

from typing import Any, TypeAlias

from fastapi import FastAPI, Security
from fastapi.params import Depends
from fastapi.security import APIKeyHeader, HTTPBearer
from pydantic import BaseModel

from app.api.problems import Problem

Responses: TypeAlias = dict[int | str, dict[str, Any]]

# Only for the document: they let every request through, and `caller_of` decides.
KEYS: tuple[Depends, ...] = (
    Security(HTTPBearer(scheme_name="bearer", description="MAILCHUTE_API_KEY", auto_error=False)),
    Security(APIKeyHeader(scheme_name="apiKey", name="X-API-Key", description="MAILCHUTE_API_KEY", auto_error=False)),
)

_TEXTS = {
    401: "Who is calling is not known",
    404: "There is no such thing here",
    409: "The message's state forbids that",
    413: "The message is too large",
    415: "The body is not application/json",
    422: "Something in the request cannot be; `errors` has a pointer for each fault",
    429: "This was done too often; Retry-After says how many seconds to wait",
    503: "The store cannot be used now; nothing was taken",
}


def problems(*statuses: int) -> Responses:
    """Document these refusals."""
    return {status: in_both_types(Problem, _TEXTS[status]) for status in statuses}


def parameters(**said: str) -> list[dict[str, Any]]:
    """Document these parameters of a query string."""
    return [
        {"name": name, "in": "query", "required": False, "schema": {"type": "string"}, "description": description}
        for name, description in said.items()
    ]


def in_both_types(model: type[BaseModel], description: str) -> dict[str, Any]:
    """Document an answer that is application/problem+json, or application/json where Accept names only that."""
    schema = {"$ref": f"#/components/schemas/{model.__name__}"}
    return {"model": model, "description": description, "content": {"application/problem+json": {"schema": schema}}}


def document(api: FastAPI) -> dict[str, Any]:
    """Give the document without FastAPI's own 422, which is never sent: ours is a problem like any other."""
    whole = FastAPI.openapi(api)
    for methods in whole["paths"].values():
        for operation in methods.values():
            if "HTTPValidationError" in str(operation["responses"].get("422", "")):
                del operation["responses"]["422"]
    for name in ("HTTPValidationError", "ValidationError"):
        whole["components"]["schemas"].pop(name, None)
    return whole
