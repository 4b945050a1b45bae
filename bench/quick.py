"""CPU time a mail, mails a second, latency and memory, against Debian's smtp-sink; docs/benchmarks.md explains.

    python -m bench.quick [--rounds N] [--mails N] [--rival] [--json FILE]

Every cell has a fresh process and a fresh database, and cells are interleaved round by round, because a shared
machine changes by the hour: trust ratios and CPU time. Every mail is counted at the sink, in the service's log
and in its database; a run in which one is missing fails.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import socket
import sqlite3
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterable
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import Any, TypeAlias

from bench.load import Seen, Task
from bench.processes import CONNECTIONS, CannotRun, Mailchute, Program, Rival, Service, Sink, Wire, until

CONCURRENCY = (1, 16, 64)
RTT = 0.020  # seconds, of the wire that round trips are measured on
STARTS = 5
WARM_UP = 500  # mails that are not counted: connections, statements, Node's compiler
LONGEST_CELL = 600.0  # seconds that the counted mails may take
SETTLE = 0.15  # seconds after the last mail, for what is written behind it

Start: TypeAlias = Callable[[Path, int], Service]  # folder, port of the relay


@dataclass(frozen=True, slots=True)
class Cell:
    """What one measurement is of."""

    concurrency: int
    respond_async: bool

    @property
    def label(self) -> str:
        return f"{'202' if self.respond_async else 'waiting'} c={self.concurrency}"


@dataclass(frozen=True, slots=True)
class Figures:
    """What one measurement gave. `mails_per_second` runs until the last mail is at the sink, and not only answered."""

    cpu_us: float  # a mail, user + system of the whole service process
    mails_per_second: float
    p50_ms: float
    p99_ms: float
    rss_mb: float


CELLS = [Cell(c, respond_async) for respond_async in (False, True) for c in CONCURRENCY]


# --- one measurement ---------------------------------------------------------------------------------------


class Callers(Program):
    """bench.load at work: warmed up once it is made, and sends when it is told to."""

    def __init__(self, task: Task, folder: Path) -> None:
        super().__init__([sys.executable, "-m", "bench.load", json.dumps(asdict(task))], folder, "callers")
        self.line()

    def send(self) -> Seen:
        """Send the counted mails."""
        assert self.process.stdin is not None
        self.process.stdin.write("go\n")
        self.process.stdin.flush()
        return Seen(**json.loads(self.line(seconds=LONGEST_CELL)))


def measure(start: Start, sink: Sink, cell: Cell, mails: int, *, relay_port: int | None = None) -> Figures:
    """Measure one cell in a fresh process.

    Raises:
        CannotRun: a mail is missing somewhere, or was not answered as it should be.
    """
    warm_up = min(mails, WARM_UP)
    before = sink.mails()
    with tempfile.TemporaryDirectory(prefix="mailchute-bench-") as name:
        folder = Path(name)
        with start(folder, relay_port or sink.port) as service:
            task = Task(service.port, cell.concurrency, warm_up, mails, respond_async=cell.respond_async)
            with Callers(task, folder) as callers:
                until(lambda: sink.mails() == before + warm_up, "the warm-up is not at the sink")
                time.sleep(SETTLE)
                cpu = service.cpu()
                began = time.perf_counter()
                seen = callers.send()
                until(lambda: sink.mails() >= before + warm_up + mails, "a mail is missing at the sink")
                drained = time.perf_counter() - began
                time.sleep(SETTLE)
                cpu = service.cpu() - cpu
                rss = service.rss()
        _check(service, sink.mails() - before, warm_up + mails, seen, cell, mails)
    return Figures(
        cpu_us=cpu / mails * 1e6,
        mails_per_second=mails / (drained if cell.respond_async else seen.elapsed),
        p50_ms=seen.p50 * 1e3,
        p99_ms=seen.p99 * 1e3,
        rss_mb=rss,
    )


def _check(service: Service, at_sink: int, total: int, seen: Seen, cell: Cell, mails: int) -> None:
    wanted = {"202" if cell.respond_async else "200": mails}
    if seen.statuses != wanted:
        raise CannotRun(f"{service.label}: the answers were {seen.statuses}, not {wanted}")
    counts = {"sink": at_sink, "log": service.logged(), "database": service.stored()}
    wrong = {where: count for where, count in counts.items() if count not in (total, None)}
    if wrong:
        raise CannotRun(f"{service.label}: of {total} mails there are {wrong}")


def round_trips(start: Start, sink: Sink, mails: int) -> dict[str, float]:
    """Compare a warm mail behind wires of 0 and 20 ms, and see how many mails 16 such connections carry."""
    with tempfile.TemporaryDirectory(prefix="mailchute-bench-") as name:
        folder = Path(name)
        with Wire(sink.port, 0.0, folder) as short, Wire(sink.port, RTT / 2, folder) as long:
            alone, crowd = Cell(1, respond_async=False), Cell(64, respond_async=False)
            rtt = _round_trip(long.port) - _round_trip(short.port)  # as it is: timers are late
            near = measure(start, sink, alone, 60, relay_port=short.port).p50_ms / 1e3
            far = measure(start, sink, alone, 60, relay_port=long.port).p50_ms / 1e3
            full = measure(start, sink, crowd, mails, relay_port=long.port)
    return {
        "rtt_ms": rtt * 1e3,
        "near_ms": near * 1e3,
        "far_ms": far * 1e3,
        "round_trips": (far - near) / rtt,
        "above_ms": (far - 2 * rtt) * 1e3,
        "mails_per_second": full.mails_per_second,
        "mails_per_connection_and_rtt": full.mails_per_second * rtt / CONNECTIONS,
    }


def _round_trip(port: int) -> float:
    """Time a NOOP."""
    with socket.create_connection(("127.0.0.1", port), timeout=5) as connection:
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        connection.recv(1000)
        times = []
        for _ in range(40):
            began = time.perf_counter()
            connection.sendall(b"NOOP\r\n")
            connection.recv(1000)
            times.append(time.perf_counter() - began)
    return statistics.median(times)


def cold_start(sink: Sink) -> dict[str, float]:
    """Start it five times with a new database, and five times with the one that the first start made."""
    figures: dict[str, list[float]] = {}
    for _ in range(STARTS):
        with tempfile.TemporaryDirectory(prefix="mailchute-bench-") as name:
            for database in ("new", "known"):
                with Mailchute(Path(name), sink.port) as service:
                    until(service.is_ready, "/readyz is not 200", pause=0.002)
                    ready = time.perf_counter() - service.began
                    time.sleep(0.5)
                    figures.setdefault(f"text_s_{database}", []).append(service.said_ready)
                    figures.setdefault(f"ready_s_{database}", []).append(ready)
                    figures.setdefault(f"idle_mb_{database}", []).append(service.rss())
    return {name: statistics.median(values) for name, values in figures.items()}


def sync_ms() -> float:
    """Time one write and fdatasync where the databases are."""
    times = []
    with tempfile.TemporaryDirectory(prefix="mailchute-bench-") as name:
        fd = os.open(Path(name) / "file", os.O_RDWR | os.O_CREAT)
        for _ in range(200):
            os.pwrite(fd, bytes(4096), 0)
            began = time.perf_counter()
            os.fdatasync(fd)
            times.append(time.perf_counter() - began)
        os.close(fd)
    return statistics.median(times) * 1e3


# --- the run -----------------------------------------------------------------------------------------------


def run(rounds: int, mails: int, installed: Path | None, folder: Path) -> dict[str, Any]:
    """Measure everything; gives the report's raw material."""
    services: dict[str, Start] = {Mailchute.label: Mailchute}
    if installed is not None:
        services[Rival.label] = lambda folder, port: Rival(folder, port, installed=installed)
    figures: dict[str, dict[str, list[Figures]]] = {name: {cell.label: [] for cell in CELLS} for name in services}
    result: dict[str, Any] = {"machine": machine(), "rounds": rounds, "mails": mails, "load_before": os.getloadavg()}
    with Sink(folder) as sink:
        for number in range(rounds):
            for cell in CELLS:
                for name, start in services.items():
                    figures[name][cell.label].append(measure(start, sink, cell, mails))
            print(f"round {number + 1} of {rounds} is done", file=sys.stderr)
        result["load_after"] = os.getloadavg()
        result["sync_ms"] = sync_ms()
        result["round_trips"] = {name: round_trips(start, sink, min(mails, 1500)) for name, start in services.items()}
        result["start"] = cold_start(sink)
    result["cells"] = {
        name: {label: [asdict(one) for one in several] for label, several in cells.items()}
        for name, cells in figures.items()
    }
    return result


