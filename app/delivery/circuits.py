"""Every profile's circuit: opened by failures, remembered in the store, tried at its pace, closed again.

Sits where sessions are opened, so that nobody logs in again with a password that was just refused: until a login has
succeeded with these very credentials, sessions of a profile are opened one at a time. Decides nothing itself
(`mail.circuit`); begins no attempt: the worker asks whether a profile admits one.

A circuit is bound to a fingerprint of its profile's settings and secret; another one closes it, after a restart too.
"""

from __future__ import annotations

import asyncio
import os
from collections.abc import Awaitable, Callable, Mapping
from contextvars import Context
from dataclasses import dataclass, field, replace
from datetime import datetime
from hashlib import scrypt
from typing import TypeAlias

import structlog

from app.mail.attempt import Attempt
from app.mail.circuit import SLOWEST_PACE, Circuit, Streak, after_failure, is_of_opening, opened_by, tried_in_vain
from app.mail.errors import StoreUnavailable, TransactionError
from app.mail.outcome import Failure, FailureClass, Outcome, Phase, Sent
from app.mail.profile import AuthMode, Profile
from app.smtp.login import credentials_of
from app.smtp.pool import OpenSession
from app.smtp.session import Session
from app.store.catalog import Catalog, ProfileState
from app.telemetry import Metrics

WRITTEN_WITHIN = 5.0  # seconds that a stop waits for what is to be remembered
LOOK_EVERY = 5.0  # seconds between two looks at the secret of a profile whose circuit is open

log = structlog.get_logger()

_AsSet: TypeAlias = tuple[Profile, str | None]  # a profile and its password; None = it cannot be read


class CircuitOpen(Exception):
    """The profile's circuit is open: no session is opened, and no attempt was made."""


@dataclass(slots=True)
class _Way:
    """What is known of the way to one profile's relay."""

    login: asyncio.Lock = field(default_factory=asyncio.Lock)
    proven: _AsSet | None = None  # what a login has succeeded with
    streak: Streak = field(default_factory=Streak)
    circuit: Circuit | None = None
    as_set: _AsSet | None = None  # when a session was opened last, or should have been; None = before this process
    fingerprint: str = ""  # of that, once the circuit is open
    may_try: bool = False  # a message may try it
    trial: Attempt | None = None  # the one that does
    look: asyncio.Event = field(default_factory=asyncio.Event)
    watcher: asyncio.Task[None] | None = None


