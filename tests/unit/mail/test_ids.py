"""Message ids are UUIDv7 as RFC 9562 has them, and as another implementation makes them."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from time import time_ns
from uuid import RFC_4122, UUID

import uuid_utils
from hypothesis import example, given
from hypothesis import strategies as st

from app.mail.ids import uuid7

_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
instants = st.timedeltas(timedelta(0), timedelta(days=200 * 365)).map(_EPOCH.__add__)
bits = st.integers(0, (1 << 74) - 1)


def _ms(instant: datetime) -> int:
    return (instant - _EPOCH) // timedelta(milliseconds=1)


@given(instants, bits)
def test_an_id_is_of_version_7_and_of_the_rfcs_variant(instant: datetime, random_bits: int) -> None:
    made = uuid7(instant, random_bits)
    assert made.version == 7
    assert made.variant == RFC_4122


@given(instants, bits)
@example(datetime(2026, 3, 1, 12, 0, 0, 1000, tzinfo=UTC), 0)
@example(datetime(2038, 1, 19, 3, 14, 7, 999_000, tzinfo=UTC), 0)
@example(datetime(2001, 9, 9, 1, 46, 40, 57_000, tzinfo=UTC), 0)
def test_the_first_48_bits_are_the_milliseconds(instant: datetime, random_bits: int) -> None:
    assert uuid7(instant, random_bits).int >> 80 == _ms(instant)


@given(instants, bits)
def test_another_implementation_reads_the_same_time_and_version(instant: datetime, random_bits: int) -> None:
    theirs = uuid_utils.UUID(str(uuid7(instant, random_bits)))
    assert theirs.version == 7
    assert theirs.timestamp == uuid7(instant, random_bits).int >> 80


def test_what_another_implementation_makes_now_lies_beside_ours() -> None:
    before = time_ns() // 1_000_000
    theirs = UUID(str(uuid_utils.uuid7()))
    ours = uuid7(datetime.now(UTC), 0)
    after = time_ns() // 1_000_000
    assert before <= theirs.int >> 80 <= after
    assert before <= ours.int >> 80 <= after
    assert (theirs.version, theirs.variant) == (ours.version, ours.variant)


@given(instants, bits, bits)
def test_two_ids_of_one_instant_differ_where_their_random_bits_differ(instant: datetime, a: int, b: int) -> None:
    assert (uuid7(instant, a) == uuid7(instant, b)) is (a == b)


@given(instants, st.integers(0, 1 << 100))
def test_bits_beyond_74_are_dropped(instant: datetime, random_bits: int) -> None:
    assert uuid7(instant, random_bits) == uuid7(instant, random_bits & (1 << 74) - 1)


@given(instants, st.timedeltas(timedelta(milliseconds=1), timedelta(days=3650)), bits, bits)
def test_ids_sort_by_the_time_they_were_made(instant: datetime, later: timedelta, a: int, b: int) -> None:
    assert uuid7(instant, a) < uuid7(instant + later, b)
    assert uuid7(instant, a).bytes < uuid7(instant + later, b).bytes
