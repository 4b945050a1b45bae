"""How much of a profile may be under way at once: connections as the relay bears them, messages by the profile's rate.

A relay that says "too many" (421, 432) is asked by half as many connections, and by one more a minute from then on. One
that has come back gets one connection, and one more with every message it takes. No I/O; the clock is monotonic.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from datetime import timedelta
from math import inf

from app.mail.schedule import Rate

GROWS_EVERY = 60.0  # seconds


@dataclass(slots=True)
class Flow:
    """How many connections are open at once; `limit` None = as many as the profile says."""

    clock: Callable[[], float]
    limit: int | None = None
    _grows_every: float = 0.0
    _changed: float = -inf

    def cut(self, in_use: int, *, began: float) -> None:
        """The relay says that `in_use` connections are too many to an attempt that began then."""
        if began >= self._changed:  # else it belongs to the cut that was made meanwhile
            self._set(max(1, in_use // 2), GROWS_EVERY)

    def ramp(self) -> None:
        """The relay has come back: begin with one."""
        self._set(1, 0.0)

    def succeeded(self, most: int) -> None:
        """A message was taken; `most` is what the profile allows."""
        if self.limit is not None and self.clock() - self._changed >= self._grows_every:
            self._set(self.limit + 1 if self.limit + 1 < most else None, self._grows_every)

    def _set(self, limit: int | None, grows_every: float) -> None:
        self.limit, self._grows_every, self._changed = limit, grows_every, self.clock()


@dataclass(slots=True)
class Meter:
    """Keeps a rate exactly: in no stretch of `rate.seconds` do more than `rate.count` transactions begin.

    A place is reserved for whatever may come to a transaction, and used or freed later.
    """

    rate: Rate
    clock: Callable[[], float]
    reserved: int = 0
    _begun: deque[float] = field(default_factory=deque)

    def remember(self, begun: Iterable[float]) -> None:
        """Count what began before, as the clock would have had it."""
        self._begun.extend(sorted(begun))

    @property
    def period(self) -> timedelta:
        return timedelta(seconds=self.rate.seconds)

    @property
    def free(self) -> int:
        """How many more may be reserved now."""
        over = self.clock() - self.rate.seconds
        while self._begun and self._begun[0] <= over:
            self._begun.popleft()
        return self.rate.count - len(self._begun) - self.reserved

    @property
    def next_free_in(self) -> float:
        """Seconds until a place may be free again; what is reserved may free one earlier."""
        return max(0.0, self._begun[0] + self.rate.seconds - self.clock()) if self._begun else 0.0

    def use(self) -> None:
        """Begin the transaction that a place was reserved for."""
        self.release()
        self._begun.append(self.clock())

    def release(self) -> None:
        """Give a reserved place up."""
        self.reserved = max(0, self.reserved - 1)
