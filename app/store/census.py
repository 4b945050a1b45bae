"""How many messages wait, by state: counted once at start, then kept as they change.

Counting them when somebody asks would read everything that waits. Told by the journal after each COMMIT, in the
event loop; knows no SQL.
"""

from __future__ import annotations

from collections.abc import Mapping

from app.mail.outcome import MessageState

WAITING = (MessageState.QUEUED, MessageState.SCHEDULED, MessageState.SENDING, MessageState.DEFERRED)


class Census:
    """The figures of one database. States that are over for good are not counted: they only grow."""

    def __init__(self, counted: Mapping[MessageState, int]) -> None:
        self._counts = {state: counted.get(state, 0) for state in (*WAITING, MessageState.IN_DOUBT)}

    def move(self, was: MessageState | None, now: MessageState | None, times: int = 1) -> None:
        """Note that messages came from one state into another; None = they came, or went, altogether."""
        counts = self._counts
        if was in counts:
            counts[was] -= times
        if now in counts:
            counts[now] += times

    def of(self, state: MessageState) -> int:
        """How many are in a state that waits, or in doubt."""
        return self._counts[state]

    @property
    def waiting(self) -> int:
        """How many something is still to happen to."""
        return sum(self._counts[state] for state in WAITING)
