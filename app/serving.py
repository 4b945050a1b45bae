"""Running the application: uvicorn on TCP and on the control socket, from start-up text to drain.

The start-up text goes to stdout once both listen, as plain text whatever the log's form; logs go to stderr.

Order of a stop: nothing more is claimed, /readyz turns red, waiting callers are answered with what is known → after a
SIGTERM, `drain_delay` seconds in which requests are served as before, since whoever balances the load looks only now
and then, and mail that is taken now is kept and goes out after the next start → no new connections → requests end →
attempts drain (`Runtime.close`). A second signal does not wait. A disk that failed a sync is a stop without any of
the waiting, and exit code 1.
"""

from __future__ import annotations

import asyncio
import ctypes
import json
import os
import resource
import shlex
import signal
import socket
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import suppress
from functools import partial
from itertools import count
from types import FrameType

import structlog
import uvicorn

from app import __version__
from app.api.body import example
from app.control_socket import ControlSocket, path_of
from app.http1.connection import HttpProtocol, Limits
from app.mail.errors import ConfigError, StoreUnavailable
from app.main import around, prepare
from app.runtime import Runtime
from app.settings import Settings
from app.store.database import SCHEMA, Lock, schema_of
from app.systemd import Supervisor

SHUTDOWN_SECONDS = 10  # that requests under way get, before attempts get theirs (app.runtime.GRACE)
BACKLOG = 2048  # connections that wait to be taken
# Seconds that an idle connection stays open. Callers and proxies use theirs again within 4 to 120 (undici 4, httpx 5,
# nginx and ALB 60, Go 90, Caddy 120), and a request that meets its end is lost: they must be the first to close.
KEEP_ALIVE = 130
FILES = 100  # descriptors for the store, the listeners and some callers
MOST_CONNECTIONS = 1024  # of callers; each may hold some 64 kB of a head, or a small body
FEWEST_CONNECTIONS = 16
EXPIRE_EVERY = 1.0  # seconds between two looks at the connections' deadlines
_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD, _M_ARENA_MAX = -1, -3, -8  # mallopt(3)
_LARGE_BLOCK = 1 << 20  # bytes; from here on a block is a mapping of its own

log = structlog.get_logger()


def serve(settings: Settings, *, say: Callable[[str], None], read_again: Callable[[], Settings]) -> None:
    """Serve until a signal ends it; `say` gets the start-up text, and SIGHUP reads the settings again.

    Raises:
        ConfigError: it cannot be started as the settings stand.
        StoreUnavailable: the store cannot be opened now, or the disk failed a sync: start it again.
    """
    _return_freed_memory()
    # The kernel drops a signal to a container's process 1 that has no handler: the engine would wait, and kill.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(0))
    for warning in (*settings.warnings, *_too_few_files(settings)):
        log.warning("settings.warning", warning=warning)
    listener = _listen(settings)
    _migrate_apart(settings)
    config = uvicorn.Config(
        around(runtime := Runtime(settings)),
        loop="uvloop",
        http=partial(HttpProtocol, limits=Limits(connections=_most_connections(settings))),  # type: ignore[arg-type]
        ws="none",
        lifespan="off",  # the runtime is opened below, where its refusals can be told in plain words
        log_config=None,
        access_log=False,
        proxy_headers=False,
        server_header=False,
        backlog=BACKLOG,
        timeout_keep_alive=KEEP_ALIVE,
        timeout_graceful_shutdown=SHUTDOWN_SECONDS,
    )
    port = listener.getsockname()[1]
    server = _Server(config, runtime, lambda: say(start_up_text(settings, port)), read_again=read_again, port=port)
    signal.signal(signal.SIGHUP, signal.SIG_IGN)  # until there is something to reload
    # uvicorn raises the signal again when it is done; a drain that ended well is exit code 0.
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: None)
    server.run(sockets=[listener])
    if server.failure is not None:
        raise server.failure


def _return_freed_memory() -> None:
    """Have glibc give large blocks back when they are freed: by default it keeps up to 32 MB blocks for reuse."""
    with suppress(OSError, AttributeError):  # another C library, such as musl
        mallopt = ctypes.CDLL(None).mallopt
        mallopt(_M_MMAP_THRESHOLD, _LARGE_BLOCK)
        mallopt(_M_TRIM_THRESHOLD, 2 * _LARGE_BLOCK)
        mallopt(_M_ARENA_MAX, 2)


def _too_few_files(settings: Settings) -> Iterator[str]:
    """Without a free descriptor no caller is let in and no relay is reached; both go on when there is one again."""
    allowed, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = FILES + sum(profile.max_connections for profile in settings.profiles.values())
    if allowed < wanted:
        yield (
            f"no more than {allowed} files and connections may be open at once, and {wanted} are wanted ({FILES} for "
            "our own and for callers, and each profile's max_connections): raise it with ulimit -n or LimitNOFILE="
        )


