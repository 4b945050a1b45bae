"""The whole application in this process, over a real database, with a scripted relay for its one profile.

There is no port: requests go through ASGI, so that a test says who is calling. For the program as anybody starts
it see `tests.support.service`.
"""

import asyncio
import atexit
import functools
import shutil
import sqlite3
import tempfile
from collections.abc import AsyncIterator, Iterator, Mapping
from contextlib import AsyncExitStack, asynccontextmanager, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast
from unittest.mock import patch
from uuid import UUID

import httpx2
from structlog.testing import capture_logs

from app.api.edge import App, Gate
from app.api.send import HotRoute
from app.main import around
from app.runtime import Runtime
from app.settings import load
from app.store.database import migrate
from tests.support.relay import Relay

PATIENCE = 5.0  # seconds a test waits for a signal before it fails
BASE_URL = "http://127.0.0.1:8587"  # with a port: without one, a scope looks like the operator socket's
MESSAGE = {
    "from": "Bot <bot@ours.test>",
    "to": "ann@theirs.test",
    "subject": "Your order 4711",
    "text": "It is on its way.",
}


@dataclass(slots=True)
class Application:
    """One that runs. `client` comes from this machine, `without_hot_route` leaves all to FastAPI."""

    runtime: Runtime
    relay: Relay
    app: App
    without_hot_route: App
    client: httpx2.AsyncClient

    def visitor(
        self, *, peer: str = "127.0.0.1", app: App | None = None, headers: Mapping[str, str] | None = None
    ) -> httpx2.AsyncClient:
        """Give a client that comes from `peer`, by default to the whole application."""
        return _client(app or self.app, peer, headers or {})

    async def send(
        self, body: Mapping[str, Any] | None = None, *, prefer: str | None = None, **fields: Any
    ) -> httpx2.Response:
        """Post `body`, by default `MESSAGE`, with `fields` on top; a field that is None is left out."""
        whole = {name: value for name, value in {**(MESSAGE if body is None else body), **fields}.items() if value}
        headers = {} if prefer is None else {"Prefer": prefer}
        return await self.client.post("/send", json=whole, headers=headers)

    async def look_up(self, id: str) -> dict[str, Any]:
        answer = await self.client.get(f"/messages/{id}")
        assert answer.status_code == 200, answer.text
        return cast("dict[str, Any]", answer.json())

    async def settled(self, id: str) -> dict[str, Any]:
        """Wait until nothing more happens to a message, and give what is known of it."""
        while True:
            verdict = self.runtime.verdicts.expect(UUID(id))
            found = await self.look_up(id)
            if found["final"]:
                verdict.cancel()
                return found
            async with asyncio.timeout(PATIENCE):
                await verdict


@asynccontextmanager
async def running(
    folder: Path,
    relay: Relay | None = None,
    *,
    sandbox: bool = False,
    environ: Mapping[str, str] | None = None,
    keep: bool = False,
) -> AsyncIterator[Application]:
    """Open the application in `folder`.

    Its profile leads to `relay`, in clear and without a login unless `environ` says otherwise; in the sandbox
    there is none. At the end attempts under way are stopped at once, and nothing may have been logged that is a bug
    of ours.
    """
    async with relay or Relay() as peer, AsyncExitStack() as parts:
        logged = parts.enter_context(capture_logs())
        parts.enter_context(patch("app.runtime.GRACE", 0.0))
        database = folder / "mailchute.db"
        if not keep:
            shutil.copyfile(_migrated(), database)
        settings = load(
            {
                "MAILCHUTE_DATABASE_URL": str(database),
                **({} if sandbox else _profile(peer)),
                **(environ or {}),
            },
            files=(),
        )
        runtime = Runtime(settings)
        await runtime.open()
        parts.push_async_callback(runtime.close)
        await asyncio.sleep(0)  # the worker begins to claim; while it does, what is sent would be queued
        await runtime.outbox.check()  # operations run in order: the claim has come back
        app = around(runtime)
        yield Application(runtime, peer, app, _without_hot_route(app), _client(app, "127.0.0.1", {}))
    assert [event for event in logged if event["event"] in ("http.unexpected", "delivery.unexpected")] == []


def falling_back_to(other: Relay) -> dict[str, str]:
    """Give the settings of a second profile, `other`, which takes over from the first."""
    facts = {"HOST": other.host, "PORT": str(other.port), "TLS": "none"}
    return {
        "MAILCHUTE_PROFILES__RELAY__FALLBACK": "other",
        "MAILCHUTE_DEFAULT_PROFILE": "relay",
        **{f"MAILCHUTE_PROFILES__OTHER__{key}": value for key, value in facts.items()},
    }


@contextmanager
def locked(folder: Path) -> Iterator[None]:
    """Hold the database's write lock, as a stray shell does."""
    stray = sqlite3.connect(folder / "mailchute.db", isolation_level=None)
    stray.execute("BEGIN EXCLUSIVE")
    try:
        yield
    finally:
        stray.execute("ROLLBACK")
        stray.close()


def _profile(relay: Relay) -> dict[str, str]:
    facts = {"HOST": relay.host, "PORT": str(relay.port), "TLS": "none", "HELO_NAME": "ours.test"}
    return {f"MAILCHUTE_PROFILES__RELAY__{key}": value for key, value in facts.items()}


def _client(app: App, peer: str, headers: Mapping[str, str]) -> httpx2.AsyncClient:
    transport = httpx2.ASGITransport(app, client=(peer, 50000))
    return httpx2.AsyncClient(transport=transport, base_url=BASE_URL, headers=headers)


def _without_hot_route(app: App) -> App:
    """Give the same application with the same bounds, whose POST /send is FastAPI's."""
    assert isinstance(app, Gate)
    assert isinstance(app._inner, HotRoute)
    return Gate(app._inner._inner, max_body=app._max_body, in_flight=app._in_flight, metrics=app._metrics)


@functools.cache
def _migrated() -> Path:
    """Migrate one empty database for this process; a copy of it costs a hundredth."""
    folder = Path(tempfile.mkdtemp(prefix="mailchute-"))
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    database = folder / "mailchute.db"
    migrate(database)
    return database
