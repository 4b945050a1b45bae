"""Sessions kept warm, a handful a profile; one transaction at a time on each.

`lease()` gives the session that was used last (the others may lapse), opens one while the profile has room, else
waits in line. `give_back()` returns it: reset first where a refused transaction is still open at the relay. A
session that lapsed, broke or belongs to other settings is closed and its place given on. Nobody is ever given a
session that is known to be dead; one that died unseen shows itself as `StaleSession`.

A slot is what `max_connections` counts: it is held from before the connection is opened until it is closed.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Awaitable, Callable
from enum import Enum, auto
from typing import TypeAlias

from app.mail.attempt import Attempt
from app.mail.errors import TransactionError
from app.mail.profile import Profile
from app.smtp import classify
from app.smtp.session import Session

OpenSession: TypeAlias = Callable[[Profile, Attempt], Awaitable[Session]]


class _Turn(Enum):
    """What whoever asks for a session gets."""

    REUSE = auto()  # the idle one that was used last
    OPEN = auto()
    REPLACE = auto()  # an idle one is closed to make room for a new one
    WAIT = auto()


def _assign(*, idle: int, taken: int, limit: int, fresh: bool) -> _Turn:
    """Decide, with so many usable idle and taken sessions of `limit`; `fresh` = an idle one will not do. Pure."""
    if idle and not fresh:
        return _Turn.REUSE
    if idle + taken < limit:
        return _Turn.OPEN
    return _Turn.REPLACE if idle else _Turn.WAIT


class _Slots:
    """One profile's sessions."""

    __slots__ = ("called", "idle", "limit", "taken", "waiters")

    def __init__(self) -> None:
        self.limit: int | None = None  # below what the profile allows; None = as many as that
        self.idle: list[Session] = []  # the last one used at the end
        self.taken = 0  # leased, opening or resetting
        self.waiters: deque[asyncio.Future[None]] = deque()
        self.called = 0  # waiters whose turn has come and who have not run yet: nobody overtakes them

    @property
    def used(self) -> int:
        return self.taken + len(self.idle)

    def most(self, profile: Profile) -> int:
        return profile.max_connections if self.limit is None else min(self.limit, profile.max_connections)


