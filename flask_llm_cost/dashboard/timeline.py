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
    :param past: the days of the range up to today, or to the last with calls: some are recorded with a later time
    :param total: the range's
    :param compared: the days of the compared range, its last one until the same time; none where its calls were pruned
    :param before: what those came to; unknown where they were pruned
    :param begun: the day of the first call that there is, where that is within the compared range
    :param pruned: the day before which only calls could have answered, and are gone; ``None`` where all is known
    """

    daily: Mapping[date, Spend]
    past: tuple[date, ...]
    total: Spend
    compared: Mapping[date, Spend]
    before: Spend
    begun: date | None = None
    pruned: date | None = None

    @property
    def costs(self) -> dict[date, Decimal]:
        return {day: row.cost or Decimal(0) for day, row in self.daily.items()}


def timeline(session: Session, selection: Selection) -> Timeline:
    """Ask for the days, in two queries, and up to two more where the ledger may have begun in the compared range.

    :raises DetailPrunedError: of the range itself
    """
    period = selection.period
    judged = min(period.before, min(period.first, period.today) - timedelta(days=HISTORY))
    last = period.before_until.astimezone(period.zone).date()
    end: Spend | None = None
    pruned = None
    for first in (judged, period.before, period.first):
        # What it is compared with and judged by may be gone while the range is not.
        flt = selection.filter.narrowed(since=start_of_day(first, period.zone))
        try:
            found = queries.over(session, flt, "day", period.zone)
            if first != period.first and (began := start_of_day(last, period.zone)) < period.before_until:
                end = queries.totals(session, flt.narrowed(since=began, until=period.before_until))
            break
        except DetailPrunedError as error:
            if first == period.first:
                raise
            pruned = error.before.astimezone(period.zone).date() if first == period.before else None
    daily = {at: row for at, row in found.items() if isinstance(at, date)}
    compared = {} if pruned else {day: row for day, row in daily.items() if period.before <= day < last}
    if end is not None and not pruned:
        compared[last] = end
    last_day = max((day for day, row in daily.items() if row.calls), default=period.today)
    past = tuple(day for day in period.days if day <= max(period.today, last_day))
    total = together(row for day, row in daily.items() if period.first <= day <= period.last)
    before = UNKNOWN if pruned else together(compared.values())
    begun = None if pruned else _begun(session, selection, daily, before)
    return Timeline(daily=daily, past=past, total=total, compared=compared, before=before, begun=begun, pruned=pruned)


def _begun(session: Session, selection: Selection, daily: Mapping[date, Spend], before: Spend) -> date | None:
    """The day of the first call that there is, whatever is filtered, where the compared range begins earlier.

    Asked only where that range begins with a day without calls, as it seldom does later on.
    """
    period, base = selection.period, selection.base.narrowed(currency=None)
    first = next((day for day, row in daily.items() if row.calls), None)
    if not before.calls or first is None or first <= period.before or queries.pruned_before(session) is not None:
        return None
    if queries.any_calls(session, base.narrowed(until=period.before_since)):
        return None
    earliest, _ = queries.extent(
        session, base.narrowed(since=period.before_since, until=start_of_day(first + timedelta(days=1), period.zone))
    )
    begun = earliest.astimezone(period.zone).date() if earliest is not None else first
    return begun if begun > period.before else None
