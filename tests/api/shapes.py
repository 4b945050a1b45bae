"""The shapes that the contract promises, written down once more, by hand."""

import json
from collections.abc import Mapping
from typing import Any

import httpx2

FLAT = [
    "id",
    "state",
    "ok",
    "final",
    "will_retry",
    "message",
    "message_id",
    "profile",
    "attempts",
    "error_code",
    "reason",
    "class",
    "smtp_code",
    "enhanced_code",
    "hint",
    "accepted",
    "rejected",
    "created_at",
    "next_attempt_at",
    "expires_at",
    "sandbox",
    "warnings",
]
LISTED = [*FLAT, "subject", "to", "recipient_count"]  # an entry of GET /messages
REJECTED = ["address", "error_code", "reason", "smtp_code", "enhanced_code", "message"]
ATTEMPT = [
    "number",
    "profile",
    "host",
    "ip",
    "port",
    "started_at",
    "duration_ms",
    "phases",
    "tls",
    "tls_version",
    "tls_cipher",
    "tls_verified",
    "tls_names",
    "tls_not_after",
    "tls_sha256",
    "tls_error",
    "auth",
    "extensions",
    "phase",
    "error_code",
    "reason",
    "class",
    "reply",
    "smtp_code",
    "enhanced_code",
    "handover",
    "transcript",
]
DIAGNOSIS = [
    "profile",
    "ok",
    "host",
    "ip",
    "port",
    "stages",
    "tls",
    "tls_version",
    "tls_cipher",
    "tls_verified",
    "tls_names",
    "tls_not_after",
    "tls_sha256",
    "tls_error",
    "auth",
    "auth_offered",
    "size_limit",
    "extensions",
    "error_code",
    "reason",
    "class",
    "message",
    "hint",
    "smtp_code",
    "enhanced_code",
    "transcript",
]
STAGES = ["resolve", "connect", "tls", "greeting", "ehlo", "starttls", "auth", "mail", "rcpt"]
OF_A_PROBLEM = ["type", "title", "status", "detail"]
PROBLEM = [*OF_A_PROBLEM, "ok", "errors"]

PROBLEM_JSON, JSON = "application/problem+json", "application/json"


def flat(answer: httpx2.Response, *, status: int) -> dict[str, Any]:
    """Give the flat shape of an answer about a message, whose keys and their order are checked."""
    assert answer.status_code == status, answer.text
    said: dict[str, Any] = json.loads(answer.content)
    assert list(said) == [*(OF_A_PROBLEM if status == 424 else []), *FLAT]
    assert all(list(rejected) == REJECTED for rejected in said["rejected"])
    return said


def problem(answer: httpx2.Response, *, status: int, at: str | None = None) -> dict[str, Any]:
    """Give a refusal at the door, whose shape is checked; `at` is the pointer of its one fault."""
    assert answer.status_code == status, answer.text
    said: dict[str, Any] = json.loads(answer.content)
    assert list(said) == PROBLEM
    assert said["type"].startswith("/errors/")
    assert said["status"] == status
    assert said["ok"] is False
    assert said["title"]
    assert said["detail"]
    for fault in said["errors"]:
        assert list(fault) == ["detail", "pointer"]
    if at is not None:
        assert pointers(said) == [at]
        assert said["detail"] == said["errors"][0]["detail"]
    return said


def pointers(said: Mapping[str, Any]) -> list[str]:
    return [fault["pointer"] for fault in said["errors"]]
