"""Every answer about a message has one flat shape, whatever became of it."""

from __future__ import annotations

from dataclasses import replace
from datetime import timedelta, timezone
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from app.api.answers import AttemptAnswer, MessageAnswer, MessageDetails, attempt, details, flat, instant, sentence
from app.mail.codes import ErrorCode, Reason
from app.mail.message import Recipient
from app.mail.outcome import FailureClass, MessageState, RecipientState
from app.store.history import AttemptRecord
from tests.api.shapes import ATTEMPT, FLAT, REJECTED
from tests.unit.factories import NOW, failure, recipients, snapshot

M = MessageState
P, S, R, D, E, C = RecipientState
_FAILURES = st.one_of(st.none(), st.sampled_from([failure(cls) for cls in FailureClass]))
snapshots = st.builds(
    snapshot,
    st.sampled_from(MessageState),
    failure=_FAILURES,
    recipients=st.lists(st.sampled_from(RecipientState), min_size=1, max_size=4).map(lambda s: recipients(*s)),
    sandbox=st.booleans(),
    next_attempt_at=st.one_of(st.none(), st.just(NOW + timedelta(seconds=30))),
    warnings=st.lists(st.text(max_size=9), max_size=2).map(tuple),
)


@given(snapshots)
def test_the_shape_is_the_same_in_every_state(said: Any) -> None:
    shape = flat(said)
    assert list(shape) == FLAT
    assert all(list(rejected) == REJECTED for rejected in shape["rejected"])
    MessageAnswer.model_validate(shape)


@given(snapshots)
def test_a_message_is_told_in_one_sentence(said: Any) -> None:
    text = sentence(said)
    assert text
    assert "None" not in text
    assert "\n" not in text


@pytest.mark.parametrize(
    ("state", "ok", "final", "will_retry"),
    [
        (M.QUEUED, True, False, False),
        (M.SCHEDULED, True, False, False),
        (M.SENDING, True, False, False),
        (M.DEFERRED, False, False, True),
        (M.SENT, True, True, False),
        (M.PARTIAL, False, True, False),
        (M.FAILED, False, True, False),
        (M.IN_DOUBT, False, True, False),
        (M.CANCELLED, False, True, False),
    ],
)
def test_a_state_says_whether_all_is_well_and_whether_it_is_over(
    state: MessageState, ok: bool, final: bool, will_retry: bool
) -> None:
    shape = flat(snapshot(state))
    assert (shape["ok"], shape["final"], shape["will_retry"]) == (ok, final, will_retry)


def test_accepted_and_rejected_are_those_whose_fate_is_known() -> None:
    people = tuple(
        replace(r, failure=failure() if r.state in (R, E) else None) for r in recipients(P, S, R, D, E, C, S)
    )
    shape = flat(snapshot(M.DEFERRED, recipients=people))
    assert shape["accepted"] == ["r1@example.org", "r6@example.org"]
    assert [rejected["address"] for rejected in shape["rejected"]] == ["r2@example.org", "r4@example.org"]
    assert shape["rejected"][0]["error_code"] == "EENVELOPE"
    assert shape["rejected"][0]["smtp_code"] == 450


def test_a_failure_fills_the_fields_of_an_error() -> None:
    shape = flat(snapshot(M.DEFERRED, failure=failure()))
    assert shape["error_code"] == "EENVELOPE"
    assert shape["reason"] == "recipient_deferred"
    assert shape["class"] == "temporary"
    assert (shape["smtp_code"], shape["enhanced_code"]) == (450, "4.2.0")
    assert shape["hint"] == failure().hint


def test_without_a_failure_the_fields_of_an_error_are_null() -> None:
    shape = flat(snapshot(M.SENT))
    assert all(shape[key] is None for key in ("error_code", "reason", "class", "smtp_code", "enhanced_code", "hint"))


