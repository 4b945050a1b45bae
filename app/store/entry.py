"""What the journal is handed: operations that share a commit, chores in no transaction, and the end."""

from __future__ import annotations

import asyncio
import sqlite3
import threading
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, Generic, TypeVar

T = TypeVar("T")


@dataclass(slots=True)
class Entry(Generic[T]):
    make: Callable[[], Any]  # makes the operation, anew for each run of the batch
    future: asyncio.Future[T]
    then: Callable[[T], None] | None
    is_asked: bool = False  # somebody waits for it, and may take it back
    turn: threading.Lock = field(default_factory=threading.Lock)  # of whoever takes it back, or begins its COMMIT
    has_begun: bool = False
    result: T | None = None
    error: BaseException | None = None

    def begin(self) -> bool:
        """Begin its COMMIT, after which it cannot be taken back; False = it was."""
        self.has_begun = self.has_begun or self.turn.acquire(blocking=False)
        return self.has_begun

    def take_back(self) -> bool:
        """Take it back: it will certainly not be written; False = its COMMIT has begun."""
        return self.turn.acquire(blocking=False)

    @property
    def is_taken_back(self) -> bool:
        return self.turn.locked() and not self.has_begun


@dataclass(slots=True)
class Chore(Generic[T]):
    do: Callable[[sqlite3.Connection], T]  # behind all that was handed in before, in no transaction
    future: asyncio.Future[T]


class End:
    pass


def answer(batch: list[Entry[Any]]) -> None:
    for entry in batch:
        if entry.error is None and entry.then is not None:
            entry.then(entry.result)
        settle(entry.future, entry.result, entry.error)


def settle(future: asyncio.Future[T], result: T, error: BaseException | None) -> None:
    if future.done():
        return
    if error is not None:
        future.set_exception(error)
    else:
        future.set_result(result)
