"""Days of the reporting zone, in SQL and in Python.

Calls are kept in UTC. A zone's offset is looked up here, with its changes inside the range, and added in SQL: MySQL
and SQLite know no zones, and PostgreSQL's may be of another edition.
"""

from __future__ import annotations

from collections.abc import Iterator
from datetime import UTC, date, datetime, time, timedelta
from typing import Any
from zoneinfo import ZoneInfo

import sqlalchemy as sa
from sqlalchemy.ext.compiler import compiles
from sqlalchemy.sql.compiler import SQLCompiler
from sqlalchemy.sql.functions import FunctionElement

_DAY = timedelta(days=1)


def start_of_day(day: date, zone: ZoneInfo) -> datetime:
    """The first instant of *day* in *zone*, in UTC, also where the clock skips or repeats midnight."""
    return datetime.combine(day, time.min, zone).astimezone(UTC)


def range_of(first: date | None, last: date | None, zone: ZoneInfo) -> tuple[datetime | None, datetime | None]:
    """The half-open range of days of *zone*, both included; ``None`` where it has no such end.

    The first and the last days that a date can be have no instants in every zone: they stand for no end, too.
    """
    since = None if first is None or first <= date.min + _DAY else start_of_day(first, zone)
    until = None if last is None or last >= date.max - _DAY else start_of_day(last + _DAY, zone)
    return since, until


def days_between(since: datetime, until: datetime, zone: ZoneInfo) -> Iterator[date]:
    """Every day of *zone* that has an instant of the half-open range."""
    day = since.astimezone(zone).date()
    while start_of_day(day, zone) < until:
        yield day
        day += _DAY


def offset_changes(zone: ZoneInfo, since: datetime, until: datetime) -> list[tuple[datetime | None, int]]:
    """The offsets from UTC in force within the range: ``(until when, seconds)`` in order, ``None`` for the last.

    Steps by a day, since no zone has ever changed its clock and back within one, and finds each change to the second.
    """
    pieces: list[tuple[datetime | None, int]] = []
    at, end = since.astimezone(UTC), until.astimezone(UTC)
    offset = _offset(zone, at)
    while at < end:
        following = min(at + _DAY, end)
        if (new := _offset(zone, following)) != offset:
            before, after = at, following
            while after - before > timedelta(seconds=1):
                middle = before + (after - before) / 2
                before, after = (middle, after) if _offset(zone, middle) == offset else (before, middle)
            pieces.append((after.replace(microsecond=0), offset))
            offset = new
        at = following
    return [*pieces, (None, offset)]


def _offset(zone: ZoneInfo, instant: datetime) -> int:
    offset = instant.astimezone(zone).utcoffset()
    assert offset is not None
    return int(offset.total_seconds())


class _LocalText(FunctionElement[str]):
    """``YYYY-MM-DD HH:MM:SS`` of a UTC time moved by seconds. Text, because the three databases share no date type."""

    type = sa.String()
    inherit_cache = True
    name = "llm_cost_local_text"


@compiles(_LocalText, "sqlite")
def _sqlite(element: _LocalText, compiler: SQLCompiler, **kw: Any) -> str:
    column, seconds = (compiler.process(clause, **kw) for clause in element.clauses)
    # Without the fraction: SQLite would round the last half millisecond of a day into the next.
    return f"datetime(substr({column}, 1, 19), ({seconds}) || ' seconds')"


@compiles(_LocalText, "postgresql")
def _postgresql(element: _LocalText, compiler: SQLCompiler, **kw: Any) -> str:
    column, seconds = (compiler.process(clause, **kw) for clause in element.clauses)
    return f"to_char({column} + make_interval(secs => {seconds}), 'YYYY-MM-DD HH24:MI:SS')"


@compiles(_LocalText, "mysql")
@compiles(_LocalText, "mariadb")
def _mysql(element: _LocalText, compiler: SQLCompiler, **kw: Any) -> str:
    column, seconds = (compiler.process(clause, **kw) for clause in element.clauses)
    return f"CAST(DATE_ADD({column}, INTERVAL ({seconds}) SECOND) AS CHAR)"


def _by_piece(column: Any, pieces: list[tuple[datetime | None, int]], show: str) -> sa.ColumnElement[Any]:
    """*show* with the offset in force at *column*. Literals: they are whole numbers of ours."""
    *changes, (_, last) = pieces
    if not changes:
        return sa.literal_column(show.format(last))
    branches: list[tuple[Any, Any]] = [(column < until, sa.literal_column(show.format(offset))) for until, offset in changes]
    return sa.case(*branches, else_=sa.literal_column(show.format(last)))


def local_text(column: Any, zone: ZoneInfo, since: datetime, until: datetime) -> sa.ColumnElement[str]:
    """*column* as ``YYYY-MM-DD HH:MM:SS`` on the clocks of *zone*, right for every time within the range."""
    return _LocalText(column, _by_piece(column, offset_changes(zone, since, until), "{}"))


def offset_text(column: Any, zone: ZoneInfo, since: datetime, until: datetime) -> sa.ColumnElement[str]:
    """The offset of *zone* from UTC in seconds at *column*, as text."""
    return sa.type_coerce(_by_piece(column, offset_changes(zone, since, until), "'{:+d}'"), sa.String())
