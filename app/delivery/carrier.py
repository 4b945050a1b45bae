"""Carrying one claim: its attempt, and further ones through other profiles, to an end that `recorder` writes down.

Order of events: circuit → session → envelope, mark → content → verdict → `record` → whoever waits is told. What is next
to a message is `plan.next_step`'s to say. A further attempt through another profile belongs to the same claim; its row
is written in the transaction that ends the one before. Whose turn it is within an attempt is in `turns`.

Over 400 lines, because one claim's way is read here from its beginning to its end, cancellation included.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from datetime import datetime, timedelta

import structlog

from app.delivery.attempt import carry_out, first_failure
from app.delivery.circuits import CircuitOpen, Circuits
from app.delivery.contents import ContentLost, Contents
from app.delivery.lane import Lane
from app.delivery.plan import (
    NO_CONTENT,
    Done,
    Ending,
    FallBack,
    GiveUp,
    RetryAt,
    Step,
    ending,
    ending_of_nobody,
    next_step,
    policy_of,
    saying_where,
)
from app.delivery.recorder import Recorder, end_of
from app.delivery.turns import (
    MOST_IN_VAIN,
    NOBODY,
    Following,
    may_go_on,
    of_all_turns,
    turns,
    went_through,
    with_the_rest,
)
from app.mail.attempt import Attempt
from app.mail.codes import Reason
from app.mail.errors import LeaseLost, StoreBroken, StoreUnavailable
from app.mail.message import Claim
from app.mail.outcome import (
    Deferred,
    Failure,
    FailureClass,
    InDoubt,
    MessageState,
    Outcome,
    Phase,
    RecipientState,
    Rejected,
    Sent,
)
from app.mail.profile import InDoubtPolicy, Profile, stand_in
from app.mail.schedule import Schedule
from app.smtp import classify
from app.smtp.pool import Pool
from app.store.outbox import MOST_CRASHES, Interrupted, Outbox
from app.store.verdicts import Verdicts
from app.telemetry import Metrics

LEAST_JITTER, LONGEST_JITTER = 0.9, 1.1  # of a wait, so that not all is tried at once
AT_LEAST = timedelta(seconds=5)  # until the first look at a message that came upon an open circuit
LOOK_AGAIN = timedelta(hours=1)  # between two looks at a message that waits for a circuit to close

log = structlog.get_logger()


@dataclass(slots=True)
class _Try:
    """One claim's way through its attempt, and through those at other profiles that follow at once."""

    claim: Claim
    lane: Lane
    through: str  # the profile that the attempt's row names
    attempt: Attempt | None = None  # the one that runs
    last: Failure | None = None  # of the attempt before, through another profile
    begun: set[str] = field(default_factory=set)  # the profiles whose relay was asked to take it
    later: list[frozenset[str]] = field(default_factory=list)  # whose turn in the attempt is yet to come
    goes_on: bool = False  # the attempt has had a transaction, whose verdicts are written, and has another one
    let_go: bool = False  # in one of those the content was


