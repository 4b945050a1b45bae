"""The real program as a child process: `mailchute serve` in a temporary folder, on a free port of loopback.

Knows the command line, the start-up text, the log lines and the control socket, and nothing of the program's
insides. The child gets the environment it is given and nothing else of ours; it is ended by its own pid. Nothing
here sleeps: a start is over when the start-up text is there, and what happens later shows as a line of the log.
"""

import asyncio
import contextlib
import json
import os
import shutil
import signal
import sys
import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Any, Self

import httpx2

MAILCHUTE = str(Path(sys.executable).with_name("mailchute"))
PATIENCE = 20.0  # seconds a test waits for a start, an end or a log line before it fails
LONGEST_LINE = 1 << 20  # bytes of one line of the child's

MAIL: Mapping[str, object] = {
    "from": "Bot <bot@ours.test>",
    "to": "ann@theirs.test",
    "subject": "Order 4711",
    "text": "It is on its way.",
}


class NotStarted(Exception):
    """The child ended before it announced itself; the text is what it said on stderr."""


@dataclass(frozen=True, slots=True)
class Ended:
    """A command that came to its end."""

    code: int
    out: str
    err: str


def environment(settings: Mapping[str, str]) -> dict[str, str]:
    """Give a child's whole environment: programs and modules, a free port, no wait at a SIGTERM, and the settings."""
    kept = {name: os.environ[name] for name in ("PATH", "HOME", "TMPDIR", "PYTHONPATH") if name in os.environ}
    return {**kept, "MAILCHUTE_LISTEN": "127.0.0.1:0", "MAILCHUTE_DRAIN_DELAY": "0", **settings}


async def run(
    *command: str, folder: Path, settings: Mapping[str, str] = MappingProxyType({}), patience: float = PATIENCE
) -> Ended:
    """Run a command that ends by itself within `patience` seconds; what it leaves running is killed."""
    pipe = asyncio.subprocess.PIPE
    process = await asyncio.create_subprocess_exec(
        *command, cwd=folder, env=environment(settings), stdin=asyncio.subprocess.DEVNULL, stdout=pipe, stderr=pipe
    )
    try:
        async with asyncio.timeout(patience):
            out, err = await process.communicate()
    except BaseException:
        with contextlib.suppress(ProcessLookupError):
            process.kill()
        await process.communicate()
        raise
    assert process.returncode is not None
    return Ended(process.returncode, out.decode(), err.decode())


