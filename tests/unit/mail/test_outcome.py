"""What the recipients' states make of a message: the first rule that holds."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from app.mail.outcome import MessageState, RecipientState, message_state

P, S, R, D, E, C = RecipientState
M = MessageState
WHILE_PENDING = [M.SCHEDULED, M.QUEUED, M.SENDING, M.DEFERRED]
FINAL = [S, R, D, E, C]
_lists = st.lists(st.sampled_from(RecipientState), min_size=1, max_size=8)


@pytest.mark.parametrize("while_pending", WHILE_PENDING)
@pytest.mark.parametrize("others", [[], [S], [R], [D], [E], [C], FINAL])
def test_one_who_is_pending_keeps_the_message_moving(others: list[RecipientState], while_pending: MessageState) -> None:
    assert message_state([P, *others], while_pending=while_pending) is while_pending
    assert message_state([*others, P], while_pending=while_pending) is while_pending


@pytest.mark.parametrize(
    ("states", "state"),
    [
        ([D], M.IN_DOUBT),
        ([D, S], M.IN_DOUBT),
        ([D, R, E, C, S], M.IN_DOUBT),
        ([S], M.SENT),
        ([S, S], M.SENT),
        ([S, R], M.PARTIAL),
        ([S, E], M.PARTIAL),
        ([S, C], M.PARTIAL),
        ([R, S, S, S], M.PARTIAL),
        ([C], M.CANCELLED),
        ([C, C], M.CANCELLED),
        ([R], M.FAILED),
        ([E], M.FAILED),
        ([R, E], M.FAILED),
        ([R, C], M.FAILED),
        ([E, C], M.FAILED),
    ],
)
def test_the_end_of_everybody_is_the_end_of_the_message(states: list[RecipientState], state: MessageState) -> None:
    assert message_state(states, while_pending=M.DEFERRED) is state


@given(_lists, st.randoms(use_true_random=False), st.sampled_from(WHILE_PENDING))
def test_neither_order_nor_number_of_recipients_matters(
    states: list[RecipientState], random: object, while_pending: MessageState
) -> None:
    shuffled = [*states, *states[:3]]
    random.shuffle(shuffled)  # type: ignore[attr-defined]
    state = message_state(states, while_pending=while_pending)
    assert message_state(shuffled, while_pending=while_pending) is state


@given(_lists, st.sampled_from(WHILE_PENDING))
def test_a_message_is_final_exactly_where_nobody_is_pending(
    states: list[RecipientState], while_pending: MessageState
) -> None:
    assert message_state(states, while_pending=while_pending).is_final is (P not in states)


@given(_lists)
def test_a_message_is_sent_only_where_everybody_is(states: list[RecipientState]) -> None:
    state = message_state(states, while_pending=M.DEFERRED)
    assert (state is M.SENT) is (set(states) == {S})
    assert (state is M.PARTIAL) is (S in states and set(states) != {S} and not {P, D} & set(states))


@pytest.mark.parametrize("state", MessageState)
def test_only_queued_and_sending_are_waited_for(state: MessageState) -> None:
    assert state.is_waiting is (state in (M.QUEUED, M.SENDING))
    assert state.is_final is (state not in WHILE_PENDING)
