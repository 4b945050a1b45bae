"""Acting on messages that are stored (cancel, retry, resolve; one, or all that match), and pausing profiles.

The store decides and writes (`store.acts`); this room tells the worker what is due, and whoever waits what ended.
"""

from __future__ import annotations

from collections.abc import Callable
from datetime import datetime, timedelta
from uuid import UUID

from app.delivery.circuits import Circuits
from app.delivery.worker import Worker
from app.mail.acts import Act, is_possible
from app.mail.circuit import is_of_profile
from app.mail.message import Snapshot
from app.mail.outcome import MessageState
from app.store.acts import Acts
from app.store.catalog import Catalog
from app.store.history import Filter, History
from app.store.verdicts import Verdicts

STEP = 200  # messages of a bulk act in one transaction


class Control:
    """What the API and the command line act through. Everything raises `StoreUnavailable` as the store does."""

    def __init__(
        self,
        *,
        acts: Acts,
        history: History,
        worker: Worker,
        verdicts: Verdicts,
        catalog: Catalog,
        circuits: Circuits,
        now: Callable[[], datetime],
        expires_after: Callable[[], timedelta],
    ) -> None:
        self._acts = acts
        self._history = history
        self._worker = worker
        self._verdicts = verdicts
        self._catalog = catalog
        self._circuits = circuits
        self._now = now
        self._expires_after = expires_after

    async def act(self, act: Act, message_id: UUID) -> Snapshot:
        """Cancel, retry or resolve one message.

        Raises:
            NotFound: there is no such message.
            Conflict: its state forbids it.
        """
        now = self._now()
        snapshot = await self._acts.do(act, message_id, now=now, until=now + self._expires_after())
        self._tell(snapshot)
        return snapshot

    async def act_on_all(self, act: Act, which: Filter, *, is_dry: bool = False) -> int:
        """Cancel or retry all that match, in steps; return how many. In doubt only where the filter asks for it."""
        count, before = await self.act_on_some(act, which, at_most=STEP, is_dry=is_dry)
        while before is not None:
            more, before = await self.act_on_some(act, which, at_most=STEP, before=before, is_dry=is_dry)
            count += more
        return count

    async def act_on_some(
        self, act: Act, which: Filter, *, at_most: int, before: UUID | None = None, is_dry: bool = False
    ) -> tuple[int, UUID | None]:
        """Cancel or retry what matches among the next `at_most`; return how many, and where to go on, None = done.

        A dry run changes nothing, and counts what is sent or changed meanwhile as it was.
        """
        page = await self._history.newest(which, at_most=at_most, before=before)
        rest = page[-1].id if len(page) == at_most else None
        meant = [s for s in page if s.state is not MessageState.IN_DOUBT or which.state == MessageState.IN_DOUBT]
        if is_dry:
            return sum(is_possible(act, snapshot) for snapshot in meant), rest
        now = self._now()
        done = await self._acts.do_all(act, [s.id for s in meant], now=now, until=now + self._expires_after())
        for snapshot in done:
            self._tell(snapshot)
        return len(done), rest

    async def pause(self, profile: str) -> None:
        """Begin no attempt through a profile, across restarts too, until it is resumed; what is under way goes on."""
        await self._catalog.pause(profile, now=self._now())
        since = (await self._catalog.states())[profile].paused_at
        self._worker.pause(profile, since or self._now())

    async def resume(self, profile: str) -> None:
        """Send what waits for a profile: it is no longer paused, its circuit closes, what was deferred is due now."""
        await self._catalog.resume(profile)
        self._worker.resume(profile)
        await self._circuits.close(profile, "it was resumed")
        await self._worker.release(profile)

    async def verified(self, profile: str) -> None:
        """Take note that a profile works: what failed on the way to its relay is due now."""
        await self._circuits.close(profile, "it was verified")
        await self._worker.release(profile, is_of_profile)

    def _tell(self, snapshot: Snapshot) -> None:
        if snapshot.next_attempt_at is not None:
            self._worker.nudge(snapshot.profile)
        else:
            self._verdicts.publish(snapshot)
