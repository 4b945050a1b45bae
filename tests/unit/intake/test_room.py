"""Whether there is room: the bounds, what was taken since the last look, and what is said."""

import re
from pathlib import Path

import pytest
from structlog.testing import capture_logs

from app.intake.room import LEAST_FREE, Room
from app.mail.errors import NoRoom

PLENTY = 1 << 62  # bytes that no disk has free


class Waiting:
    def __init__(self, count: int = 0) -> None:
        self.count = count

    def __call__(self) -> int:
        return self.count


async def room(folder: Path, *, waiting: int = 0, max_queued: int = 0, min_free_bytes: int | None = 0) -> Room:
    made = Room(folder, waiting=Waiting(waiting), max_queued=max_queued, min_free_bytes=min_free_bytes)
    await made.look()
    return made


async def test_without_bounds_there_is_room_for_everything(tmp_path: Path) -> None:
    made = await room(tmp_path, waiting=10**9)
    made.take(PLENTY)
    assert made.shortage() == ""


async def test_a_disk_with_less_free_than_is_kept_free_has_no_room(tmp_path: Path) -> None:
    made = await room(tmp_path, min_free_bytes=PLENTY)
    with pytest.raises(NoRoom, match=r"has [\d.]+ MB free, and [\d.]+ MB are kept free.*make room.*min_free_bytes"):
        made.take(1)


async def test_what_was_taken_since_the_last_look_counts_twice_once_for_the_log_and_once_for_the_file(
    tmp_path: Path,
) -> None:
    made = await room(tmp_path, min_free_bytes=1)
    half = made.free_bytes // 2
    with pytest.raises(NoRoom):
        made.take(half + 1)
    made.take(half - 10_000)  # what was refused has taken nothing
    with pytest.raises(NoRoom):
        made.take(10_001)
    await made.look()
    made.take(1)


async def test_by_default_a_share_of_the_disk_is_kept_free_and_never_less_than_some(tmp_path: Path) -> None:
    made = await room(tmp_path, min_free_bytes=None)
    assert made._least_free >= LEAST_FREE


@pytest.mark.parametrize(("waiting", "is_full"), [(0, False), (2, False), (3, True), (4, True)])
async def test_a_queue_that_is_full_has_no_room(tmp_path: Path, waiting: int, is_full: bool) -> None:
    made = await room(tmp_path, waiting=waiting, max_queued=3)
    assert bool(made.shortage()) is is_full
    if is_full:
        with pytest.raises(NoRoom, match=re.escape(f"{waiting} messages wait to be sent, and no more than 3 may")):
            made.take(1)


async def test_that_it_ended_and_came_back_is_logged_once_each(tmp_path: Path) -> None:
    waiting = Waiting()
    made = Room(tmp_path, waiting=waiting, max_queued=1, min_free_bytes=0)
    with capture_logs() as logged:
        for count in (0, 1, 1, 0, 0):
            waiting.count = count
            await made.look()
    assert [line["event"] for line in logged] == ["room.ended", "room.again"]
    assert "max_queued" in logged[0]["error"]


async def test_new_bounds_hold_at_once_or_from_the_next_look_on(tmp_path: Path) -> None:
    made = await room(tmp_path, waiting=3)
    made.bound(max_queued=3, min_free_bytes=PLENTY)
    assert "max_queued" in made.shortage()
    await made.look()
    assert "min_free_bytes" in made.shortage()
