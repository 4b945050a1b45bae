"""The claim loop of every profile, the attempts under way, and their end.

Two ways lead here. What this process has just accepted is handed off at once: `reserve()` a place before the
append, `hand_off()` after it. Everything else is claimed from the outbox when it is due, a loop a profile, so
that a slow relay holds up nobody else's mail. The window of attempts under way is bounded, and refilled from the
store: memory does not grow with the queue.

Order of events of an attempt: its row is in the store (with the claim) → session → envelope, mark → content →
verdict → `record` → whoever waits is told. An attempt is never retried by itself here; what is next is
`plan.next_step`'s to say.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from datetime import datetime, timedelta

import structlog

from app.delivery.attempt import carry_out
from app.delivery.plan import Done, GiveUp, RetryAt, Step, ending, next_step
from app.mail.address import without_addresses
from app.mail.attempt import Attempt
from app.mail.codes import Reason
from app.mail.errors import LeaseLost, StoreUnavailable
from app.mail.message import Claim, Lease, Recipient, Snapshot
from app.mail.outcome import Deferred, Failure, FailureClass, InDoubt, MessageState, Outcome, Phase
from app.mail.profile import Profile, stand_in
from app.mail.schedule import Schedule
from app.smtp import classify
from app.smtp.pool import Pool
from app.store.outbox import Outbox
from app.store.verdicts import Verdicts
from app.telemetry import Metrics

LEASE = timedelta(hours=1)  # longer than any attempt; on SQLite the file's lock ends a dead process's leases
MOST_CLAIMS = 50  # at once
PUT_BACK = 5.0  # seconds that the wall clock falls behind the monotonic one until that counts as a jump
LONGEST_NAP = 30.0  # seconds between two looks at the queue, however far the next due time: clocks jump
LEAST_JITTER, LONGEST_JITTER = 0.9, 1.1  # of a wait, so that not all is tried at once
CANCEL_AGAIN = 1.0  # seconds
PAUSE_WITHOUT_STORE = 1.0  # seconds

log = structlog.get_logger()


@dataclass(frozen=True, slots=True)
class Standing:
    """How it stands with a profile. None = not paused; no success since the start of this process."""

    under_way: int  # attempts
    paused_at: datetime | None
    last_success: datetime | None


@dataclass(slots=True)
class _Lane:
    """One profile's side of the worker."""

    profile: Profile
    under_way: int = 0
    last_success: datetime | None = None  # of this process
    backlog: bool = False  # something waits in the store that could go now
    ahead: float | None = None  # how far the wall clock was ahead of the monotonic one at the last look; None = no look
    wake: asyncio.Event = field(default_factory=asyncio.Event)

    @property
    def window(self) -> int:
        """How many attempts may be under way: enough to keep every connection busy."""
        return max(8, 4 * self.profile.max_connections)


