"""The network breaks behind every single byte of a delivery, and the message is accounted for each time.

Worker, pool and outbox are the real ones, on a real file; between them and the relay is a proxy that closes, resets
or falls silent behind byte n, either way. After it a message is sent, waits for another try, or is in doubt with its
mark set; the next try, over a network that is well again, sends what waited. At the end the relay has one copy of
what was sent, whole, and at most one of what is in doubt. Nothing fails because of a break.

Every byte is tried where that is quick; the other runs leave some out (STEP), and under TLS, where a handshake is
long, the complete run does too:

    MAILCHUTE_BYTES=1 .venv/bin/python -m pytest tests/integration/test_every_byte.py -s
"""

import asyncio
import os
from collections import Counter
from collections.abc import AsyncIterator, Iterable, Iterator, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, replace
from datetime import timedelta
from pathlib import Path
from random import Random
from time import perf_counter
from uuid import UUID

import pytest
from structlog.testing import capture_logs

from app.delivery.circuits import Circuits
from app.delivery.contents import Contents
from app.delivery.worker import Worker
from app.mail.ids import uuid7
from app.mail.message import Message, Snapshot
from app.mail.outcome import MessageState, Phase
from app.mail.profile import Timeouts, TlsMode
from app.mail.schedule import Schedule
from app.smtp.pool import OpenSession, Pool
from app.store.catalog import Catalog
from app.store.census import Census
from app.store.database import migrate
from app.store.history import AttemptRecord, History
from app.store.journal import Journal
from app.store.outbox import Outbox
from app.store.reader import Reader
from app.store.search import SearchIndex
from app.store.verdicts import Verdicts
from app.telemetry import Metrics
from tests.support.factories import NOW, Deliveries, make_message, make_profile
from tests.support.proxy import Break, Kind, Proxy, Way
from tests.support.relay import EXTENSIONS, Relay
from tests.support.tls import certificates

STEP = 1 if os.environ.get("MAILCHUTE_BYTES") else 7  # how many bytes apart the breaks of the slower runs are
AT_ONCE = 50  # breaks that are tried side by side
NEVER = 1 << 40
PATIENCE = 20.0  # seconds that nothing should take
SILENCE = 1.0  # seconds until a silent network is given up
SCHEDULE = Schedule((60.0,))
WARMING = b"Subject: the first on this connection\r\n\r\n"
BODY = b"A line.\r\n.\r\n..\r\n. The relay must not take one of these for the end.\r\n"


@dataclass(frozen=True, slots=True)
class Talk:
    """One way a delivery goes over the wire."""

    extensions: Sequence[str] = EXTENSIONS
    is_warm: bool = False  # the second message of a connection; bytes count from there
    tls: TlsMode = TlsMode.NONE
    apart: int = 1  # bytes between two breaks where all are tried; a handshake is long

    def relay(self) -> Relay:
        return Relay(extensions=self.extensions, tls=certificates().server() if self.tls is not TlsMode.NONE else None)


TALKS = {
    "pipelined": Talk(),
    "a command at a time": Talk([e for e in EXTENSIONS if e != "PIPELINING"]),
    "on a warm connection": Talk(is_warm=True),
    "under TLS": Talk(tls=TlsMode.STARTTLS, apart=5),
}


@dataclass(frozen=True, slots=True)
class Tried:
    """What a break did: how the first attempt ended, and the message."""

    broken: Break
    attempt: AttemptRecord
    first: MessageState
    last: Snapshot
    copies: int

    @property
    def is_accounted_for(self) -> bool:
        match self.first:
            case MessageState.SENT:
                return self.copies == 1
            case MessageState.DEFERRED:  # one copy in all: the first try left none at the relay
                return (self.last.state, self.last.attempts, self.copies) == (MessageState.SENT, 2, 1)
            case MessageState.IN_DOUBT:
                return self.attempt.handover and self.copies <= 1
            case _:
                return False


@pytest.fixture(autouse=True)
def quiet() -> Iterator[None]:
    with capture_logs():
        yield


