"""What strangers and greedy callers cost the others: peak memory, and a normal caller's times beside each attack.

python -m bench.attacks [--program ../before/.venv/bin/mailchute] [--limit-mb 512] [--seconds 6] [--only NAME …]

Each attack meets a fresh service with an API key and a database of its own; strangers have no key. Beside it a normal
caller asks for /livez and sends a small mail ten times a second. `--limit-mb` puts the service under a memory cgroup
(as root), where what takes more is killed. Everything stays on loopback.
"""

from __future__ import annotations

import argparse
import http.client
import json
import os
import socket
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

from bench.processes import ROOT, CannotRun, Mailchute, Sink

KEY = "0123456789abcdef-bench"
LARGE = 24_000_000  # bytes of a large body
PAUSE = 0.1  # seconds between two requests of the normal caller
SETTINGS = {"MAILCHUTE_API_KEY": KEY, "MAILCHUTE_MIN_FREE_BYTES": "0"}


@dataclass(slots=True)
class Victim:
    """The service, and until when it is attacked."""

    port: int
    ends: float
    large_id: str = ""  # of a message with a large content
    answers: dict[int, int] = field(default_factory=dict)  # that attackers got, by status

    def connect(self, timeout: float = 5.0) -> socket.socket:
        return socket.create_connection(("127.0.0.1", self.port), timeout)

    @property
    def is_over(self) -> bool:
        return time.monotonic() > self.ends


def _head(method: str, path: str, *fields: str) -> bytes:
    return "\r\n".join([f"{method} {path} HTTP/1.1", "Host: 127.0.0.1", *fields, "", ""]).encode()


_WITH_KEY = f"Authorization: Bearer {KEY}"