def machine() -> dict[str, Any]:
    """What was measured, and where."""
    packages = ("uvicorn", "uvloop", "httptools", "pydantic-core", "structlog", "prometheus-client", "SQLAlchemy")
    return {
        "date": datetime.now(UTC).isoformat(timespec="minutes"),
        "cores": os.cpu_count(),
        "processor": _processor(),
        "kernel": platform.release(),
        "python": platform.python_version(),
        "sqlite": sqlite3.sqlite_version,
        "node": _said_by("node", "--version"),
        "commit": _said_by("git", "describe", "--always", "--dirty"),
        "packages": {name: version(name) for name in packages},
    }


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text("utf-8", "replace").splitlines()
    except OSError:
        return platform.processor()
    return next((line.partition(": ")[2] for line in lines if line.startswith("model name")), platform.processor())


def _said_by(*command: str) -> str | None:
    try:
        done = subprocess.run(command, capture_output=True, text=True, check=True, cwd=Path(__file__).parent)
    except (OSError, subprocess.CalledProcessError):
        return None
    return done.stdout.strip()


# --- the report --------------------------------------------------------------------------------------------


def report(result: dict[str, Any]) -> Iterable[str]:
    """Write the figures down, a line at a time; medians, and the span of the rounds for the CPU time."""
    about = result["machine"]
    yield (
        f"{about['date']}, {about['cores']} cores ({about['processor']}), Linux {about['kernel']}, "
        f"CPython {about['python']}, SQLite {about['sqlite']}, Node {about['node'] or '-'}, commit {about['commit']}"
    )
    yield (
        f"{result['rounds']} rounds of {result['mails']} mails; load average {result['load_before'][0]:.1f} before, "
        f"{result['load_after'][0]:.1f} after; fdatasync {result['sync_ms']:.2f} ms"
    )
    yield ""
    yield f"{'':32}{'CPU µs a mail (span)':>24}{'mails/s':>9}{'p50 ms':>9}{'p99 ms':>9}{'RSS MB':>8}"
    for cell in CELLS:
        for name, cells in result["cells"].items():
            several = cells[cell.label]
            cpu = [one["cpu_us"] for one in several]
            yield (
                f"{cell.label + '  ' + name:32}"
                f"{f'{statistics.median(cpu):,.0f} ({min(cpu):,.0f}-{max(cpu):,.0f})':>24}"
                f"{_median(several, 'mails_per_second'):9,.0f}{_median(several, 'p50_ms'):9.2f}"
                f"{_median(several, 'p99_ms'):9.2f}{_median(several, 'rss_mb'):8.0f}"
            )
    yield ""
    if Rival.label in result["cells"]:
        yield from _ratios(result["cells"])
        yield ""
    alone = _median(result["cells"][Mailchute.label][Cell(1, respond_async=True).label], "p50_ms")
    yield f"202 at c=1: p50 is {alone - result['sync_ms']:.2f} ms above one sync"
    for name, wire in result["round_trips"].items():
        yield (
            f"{name}: {wire['round_trips']:.2f} round trips a warm mail ({wire['near_ms']:.1f} ms at 0, "
            f"{wire['far_ms']:.1f} ms at {wire['rtt_ms']:.1f} ms RTT: 2 RTT + {wire['above_ms']:.1f} ms); "
            f"64 callers there: {wire['mails_per_second']:,.0f} mails/s, "
            f"{wire['mails_per_connection_and_rtt']:.2f} a connection and RTT"
        )
    start = result["start"]
    for database, said in (("new", "a new database"), ("known", "a known database")):
        yield (
            f"cold start with {said}: text after {start[f'text_s_{database}']:.2f} s, /readyz after "
            f"{start[f'ready_s_{database}']:.2f} s, idle RSS {start[f'idle_mb_{database}']:.0f} MB"
        )


