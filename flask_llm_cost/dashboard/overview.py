"""The overview: how much, against what, where it heads, who and what explains it, and how complete it is."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import date, timedelta
from decimal import Decimal
from typing import Final
from zoneinfo import ZoneInfo

from sqlalchemy.orm import Session

from flask_llm_cost.dashboard import charts
from flask_llm_cost.dashboard.breakdown import Breakdown, Names, Row, breakdown
from flask_llm_cost.dashboard.charts import Column, Outlook, StackedBars
from flask_llm_cost.dashboard.filters import Selection
from flask_llm_cost.dashboard.forecast import HISTORY, Forecast, forecast, odd_days
from flask_llm_cost.dashboard.formatting import day as short_day
from flask_llm_cost.dashboard.formatting import long_day, money, plural
from flask_llm_cost.dashboard.links import Links
from flask_llm_cost.dashboard.movers import Mover, movers
from flask_llm_cost.dashboard.periods import Bucket, buckets
from flask_llm_cost.ledger import queries
from flask_llm_cost.ledger.filter import Filter
from flask_llm_cost.ledger.local_time import start_of_day
from flask_llm_cost.ledger.queries import Completeness, Spend, UnpricedModel

_NARROW_BARS: Final = 31


@dataclass(frozen=True, slots=True, kw_only=True)
class Series:
    """One colour of the chart."""

    colour: int
    label: str
    total: Decimal | None
    value: str | None
    other: bool = False


@dataclass(frozen=True, slots=True)
class DayRow:
    """One bar as a row of the table behind the chart: amounts in the order of the series.

    :param total: ``None`` when there were calls and none could be priced
    """

    bucket: Bucket
    amounts: tuple[Decimal, ...]
    total: Decimal | None
    calls: int
    unpriced: int
    before: Decimal | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Facts:
    """The row of figures at the foot."""

    mean_cost: Decimal | None
    median_cost: Decimal | None
    p95_cost: Decimal | None
    cache_share: Decimal | None
    median_latency: Decimal | int | None
    median_first_token: Decimal | int | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Overview:
    """Everything on the page."""

    total: Spend
    today: Decimal | None
    before: Spend
    delta: Decimal | None
    heading: Forecast | None
    leader: Row | None
    leader_dimension: str
    driver: Row | None
    driver_dimension: str
    driver_explains_most: bool
    completeness: Completeness
    unpriced: tuple[UnpricedModel, ...]
    other_currencies: tuple[Spend, ...]
    series: tuple[Series, ...]
    wide: StackedBars
    narrow: StackedBars
    days: tuple[DayRow, ...]
    panels: tuple[Breakdown, ...]
    by: Breakdown
    movers: tuple[Mover, ...]
    facts: Facts
    odd: str | None
    past: tuple[date, ...]

    @property
    def bar_unit(self) -> str:
        """What one bar stands for: ``day``, ``week`` or ``month``."""
        if all(row.bucket.first == row.bucket.last for row in self.days):
            return "day"
        return "week" if all((row.bucket.last - row.bucket.first).days < 7 for row in self.days) else "month"

    def spark(self, row: Row) -> str:
        """The points of a row's sparkline."""
        return charts.sparkline([row.days.get(day, Decimal(0)) for day in self.past])


