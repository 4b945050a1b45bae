"""What a relay that is dead costs the others: latency through a healthy one, with and without a dead neighbour.

python -m bench.neighbours [--rounds N] [--mails N]

The dead one takes connections and never greets. It has a thousand messages waiting when the healthy one is measured:
one caller after the other, each waiting for the verdict. Both cells run in turn, each in a fresh process.
"""

from __future__ import annotations

import argparse
import http.client
import json
import socket
import statistics
import sys
import tempfile
import time
from pathlib import Path

from bench.processes import CannotRun, Mailchute, Sink

WAITING = 1000  # messages to the dead relay


def main() -> int:
    """Run from the command line."""
    parser = argparse.ArgumentParser(prog="python -m bench.neighbours", description="what a dead relay costs others")
    parser.add_argument("--rounds", type=int, default=5, help="how often both cells are measured (5)")
    parser.add_argument("--mails", type=int, default=1000, help="mails a cell (1000)")
    options = parser.parse_args()
    ratios: dict[str, list[float]] = {"p50": [], "p99": []}
    with tempfile.TemporaryDirectory(prefix="mailchute-bench-") as name, socket.socket() as dead:
        dead.bind(("127.0.0.1", 0))
        dead.listen(128)
        try:
            with Sink(Path(name)) as sink:
                for _ in range(options.rounds):
                    alone, beside = (_latencies(sink, dead, options.mails, waiting) for waiting in (0, WAITING))
                    for key, at in (("p50", 0.5), ("p99", 0.99)):
                        one, other = (sorted(cell)[int(at * len(cell))] for cell in (alone, beside))
                        print(f"{key}: alone {one * 1000:.2f} ms, beside a dead relay {other * 1000:.2f} ms")
                        ratios[key].append(other / one)
        except CannotRun as error:
            print(f"bench.neighbours: {error}", file=sys.stderr)
            return 1
    for key, several in ratios.items():
        spans = f"{min(several):.2f}-{max(several):.2f}"
        print(f"{key}: {statistics.median(several):.2f} times, median of {len(several)} ({spans})")
    return 0


def _latencies(sink: Sink, dead: socket.socket, mails: int, waiting: int) -> list[float]:
    """Send through the healthy one, with so many messages waiting for the dead one; seconds of each answer."""
    settings = {
        "MAILCHUTE_PROFILES__DEAD__HOST": "127.0.0.1",
        "MAILCHUTE_PROFILES__DEAD__PORT": str(dead.getsockname()[1]),
    }
    with (
        tempfile.TemporaryDirectory(prefix="mailchute-bench-") as name,
        Mailchute(Path(name), sink.port, settings=settings) as service,
    ):
        connection = http.client.HTTPConnection("127.0.0.1", service.port, timeout=60)
        for _ in range(waiting):
            _send(connection, 202, profile="dead", prefer="respond-async")
        for _ in range(100):
            _send(connection, 200)
        latencies = []
        for _ in range(mails):
            began = time.perf_counter()
            _send(connection, 200)
            latencies.append(time.perf_counter() - began)
        connection.close()
    return latencies


def _send(connection: http.client.HTTPConnection, status: int, *, profile: str = "default", prefer: str = "") -> None:
    body = {
        "from": "bot@ours.test",
        "to": "ann@theirs.test",
        "subject": "hello",
        "text": "x" * 1500,
        "profile": profile,
    }
    headers = {"Content-Type": "application/json", **({"Prefer": prefer} if prefer else {})}
    connection.request("POST", "/send", json.dumps({**body, "profile": profile}), headers)
    answer = connection.getresponse()
    said = answer.read()
    if answer.status != status:
        raise CannotRun(f"{answer.status}: {said[:200]!r}")


if __name__ == "__main__":
    sys.exit(main())