@pytest.mark.parametrize("kind", Kind, ids=lambda kind: kind.value)
@pytest.mark.parametrize("talk", TALKS.values(), ids=TALKS)
@pytest.mark.timeout(600)
async def test_a_message_is_accounted_for_wherever_the_network_breaks(talk: Talk, kind: Kind, tmp_path: Path) -> None:
    lengths = await measured(talk, tmp_path)
    step = talk.apart * (1 if kind is not Kind.STOP and talk is TALKS["pipelined"] else STEP)
    breaks = [Break(kind, way, n) for way in Way for n in range(0, lengths[way] + 1, step)]
    tried: list[Tried] = []
    for at in range(0, len(breaks), AT_ONCE):
        tried += await tries(talk, breaks[at : at + AT_ONCE], tmp_path)
    print(table(tried))  # noqa: T201 (with -s: what came of each)
    assert [one for one in tried if not one.is_accounted_for] == []
    assert {one.first for one in tried} == {MessageState.SENT, MessageState.DEFERRED, MessageState.IN_DOUBT}


async def measured(talk: Talk, folder: Path) -> dict[Way, int]:
    """Count the bytes that a delivery takes which nothing disturbs."""
    async with talk.relay() as relay, Proxy(relay.port) as proxy, road(folder) as here:
        await here.carry(talk, [proxy], [Break(Kind.CLOSE, Way.OUT, NEVER)])
        if not talk.is_warm:
            await relay.closed()
        return {way: proxy.passed[way] for way in Way}


async def tries(talk: Talk, breaks: Sequence[Break], folder: Path) -> list[Tried]:
    """Send a message through each break, and once more what waits then."""
    async with talk.relay() as relay:
        async with AsyncExitStack() as parts:
            proxies = [await parts.enter_async_context(Proxy(relay.port)) for _ in breaks]
            here = await parts.enter_async_context(road(folder))
            firsts = await here.carry(talk, proxies, breaks)
            lasts = await here.carry_on(talk, proxies, firsts)
            attempts = [(await here.history.attempts(each.id))[0] for each in firsts]
        await relay.closed(relay.connections)  # all that came was dealt with
    copies = Counter(mail.content for mail in relay.mails)
    contents = [content(number) for number in range(len(breaks))]
    assert set(copies) <= {*contents, WARMING}, "the relay took a content for whole that is not"
    return [
        Tried(strike, attempt, first.state, last, copies[what])
        for strike, attempt, first, last, what in zip(breaks, attempts, firsts, lasts, contents, strict=True)
    ]


def content(number: int) -> bytes:
    return f"Message-ID: <{number:04}@ours.test>\r\n\r\n".encode() + BODY


@asynccontextmanager
async def road(folder: Path) -> "AsyncIterator[Road]":
    """Open everything between a stored message and the wire, on a new file in `folder`."""
    database = folder / f"{len(list(folder.glob('*.db')))}.db"
    migrate(database)
    journal, reader = Journal(database), Reader(database)
    await journal.open()
    try:
        here = Road(journal, reader, Deliveries().open)
        await here.worker.start(())
        try:
            yield here
        finally:
            await here.worker.drain(0, hurried=asyncio.Event())
            await here.pool.close()
    finally:
        await journal.close()
        await reader.close()


