"""The store against a model of it: whatever comes in whatever order, both say the same after every step.

The model knows no SQL: a message is a handful of fields, an operation a few lines. What it holds, the store must hold:
nothing is lost, nothing is claimed twice, who lost a lease writes nothing, and a crash leaves what its marks say.

    MAILCHUTE_MACHINE_EXAMPLES=1000 .venv/bin/python -m pytest tests/contract/test_store_machine.py
"""

import asyncio
import os
import shutil
import tempfile
from collections.abc import Callable, Coroutine
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any, TypeVar
from uuid import UUID

import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from app.mail.acts import Act
from app.mail.attempt import Attempt
from app.mail.codes import ErrorCode, Reason
from app.mail.errors import Conflict, KeyReused, LeaseLost
from app.mail.ids import uuid7
from app.mail.message import Claim, Envelope, Lease, Message, Recipient, Repeat, leading_failure
from app.mail.outcome import Failure, FailureClass, MessageState, Phase, RecipientState
from app.store.acts import Acts
from app.store.census import WAITING
from app.store.database import migrate
from app.store.history import History
from app.store.journal import Journal
from app.store.outbox import Outbox
from app.store.reader import Reader
from app.store.search import SearchIndex

T = TypeVar("T")
P, S, R, D, E, C = RecipientState
BEGINNING = datetime(2026, 3, 1, 12, 0, tzinfo=UTC)
LIFE = timedelta(hours=1)
PROFILES = ("one", "two")
FAILURE = Failure(
    ErrorCode.EENVELOPE, Reason.RECIPIENT_DEFERRED, FailureClass.TEMPORARY, Phase.RCPT, "450 later", "Wait", 450
)
EXPIRED = replace(FAILURE, code=ErrorCode.EEXPIRED, reason=Reason.EXPIRED, cls=FailureClass.PERMANENT)
CRASHED = replace(FAILURE, code=ErrorCode.EMESSAGE, reason=Reason.WORKER_CRASHED)
IN_DOUBT = replace(FAILURE, code=ErrorCode.EINDOUBT, reason=Reason.OUTCOME_UNKNOWN, cls=FailureClass.UNKNOWN)
_FAILURES = {P: FAILURE, R: FAILURE, D: IN_DOUBT, E: EXPIRED}


@dataclass(slots=True)
class Model:
    """A message, as simply as can be."""

    content: bytes
    profile: str
    people: list[RecipientState]
    due: datetime | None
    waits_as: MessageState  # what it is while somebody is pending and nobody has it
    token: int | None = None
    is_marked: bool = False
    attempts: list[str] = field(default_factory=list)  # the profile of each

    @property
    def state(self) -> MessageState:
        people = set(self.people)
        if P in people:
            return MessageState.SENDING if self.token else self.waits_as
        if D in people:
            return MessageState.IN_DOUBT
        if people == {S}:
            return MessageState.SENT
        if S in people:
            return MessageState.PARTIAL
        return MessageState.CANCELLED if people == {C} else MessageState.FAILED

    def ended(self, due: datetime | None) -> None:
        self.token, self.is_marked = None, False
        self.due, self.waits_as = (due if P in self.people else None), MessageState.DEFERRED


