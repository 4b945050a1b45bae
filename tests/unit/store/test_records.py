"""What goes into a column comes out of it again."""

from __future__ import annotations

import json
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from itertools import count
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from sqlalchemy import Column

from app.mail.attempt import Attempt
from app.mail.codes import CODE_OF, ErrorCode, Reason
from app.mail.message import Recipient
from app.mail.outcome import Failure, FailureClass, MessageState, Phase, RecipientState
from app.mail.reply import Reply
from app.store.records import (
    SNAPSHOT_COLUMNS,
    attempt_facts,
    changed_recipients,
    facts_from,
    failure_from,
    failure_text,
    json_text,
    recipient_from,
    snapshot,
)
from app.store.values import from_ms, to_ms
from tests.unit.factories import ID, NOW, failure

_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
_text = st.text(max_size=40)
failures = st.builds(
    Failure,
    code=st.sampled_from(ErrorCode),
    reason=st.sampled_from(Reason),
    cls=st.sampled_from(FailureClass),
    phase=st.sampled_from(Phase),
    message=_text,
    hint=_text,
    smtp_code=st.one_of(st.none(), st.integers(200, 599)),
    enhanced_code=st.one_of(st.none(), st.just("5.1.1")),
    reply=st.one_of(st.none(), _text),
)


@given(st.one_of(st.none(), failures))
def test_a_failure_comes_back_as_it_was(why: Failure | None) -> None:
    text = failure_text(why)
    assert failure_from(text) == why
    assert text is None or "\n" not in text


@given(st.integers(-(10**13), 10**14))
def test_milliseconds_come_back_as_they_were(ms: int) -> None:
    assert to_ms(from_ms(ms)) == ms


@given(st.timedeltas(timedelta(0), timedelta(days=200 * 365)).map(_EPOCH.__add__))
def test_an_instant_comes_back_to_its_millisecond(instant: datetime) -> None:
    back = from_ms(to_ms(instant))
    assert timedelta(0) <= instant - back < timedelta(milliseconds=1)
    assert back.tzinfo is UTC


@given(st.sampled_from(RecipientState), st.one_of(st.none(), failures))
def test_a_recipient_comes_back_as_it_was(state: RecipientState, why: Failure | None) -> None:
    assert recipient_from("a@x.org", state.value, failure_text(why)) == Recipient("a@x.org", state, why)


def _row(**fields: Any) -> tuple[Any, ...]:
    known: dict[str, Any] = {
        "id": ID.bytes,
        "state": "queued",
        "profile": "corp",
        "message_id": f"<{ID}@example.org>",
        "sender": "bot@example.org",
        "subject": "Hi",
        "size": 12,
        "attempts": 3,
        "created_at": to_ms(NOW),
        "expires_at": to_ms(NOW) + 1000,
        "due_at": None,
        "failure": None,
        "sandbox": 0,
        "caller": "",
        "tags": "[]",
        "metadata": "{}",
        "warnings": "[]",
    }
    columns: tuple[Column[Any], ...] = SNAPSHOT_COLUMNS
    return tuple((known | fields)[column.name] for column in columns)


def test_a_row_becomes_a_snapshot() -> None:
    people = [Recipient("a@x.org"), Recipient("b@x.org", RecipientState.SENT)]
    said = snapshot(
        _row(
            state="deferred",
            due_at=to_ms(NOW) + 500,
            failure=failure_text(failure()),
            sandbox=1,
            tags='["a","b"]',
            metadata='{"order":"4711"}',
            warnings='["careful"]',
        ),
        people,
    )
    assert (said.id, said.state, said.profile, said.attempts) == (ID, MessageState.DEFERRED, "corp", 3)
    assert said.recipients == tuple(people)
    assert (said.created_at, said.expires_at) == (NOW, NOW + timedelta(seconds=1))
    assert said.next_attempt_at == NOW + timedelta(seconds=0.5)
    assert said.failure == failure()
    assert said.sandbox is True
    assert (list(said.tags), dict(said.metadata), list(said.warnings)) == (["a", "b"], {"order": "4711"}, ["careful"])


@pytest.mark.parametrize("state", MessageState)
def test_the_end_of_a_lease_is_nobodys_business(state: MessageState) -> None:
    said = snapshot(_row(state=state.value, due_at=to_ms(NOW)), [])
    assert said.next_attempt_at == (None if state is MessageState.SENDING else NOW)


