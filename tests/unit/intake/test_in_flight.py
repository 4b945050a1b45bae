"""The budget of bytes in flight: a property over all orders, and the rules one by one."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from app.intake.in_flight import SMALL, BytesInFlight
from app.mail.errors import Overloaded

MOST = 1_000_000


def test_what_fits_is_held_and_given_back() -> None:
    in_flight = BytesInFlight(MOST)
    first, second = in_flight.hold(), in_flight.hold()
    first.grow_to(600_000)
    second.grow_to(400_000)
    assert in_flight.taken == MOST
    first.release()
    first.release()
    assert in_flight.taken == 400_000


def test_over_the_bound_a_large_one_is_refused_with_the_figures_and_holds_what_it_held() -> None:
    in_flight = BytesInFlight(MOST)
    in_flight.hold().grow_to(600_000)
    other = in_flight.hold()
    other.grow_to(100_000)
    with pytest.raises(Overloaded, match=r"max_in_flight_bytes \(1\.0 MB\)"):
        other.grow_to(500_000)
    assert in_flight.taken == 700_000


def test_one_that_is_larger_than_the_bound_is_served_alone() -> None:
    in_flight = BytesInFlight(MOST)
    alone = in_flight.hold()
    alone.grow_to(5 * MOST)
    alone.grow_to(6 * MOST)
    with pytest.raises(Overloaded):
        in_flight.hold().grow_to(SMALL + 1)


def test_small_ones_have_a_reserve_that_large_ones_do_not_take() -> None:
    in_flight = BytesInFlight(MOST)
    in_flight.hold().grow_to(MOST)
    in_flight.hold().grow_to(SMALL)
    for _ in range(2):
        in_flight.hold().grow_to(SMALL)
    with pytest.raises(Overloaded):
        in_flight.hold().grow_to(SMALL)


def test_a_bound_that_is_lowered_refuses_what_comes_and_leaves_what_is_there() -> None:
    in_flight = BytesInFlight(MOST)
    held = in_flight.hold()
    held.grow_to(500_000)
    in_flight.bound(100_000)
    with pytest.raises(Overloaded):
        in_flight.hold().grow_to(SMALL + 1)
    held.release()
    in_flight.hold().grow_to(SMALL + 1)


@given(st.lists(st.tuples(st.integers(0, 5), st.integers(0, 2 * MOST)), max_size=60))
def test_whatever_comes_and_goes_no_more_is_held_than_the_bound_and_the_reserve_or_one(
    steps: list[tuple[int, int]],
) -> None:
    in_flight = BytesInFlight(MOST)
    holds = [in_flight.hold() for _ in range(6)]
    sizes = [0] * 6
    for which, size in steps:
        if size % 3 == 0:
            holds[which].release()
            sizes[which] = 0
        else:
            try:
                holds[which].grow_to(size)
            except Overloaded:
                continue
            sizes[which] = max(sizes[which], size)
        assert in_flight.taken == sum(sizes)
        # One that was alone may have been larger than the bound; then only small ones came beside it, if any.
        assert sum(sizes) - max(sizes) <= MOST + MOST // 4
    for hold in holds:
        hold.release()
    assert in_flight.taken == 0
