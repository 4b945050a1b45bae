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
from sys import maxsize

from app.mail.schedule import Rate

GROWS_EVERY = 60.0  # seconds
SLACK = 0.02  # of a rate's length that is left unused
LATENCY = 0.06  # seconds, on top of it: by how much a relay may see two messages closer together than they began
LONGEST_SPREAD = 60.0  # seconds; over a longer time a rate is a quota
QUOTA_GAP = 1.0  # seconds between two messages of a quota
REMEMBERED = 10_000  # messages whose beginning a profile remembers, or as many as its rate allows


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
    """Keeps a rate, spread evenly: one message at a time, and never more than the rate in any stretch of its length.

    A relay counts when a message arrives, by windows or buckets of its own. So that it counts no more than it allows,
    the rate is kept a little lower (`SLACK`). An hour or a day is a quota: it may be used up at one message a second.
    GCRA: each place that is reserved moves the time of the next one on by `gap`.

    A place is reserved for whatever may come to a transaction, and used or released later. What began is remembered
    without a rate, too: one that is set, changed, or removed and set again counts it.
    """

    clock: Callable[[], float]
    rate: Rate | None = None  # None = no bound; changed by `change()` alone
    reserved: int = 0
    _begun: deque[float] = field(default_factory=lambda: deque(maxlen=REMEMBERED))
    _next: float = -inf  # when the next may begin, were they all on time
    _since: float = field(init=False)

    def __post_init__(self) -> None:
        self._since = self.clock()

    def change(self, rate: Rate | None) -> None:
        """Keep another rate from now on."""
        if rate == self.rate:
            return
        self.rate = rate
        if rate is not None and rate.count > REMEMBERED:
            self._begun = deque(self._begun, maxlen=rate.count)
        self._next = self._after_the_last

    def remember(self, begun: Iterable[float]) -> None:
        """Count what an earlier process began, as the clock would have had it; replaces what was counted of that."""
        own = [at for at in self._begun if at >= self._since]
        self._begun.clear()
        self._begun.extend(sorted(at for at in begun if at < self._since))
        self._begun.extend(own)
        self._next = max(self._next, self._after_the_last)

    @property
    def period(self) -> timedelta:
        """For how long what began counts."""
        return timedelta(seconds=_length(self.rate) if self.rate is not None else 0.0)

    @property
    def free(self) -> int:
        """How many more may be reserved now."""
        if self.rate is None:
            return maxsize
        now, late = self.clock(), _lateness(self.rate)
        start = max(self._next, now)
        if start > now + late:
            return 0
        free = min(1 + int((now + late - start) / _gap(self.rate)), self.rate.count - self.reserved)
        while free > 0 and self._count_frees(free) > now:
            free -= 1
        return max(0, free)

    @property
    def next_free_in(self) -> float:
        """Seconds until a place is free, more than 0; infinite where only a release can free one."""
        if self.rate is None or self.reserved >= self.rate.count:
            return inf
        at = max(self._next - _lateness(self.rate), self._count_frees(1))
        return max(0.001, at - self.clock())

    def reserve(self) -> None:
        """Take a place for what may begin a transaction."""
        self.reserved += 1
        if self.rate is not None:
            self._next = max(self._next, self.clock()) + _gap(self.rate)

    def use(self) -> None:
        """Begin the transaction that a place was reserved for."""
        self.reserved = max(0, self.reserved - 1)
        self.count()

    def count(self) -> None:
        """Count a transaction that begins without a place: a further one of the same attempt."""
        self._begun.append(self.clock())
        if self.rate is not None:
            self._next = max(self._next, self._after_the_last - _lateness(self.rate))

    def release(self) -> None:
        """Give a reserved place up."""
        self.reserved = max(0, self.reserved - 1)
        if self.rate is not None:
            self._next = max(self._next - _gap(self.rate), self._after_the_last)

    @property
    def _after_the_last(self) -> float:
        return self._begun[-1] + _gap(self.rate) if self._begun and self.rate is not None else -inf

    def _count_frees(self, places: int) -> float:
        """When so many places are free by the count of what has begun, apart from those reserved."""
        assert self.rate is not None  # noqa: S101 (callers look)
        oldest = self.rate.count - self.reserved - places + 1  # the begun one that must be over, counted from the last
        return self._begun[-oldest] + _length(self.rate) if 0 < oldest <= len(self._begun) else -inf


def _length(rate: Rate) -> float:
    """How long a message counts: the relay may see two of them closer together than they began."""
    return rate.seconds * (1 + SLACK) + LATENCY


def _gap(rate: Rate) -> float:
    """Seconds between two messages that begin on time."""
    evenly = _length(rate) / rate.count
    return evenly if rate.seconds <= LONGEST_SPREAD else min(evenly, QUOTA_GAP)


def _lateness(rate: Rate) -> float:
    """By how much one that is on time may follow too close upon one that was late; so that lateness does not add up."""
    return max(LATENCY / 2, (_gap(rate) - rate.seconds / rate.count) / 2)