def _pour(victim: Victim, start: bytes, piece: bytes, total: int) -> None:
    """Send a start and then the same piece again and again, until it is cut off, and begin anew."""
    while not victim.is_over:
        with suppress(OSError), victim.connect() as sock:
            sock.sendall(start)
            for _ in range(total // len(piece)):
                if victim.is_over:
                    return
                sock.sendall(piece)


def _silent(victim: Victim, count: int, start: bytes) -> None:
    """Keep so many connections that send a byte each two seconds; those that were closed are not opened again."""
    socks = []
    for _ in range(count):
        with suppress(OSError):
            sock = victim.connect()
            sock.sendall(start)
            socks.append(sock)
    while not victim.is_over:
        for sock in socks:
            with suppress(OSError):
                sock.send(b"a")
        time.sleep(2)
    for sock in socks:
        sock.close()


def _bodies(victim: Victim, field_: str, body: bytes) -> None:
    """Post a large body again and again, and count the answers."""
    while not victim.is_over:
        caller = http.client.HTTPConnection("127.0.0.1", victim.port, timeout=30)
        with suppress(OSError, http.client.HTTPException):
            name, value = field_.split(": ")
            caller.request("POST", "/send", body, {name: value, "Content-Type": "application/json"})
            status = caller.getresponse().status
            victim.answers[status] = victim.answers.get(status, 0) + 1
        caller.close()


def _hanging_bodies(victim: Victim, field_: str, body: bytes) -> None:
    """Post all of a large body but its last byte, and wait."""
    with suppress(OSError), victim.connect(30) as sock:
        sock.sendall(_head("POST", "/send", field_, "Content-Type: application/json", f"Content-Length: {len(body)}"))
        with suppress(OSError):
            sock.sendall(body[:-1])
        while not victim.is_over:
            time.sleep(0.1)


def _unread(victim: Victim) -> None:
    """Ask for a large source, and read nothing of it."""
    with suppress(OSError), victim.connect() as sock:
        sock.sendall(_head("GET", f"/messages/{victim.large_id}/raw", _WITH_KEY))
        while not victim.is_over:
            time.sleep(0.1)


def _large_body() -> bytes:
    mail = {"from": "a@b.example", "to": "ann@example.org", "subject": "large", "text": "see the file"}
    content = "QUJD" * ((LARGE - 300) // 4)
    return json.dumps({**mail, "attachments": [{"filename": "a.bin", "content": content}]}).encode()


def _many_recipients() -> bytes:
    addresses = [f"jörg{number}@müller{number}.example" for number in range(60_000)]
    return json.dumps({"from": "a@b.example", "to": addresses, "text": "a"}).encode()


Attack = Callable[[Victim], None]


def _attacks() -> dict[str, list[Attack]]:
    """Each attack's threads."""
    large = _large_body()
    wrong = "X-API-Key: wrong-wrong-wrong-wrong"
    return {
        "nothing": [],
        "header lines without end": [
            partial(_pour, start=b"GET / HTTP/1.1\r\n", piece=b"A: b\r\n" * 10000, total=300 << 20)
        ],
        "one endless header value": [
            partial(_pour, start=b"GET / HTTP/1.1\r\nA: ", piece=b"b" * 60000, total=180 << 20)
        ],
        "endless request line": [partial(_pour, start=b"GET /", piece=b"a" * 60000, total=180 << 20)],
        "2 M pipelined GET /livez": [
            partial(_pour, start=b"", piece=_head("GET", "/livez") * 1000, total=64 << 20),
        ],
        "endless trailer": [
            partial(
                _pour,
                start=_head("POST", "/send", _WITH_KEY, "Transfer-Encoding: chunked") + b"1\r\na\r\n0\r\nA: ",
                piece=b"b" * 60000,
                total=180 << 20,
            )
        ],
        "440 dripping and silent sockets": [
            partial(_silent, count=220, start=b"GET / HTTP/1.1\r\nA: "),
            partial(_silent, count=220, start=_head("POST", "/send", _WITH_KEY, "Content-Length: 100")),
        ],
        "40 large bodies without a key": [partial(_hanging_bodies, field_=wrong, body=large)] * 40,
        "10 large bodies with a key": [partial(_bodies, field_=_WITH_KEY, body=large)] * 10,
        "60 that do not read 24 MB": [_unread] * 60,
        "60,000 odd recipients": [partial(_bodies, field_=_WITH_KEY, body=_many_recipients())] * 2,
    }


class Caller:
    """A normal caller in a process of its own, so that the attackers' threads do not hold it up.

    `times` in seconds; `bad` counts what it was answered that is not 2xx.
    """

    def __init__(self, port: int) -> None:
        command = [sys.executable, "-m", "bench.attacks", "--caller", str(port)]
        self._process = subprocess.Popen(command, cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        self.times: dict[str, list[float]] = {}
        self.bad: dict[str, int] = {}

    def __enter__(self) -> Caller:
        assert self._process.stdout is not None
        self._process.stdout.readline()  # it has begun
        return self

    def __exit__(self, *_: object) -> None:
        out, _rest = self._process.communicate()
        self.times, self.bad = json.loads(out)


def _call(port: int) -> None:
    """Be the normal caller until stdin ends, and print the times and what was bad."""
    times: dict[str, list[float]] = {"/livez": [], "/send": []}
    bad: dict[str, int] = {}
    over = threading.Event()
    body = json.dumps({"from": "a@b.example", "to": "ann@example.org", "text": "small"})
    headers = {"Authorization": f"Bearer {KEY}", "Content-Type": "application/json"}

    def ask(path: str) -> None:
        while not over.is_set():
            began = time.perf_counter()
            try:
                caller = http.client.HTTPConnection("127.0.0.1", port, timeout=20)
                caller.request(*(("POST", path, body, headers) if path == "/send" else ("GET", path)))
                status = caller.getresponse().status
                what = "ok" if status == 200 else str(status)
                caller.close()
            except (OSError, http.client.HTTPException) as error:
                what = type(error).__name__
            times[path].append(time.perf_counter() - began)
            if what != "ok":
                bad[what] = bad.get(what, 0) + 1
            over.wait(PAUSE)

    threads = [threading.Thread(target=ask, args=(path,)) for path in times]
    for thread in threads:
        thread.start()
    print("begun", flush=True)
    sys.stdin.read()
    over.set()
    for thread in threads:
        thread.join()
    print(json.dumps([times, bad]))


@contextmanager
def _memory_group(megabytes: int | None) -> Iterator[Path | None]:
    """Make a group of processes with a memory limit, by cgroup v1 or v2."""
    if megabytes is None:
        yield None
        return
    v1 = Path("/sys/fs/cgroup/memory")
    group = (v1 if v1.is_dir() else Path("/sys/fs/cgroup")) / f"mailchute-bench-{os.getpid()}"
    try:
        group.mkdir()
        limit = group / ("memory.limit_in_bytes" if v1.is_dir() else "memory.max")
        limit.write_text(str(megabytes << 20), "ascii")
    except OSError as error:
        raise CannotRun(f"no memory cgroup can be made here: {error}") from error
    try:
        yield group
    finally:
        with suppress(OSError):
            group.rmdir()


def _peak(pid: int) -> float:
    """Peak resident memory in MB, 0 where the process is gone."""
    with suppress(OSError, IndexError):
        text = Path(f"/proc/{pid}/status").read_text("ascii")
        return int(text.split("VmHWM:")[1].split()[0]) * 1024 / 1e6
    return 0.0


def _quantiles(times: list[float]) -> str:
    if len(times) < 2:
        return "-"
    cuts = statistics.quantiles(times, n=100)
    return f"{cuts[49] * 1e3:,.0f} / {cuts[98] * 1e3:,.0f}"


def _run(name: str, threads: list[Attack], sink: Sink, options: argparse.Namespace) -> None:
    with tempfile.TemporaryDirectory(prefix="mailchute-bench-") as folder, ExitStack() as parts:
        group = parts.enter_context(_memory_group(options.limit_mb))  # removed when the service has ended
        service = parts.enter_context(Mailchute(Path(folder), sink.port, program=options.program, settings=SETTINGS))
        if group is not None:
            (group / "cgroup.procs").write_text(str(service.process.pid), "ascii")
        large_id = ""
        if "read" in name or name == "everything at once":
            caller = http.client.HTTPConnection("127.0.0.1", service.port, timeout=60)
            headers = {"Authorization": f"Bearer {KEY}", "Content-Type": "application/json"}
            caller.request("POST", "/send", _large_body(), headers)
            large_id = json.loads(caller.getresponse().read())["id"]
        victim = Victim(service.port, time.monotonic() + options.seconds, large_id)
        attackers = [threading.Thread(target=attack, args=(victim,), daemon=True) for attack in threads]
        with Caller(service.port) as normal:
            for attacker in attackers:
                attacker.start()
            while not victim.is_over:
                time.sleep(0.1)
            for attacker in attackers:
                attacker.join(20)
        is_killed = service.process.poll() is not None
        peak = "killed" if is_killed else f"{_peak(service.process.pid):,.0f}"
        answers = " ".join(f"{count}×{status}" for status, count in sorted(victim.answers.items()))
        bad = " ".join(f"{count}×{what}" for what, count in normal.bad.items())
        print(
            f"{name:34}{peak:>9}{_quantiles(normal.times['/livez']):>16}{_quantiles(normal.times['/send']):>16}"
            f"  {bad or '-':24} {answers}",
            flush=True,
        )


def main() -> int:
    """Run from the command line."""
    parser = argparse.ArgumentParser(prog="python -m bench.attacks", description="attacks, and a normal caller beside")
    parser.add_argument("--program", type=Path, help="another mailchute than this checkout's")
    parser.add_argument("--limit-mb", type=int, help="memory limit of the service, in MiB")
    parser.add_argument("--seconds", type=float, default=6.0, help="how long each attack lasts (6)")
    parser.add_argument("--caller", type=int, help=argparse.SUPPRESS)
    parser.add_argument("--only", nargs="*", help="attacks whose names contain one of these")
    options = parser.parse_args()
    if options.caller:
        _call(options.caller)
        return 0
    attacks = _attacks()
    attacks["everything at once"] = [thread for threads in attacks.values() for thread in threads]
    print(f"{'attack':34}{'peak MB':>9}{'livez p50/p99':>16}{'send p50/p99':>16}  not 2xx                  attackers")
    try:
        with tempfile.TemporaryDirectory(prefix="mailchute-bench-") as folder, Sink(Path(folder)) as sink:
            for name, threads in attacks.items():
                if options.only is None or any(word in name for word in options.only):
                    _run(name, threads, sink, options)
    except CannotRun as error:
        print(f"bench.attacks: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
