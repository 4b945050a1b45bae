"""Writing down how an attempt ended, until the store takes it; then metrics, log and whoever waits are told.

A verdict that is known must not be lost, nor the mail sent twice: only a store that is broken, or the end of the
process, ends the trying.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Mapping
from typing import TypeVar

import structlog

from app.delivery.lane import Lane
from app.delivery.plan import Ending
from app.mail.address import without_addresses
from app.mail.attempt import Attempt
from app.mail.errors import StoreBroken, StoreUnavailable
from app.mail.message import Claim, Snapshot
from app.mail.outcome import MessageState
from app.store.outbox import Outbox
from app.store.verdicts import Verdicts
from app.telemetry import Metrics

T = TypeVar("T")

PAUSE_WITHOUT_STORE = 1.0  # seconds

log = structlog.get_logger()


async def until_written(write: Callable[[], Awaitable[T]], failed: str, **what: str) -> T:
    """Have the store take something, however often it cannot; each failure is logged as the event `failed`.

    Raises:
        StoreBroken: it never will.
    """
    while True:
        try:
            return await write()
        except StoreBroken:
            raise
        except StoreUnavailable as error:
            log.error(failed, error=str(error), **what)
            await asyncio.sleep(PAUSE_WITHOUT_STORE)


async def end_of(writing: asyncio.Future[Claim]) -> asyncio.CancelledError | None:
    """Wait for what the journal was given, however often this is cancelled; return that, for the caller to raise."""
    stopped = None
    while not writing.done():
        try:
            await asyncio.wait([writing])
        except asyncio.CancelledError as error:
            stopped = error
    return stopped


class Recorder:
    """Tells the lanes too, whose messages are due again."""

    def __init__(self, lanes: Mapping[str, Lane], *, outbox: Outbox, verdicts: Verdicts, metrics: Metrics) -> None:
        self._lanes = lanes
        self._outbox = outbox
        self._verdicts = verdicts
        self._metrics = metrics

    async def record(self, claim: Claim, attempt: Attempt | None, end: Ending) -> None:
        """Record what became of a claim; attempt None = it did not take place.

        Raises:
            LeaseLost: the message is not ours any more; nothing was written.
            StoreBroken: it cannot be written. The mark says that the message is in doubt, where one was made.
        """

        def write() -> asyncio.Future[Snapshot]:
            writing = self._outbox.record(
                claim,
                attempt,
                state=end.state,
                after=end.recipients,
                failure=end.failure,
                next_attempt_at=end.next_attempt_at,
            )
            return asyncio.shield(asyncio.ensure_future(writing))

        snapshot = await until_written(write, "delivery.record_failed", message_id=str(claim.snapshot.id))
        self._tell(snapshot, attempt)

    def _tell(self, snapshot: Snapshot, attempt: Attempt | None) -> None:
        profile, failure = snapshot.profile, snapshot.failure
        self._metrics.messages(profile, snapshot.state.value).inc()
        if attempt is not None:
            self.count(attempt)
        tell = log.warning if snapshot.state in _LOST else log.info
        tell(
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

    def count(self, attempt: Attempt) -> None:
        """Count an attempt that has ended; `record` does so itself."""
        profile, why = attempt.profile, attempt.failure
        if why is None and profile in self._lanes:
            self._lanes[profile].last_success = attempt.started_at
        self._metrics.attempts(profile, why.code if why else "", why.reason if why else "").inc()
        for phase, ms in attempt.phases.items():
            self._metrics.smtp_phase(profile, phase).observe(ms / 1000)


# Somebody is not going to get it, or may not have got it, unless a person acts.
_LOST = frozenset({MessageState.FAILED, MessageState.PARTIAL, MessageState.IN_DOUBT})
_EVENTS = {state: f"delivery.{state}" for state in MessageState}
