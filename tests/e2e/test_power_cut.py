"""A power cut: what was not synced is gone (tests/support/forgetful.py)."""

from collections.abc import Iterator

import pytest

from app.store.database import SCHEMA, Lock, migrate, schema_of
from tests.support.forgetful import Forgetful, cannot_mount


@pytest.fixture
def disk() -> Iterator[Forgetful]:
    if reason := cannot_mount():
        pytest.skip(reason)
    with Forgetful() as disk:
        yield disk


def test_a_folder_that_was_made_for_the_database_outlives_a_power_cut(disk: Forgetful) -> None:
    database = disk.folder / "var" / "lib" / "mailchute.db"
    lock = Lock(database)
    migrate(database)
    lock.release()
    disk.cut()
    assert schema_of(database) == SCHEMA