@given(st.dictionaries(_text, _text, max_size=4), st.lists(_text, max_size=4))
def test_tags_and_metadata_come_back_as_they_were(metadata: dict[str, str], tags: list[str]) -> None:
    said = snapshot(_row(metadata=json_text(metadata), tags=json_text(tags)), [])
    assert (said.metadata, said.tags) == (metadata, tags)


def _attempt() -> Attempt:
    attempt = Attempt(1, "corp", NOW, count().__next__, host="relay.example", ip="192.0.2.1", port=25)
    attempt.enter(Phase.CONNECT)
    attempt.say("EHLO us.example")
    attempt.hear(Reply(250, ("relay.example", "SIZE")))
    attempt.end()
    return attempt


def test_an_attempts_facts_are_json_with_the_relays_last_word() -> None:
    attempt = _attempt()
    attempt.verdict = Reply(250, ("2.0.0 queued as 4711",))
    facts = json.loads(attempt_facts(attempt))
    assert (facts["reply"], facts["smtp_code"], facts["enhanced_code"]) == ("250 2.0.0 queued as 4711", 250, "2.0.0")
    assert facts["class"] is facts["message"] is facts["hint"] is None
    assert (facts["host"], facts["port"], facts["phase"]) == ("relay.example", 25, "connect")
    assert [line for _, _, line in facts["transcript"]] == ["EHLO us.example", "250-relay.example", "250 SIZE"]


def test_a_failure_beats_the_relays_last_word() -> None:
    attempt = _attempt()
    attempt.verdict = Reply(250, ("2.0.0 queued",))
    attempt.failure = failure()
    facts = json.loads(attempt_facts(attempt))
    assert (facts["reply"], facts["smtp_code"]) == (failure().reply, 450)
    assert (facts["class"], facts["hint"]) == ("temporary", failure().hint)


def test_an_attempt_without_a_word_of_the_relay_has_no_reply() -> None:
    facts = json.loads(attempt_facts(_attempt()))
    assert facts["reply"] is facts["smtp_code"] is facts["enhanced_code"] is None


def _read(**changed: Any) -> Failure | None:
    """Read a failure whose JSON has these values in place of its own."""
    text = failure_text(failure(smtp_code=450, enhanced_code="4.2.1", reply="450 4.2.1 Busy"))
    assert text is not None
    return failure_from(json.dumps(json.loads(text) | changed))


@pytest.mark.parametrize(
    ("changed", "read"),
    [
        pytest.param({"reason": "newer"}, {"reason": Reason.UNEXPECTED}, id="reason"),
        pytest.param({"code": "ENEWER"}, {"code": CODE_OF[failure().reason]}, id="code"),
        pytest.param(
            {"code": 5, "reason": []}, {"code": ErrorCode.ECONNECTION, "reason": Reason.UNEXPECTED}, id="both"
        ),
        pytest.param({"cls": "newer"}, {"cls": FailureClass.TEMPORARY}, id="class"),
        pytest.param({"phase": None}, {"phase": Phase.CONTENT}, id="phase"),
        pytest.param(
            {"smtp_code": "450", "enhanced_code": 4}, {"smtp_code": None, "enhanced_code": None}, id="reply codes"
        ),
        pytest.param({"reply": {"a": 1}}, {"reply": None}, id="reply"),
        pytest.param(
            {"code": "EINDOUBT", "reason": "newer", "cls": "newer"},
            {"code": ErrorCode.EINDOUBT, "reason": Reason.UNEXPECTED, "cls": FailureClass.UNKNOWN},
            id="in doubt it stays",
        ),
    ],
)
def test_what_is_not_known_of_a_failure_is_read_as_unexpected_and_the_rest_stays(
    changed: dict[str, Any], read: dict[str, Any]
) -> None:
    before, after = _read(), _read(**changed)
    assert before is not None
    assert after == replace(before, **read)


@pytest.mark.parametrize("text", ["", "rubbish", "[1]", "5", "null", '{"code": "EAUTH"', b"\xff", 5, 1.5, "[" * 10_000])
def test_a_failure_that_cannot_be_read_is_an_unexpected_one(text: Any) -> None:
    read = failure_from(text)
    assert read is not None
    assert (read.code, read.reason, read.cls) == (ErrorCode.ECONNECTION, Reason.UNEXPECTED, FailureClass.TEMPORARY)
    assert "cannot be read" in read.message


