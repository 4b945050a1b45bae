"""The programs of a run: the sink, the services under test, the wire in between. Each ends with its `with` block.

Only processes that were started here are ever signalled, by their pid.
"""

from __future__ import annotations

import http.client
import os
import re
import shutil
import socket
import sqlite3
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Mapping
from contextlib import ExitStack, suppress
from pathlib import Path
from types import TracebackType
from typing import Self

CONNECTIONS = 16  # that each service may open to the relay
ROOT = Path(__file__).parent.parent
_PATH = os.environ.get("PATH", "") + ":/usr/sbin:/sbin"
_LISTENS = re.compile(r"listens on http://127\.0\.0\.1:(\d+)")
_PATIENCE = 15.0  # seconds that anything may take to come up, go down or be counted


class CannotRun(Exception):
    """Something that the run needs is not there; the text says what."""


def until(condition: Callable[[], bool], what: str, *, seconds: float = _PATIENCE, pause: float = 0.005) -> None:
    """Wait for a condition.

    Raises:
        CannotRun: it did not come true in time.
    """
    ends = time.monotonic() + seconds
    while not condition():
        if time.monotonic() > ends:
            raise CannotRun(f"waited {seconds:g} s in vain: {what}")
        time.sleep(pause)


class Program:
    """One child process and the folder it writes to."""

    def __init__(self, command: list[str], folder: Path, name: str, environment: dict[str, str] | None = None) -> None:
        self._parts = ExitStack()
        self.name = name
        self.log = folder / f"{name}.log"
        self.began = time.perf_counter()
        self.process = subprocess.Popen(
            command,
            cwd=folder if environment is not None else ROOT,
            env=environment,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._parts.enter_context(self.log.open("ab")),
            text=True,
        )

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()

    def stop(self) -> None:
        """Ask it to end, wait, and insist if it does not; idempotent."""
        with self._parts:
            self.process.terminate()
            try:
                self.process.wait(_PATIENCE)
            except subprocess.TimeoutExpired:
                self.process.kill()
                self.process.wait()
            for pipe in (self.process.stdin, self.process.stdout):
                if pipe is not None:
                    with suppress(OSError):
                        pipe.close()

    def line(self, *, seconds: float = 4 * _PATIENCE) -> str:
        """Take the next line it prints; it is ended if there is none in time.

        Raises:
            CannotRun: it has ended.
        """
        assert self.process.stdout is not None
        patience = threading.Timer(seconds, self.process.kill)
        patience.daemon = True
        patience.start()
        line = self.process.stdout.readline()
        patience.cancel()
        if not line:
            tail = self.log.read_text("utf-8", "replace").strip().splitlines()[-1:]
            raise CannotRun(f"{self.name} ended or said nothing: {' '.join(tail) or 'its log is empty'}")
        return line

    def cpu(self) -> float:
        """User and system time of all its threads so far, in seconds."""
        # clock_getcpuclockid(3): the kernel's own count, where /proc/PID/stat has ticks of 10 ms.
        return time.clock_gettime_ns((~self.process.pid << 3) | 2) / 1e9

    def rss(self) -> float:
        """Resident memory now, in MB (10⁶ bytes)."""
        status = Path(f"/proc/{self.process.pid}/status").read_text("ascii")
        found = re.search(r"VmRSS:\s+(\d+) kB", status)
        assert found is not None
        return int(found[1]) * 1024 / 1e6


class Sink:
    """Debian's smtp-sink: takes every mail with PIPELINING, throws it away, and counts it."""

    def __init__(self, folder: Path) -> None:
        binary = shutil.which("smtp-sink", path=_PATH)
        if binary is None:
            raise CannotRun("smtp-sink is missing. On Debian: apt-get install postfix")
        self.port = _free_port()
        self._counts = folder / "smtp-sink.counts"
        user = ["-u", "nobody"] if os.geteuid() == 0 else []  # it refuses to run as root
        with self._counts.open("wb") as counts:
            self._process = subprocess.Popen(
                [binary, *user, "-c", f"127.0.0.1:{self.port}", "1000"], stdout=counts, stderr=subprocess.DEVNULL
            )
        until(lambda: _answers(self.port), "smtp-sink does not answer")

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._process.terminate()
        self._process.wait()

    def mails(self) -> int:
        """How many mails it has taken; it writes `sess=1 quit=0 mesg=3` and a CR at each."""
        with self._counts.open("rb") as counts:
            counts.seek(max(0, counts.seek(0, os.SEEK_END) - 200))
            found = re.findall(rb"mesg=(\d+)(?=\s)", counts.read())
        return int(found[-1]) if found else 0


class Wire(Program):
    """A TCP proxy in front of a port, `seconds` long in each direction."""

    def __init__(self, target: int, seconds: float, folder: Path) -> None:
        super().__init__([sys.executable, "-m", "bench.delay", str(target), str(seconds)], folder, "wire")
        self.port = int(self.line())


