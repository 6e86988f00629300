"""The days of a range, those it is compared with, and those it is judged by, all asked at once."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import date, timedelta
from decimal import Decimal

from sqlalchemy.orm import Session

from flask_llm_cost.dashboard.filters import Selection
from flask_llm_cost.dashboard.forecast import HISTORY
from flask_llm_cost.dashboard.sums import together
from flask_llm_cost.ledger import queries
from flask_llm_cost.ledger.local_time import start_of_day
from flask_llm_cost.ledger.queries import Spend


@dataclass(frozen=True, slots=True, kw_only=True)
class Timeline:
    """Spend by day.

    :param daily: every day from the compared range on, also without calls
    :param total: the range's
    :param before: the compared range's, until the same time of its last day
    """

    daily: Mapping[date, Spend]
    total: Spend
    before: Spend

    @property
    def costs(self) -> dict[date, Decimal]:
        return {day: row.cost or Decimal(0) for day, row in self.daily.items()}


def timeline(session: Session, selection: Selection) -> Timeline:
    """Ask for the days, in two queries."""
    period = selection.period
    first = min(period.before, min(period.first, period.today) - timedelta(days=HISTORY))
    flt = selection.filter.narrowed(since=start_of_day(first, period.zone))
    found = queries.over(session, flt, "day", period.zone)
    daily = {at: row for at, row in found.items() if isinstance(at, date)}
    last = period.before_until.astimezone(period.zone).date()
    before = [row for day, row in daily.items() if period.before <= day < last]
    if (began := start_of_day(last, period.zone)) < period.before_until:
        before.append(queries.totals(session, flt.narrowed(since=began, until=period.before_until)))
    total = together(row for day, row in daily.items() if period.first <= day <= period.last)
    return Timeline(daily=daily, total=total, before=together(before))