def _ratios(cells: dict[str, dict[str, list[dict[str, float]]]]) -> Iterable[str]:
    """Medians of the rounds' own ratios; over 1 is in our favour, save for RSS."""
    ours, theirs = cells[Mailchute.label], cells[Rival.label]
    yield f"{'ratios':16}{'CPU, nodemailer ÷ ours':>26}{'mails/s, ours ÷ nodemailer':>30}{'RSS, ours ÷ nodemailer':>26}"
    for cell in CELLS:
        pairs = list(zip(ours[cell.label], theirs[cell.label], strict=True))
        cpu = statistics.median(their["cpu_us"] / our["cpu_us"] for our, their in pairs)
        rate = statistics.median(our["mails_per_second"] / their["mails_per_second"] for our, their in pairs)
        rss = statistics.median(our["rss_mb"] / their["rss_mb"] for our, their in pairs)
        yield f"{cell.label:16}{cpu:26.2f}{rate:30.2f}{rss:26.2f}"


def _median(several: list[dict[str, float]], of: str) -> float:
    return statistics.median(one[of] for one in several)


def main() -> int:
    """Run from the command line."""
    parser = argparse.ArgumentParser(prog="python -m bench.quick", description="CPU time a mail; docs/benchmarks.md")
    parser.add_argument("--rounds", type=int, default=3, help="how often every cell is measured (3)")
    parser.add_argument("--mails", type=int, default=3000, help="counted mails a cell (3000)")
    parser.add_argument("--rival", action="store_true", help="measure nodemailer + fastify too (npm brings them)")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write every figure there")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="mailchute-bench-") as name:
        folder = Path(name)
        installed = None
        try:
            if options.rival:
                try:
                    installed = Rival.install(folder)
                except CannotRun as error:
                    print(f"without the rival: {error}", file=sys.stderr)
            result = run(options.rounds, options.mails, installed, folder)
        except CannotRun as error:
            print(f"bench.quick: {error}", file=sys.stderr)
            return 1
    for line in report(result):
        print(line)
    if options.json is not None:
        options.json.write_text(json.dumps(result, indent=1) + "\n", "utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
