"""What /openapi.json says beyond what FastAPI finds by itself: problems, media types, keys, names and examples.

Pure but for FastAPI's own classes, and for the examples: `examples.json` holds answers that the service really gave;
tests/api/test_examples.py writes it, and fails where one would look otherwise today.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any, TypeAlias

from fastapi import FastAPI, Security
from fastapi.params import Depends
from fastapi.security import APIKeyHeader, HTTPBearer
from fastapi.security.http import HTTPBase
from pydantic import BaseModel

from app.api.lookup import schema_of
from app.api.problems import Problem, packaged

Responses: TypeAlias = dict[int | str, dict[str, Any]]

# Only for the document: they let every request through, and `caller_of` decides.
KEYS: tuple[Depends, ...] = (
    Security(HTTPBearer(scheme_name="bearer", description="MAILCHUTE_API_KEY", auto_error=False)),
    Security(
        HTTPBase(
            scheme="basic", scheme_name="basic", description="any user name, the key as password", auto_error=False
        )
    ),
    Security(APIKeyHeader(scheme_name="apiKey", name="X-API-Key", description="MAILCHUTE_API_KEY", auto_error=False)),
)

TAGS = [
    {"name": "messages", "description": "Send, look up, and act on what was sent: retry, cancel, resolve."},
    {"name": "errors", "description": "What every code means, how often it came, and what cures it."},
    {"name": "profiles", "description": "The relays: does one work, and if not, at which stage?"},
    {"name": "operation", "description": "For whoever runs the service: alive, ready, healthy, and the figures."},
]
# Relative to where the document is (OpenAPI 3.1 §4.8.5), so that it holds below `base_path` and behind a prefix that a
# proxy strips: Swagger UI sends there, Redoc shows it, and a generated client is told its base URL anyway. Not "./":
# with the paths' own slash that makes two.
SERVERS = [{"url": ".", "description": "the service that this document comes from"}]
LICENSE = {"name": "MIT", "identifier": "MIT"}
_PROBLEM = {"$ref": "#/components/schemas/Problem"}
_LINKS = {
    operation_id: {
        "operationId": operation_id,
        "parameters": {"id": "$response.body#/id"},
        "description": description,
    }
    for operation_id, description in (
        ("getMessage", "what became of it, with every attempt"),
        ("getMessageSource", "what was sent, to the byte"),
        ("retryMessage", "send it again now"),
        ("cancelMessage", "stop what waits"),
        ("resolveMessage", "say what became of it, where nobody knows"),
    )
}


def _later(*, required: bool) -> dict[str, Any]:
    return {"required": required, "schema": {"type": "integer", "minimum": 1}, "description": "seconds"}


_LOCATION = {"required": True, "schema": {"type": "string"}, "description": "/messages/{id}"}
_HEADERS = {
    "Idempotent-Replayed": {
        "schema": {"type": "string", "enum": ["true"]},
        "description": "the key was known: this is the message of the first request",
    },
    "Preference-Applied": {"schema": {"type": "string"}, "description": "what was done of `Prefer`"},
}
_PROBLEM_HEADERS = {
    401: {"WWW-Authenticate": {"required": True, "schema": {"type": "string"}, "description": "Bearer"}},
    429: {"Retry-After": _later(required=True)},
    503: {"Retry-After": _later(required=True)},
}
_EXAMPLES = Path(__file__).with_name("examples.json")

# What a field says wherever it stands; a model's own description goes before it.
_FIELDS = {
    "id": "of the message, a UUIDv7",
    "address": "as it was asked for",
    "error_code": "nodemailer's word, or one of ours; GET /errors explains it. null = nothing went wrong",
    "reason": "the fine grain of error_code",
    "class": "permanent, temporary, unknown or configuration: whose turn it is",
    "smtp_code": "the relay's reply code, where it gave one",
    "enhanced_code": "the relay's enhanced status code (RFC 3463), where it gave one",
    "hint": "what to change, naming the setting",
    "message": "one sentence for people",
    "profile": "the way to a relay that was taken",
    "state": "where it stands",
    "accepted": "recipients that the relay took it for",
    "rejected": "recipients that it will never reach",
    "recipients": "all of them, with their states",
    "attempts": "every try, the first one first",
    "warnings": "what was let pass, such as unknown fields under handling=lenient",
    "will_retry": "it is tried again by itself, at next_attempt_at",
    "created_at": "accepted at; UTC",
    "next_attempt_at": "when it is tried next; null = it is not",
    "expires_at": "not tried any more after that",
    "subject": "as it was asked for",
    "tags": "your own labels",
    "metadata": "your own facts",
    "data": "the entries",
    "has_more": "there is a next page",
    "next_cursor": "for the next page; null = this is the last",
    "count": "how many it was done to",
    "as": "what the relay's log says became of it",
    "number": "1 for the first attempt",
    "name": "as the settings have it",
    "sandbox": "true: what goes there is kept here, not sent",
    "from": "the sender where a request names none",
    "envelope_from": "MAIL FROM, where it is not the sender; `<>` is the null sender",
    "auth": "which login",
    "pool": "its connections",
    "idle": "open, and free",
    "taken": "open, and at work",
    "host": "whom the profile names",
    "ip": "where the connection went",
    "port": "where the connection went",
    "started_at": "UTC",
    "duration_ms": "null while it runs",
    "phases": "milliseconds that each took",
    "phase": "how far it got",
    "tls": "the session was encrypted",
    "tls_version": "such as TLSv1.3",
    "tls_cipher": "such as TLS_AES_256_GCM_SHA384",
    "tls_verified": "the certificate was verified",
    "tls_names": "whom the relay's certificate is for",
    "tls_not_after": "the certificate's last day, YYYY-MM-DD",
    "tls_sha256": "the certificate's fingerprint; `cert_sha256` trusts it",
    "tls_error": "why it was not encrypted or not verified",
    "extensions": "what EHLO told",
    "reply": "the relay's last reply, whole",
    "transcript": "line by line, without credentials and content",
    "ms": "since the attempt began",
    "line": "without its line end",
    "type": "/errors/{code}",
    "title": "the kind of problem",
    "status": "this answer's HTTP status",
    "detail": "what is wrong and what to do",
    "ok": "false: nothing was taken",
    "errors": "every fault that was found",
    "code": "such as EAUTH or invalid-message",
    "meaning": "what happened",
    "causes": "what it usually comes from",
    "reasons": "its fine grains",
    "count_24h": "failed attempts of the last 24 hours; of `expired`, messages",
    "version": "of the service",
    "checks": "what was looked at",
    "stage": "resolve, connect, tls, greeting, ehlo, starttls, auth, mail, rcpt",
}

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


def about_a_message(response: dict[str, Any], *, location: bool = False) -> dict[str, Any]:
    """Document where an answer of POST /send leads, and what its headers say."""
    headers = {**_HEADERS, **({"Location": _LOCATION, "Retry-After": _later(required=False)} if location else {})}
    return {**response, "headers": headers, "links": _LINKS}


def problems(*statuses: int) -> Responses:
    """Document these refusals."""
    return {
        status: {
            **in_both_types(Problem, _TEXTS[status]),
            **({"headers": _PROBLEM_HEADERS[status]} if status in _PROBLEM_HEADERS else {}),
        }
        for status in statuses
    }


def parameters(**said: str) -> list[dict[str, Any]]:
    """Document these parameters of a query string."""
    return [
        {
            "name": name,
            "in": "query",
            "required": False,
            "allowEmptyValue": True,
            "schema": schema_of(name),
            "description": description,
        }
        for name, description in said.items()
    ]


def in_both_types(model: type[BaseModel], description: str) -> dict[str, Any]:
    """Document an answer that is application/problem+json, or application/json where Accept names only that."""
    schema = {"$ref": f"#/components/schemas/{model.__name__}"}
    return {"model": model, "description": description, "content": {"application/problem+json": {"schema": schema}}}


def document(api: FastAPI, *, needs_key: bool) -> dict[str, Any]:
    """Return the document without FastAPI's own 422, which is never sent: ours is a problem like any other.

    Without `needs_key` the service has no API key, and serves this machine without one: then a key is optional.
    """
    if api.openapi_schema:
        return api.openapi_schema
    whole = FastAPI.openapi(api)
    for _, operation in _operations(whole):
        if "HTTPValidationError" in str(operation["responses"].get("422", "")):
            del operation["responses"]["422"]
    schemas = whole["components"]["schemas"]
    for name in ("HTTPValidationError", "ValidationError"):
        schemas.pop(name, None)
    for _, operation in _operations(whole):
        for said in (*operation.get("requestBody", {}).get("content", {}).values(), *operation.get("parameters", ())):
            said["schema"] = _named(said["schema"], schemas)
    for schema in schemas.values():
        for name, field in schema.get("properties", {}).items():
            if name in _FIELDS:
                field.setdefault("description", _FIELDS[name])
    whole["components"]["schemas"] = dict(sorted(schemas.items()))
    _illustrate(whole)
    _complete(whole, needs_key=needs_key)
    return whole


def _complete(whole: dict[str, Any], *, needs_key: bool) -> None:
    """Say where the service is and which key it wants, and drop a media type that it never sends."""
    whole["servers"] = SERVERS
    for _, operation in _operations(whole):
        ways = operation.setdefault("security", [])
        if ways and not needs_key:
            ways.append({})
        for response in operation["responses"].values():
            if "application/health+json" in response.get("content", ()):
                del response["content"]["application/json"]  # FastAPI's, for the model


def _operations(whole: dict[str, Any]) -> Iterator[tuple[str, dict[str, Any]]]:
    for methods in whole["paths"].values():
        for operation in methods.values():
            yield operation["operationId"], operation


def _named(node: Any, schemas: dict[str, Any]) -> Any:
    """Move objects, enumerations and unions that have a title to the components, where generators find their names.

    Their defaults go: what is absent is not said, and a client that says it anyway would say nothing new.
    """
    if isinstance(node, list):
        return [_named(below, schemas) for below in node]
    if not isinstance(node, dict):
        return node
    node = {key: _named(below, schemas) for key, below in node.items()}
    if len(only := node.get("allOf", ())) == 1 and "$ref" in only[0]:
        return {**only[0], "description": node["description"]}  # OpenAPI 3.1: a reference may have a description
    if "title" not in node or not {"properties", "enum", "oneOf"} & node.keys():
        return node
    for field in node.get("properties", {}).values():
        field.pop("default", None)
    schemas[node["title"]] = node
    return {"$ref": f"#/components/schemas/{node['title']}"}


def _illustrate(whole: dict[str, Any]) -> None:
    """Show what the service answered; `at` says to what: an operation, or `*`, and a status."""
    examples = json.loads(packaged(_EXAMPLES))
    for operation_id, operation in _operations(whole):
        for status, response in operation["responses"].items():
            own = [name for name, example in examples.items() if f"{operation_id} {status}" in example["at"]]
            of_all = [name for name, example in examples.items() if f"* {status}" in example["at"]]
            for media in response.get("content", {}).values():
                fitting = own or (of_all if media.get("schema") == _PROBLEM else [])
                if not fitting:
                    continue
                media["examples"] = {name: {"$ref": f"#/components/examples/{name}"} for name in fitting}
    whole["components"]["examples"] = {
        name: {"summary": example["summary"], "value": example["value"]} for name, example in examples.items()
    }