def test_a_failure_that_was_cut_off_stays_in_doubt_if_it_was() -> None:
    text = failure_text(failure(code=ErrorCode.EINDOUBT, reason=Reason.OUTCOME_UNKNOWN, cls=FailureClass.UNKNOWN))
    assert text is not None
    read = failure_from(text[:40])
    assert read is not None
    assert (read.code, read.cls) == (ErrorCode.EINDOUBT, FailureClass.UNKNOWN)


def test_a_recipient_in_a_state_that_is_not_known_is_in_doubt_and_never_sent_to_again_by_itself() -> None:
    read = recipient_from("a@x.org", "delivered", None)
    assert (read.state, read.failure and read.failure.reason) == (RecipientState.IN_DOUBT, Reason.UNEXPECTED)
    assert read.failure is not None
    assert "'delivered'" in read.failure.message


@pytest.mark.parametrize(
    ("people", "state", "reason"),
    [
        ([RecipientState.PENDING], MessageState.QUEUED, Reason.UNEXPECTED),
        ([RecipientState.SENT], MessageState.SENT, None),
        ([RecipientState.SENT, RecipientState.REJECTED], MessageState.PARTIAL, Reason.UNEXPECTED),
        ([RecipientState.IN_DOUBT, RecipientState.SENT], MessageState.IN_DOUBT, Reason.UNEXPECTED),
        ([RecipientState.CANCELLED], MessageState.CANCELLED, Reason.UNEXPECTED),
        ([], MessageState.FAILED, Reason.UNEXPECTED),
    ],
)
def test_a_state_that_is_not_known_follows_from_the_recipients(
    people: list[RecipientState], state: MessageState, reason: Reason | None
) -> None:
    said = snapshot(_row(state="newer"), [Recipient("a@x.org", each) for each in people])
    assert (said.state, said.failure and said.failure.reason) == (state, reason)


@pytest.mark.parametrize("value", ["rubbish", b"\xff", None, 9.9e300, 2**63 - 1, -(2**63)])
def test_instants_that_cannot_be_are_replaced(value: Any) -> None:
    said = snapshot(_row(created_at=value, expires_at=value, due_at=value), [])
    for instant in (said.created_at, said.expires_at, said.next_attempt_at):
        assert instant is None or instant.tzinfo is UTC
    if not isinstance(value, int | float):
        made = datetime.fromtimestamp(int.from_bytes(ID.bytes[:6]) / 1000, UTC)
        assert abs(said.created_at - made) < timedelta(milliseconds=2), "an id begins with its time"
        assert said.expires_at - said.created_at == timedelta(hours=24)


@pytest.mark.parametrize(
    ("name", "stored", "read"),
    [
        ("class", "newer", "temporary"),
        ("class", None, None),
        ("phase", "newer", "unexpected"),
        ("phase", "rcpt", "rcpt"),
        ("auth", "NEWER", "NEWER"),
        ("auth", 5, None),
        ("tls", "newer", True),
        ("transcript", [[1, "C", "EHLO"], [1], None, [1, "C", 5]], [[1, "C", "EHLO"]]),
        ("phases", {"rcpt": 1.5, "data": "x"}, {"rcpt": 1.5}),
        ("extensions", {"a": 1}, []),
        ("port", "25", None),
    ],
)
def test_a_fact_of_an_attempt_that_is_not_of_its_kind_is_left_out(name: str, stored: Any, read: Any) -> None:
    facts = json.loads(attempt_facts(_attempt()))
    assert facts_from(json.dumps(facts | {name: stored}), None) == facts_from(json.dumps(facts), None) | {name: read}


def test_recipients_are_written_to_the_rows_they_were_read_from() -> None:
    """The first of three is lost: the second one's state must not go to the third."""
    people = [recipient_from(f"{name}@x.org", "pending", None, at) for at, name in ((1, "b"), (2, "c"))]
    said = snapshot(_row(), people)
    then = [replace(people[0], state=RecipientState.SENT), people[1]]
    assert [(each["at"], each["new_state"]) for each in changed_recipients(said, then)] == [(1, "sent")]
