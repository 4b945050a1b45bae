"""Everything that the commands print, on stdout and stderr.

Callers and relays wrote much of it, so every line is escaped on its way out, whatever it is made of; nothing else in
the program prints (ruff bans `print` and `typer.echo`). JSON is plain ASCII: valid in every locale, and harmless to a
terminal.
"""

from __future__ import annotations

import json
import shutil
import sys
from io import TextIOWrapper
from typing import TextIO

from app.mail.escaping import escape


def set_up_streams() -> None:
    """Escape what the locale's encoding lacks, instead of failing on it."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")


def write(*lines: str) -> None:
    """Write lines to stdout, at once. A line break within one of them is escaped."""
    _put(sys.stdout, "".join(f"{escape(line)}\n" for line in lines))


def write_json(value: object) -> None:
    """Write a value as one line of JSON to stdout."""
    _put(sys.stdout, json.dumps(value) + "\n")


def write_source(text: str) -> None:
    """Write a message's source to stdout: as it is into a file or a pipe, escaped line by line at a terminal."""
    if sys.stdout.isatty():
        text = "\n".join(map(escape, text.replace("\r\n", "\n").replace("\t", "    ").split("\n")))
    _put(sys.stdout, text)


def note(line: str) -> None:
    """Write a line to stderr, where it is no part of the result."""
    _put(sys.stderr, f"{escape(line)}\n")


def complain(*lines: str) -> None:
    """Write what is wrong to stderr."""
    for line in lines:
        note(f"mailchute: {line}")


def agreed(question: str) -> bool:
    """Ask at the terminal; anything but y or yes is a no."""
    _put(sys.stderr, f"{escape(question)} [y/N] ")
    return sys.stdin.readline().strip().lower() in ("y", "yes")


def width() -> int | None:
    """How many columns the terminal has that stdout leads to; None = it leads elsewhere."""
    return shutil.get_terminal_size().columns if sys.stdout.isatty() else None


def _put(stream: TextIO | None, text: str) -> None:
    """Write as it is; `typer.echo` would drop ANSI sequences from what goes into a pipe."""
    if stream is not None:  # the descriptor was closed before we started
        stream.write(text)
        stream.flush()
