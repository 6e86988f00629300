"""Odd days: those that cost far more than the days before them, and what they went to. The dashboard's rule."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import date, timedelta
from decimal import Decimal
from typing import Any
from zoneinfo import ZoneInfo

from sqlalchemy.orm import Session

from flask_llm_cost.dashboard.forecast import ANOMALY_RULE, HISTORY, odd_days
from flask_llm_cost.ledger import queries
from flask_llm_cost.ledger.filter import Filter
from flask_llm_cost.ledger.local_time import start_of_day
from flask_llm_cost.ledger.queries import Spend
from flask_llm_cost.report import counted_apart, dollars, other_currencies


@dataclass(frozen=True, slots=True)
class Rise:
    """What part of an odd day's cost is more than usual: ``dimension`` is ``model`` or ``tag:<key>``."""

    dimension: str
    value: str
    more: Decimal


@dataclass(frozen=True, slots=True)
class OddDay:
    """A day out of line.

    :param usual: the median of the 28 days before
    :param rises: the largest rise of each dimension, the largest first
    """

    day: date
    cost: Decimal
    usual: Decimal
    rises: tuple[Rise, ...]


@dataclass(frozen=True, slots=True)
class Anomalies:
    """The odd days of a range of days of the reporting zone, both ends included; the dearest first.

    :param apart: what calls in other currencies came to in these days: they are not looked at
    """

    since: date
    until: date
    zone: str
    found: tuple[OddDay, ...]
    apart: tuple[Spend, ...] = ()


def find_anomalies(session: Session, *, days: int, today: date, zone: ZoneInfo, tags: Sequence[str]) -> Anomalies:
    """Look at the last *days* days. *today* is one of them: what is too much already does not become less.

    :param tags: the keys whose values may explain a rise
    """
    first = today - timedelta(days=days - 1)
    costs = {
        row.keys["day"]: row.cost or Decimal(0)
        for row in queries.over(session, _days(first - timedelta(days=HISTORY), today, zone), "day", zone).values()
    }
    by_day: dict[date, Decimal] = {day: cost for day, cost in costs.items() if isinstance(day, date)}
    asked = [first + timedelta(days=step) for step in range(days)]
    found = []
    for day, usual in odd_days(asked, by_day):
        rises = _rises(session, day, zone, ("model", *(f"tag:{key}" for key in tags)))
        found.append(OddDay(day, by_day[day], usual, rises))
    return Anomalies(first, today, str(zone), tuple(found), other_currencies(session, _days(first, today, zone)))


def _rises(session: Session, day: date, zone: ZoneInfo, dimensions: Sequence[str]) -> tuple[Rise, ...]:
    rises = []
    for dimension in dimensions:
        then = queries.pivot(session, _days(day, day, zone), (dimension,), zone=zone)
        before = queries.pivot(
            session, _days(day - timedelta(days=HISTORY), day - timedelta(days=1), zone), (dimension,), zone=zone
        )
        usual = {row.key: (row.cost or Decimal(0)) / HISTORY for row in before}
        grown = [(row.key, row.cost - usual.get(row.key, Decimal(0))) for row in then if row.cost and row.key is not None]
        if grown:
            value, more = max(grown, key=lambda item: item[1])
            rises.append(Rise(dimension, str(value), more))
    return tuple(sorted(rises, key=lambda rise: -rise.more))


def _days(first: date, last: date, zone: ZoneInfo) -> Filter:
    return Filter(scope={}, since=start_of_day(first, zone), until=start_of_day(last + timedelta(days=1), zone))


def as_text(made: Anomalies) -> str:
    """A line for each odd day, with what it went to; the rule below."""
    span = f"{made.since} to {made.until} ({made.zone}, USD)"
    unseen = [f"Not looked at: {counted_apart(made.apart)}. Days are compared in USD only."] if made.apart else []
    if not made.found:
        return "\n".join([f"No odd day, {span}", *unseen])
    lines = [f"Odd days, {span}", ""]
    for odd in made.found:
        rises = ", ".join(
            f"{rise.dimension.removeprefix('tag:')} {rise.value} ({dollars(rise.more)} more)" for rise in odd.rises[:3]
        )
        times = odd.cost / odd.usual
        lines.append(f"{odd.day}  {dollars(odd.cost)}, {times:.1f} times the usual {dollars(odd.usual)}")
        if rises:
            lines.append(f"            above all {rises}")
    return "\n".join([*lines, "", f"Odd: {ANOMALY_RULE[0].lower()}{ANOMALY_RULE[1:]}", *unseen])


def as_rows(made: Anomalies) -> list[dict[str, Any]]:
    """The odd days for programs, amounts exact as text."""
    return [
        {
            "day": odd.day.isoformat(),
            "cost": format(odd.cost.normalize(), "f"),
            "usual": format(odd.usual.normalize(), "f"),
            "rises": [
                {"dimension": rise.dimension, "value": rise.value, "more": format(rise.more.normalize(), "f")}
                for rise in odd.rises
            ],
        }
        for odd in made.found
    ]
