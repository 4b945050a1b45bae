"""The shape of a diagnosis, for `POST /profiles/{name}/verify` and `mailchute doctor --json`.

Pure: Diagnosis in, plain values out. The models only describe the shape for OpenAPI.
"""

from __future__ import annotations

from typing import Any, Literal

from pydantic import BaseModel, Field

from app.api.answers import TranscriptLine
from app.mail.outcome import FailureClass
from app.smtp.doctor import Diagnosis, StageState


class StageAnswer(BaseModel):
    """One stage of a diagnosis."""

    stage: str
    state: Literal["ok", "failed", "skipped"]
    ms: float | None = Field(description="null = it did not take place")
    message: str = Field(description="a few words about it")


class DiagnosisAnswer(BaseModel):
    """What a walk through a profile's stages found; `ok` = a message would get as far as its content."""

    profile: str
    ok: bool
    host: str
    ip: str | None
    port: int
    stages: list[StageAnswer] = Field(description="in order; all nine are always there")
    tls: bool
    tls_version: str | None
    tls_cipher: str | None
    tls_verified: bool
    tls_names: list[str]
    tls_not_after: str | None
    tls_sha256: str | None
    tls_error: str | None
    auth: str | None = Field(description="the AUTH mechanism, null = none was sent")
    auth_offered: list[str] = Field(description="mechanisms that the relay offers")
    size_limit: int | None = Field(description="bytes of a message that the relay takes, null = it does not say")
    extensions: list[str] = Field(description="all that EHLO told")
    error_code: str | None
    reason: str | None
    class_: FailureClass | None = Field(alias="class")
    message: str
    hint: str | None
    smtp_code: int | None
    enhanced_code: str | None
    transcript: list[TranscriptLine]


def shape_of(found: Diagnosis) -> dict[str, Any]:
    """Give a diagnosis as JSON has it."""
    attempt, failure = found.attempt, found.failure
    offered = {keyword: rest for keyword, _, rest in (line.partition(" ") for line in attempt.extensions)}
    size = offered.get("SIZE", "")
    return {
        "profile": found.profile.name,
        "ok": found.is_ok,
        "host": attempt.host,
        "ip": attempt.ip,
        "port": attempt.port,
        "stages": [
            {"stage": stage.phase.value, "state": stage.state.value, "ms": stage.ms, "message": stage.said}
            for stage in found.stages
        ],
        "tls": attempt.tls,
        "tls_version": attempt.tls_version,
        "tls_cipher": attempt.tls_cipher,
        "tls_verified": attempt.tls_verified,
        "tls_names": list(attempt.tls_names),
        "tls_not_after": attempt.tls_not_after,
        "tls_sha256": attempt.tls_sha256,
        "tls_error": attempt.tls_error,
        "auth": attempt.auth,
        "auth_offered": offered.get("AUTH", "").split(),
        "size_limit": int(size) if size.isdecimal() and 0 < len(size) <= 20 and int(size) > 0 else None,
        "extensions": attempt.extensions,
        "error_code": failure.code.value if failure else None,
        "reason": failure.reason.value if failure else None,
        "class": failure.cls.value if failure else None,
        "message": failure.message if failure else _all_well(found),
        "hint": failure.hint if failure else None,
        "smtp_code": failure.smtp_code if failure else None,
        "enhanced_code": failure.enhanced_code if failure else None,
        "transcript": [{"ms": ms, "dir": dir_, "line": line} for ms, dir_, line in attempt.transcript],
    }


def _all_well(found: Diagnosis) -> str:
    skipped = [stage.phase for stage in found.stages[-2:] if stage.state is StageState.SKIPPED]
    asked = " (no sender was named, so MAIL and RCPT were not asked)" if skipped else ""
    return f"the relay would take a message through {found.profile.name}{asked}; nothing was sent"
