"""How many connections a relay is asked to bear, and how a rate is kept. The clock is the test's."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator
from functools import partial
from itertools import count, pairwise
from math import inf
from typing import Any

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


def begin(meter: Meter) -> None:
    meter.reserve()
    meter.use()


def began_at(meter: Meter, clock: Clock, until: float, *, late: Iterator[float] | None = None) -> list[float]:
    """Begin a message whenever there is a place; `late` is by how much each begins after its place was taken."""
    begun: list[float] = []
    while clock.now < until:
        while meter.free > 0 and clock.now < until:
            meter.reserve()
            clock.now += next(late) if late is not None else 0.0
            meter.use()
            begun.append(clock.now)
        clock.now += max(meter.next_free_in, 1e-6)
    return begun


class FixedWindow:
    """Counts anew at every full minute, or whatever its length is (Postfix's anvil)."""

    def __init__(self, count: int, seconds: float, offset: float) -> None:
        self.count, self.seconds, self.offset = count, seconds, offset
        self.window, self.seen = 0, 0

    def takes(self, at: float) -> bool:
        window = int((at - self.offset) // self.seconds)
        if window != self.window:
            self.window, self.seen = window, 0
        self.seen += 1  # what is refused counts too
        return self.seen <= self.count


class SlidingWindow:
    def __init__(self, count: int, seconds: float, offset: float) -> None:
        self.count, self.seconds = count, seconds
        self.begun: list[float] = []

    def takes(self, at: float) -> bool:
        self.begun = [other for other in self.begun if other > at - self.seconds] + [at]
        return len(self.begun) <= self.count


class TokenBucket:
    def __init__(self, count: int, seconds: float, offset: float, *, holds: int | None = None) -> None:
        self.holds, self.per_second = holds or count, count / seconds
        self.tokens, self.last = float(self.holds), -inf

    def takes(self, at: float) -> bool:
        self.tokens = min(self.holds, self.tokens + (at - self.last) * self.per_second)
        self.last = at
        if self.tokens < 1:
            return False
        self.tokens -= 1
        return True


RELAYS = {
    "a-fixed-window": FixedWindow,
    "a-sliding-window": SlidingWindow,
    "a-token-bucket": TokenBucket,
    "a-bucket-of-one": partial(TokenBucket, holds=1),
}
RATES = ["5/m", "1/m", "30/m", "300/m", "1/s", "8/s", "20/s"]


class TestMeter:
    @pytest.mark.parametrize("seed", range(3))
    @pytest.mark.parametrize(
        ("counts", "text"),
        [
            pytest.param(counts, text, id=f"{name}-{text}")
            for name, counts in RELAYS.items()
            for text in RATES
            if name != "a-bucket-of-one" or Rate.parse(text).count * 60 / Rate.parse(text).seconds <= 60
        ],
    )
    def test_a_relay_that_allows_the_rate_takes_nine_tenths_of_it_and_refuses_next_to_nothing(
        self, counts: Callable[..., Any], text: str, seed: int, clock: Clock
    ) -> None:
        rate, chance = Rate.parse(text), random.Random(seed)
        relay = counts(rate.count, rate.seconds, chance.uniform(0, rate.seconds))
        lasts = rate.seconds * 40
        start = clock.now
        late = (chance.uniform(0.001, 0.004) for _ in count())
        begun = began_at(Meter(clock, rate), clock, start + lasts, late=late)
        arrivals = sorted(at + chance.uniform(0.0, 0.004) for at in begun)
        taken = [relay.takes(at) for at in arrivals]
        assert sum(taken) >= 0.9 * rate.count * 40
        assert taken.count(False) <= 0.01 * len(taken)

    @pytest.mark.parametrize("text", ["5/m", "1/m", "1/s"])
    def test_even_a_bucket_that_holds_one_is_never_too_full(self, text: str, clock: Clock) -> None:
        rate = Rate.parse(text)
        relay = TokenBucket(rate.count, rate.seconds, 0.0, holds=1)
        assert all(relay.takes(at) for at in began_at(Meter(clock, rate), clock, clock.now + 50 * rate.seconds))

    def test_five_a_minute_are_one_every_twelve_seconds(self, clock: Clock) -> None:
        gaps = [b - a for a, b in pairwise(began_at(Meter(clock, Rate(5, 60.0)), clock, clock.now + 3600))]
        assert min(gaps) > 12.0
        assert max(gaps) < 12.5

    def test_an_hour_or_a_day_is_a_quota_that_is_used_up_at_one_a_second(self, clock: Clock) -> None:
        start = clock.now
        begun = began_at(Meter(clock, Rate(20, 3600.0)), clock, start + 2 * 3600)
        assert begun[19] - start == pytest.approx(19, abs=1)
        assert begun[20] - start > 3600
        assert len(begun) == 40

    def test_what_is_late_makes_nothing_else_late(self, clock: Clock) -> None:
        late = (0.02 for _ in count())
        begun = began_at(Meter(clock, Rate(8, 1.0)), clock, clock.now + 60, late=late)
        assert len(begun) >= 0.9 * 8 * 60

    def test_what_is_reserved_counts_and_comes_back_when_it_is_released(self, clock: Clock) -> None:
        meter = Meter(clock, Rate(3, 60.0))
        meter.reserve()
        assert meter.free == 0
        assert 20 < meter.next_free_in < 21
        meter.release()
        assert meter.free == 1
        for _ in range(3):
            meter.reserve()
        assert (meter.free, meter.next_free_in) == (0, inf)  # only a release can free one
        clock.now += 3600
        assert meter.free == 0
        meter.release()
        assert meter.free == 1

    def test_a_further_transaction_of_an_attempt_counts(self, clock: Clock) -> None:
        meter = Meter(clock, Rate(2, 60.0))
        begin(meter)
        meter.count()
        assert meter.free == 0
        assert 60 < meter.next_free_in < 62

    def test_without_a_rate_there_is_always_room(self, clock: Clock) -> None:
        meter = Meter(clock)
        for _ in range(1000):
            begin(meter)
        assert meter.free > 1000

    @pytest.mark.parametrize("reserved", [0, 2])
    def test_what_began_before_a_restart_counts_once_however_often_it_is_remembered(
        self, reserved: int, clock: Clock
    ) -> None:
        meter = Meter(clock, Rate(4, 60.0))
        ago = [clock.now - 50, clock.now - 70, clock.now - 1]
        meter.remember(ago)
        for _ in range(2):
            assert meter.free == 0
            assert meter.next_free_in == pytest.approx(14.2, abs=0.2)
            meter.remember(ago)
        clock.now += 15
        begin(meter)
        meter.remember([*ago, clock.now])  # which this process began itself
        clock.now += 15.4
        assert meter.free == 1

    def test_a_restart_does_not_double_the_rate(self, clock: Clock) -> None:
        rate = Rate(5, 60.0)
        begun: list[float] = []
        for _ in range(40):
            meter = Meter(clock, rate)
            meter.remember(begun)
            begun += began_at(meter, clock, clock.now + 7)
            clock.now += 1
        assert most_in(begun, 60.0) <= 5

    @pytest.mark.parametrize("between", [None, Rate(1, 60.0), Rate(60, 60.0), Rate(100, 3600.0)], ids=str)
    def test_a_rate_that_is_changed_or_removed_and_set_again_does_not_forget_what_began(
        self, between: Rate | None, clock: Clock
    ) -> None:
        rate = Rate(5, 60.0)
        meter = Meter(clock, rate)
        before = began_at(meter, clock, clock.now + 100)
        meter.change(between)
        for _ in range(3):
            clock.now += 0.5
            begin(meter)
            before.append(clock.now)
        meter.change(rate)
        after = began_at(meter, clock, clock.now + 300)
        assert after[0] - before[-1] > 12
        assert most_in(before + after, 60.0) <= 8  # the three in between are over; no more than those
        assert most_in(after, 60.0) <= 5
        for at in after:
            assert sum(at - 60 < other <= at for other in before + after) <= 5

    def test_a_longer_rate_counts_what_a_shorter_one_let_begin(self, clock: Clock) -> None:
        meter = Meter(clock, Rate(10, 60.0))
        began_at(meter, clock, clock.now + 600)
        meter.change(Rate(50, 3600.0))
        assert meter.free == 0
        assert meter.next_free_in > 2900

    @given(st.lists(st.tuples(st.floats(0, 5), st.integers(1, 7), st.booleans()), max_size=60), st.integers(1, 5))
    def test_no_stretch_of_time_has_more_than_the_rate(self, moves: list[tuple[float, int, bool]], most: int) -> None:
        clock, begun = Clock(), []
        meter = Meter(clock, Rate(most, 10.0))
        for wait, wanted, begins in moves:
            clock.now += wait
            for _ in range(min(wanted, meter.free)):
                meter.reserve()
                if begins:
                    meter.use()
                    begun.append(clock.now)
                else:
                    meter.release()
        assert most_in(begun, 10.0) <= most

    @given(st.integers(1, 1000), st.sampled_from("smhd"), st.lists(st.floats(0, 100_000), max_size=30))
    def test_when_there_is_no_place_one_is_free_when_it_says(self, most: int, unit: str, waits: list[float]) -> None:
        clock = Clock()
        meter = Meter(clock, Rate.parse(f"{most}/{unit}"))
        for wait in waits:
            if meter.free:
                begin(meter)
            else:
                clock.now += meter.next_free_in + 1e-6
                assert meter.free > 0
            clock.now += wait


def most_in(begun: list[float], seconds: float) -> int:
    """Give how many began within the busiest stretch of time."""
    return max((sum(at <= other < at + seconds for other in begun) for at in begun), default=0)


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