class Worker:
    """All delivery of this process. `start()` once, then `drain()`; both in the event loop."""

    def __init__(
        self,
        *,
        profiles: Mapping[str, Profile],
        schedule: Schedule,
        outbox: Outbox,
        pool: Pool,
        verdicts: Verdicts,
        metrics: Metrics,
        now: Callable[[], datetime],
        clock: Callable[[], float],
        random_bits: Callable[[int], int],
        keep_transcripts: bool,
    ) -> None:
        self._outbox = outbox
        self._pool = pool
        self._verdicts = verdicts
        self._metrics = metrics
        self._now = now
        self._random_bits = random_bits
        self._clock = clock
        self._lanes: dict[str, _Lane] = {}
        self._known = frozenset[str]()
        self._paused: dict[str, datetime] = {}  # by an operator → since when; nothing is begun until it is resumed
        self._is_claiming = False
        self.reload(profiles, schedule, keep_transcripts=keep_transcripts)
        self._loops: list[asyncio.Task[None]] = []
        self._attempts: set[asyncio.Task[None]] = set()
        self._stopping = False

    async def start(self, profiles_waiting: Iterable[str]) -> None:
        """Settle what an earlier process left, then begin to claim.

        `profiles_waiting` names what the queue waits for; a name that is in the settings no more gets a lane
        too, so that its messages say so instead of lying there.

        Raises:
            StoreUnavailable: the outbox cannot be read.
        """
        for claim, started_at, marked in await self._outbox.interrupted():
            await self._settle_interrupted(claim, started_at, marked=marked)
        for name in profiles_waiting:
            self._lanes.setdefault(name, _Lane(stand_in(name)))
        self._is_claiming = True
        for lane in self._lanes.values():
            self._claim_for(lane)

    def reload(self, profiles: Mapping[str, Profile], schedule: Schedule, *, keep_transcripts: bool) -> None:
        """Go on by these settings. Attempts under way end by those they began with."""
        self._keep_transcripts = keep_transcripts
        self._schedule = schedule
        self._known = frozenset(profiles)
        for name, profile in profiles.items():
            lane = self._lanes.get(name)
            if lane is None:
                self._lanes[name] = lane = _Lane(profile)
                if self._is_claiming:
                    self._claim_for(lane)
            lane.profile = profile
            lane.wake.set()

    def pause(self, profile: str, since: datetime) -> None:
        """Begin nothing more of a profile; what is under way goes on."""
        self._paused[profile] = since

    def resume(self, profile: str) -> None:
        """Begin again with what is due."""
        self._paused.pop(profile, None)
        self._lanes[profile].wake.set()

    def standing(self, profile: str) -> Standing:
        """Say how it stands with a profile now."""
        lane = self._lanes[profile]
        return Standing(lane.under_way, self._paused.get(profile), lane.last_success)

    def _claim_for(self, lane: _Lane) -> None:
        self._loops.append(asyncio.create_task(self._claim_loop(lane)))

    async def drain(self, grace: float, *, hurried: asyncio.Event) -> None:
        """Claim no more; give what is under way `grace` seconds, or until `hurried`, then stop it. Idempotent.

        What is stopped before its mark goes back to the queue with no attempt burnt; after it, it is in doubt.
        """
        self._stopping = True
        for lane in self._lanes.values():
            lane.wake.set()
        await asyncio.gather(*self._loops, return_exceptions=True)  # what they had claimed has begun
        going = set(self._attempts)
        if going:
            over = asyncio.create_task(hurried.wait())
            all_done = asyncio.ensure_future(asyncio.gather(*going, return_exceptions=True))
            await asyncio.wait((all_done, over), timeout=grace, return_when=asyncio.FIRST_COMPLETED)
            over.cancel()
        while going := {attempt for attempt in going if not attempt.done()}:
            for attempt in going:
                attempt.cancel()
            # Again, if need be: Python 3.11's wait_for, which aiosmtplib uses, can swallow a cancellation.
            await asyncio.wait(going, timeout=CANCEL_AGAIN)

    # the hand-off of what was just accepted

    def reserve(self, profile: str) -> Lease | None:
        """Hold a place for a message that is about to be appended; None = it must wait in the queue.

        Whoever gets a lease calls `hand_off` or `give_up_place` afterwards.
        """
        lane = self._lanes.get(profile)
        if lane is None or self._stopping:
            return None
        room = lane.window // 2 if lane.backlog else lane.window  # the waiting are not starved by the fresh
        if lane.under_way >= room or profile in self._paused:
            return None
        lane.under_way += 1
        return self._lease()

    def give_up_place(self, profile: str) -> None:
        """Free a place whose message was not appended."""
        self._leave(self._lanes[profile])

    def hand_off(self, claim: Claim) -> None:
        """Begin the attempt of a message that was appended with a reserved lease."""
        self._begin(claim, self._lanes[claim.snapshot.profile])

    def nudge(self, profile: str) -> None:
        """Say that a message is due in the queue."""
        lane = self._lanes.get(profile)
        if lane is not None:
            lane.backlog = True
            lane.wake.set()

    # claiming

    async def _claim_loop(self, lane: _Lane) -> None:
        while not self._stopping:
            lane.wake.clear()
            lane.backlog = False
            nap = LONGEST_NAP
            room = lane.window - lane.under_way if lane.profile.name not in self._paused else 0
            if room > 0:
                try:
                    self._mind_the_clock(lane)
                    nap = await self._claim_some(lane, min(room, MOST_CLAIMS))
                except Exception as error:  # a loop that ends silently is a queue that stands still
                    unforeseen = not isinstance(error, StoreUnavailable)
                    log.error("delivery.claim_failed", profile=lane.profile.name, error=str(error), exc_info=unforeseen)
                    nap = PAUSE_WITHOUT_STORE
            else:
                lane.backlog = True
            if nap > 0 and not self._stopping:
                try:
                    async with asyncio.timeout(nap):
                        await lane.wake.wait()
                except TimeoutError:
                    pass

    async def _claim_some(self, lane: _Lane, at_most: int) -> float:
        """Claim and begin; give how long nothing more is due, in seconds."""
        name = lane.profile.name
        lane.under_way += at_most  # held while the claim is under way, so that a hand-off cannot overfill
        claims: list[Claim] = []
        try:
            claims, due = await self._outbox.claim(name, lease=self._lease(), at_most=at_most, now=self._now())
        finally:
            lane.under_way -= at_most - len(claims)
        for claim in claims:
            self._begin(claim, lane)
        if due is None:
            return LONGEST_NAP
        wait = (due - self._now()).total_seconds()
        lane.backlog = wait <= 0
        if wait <= 0:
            return 0 if lane.under_way < lane.window else LONGEST_NAP
        return min(wait, LONGEST_NAP)

    def _mind_the_clock(self, lane: _Lane) -> None:
        """Where the clock was put back, perhaps before this process began, let no due time lie behind the longest wait.

        Handed in before the claim, which finds what has become due by it.
        """
        now = self._now()
        before, lane.ahead = lane.ahead, now.timestamp() - self._clock()
        if before is not None and lane.ahead >= before - PUT_BACK:
            return
        latest = now + timedelta(seconds=max(self._schedule.waits) * LONGEST_JITTER)
        bringing = self._outbox.bring_forward(lane.profile.name, now=now, latest=latest)

        def tell(brought: asyncio.Future[int]) -> None:
            if brought.exception() is not None:
                lane.ahead = None  # at the next look, then
            elif brought.result():
                log.warning("delivery.brought_forward", profile=lane.profile.name, messages=brought.result())

        bringing.add_done_callback(tell)

    def _lease(self) -> Lease:
        return Lease(self._random_bits(63), self._now() + LEASE)

    def _begin(self, claim: Claim, lane: _Lane) -> None:
        task = asyncio.create_task(self._attempt(claim, lane))
        self._attempts.add(task)
        task.add_done_callback(self._attempts.discard)

    def _leave(self, lane: _Lane) -> None:
        lane.under_way -= 1
        if lane.backlog:
            lane.wake.set()

    # one attempt

    async def _attempt(self, claim: Claim, lane: _Lane) -> None:
        try:
            await self._try(claim, lane.profile)
        except LeaseLost as error:
            log.warning("delivery.lease_lost", message_id=str(claim.snapshot.id), error=str(error))
        finally:
            self._leave(lane)

    async def _try(self, claim: Claim, profile: Profile) -> None:
        said = claim.snapshot
        if self._now() >= said.expires_at:
            last = said.failure or self._failure(profile, Reason.EXPIRED, FailureClass.PERMANENT)
            await self._record(claim, None, {a: Deferred(last) for a in claim.pending}, GiveUp())
            return
        if profile.name not in self._known:
            gone = self._failure(profile, Reason.PROFILE_UNKNOWN, FailureClass.CONFIGURATION)
            again = self._now() + timedelta(seconds=self._schedule.waits[-1])
            await self._record(claim, None, {a: Deferred(gone) for a in claim.pending}, RetryAt(again))
            return
        attempt = Attempt(said.attempts, profile.name, self._now(), self._clock, self._keep_transcripts)
        try:
            outcomes = await self._carry_out(claim, profile, attempt)
        except asyncio.CancelledError:
            await self._interrupt(claim, profile, attempt)
            raise
        step = next_step(claim, outcomes, schedule=self._schedule, now=self._now(), jitter=self._jitter())
        await self._record(claim, attempt, outcomes, step)

    async def _carry_out(self, claim: Claim, profile: Profile, attempt: Attempt) -> Mapping[str, Outcome]:
        try:
            content = claim.content or await self._outbox.content(claim.snapshot.id)
            if content is None:
                raise RuntimeError("the content is not in the store")
            return await carry_out(
                claim,
                content,
                profile,
                attempt,
                pool=self._pool,
                before_handover=lambda: self._outbox.mark(claim),
            )
        except LeaseLost:
            raise
        except StoreUnavailable as error:
            log.error("delivery.mark_failed", message_id=str(claim.snapshot.id), error=str(error))
            failure = classify.unexpected(profile, attempt.phase, error)
        except Exception as error:
            log.exception("delivery.unexpected", message_id=str(claim.snapshot.id), profile=profile.name)
            failure = classify.unexpected(profile, attempt.phase, error)
        attempt.end()
        attempt.failure = failure
        outcome = InDoubt(failure) if attempt.handover else Deferred(failure)
        return dict.fromkeys(claim.pending, outcome)

    async def _interrupt(self, claim: Claim, profile: Profile, attempt: Attempt) -> None:
        """We are stopped in the middle of an attempt (situation 44)."""
        attempt.end()
        if attempt.handover:
            attempt.failure = self._failure(profile, Reason.OUTCOME_UNKNOWN, FailureClass.UNKNOWN)
            await self._record(claim, attempt, {a: InDoubt(attempt.failure) for a in claim.pending}, Done())
            return
        said = claim.snapshot
        await self._write(
            claim,
            None,
            state=MessageState.DEFERRED if said.attempts > 1 else MessageState.QUEUED,
            recipients=said.recipients,
            failure=said.failure,
            at=self._now(),
        )

    async def _settle_interrupted(self, claim: Claim, started_at: datetime, *, marked: bool) -> None:
        """An earlier process ended in mid-attempt: with the mark in doubt, without it certainly not sent."""
        said = claim.snapshot
        profile = self._lanes[said.profile].profile if said.profile in self._lanes else stand_in(said.profile)
        attempt = Attempt(said.attempts, said.profile, started_at, self._clock, handover=marked)
        attempt.phases.clear()
        if marked:
            attempt.phase = Phase.CONTENT
            failure = self._failure(profile, Reason.OUTCOME_UNKNOWN, FailureClass.UNKNOWN)
            outcome: Outcome = InDoubt(failure)
            step: Step = Done()
        else:
            failure = self._failure(profile, Reason.WORKER_CRASHED, FailureClass.TEMPORARY)
            outcome = Deferred(failure)
            step = RetryAt(self._now())
        attempt.failure = failure
        await self._record(claim, attempt, dict.fromkeys(claim.pending, outcome), step)

    def _failure(self, profile: Profile, reason: Reason, cls: FailureClass) -> Failure:
        return classify.failure(profile, Phase.CONTENT, reason, cls, _SAID[reason].format(profile=profile.name))

    def _jitter(self) -> float:
        return LEAST_JITTER + (LONGEST_JITTER - LEAST_JITTER) * self._random_bits(20) / (1 << 20)

    # its end

    async def _record(self, claim: Claim, attempt: Attempt | None, outcomes: Mapping[str, Outcome], step: Step) -> None:
        end = ending(claim, outcomes, step)
        await self._write(
            claim,
            attempt,
            state=end.state,
            recipients=end.recipients,
            failure=end.failure,
            at=end.next_attempt_at,
        )

    async def _write(
        self,
        claim: Claim,
        attempt: Attempt | None,
        *,
        state: MessageState,
        recipients: tuple[Recipient, ...],
        failure: Failure | None,
        at: datetime | None,
    ) -> None:
        """Record until the store takes it: the verdict is known and must not be lost, nor the mail sent twice."""
        while True:
            writing = asyncio.ensure_future(
                self._outbox.record(claim, attempt, state=state, after=recipients, failure=failure, next_attempt_at=at)
            )
            try:
                snapshot = await asyncio.shield(writing)
                break
            except StoreUnavailable as error:
                log.error("delivery.record_failed", message_id=str(claim.snapshot.id), error=str(error))
                await asyncio.sleep(PAUSE_WITHOUT_STORE)
        self._tell(snapshot, attempt)

    def _tell(self, snapshot: Snapshot, attempt: Attempt | None) -> None:
        profile, failure = snapshot.profile, snapshot.failure
        self._metrics.messages(profile, snapshot.state.value).inc()
        if attempt is not None:
            why = attempt.failure
            if why is None and profile in self._lanes:
                self._lanes[profile].last_success = attempt.started_at
            self._metrics.attempts(profile, why.code if why else "", why.reason if why else "").inc()
            for phase, ms in attempt.phases.items():
                self._metrics.smtp_phase(profile, phase).observe(ms / 1000)
        log.info(
            _EVENTS[snapshot.state],
            message_id=str(snapshot.id),
            profile=profile,
            attempt=snapshot.attempts,
            **(
                {"code": failure.code, "reason": failure.reason, "error": without_addresses(failure.message)}
                if failure
                else {}
            ),
            **({"next_at": snapshot.next_attempt_at.isoformat()} if snapshot.next_attempt_at else {}),
        )
        self._verdicts.publish(snapshot)
        if snapshot.next_attempt_at is not None:
            lane = self._lanes.get(profile)
            if lane is not None:
                lane.wake.set()  # it may be due before what the loop sleeps for


_EVENTS = {state: f"delivery.{state}" for state in MessageState}

_SAID = {
    Reason.EXPIRED: "The message expired before it could be tried",
    Reason.PROFILE_UNKNOWN: "The profile {profile} is not in the settings any more",
    Reason.OUTCOME_UNKNOWN: "The service stopped after the message was handed over and before the relay's verdict came",
    Reason.WORKER_CRASHED: "The service stopped in the middle of this try, before the message was handed over",
}
