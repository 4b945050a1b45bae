"""Small records that outlive a restart: for now, which profiles are paused."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import datetime
from functools import partial

from sqlalchemy import bindparam, delete, select
from sqlalchemy.dialects.sqlite import insert as upsert

from app.store.database import profile_states
from app.store.journal import Journal, Operation
from app.store.reader import Reader
from app.store.records import from_ms, to_ms

_PAUSE = upsert(profile_states).values(profile=bindparam("of_profile"), paused_at=bindparam("at"))
_PAUSE = _PAUSE.on_conflict_do_nothing()
_RESUME = delete(profile_states).where(profile_states.c.profile == bindparam("of_profile"))
_PAUSED = select(profile_states.c.profile, profile_states.c.paused_at).where(profile_states.c.paused_at.is_not(None))


class Catalog:
    """Each raises `StoreUnavailable` where the store could not be written or read."""

    def __init__(self, journal: Journal, reader: Reader) -> None:
        self._journal = journal
        self._reader = reader

    async def pause(self, profile: str, *, now: datetime) -> None:
        """Remember that a profile is paused; one that is stays paused since when it was."""
        await self._journal.commit(partial(_pause, profile, now))

    async def resume(self, profile: str) -> None:
        """Forget it."""
        await self._journal.commit(partial(_resume, profile))

    async def paused(self) -> Mapping[str, datetime]:
        """Name the paused profiles, and since when they are."""
        return {name: from_ms(at) for name, at in await self._reader.rows(_PAUSED)}


def _pause(profile: str, now: datetime) -> Operation[None]:
    yield (_PAUSE, {"of_profile": profile, "at": to_ms(now)})


def _resume(profile: str) -> Operation[None]:
    yield (_RESUME, {"of_profile": profile})
