"""What a setting, or another checkout, costs a mail: two of ours side by side, interleaved, CPU time and ratio.

python -m bench.beside --set MAILCHUTE_TRANSCRIPTS=false
python -m bench.beside --program ../before/.venv/bin/mailchute [--rounds N] [--mails N]
"""

from __future__ import annotations

import argparse
import statistics
import sys
import tempfile
from functools import partial
from pathlib import Path

from bench.processes import CannotRun, Mailchute, Sink
from bench.quick import CONCURRENCY, Cell, Figures, Start, measure


def main() -> int:
    """Run from the command line."""
    parser = argparse.ArgumentParser(prog="python -m bench.beside", description="what a change costs a mail")
    parser.add_argument("--set", action="append", default=[], metavar="NAME=VALUE", help="a setting of the other one")
    parser.add_argument("--program", type=Path, help="the other one's mailchute, of another checkout")
    parser.add_argument("--rounds", type=int, default=5, help="how often every cell is measured (5)")
    parser.add_argument("--mails", type=int, default=2000, help="counted mails a cell (2000)")
    options = parser.parse_args()
    settings = dict(said.split("=", 1) for said in options.set)
    services: tuple[Start, Start] = (Mailchute, partial(Mailchute, program=options.program, settings=settings))
    cells = [Cell(c, respond_async=False) for c in CONCURRENCY]
    pairs: dict[str, list[tuple[Figures, Figures]]] = {cell.label: [] for cell in cells}
    with tempfile.TemporaryDirectory(prefix="mailchute-bench-") as name:
        try:
            with Sink(Path(name)) as sink:
                for _ in range(options.rounds):
                    for cell in cells:
                        ours, other = (measure(start, sink, cell, options.mails) for start in services)
                        pairs[cell.label].append((ours, other))
        except CannotRun as error:
            print(f"bench.beside: {error}", file=sys.stderr)
            return 1
    print(f"{'CPU µs a mail':16}{'as it is':>10}{'other':>10}{'difference':>12}{'ratio (span)':>24}")
    for label, measured in pairs.items():
        ours, other = (statistics.median(one.cpu_us for one in several) for several in zip(*measured, strict=True))
        ratios = [a.cpu_us / b.cpu_us for a, b in measured]
        span = f"{statistics.median(ratios):.2f} ({min(ratios):.2f}-{max(ratios):.2f})"
        print(f"{label:16}{ours:10,.0f}{other:10,.0f}{ours - other:12,.0f}{span:>24}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
