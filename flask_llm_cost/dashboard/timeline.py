"""The days of a range, those it is compared with, and those it is judged by, all asked at once."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import date, timedelta
from decimal import Decimal

from sqlalchemy.orm import Session

from flask_llm_cost.dashboard.filters import Selection
from flask_llm_cost.dashboard.forecast import HISTORY
from flask_llm_cost.dashboard.sums import UNKNOWN, together
from flask_llm_cost.errors import DetailPrunedError
from flask_llm_cost.ledger import queries
from flask_llm_cost.ledger.local_time import start_of_day
from flask_llm_cost.ledger.queries import Spend


@dataclass(frozen=True, slots=True, kw_only=True)
class Timeline:
    """Spend by day.

    :param daily: every day from the compared range on, also without calls
    :param total: the range's
    :param before: the compared range's, until the same time of its last day; unknown where its calls were pruned
    :param pruned: the day before which only calls could have answered, and are gone; ``None`` where all is known
    """

    daily: Mapping[date, Spend]
    total: Spend
    before: Spend
    pruned: date | None = None

    @property
    def costs(self) -> dict[date, Decimal]:
        return {day: row.cost or Decimal(0) for day, row in self.daily.items()}


def timeline(session: Session, selection: Selection) -> Timeline:
    """Ask for the days, in two queries.

    :raises DetailPrunedError: of the range itself
    """
    period = selection.period
    judged = min(period.before, min(period.first, period.today) - timedelta(days=HISTORY))
    last = period.before_until.astimezone(period.zone).date()
    before: list[Spend] = []
    pruned = None
    for first in (judged, period.before, period.first):
        # What it is compared with and judged by may be gone while the range is not.
        flt = selection.filter.narrowed(since=start_of_day(first, period.zone))
        try:
            found = queries.over(session, flt, "day", period.zone)
            if first != period.first and (began := start_of_day(last, period.zone)) < period.before_until:
                before = [queries.totals(session, flt.narrowed(since=began, until=period.before_until))]
            break
        except DetailPrunedError as error:
            if first == period.first:
                raise
            pruned = error.before.astimezone(period.zone).date() if first == period.before else None
    daily = {at: row for at, row in found.items() if isinstance(at, date)}
    before += [row for day, row in daily.items() if period.before <= day < last]
    total = together(row for day, row in daily.items() if period.first <= day <= period.last)
    return Timeline(daily=daily, total=total, before=UNKNOWN if pruned else together(before), pruned=pruned)
