"""Speaking with a running service as its operator: HTTP through the socket beside its database.

Who can open that file is the operator; no key is needed. A socket that nobody listens on is a dead service's.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

PATIENCE = 600.0  # seconds for an answer: a diagnosis may wait for a slow relay


class NoAnswer(Exception):
    """The running service has none for now; the text says why."""


@dataclass(frozen=True, slots=True)
class Reply:
    """What the service answered."""

    status: int
    body: Any  # of JSON


def socket_path(database: Path) -> Path:
    """Where a service with this database listens for its operator."""
    return database.parent / "mailchute.sock"


def ask(database: Path, method: str, path: str, body: object = None, *, patience: float = PATIENCE) -> Reply | None:
    """Ask the running service; None = there is none.

    Raises:
        NoAnswer: it was stopped meanwhile, or took longer than `patience` seconds.
    """
    import httpx2  # 60 ms that serving never needs

    transport = httpx2.HTTPTransport(uds=str(socket_path(database)))
    with httpx2.Client(transport=transport, base_url="http://mailchute", timeout=patience, trust_env=False) as client:
        try:
            answer = client.request(method, path, json=body)
        except httpx2.ConnectError:
            return None
        except httpx2.TransportError as error:
            raise NoAnswer(f"the running service gave no answer: {error}") from error
    return Reply(answer.status_code, answer.json())
