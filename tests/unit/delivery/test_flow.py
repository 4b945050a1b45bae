"""How many connections a relay is asked to bear, and how a rate is kept. The clock is the test's."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from app.delivery.flow import GROWS_EVERY, Flow, Meter
from app.mail.schedule import Rate


class Clock:
    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock() -> Clock:
    return Clock()


class TestFlow:
    def test_too_many_halves_what_is_open(self, clock: Clock) -> None:
        flow = Flow(clock)
        for in_use, limit in ((10, 5), (5, 2), (2, 1), (1, 1), (0, 1)):
            clock.now += 1
            flow.cut(in_use, began=clock.now)
            assert flow.limit == limit

    def test_attempts_that_began_before_a_cut_do_not_cut_again(self, clock: Clock) -> None:
        flow, began = Flow(clock), clock.now
        clock.now += 1
        for _ in range(10):
            flow.cut(10, began=began)
        assert flow.limit == 5

    def test_it_grows_back_by_one_a_minute_with_what_is_taken(self, clock: Clock) -> None:
        flow = Flow(clock)
        flow.cut(6, began=clock.now)
        for limit in (4, 5, None, None):
            flow.succeeded(6)
            clock.now += GROWS_EVERY - 1
            before = flow.limit
            flow.succeeded(6)
            assert flow.limit == before
            clock.now += 1
            flow.succeeded(6)
            assert flow.limit == limit

    def test_one_that_came_back_gets_one_more_with_each_message_it_takes(self, clock: Clock) -> None:
        flow = Flow(clock)
        flow.ramp()
        seen = [flow.limit]
        for _ in range(4):
            flow.succeeded(4)
            seen.append(flow.limit)
        assert seen == [1, 2, 3, None, None]

    def test_a_relay_that_says_too_many_during_the_ramp_is_believed(self, clock: Clock) -> None:
        flow = Flow(clock)
        flow.ramp()
        for _ in range(5):
            flow.succeeded(10)
        flow.cut(6, began=clock.now)
        flow.succeeded(10)
        assert flow.limit == 3


class TestMeter:
    def test_what_is_reserved_and_what_has_begun_count(self, clock: Clock) -> None:
        meter = Meter(Rate(3, 60.0), clock)
        meter.reserved += 2
        assert meter.free == 1
        meter.use()
        assert meter.free == 1
        meter.release()
        assert meter.free == 2
        clock.now += 59.9
        assert meter.free == 2
        assert meter.next_free_in == pytest.approx(0.1)
        clock.now += 0.1
        assert (meter.free, meter.next_free_in) == (3, 0.0)

    def test_what_began_before_a_restart_counts(self, clock: Clock) -> None:
        meter = Meter(Rate(2, 60.0), clock)
        meter.remember([clock.now - 50, clock.now - 61, clock.now - 1])
        assert meter.free == 0
        assert meter.next_free_in == pytest.approx(10)

    @given(st.lists(st.tuples(st.floats(0, 5), st.integers(1, 7)), max_size=60), st.integers(1, 5))
    def test_no_stretch_of_time_has_more_than_the_rate(self, moves: list[tuple[float, int]], count: int) -> None:
        clock, begun = Clock(), []
        meter = Meter(Rate(count, 10.0), clock)
        for wait, wanted in moves:
            clock.now += wait
            for _ in range(min(wanted, meter.free)):
                meter.reserved += 1
                meter.use()
                begun.append(clock.now)
        for at in begun:
            assert sum(at <= other < at + 10.0 for other in begun) <= count


@pytest.mark.parametrize(
    ("text", "rate"),
    [("30/m", Rate(30, 60)), ("1/s", Rate(1, 1)), (" 500 / h ", Rate(500, 3600)), ("9/d", Rate(9, 86400))],
)
def test_a_rate_is_so_many_in_a_second_minute_hour_or_day(text: str, rate: Rate) -> None:
    assert Rate.parse(text) == rate


@pytest.mark.parametrize(
    "text", ["", "30", "30/", "/m", "0/m", "-1/m", "30/w", "1.5/s", "30/mm", "1000001/d", "30/m/s"]
)
def test_any_other_rate_is_refused_with_an_example(text: str) -> None:
    with pytest.raises(ValueError, match="such as 30/m"):
        Rate.parse(text)
