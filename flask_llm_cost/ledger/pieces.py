"""A filter's range in pieces that rollups hold: whole days, quarters of an hour, and what is left at its ends."""

from __future__ import annotations

from bisect import bisect_left, bisect_right
from collections.abc import Iterator
from dataclasses import replace
from datetime import UTC, date, datetime, timedelta
from typing import Any, Final, TypeAlias
from zoneinfo import ZoneInfo

import sqlalchemy as sa

from flask_llm_cost.ledger.answers import Key, key_of
from flask_llm_cost.ledger.filter import TIMES, Filter
from flask_llm_cost.ledger.local_time import days_between, start_of_day
from flask_llm_cost.ledger.rollup_state import RollupDays
from flask_llm_cost.ledger.rollup_sums import PART, PARTS, part_value

#: The columns that both rollups have.
PLAIN: Final = ("provider", "model", "currency")
QUARTER: Final = timedelta(minutes=15)

#: What answers for a piece of a range (``days``, ``parts`` of one day, ``quarters`` of an hour or ``calls``), the piece, and
#: whether it is added (1) or taken off (-1).
Piece: TypeAlias = tuple[str, Filter, int]


def split_days(flt: Filter, days: RollupDays) -> tuple[Filter | None, list[Filter]]:
    """The range of a filter as whole days, if there are some, and what is left at its ends."""
    first = None if flt.since is None else _day_from(flt.since, days)
    last = None if flt.until is None else days.of(flt.until)
    if first is not None and last is not None and first >= last:
        return None, [flt]
    edges = []
    if first is not None and flt.since is not None and flt.since < (start := days.start(first)):
        edges.append(replace(flt, until=start))
    if last is not None and flt.until is not None and (end := days.start(last)) < flt.until:
        edges.append(replace(flt, since=end))
    since = None if first is None else days.start(first)
    return replace(flt, since=since, until=None if last is None else days.start(last)), edges


def days_and_calls(flt: Filter, days: RollupDays) -> Iterator[Piece]:
    """The range of a filter as whole days, and the calls at its ends that these lack, or have too many."""
    whole, edges = split_days(flt, days)
    calls: list[Piece] = []
    for edge in edges:
        if (found := _day_and_rest(edge, days)) is None:
            calls.append(("calls", edge, 1))
            continue
        day, rest = found
        calls.append(("calls", rest, -1))
        if whole is None:
            whole = day
        else:
            whole = replace(whole, until=day.until) if day.since == whole.until else replace(whole, since=day.since)
    if whole is not None:
        yield "days", whole, 1
    yield from calls


def _day_and_rest(edge: Filter, days: RollupDays) -> tuple[Filter, Filter] | None:
    """The day that is over of which this is the larger part, at one of its ends, and the other part."""
    if edge.since is None or edge.until is None:
        return None
    day = days.of(edge.since)
    return _whole_and_rest(edge, days.start(day), days.start(day + timedelta(days=1)))


def _whole_and_rest(edge: Filter, start: datetime, end: datetime) -> tuple[Filter, Filter] | None:
    """The time from *start* to *end*, if it is over and *edge* is its larger part at one of its ends, and the other part.

    While it runs, calls come in between one question and the next, and would be taken off what they are not in.
    """
    since, until = edge.since, edge.until
    assert since is not None
    assert until is not None
    rest = (until, end) if since == start else (start, since)
    at_one_end = until < end if since == start else until == end
    if not at_one_end or (until - since) * 2 <= end - start or end > datetime.now(UTC):
        return None
    return replace(edge, since=start, until=end), replace(edge, since=rest[0], until=rest[1])


def parts_and_calls(edge: Filter, zone: ZoneInfo, sign: int) -> Iterator[Piece]:
    """What is no whole day as parts of days, and the calls that these lack, or have too many."""
    if edge.since is None or edge.until is None:
        yield "calls", edge, sign
        return
    for day in days_between(edge.since, edge.until, zone):
        marks = _parts(day, zone)
        inside = replace(edge, since=max(edge.since, marks[0]), until=min(edge.until, marks[-1]))
        yield from _parts_of_day(inside, marks, sign)


def _parts_of_day(edge: Filter, marks: list[datetime], sign: int) -> Iterator[Piece]:
    """One day's piece of a range: the whole parts of the day in it, and the calls at its ends.

    :param marks: when the parts begin, and when the last one ends
    """
    assert edge.since is not None
    assert edge.until is not None
    first, last = bisect_left(marks, edge.since), bisect_right(marks, edge.until) - 1
    # What is left at either end, with the part that it is of. Within one part that is all.
    ends = [(edge, last)] if first > last else []
    if first <= last and edge.since < marks[first]:
        ends.append((replace(edge, until=marks[first]), first - 1))
    if first <= last and marks[last] < edge.until:
        ends.append((replace(edge, since=marks[last]), last))
    last, calls = max(first, last), list[Piece]()
    for end, part in ends:
        if (found := _whole_and_rest(end, marks[part], marks[part + 1])) is None:
            calls.append(("calls", end, sign))
        else:
            first, last = min(first, part), max(last, part + 1)
            calls.append(("calls", found[1], -sign))
    if first < last:
        yield "parts", replace(edge, since=marks[first], until=marks[last]), sign
    yield from calls


def _parts(day: date, zone: ZoneInfo) -> list[datetime]:
    """When the parts of a day begin, and when the last one ends."""
    start, end = start_of_day(day, zone), start_of_day(day + timedelta(days=1), zone)
    # Where clocks are moved by hours, a day may be over before its last part begins.
    return [min(start + PART * number, end) for number in range(PARTS)] + [end]


def parts_of(flt: Filter, zone: ZoneInfo) -> tuple[date, str, str]:
    """The day of a piece of ``parts``, and the numbers of its first and its last one."""
    assert flt.since is not None
    assert flt.until is not None
    day = flt.since.astimezone(zone).date()
    marks = _parts(day, zone)
    return day, part_value(marks.index(flt.since)), part_value(marks.index(flt.until) - 1)


def quarters(flt: Filter) -> Iterator[Piece]:
    """The range of a filter as whole quarters of an hour, and the calls at its ends."""
    since, until = flt.since, flt.until
    first = None if since is None else since + (-into_quarter(since) % QUARTER)
    last = None if until is None else until - into_quarter(until)
    if first is not None and last is not None and first >= last:
        if since != until:
            yield "calls", flt, 1
        return
    yield "quarters", replace(flt, since=first, until=last), 1
    if since != first:
        yield "calls", replace(flt, until=first), 1
    if until != last:
        yield "calls", replace(flt, since=last), 1


def into_quarter(instant: datetime) -> timedelta:
    """How long ago the quarter of an hour of an instant began."""
    return timedelta(minutes=instant.minute % 15, seconds=instant.second, microseconds=instant.microsecond)


def _day_from(instant: datetime, days: RollupDays) -> date:
    """The first day that begins at *instant* or later."""
    day = days.of(instant)
    return day if days.start(day) >= instant else day + timedelta(days=1)


def plain(flt: Filter, table: Any) -> list[sa.ColumnElement[bool]]:
    """What a filter says of the columns that both rollups have."""
    return [getattr(table, name) == value for name in PLAIN if (value := getattr(flt, name)) is not None]


def day_key(name: str, value: Any) -> Key:
    """The key of a dimension from what a row of whole days says. Months are made of days here: databases share no way to."""
    if name in TIMES:
        day: date = value
        return day.replace(day=1) if name == "month" else day
    return None if name == "model" and value == "" else key_of(name, value)
