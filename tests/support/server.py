"""What the real mail servers of the tests have in common: listeners, processes that end together, a mailbox.

Knows sockets, process groups and Maildirs, and no mail server in particular. What it waits for shows as a fact:
a greeting, an empty queue, a process that is gone.
"""

import os
import socket
import subprocess
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import ExitStack, suppress
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True, slots=True)
class Listener:
    """One port on 127.0.0.1; Postfix puts `name` into its log lines."""

    name: str
    port: int


def take_ports(names: Iterable[str], held: ExitStack) -> dict[str, Listener]:
    """Give each name a free port, and keep it free for the server as long as `held` is open."""
    # Bound but not listening, with SO_REUSEADDR on both sides: Linux lets the server listen on the port,
    # and gives it to no one else meanwhile (tests run in parallel).
    listeners = {}
    for name in names:
        holder = held.enter_context(socket.socket())
        holder.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        holder.bind(("127.0.0.1", 0))
        listeners[name] = Listener(name, holder.getsockname()[1])
    return listeners


def greets(listener: Listener) -> bool:
    """Ask whether a server is there and takes mail."""
    with suppress(OSError), socket.create_connection(("127.0.0.1", listener.port), timeout=5) as connection:
        return connection.recv(4) == b"220 "
    return False


class Processes:
    """A server's processes, which all end with `end()`, or with the test run however that ends."""

    def __init__(self, command: Sequence[str], *, env: Mapping[str, str], log: Path | None = None) -> None:
        # At the pipe's end, by `end` or by the death of the test run, the shell kills its process group. No
        # SIGTERM: Postfix's master would pass it on to a group of its own, fail, and think about that for a second.
        script = '"$@" & read _; kill -KILL 0'
        with ExitStack() as closing:
            out = closing.enter_context(log.open("ab")) if log else None
            self._shell = subprocess.Popen(
                ["sh", "-c", script, "sh", *command],
                env=env,
                stdin=subprocess.PIPE,
                stdout=out,
                stderr=out,
                start_new_session=True,
            )

    def end(self) -> None:
        """Kill them, and wait up to 5 s until they are gone."""
        self._shell.communicate()  # ends the pipe
        until(lambda: not _is_alive(self._shell.pid), timeout=5)


def _is_alive(group: int) -> bool:
    """Look for a running process of the group; the dead that init has not reaped yet do not count."""
    for file in Path("/proc").glob("[0-9]*/stat"):
        with suppress(OSError):
            state, _parent, members = file.read_text().rpartition(")")[2].split()[:3]
            if int(members) == group and state not in "ZX":
                return True
    return False


class Mailbox:
    """A Maildir, and the queue in front of it."""

    def __init__(self, maildir: Path, queues: Sequence[Path]) -> None:
        self._new = maildir / "new"
        self._queues = queues  # in the order in which a mail goes through them, or one on its way could be missed
        self._taken: set[str] = set()

    def mails(self) -> list[bytes]:
        """Read all delivered mail, oldest first, as it lies in the Maildir (lines end in LF)."""
        return [file.read_bytes() for file in self._files()]

    def take(self, *, timeout: float = 15) -> list[bytes]:
        """Wait until nothing is queued, and read what was delivered since the last call, oldest first.

        A mail is queued before its last reply is sent: whose reply is there, that mail is in. Raises: TimeoutError.
        """
        if not until(lambda: not self._is_queued(), timeout=timeout):
            raise TimeoutError(f"there is still mail in the queue after {timeout} s")
        files = [file for file in self._files() if file.name not in self._taken]
        self._taken.update(file.name for file in files)
        return [file.read_bytes() for file in files]

    def _files(self) -> list[Path]:
        return sorted(self._new.iterdir(), key=lambda file: file.stat().st_mtime_ns)

    def _is_queued(self) -> bool:
        return any(files for queue in self._queues for _folder, _folders, files in os.walk(queue))


def until(condition: Callable[[], bool], *, timeout: float) -> bool:
    """Look again and again until `condition` holds; False if it does not within `timeout` seconds."""
    end = time.monotonic() + timeout
    while not (holds := condition()) and time.monotonic() < end:
        time.sleep(0.01)
    return holds
