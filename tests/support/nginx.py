"""Debian's nginx as a reverse proxy in front of a running service, in a temporary folder, on a free port."""

from __future__ import annotations

import os
import shutil
import socket
import tempfile
from contextlib import ExitStack, suppress
from pathlib import Path
from typing import Self

from tests.support.server import Processes, take_ports, until

_PATH = os.environ.get("PATH", os.defpath) + ":/usr/sbin:/sbin"
_CONFIGURATION = """
daemon off; master_process off; pid {folder}/pid; error_log stderr warn;
events {{ worker_connections 64; }}
http {{
    access_log off; client_max_body_size 0;
    client_body_temp_path {folder}/body; proxy_temp_path {folder}/proxy;
    fastcgi_temp_path {folder}/f; uwsgi_temp_path {folder}/u; scgi_temp_path {folder}/s;
    server {{ listen 127.0.0.1:{port}; location {location} {{ {directives} proxy_pass {upstream}; }} }}
}}
"""


def missing() -> str | None:
    """Say why it cannot run here, None if it can."""
    return None if shutil.which("nginx", path=_PATH) else "nginx is not installed (scripts/test-packages.sh brings it)"


class Nginx:
    """Run it; `directives` stand before the `proxy_pass` of `location`."""

    def __init__(self, upstream: str, directives: str = "", *, location: str = "/") -> None:
        self._upstream, self._directives, self._location = upstream, directives, location
        self.port = 0

    def __enter__(self) -> Self:
        self._parts = ExitStack()
        folder = Path(tempfile.mkdtemp(prefix="mailchute-nginx-"))
        self._parts.callback(shutil.rmtree, folder, ignore_errors=True)
        self.port = take_ports(["nginx"], self._parts)["nginx"].port
        written = _CONFIGURATION.format(
            folder=folder,
            port=self.port,
            location=self._location,
            directives=self._directives,
            upstream=self._upstream,
        )
        (folder / "nginx.conf").write_text(written, "utf-8")
        command = ["nginx", "-p", str(folder), "-e", "stderr", "-c", str(folder / "nginx.conf")]
        processes = Processes(command, env={"PATH": _PATH}, log=folder / "log")
        self._parts.callback(processes.end)
        assert until(self._answers, timeout=10.0), "nginx does not answer"
        return self

    def __exit__(self, *_: object) -> None:
        self._parts.close()

    @property
    def base(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def _answers(self) -> bool:
        with suppress(OSError), socket.create_connection(("127.0.0.1", self.port), timeout=1):
            return True
        return False
