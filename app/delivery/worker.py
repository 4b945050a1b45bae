"""The claim loop of every profile, and the attempts under way.

Two ways lead here. What this process has just accepted is handed off at once: `reserve()` a place before the
append, `hand_off()` after it. Everything else is claimed from the outbox when it is due, a loop a profile, so
that a slow relay holds up nobody else's mail. The window of attempts under way is bounded, and refilled from the
store: memory does not grow with the queue.

What becomes of a claim is `carrier`'s.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine, Iterable, Mapping
from dataclasses import dataclass
from datetime import datetime, timedelta
from functools import partial
from typing import Any

import structlog

from app.delivery.carrier import LONGEST_JITTER, Carrier
from app.delivery.circuits import Circuits
from app.delivery.contents import Contents
from app.delivery.flow import Meter
from app.delivery.lane import Lane
from app.delivery.recorder import PAUSE_WITHOUT_STORE, until_written
from app.mail.circuit import Circuit
from app.mail.errors import StoreUnavailable
from app.mail.message import Claim, Lease
from app.mail.outcome import Failure
from app.mail.profile import Profile, stand_in
from app.mail.schedule import Schedule
from app.smtp.limits import LONGEST_WAIT
from app.smtp.pool import Pool
from app.store.catalog import ProfileState
from app.store.outbox import Outbox
from app.store.verdicts import Verdicts
from app.telemetry import Metrics

LEASE = timedelta(hours=1)  # longer than any attempt; on SQLite the file's lock ends a dead process's leases
MOST_CLAIMS = 50  # at once
PUT_BACK = 5.0  # seconds that the wall clock falls behind the monotonic one until that counts as a jump
LONGEST_NAP = 30.0  # seconds between two looks at the queue, however far the next due time: clocks jump
CANCEL_AGAIN = 1.0  # seconds

log = structlog.get_logger()


@dataclass(frozen=True, slots=True)
class Standing:
    """How it stands with a profile. `last_success` None = none since the start of this process."""

    under_way: int  # attempts
    paused_at: datetime | None
    circuit: Circuit | None  # None = closed
    last_success: datetime | None


class Worker:
    """All delivery of this process. `start()` once, then `drain()`; both in the event loop."""

    def __init__(
        self,
        *,
        profiles: Mapping[str, Profile],
        schedule: Schedule,
        outbox: Outbox,
        contents: Contents,
        pool: Pool,
        circuits: Circuits,
        verdicts: Verdicts,
        metrics: Metrics,
        now: Callable[[], datetime],
        clock: Callable[[], float],
        random_bits: Callable[[int], int],
        keep_transcripts: bool,
    ) -> None:
        self._outbox = outbox
        self._pool = pool
        self._circuits = circuits
        self._now = now
        self._random_bits = random_bits
        self._clock = clock
        self._lanes: dict[str, Lane] = {}
        self._carrier = Carrier(
            self._lanes,
            outbox=outbox,
            contents=contents,
            pool=pool,
            circuits=circuits,
            verdicts=verdicts,
            metrics=metrics,
            now=now,
            clock=clock,
            random_bits=random_bits,
        )
        self._is_claiming = False
        self.reload(profiles, schedule, keep_transcripts=keep_transcripts)
        self._loops: list[asyncio.Task[None]] = []
        self._attempts: set[asyncio.Task[None]] = set()  # and the rest that a stop waits for as long, and then ends
        self._reserved = 0  # places whose message is being appended
        self._none_reserved = asyncio.Event()
        self._stopping = False

    def take_up(self, known: Mapping[str, ProfileState]) -> None:
        """Take up how it stood with the profiles when an earlier process ended."""
        for name, state in known.items():
            if state.paused_at is not None:
                self.pause(name, state.paused_at)
        self._circuits.take_up(known, closed=self._circuit_closed, let_try=self._let_one_try)

    async def start(self, profiles_waiting: Iterable[str]) -> None:
        """Settle what an earlier process left, then begin to claim.

        `profiles_waiting` names what the queue waits for; a name that is in the settings no more gets a lane
        too, so that its messages say so instead of lying there.

        Raises:
            StoreUnavailable: the outbox cannot be read.
        """
        for interrupted in await self._outbox.interrupted():
            await self._carrier.settle(interrupted)
        await self._circuits.start()
        for name in profiles_waiting:
            self._lane(name)
        for name in await self._outbox.found_missing():
            if name in self._lanes and self._lanes[name].is_known:  # it is back, as after a reload
                self._keep(self._make_due(name))
        self._is_claiming = True
        for lane in self._lanes.values():
            self._claim_for(lane)

    def reload(self, profiles: Mapping[str, Profile], schedule: Schedule, *, keep_transcripts: bool) -> None:
        """Go on by these settings. Attempts under way end by those they began with."""
        self._carrier.keep_transcripts = keep_transcripts
        self._carrier.schedule = schedule
        for name in profiles:
            self._lane(name)
        for name, lane in self._lanes.items():
            was, is_back = lane.profile, not lane.is_known and name in profiles
            lane.change(profiles.get(name))
            lane.wake.set()
            # What found it gone, or could not be sent by the settings before, waits for longer than it need. Where its
            # circuit is open, `Circuits` lets it go.
            is_mended = not lane.profile.sends_like(was) and self._circuits.of(name) is None
            if self._is_claiming and (is_back or is_mended):
                self._keep(self._make_due(name))
        self._circuits.settings_changed()

    def pause(self, profile: str, since: datetime) -> None:
        """Begin nothing more of a profile; what is under way goes on."""
        self._lane(profile).paused_at = since

    def resume(self, profile: str) -> None:
        """Begin again with what is due."""
        lane = self._lane(profile)
        lane.paused_at = None
        lane.wake.set()

    async def release(self, profile: str, which: Callable[[Failure], bool] | None = None) -> None:
        """Make due now what waits for a profile: all but scheduled messages, or those that such a failure deferred.

        Raises:
            StoreUnavailable: not all of it could be done; a repetition goes on from there.
        """
        for name in self._waiting_for(profile):
            now = self._now()
            await self._outbox.make_due(name, now=now, which=which)
            if which is None:  # queued ones too: a clock that was ahead put them off
                await self._outbox.bring_forward(name, now=now, latest=now)
            self.nudge(name)

    def standing(self, profile: str) -> Standing:
        """Say how it stands with a profile now."""
        lane = self._lanes[profile]
        return Standing(lane.under_way, lane.paused_at, self._circuits.of(profile), lane.last_success)

    def meters(self) -> Mapping[str, Meter]:
        """Give the meters of the profiles that have a rate."""
        return {name: lane.meter for name, lane in self._lanes.items() if lane.meter.rate is not None}

    def _lane(self, name: str) -> Lane:
        """Give a profile's lane, a new one where there is none, that of a profile that is not in the settings."""
        lane = self._lanes.get(name)
        if lane is None:
            lane = self._lanes[name] = Lane(stand_in(name), self._clock)
            if self._is_claiming:
                self._claim_for(lane)
        return lane

    def _claim_for(self, lane: Lane) -> None:
        self._loops.append(asyncio.create_task(self._claim_loop(lane)))

    def retire(self) -> None:
        """Claim no more, and take nothing from the door; what is under way goes on. Idempotent."""
        self._stopping = True
        for lane in self._lanes.values():
            lane.wake.set()

    async def drain(self, grace: float, *, hurried: asyncio.Event) -> None:
        """Claim no more; give what is under way `grace` seconds, or until `hurried`, then stop it. Idempotent.

        What is stopped before its mark goes back to the queue with no attempt burnt; after it, it is in doubt.
        """
        self.retire()
        await self._circuits.stop()
        await asyncio.gather(*self._loops, return_exceptions=True)  # what they had claimed has begun
        if self._reserved:  # and so has what was being taken in: the store answers within its time-out
            await self._none_reserved.wait()
        going = set(self._attempts)
        if going:
            over = asyncio.create_task(hurried.wait())
            all_done = asyncio.ensure_future(asyncio.gather(*going, return_exceptions=True))
            await asyncio.wait((all_done, over), timeout=grace, return_when=asyncio.FIRST_COMPLETED)
            over.cancel()
        while going := {attempt for attempt in self._attempts if not attempt.done()}:
            for attempt in going:
                attempt.cancel()
            # Again, if need be: Python 3.11's wait_for, which aiosmtplib uses, can swallow a cancellation.
            await asyncio.wait(going, timeout=CANCEL_AGAIN)
        await self._circuits.written()

    # the hand-off of what was just accepted

    def reserve(self, profile: str) -> Lease | None:
        """Hold a place for a message that is about to be appended; None = it must wait in the queue.

        Whoever gets a lease calls `hand_off` or `give_up_place` afterwards.
        """
        lane = self._lanes.get(profile)
        if lane is None or self._stopping or not lane.room_for_fresh:
            return None
        lane.enter(is_fresh=True)
        self._reserved += 1
        return self._lease()

    def give_up_place(self, profile: str) -> None:
        """Free a place whose message was not appended."""
        self._lanes[profile].leave(is_fresh=True, has_begun=False)
        self._count_off()

    def hand_off(self, claim: Claim) -> None:
        """Begin the attempt of a message that was appended with a reserved lease."""
        self._begin(claim, self._lanes[claim.snapshot.profile], is_fresh=True)
        self._count_off()

    def _count_off(self) -> None:
        self._reserved -= 1
        if self._stopping and not self._reserved:
            self._none_reserved.set()

    def nudge(self, profile: str) -> None:
        """Say that a message is due in the queue."""
        if self._is_claiming and not self._stopping:
            lane = self._lane(profile)  # a new one, if a message of a profile that is gone was retried
            lane.backlog = True
            lane.wake.set()

    # claiming

    async def _claim_loop(self, lane: Lane) -> None:
        while not self._stopping:
            lane.wake.clear()
            lane.backlog = False
            nap = LONGEST_NAP
            room = lane.room_for_waiting
            self._mind_the_clock(lane)
            if lane.paused_at is not None and lane.is_known:
                pass
            elif room > 0:
                try:
                    nap = await self._claim_some(lane, min(room, MOST_CLAIMS))
                except Exception as error:  # a loop that ends silently is a queue that stands still
                    unforeseen = not isinstance(error, StoreUnavailable)
                    log.error("delivery.claim_failed", profile=lane.profile.name, error=str(error), exc_info=unforeseen)
                    nap = PAUSE_WITHOUT_STORE
            else:
                lane.backlog = True
                if lane.meter.free <= 0:
                    nap = min(lane.meter.next_free_in, LONGEST_NAP)
            if nap > 0 and not self._stopping:
                try:
                    async with asyncio.timeout(nap):
                        await lane.wake.wait()
                except TimeoutError:
                    pass

    async def _claim_some(self, lane: Lane, at_most: int) -> float:
        """Claim and begin; give how long nothing more is due, in seconds."""
        name = lane.profile.name
        lane.claiming += at_most  # held while the claim is under way, so that a hand-off cannot overfill
        try:
            claims, due = await self._outbox.claim(name, lease=self._lease(), at_most=at_most, now=self._now())
        finally:
            lane.claiming -= at_most
        for claim in claims:
            lane.enter(is_fresh=False)
            self._begin(claim, lane, is_fresh=False)
        if due is None:
            return LONGEST_NAP
        wait = (due - self._now()).total_seconds()
        lane.backlog = wait <= 0
        return 0 if wait <= 0 else min(wait, LONGEST_NAP)

    def _mind_the_clock(self, lane: Lane) -> None:
        """Cap due times: no message but a scheduled one is due later than its longest wait.

        At once where the clock was put back, perhaps before this process began. Otherwise now and then, by the longest
        wait that anything asks for: a clock that was ahead between two looks leaves no other trace. Handed in before
        the claim, which finds what has become due by it.
        """
        now, clock = self._now(), self._clock()
        before, lane.ahead = lane.ahead, now.timestamp() - clock
        was_put_back = before is None or lane.ahead < before - PUT_BACK
        if not was_put_back and clock < lane.capped + LONGEST_NAP:
            return
        lane.capped = clock
        wait = max(self._carrier.schedule.waits)
        latest = now + timedelta(seconds=(wait if was_put_back else max(wait, LONGEST_WAIT)) * LONGEST_JITTER)
        bringing = self._outbox.bring_forward(lane.profile.name, now=now, latest=latest)

        def tell(brought: asyncio.Future[int]) -> None:
            if brought.exception() is not None:
                lane.ahead = None  # at the next look, then
            elif brought.result():
                log.warning("delivery.brought_forward", profile=lane.profile.name, messages=brought.result())

        bringing.add_done_callback(tell)

    def _lease(self) -> Lease:
        return Lease(self._random_bits(63), self._now() + LEASE)

    def _begin(self, claim: Claim, lane: Lane, *, is_fresh: bool) -> None:
        self._keep(self._carrier.carry(claim, lane, is_fresh=is_fresh))

    def _keep(self, work: Coroutine[Any, Any, None]) -> None:
        task = asyncio.create_task(work)
        self._attempts.add(task)
        task.add_done_callback(self._attempts.discard)

    # circuits

    async def _circuit_closed(self, profile: str) -> None:
        """Let all that waited for this profile go, one connection at first."""
        if (lane := self._lanes.get(profile)) is not None:  # else it is in the settings no more
            lane.flow.ramp()
            self._pool.limit(lane.profile, lane.flow.limit)
        for name in self._waiting_for(profile):
            await self._make_due(name)

    async def _make_due(self, profile: str) -> None:
        make_due = partial(self._outbox.make_due, profile, now=self._now())
        await until_written(make_due, "delivery.not_made_due", profile=profile)
        self.nudge(profile)

    async def _let_one_try(self, profile: str) -> None:
        for name in self._waiting_for(profile):
            await self._outbox.make_one_due(name, now=self._now())
            self.nudge(name)

    def _waiting_for(self, profile: str) -> list[str]:
        """Name the profiles whose mail waits for this one's circuit: itself, and those that could fall back to it."""
        falling_back = (name for name, lane in self._lanes.items() if profile in lane.profile.fallback)
        return [profile, *(name for name in falling_back if self._circuits.of(name) is not None)]