@pytest.mark.parametrize(
    ("fields", "said"),
    [
        ({"state": M.SENT}, "sent to 1 recipient through corp"),
        ({"state": M.SENT, "sandbox": True}, "kept in the sandbox, not sent"),
        ({"state": M.SENT, "recipients": recipients(S, S)}, "sent to 2 recipients"),
        ({"state": M.PARTIAL, "recipients": recipients(S, R), "failure": failure()}, "sent to 1 of 2 recipients"),
        ({"state": M.PARTIAL, "recipients": recipients(S, R), "failure": failure()}, failure().message),
        ({"state": M.FAILED, "failure": failure()}, failure().message),
        ({"state": M.IN_DOUBT, "failure": failure(FailureClass.UNKNOWN)}, "nobody knows"),
        ({"state": M.CANCELLED}, "cancelled"),
        (
            {"state": M.DEFERRED, "failure": failure(), "next_attempt_at": NOW + timedelta(minutes=1)},
            "tried again at 2026-03-01T12:01:00.123Z",
        ),
        (
            {"state": M.DEFERRED, "failure": failure(FailureClass.CONFIGURATION)},
            "will be sent once the profile works, until 2026-03-02T12:00:00.123Z",
        ),
    ],
)
def test_the_sentence_says_what_became_of_it(fields: dict[str, Any], said: str) -> None:
    assert said in sentence(snapshot(**fields))


def test_a_partly_cancelled_message_has_a_whole_sentence() -> None:
    text = sentence(snapshot(M.PARTIAL, recipients=recipients(S, C)))
    assert text.startswith("sent to 1 of 2 recipients")
    assert not text.rstrip().endswith(";")


def test_an_instant_is_rfc_3339_in_utc_with_milliseconds() -> None:
    assert instant(NOW) == "2026-03-01T12:00:00.123Z"
    assert instant(NOW.astimezone(timezone(timedelta(hours=-5)))) == "2026-03-01T12:00:00.123Z"
    assert instant(NOW.replace(microsecond=0)) == "2026-03-01T12:00:00.000Z"


# With everything that belongs to it.


def _record(**fields: Any) -> AttemptRecord:
    known: dict[str, Any] = {
        "number": 1,
        "profile": "corp",
        "started_at": NOW,
        "handover": False,
        "error_code": None,
        "reason": None,
        "facts": {},
    }
    return AttemptRecord(**known | fields)


def test_an_attempt_that_runs_has_every_field() -> None:
    shape = attempt(_record())
    assert set(ATTEMPT) <= set(shape)
    AttemptAnswer.model_validate(shape)
    assert shape["duration_ms"] is None
    assert shape["transcript"] == []


def test_a_transcript_has_one_wire_line_an_entry() -> None:
    shape = attempt(_record(facts={"transcript": [[0.5, "C", "EHLO x"], [1.0, "S", "250 y"]]}))
    assert shape["transcript"] == [{"ms": 0.5, "dir": "C", "line": "EHLO x"}, {"ms": 1.0, "dir": "S", "line": "250 y"}]


@given(snapshots)
def test_the_details_are_the_flat_shape_and_more(said: Any) -> None:
    shape = details(said, [_record(), _record(number=2, error_code=ErrorCode.EAUTH, reason=Reason.AUTH_REJECTED)])
    assert set(FLAT) <= set(shape)
    MessageDetails.model_validate(shape)
    assert [found["number"] for found in shape["attempts"]] == [1, 2]
    assert [found["address"] for found in shape["recipients"]] == [r.address for r in said.recipients]


def test_a_recipient_in_the_details_has_its_own_state_and_failure() -> None:
    people = (Recipient("a@x.org", S), Recipient("b@x.org", R, failure(smtp_code=550)))
    shape = details(snapshot(M.PARTIAL, recipients=people), [])
    assert [(r["state"], r["smtp_code"]) for r in shape["recipients"]] == [("sent", None), ("rejected", 550)]
