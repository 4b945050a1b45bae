"""The composition root: builds every part, starts them in order, and closes them in the reverse.

The only room, besides main and cli, that reads `Settings`, and the only one that knows the wall clock and
randomness; everybody else is given them.

Order: lock → schema → journal, reader → sandbox → pool → room → worker. A failed start closes what was open.
"""

from __future__ import annotations

import asyncio
import os
import socket
from collections.abc import AsyncIterator, Callable, Coroutine
from contextlib import AsyncExitStack, suppress
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from functools import partial
from itertools import count
from pathlib import Path
from time import perf_counter
from typing import Any
from uuid import UUID

import structlog

from app import __version__
from app.delivery.circuits import Circuits
from app.delivery.contents import Contents
from app.delivery.control import Control
from app.delivery.worker import Worker
from app.intake.accept import HandOff, Intake, Policy
from app.intake.callers import Callers
from app.intake.in_flight import BytesInFlight
from app.intake.offload import Offload
from app.intake.room import Room
from app.mail.attempt import Attempt
from app.mail.errors import ConfigError, StoreUnavailable, TransactionError
from app.mail.ids import uuid7
from app.mail.profile import Profile
from app.settings import Settings
from app.smtp.doctor import Doctor
from app.smtp.network import resolve
from app.smtp.opening import open_session
from app.smtp.pool import Pool
from app.smtp.ports import Ports
from app.smtp.session import Session
from app.store.acts import Acts
from app.store.backup import back_up, copy_through
from app.store.catalog import Catalog
from app.store.census import Census
from app.store.database import CHECKED_BYTES, Lock, migrate
from app.store.database_file import DatabaseFile
from app.store.erasing import Erasing
from app.store.history import History
from app.store.journal import Journal
from app.store.keeping import Keeping
from app.store.outbox import Outbox
from app.store.reader import Reader
from app.store.search import SearchIndex
from app.store.verdicts import Verdicts
from app.telemetry import Metrics

# What only a restart changes.
_FOR_LIFE = ("listen", "database", "log", "log_level", "hold", "docs", "base_path", "max_message_bytes")
INDEX_EVERY = 30.0  # seconds
LOOK_EVERY = 2.0  # seconds between two looks at the disk's room
CHECKPOINT_EVERY = 5  # looks
FORGET_EVERY = 60.0  # seconds
BREATH = 0.01  # seconds between two steps of forgetting, which are mail's
GRACE = 25.0  # seconds that attempts under way get when the service is stopped

log = structlog.get_logger()