class Pool:
    """All sessions of this process. `close()` is idempotent; after it nothing can be leased."""

    def __init__(self, open_session: OpenSession) -> None:
        self._open_session = open_session
        self._loop = asyncio.get_running_loop()
        self._slots: dict[str, _Slots] = {}
        self._resetting: dict[asyncio.Task[None], Session] = {}
        self._sweep: asyncio.TimerHandle | None = None
        self._closed = False

    async def lease(self, profile: Profile, attempt: Attempt, *, fresh: bool = False) -> Session:
        """Give an open session for one transaction; `fresh` asks for a new connection.

        Raises:
            TransactionError: none could be opened.
        """
        slots = self._slots.setdefault(profile.name, _Slots())
        if slots.waiters or slots.called:
            await self._wait_in_line(slots)
        while True:
            if self._closed:
                raise TransactionError(classify.stopping(profile))
            self._drop_unusable(slots, profile)
            turn = _assign(idle=len(slots.idle), taken=slots.taken, limit=slots.most(profile), fresh=fresh)
            if turn is _Turn.REUSE:
                session = slots.idle.pop()
                slots.taken += 1
                self._call_if_room(slots, profile)
                return session
            if turn is _Turn.REPLACE:
                slots.idle.pop(0).close()
            if turn is not _Turn.WAIT:
                break
            await self._wait_in_line(slots)
        slots.taken += 1
        self._call_if_room(slots, profile)
        try:
            return await self._open_session(profile, attempt)
        except BaseException:
            self._free(slots)
            raise

    def limit(self, profile: Profile, most: int | None) -> None:
        """Open at most so many connections at once from now on; None = as many as the profile says."""
        slots = self._slots.setdefault(profile.name, _Slots())
        slots.limit = most
        while slots.idle and slots.used > slots.most(profile):
            slots.idle.pop(0).close()
        self._call_if_room(slots, profile)

    def give_back(self, session: Session) -> None:
        """Return a leased session, in whatever state it is."""
        slots = self._slots[session.profile.name]
        profile = session.profile
        is_one_too_many = slots.used > slots.most(profile)
        if (
            not session.wire.is_open
            or self._closed
            or is_one_too_many
            or not profile.idle_timeout
            or session.is_used_up
        ):
            session.close()
            self._free(slots)
        elif session.needs_reset:
            task = self._loop.create_task(self._reset(session, slots))
            self._resetting[task] = session
            task.add_done_callback(self._resetting.pop)
        else:
            self._keep(session, slots)

    def count(self, profile: str) -> int:
        """How many connections to this profile's relay are open or opening."""
        return sum(self.figures(profile)[:2])

    def figures(self, profile: str) -> tuple[int, int, int]:
        """How many connections are idle and how many are taken, and how many attempts wait for one."""
        slots = self._slots.get(profile)
        return (len(slots.idle), slots.taken, len(slots.waiters)) if slots else (0, 0, 0)

    async def close(self) -> None:
        """Say QUIT on idle sessions and close them; leased ones close when they are given back."""
        self._closed = True
        if self._sweep is not None:
            self._sweep.cancel()
        for session in self._resetting.values():
            session.close()  # which ends its reset
        await asyncio.gather(*self._resetting)
        for slots in self._slots.values():
            while slots.waiters:
                self._call_next(slots)  # to be sent away
            while slots.idle:
                slots.idle.pop().close()
        await asyncio.sleep(0)  # the turn of the loop in which they go

    def _drop_unusable(self, slots: _Slots, profile: Profile) -> None:
        """Close what lapsed, broke or belongs to other settings, from the last one used back to one that is good."""
        while slots.idle:
            session = slots.idle[-1]
            lapsed = self._loop.time() - session.idle_since > profile.idle_timeout
            if session.wire.is_open and session.profile == profile and not lapsed:
                return
            slots.idle.pop().close()

    async def _wait_in_line(self, slots: _Slots) -> None:
        waiter = self._loop.create_future()
        slots.waiters.append(waiter)
        try:
            await waiter
        except asyncio.CancelledError:
            if waiter.done() and not waiter.cancelled():
                slots.called -= 1
                self._call_next(slots)  # the turn was already ours: pass it on
            elif waiter in slots.waiters:
                slots.waiters.remove(waiter)
            raise
        slots.called -= 1

    async def _reset(self, session: Session, slots: _Slots) -> None:
        usable = await session.reset()
        if usable and not self._closed:
            self._keep(session, slots)
        else:
            session.close()
            self._free(slots)

    def _keep(self, session: Session, slots: _Slots) -> None:
        session.idle_since = self._loop.time()
        slots.taken -= 1
        slots.idle.append(session)
        self._call_next(slots)
        self._sweep_at(session.idle_since + session.profile.idle_timeout)

    def _sweep_at(self, at: float) -> None:
        if self._sweep is not None:
            if self._sweep.when() <= at:
                return
            self._sweep.cancel()
        self._sweep = self._loop.call_at(at + 0.01, self._close_lapsed)

    def _free(self, slots: _Slots) -> None:
        slots.taken -= 1
        self._call_next(slots)

    def _call_if_room(self, slots: _Slots, profile: Profile) -> None:
        """Call on whoever queued behind a turn that has been taken now, where there is room for both."""
        if slots.waiters and not slots.called and (slots.idle or slots.used < slots.most(profile)):
            self._call_next(slots)

    def _call_next(self, slots: _Slots) -> None:
        while slots.waiters:
            waiter = slots.waiters.popleft()
            if not waiter.done():
                slots.called += 1
                waiter.set_result(None)
                return

    def _close_lapsed(self) -> None:
        self._sweep = None
        now = self._loop.time()
        next_lapse = None
        for slots in self._slots.values():
            keep = []
            for session in slots.idle:
                lapses = session.idle_since + session.profile.idle_timeout
                if session.wire.is_open and lapses > now:
                    keep.append(session)
                    next_lapse = lapses if next_lapse is None else min(next_lapse, lapses)
                else:
                    session.close()
            slots.idle = keep
        if next_lapse is not None:
            self._sweep_at(next_lapse)
