"""The bars over time: what each stands for, says and leads to, and the rows of the table behind them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import date, timedelta
from decimal import Decimal
from functools import cache
from typing import Final

from flask_llm_cost.dashboard import charts
from flask_llm_cost.dashboard.breakdown import Breakdown, Row
from flask_llm_cost.dashboard.charts import Column, Outlook, StackedBars
from flask_llm_cost.dashboard.filters import Selection
from flask_llm_cost.dashboard.forecast import Forecast
from flask_llm_cost.dashboard.formatting import day as short_day
from flask_llm_cost.dashboard.formatting import full_day, long_day, money
from flask_llm_cost.dashboard.links import Links
from flask_llm_cost.dashboard.periods import Bucket, Period, buckets
from flask_llm_cost.dashboard.timeline import Timeline
from flask_llm_cost.ledger.queries import Spend
from flask_llm_cost.wording import plural

_NARROW_BARS: Final = 31
#: So many of its parts a bar says, the dearest; all of them are in the table.
_MOST_PARTS: Final = 5


@dataclass(frozen=True, slots=True, kw_only=True)
class Series:
    """One colour of the chart."""

    colour: int
    label: str
    spend: Spend
    value: str | None
    other: bool = False


@dataclass(frozen=True, slots=True)
class DayRow:
    """One bar as a row of the table behind the chart: amounts in the order of the series.

    :param total: ``None`` when there were calls and none could be priced
    :param before: what the compared days came to, that of today until the same time
    :param usual: the same with the whole of that day, as the line of the chart goes on
    """

    bucket: Bucket
    amounts: tuple[Decimal, ...]
    total: Decimal | None
    calls: int
    unpriced: int
    before: Decimal | None
    usual: Decimal | None

    @property
    def nothing_billed(self) -> bool:
        """Whether all of its calls were blocked or refused."""
        return self.calls > 0 and self.total is None and not self.unpriced


def beyond(time: Timeline, period: Period) -> tuple[Bucket, Decimal] | None:
    """The days of the compared range that none of this one stands against, and what they came to."""
    after = period.before + (min(period.last, period.today) - period.first) + timedelta(days=1)
    left = [day for day, row in time.compared.items() if day >= after and row.calls]
    if not left or not time.before.calls:
        return None
    return Bucket(after, max(left)), sum((time.compared[day].cost or Decimal(0) for day in left), Decimal(0))


def drawn(
    selection: Selection,
    links: Links,
    by: Breakdown,
    time: Timeline,
    heading: Forecast | None,
    odd: Sequence[tuple[date, Decimal]],
) -> tuple[tuple[DayRow, ...], StackedBars, StackedBars, tuple[str, ...]]:
    """The rows of the table, the chart for a wide page and for a narrow one, and what is said of the odd days.

    :param odd: the odd days with the usual amount, the dearest first
    """
    period, daily, costs = selection.period, time.daily, time.costs
    compare = time.before.calls > 0
    past = time.past
    shift = {day: period.before + timedelta(days=index) for index, day in enumerate(period.days)}
    inside = {
        day: costs.get(shift[day], Decimal(0)) if compare and shift[day] <= period.before_last else None
        for day in period.days
    }
    compared = {day: row.cost or Decimal(0) for day, row in time.compared.items()} if compare else {}

    # Most bars are the same in both charts.
    @cache
    def row(bucket: Bucket) -> DayRow:
        days = [day for day in past if bucket.first <= day <= bucket.last]
        total = sum((daily[day].cost or Decimal(0) for day in days), Decimal(0))
        amounts = [sum((item.days.get(day, Decimal(0)) for day in days), Decimal(0)) for item in by.rows]
        if by.others:
            amounts.append(total - sum(amounts, Decimal(0)))
        known = any(daily[day].cost is not None for day in days)
        former = [compared[shift[day]] for day in days if shift[day] in compared]
        usual = [amount for day in days if (amount := inside[day]) is not None]
        calls = sum(daily[day].calls for day in days)
        unpriced = sum(daily[day].unpriced_calls for day in days)
        return DayRow(
            bucket,
            tuple(amounts),
            total if known else None,
            calls,
            unpriced,
            before=sum(former, Decimal(0)) if former else None,
            usual=sum(usual, Decimal(0)) if usual else None,
        )

    remarks = tuple(_remark(day, costs[day] / usual, by, past) for day, usual in odd)
    wide_rows = tuple(row(bucket) for bucket in buckets(past))
    narrow_rows = tuple(row(bucket) for bucket in buckets(past, _NARROW_BARS))

    @cache
    def column(bucket: Bucket) -> Column:
        return _column(selection, links, by, row(bucket))

    def chart(rows: tuple[DayRow, ...], *, width: int, height: int, most_labels: int, note: bool) -> StackedBars:
        by_day = all(item.bucket.first == item.bucket.last for item in rows)
        ahead = [item for item in heading.days if item.day > past[-1]] if heading and by_day else []
        previous = [item.usual for item in rows] + [inside[item.day] for item in ahead]
        index = next((i for i, item in enumerate(rows) if odd and item.bucket.first == odd[0][0]), None) if by_day else None
        return charts.stacked_bars(
            [column(item.bucket) for item in rows],
            currency=selection.filter.currency or "USD",
            colours=[item.colour for item in series_of(by)],
            previous=previous,
            outlook=[Outlook(item.low, item.middle, item.high) for item in ahead],
            note=(index, remarks[0]) if note and index is not None else None,
            width=width,
            height=height,
            most_labels=most_labels,
        )

    wide = chart(wide_rows, width=920, height=248, most_labels=6, note=True)
    return wide_rows, wide, chart(narrow_rows, width=340, height=210, most_labels=4, note=False), remarks


def _column(selection: Selection, links: Links, by: Breakdown, row: DayRow) -> Column:
    currency, period = selection.filter.currency or "USD", selection.period
    single = row.bucket.first == row.bucket.last
    title = f"{long_day(row.bucket.first) if single else row.bucket.label}: "
    title += "nothing billed" if row.nothing_billed else money(row.total, currency)
    title += f", {plural(row.calls, 'call')}"
    labels = [item.label for item in by.rows] + ["other"]
    parts = sorted(((amount, label) for amount, label in zip(row.amounts, labels, strict=False) if amount), reverse=True)
    if len(parts) > _MOST_PARTS + 1:
        left = sum((amount for amount, _ in parts[_MOST_PARTS:]), Decimal(0))
        parts = [*parts[:_MOST_PARTS], (left, f"{len(parts) - _MOST_PARTS} more")]
    title += "".join(f"\n{label} {money(amount, currency)}" for amount, label in parts)
    running = row.bucket.first <= period.today <= row.bucket.last
    if running:
        title += "\nso far"
    span = selection.changed(range="custom", **{"from": row.bucket.first.isoformat(), "to": row.bucket.last.isoformat()})
    # A day's own page first: who and what made it. From there its calls are one step, as they are from a bar that is all.
    whole = row.bucket.first == period.first and row.bucket.last == min(period.last, period.today)
    if whole:
        span.pop("by", None)
    href = links("calls" if whole else "overview", span) if row.calls else None
    return Column(row.bucket.tick(years=period.first.year != period.last.year), row.amounts, title, href, running)


def series_of(by: Breakdown) -> tuple[Series, ...]:
    """The colours of a breakdown, the dearest first, the rest in grey."""
    found = [
        Series(colour=index, label=row.label, spend=row.spend, value=row.value) for index, row in enumerate(by.rows, start=1)
    ]
    if by.rest is not None:
        found.append(Series(colour=charts.OTHER, label=by.more, spend=by.rest, value=None, other=True))
    return tuple(found)


def _remark(day: date, times: Decimal, by: Breakdown, past: Sequence[date]) -> str:
    """What an odd day says of itself: whose part of it grew most, and by how much."""
    before = [at for at in past if at < day]

    def grown(row: Row) -> Decimal:
        usual = sum((row.days.get(at, Decimal(0)) for at in before), Decimal(0)) / (len(before) or 1)
        return row.days.get(day, Decimal(0)) - usual

    most = max(by.rows, key=grown, default=None)
    who = most.label if most and grown(most) > 0 else "spend"
    when = short_day(day) if past[0].year == past[-1].year else full_day(day)
    return f"{when}: {who[:32]} made it {times:.1f} × the usual day"