class Carrier:
    """Carries claims; `schedule` and `keep_transcripts` are replaced when the settings are read again."""

    schedule: Schedule
    keep_transcripts: bool

    def __init__(
        self,
        lanes: Mapping[str, Lane],
        *,
        outbox: Outbox,
        contents: Contents,
        pool: Pool,
        circuits: Circuits,
        verdicts: Verdicts,
        metrics: Metrics,
        now: Callable[[], datetime],
        clock: Callable[[], float],
        random_bits: Callable[[int], int],
    ) -> None:
        self._lanes = lanes
        self._outbox = outbox
        self._contents = contents
        self._pool = pool
        self._circuits = circuits
        self._recorder = Recorder(lanes, outbox=outbox, verdicts=verdicts, metrics=metrics)
        self._now = now
        self._clock = clock
        self._random_bits = random_bits

    async def carry(self, claim: Claim, lane: Lane, *, is_fresh: bool) -> None:
        """Carry a claim to its end, and free its place; cancelled, it lets the message go as far as that is right."""
        trying = _Try(claim, lane, lane.profile.name)
        try:
            if lane.paused_at is not None and lane.is_known:  # since it was claimed, or taken in
                await self._release(claim, None)
            elif not claim.pending:
                await self._recorder.record(claim, None, ending_of_nobody(claim))
            elif (no_use := self._of_no_use(claim, lane)) is not None:
                await self._defer(claim, *no_use)
            else:
                await self._try(trying)
        except LeaseLost as error:
            log.warning("delivery.lease_lost", message_id=str(claim.snapshot.id), error=str(error))
        except StoreBroken as error:
            log.error("delivery.record_failed", message_id=str(claim.snapshot.id), error=str(error))
        finally:
            lane.leave(is_fresh=is_fresh, has_begun=lane.profile.name in trying.begun)

    async def _try(self, trying: _Try) -> None:
        """Carry an attempt out, and further ones while there is another profile to fall back to."""
        claim = trying.claim
        left = [trying.through, *(() if claim.is_doubtful else trying.lane.profile.fallback)]
        profile: Profile | None = None
        try:
            while (profile := self._next_usable(left, home=trying.lane)) is not None:
                await self._turn_to(trying, profile)
                attempt = trying.attempt = Attempt(
                    trying.claim.snapshot.attempts,
                    profile.name,
                    self._now(),
                    self._clock,
                    self.keep_transcripts,
                    message_id=str(claim.snapshot.id),
                )
                try:
                    outcomes = await self._carry_out(trying, profile, attempt)
                except CircuitOpen:
                    trying.attempt = None
                    continue
                step = self._step(trying.claim, outcomes, profile, may_fall_back=bool(left))
                if isinstance(step, FallBack) and not await self._falls_back(trying, attempt, through=left[0]):
                    step = self._step(trying.claim, outcomes, profile, may_fall_back=False)
                if not isinstance(step, FallBack):
                    break
        except asyncio.CancelledError:
            await self._interrupt(trying)
            raise
        except StoreUnavailable as error:  # before an attempt through another profile
            log.error("delivery.redirect_failed", message_id=str(claim.snapshot.id), error=str(error))
            await self._release(trying.claim, trying.last)
            return
        if profile is None:
            await self._give_back(trying)
        else:
            await self._record(trying.claim, attempt, outcomes, step, policy_of(trying.claim, profile))

    async def _turn_to(self, trying: _Try, profile: Profile) -> None:
        """Have the row of the attempt that is about to begin say through which profile it goes."""
        if profile.name != trying.through:
            trying.through = profile.name
            await self._outbox.redirect(trying.claim, profile.name)

    async def _falls_back(self, trying: _Try, attempt: Attempt, *, through: str) -> bool:
        """End an attempt and begin the next one in one transaction; False = the store cannot."""
        writing = self._outbox.fall_back(trying.claim, attempt, through, now=self._now())
        stopped = await end_of(writing)
        if isinstance(writing.exception(), StoreUnavailable):
            return False
        trying.claim = writing.result()
        trying.last, trying.attempt, trying.through = attempt.failure, None, through
        self._recorder.count(attempt)
        if stopped is not None:
            raise stopped
        return True

    def _of_no_use(self, claim: Claim, lane: Lane) -> tuple[Failure, Step] | None:
        """Say why, and what then, where an attempt need not begin."""
        if self._now() >= claim.snapshot.expires_at:
            never = self._failure(lane.profile, Reason.EXPIRED, FailureClass.PERMANENT)
            return claim.snapshot.failure or never, GiveUp()
        if not lane.is_known or (
            claim.snapshot.sandbox and not lane.profile.sandbox
        ):  # the sandbox's mail never leaves
            gone = self._failure(lane.profile, Reason.PROFILE_UNKNOWN, FailureClass.CONFIGURATION)
            again = self._now() + timedelta(seconds=self.schedule.waits[-1])
            return gone, RetryAt(min(again, claim.snapshot.expires_at))
        return None

    def _next_usable(self, left: list[str], *, home: Lane) -> Profile | None:
        """Take the next profile that an attempt may go through from those `left`."""
        while left:
            name = left.pop(0)
            lane = self._lanes.get(name)
            if lane is None or not lane.is_known or not self._circuits.admits(name):
                continue
            if lane is home or (lane.paused_at is None and lane.meter.free > 0):
                return lane.profile
        return None

    async def _give_back(self, trying: _Try) -> None:
        """Let a message go for which there is no usable profile (any more); this attempt did not take place."""
        claim, home, last = trying.claim, trying.lane.profile, trying.last
        said, circuit = claim.snapshot, self._circuits.of(home.name)
        if last is not None:
            await self._defer(claim, last, self._step(claim, {"": Deferred(last)}, home, may_fall_back=False))
        elif circuit is not None:
            # Whoever waits already is made due when it closes; and nobody comes again while a trial is under way.
            waits_already = said.failure == circuit.failure or claim.is_doubtful
            at = max(circuit.next_trial_at, self._now() + (LOOK_AGAIN if waits_already else AT_LEAST))
            await self._defer(claim, circuit.failure, RetryAt(min(at, said.expires_at)))
        else:  # it has closed in this very moment
            await self._release(claim, None)

    async def _release(self, claim: Claim, last: Failure | None) -> None:
        """Give a message back as it was, with no attempt counted; `last` is of one that was, since the claim."""
        said = claim.snapshot
        state = MessageState.DEFERRED if said.attempts > 1 else MessageState.QUEUED
        as_it_was = Ending(state, said.recipients, last or said.failure, next_attempt_at=self._now())
        await self._recorder.record(claim, None, as_it_was)

    async def _defer(self, claim: Claim, failure: Failure, step: Step) -> None:
        """Write a failure of which there was no attempt."""
        end = ending(claim, {address: Deferred(failure) for address in claim.pending}, step)
        if end.state is MessageState.DEFERRED and failure.reason is Reason.PROFILE_UNKNOWN:
            end = replace(end, failure=failure)  # though a recipient may be in doubt: a start looks for these
        await self._recorder.record(claim, None, end)

    def _step(self, claim: Claim, outcomes: Mapping[str, Outcome], profile: Profile, *, may_fall_back: bool) -> Step:
        return next_step(
            claim,
            outcomes,
            schedule=self.schedule,
            now=self._now(),
            jitter=self._jitter(),
            in_doubt=policy_of(claim, profile),
            circuit=self._circuits.of(profile.name),
            may_fall_back=may_fall_back,
        )

    async def _carry_out(self, trying: _Try, profile: Profile, attempt: Attempt) -> Mapping[str, Outcome]:
        """Go through one attempt; raises CircuitOpen where none was made."""
        lane, began = self._lanes[profile.name], self._clock()
        if lane is not trying.lane:
            lane.meter.reserve()
        self._circuits.begin(attempt)
        first, *trying.later = turns(trying.claim.snapshot.recipients)
        trying.claim = replace(trying.claim, only=first if trying.later else None)
        trying.goes_on = trying.let_go = ended = False
        try:
            outcomes, following = await self._transact(trying.claim, profile, attempt, lambda: _begin_in(lane, trying))
            outcomes = await self._go_on(trying, profile, attempt, outcomes, following)
            self._circuits.ended(profile, attempt, outcomes)
            ended = True
        except CircuitOpen:
            trying.claim = replace(trying.claim, only=None)
            raise
        finally:
            if not ended:
                self._circuits.abandoned(attempt)
            if lane is not trying.lane and profile.name not in trying.begun:
                lane.meter.release()
                lane.wake.set()
        self._learn(lane, outcomes, began)
        trying.claim = replace(trying.claim, only=None)
        return with_the_rest(trying.claim.snapshot.recipients, outcomes, attempt.failure)

    async def _go_on(
        self,
        trying: _Try,
        profile: Profile,
        attempt: Attempt,
        outcomes: Mapping[str, Outcome],
        following: Following,
    ) -> Mapping[str, Outcome]:
        """Carry out an attempt's further transactions: for `following`, and for whoever has a later turn."""
        in_vain, last = 0 if went_through(outcomes) else 1, following.last
        while in_vain < MOST_IN_VAIN:
            whom = following.at_once
            if not whom and may_go_on(outcomes):
                whom, last = (trying.later.pop(0), last) if trying.later else (last, frozenset())
            if not whom or not await self._keeps_part(trying, attempt, outcomes, whom):
                break
            try:
                counting = self._lanes[profile.name].meter.count
                others, following = await self._transact(trying.claim, profile, attempt, counting)
            except CircuitOpen:  # which this attempt has not met: whoever is left waits for it
                break
            last |= following.last
            outcomes = {**outcomes, **others}
            attempt.failure = first_failure(outcomes)
            in_vain += not went_through(others)
        if trying.goes_on:
            attempt.handover |= trying.let_go
            outcomes = of_all_turns(outcomes)
            attempt.failure = first_failure(outcomes)
        return outcomes

    async def _keeps_part(
        self, trying: _Try, attempt: Attempt, outcomes: Mapping[str, Outcome], more: frozenset[str]
    ) -> bool:
        """Write the verdicts so far, before another transaction of the attempt goes to `more`.

        False = they cannot be written now: `more` wait for the next attempt, and nobody is sent to twice.
        """
        so_far = {address: outcome for address, outcome in outcomes.items() if address not in more}
        part = ending(trying.claim, so_far, Done())
        writing = self._outbox.keep_part(trying.claim, part.recipients)
        stopped = await end_of(writing)
        if isinstance(writing.exception(), StoreUnavailable):
            return False
        trying.claim, trying.goes_on = replace(writing.result(), only=more), True
        trying.let_go, attempt.handover = trying.let_go or attempt.handover, False
        if stopped is not None:
            raise stopped
        return True

    def _learn(self, lane: Lane, outcomes: Mapping[str, Outcome], began: float) -> None:
        """Let the number of connections follow what the relay bears."""
        limit = lane.flow.limit
        failures = [outcome.failure for outcome in outcomes.values() if not isinstance(outcome, Sent)]
        if any(failure.reason is Reason.RATE_LIMITED for failure in failures):
            lane.flow.cut(self._pool.count(lane.profile.name), began=began)
        elif len(failures) < len(outcomes):
            lane.flow.succeeded(lane.profile.max_connections)
        if lane.flow.limit != limit:
            log.info("delivery.connections", profile=lane.profile.name, limit=lane.flow.limit)
            self._pool.limit(lane.profile, lane.flow.limit)
            lane.wake.set()

    async def _transact(
        self, claim: Claim, profile: Profile, attempt: Attempt, begins: Callable[[], None] = lambda: None
    ) -> tuple[Mapping[str, Outcome], Following]:
        """Carry a transaction out; return everybody's outcome, and who may follow in another one."""
        try:
            outcomes, following = await carry_out(
                claim,
                self._contents,
                profile,
                attempt,
                pool=self._pool,
                before_handover=lambda: self._outbox.mark(claim),
                begins=begins,
            )
            if attempt.failure is not None:
                outcomes = {
                    whom: InDoubt(saying_where(outcome.failure, claim, profile, attempt))
                    if isinstance(outcome, InDoubt) and outcome.failure.reason is Reason.OUTCOME_UNKNOWN
                    else outcome
                    for whom, outcome in outcomes.items()
                }
                attempt.failure = first_failure(outcomes)
            return outcomes, following
        except (LeaseLost, CircuitOpen):
            raise
        except ContentLost:
            attempt.end()
            attempt.failure = NO_CONTENT
            return dict.fromkeys(claim.pending, Rejected(NO_CONTENT)), NOBODY
        except StoreUnavailable as error:
            log.error("delivery.mark_failed", message_id=str(claim.snapshot.id), error=str(error))
            failure = classify.unexpected(profile, attempt.phase, error)
        except Exception as error:
            log.exception("delivery.unexpected", message_id=str(claim.snapshot.id), profile=profile.name)
            failure = classify.unexpected(profile, attempt.phase, error)
        attempt.end()
        attempt.failure = failure
        outcome = InDoubt(failure) if attempt.handover else Deferred(failure)
        return dict.fromkeys(claim.pending, outcome), NOBODY

    async def _interrupt(self, trying: _Try) -> None:
        """We are stopped in the middle of an attempt, or between two (situation 44)."""
        claim, attempt = trying.claim, trying.attempt
        if attempt is not None and attempt.handover:
            attempt.end()
            await self._left_in_doubt(claim, self._lanes[attempt.profile].profile, attempt)
        elif attempt is not None and trying.goes_on:
            attempt.end()
            attempt.handover, attempt.failure = trying.let_go, classify.stopping(trying.lane.profile)
            outcomes = {address: Deferred(attempt.failure) for address in claim.pending}
            await self._record(claim, attempt, outcomes, RetryAt(self._now()))
        else:
            await self._release(claim, trying.last)

    async def _left_in_doubt(self, claim: Claim, profile: Profile, attempt: Attempt) -> None:
        lost = self._failure(profile, Reason.OUTCOME_UNKNOWN, FailureClass.UNKNOWN)
        lost = attempt.failure = saying_where(lost, claim, profile, attempt)
        waiting = (one for one in claim.snapshot.recipients if one.state is RecipientState.PENDING)
        outcomes = {
            one.address: InDoubt(lost) if one.address in claim.pending else Deferred(one.failure or lost)
            for one in waiting
        }
        step = self._step(claim, outcomes, profile, may_fall_back=False)
        await self._record(claim, attempt, outcomes, step, policy_of(claim, profile))

    async def settle(self, found: Interrupted) -> None:
        """Write how an attempt ended whose process did: with the mark in doubt, without it certainly not sent."""
        claim, name = found.claim, found.profile
        profile = self._lanes[name].profile if name in self._lanes else stand_in(name)
        attempt = Attempt(claim.snapshot.attempts, name, found.started_at, self._clock, handover=found.is_marked)
        attempt.phases.clear()
        if found.is_marked:
            attempt.phase = Phase.CONTENT
            await self._left_in_doubt(claim, profile, attempt)
            return
        if found.crashes < MOST_CRASHES:
            attempt.failure = self._failure(profile, Reason.WORKER_CRASHED, FailureClass.TEMPORARY)
            outcome: Outcome = Deferred(attempt.failure)
            # Soon, but later each time: it may be the cause.
            step: Step = RetryAt(self._now() + timedelta(seconds=found.crashes - 1))
        else:
            attempt.failure = self._failure(profile, Reason.WORKER_CRASHED, FailureClass.PERMANENT)
            outcome, step = Rejected(attempt.failure), Done()
        await self._record(claim, attempt, dict.fromkeys(claim.pending, outcome), step)

    async def _record(
        self,
        claim: Claim,
        attempt: Attempt | None,
        outcomes: Mapping[str, Outcome],
        step: Step,
        in_doubt: InDoubtPolicy = InDoubtPolicy.HOLD,
    ) -> None:
        await self._recorder.record(claim, attempt, ending(claim, outcomes, step, in_doubt=in_doubt))

    def _failure(self, profile: Profile, reason: Reason, cls: FailureClass) -> Failure:
        return classify.failure(profile, Phase.CONTENT, reason, cls, _SAID[reason].format(profile=profile.name))

    def _jitter(self) -> float:
        return LEAST_JITTER + (LONGEST_JITTER - LEAST_JITTER) * self._random_bits(20) / (1 << 20)


def _begin_in(lane: Lane, trying: _Try) -> None:
    trying.begun.add(lane.profile.name)
    lane.meter.use()


_SAID = {
    Reason.EXPIRED: "The message expired before it could be tried",
    Reason.PROFILE_UNKNOWN: "The profile {profile} is not in the settings any more",
    Reason.OUTCOME_UNKNOWN: "The service stopped after the message was handed over and before the relay's verdict came",
    Reason.WORKER_CRASHED: "The service ended in the middle of this try, before the message was handed over",
}