def _most_connections(settings: Settings) -> int:
    """Return how many callers may be connected, so that a descriptor is left for the store and for each relay."""
    allowed, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    others = FILES + sum(profile.max_connections for profile in settings.profiles.values())
    return max(FEWEST_CONNECTIONS, min(MOST_CONNECTIONS, allowed - others))


def _migrate_apart(settings: Settings) -> None:
    """Bring the schema up to date in a process of its own: alembic is 15 MB that serving never needs again."""
    lock = Lock(settings.database)
    try:
        current = schema_of(settings.database)
    finally:
        lock.release()
    if current in (SCHEMA, None):  # a new file is made where it is opened
        return
    log.info("store.migrating", was=current, to=SCHEMA)
    done = subprocess.run(
        [sys.executable, "-m", "app", "migrate"], stdin=subprocess.DEVNULL, capture_output=True, text=True, check=False
    )
    if done.returncode != 0:
        kind = StoreUnavailable if done.returncode == 1 else ConfigError
        raise kind(done.stderr.strip().removeprefix("mailchute: "))


class _Server(uvicorn.Server):
    def __init__(
        self,
        config: uvicorn.Config,
        runtime: Runtime,
        announce: Callable[[], None],
        *,
        read_again: Callable[[], Settings],
        port: int,
    ) -> None:
        super().__init__(config)
        self._runtime = runtime
        self._listens_on = f"{_bracketed(runtime.settings.listen.host)}:{port}"
        self._supervisor = Supervisor(os.environ)
        self._announce = announce
        self._read_again = read_again
        self._has_terminal = sys.stdin.isatty()
        self._opening: asyncio.Task[None] | None = None
        self._preparing: asyncio.Task[None] | None = None
        self._tasks: list[asyncio.Task[None]] = []
        self._first_signal = 0
        self._control: ControlSocket | None = None
        self.failure: ConfigError | StoreUnavailable | None = None

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        self._opening = asyncio.create_task(self._runtime.open())
        try:
            await self._opening
            self._opening = None
            self._control = ControlSocket(path_of(self._runtime.settings.database), backlog=BACKLOG)
            await prepare(self._runtime)
            await super().startup(sockets)
            await self._serve_control_socket(self._control.listener)
        except (ConfigError, StoreUnavailable) as error:
            self.failure = error
            self.should_exit = True
            await self._runtime.close()
            return
        except asyncio.CancelledError:
            if not self.should_exit:
                raise
            return  # stopped while it waited for the store
        chores = (self._end_with_the_store(), self._expire_connections(), self._stay_alive())
        self._tasks += [asyncio.create_task(chore) for chore in chores]
        self._runtime.reread = self._reload
        asyncio.get_running_loop().add_signal_handler(signal.SIGHUP, self._hang_up)
        self._announce()
        log.info(
            "serving.started",
            version=__version__,
            listen=self._listens_on,
            profiles=list(self._runtime.profiles),
            sandbox=self._runtime.settings.sandbox,
        )
        self._supervisor.ready(f"Listening on {self._listens_on}")

    async def _end_with_the_store(self) -> None:
        await self._runtime.journal.broken.wait()
        log.critical("store.broken", error=self._runtime.journal.fault)
        self.failure = StoreUnavailable(f"{self._runtime.journal.fault}; start it again: the file tells what was kept")
        self._end_now()

    async def _expire_connections(self) -> None:
        loop = asyncio.get_running_loop()
        while True:
            await asyncio.sleep(EXPIRE_EVERY)
            for connection in list(self.server_state.connections):
                if isinstance(connection, HttpProtocol):
                    connection.expire(loop.time())

    async def _stay_alive(self) -> None:
        """Give systemd's watchdog its signs of life, which end when the event loop stands still."""
        every = self._supervisor.watchdog_every
        while every is not None:
            self._supervisor.alive()
            await asyncio.sleep(every)

    def _hang_up(self) -> None:
        """SIGHUP: read the settings again, or end with the terminal that was closed."""
        if self._has_terminal and not sys.stdin.isatty():
            self.handle_exit(signal.SIGHUP, None)
            return
        with suppress(ConfigError):  # which is in the log
            self._reload()

    def _reload(self) -> list[str]:
        """Read the settings again and go on by them; return the warnings.

        Raises:
            ConfigError: they cannot work, and the old ones still apply.
        """
        self._supervisor.reloading()
        try:
            settings = self._read_again()
            not_now = self._runtime.reload(settings)
            self._preparing = asyncio.create_task(prepare(self._runtime))
            self._preparing.add_done_callback(lambda done: done.cancelled() or done.exception())
        except ConfigError as error:
            for line in str(error).splitlines():
                log.error("settings.refused", error=line)
            self._supervisor.ready("The changed settings were refused; the old ones still apply")
            raise
        warnings = [*settings.warnings, *(f"{name} has changed, which takes a restart" for name in not_now)]
        for warning in warnings:
            log.warning("settings.warning", warning=warning)
        log.info("settings.reloaded", profiles=list(self._runtime.profiles))
        self._supervisor.ready(f"Listening on {self._listens_on}")
        return warnings

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        if self.should_exit:
            self._end_now()
        self._first_signal = self._first_signal or sig
        super().handle_exit(sig, frame)
        if self._opening is not None:
            self._opening.get_loop().call_soon_threadsafe(self._opening.cancel)

    def _end_now(self) -> None:
        self.should_exit = self.force_exit = True
        self._runtime.hurry()

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        self._supervisor.stopping()
        self._runtime.retire()
        if self.failure is None:
            await self._serve_on(self._runtime.settings.drain_delay if self._first_signal == signal.SIGTERM else 0.0)
        await super().shutdown(sockets)
        if self._control is not None:
            self._control.remove()
        await self._runtime.close()
        for task in self._tasks:
            task.cancel()
            with suppress(asyncio.CancelledError):
                await task

    async def _serve_on(self, seconds: float) -> None:
        """Let others notice that we stop, before they are turned away."""
        log.info("serving.stopping", seconds=seconds)
        ends = asyncio.get_running_loop().time() + seconds
        for tick in count(1):
            if self.force_exit or asyncio.get_running_loop().time() >= ends:
                return
            await asyncio.sleep(0.1)
            await self.on_tick(tick)  # the header Date

    async def _serve_control_socket(self, listener: socket.socket) -> None:
        loop = asyncio.get_running_loop()
        server = await loop.create_unix_server(
            lambda: self.config.http_protocol_class(  # type: ignore[call-arg]
                config=self.config, server_state=self.server_state, app_state={}, _loop=loop
            ),
            sock=listener,
            backlog=BACKLOG,
        )
        self.servers.append(server)


