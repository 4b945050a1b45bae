"""Speaking with a service as its operator: HTTP through the socket beside its database.

Who can open that file is the operator; no key is needed. A socket that nobody listens on is a dead service's. Where
no service runs, `at_hand()` opens one of its own on the same database for as long as it is spoken with: the same
requests, the same answers, and the lock that keeps two of them apart.
"""

from __future__ import annotations

import asyncio
import json
import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import closing, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeAlias

from app.mail.errors import ConfigError
from app.settings import Settings

if TYPE_CHECKING:
    import httpx2

Query: TypeAlias = Mapping[str, str | None]

PATIENCE = 600.0  # seconds for an answer: a diagnosis may wait for a slow relay


class NoAnswer(Exception):
    """The running service has none for now; the text says why."""


@dataclass(frozen=True, slots=True)
class Reply:
    """What the service answered. `text` is the body as it came, `body` what it is as JSON, None = it is none."""

    status: int
    text: str
    body: Any


@dataclass(frozen=True, slots=True)
class Service:
    """A service to speak with. `is_running` = it goes on when this command ends."""

    is_running: bool
    send: Callable[[Request], Reply]

    def get(self, path: str, query: Query | None = None) -> Reply:
        """Ask for something."""
        return self.send(Request("GET", path, query=query or {}))

    def post(
        self,
        path: str,
        body: object = None,
        *,
        headers: Mapping[str, str] | None = None,
        query: Query | None = None,
    ) -> Reply:
        """Ask to do something."""
        return self.send(Request("POST", path, body, headers or {}, query or {}))


@dataclass(frozen=True, slots=True)
class Request:
    """A request before it is written."""

    method: str
    path: str
    body: object = None
    headers: Mapping[str, str] = field(default_factory=dict)
    query: Query = field(default_factory=dict)  # what is None is left out

    def by(self, client: httpx2.Client | httpx2.AsyncClient) -> httpx2.Request:
        """Write it."""
        query = {name: value for name, value in self.query.items() if value is not None}
        return client.build_request(self.method, self.path, json=self.body, headers=self.headers, params=query)


def socket_path(database: Path) -> Path:
    """Where a service with this database listens for its operator."""
    return database.parent / "mailchute.sock"


def ask(database: Path, method: str, path: str, body: object = None, *, patience: float = PATIENCE) -> Reply | None:
    """Ask the running service; None = there is none.

    Raises:
        NoAnswer: it was stopped meanwhile, or took longer than `patience` seconds.
    """
    with _running(database, patience=patience) as service:
        return service.send(Request(method, path, body)) if service is not None else None


def follow(database: Path) -> Iterator[dict[str, Any]] | None:
    """Give every change of a message's state, as the running service tells it; None = there is none."""
    import httpx2

    client = _client(database, timeout=None)
    try:
        answer = client.send(client.build_request("GET", "/changes"), stream=True)
    except httpx2.ConnectError:
        client.close()
        return None
    lines = answer.iter_lines()
    next(lines)  # an empty one, once nothing is missed any more
    return _changes(client, answer, lines)


def _changes(client: httpx2.Client, answer: httpx2.Response, lines: Iterator[str]) -> Iterator[dict[str, Any]]:
    with closing(client), closing(answer):
        for line in lines:
            yield json.loads(line)


@contextmanager
def at_hand(settings: Settings, *, delivers: bool) -> Iterator[Service]:
    """Give the running service, or one of our own; `delivers` = that one sends what is due while it is there.

    Raises:
        ConfigError, StoreUnavailable: none runs, and none can be opened.
        NoAnswer: as `ask`.
    """
    with _running(settings.database) as service:
        if service is not None:
            yield service
            return
    if not delivers and not settings.database.exists():
        raise ConfigError(
            f"no service runs here, and there is no database {settings.database}: run this where the service runs, "
            "with its settings"
        )
    with _our_own(settings, delivers=delivers) as own:
        yield own


def _client(database: Path, *, timeout: float | None) -> httpx2.Client:
    import httpx2  # 60 ms that serving never needs

    transport = httpx2.HTTPTransport(uds=str(socket_path(database)))
    return httpx2.Client(transport=transport, base_url="http://mailchute", timeout=timeout, trust_env=False)


@contextmanager
def _running(database: Path, *, patience: float = PATIENCE) -> Iterator[Service | None]:
    import httpx2

    with _client(database, timeout=patience) as client:

        def send(request: Request) -> Reply:
            try:
                return _reply(client.send(request.by(client)))
            except httpx2.TransportError as error:
                raise NoAnswer(f"the running service gave no answer: {error}") from error

        try:
            client.get("/livez")
        except httpx2.ConnectError:
            yield None
            return
        except httpx2.TransportError as error:
            raise NoAnswer(f"the running service gave no answer: {error}") from error
        yield Service(True, send)


@contextmanager
def _our_own(settings: Settings, *, delivers: bool) -> Iterator[Service]:
    import httpx2

    from app.main import around
    from app.runtime import Runtime
    from app.telemetry import set_up_logs

    set_up_logs(as_json=not sys.stderr.isatty())
    with asyncio.Runner() as runner:
        runtime = Runtime(settings, delivers=delivers)
        runner.run(runtime.open())
        try:
            # Without a port a request is the operator's, as on the socket.
            transport = httpx2.ASGITransport(around(runtime))
            client = httpx2.AsyncClient(transport=transport, base_url="http://operator", timeout=PATIENCE)

            yield Service(False, lambda request: _reply(runner.run(client.send(request.by(client)))))
            runner.run(client.aclose())
        finally:
            runner.run(runtime.close())


def _reply(answer: httpx2.Response) -> Reply:
    is_json = "json" in answer.headers.get("content-type", "")
    return Reply(answer.status_code, answer.text, answer.json() if is_json else None)
