"""SQLAlchemy expressions as SQLite's text, for a connection of the standard library."""

from __future__ import annotations

import sqlite3
from collections.abc import Callable, Mapping, Sequence
from operator import itemgetter
from typing import Any, TypeAlias, cast

from sqlalchemy import ClauseElement
from sqlalchemy.dialects import sqlite
from sqlalchemy.sql.compiler import SQLCompiler

Params: TypeAlias = dict[str, Any] | Sequence[dict[str, Any]]
_InOrder: TypeAlias = Callable[[Mapping[str, Any]], tuple[Any, ...]]


class Statements:
    """Every expression compiled once. One a connection; no locking.

    Parameters go by position: SQLite looks a named one up by its name at every execution, at twice the cost.
    """

    def __init__(self) -> None:
        self._dialect = sqlite.dialect(paramstyle="qmark")
        self._known: dict[ClauseElement, tuple[str, Mapping[str, Any], _InOrder]] = {}

    def run(self, cursor: sqlite3.Cursor, statement: ClauseElement, params: Params) -> None:
        """Execute a statement once, or once for each of a list of parameters."""
        text, fixed, in_order = self._known.get(statement) or self._compile(statement)
        if isinstance(params, dict):
            cursor.execute(text, in_order({**fixed, **params} if fixed else params))
        else:
            cursor.executemany(text, [in_order({**fixed, **each} if fixed else each) for each in params])

    def _compile(self, statement: ClauseElement) -> tuple[str, Mapping[str, Any], _InOrder]:
        compiled = cast("SQLCompiler", statement.compile(dialect=self._dialect))
        constants = {n: v for n, v in compiled.params.items() if not compiled.binds[n].required}
        known = self._known[statement] = str(compiled), constants, _in_order(compiled.positiontup or [])
        return known


def _in_order(names: Sequence[str]) -> _InOrder:
    if len(names) > 1:
        return itemgetter(*names)
    return lambda params: tuple(params[name] for name in names)
