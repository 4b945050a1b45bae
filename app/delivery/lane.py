"""One profile's side of the worker: what is under way, what may be begun, and what wakes its claim loop.

Pure bookkeeping, no I/O. What was just accepted and what waits in the store share the window half and half where both
want in: neither a backlog starves fresh mail, nor fresh mail a backlog.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import datetime
from math import inf

from app.delivery.flow import Flow, Meter
from app.mail.profile import Profile

SMALLEST_WINDOW = 8  # attempts


@dataclass(slots=True)
class Lane:
    """`profile` is replaced when the settings are read again; until then it may be a stand-in."""

    profile: Profile
    clock: Callable[[], float]
    is_known: bool = False  # it is in the settings
    paused_at: datetime | None = None  # by an operator; nothing is begun until it is resumed
    flow: Flow = field(init=False)
    meter: Meter = field(init=False)
    under_way: int = 0  # attempts
    claiming: int = 0  # places held while a claim is under way
    fresh: int = 0  # of those under way, what this process had just accepted
    last_success: datetime | None = None  # of this process
    backlog: bool = False  # something waits in the store that could go now
    ahead: float | None = None  # how far the wall clock was ahead of the monotonic one at the last look; None = no look
    capped: float = -inf  # when due times were capped last, by the monotonic clock
    wake: asyncio.Event = field(default_factory=asyncio.Event)

    def __post_init__(self) -> None:
        self.flow = Flow(self.clock)
        self.meter = Meter(self.clock)

    def change(self, profile: Profile | None) -> None:
        """Go on by these settings; None = the profile is in the settings no more."""
        self.is_known = profile is not None
        if profile is None:
            return
        self.profile = profile
        self.meter.change(profile.rate)

    @property
    def window(self) -> int:
        """How many attempts may be under way: enough to keep every connection busy."""
        if self.flow.limit is not None:
            return 4 * self.flow.limit
        return max(SMALLEST_WINDOW, 4 * self.profile.max_connections)

    @property
    def room_for_fresh(self) -> bool:
        """Whether a message that is about to be accepted may begin at once."""
        if self.paused_at is not None or self.meter.free <= 0:
            return False
        if self.backlog:
            return self.fresh < self.window // 2
        return self.under_way + self.claiming < self.window

    @property
    def room_for_waiting(self) -> int:
        """How many messages may be claimed from the store."""
        waiting = self.under_way + self.claiming - self.fresh
        room = min(self.window - self.window // 2 - waiting, self.window - self.under_way - self.claiming)
        return max(0, min(room, self.meter.free))

    def enter(self, *, is_fresh: bool) -> None:
        """Hold a place for an attempt."""
        self.under_way += 1
        self.fresh += is_fresh
        self.meter.reserve()

    def leave(self, *, is_fresh: bool, has_begun: bool) -> None:
        """Give it up; `has_begun` = its transaction did, which used the place in the rate."""
        self.under_way -= 1
        self.fresh -= is_fresh
        if not has_begun:
            self.meter.release()
        if self.backlog:
            self.wake.set()
