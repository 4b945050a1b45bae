"""A service to send requests to: the running one through its control socket, or one of our own on the same database.

Who can open the socket is the operator; no key is needed. Before anything is asked of the running service, it is asked
which database it has open: another one than ours ends the command. Where none runs, `at_hand()` opens one of its own
for as long as it is needed: the same requests, the same responses, and the lock that keeps two of them apart.
"""

from __future__ import annotations

import asyncio
import json
import os
import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import closing, contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from stat import S_ISREG
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any, TypeAlias

from app.control_socket import path_of, reach
from app.mail.errors import ConfigError
from app.settings import Settings
from app.store.database_file import DatabaseFile

if TYPE_CHECKING:
    import httpx2

Query: TypeAlias = Mapping[str, str | None]

PATIENCE = 600.0  # seconds for a response: a diagnosis may wait for a slow relay
FIRST_PATIENCE = 5.0  # seconds for the first one, which needs nothing but the service
_SQLITE = b"SQLite format 3\0"  # sqlite.org/fileformat.html#magic_header_string


class NoAnswer(Exception):
    """The running service has no answer for now; the text says why."""


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


def no_service(database: Path) -> str:
    """Say that none runs, and where it was looked for."""
    return f"no service runs here (nothing listens on {path_of(database)})"


def require_database(database: Path) -> None:
    """Refuse before a lock's file is made beside what is no database, and before a database is made of it.

    Raises:
        ConfigError: there is none, or this user may not read it.
    """
    cure = "run this where the service runs, as its user and with its settings"
    try:
        facts = database.stat()
        # This process has no lock of SQLite's on the file yet, which closing it would free.
        is_database = S_ISREG(facts.st_mode) and _begins_with(database, _SQLITE)
    except (FileNotFoundError, NotADirectoryError):
        raise ConfigError(f"{no_service(database)}, and there is no database {database}: {cure}") from None
    except OSError as error:
        raise ConfigError(f"{no_service(database)}, and {database} cannot be read: {error.strerror}; {cure}") from error
    if not is_database:
        raise ConfigError(f"{no_service(database)}, and {database} is no database: {cure}")


def _begins_with(file: Path, what: bytes) -> bool:
    with file.open("rb") as opened:
        return opened.read(len(what)) == what


def ask(database: Path, method: str, path: str, body: object = None, *, patience: float = PATIENCE) -> Reply | None:
    """Ask the running service; None = there is none.

    Raises:
        ConfigError: it is another database's, or this user may not ask it.
        NoAnswer: it was stopped meanwhile, or took longer than `patience` seconds.
    """
    with _running(database, patience=patience) as service:
        return service.send(Request(method, path, body)) if service is not None else None


@contextmanager
def following(database: Path) -> Iterator[Iterator[dict[str, Any]] | None]:
    """Yield every change of a message's state, as the running service reports it; None = there is none.

    Raises:
        ConfigError: as `ask`.
        NoAnswer: the service ended without closing the connection, also from the iterator.
    """
    with _connected(database, patience=PATIENCE) as client:
        if client is None:
            yield None
            return
        import httpx2

        timeout = httpx2.Timeout(FIRST_PATIENCE, read=None)
        with _plain_errors(FIRST_PATIENCE):
            response = client.send(client.build_request("GET", "/changes", timeout=timeout), stream=True)
        with closing(response):
            changes = _changes(response)
            next(changes, None)  # an empty one, once nothing is missed any more
            yield changes


def _changes(response: httpx2.Response) -> Iterator[dict[str, Any]]:
    with _plain_errors(FIRST_PATIENCE):
        response.raise_for_status()
        for line in response.iter_lines():
            yield json.loads(line or "{}")


@contextmanager
def at_hand(
    settings: Settings, *, delivers: bool = False, rehearses: bool = False, saves: bool = False
) -> Iterator[Service]:
    """Yield the running service, or one of our own on the same database.

    Our own service leaves the queue alone and makes no database. One that `delivers` sends what is due while it is
    there, and makes the database if need be; one that `rehearses` has a database of its own that goes with it. What
    `saves` also reaches a running service whose file was removed or replaced: it still has that file open.

    Raises:
        ConfigError: none runs, and none can be opened as things stand; or as `ask`.
        StoreUnavailable: none runs, and none can be opened now.
        NoAnswer: as `ask`.
    """
    with _running(settings.database, patience=PATIENCE, saves=saves) as service:
        if service is not None:
            yield service
            return
    with _our_own(settings, delivers=delivers, rehearses=rehearses) as own:
        yield own


@contextmanager
def _running(database: Path, *, patience: float, saves: bool = False) -> Iterator[Service | None]:
    with _connected(database, patience=patience, saves=saves) as client:
        if client is None:
            yield None
            return

        def send(request: Request) -> Reply:
            acts = request.method != "GET" and not request.path.endswith("/verify")
            return _response(lambda: client.send(request.by(client)), patience, acts=acts)

        yield Service(True, send)


