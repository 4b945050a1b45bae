"""A power cut at random moments while callers send: what was not synced is gone, and every mail is accounted for.

The service runs on a file system that forgets (tests/support/forgetful.py), and sends through a Postfix that stays
up. After each kill -9 it loses all that was not synced, or by chance some of it. What was answered with 2xx is sent
once, or in doubt with its mark set. With one sync less a commit that does not hold, which shows that this test sees.

    MAILCHUTE_POWER_CUTS=200 .venv/bin/python -m pytest tests/e2e/test_power_cut.py -s
"""

import itertools
import os
import random
from collections.abc import Iterator
from pathlib import Path

import pytest

from app.store.database import SCHEMA, Lock, migrate, schema_of
from tests.e2e.test_order import careless
from tests.support.callers import account
from tests.support.forgetful import Forgetful, cannot_mount
from tests.support.postfix import Postfix

POWER_CUTS = int(os.environ.get("MAILCHUTE_POWER_CUTS", "6"))


@pytest.fixture
def disk() -> Iterator[Forgetful]:
    if reason := cannot_mount():
        pytest.skip(reason)
    with Forgetful() as disk:
        yield disk


@pytest.mark.timeout(60 + 10 * POWER_CUTS)
async def test_what_was_answered_is_sent_once_or_in_doubt_however_often_the_power_fails(
    disk: Forgetful, postfix: Postfix
) -> None:
    seed = int.from_bytes(os.urandom(4))
    dice = random.Random(seed)
    cuts = itertools.count()

    def power_fails() -> None:  # the first time all is lost: what is new is in most danger
        disk.cut(dice.getrandbits(32) if next(cuts) % 2 else None)

    came_of = await account(postfix, disk.folder, crashes=POWER_CUTS, seed=seed, after_kill=power_fails)
    print(f"seed {seed}: {POWER_CUTS} power cuts, {came_of}")  # noqa: T201 (with -s: the figures of a long run)
    assert (came_of.lost, came_of.doubled, came_of.unmarked) == ([], [], []), seed
    assert set(came_of.states) <= {"sent", "in_doubt"}, seed
    assert came_of.states.total() > POWER_CUTS


def test_a_folder_that_was_made_for_the_database_outlives_a_power_cut(disk: Forgetful) -> None:
    database = disk.folder / "var" / "lib" / "mailchute.db"
    lock = Lock(database)
    migrate(database)
    lock.release()
    disk.cut()
    assert schema_of(database) == SCHEMA


async def test_without_full_syncs_the_power_cut_loses_what_was_answered(
    disk: Forgetful, postfix: Postfix, tmp_path: Path
) -> None:
    command = (*careless(tmp_path), "serve")
    came_of = await account(postfix, disk.folder, crashes=2, seed=0, command=command, after_kill=disk.cut)
    assert came_of.lost
