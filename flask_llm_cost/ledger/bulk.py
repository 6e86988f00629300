"""Inserts of many rows at nearly the driver's own speed.

SQLAlchemy compiles the statements and knows the types; its work for each row of an ``executemany``, which costs several
times what the database does, is done here by one tuple of converters a table. PostgreSQL gets one statement with an array a
column, which is several times as fast as a statement a row.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final, cast
from uuid import UUID

import sqlalchemy as sa
from sqlalchemy.dialects import mysql, postgresql, sqlite

from flask_llm_cost.ledger.literals import Converter, array, for_arrays, for_rows
from flask_llm_cost.ledger.models import Call, CallTag, LineItem, PriceSnapshot, TagRollup, UsageRollup

CALLS: Final = cast(sa.Table, Call.__table__)
ITEMS: Final = cast(sa.Table, LineItem.__table__)
TAGS: Final = cast(sa.Table, CallTag.__table__)
PRICES: Final = cast(sa.Table, PriceSnapshot.__table__)
USAGE_ROLLUPS: Final = cast(sa.Table, UsageRollup.__table__)
TAG_ROLLUPS: Final = cast(sa.Table, TagRollup.__table__)

#: Of tables whose duplicates PostgreSQL skips without an error in the server's log.
_SKIPS_DUPLICATES: Final = (CALLS, PRICES)

_OPTIONS: Final = {"preserve_rowcount": True}
_INSERTS: Final[Mapping[str, Callable[[sa.Table], Any]]] = {"postgresql": postgresql.insert, "sqlite": sqlite.insert}


def one_of(column: sa.Column[Any], ids: Sequence[UUID], dialect: sa.Dialect) -> sa.ColumnElement[bool]:
    """Whether *column* is one of many ids. PostgreSQL takes them as one array, several times as fast as a parameter each."""
    if dialect.name != "postgresql":
        return column.in_(ids)
    kind = postgresql.ARRAY(column.type)
    # Selected, so that it is read once, not again for every row of a table that is new and so scanned.
    every = sa.select(sa.cast(sa.literal(array([call_id.hex for call_id in ids]), sa.Text()), kind)).scalar_subquery()
    return column == sa.func.any(sa.cast(every, kind))


class _Statement:
    """``INSERT`` of many rows, as one dialect says it.

    :param names: columns, in the order of a row's values
    :param zeros: further columns, in which all rows have 0 where they cannot have nothing
    :param finish: what the insert becomes
    """

    def __init__(
        self,
        table: sa.Table,
        dialect: sa.Dialect,
        names: Sequence[str],
        *,
        zeros: Sequence[str] = (),
        finish: Callable[[Any], Any] = lambda insert: insert,
    ) -> None:
        insert = _INSERTS.get(dialect.name, mysql.insert)(table)
        nothing: dict[str, Any] = {name: sa.literal_column("0") for name in zeros if not table.c[name].nullable}
        self._arrays = dialect.name == "postgresql"
        if self._arrays:
            columns = [
                sa.func.unnest(sa.cast(sa.bindparam(name, type_=sa.Text()), postgresql.ARRAY(table.c[name].type)))
                for name in names
            ]
            insert = insert.from_select([*names, *nothing], sa.select(*columns, *nothing.values()))
        else:
            insert = insert.values({**{name: sa.bindparam(name) for name in names}, **nothing})
        compiled: Any = finish(insert).compile(dialect=dialect)
        self._text = str(compiled)
        # Where parameters have names, in the order of ours.
        self._names: Sequence[str] | None = None if dialect.positional else tuple(names)
        ordered: Sequence[str] = compiled.positiontup if dialect.positional else names
        converter_of = for_arrays if self._arrays else for_rows
        places = {name: place for place, name in enumerate(names)}
        self._columns: tuple[tuple[int, Converter, bool], ...] = tuple(
            (places[name], converter_of(table.c[name].type, dialect), bool(table.c[name].nullable)) for name in ordered
        )

    def bind(self, columns: Sequence[Sequence[Any]]) -> list[Sequence[Any]]:
        """The rows as :meth:`__call__` takes them. By column: row by row takes twice as long.

        :raises ArithmeticError, AttributeError, TypeError, ValueError: a value that no such column can hold
        """
        bound: list[Sequence[Any]] = []
        for place, convert, nullable in self._columns:
            values = columns[place]
            if convert is not None and nullable and None in values:
                values = [None if value is None else convert(value) for value in values]
            elif convert is not None:
                values = list(map(convert, values))
            bound.append(values)
        return bound

    def __call__(self, connection: sa.Connection, bound: Sequence[Sequence[Any]]) -> int:
        """Write the rows; how many the driver says went in."""
        parameters: Any
        if self._arrays:
            parameters = self._named([array(column) for column in bound])
        else:
            rows = zip(*bound, strict=True)
            parameters = list(rows) if self._names is None else [self._named(row) for row in rows]
        return connection.exec_driver_sql(self._text, parameters, execution_options=_OPTIONS).rowcount

    def _named(self, values: Sequence[Any]) -> Any:
        return tuple(values) if self._names is None else dict(zip(self._names, values, strict=True))


@dataclass(frozen=True, slots=True)
class Bound:
    """So many rows of one table as the driver takes them, by column."""

    rows: int
    columns: Sequence[Sequence[Any]]


class BulkInsert:
    """``INSERT`` of whole rows into one table."""

    def __init__(self, table: sa.Table, dialect: sa.Dialect) -> None:
        self._names = [column.name for column in table.columns]
        skips = dialect.name == "postgresql" and table in _SKIPS_DUPLICATES
        self._statement = _Statement(
            table, dialect, self._names, finish=lambda insert: insert.on_conflict_do_nothing() if skips else insert
        )

    def bind(self, rows: Sequence[Mapping[str, Any]]) -> Bound:
        """*rows* as :meth:`__call__` takes them.

        :raises ArithmeticError, AttributeError, TypeError, ValueError: a value that no such column can hold
        """
        return Bound(len(rows), self._statement.bind([[row[name] for row in rows] for name in self._names]))

    def __call__(self, connection: sa.Connection, bound: Bound) -> int:
        """Insert rows that :meth:`bind` gave; how many the driver says went in."""
        return self._statement(connection, bound.columns) if bound.rows else 0


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

    :param keys: the columns of a row in front of its sums, the primary key first
    :param measures: the columns that add up
    :param bounds: the columns after them of which the higher value stays; ``None`` is below everything
    """

    def __init__(
        self,
        table: sa.Table,
        keys: Sequence[str],
        measures: Sequence[str],
        dialect: sa.Dialect,
        *,
        bounds: Sequence[str] = (),
    ) -> None:
        self._table = table
        self._keys = tuple(keys)
        self._measures = tuple(measures)
        self._bounds = tuple(bounds)
        self._dialect = dialect
        self._statements: dict[tuple[str, ...], _Statement] = {}

    def __call__(self, connection: sa.Connection, rows: Sequence[Sequence[Any]]) -> None:
        """Add *rows*, keys, sums and bounds, which are in the order in which everyone locks them."""
        if not rows:
            return
        # Of most calls most sums are 0, which need not be sent or added. PyMySQL wants nothing but parameters.
        plain = self._dialect.name in _INSERTS
        first = len(self._keys)
        last = first + len(self._measures)
        columns = list(zip(*rows, strict=True))
        moved = [place for place in range(first, last) if not plain or any(columns[place])]
        if not moved and not self._bounds:
            return
        names = tuple(self._measures[place - first] for place in moved)
        statement = self._statements.get(names)
        if statement is None:
            statement = self._statements[names] = self._make(names)
        sums = [self._without_zeros(name, columns[place]) for name, place in zip(names, moved, strict=True)]
        statement(connection, statement.bind([*columns[:first], *sums, *columns[last:]]))

    def _without_zeros(self, name: str, values: Sequence[Any]) -> Sequence[Any]:
        return [value or None for value in values] if self._table.c[name].nullable else values

    def _make(self, moved: Sequence[str]) -> _Statement:
        zeros = [name for name in self._measures if name not in moved]
        names = (*self._keys, *moved, *self._bounds)
        return _Statement(self._table, self._dialect, names, zeros=zeros, finish=self._adding(moved))

    def _adding(self, moved: Sequence[str]) -> Callable[[Any], Any]:
        columns = self._table.c

        def finish(insert: Any) -> Any:
            plain = self._dialect.name in _INSERTS
            new = insert.excluded if plain else insert.inserted
            changed = {name: self._added(columns[name], new[name]) for name in moved}
            for name in self._bounds:
                higher = sa.or_(columns[name].is_(None), new[name] > columns[name])
                changed[name] = sa.case((higher, new[name]), else_=columns[name])
            if plain:
                return insert.on_conflict_do_update(index_elements=["id"], set_=changed)
            return insert.on_duplicate_key_update(changed)

        return finish

    @staticmethod
    def _added(there: sa.Column[Any], new: Any) -> Any:
        if not there.nullable:
            return there + new
        zero: Any = sa.literal_column("0")
        return sa.func.nullif(sa.func.coalesce(there, zero) + sa.func.coalesce(new, zero), zero)
