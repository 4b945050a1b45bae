"""The forgetful file system keeps what was synced and nothing else; shown with plain files."""

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.forgetful import Forgetful, cannot_mount


@pytest.fixture
def disk() -> Iterator[Forgetful]:
    if reason := cannot_mount():
        pytest.skip(reason)
    with Forgetful() as disk:
        yield disk


def write(file: Path, text: str, *, sync: bool) -> None:
    with file.open("w") as open_:
        open_.write(text)
        open_.flush()
        if sync:
            os.fsync(open_.fileno())


def sync(folder: Path) -> None:
    fd = os.open(folder, os.O_RDONLY)
    os.fsync(fd)
    os.close(fd)


def test_what_was_written_is_there_until_the_power_fails(disk: Forgetful) -> None:
    write(disk.folder / "file", "x" * 1_000_000, sync=False)
    assert (disk.folder / "file").read_text() == "x" * 1_000_000
    disk.cut()
    assert list(disk.folder.iterdir()) == []


def test_a_new_name_needs_a_sync_of_its_folder(disk: Forgetful) -> None:
    write(disk.folder / "file", "text", sync=True)
    disk.cut()
    assert not (disk.folder / "file").exists()


def test_bytes_need_a_sync_of_their_file(disk: Forgetful) -> None:
    write(disk.folder / "file", "old text", sync=True)
    write(disk.folder / "empty", "text", sync=False)
    sync(disk.folder)
    write(disk.folder / "file", "new", sync=False)
    disk.cut()
    assert {file.name: file.read_text() for file in disk.folder.iterdir()} == {"file": "old text", "empty": ""}


def test_a_removed_name_comes_back_unless_its_folder_was_synced(disk: Forgetful) -> None:
    for name in ("gone", "back"):
        write(disk.folder / name, name, sync=True)
    sync(disk.folder)
    (disk.folder / "gone").unlink()
    sync(disk.folder)
    (disk.folder / "back").unlink()
    disk.cut()
    assert [file.read_text() for file in disk.folder.iterdir()] == ["back"]


def test_a_folder_is_a_name_in_the_one_above(disk: Forgetful) -> None:
    (disk.folder / "above" / "below").mkdir(parents=True)
    sync(disk.folder)
    disk.cut()
    assert [list(folder.iterdir()) for folder in disk.folder.iterdir()] == [[]]


def test_with_a_seed_some_of_what_was_not_synced_survives(disk: Forgetful) -> None:
    file = disk.folder / "file"
    write(file, "", sync=True)
    sync(disk.folder)
    fd = os.open(file, os.O_WRONLY)
    for at in range(64):
        os.pwrite(fd, b"x", at)
    os.close(fd)
    disk.cut(seed=1)
    kept = file.read_bytes().count(b"x")
    assert 0 < kept < 64
    disk.cut()
    assert file.read_bytes().count(b"x") == kept, "what survived is on the disk"