class Runtime:
    """Every part of one running service. Open it once; `close()` is idempotent."""

    settings: Settings
    profiles: dict[str, Profile]
    metrics: Metrics
    callers: Callers
    verdicts: Verdicts
    database_file: DatabaseFile | None
    journal: Journal
    _reader: Reader
    history: History
    census: Census
    outbox: Outbox
    pool: Pool
    contents: Contents
    worker: Worker
    control: Control
    room: Room
    offload: Offload
    erasing: Erasing
    intake: Intake

    def __init__(self, settings: Settings, *, delivers: bool = True) -> None:
        """Nothing is opened yet; what does not deliver leaves the queue alone."""
        self.settings = settings
        self._delivers = delivers
        self.profiles = dict(settings.profiles)
        self.metrics = Metrics(__version__)
        self.metrics.begin(self.profiles)
        self.callers = Callers(settings.api_key)
        self.in_flight = BytesInFlight(settings.max_in_flight_bytes)
        self.doctor = Doctor(
            open_session=self._open_once,
            resolve=resolve,
            now=self.now,
            clock=perf_counter,
            default_from=settings.default_from,
        )
        self._ports = Ports(resolve=resolve, clock=perf_counter)
        self._parts = AsyncExitStack()
        self._remembering: asyncio.Task[None] | None = None
        self._hurried = asyncio.Event()
        self.is_stopping = False
        self.reread: Callable[[], list[str]] | None = None  # reads the settings again; None = nobody can
        self._random = b""
        self._name: str | bool | None = False  # False = not looked up yet

    async def open(self) -> None:
        """Start everything.

        Raises:
            ConfigError: the file is locked, foreign or unreadable.
            StoreUnavailable: it cannot be written.
        """
        try:
            await self._open()
        except BaseException:
            await self._parts.aclose()
            raise

    async def close(self) -> None:
        """Drain and close everything, in the reverse order of its start."""
        await self._parts.aclose()

    def reload(self, settings: Settings) -> list[str]:
        """Go on by these settings; gives the names of those that changed and take a restart.

        Raises:
            ConfigError: only a restart can carry them out; nothing was changed.
        """
        if settings.sandbox != self.settings.sandbox:
            raise ConfigError("a change between the sandbox and a relay takes a restart")
        stay = {name: getattr(self.settings, name) for name in _FOR_LIFE}
        waiting = [name for name, value in stay.items() if getattr(settings, name) != value]
        self.settings = settings = replace(settings, **stay)
        built_in = {name: profile for name, profile in self.profiles.items() if profile.sandbox}
        self.profiles.clear()
        self.profiles.update(built_in, **settings.profiles)
        self.metrics.begin(self.profiles)
        self.callers.change_key(settings.api_key)
        self.in_flight.bound(settings.max_in_flight_bytes)
        self.contents.bound(settings.max_in_flight_bytes // 2)
        self.doctor.default_from = settings.default_from
        self.worker.reload(self.profiles, settings.schedule, keep_transcripts=settings.transcripts)
        self.room.bound(max_queued=settings.max_queued, min_free_bytes=settings.min_free_bytes)
        self.intake.policy = self._policy()
        if self._delivers and (self._remembering is None or self._remembering.done()):
            self._remembering = asyncio.create_task(self._remember_rates_again())
        return waiting

    def retire(self) -> None:
        """Begin to stop: no attempt is begun any more, and nobody waits for a verdict."""
        self.is_stopping = True
        self.worker.retire()
        self.verdicts.release()

    async def back_up(self, to: Path) -> int:
        """Copy the database into a new file while it is in use; return its size in bytes.

        One whose file was removed or moved is copied as it is open.

        Raises:
            InvalidMessage: it cannot be written there; the pointer is /file.
            StoreUnavailable: the database was written over.
        """
        try:
            await self.journal.look()
        except StoreUnavailable:
            if self.journal.is_spoilt:
                raise
            async with self._reader.lent() as connection:
                return await copy_through(connection, to)
        try:
            return await back_up(self.settings.database, to)
        finally:
            with suppress(StoreUnavailable):
                await self.journal.fold()  # the log has grown meanwhile

    async def vacuum(self) -> tuple[int, int]:
        """Write the database file anew, while all that writes waits; gives its size in bytes before and after.

        Raises:
            StoreUnavailable: it could not be done.
        """
        await self.journal.look()
        before = self.settings.database.stat().st_size
        await self.erasing.vacuum()
        return before, self.settings.database.stat().st_size

    def hurry(self) -> None:
        """Wait no longer for attempts under way: the second signal. Callable from a signal handler."""
        self._hurried.set()

    def now(self) -> datetime:
        return datetime.now(UTC)

    def new_id(self) -> UUID:
        return uuid7(self.now(), self.random_bits(74))

    def random_bits(self, count: int) -> int:
        """Give up to 128 secure random bits; they are drawn in bulk, since a mail needs some four times."""
        if len(self._random) < 16:
            self._random = os.urandom(1024)
        taken, self._random = self._random[:16], self._random[16:]
        return int.from_bytes(taken) >> (128 - count)

    async def _open(self) -> None:
        settings = self.settings
        lock = Lock(settings.database)
        self._parts.callback(lock.release)
        migrate(settings.database)
        self.journal = Journal(settings.database, lock)
        reader = self._reader = Reader(settings.database)
        self._closes(reader.close)
        await self.journal.open()
        self._closes(self.journal.close)
        self.database_file = DatabaseFile.at(settings.database)
        await reader.open()
        search = SearchIndex(self.journal)
        self.history = History(reader, search)
        self.census = await self.history.census()
        self.outbox = Outbox(self.journal, reader, self.census)
        self.verdicts = Verdicts()
        if settings.sandbox and self._delivers:
            await self._open_sandbox()
        await self._open_delivery(Catalog(self.journal, reader))
        self.erasing = Erasing(self.journal, reader)
        await self._open_intake()
        if self._delivers:
            await self._start(search, Keeping(self.journal, reader, self.census))

    async def _open_delivery(self, catalog: Catalog) -> None:
        settings = self.settings
        circuits = Circuits(
            self.profiles,
            open_session=self._open_session,
            catalog=catalog,
            metrics=self.metrics,
            now=self.now,
            clock=perf_counter,
        )
        self.pool = pool = Pool(circuits.open_session)
        self._closes(pool.close)
        self.contents = Contents(self.outbox.content, settings.max_in_flight_bytes // 2)
        self.worker = Worker(
            profiles=self.profiles,
            schedule=settings.schedule,
            outbox=self.outbox,
            contents=self.contents,
            pool=pool,
            circuits=circuits,
            verdicts=self.verdicts,
            metrics=self.metrics,
            now=self.now,
            clock=perf_counter,
            random_bits=self.random_bits,
            keep_transcripts=settings.transcripts,
        )
        self._closes(lambda: self.worker.drain(GRACE, hurried=self._hurried))
        self.worker.take_up(await catalog.states())
        self.control = Control(
            catalog=catalog,
            circuits=circuits,
            acts=Acts(self.journal, self.census),
            history=self.history,
            worker=self.worker,
            verdicts=self.verdicts,
            now=self.now,
            expires_after=lambda: timedelta(seconds=self.settings.expires_after),
        )

    async def _open_intake(self) -> None:
        settings = self.settings
        self.room = Room(
            settings.database.parent,
            waiting=lambda: self.census.waiting,
            max_queued=settings.max_queued,
            min_free_bytes=settings.min_free_bytes,
        )
        await self.room.look()
        self.offload = Offload()
        self._closes(self.offload.close)
        self.intake = Intake(
            self._policy(),
            self.outbox,
            HandOff(self.worker.reserve, self.worker.hand_off, self.worker.give_up_place, self.worker.nudge),
            self.room,
            self.offload,
        )

    async def _start(self, search: SearchIndex, keeping: Keeping) -> None:
        """Settle what an earlier process left, begin to claim, and begin what is done now and then."""
        settings = self.settings
        waiting = await self.history.profiles_waiting()
        if settings.hold:
            for name in {*self.profiles, *waiting}:
                await self.control.pause(name)
        await self._remember_rates()
        if settings.database.stat().st_size <= CHECKED_BYTES and (mended := await self.outbox.mend(now=self.now())):
            log.warning("store.mended", messages=mended)
        self._closes(self._stop_remembering)
        await self.worker.start(waiting)
        forgetting = self._forget_now_and_then(keeping)
        for chore in (_index_now_and_then(search), _look_now_and_then(self.room, self.journal), forgetting):
            self._closes(partial(_ended, asyncio.create_task(chore)))

    async def _remember_rates(self) -> None:
        """Count what began before the restart: a rate is kept across it."""
        for name, meter in self.worker.meters().items():
            ago = (self.now() - at for at in await self.history.begun(name, since=self.now() - meter.period))
            # Nothing began in the future, though the clock may have been put back.
            meter.remember(meter.clock() - max(0.0, since.total_seconds()) for since in ago)

    async def _remember_rates_again(self) -> None:
        """Count what began before this process for rates that were set since; it counts anew for the others."""
        try:
            await self._remember_rates()
        except StoreUnavailable as error:
            log.error("runtime.rates_not_remembered", error=str(error))

    async def _stop_remembering(self) -> None:
        if self._remembering is not None:
            await _ended(self._remembering)

    async def _forget_now_and_then(self, keeping: Keeping) -> None:
        while True:
            kept = self.settings
            with suppress(StoreUnavailable):  # whoever writes mail meets it too, and says so
                bodies = keeping.drop_bodies(ended_by=self.now() - timedelta(seconds=kept.keep_bodies))
                forgotten = {"bodies": await _slowly(bodies)}
                messages = keeping.delete(ended_by=self.now() - timedelta(seconds=kept.keep_messages))
                forgotten["messages"] = await _slowly(messages)
                if any(forgotten.values()):
                    log.info("store.forgotten", **forgotten)
            await asyncio.sleep(FORGET_EVERY)

    def _policy(self) -> Policy:
        settings = self.settings
        return Policy(
            profiles=self.profiles,
            default_profile=settings.default_profile,
            routes=settings.routes,
            default_from=settings.default_from,
            max_message_bytes=settings.max_message_bytes,
            expires_after=settings.expires_after,
        )

    def _closes(self, close: Callable[[], Coroutine[Any, Any, None]]) -> None:
        self._parts.push_async_callback(close)

    async def _open_sandbox(self) -> None:
        from app.smtpd.sandbox import Sandbox  # aiosmtpd costs 40 ms and 4 MB that a real relay never needs

        sandbox = await Sandbox.open()
        self._closes(sandbox.close)
        self.profiles.update(sandbox.profiles)
        self.metrics.begin(sandbox.profiles)

    async def _open_once(self, profile: Profile, attempt: Attempt) -> Session:
        return await open_session(profile, attempt, resolve=resolve, own_name=self._own_name)

    async def _open_session(self, profile: Profile, attempt: Attempt) -> Session:
        """Open a session, or explain why it did not come about by what listens there."""
        try:
            session = await self._open_once(profile, attempt)
        except TransactionError as error:
            raise TransactionError(await self._ports.explained(profile, error.failure)) from error
        self._ports.served(profile)
        return session

    async def _own_name(self) -> str | None:
        """This host's FQDN, None where it has none; looked up once, since it may ask the network."""
        if isinstance(self._name, bool):
            name = socket.gethostname()
            if "." not in name:
                name = await asyncio.to_thread(socket.getfqdn)
            self._name = name if "." in name and name.isascii() and not name.startswith("localhost") else None
        return self._name


async def _index_now_and_then(search: SearchIndex) -> None:
    while True:
        with suppress(StoreUnavailable):  # whoever writes mail meets it too, and says so
            await search.catch_up()
        await asyncio.sleep(INDEX_EVERY)


async def _look_now_and_then(room: Room, journal: Journal) -> None:
    known = ""
    for turn in count(1):
        await asyncio.sleep(LOOK_EVERY)
        failed = ""
        for look in (room.look, journal.look, *([journal.checkpoint] if turn % CHECKPOINT_EVERY == 0 else [])):
            try:
                await look()
            except (OSError, StoreUnavailable) as error:
                failed = str(error)
        if failed and failed != known:
            log.error("store.look_failed", error=failed)
        elif known and not failed:
            log.info("store.looks_well")
        known = failed


async def _slowly(steps: AsyncIterator[int]) -> int:
    count = 0
    async for done in steps:
        count += done
        await asyncio.sleep(BREATH)
    return count


async def _ended(task: asyncio.Task[None]) -> None:
    task.cancel()
    with suppress(asyncio.CancelledError):
        await task
