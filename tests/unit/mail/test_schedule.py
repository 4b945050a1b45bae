"""When to try again: durations and schedules as people write them."""

from __future__ import annotations

import math
from datetime import timedelta

import pytest
from hypothesis import given
from hypothesis import strategies as st

from app.mail.schedule import DEFAULT_EXPIRES_AFTER, DEFAULT_SCHEDULE, Schedule, parse_duration
from tests.unit.factories import NOW


@pytest.mark.parametrize(
    ("text", "seconds"),
    [
        ("30", 30),
        ("30s", 30),
        (" 30 s ", 30),
        ("0", 0),
        ("500ms", 0.5),
        ("1.5m", 90),
        ("24h", 86400),
        ("7d", 604800),
        ("2w", 1209600),
        ("90d", 7776000),
    ],
)
def test_a_duration_is_a_number_with_a_unit(text: str, seconds: float) -> None:
    assert parse_duration(text) == seconds


@pytest.mark.parametrize(
    "text", ["", " ", "s", "-1s", "+1s", "1 hour", "1h30m", "1e3", ".5s", "1.s", "nan", "inf", "1_000", "1,5s", "1S"]
)
def test_what_is_no_duration_is_refused_with_what_is_taken(text: str) -> None:
    with pytest.raises(ValueError, match="30s"):
        parse_duration(text)


@given(st.text(max_size=20))
def test_any_text_is_a_duration_or_a_value_error(text: str) -> None:
    try:
        seconds = parse_duration(text)
    except ValueError:
        return
    assert seconds >= 0
    assert not math.isnan(seconds)


@pytest.mark.parametrize(
    ("text", "waits"),
    [
        ("30s", [30]),
        ("30s, 1m*3, 2h", [30, 60, 60, 60, 7200]),
        (" 30s ,1m * 2,", [30, 60, 60]),
        ("5", [5]),
        ("1s*1000", [1] * 1000),
    ],
)
def test_a_schedule_is_durations_each_perhaps_with_a_count(text: str, waits: list[float]) -> None:
    assert list(Schedule.parse(text).waits) == waits


@pytest.mark.parametrize(
    "text", ["", ",", "0s", "30s,0", "1m*0", "1m*1001", "1m*-1", "1m*x", "1m*", "*3", "1m**2", "1m*2*2", "x", "30s 1m"]
)
def test_what_is_no_schedule_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match=r"'"):
        Schedule.parse(text)


@pytest.mark.parametrize("text", ["99999999999d", "1m, " + "9" * 400 + "s", "100000w"])
def test_a_wait_that_no_calendar_holds_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match=r"'"):
        Schedule.parse(text)


@given(st.lists(st.tuples(st.integers(1, 5000), st.integers(1, 5)), min_size=1, max_size=6), st.integers(1, 60))
def test_the_last_wait_repeats(pieces: list[tuple[int, int]], attempt: int) -> None:
    schedule = Schedule.parse(", ".join(f"{seconds}s*{count}" for seconds, count in pieces))
    flat = [seconds for seconds, count in pieces for _ in range(count)]
    assert schedule.wait_after(attempt) == (flat[attempt - 1] if attempt <= len(flat) else flat[-1])


@given(st.text(st.sampled_from("0123456789smhdw.,* x"), max_size=30), st.integers(1, 10_000))
def test_every_wait_of_a_schedule_that_is_taken_can_be_waited(text: str, attempt: int) -> None:
    try:
        schedule = Schedule.parse(text)
    except ValueError:
        return
    assert schedule.wait_after(attempt) > 0
    assert NOW < NOW + timedelta(seconds=schedule.wait_after(attempt) + 1) < NOW + timedelta(days=365)


def test_the_default_begins_with_seconds_and_settles_at_two_hours() -> None:
    waits = Schedule.parse(DEFAULT_SCHEDULE).waits
    assert waits == (30, 60, 60, 60, 300, 300, 300, 1800, 1800, 1800, 1800, 7200)
    assert parse_duration(DEFAULT_EXPIRES_AFTER) == 86400