@contextmanager
def _connected(database: Path, *, patience: float, saves: bool = False) -> Iterator[httpx2.Client | None]:
    """Yield a client of the running service, once that has this database; None = no service runs."""
    with reach(path_of(database)) as address:
        if address is None:
            yield None
            return
        import httpx2  # 60 ms that serving never needs

        transport = httpx2.HTTPTransport(uds=address)
        with httpx2.Client(
            transport=transport, base_url="http://mailchute", timeout=patience, trust_env=False
        ) as client:
            first = min(patience, FIRST_PATIENCE)
            identity = _response(lambda: client.get("/service", timeout=first), first)
            _check_identity(database, identity, saves=saves)
            yield client


def _check_identity(database: Path, reply: Reply, *, saves: bool) -> None:
    """Refuse a service of another database: its messages are not those that we were asked about."""
    path = path_of(database)
    if reply.status != 200 or not isinstance(reply.body, dict) or "inode" not in reply.body:
        raise ConfigError(f"what listens on {path} is no Mailchute service: it does not say which database it has")
    ours = DatabaseFile.at(database)
    theirs = DatabaseFile(Path(reply.body["path"]), reply.body["device"], reply.body["inode"])
    is_of_this_path = theirs.path == Path(os.path.realpath(database))
    if theirs.is_same(ours) or (saves and is_of_this_path):
        return
    if is_of_this_path:
        raise ConfigError(
            f"nothing was done: the database file that the service on {path} has open is no longer at {database}, "
            "where it was found at start; save what it has open (mailchute backup FILE), stop it, and put the right "
            "file there"
        )
    raise ConfigError(
        f"nothing was done: the service that listens on {path} has another database open, {theirs.path}, and not "
        f"{database}; set MAILCHUTE_DATABASE_URL to the database that you mean, or stop that service"
    )


def _response(send: Callable[[], httpx2.Response], patience: float, *, acts: bool = False) -> Reply:
    with _plain_errors(patience, acts=acts):
        reply = _reply(send())
    if reply.status >= 400 and not isinstance(reply.body, dict):
        raise NoAnswer(f"the running service gave no answer: status {reply.status} without a reason; look at its log")
    return reply


@contextmanager
def _plain_errors(patience: float, *, acts: bool = False) -> Iterator[None]:
    """Raise `NoAnswer` where the connection or the response is broken; an act may have been done all the same."""
    import httpx2

    after = "; what was asked of it may have been done: look before you repeat it" if acts else ""
    try:
        yield
    except httpx2.TimeoutException as error:
        raise NoAnswer(f"the running service gave no answer within {patience:g} s: look at its log{after}") from error
    except (httpx2.HTTPError, ValueError) as error:
        raise NoAnswer(f"the running service gave no answer: {error}{after}") from error


@contextmanager
def _our_own(settings: Settings, *, delivers: bool, rehearses: bool) -> Iterator[Service]:
    if rehearses or delivers:
        _refuse_a_sandbox_by_accident(settings)
    else:
        require_database(settings.database)
    if not rehearses:
        with _opened(settings, delivers=delivers) as own:
            yield own
        return
    with _temporary_folder() as folder:
        # Only a service that delivers has the sandbox's profiles; here nothing is due.
        rehearsal = replace(settings, database=Path(folder, "mailchute.db"))
        with _opened(rehearsal, delivers=settings.sandbox) as own:
            yield own


def _temporary_folder() -> TemporaryDirectory[str]:
    try:
        return TemporaryDirectory(prefix="mailchute-")
    except OSError as error:
        raise ConfigError(f"a dry run where no service runs needs a temporary folder: {error.strerror}") from error


def _refuse_a_sandbox_by_accident(settings: Settings) -> None:
    if settings.sandbox and not settings.sandbox_was_chosen:
        raise ConfigError(
            f"{no_service(settings.database)}, and no relay is configured: nothing was sent. Run this with the "
            "settings of the service, or set SMTP_HOST to a relay's host name, or MAILCHUTE_SANDBOX=true to keep the "
            f"message in {settings.database}"
        )


@contextmanager
def _opened(settings: Settings, *, delivers: bool) -> Iterator[Service]:
    import httpx2

    from app.main import around
    from app.runtime import Runtime
    from app.telemetry import set_up_logs

    set_up_logs(as_json=not sys.stderr.isatty(), level=settings.log_level)
    with asyncio.Runner() as runner:
        runtime = Runtime(settings, delivers=delivers)
        try:
            runner.run(runtime.open())
        except ConfigError as error:
            raise ConfigError(f"{no_service(settings.database)}, and {error}") from error
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
