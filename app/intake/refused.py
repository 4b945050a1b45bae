"""Which refused callers are worth a log line: who tries keys can be found, and who tries many cannot fill the disk.

Pure; the clock is monotonic, in seconds.
"""

from __future__ import annotations

from dataclasses import dataclass, field

PERIOD = 60.0  # seconds in which a peer gets one line
MOST_PEERS = 60  # that get a line in a period, which also bounds what is remembered


@dataclass(slots=True)
class RefusedCallers:
    """How often each peer was refused in this period and in the one before."""

    _since: float = float("-inf")
    _now: dict[str, int] = field(default_factory=dict)
    _before: dict[str, int] = field(default_factory=dict)

    def note(self, peer: str, now: float) -> int | None:
        """Count a refusal; return the refusals of this peer since its last line, None = this one gets no line."""
        if now - self._since >= PERIOD:
            self._since, self._before, self._now = now, self._now, {}
        if peer not in self._now and len(self._now) >= MOST_PEERS:
            return None
        count = self._now[peer] = self._now.get(peer, 0) + 1
        return self._before.get(peer, 1) if count == 1 else None
