"""How many messages wait, by profile and state: counted once at start, then kept as they change.

Counting them when somebody asks would read everything that waits. Told by the journal after each COMMIT, in the
event loop; knows no SQL.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping

from app.mail.outcome import MessageState

WAITING = (MessageState.QUEUED, MessageState.SCHEDULED, MessageState.SENDING, MessageState.DEFERRED)


class Census:
    """The figures of one database. States that are over for good are not counted: they only grow."""

    def __init__(self, counted: Mapping[tuple[str, MessageState], int]) -> None:
        self._counts = dict.fromkeys((*WAITING, MessageState.IN_DOUBT), 0)
        self._of_profiles: dict[str, dict[MessageState, int]] = {}
        for (profile, state), count in counted.items():
            self.move(profile, None, state, count)

    def move(self, profile: str, was: MessageState | None, now: MessageState | None, times: int = 1) -> None:
        """Note that messages of a profile changed their state; None = they came, or went, altogether."""
        for state, change in ((was, -times), (now, times)):
            if state in self._counts:
                self._counts[state] += change
                of_profile = self._of_profiles.setdefault(profile, dict.fromkeys(self._counts, 0))
                of_profile[state] += change

    def of(self, state: MessageState) -> int:
        """How many are in a state that waits, or in doubt."""
        return self._counts[state]

    def of_profile(self, profile: str, state: MessageState) -> int:
        """How many of a profile's are in a state that waits, or in doubt."""
        counts = self._of_profiles.get(profile)
        return counts[state] if counts is not None else 0

    @property
    def profiles(self) -> Collection[str]:
        """Every profile that has had one, whether or not it is in the settings."""
        return self._of_profiles.keys()

    @property
    def waiting(self) -> int:
        """How many something is still to happen to."""
        return sum(self._counts[state] for state in WAITING)