class StoreMachine(RuleBasedStateMachine):
    """Everything that may happen to the store, and what it must hold."""

    @initialize()
    def begin(self) -> None:
        self.folder = Path(tempfile.mkdtemp(prefix="mailchute-"))
        self.file = self.folder / "mailchute.db"
        migrate(self.file)
        self.runner = asyncio.Runner()
        self.now, self.count, self.tokens = BEGINNING, 0, 0
        self.models: dict[UUID, Model] = {}
        self.held: dict[UUID, Claim] = {}  # by this process
        self.lost: list[Claim] = []  # held by a process that is no more
        self.keys: dict[str, tuple[UUID, bytes]] = {}
        self.run(self.open())

    def teardown(self) -> None:
        if hasattr(self, "runner"):
            self.run(self.close())
            self.runner.close()
            shutil.rmtree(self.folder)

    def run(self, doing: Coroutine[Any, Any, T]) -> T:
        return self.runner.run(doing)

    async def open(self) -> None:
        self.journal, self.reader = Journal(self.file), Reader(self.file)
        await self.journal.open()
        self.history = History(self.reader, SearchIndex(self.journal))
        self.census = await self.history.census()
        self.outbox = Outbox(self.journal, self.reader, self.census)
        self.acts = Acts(self.journal, self.census)

    async def close(self) -> None:
        await self.reader.close()
        await self.journal.close()

    def lease(self) -> Lease:
        self.tokens += 1
        return Lease(self.tokens, self.now + LIFE)

    def pick(self, data: st.DataObject, from_: list[T]) -> T:
        return data.draw(st.sampled_from(from_))

    # taking in

    @rule(
        profile=st.sampled_from(PROFILES),
        people=st.integers(1, 3),
        is_fresh=st.booleans(),
        later=st.sampled_from([0, 0, 0, 600]),
        size=st.sampled_from([10, 600_000]),
    )
    def submit(self, profile: str, people: int, is_fresh: bool, later: int, size: int) -> None:
        self.append(self.message(profile, people, later=later, size=size), is_fresh=is_fresh and not later)

    @rule(key=st.sampled_from("ab"), body=st.sampled_from([b"x" * 32, b"y" * 32]), is_fresh=st.booleans())
    def submit_with_a_key(self, key: str, body: bytes, is_fresh: bool) -> None:
        message = self.message("one", 1)
        known = self.keys.get(key)
        if known is None:
            self.keys[key] = message.id, body
            self.append(message, is_fresh=is_fresh, repeat=Repeat(key, body))
            return
        id_, fingerprint = known
        appending = self.outbox.append(message, lease=self.lease(), now=self.now, repeat=Repeat(key, body))
        if body != fingerprint:
            with pytest.raises(KeyReused):
                self.run(appending)
            return
        receipt = self.run(appending)
        model = self.models[id_]
        if model.state is MessageState.FAILED and E in model.people:
            model.people = [P if one is E else one for one in model.people]
            model.due, model.waits_as = self.now, MessageState.QUEUED
        assert (receipt.snapshot.id, receipt.is_replay, receipt.claim) == (id_, True, None)

    def message(self, profile: str, people: int, *, later: int = 0, size: int = 10) -> Message:
        self.count += 1
        id_ = uuid7(self.now, self.count)
        return Message(
            id=id_,
            message_id=f"<{id_}@ours.test>",
            content=f"{self.count}\r\n".encode() + b"." * size,
            envelope=Envelope("bot@ours.test", tuple(f"r{n}@theirs.test" for n in range(people))),
            subject=f"No. {self.count}",
            profile=profile,
            created_at=self.now,
            expires_at=self.now + 100 * LIFE,
            send_at=self.now + timedelta(seconds=later) if later else None,
        )

    def append(self, message: Message, *, is_fresh: bool, repeat: Repeat | None = None) -> None:
        lease = self.lease() if is_fresh else None
        receipt = self.run(self.outbox.append(message, lease=lease, now=self.now, repeat=repeat))
        model = self.models[message.id] = Model(
            content=message.content,
            profile=message.profile,
            people=[P] * len(message.envelope.recipients),
            due=message.send_at or self.now,
            waits_as=MessageState.SCHEDULED if message.send_at else MessageState.QUEUED,
        )
        if lease is not None:
            assert receipt.claim is not None
            self.hold(model, receipt.claim)

    # delivering

    @rule(profile=st.sampled_from(PROFILES), at_most=st.integers(1, 4))
    def claim(self, profile: str, at_most: int) -> None:
        due = {
            id_: model.due
            for id_, model in self.models.items()
            if model.profile == profile and model.due and model.due <= self.now and not model.token
        }
        claims, following = self.run(self.outbox.claim(profile, lease=self.lease(), at_most=at_most, now=self.now))
        taken = {claim.snapshot.id for claim in claims}
        assert taken <= set(due)
        assert len(taken) == len(claims) == min(at_most, len(due))
        assert all(due[id_] <= due[other] for id_ in taken for other in set(due) - taken), "the longest due come first"
        for claim in claims:
            self.hold(self.models[claim.snapshot.id], claim)
        waiting = [m.due for m in self.models.values() if m.profile == profile and m.due and not m.token]
        assert following == min(waiting, default=None)

    def hold(self, model: Model, claim: Claim) -> None:
        model.token = claim.lease.token
        model.attempts.append(model.profile)
        self.held[claim.snapshot.id] = claim
        assert claim.pending == tuple(f"r{n}@theirs.test" for n, one in enumerate(model.people) if one is P)

    @precondition(lambda self: self.held)
    @rule(data=st.data())
    def mark(self, data: st.DataObject) -> None:
        id_ = self.pick(data, list(self.held))
        self.run(self._wait_for(self.outbox.mark(self.held[id_])))
        self.models[id_].is_marked = True

    @precondition(lambda self: self.held)
    @rule(data=st.data(), wait=st.integers(0, 900))
    def end_an_attempt(self, data: st.DataObject, wait: int) -> None:
        """Sent, deferred, refused, expired, in doubt: any end for anybody."""
        id_ = self.pick(data, list(self.held))
        claim, model = self.held.pop(id_), self.models[id_]
        model.people = [self.pick(data, [S, P, R, E, D]) if one is P else one for one in model.people]
        model.ended(self.now + timedelta(seconds=wait))
        self.record(claim, model, leading_failure(self.recipients(model)))

    @precondition(lambda self: self.held)
    @rule(data=st.data())
    def release(self, data: st.DataObject) -> None:
        """The attempt did not take place after all."""
        id_ = self.pick(data, list(self.held))
        claim, model = self.held.pop(id_), self.models[id_]
        model.ended(self.now)
        model.attempts.pop()
        self.run(self._record(claim, None, model, None))

    @precondition(lambda self: self.held)
    @rule(data=st.data())
    def fall_back(self, data: st.DataObject) -> None:
        id_ = self.pick(data, list(self.held))
        claim, model = self.held[id_], self.models[id_]
        attempt = self.attempt(claim, model, FAILURE)
        self.held[id_] = self.run(self._wait_for(self.outbox.fall_back(claim, attempt, "two", now=self.now)))
        model.attempts.append("two")
        model.is_marked = False

    def attempt(self, claim: Claim, model: Model, failure: Failure | None) -> Attempt:
        attempt = Attempt(claim.snapshot.attempts, model.attempts[-1], self.now, lambda: 0.0)
        attempt.failure = failure
        attempt.end()
        return attempt

    def record(self, claim: Claim, model: Model, failure: Failure | None) -> None:
        if failure is None:
            model.profile = model.attempts[-1]
        self.run(self._record(claim, self.attempt(claim, model, failure), model, failure))

    async def _record(self, claim: Claim, attempt: Attempt | None, model: Model, failure: Failure | None) -> None:
        await self.outbox.record(
            claim,
            attempt,
            state=model.state,
            after=self.recipients(model),
            failure=failure,
            next_attempt_at=model.due,
        )

    def recipients(self, model: Model) -> tuple[Recipient, ...]:
        return tuple(Recipient(f"r{n}@theirs.test", one, _FAILURES.get(one)) for n, one in enumerate(model.people))

    async def _wait_for(self, future: asyncio.Future[T]) -> T:
        return await future

    # what goes wrong

    @rule()
    def crash(self) -> None:
        """The process is gone in the middle of everything; the next one settles what it left."""
        self.run(self.close())
        self.lost += self.held.values()
        self.held.clear()
        self.run(self.open())
        left = {one.claim.snapshot.id: one for one in self.run(self.outbox.interrupted())}
        assert set(left) == {id_ for id_, model in self.models.items() if model.token}
        for id_, one in left.items():
            model = self.models[id_]
            assert (one.is_marked, one.profile) == (model.is_marked, model.attempts[-1])
            model.people = [(D if one.is_marked else P) if who is P else who for who in model.people]
            model.ended(self.now)
            self.record(one.claim, model, IN_DOUBT if one.is_marked else CRASHED)

    @precondition(lambda self: self.lost)
    @rule(data=st.data(), how=st.sampled_from(["mark", "record", "fall back"]))
    def come_back_from_the_dead(self, data: st.DataObject, how: str) -> None:
        """Whoever lost the lease writes nothing (the invariants see whether it did)."""
        claim = self.pick(data, self.lost)
        attempt = Attempt(claim.snapshot.attempts, "one", self.now, lambda: 0.0)
        people = tuple(replace(one, state=S) for one in claim.snapshot.recipients)
        doing: dict[str, Callable[[], Coroutine[Any, Any, object]]] = {
            "mark": lambda: self._wait_for(self.outbox.mark(claim)),
            "record": lambda: self.outbox.record(
                claim, attempt, state=MessageState.SENT, after=people, failure=None, next_attempt_at=None
            ),
            "fall back": lambda: self._wait_for(self.outbox.fall_back(claim, attempt, "two", now=self.now)),
        }
        with pytest.raises(LeaseLost):
            self.run(doing[how]())

    @rule(seconds=st.sampled_from([1, 60, 700, -90]))
    def tick(self, seconds: int) -> None:
        self.now += timedelta(seconds=seconds)

    # acts

    @precondition(lambda self: self.models)
    @rule(data=st.data(), act=st.sampled_from([Act.CANCEL, Act.RETRY, Act.RESOLVE_AS_SENT, Act.RESOLVE_AS_FAILED]))
    def act(self, data: st.DataObject, act: Act) -> None:
        id_ = self.pick(data, list(self.models))
        model = self.models[id_]
        turned = {
            Act.CANCEL: {P: C},
            Act.RETRY: {R: P, E: P, D: P},
            Act.RESOLVE_AS_SENT: {D: S},
            Act.RESOLVE_AS_FAILED: {D: R},
        }[act]
        waits = P in model.people
        people = [turned.get(one, one) if not (act is Act.RETRY and waits) else one for one in model.people]
        if act is Act.CANCEL:  # who may have it already stays in doubt
            said = self.run(self.history.find(id_))
            assert said is not None
            doubtful = [one.failure is not None and one.failure.code is ErrorCode.EINDOUBT for one in said.recipients]
            was = zip(model.people, people, doubtful, strict=True)
            people = [D if before is P and doubt else after for before, after, doubt in was]
        doing = self.acts.do(act, id_, now=self.now, until=self.now + 100 * LIFE)
        if model.token or (people == model.people and not (act is Act.RETRY and waits)):
            with pytest.raises(Conflict):
                self.run(doing)
            return
        self.run(doing)
        model.people = people
        if P not in people:
            model.due = None
        elif act is Act.RETRY:  # beside whoever is settled, the others wait as before
            model.due, model.waits_as = self.now, MessageState.QUEUED

    @rule(profile=st.sampled_from(PROFILES))
    def make_due(self, profile: str) -> None:
        self.run(self.outbox.make_due(profile, now=self.now))
        for model in self.models.values():
            if model.state is MessageState.DEFERRED and model.profile == profile and model.due:
                model.due = min(model.due, self.now)

    # what holds after every step

    @invariant()
    def the_store_says_what_the_model_says(self) -> None:
        if not hasattr(self, "models"):
            return
        counts = dict.fromkeys((*WAITING, MessageState.IN_DOUBT), 0)
        for id_, model in self.models.items():
            found = self.run(self.history.find(id_))
            assert found is not None, "lost"
            assert found.state is model.state
            assert [one.state for one in found.recipients] == model.people
            assert found.next_attempt_at == (None if model.token else model.due)
            assert (found.attempts, found.profile) == (len(model.attempts), model.profile)
            assert [one.profile for one in self.run(self.history.attempts(id_))] == model.attempts
            assert self.run(self.outbox.content(id_)) == model.content
            if model.state in counts:
                counts[model.state] += 1
        assert {state: self.census.of(state) for state in counts} == counts
        assert len(self.run(self.history.newest(at_most=1000))) == len(self.models)


TestStore = StoreMachine.TestCase
TestStore.settings = settings(
    max_examples=int(os.environ.get("MAILCHUTE_MACHINE_EXAMPLES", "25")),
    stateful_step_count=40,
    deadline=None,
    suppress_health_check=list(HealthCheck),
)
TestStore.pytestmark = pytest.mark.timeout(3600)  # type: ignore[attr-defined]