class Service(Program):
    """A service under test."""

    label = ""

    def __init__(self, command: list[str], folder: Path, environment: dict[str, str]) -> None:
        super().__init__(command, folder, self.label, environment)
        self.port = 0
        while not self.port:
            found = _LISTENS.search(self.line())
            self.port = int(found[1]) if found else 0
        self.said_ready = time.perf_counter() - self.began  # seconds from exec to its start-up text

    def is_ready(self) -> bool:
        """Whether /readyz answers 200 now."""
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=5)
        try:
            connection.request("GET", "/readyz")
            return connection.getresponse().status == 200
        except OSError:
            return False
        finally:
            connection.close()

    def logged(self) -> int:
        """How many mails its log says were sent."""
        raise NotImplementedError

    def stored(self) -> int | None:
        """How many its database says were sent, once it has ended; None = it has no database."""
        return None


class Mailchute(Service):
    """`mailchute serve`, with a database in `folder` that is made if it is not there."""

    label = "mailchute"

    def __init__(
        self, folder: Path, smtp_port: int, *, program: Path | None = None, settings: Mapping[str, str] | None = None
    ) -> None:
        self._database = folder / "mailchute.db"
        config = folder / "mailchute.toml"
        config.touch()
        environment = _environment() | {
            "MAILCHUTE_CONFIG": str(config),
            "MAILCHUTE_LISTEN": "127.0.0.1:0",
            "MAILCHUTE_DRAIN_DELAY": "0",
            "MAILCHUTE_DATABASE_URL": str(self._database),
            "MAILCHUTE_LOG": "json",
            "MAILCHUTE_PROFILES__DEFAULT__MAX_CONNECTIONS": str(CONNECTIONS),
            "SMTP_HOST": "127.0.0.1",
            "SMTP_PORT": str(smtp_port),
            "SMTP_TLS": "none",
            **(settings or {}),
        }
        program = program or Path(sys.executable).with_name("mailchute")
        super().__init__([str(program), "serve"], folder, environment)

    def logged(self) -> int:
        return self.log.read_bytes().count(b'"event":"delivery.sent"')

    def stored(self) -> int | None:
        # Its process has ended: nobody but the service may open the file while that runs.
        connection = sqlite3.connect(self._database)
        try:
            (count,) = connection.execute(
                "SELECT count(*) FROM messages JOIN attempts ON attempts.message_id = messages.id "
                "WHERE messages.state = 'sent' AND attempts.facts IS NOT NULL"
            ).fetchone()
        finally:
            connection.close()
        return int(count)


class Rival(Service):
    """nodemailer behind fastify, installed by `Rival.install`."""

    label = "nodemailer"

    def __init__(self, folder: Path, smtp_port: int, *, installed: Path) -> None:
        self._rows = folder / "rows.jsonl"
        node = shutil.which("node") or "node"
        command = [node, str(installed / "server.js"), str(smtp_port), str(self._rows)]
        super().__init__(command, folder, _environment() | {"NODE_ENV": "production"})

    def logged(self) -> int:
        return self._rows.read_bytes().count(b'"state":"sent"')

    @staticmethod
    def install(folder: Path) -> Path:
        """Bring its packages into `folder`.

        Raises:
            CannotRun: there is no Node, or npm cannot bring them.
        """
        for program in ("node", "npm"):
            if shutil.which(program) is None:
                raise CannotRun(f"{program} is missing. On Debian: apt-get install nodejs npm")
        for file in (ROOT / "bench" / "rival").iterdir():
            if file.is_file():
                shutil.copy(file, folder)
        command = ["npm", "install", "--omit=dev", "--no-package-lock", "--ignore-scripts", "--no-audit", "--no-fund"]
        try:
            done = subprocess.run(
                command, cwd=folder, capture_output=True, text=True, timeout=300, stdin=subprocess.DEVNULL, check=False
            )
        except subprocess.TimeoutExpired as error:
            raise CannotRun("npm did not bring the packages within 300 s") from error
        if done.returncode != 0:
            raise CannotRun(f"npm cannot bring the packages: {(done.stderr.strip().splitlines() or ['?'])[-1]}")
        return folder


def _environment() -> dict[str, str]:
    """Our own, less every setting of a service."""
    kept = ("PATH", "HOME", "LANG", "LC_ALL", "TZ", "TMPDIR")
    return {name: value for name, value in os.environ.items() if name in kept}


def _free_port() -> int:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        port: int = listener.getsockname()[1]
        return port


def _answers(port: int) -> bool:
    try:
        with socket.create_connection(("127.0.0.1", port), timeout=1) as connection:
            return connection.recv(4).startswith(b"220")
    except OSError:
        return False