class Road:
    """The worker over a real outbox; its clock stands until a test moves it."""

    def __init__(self, journal: Journal, reader: Reader, open_session: OpenSession) -> None:
        self.outbox = Outbox(journal, reader, Census({}))
        self.history = History(reader, SearchIndex(journal))
        self._verdicts = Verdicts()
        self._now = NOW
        metrics = Metrics("0")
        circuits = Circuits(
            {},
            open_session=open_session,
            catalog=Catalog(journal, reader),
            metrics=metrics,
            now=lambda: self._now,
            clock=perf_counter,
        )
        self.pool = Pool(circuits.open_session)
        self.worker = Worker(
            profiles={},
            schedule=SCHEDULE,
            outbox=self.outbox,
            contents=Contents(self.outbox.content, most=1 << 30),
            pool=self.pool,
            circuits=circuits,
            verdicts=self._verdicts,
            metrics=metrics,
            now=lambda: self._now,
            clock=perf_counter,
            random_bits=Random(0).getrandbits,
            keep_transcripts=False,
        )

    async def carry(self, talk: Talk, proxies: Sequence[Proxy], breaks: Sequence[Break]) -> list[Snapshot]:
        """Take a message in for each proxy, whose network breaks then; give what came of the first attempts."""
        self._reload(talk, proxies, patience=SILENCE if breaks[0].kind is Kind.STOP else PATIENCE)
        if talk.is_warm:
            for n in range(len(proxies)):  # one by one: those who are short of patience must not wait for each other
                (warmed,) = await self._sent([replace(message(n), content=WARMING, id=uuid7(NOW, AT_ONCE + n))])
                assert warmed.state is MessageState.SENT
        for proxy, strike in zip(proxies, breaks, strict=True):
            proxy.set_break(strike)
        return await self._sent([message(n) for n in range(len(proxies))])

    async def carry_on(self, talk: Talk, proxies: Sequence[Proxy], firsts: Sequence[Snapshot]) -> list[Snapshot]:
        """Try once more, over a network that is well, what waits for it; give what came of all."""
        self._reload(talk, proxies, patience=PATIENCE)
        for proxy in proxies:
            proxy.mend()  # on a busy machine it may not have come to the break
        self._now += timedelta(hours=1)
        verdicts = {each.id: self._verdicts.expect(each.id) for each in firsts if each.state is MessageState.DEFERRED}
        for each in firsts:
            if each.id in verdicts:
                self.worker.nudge(each.profile)
        await self._settle(verdicts.values())
        return await self._found([each.id for each in firsts])

    async def _sent(self, messages: Sequence[Message]) -> list[Snapshot]:
        verdicts = [self._verdicts.expect(each.id) for each in messages]
        for each in messages:
            await self.outbox.append(each, lease=None, now=self._now)
            self.worker.nudge(each.profile)
        await self._settle(verdicts)
        return await self._found([each.id for each in messages])

    async def _settle(self, verdicts: Iterable[asyncio.Future[Snapshot | None]]) -> None:
        async with asyncio.timeout(2 * PATIENCE):
            await asyncio.gather(*verdicts)

    async def _found(self, ids: Sequence[UUID]) -> list[Snapshot]:
        """Look up what is in the file."""
        found = [await self.history.find(each) for each in ids]
        return [each for each in found if each is not None]

    def _reload(self, talk: Talk, proxies: Sequence[Proxy], *, patience: float) -> None:
        profiles = {
            str(number): make_profile(
                name=str(number),
                port=proxy.port,
                tls=talk.tls,
                idle_timeout=PATIENCE if talk.is_warm else 0,
                timeouts=Timeouts(*[patience] * len(Timeouts.__dataclass_fields__)),
            )
            for number, proxy in enumerate(proxies)
        }
        self.worker.reload(profiles, SCHEDULE, keep_transcripts=False)


def message(number: int) -> Message:
    return replace(make_message(number=number, profile=str(number)), content=content(number))


def table(tried: Sequence[Tried]) -> str:
    """Count what came of the breaks, by way and by how far the delivery had come."""
    rows = ["", "what broke  bytes        at        breaks   sent  deferred  in doubt  (of those at the relay)"]
    for way in Way:
        for phase in Phase:
            those = [t for t in tried if t.broken.way is way and t.attempt.facts["phase"] == phase]
            if not those:
                continue
            ends = Counter(one.first for one in those)
            arrived = sum(one.copies for one in those if one.first is MessageState.IN_DOUBT)
            places = [one.broken.after for one in those]
            rows.append(
                f"{way.value:6} {min(places):7} –{max(places):7}  {phase.value:9}{len(those):5}"
                f"{ends[MessageState.SENT]:8}{ends[MessageState.DEFERRED]:9}{ends[MessageState.IN_DOUBT]:10}{arrived:12}"
            )
    ends = Counter(one.first for one in tried)
    rows.append(
        f"{tried[0].broken.kind.value:33}{len(tried):5}"
        f"{ends[MessageState.SENT]:8}{ends[MessageState.DEFERRED]:9}{ends[MessageState.IN_DOUBT]:10}"
    )
    return "\n".join(rows)