def _listen(settings: Settings) -> socket.socket:
    where = settings.listen
    family = socket.AF_INET6 if ":" in where.host else socket.AF_INET
    listener = socket.socket(family, socket.SOCK_STREAM)
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        listener.bind((where.host, where.port))
        listener.listen(BACKLOG)  # now: SO_REUSEADDR lets two of us bind, and the second to listen is refused
    except OSError as error:
        listener.close()
        raise ConfigError(
            f"{_bracketed(where.host)}:{where.port} cannot be listened on ({error.strerror}); set MAILCHUTE_LISTEN to "
            "another, such as 127.0.0.1:8588"
        ) from error
    return listener


def start_up_text(settings: Settings, port: int) -> str:
    """What a person reads when the service is up: where it is, what it does with mail, and a line to paste."""
    shown = _bracketed(_EVERY.get(settings.listen.host, settings.listen.host))
    base = f"http://{shown}:{port}{settings.base_path}"
    lines = [*_where(settings.listen.host, port, base), ""]
    if settings.sandbox:
        lines += [
            "SANDBOX: no relay is configured. Messages are kept here; nothing leaves this machine.",
            f"Read them at {base}/sandbox",
            "To see a failure, send to 550@, 451@, 421@, 552@, slow@ or drop@example.org (docs/sandbox.md).",
        ]
    else:
        lines += [_relay_line(settings)]
    if settings.hold:
        names = " ".join(settings.profiles) or "sandbox"
        lines += ["", f"HELD: nothing is sent until it is let go, a profile at a time: mailchute resume {names}"]
    key = ' -H "Authorization: Bearer $MAILCHUTE_API_KEY"' if settings.api_key else ""
    body = dict(example())
    if not settings.sandbox:
        body["to"] = body["from"] = "you@example.org"
    lines += [
        "",
        "Send one:" if settings.sandbox else "Send one (put your own addresses in):",
        f"curl {base}/send -H 'Content-Type: application/json'{key} -d {shlex.quote(json.dumps(body))}",
        "",
        f"The API: {base}/docs" if settings.docs else "The API's pages are off (docs = false).",
    ]
    if settings.listen.is_loopback:
        lines.append(f"From another machine: ssh -L {port}:{shown}:{port} {socket.gethostname()}")
    if settings.sandbox:
        lines.append("To send for real: SMTP_HOST=mail.example.org SMTP_PORT=587 make run")
    return "\n".join(lines)


# Wildcard addresses, and how this machine reaches what listens there.
_EVERY = {"0.0.0.0": "127.0.0.1", "::": "::1"}  # noqa: S104


def _where(host: str, port: int, base: str) -> list[str]:
    if host not in _EVERY:
        return [f"Mailchute {__version__} listens on {base}"]
    return [
        f"Mailchute {__version__} listens on {_bracketed(host)}:{port}, which is every address of this machine",
        f"From this machine: {base}",
    ]


def _bracketed(host: str) -> str:
    return f"[{host}]" if ":" in host else host


def _relay_line(settings: Settings) -> str:
    profile = settings.profiles[settings.default_profile]
    login = f"logs in as {profile.username}" if profile.wants_login else "without a login"
    return f"Sends through {profile.host}:{profile.port} (profile {profile.name}, tls {profile.tls}), {login}."
