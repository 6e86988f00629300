"""Inserts of many rows at nearly the driver's own speed.

SQLAlchemy compiles the statements and converts the types; its work for each row of an ``executemany``, which costs several
times what the database does, is done here by one tuple of converters a table.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, Final, cast

import sqlalchemy as sa
from sqlalchemy.dialects import mysql, postgresql, sqlite

from flask_llm_cost.ledger.models import Call, CallTag, LineItem, PriceSnapshot

CALLS: Final = cast(sa.Table, Call.__table__)
ITEMS: Final = cast(sa.Table, LineItem.__table__)
TAGS: Final = cast(sa.Table, CallTag.__table__)
PRICES: Final = cast(sa.Table, PriceSnapshot.__table__)

#: Of tables whose duplicates PostgreSQL skips without an error in the server's log.
_SKIPS_DUPLICATES: Final = (CALLS, PRICES)


class BulkInsert:
    """``INSERT`` of whole rows into one table, as one dialect says it.

    :param statement: another than the plain one, of the same parameters
    """

    def __init__(self, table: sa.Table, dialect: sa.Dialect, statement: Any = None) -> None:
        if statement is None:
            statement = sa.insert(table)
        if dialect.name == "postgresql" and table in _SKIPS_DUPLICATES:
            statement = postgresql.insert(table).on_conflict_do_nothing()
        compiled = statement.compile(dialect=dialect, column_keys=[column.name for column in table.columns])
        self._statement = str(compiled)
        self._positional = dialect.positional
        names: Sequence[str] = compiled.positiontup if dialect.positional else list(table.columns.keys())
        self._columns: tuple[tuple[str, Callable[[Any], Any] | None], ...] = tuple(
            (name, table.c[name].type.dialect_impl(dialect).bind_processor(dialect)) for name in names
        )

    def bind(self, row: Mapping[str, Any]) -> Any:
        """*row* as the driver takes it.

        :raises ArithmeticError, TypeError, ValueError: a value that no such column can hold
        """
        if self._positional:
            return tuple([row[name] if convert is None else convert(row[name]) for name, convert in self._columns])
        return {name: row[name] if convert is None else convert(row[name]) for name, convert in self._columns}

    def bind_alike(self, rows: Sequence[Mapping[str, Any]], differ: Sequence[str]) -> list[Any]:
        """Rows that differ in the columns *differ* only, bound; what they share is converted once."""
        if not rows:
            return []
        first = self.bind(rows[0])
        if not self._positional:
            converters = [(name, convert) for name, convert in self._columns if name in differ]
            return [
                first,
                *(
                    first | {name: row[name] if convert is None else convert(row[name]) for name, convert in converters}
                    for row in rows[1:]
                ),
            ]
        bound = [first]
        for row in rows[1:]:
            values = list(first)
            for index, (name, convert) in enumerate(self._columns):
                if name in differ:
                    values[index] = row[name] if convert is None else convert(row[name])
            bound.append(tuple(values))
        return bound

    def __call__(self, connection: sa.Connection, bound: Sequence[Any]) -> int:
        """Insert rows that :meth:`bind` gave; how many the driver says went in."""
        if not bound:
            return 0
        options = {"preserve_rowcount": True}
        return connection.exec_driver_sql(self._statement, list(bound), execution_options=options).rowcount


class Inserts:
    """The inserts of a dialect, made once an engine."""

    def __init__(self, dialect: sa.Dialect) -> None:
        self.dialect = dialect
        self.calls = BulkInsert(CALLS, dialect)
        self.items = BulkInsert(ITEMS, dialect)
        self.tags = BulkInsert(TAGS, dialect)
        self.prices = BulkInsert(PRICES, dialect)


class Upsert:
    """Adds rows to a table whose sums are there already, or puts them in.

    :param measures: the columns that add up; of those the table has
    """

    def __init__(self, table: sa.Table, measures: Sequence[str], dialect: sa.Dialect) -> None:
        self._names = [column.name for column in table.columns]
        added = [name for name in measures if name in table.c]
        self._arrays: sa.Insert | None = None
        self._bulk: BulkInsert | None = None
        if dialect.name == "postgresql":
            # One statement with an array a column: several times as fast as a statement a row.
            columns = [
                sa.func.unnest(sa.bindparam(name, type_=postgresql.ARRAY(table.c[name].type))) for name in self._names
            ]
            insert = postgresql.insert(table).from_select(self._names, sa.select(*columns))
            sums = {name: table.c[name] + insert.excluded[name] for name in added}
            self._arrays = insert.on_conflict_do_update(index_elements=["id"], set_=sums)
        elif dialect.name == "sqlite":
            upsert = sqlite.insert(table)
            sums = {name: table.c[name] + upsert.excluded[name] for name in added}
            self._bulk = BulkInsert(table, dialect, upsert.on_conflict_do_update(index_elements=["id"], set_=sums))
        else:
            other = mysql.insert(table)
            doubled = {name: table.c[name] + other.inserted[name] for name in added}
            self._bulk = BulkInsert(table, dialect, other.on_duplicate_key_update(doubled))

    def __call__(self, connection: sa.Connection, rows: Sequence[Mapping[str, Any]]) -> None:
        """Add *rows*, which are in the order in which everyone locks them."""
        if not rows:
            return
        if self._bulk is not None:
            self._bulk(connection, [self._bulk.bind(row) for row in rows])
        elif self._arrays is not None:
            connection.execute(self._arrays, {name: [row[name] for row in rows] for name in self._names})