class Service:
    """One run of `mailchute serve`, started by `async with`, whose end kills what still runs.

    `folder` is where it is started, None = a temporary one that goes with the last run in it. A restart is a
    second Service with the first one's folder: `async with Service(settings, folder=first.folder)`.
    """

    def __init__(
        self,
        settings: Mapping[str, str] = MappingProxyType({}),
        *,
        folder: Path | None = None,
        command: Sequence[str] = (MAILCHUTE, "serve"),
        stdin: int = asyncio.subprocess.DEVNULL,
    ) -> None:
        self.folder = folder or Path()  # a temporary one is made at the start
        self.text = ""  # the start-up text
        self.errors: list[str] = []  # stderr's lines
        self._is_temporary = folder is None
        self._command = command
        self._stdin = stdin
        self._settings = settings
        self._more = asyncio.Event()
        self._has_ended = False
        self._rest: asyncio.Task[None] | None = None

    async def __aenter__(self) -> Self:
        if self._is_temporary:
            self.folder = Path(
                tempfile.mkdtemp(prefix="mailchute-")
            )  # short: httpx2 reaches a socket by its path, of at most 107 bytes
        try:
            await self._start()
        except BaseException:
            self._clean_up()
            raise
        local = httpx2.AsyncHTTPTransport(uds=str(self.operator_path), verify=False)
        self.http = httpx2.AsyncClient(base_url=self.base, trust_env=False, timeout=PATIENCE, verify=False)
        self.operator = httpx2.AsyncClient(base_url="http://operator", transport=local, timeout=PATIENCE)
        return self

    async def __aexit__(self, kind: object, error: BaseException | None, trace: object) -> None:
        await self.http.aclose()
        await self.operator.aclose()
        await self.kill()
        self._clean_up()

    @property
    def base(self) -> str:
        """The first URL of the start-up text: how this machine reaches the service."""
        return "http://" + self.text.partition("http://")[2].split()[0]

    @property
    def database(self) -> Path:
        return self.folder / self._settings.get("MAILCHUTE_DATABASE_URL", "var/mailchute.db")

    @property
    def operator_path(self) -> Path:
        return Path(f"{self.database}.sock")

    @property
    def log(self) -> list[dict[str, Any]]:
        """The log so far; a line that is not JSON fails the test."""
        return [json.loads(line) for line in self.errors]

    async def logged(self, event: str, **fields: object) -> dict[str, Any]:
        """Wait for a log line with this event and these fields; it may be there already."""

        def find() -> dict[str, Any] | None:
            wanted = {"event": event, **fields}.items()
            return next((line for line in self.log if wanted <= line.items()), None)

        await self._until(lambda: find() is not None, f"{event} {fields}")
        found = find()
        assert found is not None
        return found

    async def send(self, *, prefer: str = "", **fields: object) -> httpx2.Response:
        """POST /send the usual mail, with these fields in place of its own."""
        headers = {"Prefer": prefer} if prefer else {}
        return await self.http.post("/send", json={**MAIL, **fields}, headers=headers)

    async def message(self, id: str) -> dict[str, Any]:
        """Look a message up."""
        answer = await self.http.get(f"/messages/{id}")
        assert answer.status_code == 200, answer.text
        found: dict[str, Any] = answer.json()
        return found

    async def stop(self, number: signal.Signals = signal.SIGTERM) -> int:
        """Ask it to end, and give its exit code once it has."""
        self.process.send_signal(number)
        return await self.ended()

    async def ended(self) -> int:
        """Wait until it has ended by itself, and give its exit code."""
        async with asyncio.timeout(PATIENCE):
            return await self._end()

    async def kill(self) -> None:
        """End it as a power cut would (the kernel keeps what was written); idempotent."""
        if self.process.returncode is None:
            with contextlib.suppress(ProcessLookupError):
                self.process.kill()
        await self._end()

    def _clean_up(self) -> None:
        if self._is_temporary:
            shutil.rmtree(self.folder)

    async def _start(self) -> None:
        pipe = asyncio.subprocess.PIPE
        self.process = await asyncio.create_subprocess_exec(
            *self._command,
            cwd=self.folder,
            env=environment(self._settings),
            stdin=self._stdin,
            stdout=pipe,
            stderr=pipe,
            limit=LONGEST_LINE,
        )
        self._listening = asyncio.create_task(self._read_errors())
        try:
            async with asyncio.timeout(PATIENCE):
                await self._read_text()
        except NotStarted:
            await self._end()  # a signal to one that has just ended would take its exit code from it
            raise
        except BaseException:
            await self.kill()
            raise

    async def _end(self) -> int:
        """Read both streams to their ends, which whoever traces the child holds too; several may wait here."""
        if self._rest is None:
            self._rest = asyncio.create_task(self._read_rest())
        done, _ = await asyncio.wait([self._rest, self._listening])
        for task in done:
            task.result()
        return await self.process.wait()

    async def _read_text(self) -> None:
        """Read the start-up text, which leaves in one write and whose last part begins with a line on the API."""
        assert self.process.stdout is not None
        while not (self.text.endswith("\n") and self.text.rpartition("\n\n")[2].startswith("The API")):
            said = await self.process.stdout.read(LONGEST_LINE)
            if not said:
                await self._listening
                raise NotStarted("\n".join(self.errors))
            self.text += said.decode()

    async def _read_rest(self) -> None:
        assert self.process.stdout is not None
        self.text += (await self.process.stdout.read()).decode()

    async def _read_errors(self) -> None:
        assert self.process.stderr is not None
        async for line in self.process.stderr:
            self.errors.append(line.decode().rstrip("\n"))
            self._more.set()
        self._has_ended = True
        self._more.set()

    async def _until(self, holds: Callable[[], bool], wanted: str) -> None:
        try:
            async with asyncio.timeout(PATIENCE):
                while not holds():
                    assert not self._has_ended, f"it ended without {wanted}; the log: {self.errors}"
                    self._more.clear()
                    await self._more.wait()
        except TimeoutError:
            raise TimeoutError(f"waited {PATIENCE} s for {wanted}; the log: {self.errors}") from None