def build(
    session: Session, selection: Selection, links: Links, names: Names, report_tags: tuple[str, ...], total: Spend
) -> Overview:
    """Ask all that the page shows. *total* is the selection's, asked already to see that there is anything."""
    flt, period = selection.filter, selection.period
    compared = selection.compared()
    before = queries.totals(session, compared)
    daily = _daily(session, selection)
    costs = _costs(daily)
    whole_before = compared.narrowed(until=start_of_day(period.before_last + timedelta(days=1), period.zone))
    earlier = _costs(_by_day(session, whole_before, period.zone))

    dimensions = [f"tag:{key}" for key in report_tags if key not in selection.base.scope] + ["model"]
    found = {name: breakdown(session, selection, name, total, names) for name in dict.fromkeys([selection.by, *dimensions])}
    by = found[selection.by]
    panels = tuple(found[name] for name in dimensions if found[name].tagged or name == "model")

    heading = None
    if period.name == "this_month" and total.cost is not None:
        heading = forecast(total.cost, costs, period.today, period.last)
    rows, chart, narrow, odd = _draw(selection, links, by, daily, earlier, heading, before.calls > 0)
    delta = total.cost - before.cost if before.calls and total.cost is not None and before.cost is not None else None
    leader_dimension = next((name for name in dimensions[1:-1] if found[name].tagged), dimensions[0])
    driver, most = _driver(found[dimensions[0]], delta)
    quality = queries.completeness(session, flt)
    return Overview(
        total=total,
        today=daily[period.today].cost if period.running else None,
        before=before,
        delta=delta,
        heading=heading,
        leader=_leader(found[leader_dimension]),
        leader_dimension=leader_dimension,
        driver=driver,
        driver_dimension=dimensions[0],
        driver_explains_most=most,
        completeness=quality,
        unpriced=tuple(queries.unpriced_models(session, flt)) if quality.unpriced or quality.partial else (),
        other_currencies=_other_currencies(session, selection),
        series=_series(by),
        wide=chart,
        narrow=narrow,
        days=rows,
        panels=panels,
        by=by,
        movers=movers([found[name] for name in dimensions]) if before.calls else (),
        facts=_facts(session, selection, total),
        odd=odd,
        past=tuple(day for day in period.days if day <= period.today),
    )


def _daily(session: Session, selection: Selection) -> dict[date, Spend]:
    """The period's days, and those before that its forecast and its odd days are judged by."""
    period = selection.period
    first = min(period.first, period.today) - timedelta(days=HISTORY)
    flt = selection.filter.narrowed(since=start_of_day(first, period.zone))
    return _by_day(session, flt, period.zone)


def _by_day(session: Session, flt: Filter, zone: ZoneInfo) -> dict[date, Spend]:
    return {at: row for at, row in queries.over(session, flt, "day", zone).items() if isinstance(at, date)}


def _costs(daily: Mapping[date, Spend]) -> dict[date, Decimal]:
    return {day: row.cost or Decimal(0) for day, row in daily.items()}


def _draw(
    selection: Selection,
    links: Links,
    by: Breakdown,
    daily: Mapping[date, Spend],
    earlier: Mapping[date, Decimal],
    heading: Forecast | None,
    compare: bool,
) -> tuple[tuple[DayRow, ...], StackedBars, StackedBars, str | None]:
    period = selection.period
    past = [day for day in period.days if day <= period.today]
    shift = {day: period.before + timedelta(days=index) for index, day in enumerate(period.days)}
    inside = {
        day: earlier.get(shift[day], Decimal(0)) if compare and shift[day] <= period.before_last else None
        for day in period.days
    }

    def row(bucket: Bucket) -> DayRow:
        days = [day for day in past if bucket.first <= day <= bucket.last]
        total = sum((daily[day].cost or Decimal(0) for day in days), Decimal(0))
        amounts = [sum((item.days.get(day, Decimal(0)) for day in days), Decimal(0)) for item in by.rows]
        if by.others:
            amounts.append(total - sum(amounts, Decimal(0)))
        known = any(daily[day].cost is not None for day in days)
        former = [amount for day in days if (amount := inside[day]) is not None]
        calls = sum(daily[day].calls for day in days)
        unpriced = sum(daily[day].unpriced_calls for day in days)
        return DayRow(
            bucket, tuple(amounts), total if known else None, calls, unpriced, sum(former, Decimal(0)) if former else None
        )

    odd = odd_days([day for day in past if day != period.today], _costs(daily))
    remark = _remark(odd[0], by, daily) if odd else None
    wide_rows = tuple(row(bucket) for bucket in buckets(past))
    narrow_rows = tuple(row(bucket) for bucket in buckets(past, _NARROW_BARS))

    def chart(rows: tuple[DayRow, ...], *, width: int, height: int, most_labels: int, note: bool) -> StackedBars:
        by_day = all(item.bucket.first == item.bucket.last for item in rows)
        ahead = heading.days if heading and by_day else ()
        previous = [item.before for item in rows] + [inside[item.day] for item in ahead]
        index = next((i for i, item in enumerate(rows) if odd and item.bucket.first == odd[0][0]), None) if by_day else None
        return charts.stacked_bars(
            [_column(selection, links, by, item) for item in rows],
            currency=selection.filter.currency or "USD",
            colours=[item.colour for item in _series(by)],
            previous=previous,
            outlook=[Outlook(item.low, item.middle, item.high) for item in ahead],
            note=(index, remark) if note and index is not None and remark else None,
            width=width,
            height=height,
            most_labels=most_labels,
        )

    wide = chart(wide_rows, width=920, height=248, most_labels=6, note=True)
    return wide_rows, wide, chart(narrow_rows, width=340, height=210, most_labels=4, note=False), remark


