"""Small records that outlive a restart: how it stands with a profile, that is whether it is paused, and its circuit."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime
from functools import partial

from sqlalchemy import bindparam, func, select, update
from sqlalchemy.dialects.sqlite import insert as upsert

from app.mail.circuit import Circuit
from app.store.database import profile_states
from app.store.journal import PATIENCE, Journal, Operation
from app.store.reader import Reader
from app.store.records import circuit_from, circuit_text
from app.store.values import from_ms, text_from, to_ms

_PROFILE_IS = profile_states.c.profile == bindparam("of_profile")
_PAUSE = upsert(profile_states).values(profile=bindparam("of_profile"), paused_at=bindparam("at"))
_PAUSE = _PAUSE.on_conflict_do_update(
    index_elements=[profile_states.c.profile],
    set_={"paused_at": func.coalesce(profile_states.c.paused_at, _PAUSE.excluded.paused_at)},
)
_RESUME = update(profile_states).where(_PROFILE_IS).values(paused_at=None, circuit=None)
_KEEP_CIRCUIT = upsert(profile_states).values(profile=bindparam("of_profile"), circuit=bindparam("as_json"))
_KEEP_CIRCUIT = _KEEP_CIRCUIT.on_conflict_do_update(
    index_elements=[profile_states.c.profile], set_={"circuit": _KEEP_CIRCUIT.excluded.circuit}
)
_STATES = select(profile_states.c.profile, profile_states.c.paused_at, profile_states.c.circuit)


@dataclass(frozen=True, slots=True)
class ProfileState:
    """What is remembered of a profile. `fingerprint` is of its settings and secret when the circuit opened."""

    paused_at: datetime | None
    circuit: Circuit | None
    fingerprint: str


class Catalog:
    """Each raises `StoreUnavailable` where the store could not be written or read."""

    def __init__(self, journal: Journal, reader: Reader) -> None:
        self._journal = journal
        self._reader = reader

    async def pause(self, profile: str, *, now: datetime) -> None:
        """Remember that a profile is paused; one that is stays paused since when it was."""
        await self._journal.commit_within(PATIENCE, partial(_pause, profile, now))

    async def resume(self, profile: str) -> None:
        """Forget that it is paused, and its circuit."""
        await self._journal.commit_within(PATIENCE, partial(_resume, profile))

    async def keep_circuit(self, profile: str, circuit: Circuit | None, fingerprint: str) -> None:
        """Remember a profile's open circuit; None = it is closed."""
        await self._journal.commit(partial(_keep_circuit, profile, circuit, fingerprint))

    async def states(self) -> dict[str, ProfileState]:
        """Give what is remembered of every profile."""
        return {text_from(name): _state(*rest) for name, *rest in await self._reader.rows(_STATES)}


def _pause(profile: str, now: datetime) -> Operation[None]:
    yield (_PAUSE, {"of_profile": profile, "at": to_ms(now)})


def _resume(profile: str) -> Operation[None]:
    yield (_RESUME, {"of_profile": profile})


def _keep_circuit(profile: str, circuit: Circuit | None, fingerprint: str) -> Operation[None]:
    yield (
        _KEEP_CIRCUIT,
        {"of_profile": profile, "as_json": circuit_text(circuit, fingerprint) if circuit else None},
    )


def _state(paused_at: object, circuit: object) -> ProfileState:
    opened, fingerprint = circuit_from(circuit) or (None, "")
    return ProfileState(from_ms(paused_at) if paused_at is not None else None, opened, fingerprint)
