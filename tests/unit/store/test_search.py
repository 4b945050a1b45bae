"""What somebody searches for, as FTS5 reads it: words and their beginnings, and never an operator."""

import sqlite3
from collections.abc import Iterator
from contextlib import closing

import pytest
from hypothesis import given
from hypothesis import strategies as st

from app.store.search import expression_of


@pytest.fixture(scope="module")
def index() -> Iterator[sqlite3.Connection]:
    with closing(sqlite3.connect(":memory:")) as connection:
        connection.execute("CREATE VIRTUAL TABLE texts USING fts5(text)")
        connection.execute("INSERT INTO texts VALUES ('Your order 4711, Müller: \"it is\" NOT lost')")
        yield connection


def found(index: sqlite3.Connection, text: str) -> bool:
    return bool(index.execute("SELECT 1 FROM texts WHERE texts MATCH ?", (expression_of(text),)).fetchall())


@pytest.mark.parametrize(
    ("text", "is_found"),
    [
        ("order", True),
        ("ORD 47", True),
        ("order muller", True),
        ("rder", False),
        ("order AND lost", False),
        ("not lost", True),
        ('is" lost', True),
        ("text:order", False),
        ("order*", True),
        ("^your", True),
    ],
)
def test_every_word_is_the_beginning_of_one(index: sqlite3.Connection, text: str, is_found: bool) -> None:
    assert found(index, text) is is_found


@given(st.text(max_size=60))
def test_whatever_is_searched_for_is_no_mistake(index: sqlite3.Connection, text: str) -> None:
    if expression_of(text) is not None:
        found(index, text)


@pytest.mark.parametrize("text", ["", " ", "---", "\0", '"*', "()"])
def test_what_has_no_words_is_nothing_to_search_for(text: str) -> None:
    assert expression_of(text) is None
