"""A filter's range in pieces that rollups hold: whole days, quarters of an hour, and what is left at its ends."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from datetime import UTC, date, datetime, timedelta
from typing import Any, Final, TypeAlias
from zoneinfo import ZoneInfo

import sqlalchemy as sa

from flask_llm_cost.ledger.answers import Key, key_of
from flask_llm_cost.ledger.filter import TIMES, Filter
from flask_llm_cost.ledger.local_time import start_of_day
from flask_llm_cost.ledger.models import TagRollup

#: The columns that both rollups have.
PLAIN: Final = ("provider", "model", "currency")
_QUARTER: Final = timedelta(minutes=15)

#: What answers for a piece of a range (``days``, ``quarters`` or ``calls``), the piece, and whether it is added (1) or taken
#: off (-1).
Piece: TypeAlias = tuple[str, Filter, int]


def split_days(flt: Filter, zone: ZoneInfo) -> tuple[Filter | None, list[Filter]]:
    """The range of a filter as whole days of *zone*, if there are some, and what is left at its ends."""
    first = None if flt.since is None else _day_from(flt.since, zone)
    last = None if flt.until is None else flt.until.astimezone(zone).date()
    if first is not None and last is not None and first >= last:
        return None, [flt]
    edges = []
    if first is not None and flt.since is not None and flt.since < (start := start_of_day(first, zone)):
        edges.append(replace(flt, until=start))
    if last is not None and flt.until is not None and (end := start_of_day(last, zone)) < flt.until:
        edges.append(replace(flt, since=end))
    since = None if first is None else start_of_day(first, zone)
    return replace(flt, since=since, until=None if last is None else start_of_day(last, zone)), edges


def days_and_calls(flt: Filter, zone: ZoneInfo) -> Iterator[Piece]:
    """The range of a filter as whole days, and the calls at its ends that these lack, or have too many."""
    days, edges = split_days(flt, zone)
    calls: list[Piece] = []
    for edge in edges:
        if (found := _day_and_rest(edge, zone)) is None:
            calls.append(("calls", edge, 1))
            continue
        day, rest = found
        calls.append(("calls", rest, -1))
        if days is None:
            days = day
        else:
            days = replace(days, until=day.until) if day.since == days.until else replace(days, since=day.since)
    if days is not None:
        yield "days", days, 1
    yield from calls


def _day_and_rest(edge: Filter, zone: ZoneInfo) -> tuple[Filter, Filter] | None:
    """The day that is over of which this is the larger part, at one of its ends, and the other part.

    While a day runs, calls come in between one question and the next, and would be taken off what they are not in.
    """
    since, until = edge.since, edge.until
    if since is None or until is None:
        return None
    day = since.astimezone(zone).date()
    start, end = start_of_day(day, zone), start_of_day(day + timedelta(days=1), zone)
    rest = (until, end) if since == start else (start, since)
    at_one_end = until < end if since == start else until == end
    if not at_one_end or (until - since) * 2 <= end - start or end > datetime.now(UTC):
        return None
    return replace(edge, since=start, until=end), replace(edge, since=rest[0], until=rest[1])


def quarters(flt: Filter) -> Iterator[Piece]:
    """The range of a filter as whole quarters of an hour, and the calls at its ends."""
    since, until = flt.since, flt.until
    first = None if since is None else since + (-_into_quarter(since) % _QUARTER)
    last = None if until is None else until - _into_quarter(until)
    if first is not None and last is not None and first >= last:
        if since != until:
            yield "calls", flt, 1
        return
    yield "quarters", replace(flt, since=first, until=last), 1
    if since != first:
        yield "calls", replace(flt, until=first), 1
    if until != last:
        yield "calls", replace(flt, since=last), 1


def _into_quarter(instant: datetime) -> timedelta:
    return timedelta(minutes=instant.minute % 15, seconds=instant.second, microseconds=instant.microsecond)


def _day_from(instant: datetime, zone: ZoneInfo) -> date:
    """The first day of *zone* that begins at *instant* or later."""
    day = instant.astimezone(zone).date()
    return day if start_of_day(day, zone) >= instant else day + timedelta(days=1)


def days_of(flt: Filter, zone: ZoneInfo) -> list[sa.ColumnElement[bool]]:
    """The days of rollups that a filter of whole days is about."""
    found = [TagRollup.day >= flt.since.astimezone(zone).date()] if flt.since is not None else []
    return found + ([TagRollup.day < flt.until.astimezone(zone).date()] if flt.until is not None else [])


def plain(flt: Filter, table: Any) -> list[sa.ColumnElement[bool]]:
    """What a filter says of the columns that both rollups have."""
    return [getattr(table, name) == value for name in PLAIN if (value := getattr(flt, name)) is not None]


def day_key(name: str, value: Any) -> Key:
    """The key of a dimension from what a row of whole days says. Months are made of days here: databases share no way to."""
    if name in TIMES:
        day: date = value
        return day.replace(day=1) if name == "month" else day
    return None if name == "model" and value == "" else key_of(name, value)