class Circuits:
    """All of this process. `start()` once, `stop()` at the end; in the event loop."""

    def __init__(
        self,
        profiles: Mapping[str, Profile],
        *,
        open_session: OpenSession,
        catalog: Catalog,
        metrics: Metrics,
        now: Callable[[], datetime],
        clock: Callable[[], float],
    ) -> None:
        self._profiles = profiles
        self._open_session = open_session
        self._catalog = catalog
        self._metrics = metrics
        self._now = now
        self._clock = clock
        self._ways: dict[str, _Way] = {}
        self._absent: dict[
            str, tuple[Circuit, str]
        ] = {}  # of profiles that are not in the settings; the store keeps them
        self._writing: set[asyncio.Task[None]] = set()
        self._is_trying = False
        self._closed: Callable[[str], Awaitable[None]] = _nobody
        self._let_try: Callable[[str], Awaitable[None]] = _nobody

    def take_up(
        self,
        known: Mapping[str, ProfileState],
        *,
        closed: Callable[[str], Awaitable[None]],
        let_try: Callable[[str], Awaitable[None]],
    ) -> None:
        """Take up what an earlier process knew.

        `closed` is told of a circuit that closed, `let_try` that a message may try one.
        """
        self._closed, self._let_try = closed, let_try
        self._absent = {name: (one.circuit, one.fingerprint) for name, one in known.items() if one.circuit is not None}
        self._take_back()

    async def start(self) -> None:
        """Close what belongs to other settings, and try the rest at its pace from now on."""
        self._is_trying = True
        for name in list(self._absent):
            await self._closed(name)  # what waits for it is to say that it is gone
        for name, way in list(self._ways.items()):
            if way.circuit is not None and not await self._close_if_changed(name, way):
                self._watch(name, way)

    async def stop(self) -> None:
        """Try nothing any more; idempotent."""
        self._is_trying = False
        watchers = [way.watcher for way in self._ways.values() if way.watcher is not None]
        for watcher in watchers:
            watcher.cancel()
        await asyncio.gather(*watchers, return_exceptions=True)

    async def written(self) -> None:
        """Wait a little for what is still to be remembered; what a store cannot take now is not waited for."""
        if self._writing:
            await asyncio.wait(self._writing, timeout=WRITTEN_WITHIN)
        for writing in self._writing:
            writing.cancel()

    def of(self, profile: str) -> Circuit | None:
        """Give a profile's circuit, None where it is closed."""
        way = self._ways.get(profile)
        return way.circuit if way is not None else None

    def admits(self, profile: str) -> bool:
        """Whether an attempt may begin: the circuit is closed, or waits for one to try it."""
        way = self._ways.get(profile)
        return way is None or way.circuit is None or way.may_try

    def settings_changed(self) -> None:
        """Look at once whether a profile with an open circuit is another one now, and whether one is back."""
        self._take_back()
        for way in self._ways.values():
            way.look.set()

    def _take_back(self) -> None:
        for name in [name for name in self._absent if name in self._profiles]:
            way = self._way(name)
            way.circuit, way.fingerprint = self._absent.pop(name)
            self._show(name, way.circuit)
            self._watch(name, way)

    async def close(self, profile: str, why: str) -> None:
        """Close a circuit and let what waits go; nothing happens to one that is closed."""
        way = self._ways.get(profile)
        if way is not None:
            await self._close(profile, way, why)

    def _close(self, profile: str, way: _Way, why: str) -> asyncio.Future[None]:
        """Close it now; the future is done when what waits has been let go."""
        way.streak = Streak()
        if way.circuit is None:
            return asyncio.ensure_future(_nobody(profile))
        log.info("circuit.closed", profile=profile, reason=way.circuit.failure.reason, why=why)
        self._metrics.circuit_open.remove(profile, way.circuit.failure.reason)
        way.circuit, way.fingerprint, way.may_try, way.trial = None, "", False, None
        way.look.set()  # which ends its watcher
        return self._write(profile, way, self._closed(profile))

    # around an attempt

    def begin(self, attempt: Attempt) -> None:
        """Make an attempt that begins the trial, where the circuit waits for one."""
        way = self._ways.get(attempt.profile)
        if way is not None and way.may_try:
            way.may_try, way.trial = False, attempt

    async def open_session(self, profile: Profile, attempt: Attempt) -> Session:
        """Open a session for an attempt.

        Raises:
            CircuitOpen: it is of no use; nothing was tried.
            TransactionError: it did not come about.
        """
        way = self._way(profile.name)
        as_set = await _as_set(profile)
        if not profile.wants_login or way.proven == as_set:
            return await self._open(way, profile, attempt, as_set)
        async with way.login:
            session = await self._open(way, profile, attempt, as_set)
            way.proven = as_set
            return session

    def ended(self, profile: Profile, attempt: Attempt, outcomes: Mapping[str, Outcome]) -> None:
        """Learn from how an attempt ended."""
        way = self._way(profile.name)
        was_trial, way.trial = way.trial is attempt, None if way.trial is attempt else way.trial
        failure = attempt.failure
        if any(isinstance(outcome, Sent) for outcome in outcomes.values()):
            way.streak = Streak()
        elif failure is not None and is_of_opening(failure):
            return  # counted where the session was opened
        elif failure is not None:
            way.streak, opens = after_failure(way.streak, failure, frozenset(outcomes))
            if opens or (was_trial and failure.cls is FailureClass.CONFIGURATION):
                self._failed(way, attempt, failure, is_trial=was_trial)
                return
        if was_trial:
            self._close(profile.name, way, "a message got through to the relay")

    def abandoned(self, attempt: Attempt) -> None:
        """An attempt came to no end that says anything: another one may try."""
        way = self._ways.get(attempt.profile)
        if way is not None and way.trial is attempt:
            way.trial, way.may_try = None, True

    async def _open(self, way: _Way, profile: Profile, attempt: Attempt, as_set: _AsSet) -> Session:
        if way.circuit is not None and way.trial is not attempt:
            raise CircuitOpen(profile.name)
        if way.circuit is None:
            if as_set != way.as_set:
                way.streak = Streak()  # what failed by other settings says nothing of these
            way.as_set = as_set
        is_proven = way.proven == as_set
        try:
            session = await self._open_session(profile, attempt)
        except TransactionError as error:
            # Before anybody else gets to try the same.
            is_trial = way.trial is attempt
            if error.failure.phase is Phase.AUTH:
                way.proven = None  # one login at a time, until one succeeds
            way.streak, opens = after_failure(way.streak, error.failure, frozenset(), is_proven=is_proven)
            if is_trial or opens:
                self._failed(way, attempt, error.failure, is_trial=is_trial)
            raise
        way.streak = replace(way.streak, unreachable=0)
        return session

    def _failed(self, way: _Way, attempt: Attempt, failure: Failure, *, is_trial: bool) -> None:
        now, name = self._now(), attempt.profile
        failure = replace(failure, message_id=attempt.message_id)
        if way.circuit is None:
            way.circuit, way.proven = opened_by(failure, now), None
            self._watch(name, way)
        elif is_trial:
            self._metrics.circuit_open.remove(name, way.circuit.failure.reason)
            way.circuit, way.trial = tried_in_vain(way.circuit, failure, now), None
            way.look.set()
        else:
            return
        self._show(name, way.circuit)
        log.warning(
            "circuit.tried" if way.circuit.tried else "circuit.opened",
            profile=name,
            code=failure.code,
            reason=failure.reason,
            error=failure.message,
            hint=failure.hint,
            next_trial_at=way.circuit.next_trial_at.isoformat(),
        )
        self._write(name, way)

    # while it is open

    def _watch(self, name: str, way: _Way) -> None:
        if self._is_trying and (way.watcher is None or way.watcher.done()):
            # In a context of its own: it outlives the request whose attempt opened the circuit.
            way.watcher = asyncio.create_task(self._try_at_its_pace(name, way), context=Context())

    async def _try_at_its_pace(self, name: str, way: _Way) -> None:
        seen, ends = None, 0.0
        while (circuit := way.circuit) is not None:
            wait = LOOK_EVERY
            if circuit is not seen:  # from here on by the monotonic clock too: the other may be put back
                left = min(circuit.next_trial_at - self._now(), SLOWEST_PACE * 6).total_seconds()
                seen, ends = circuit, self._clock() + left
            try:
                if await self._close_if_changed(name, way):
                    return
                # However the clock was set meanwhile.
                wait = min((circuit.next_trial_at - self._now()).total_seconds(), ends - self._clock())
                if wait <= 0:
                    await self._let_something_try(name, way, circuit)
            except StoreUnavailable as error:
                log.error("circuit.not_tried", profile=name, error=str(error))
            except Exception:  # a watcher that ends silently is a profile that is never tried again
                log.exception("circuit.unexpected", profile=name)
            way.look.clear()
            if way.circuit is circuit:
                await _moment(way.look, min(wait, LOOK_EVERY) if wait > 0 else LOOK_EVERY)

    async def _let_something_try(self, name: str, way: _Way, circuit: Circuit) -> None:
        profile = self._profiles.get(name)
        if circuit.is_probed and profile is not None:
            await self._probe(way, profile)
        elif way.trial is None:
            way.may_try = True
            await self._let_try(name)

    async def _close_if_changed(self, name: str, way: _Way) -> bool:
        """Close the circuit of a profile that is another one now, or is gone; return whether it is closed."""
        profile = self._profiles.get(name)
        if profile is None:
            await self._set_aside(name, way)
            return True
        as_set = await _as_set(profile)
        if way.as_set is None and await asyncio.to_thread(_fits, as_set, way.fingerprint):
            way.as_set = as_set
        if as_set != way.as_set:
            await self._close(name, way, "its settings or its secret changed")
        return way.circuit is None

    async def _set_aside(self, name: str, way: _Way) -> None:
        """Keep the circuit of a profile that is gone until it is back; its messages say meanwhile that it is gone."""
        if way.circuit is not None:
            self._absent[name] = (way.circuit, way.fingerprint)
            self._metrics.circuit_open.remove(name, way.circuit.failure.reason)
            way.circuit, way.fingerprint, way.may_try, way.trial = None, "", False, None
            await self._closed(name)

    async def _probe(self, way: _Way, profile: Profile) -> None:
        """Walk as far as EHLO, under TLS where that is set; no login."""
        circuit = way.circuit
        attempt = Attempt(0, profile.name, self._now(), self._clock, keeps_transcript=False)
        try:
            session = await self._open_session(replace(profile, auth=AuthMode.NONE), attempt)
        except TransactionError as error:
            if way.circuit is circuit:
                self._failed(way, attempt, error.failure, is_trial=True)
            return
        session.close()
        if way.circuit is not circuit:
            return
        await self._close(profile.name, way, "the relay answers")

    def _show(self, name: str, circuit: Circuit) -> None:
        self._metrics.circuit_open.labels(name, circuit.failure.reason).set(1)

    def _write(self, name: str, way: _Way, first: Awaitable[None] | None = None) -> asyncio.Future[None]:
        """Remember how it stands, behind the back of whoever found it out: an attempt's end must not wait for it."""
        writing = asyncio.create_task(self._remember(name, way, first))
        self._writing.add(writing)
        writing.add_done_callback(self._writing.discard)
        return asyncio.shield(writing)

    async def _remember(self, name: str, way: _Way, first: Awaitable[None] | None) -> None:
        try:
            if first is not None:
                await first
            circuit, as_set = way.circuit, way.as_set
            if circuit is not None and not way.fingerprint and as_set is not None:
                fingerprint = await asyncio.to_thread(_fingerprint, as_set, os.urandom(16))
                if way.circuit is None:
                    return  # it has closed, which is written behind this
                way.fingerprint = fingerprint
            await self._catalog.keep_circuit(name, way.circuit, way.fingerprint)
        except StoreUnavailable as error:  # it stands in this process all the same
            log.error("circuit.not_kept", profile=name, error=str(error))

    def _way(self, name: str) -> _Way:
        way = self._ways.get(name)
        if way is None:
            way = self._ways[name] = _Way()
        return way


async def _nobody(_: str) -> None:
    """Nobody listens before the start."""


async def _moment(event: asyncio.Event, seconds: float) -> None:
    try:
        async with asyncio.timeout(seconds):
            await event.wait()
    except TimeoutError:
        pass


async def _as_set(profile: Profile) -> _AsSet:
    without = replace(profile, password="")  # which may be an older one than the file's
    if not profile.wants_login:
        return without, None
    try:
        return without, (await credentials_of(profile)).password
    except TransactionError:
        return without, None


def _fits(as_set: _AsSet, fingerprint: str) -> bool:
    """Whether a fingerprint is of these; one that cannot be read is of none."""
    try:
        salt = bytes.fromhex(fingerprint.partition(":")[0])
    except ValueError:
        return False
    return _fingerprint(as_set, salt) == fingerprint


def _fingerprint(as_set: _AsSet, salt: bytes) -> str:
    """Tell settings and secret apart, and give neither away: a password that is guessed costs the guesser each time."""
    profile, secret = as_set
    said = repr((profile, secret)).encode()
    return f"{salt.hex()}:{scrypt(said, salt=salt, n=2**14, r=8, p=1, dklen=32).hex()}"
