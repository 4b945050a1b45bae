"""Who gets which session: the decision alone, whatever came before."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from app.smtp.pool import _assign, _Turn

_counts = st.integers(0, 12)
_limits = st.integers(1, 8)


@given(idle=_counts, taken=_counts, limit=_limits, fresh=st.booleans())
def test_a_turn_is_what_there_is_room_for(idle: int, taken: int, limit: int, fresh: bool) -> None:
    """More may be open than the limit says: the settings may have changed."""
    turn, room = _assign(idle=idle, taken=taken, limit=limit, fresh=fresh), idle + taken < limit
    assert (turn is _Turn.REUSE) == (idle > 0 and not fresh)
    assert (turn is _Turn.OPEN) == (room and (idle == 0 or fresh))
    assert (turn is _Turn.REPLACE) == (not room and idle > 0 and fresh)
    assert (turn is _Turn.WAIT) == (not room and idle == 0)


@given(idle=_counts, taken=_counts, limit=_limits, fresh=st.booleans())
def test_who_waits_waits_for_somebody(idle: int, taken: int, limit: int, fresh: bool) -> None:
    if _assign(idle=idle, taken=taken, limit=limit, fresh=fresh) is _Turn.WAIT:
        assert taken >= limit >= 1


_asks = st.tuples(st.just("ask"), st.booleans())  # a fresh one?
_returns = st.tuples(st.just("give back"), st.booleans())  # still good?


@given(st.lists(st.one_of(_asks, _returns), max_size=60), _limits)
def test_however_sessions_come_and_go_there_are_never_more_than_the_limit(
    events: list[tuple[str, bool]], limit: int
) -> None:
    idle = taken = 0
    for event, flag in events:
        if event == "give back":
            if taken:
                taken, idle = taken - 1, idle + flag
        else:
            turn = _assign(idle=idle, taken=taken, limit=limit, fresh=flag)
            idle -= turn in (_Turn.REUSE, _Turn.REPLACE)
            taken += turn is not _Turn.WAIT
        assert idle >= 0
        assert idle + taken <= limit
