"""Debian's Prometheus in a temporary folder, on a free port, with the example configuration and the rules of deploy/."""

from __future__ import annotations

import json
import os
import shutil
import tempfile
from contextlib import ExitStack, suppress
from pathlib import Path
from typing import Any, Self
from urllib.parse import urlencode
from urllib.request import ProxyHandler, build_opener

from tests.support.server import Processes, take_ports, until

DEPLOY = Path(__file__).parents[2] / "deploy" / "prometheus"
PATIENCE = 30.0  # seconds
_OPENER = build_opener(ProxyHandler({}))


def missing() -> str | None:
    """Say why it cannot run here, None if it can."""
    for program in ("prometheus", "promtool"):
        if shutil.which(program) is None:
            return f"{program} is not installed (scripts/test-packages.sh brings it)"
    return None


class Prometheus:
    """Scrape `target` (host:port) with the key, ten times a second, and evaluate the rules as often."""

    def __init__(self, target: str, key: str) -> None:
        self._target, self._key = target, key

    def __enter__(self) -> Self:
        self._parts = ExitStack()
        folder = Path(tempfile.mkdtemp(prefix="mailchute-prometheus-"))
        self._parts.callback(shutil.rmtree, folder, ignore_errors=True)
        self._base = f"http://127.0.0.1:{take_ports(['prometheus'], self._parts)['prometheus'].port}"
        shutil.copy(DEPLOY / "mailchute.rules.yml", folder)
        (folder / "key").write_text(self._key)
        configuration = (DEPLOY / "prometheus.yml").read_text()
        for written, here in (
            ("127.0.0.1:8587", self._target),
            ("/etc/prometheus/mailchute-api-key", f"{folder}/key"),
            ("15s", "100ms"),
        ):
            assert written in configuration
            configuration = configuration.replace(written, here)
        (folder / "prometheus.yml").write_text(configuration)
        command = [
            "prometheus",
            f"--config.file={folder}/prometheus.yml",
            f"--storage.tsdb.path={folder}/data",
            f"--web.listen-address={self._base.removeprefix('http://')}",
        ]
        processes = Processes(command, env={"PATH": os.environ["PATH"]}, log=folder / "log")
        self._parts.callback(processes.end)
        assert until(lambda: bool(self.query("up == 1")), timeout=PATIENCE), (folder / "log").read_text()
        return self

    def __exit__(self, *_: object) -> None:
        self._parts.close()

    def query(self, expression: str) -> list[dict[str, Any]]:
        """Evaluate an expression now; nothing where it does not answer yet."""
        url = f"{self._base}/api/v1/query?{urlencode({'query': expression})}"
        with suppress(OSError), _OPENER.open(url, timeout=5) as answer:
            found: list[dict[str, Any]] = json.load(answer)["data"]["result"]
            return found
        return []
