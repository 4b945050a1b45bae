"""What systemd is told of the service, over the datagram socket in NOTIFY_SOCKET (sd_notify(3)); elsewhere nothing.

A message that cannot be sent is dropped: a supervisor that does not listen must not stop the service.
"""

from __future__ import annotations

import os
import socket
import time
from collections.abc import Mapping
from contextlib import suppress


class Supervisor:
    """The process that started this one. `watchdog_every` = seconds between two signs of life, None = it wants none."""

    def __init__(self, environ: Mapping[str, str]) -> None:
        address = environ.get("NOTIFY_SOCKET", "")
        # "@" stands for the NUL that begins an abstract address (unix(7)); others, such as vsock, are not ours.
        self._address = "\0" + address[1:] if address.startswith("@") else address if address.startswith("/") else ""
        self.watchdog_every = _watchdog(environ) if self._address else None

    def ready(self, status: str) -> None:
        """Say that requests are served: after the start, and after each `reloading()`."""
        self._send(f"READY=1\nSTATUS={status}")

    def reloading(self) -> None:
        """Say that the settings are being read again."""
        self._send(f"RELOADING=1\nMONOTONIC_USEC={time.monotonic_ns() // 1000}\nSTATUS=Reading the settings again")

    def stopping(self) -> None:
        """Say that the service is being stopped."""
        self._send("STOPPING=1\nSTATUS=Stopping")

    def alive(self) -> None:
        """Give a sign of life."""
        self._send("WATCHDOG=1")

    def _send(self, state: str) -> None:
        if not self._address:
            return
        with suppress(OSError), socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC) as notifying:
            notifying.setblocking(False)
            notifying.connect(self._address)
            notifying.send(state.encode())


def _watchdog(environ: Mapping[str, str]) -> float | None:
    """Half of what systemd waits (sd_watchdog_enabled(3)), unless it means another process."""
    wanted = environ.get("WATCHDOG_USEC", "")
    if environ.get("WATCHDOG_PID", str(os.getpid())) != str(os.getpid()) or not (wanted.isascii() and wanted.isdigit()):
        return None
    return int(wanted) / 2_000_000 or None