def _column(selection: Selection, links: Links, by: Breakdown, row: DayRow) -> Column:
    currency, period = selection.filter.currency or "USD", selection.period
    single = row.bucket.first == row.bucket.last
    title = f"{long_day(row.bucket.first) if single else row.bucket.label}: {money(row.total, currency)}"
    title += f", {plural(row.calls, 'call')}"
    labels = [item.label for item in by.rows] + ["other"]
    parts = sorted(((amount, label) for amount, label in zip(row.amounts, labels, strict=False) if amount), reverse=True)
    title += "".join(f"\n{label} {money(amount, currency)}" for amount, label in parts)
    running = row.bucket.first <= period.today <= row.bucket.last
    if running:
        title += "\nso far"
    span = selection.changed(range="custom", **{"from": row.bucket.first.isoformat(), "to": row.bucket.last.isoformat()})
    href = links("calls", {name: value for name, value in span.items() if name != "by"}) if row.calls else None
    return Column(short_day(row.bucket.first), row.amounts, title, href, running)


def _series(by: Breakdown) -> tuple[Series, ...]:
    found = [
        Series(colour=index, label=row.label, total=row.cost, value=row.value) for index, row in enumerate(by.rows, start=1)
    ]
    if by.others:
        found.append(Series(colour=charts.OTHER, label=f"{by.others} more", total=by.rest, value=None, other=True))
    return tuple(found)


def _remark(odd: tuple[date, Decimal], by: Breakdown, daily: Mapping[date, Spend]) -> str:
    """What an odd day says of itself: whose part of it grew most, and by how much."""
    day, times = odd
    days = len([at for at in daily if at < day]) or 1
    grown = [
        (
            row.days.get(day, Decimal(0))
            - sum((row.days.get(at, Decimal(0)) for at in daily if at < day), Decimal(0)) / days,
            row,
        )
        for row in by.rows
    ]
    most = max(grown, key=lambda item: item[0], default=None)
    who = most[1].label if most and most[0] > 0 else "spend"
    return f"{short_day(day)}: {who[:32]} made it {times:.1f} × the usual day"


def _leader(found: Breakdown) -> Row | None:
    """The dearest tagged value, where naming it says something."""
    tagged = [row for row in found.rows if row.value is not None]
    if len(found.rows) < 2 or not tagged or tagged[0].share is None or tagged[0].share < Decimal("0.2"):
        return None
    return tagged[0]


def _driver(found: Breakdown, delta: Decimal | None) -> tuple[Row | None, bool]:
    """What moved most in the direction of the whole, and whether that is more than half of the way."""
    if not delta:
        return None, False
    moved = [(row.cost - (row.before.cost or Decimal(0)), row) for row in (*found.rows, *found.gone) if row.cost is not None]
    same_way = [item for item in moved if item[0] and (item[0] > 0) == (delta > 0)]
    if not same_way:
        return None, False
    shift, row = max(same_way, key=lambda item: abs(item[0]))
    return row, abs(shift) * 2 >= abs(delta)


def _other_currencies(session: Session, selection: Selection) -> tuple[Spend, ...]:
    found = queries.pivot(session, selection.filter.narrowed(currency=None), ("currency",))
    return tuple(row for row in found if row.key != selection.filter.currency)


def _facts(session: Session, selection: Selection, total: Spend) -> Facts:
    flt = selection.filter

    def quantile(measure: str, share: float, known: int) -> Decimal | int | None:
        return queries.percentile(session, flt, measure, share, known)

    half, tail = (quantile("total_cost", share, total.priced_calls) for share in (0.5, 0.95))
    return Facts(
        mean_cost=total.cost / total.priced_calls if total.cost is not None and total.priced_calls else None,
        median_cost=None if half is None else Decimal(half),
        p95_cost=None if tail is None else Decimal(tail),
        cache_share=Decimal(total.cache_read_tokens) / total.input_tokens if total.input_tokens else None,
        median_latency=quantile("latency_ms", 0.5, total.timed_calls),
        median_first_token=quantile("first_token_ms", 0.5, queries.count_known(session, flt, "first_token_ms")),
    )
