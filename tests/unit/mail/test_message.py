"""A claim is for those who are still pending, and for nobody else."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from app.mail.errors import Fault, InvalidMessage, TransactionError
from app.mail.outcome import RecipientState
from tests.unit.factories import claim, failure, recipients


@given(st.lists(st.sampled_from(RecipientState), min_size=1, max_size=8))
def test_an_attempt_is_only_for_who_is_pending(states: list[RecipientState]) -> None:
    held = claim(recipients(*states))
    pending = tuple(r.address for r in held.snapshot.recipients if r.state is RecipientState.PENDING)
    assert held.pending == pending
    assert held.envelope.recipients == pending
    assert held.envelope.sender == held.snapshot.sender


def test_the_content_is_not_in_a_claims_repr() -> None:
    held = claim()
    assert "content" not in repr(held)


def test_a_refusal_is_told_by_its_first_fault() -> None:
    refusal = InvalidMessage.of([Fault("/to", "nobody to send to"), Fault("/text", "nothing to send")])
    assert refusal.detail == str(refusal) == "nobody to send to (1 more in errors)"
    assert InvalidMessage.of([Fault("/to", "nobody to send to")]).detail == "nobody to send to"
    assert [fault.pointer for fault in refusal.faults] == ["/to", "/text"]


def test_a_transaction_error_reads_as_code_reason_and_sentence() -> None:
    with pytest.raises(TransactionError, match=r"EENVELOPE/recipient_deferred: The relay"):
        raise TransactionError(failure())
