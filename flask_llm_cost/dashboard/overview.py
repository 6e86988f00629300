"""The overview: how much, against what, where it heads, who and what explains it, and how complete it is."""

from __future__ import annotations

from dataclasses import dataclass, replace
from datetime import date
from decimal import Decimal
from typing import Final

from flask import Response
from sqlalchemy.orm import Session

from flask_llm_cost.dashboard import charts, pages_json
from flask_llm_cost.dashboard.bars import DayRow, Series, beyond, drawn, series_of
from flask_llm_cost.dashboard.breakdown import Breakdown, Names, Row, breakdown, leading, named
from flask_llm_cost.dashboard.budgets_page import BudgetBar, budget_bars, plainly
from flask_llm_cost.dashboard.charts import StackedBars
from flask_llm_cost.dashboard.controls import chips, overview_controls
from flask_llm_cost.dashboard.empty import nothing
from flask_llm_cost.dashboard.export import csv_response, filename, json_response
from flask_llm_cost.dashboard.filters import UNPRICED, Selection
from flask_llm_cost.dashboard.forecast import Forecast, forecast, odd_days
from flask_llm_cost.dashboard.formatting import UNTAGGED
from flask_llm_cost.dashboard.links import Links
from flask_llm_cost.dashboard.movers import Mover, driver, leader, movers
from flask_llm_cost.dashboard.periods import Bucket
from flask_llm_cost.dashboard.sums import cache_share
from flask_llm_cost.dashboard.timeline import Timeline, timeline
from flask_llm_cost.dashboard.visit import Visit
from flask_llm_cost.errors import DetailPrunedError
from flask_llm_cost.ledger import queries
from flask_llm_cost.ledger.call_queries import CallRow, dearest_calls
from flask_llm_cost.ledger.queries import Completeness, Spend, UnpricedModel
from flask_llm_cost.ledger.sample_queries import Moved, Sample, latest, moved_since, quantile
from flask_llm_cost.ledger.tag_queries import too_many_to_add_up

_MOST_BUDGETS: Final = 5
_MOST_DEAREST: Final = 5
_SPEND: Final = ("calls", "unpriced_calls", "cost", "input_tokens", "cache_read_tokens", "output_tokens", "total_tokens")


@dataclass(frozen=True, slots=True, kw_only=True)
class Facts:
    """The row of figures at the foot.

    :param sampled: of how many calls, the latest, the medians are, where that is not all of them
    """

    median_cost: Decimal | None
    p95_cost: Decimal | None
    cache_share: Decimal | None
    median_latency: int | None
    median_first_token: int | None
    sampled: int | None


@dataclass(frozen=True, slots=True, kw_only=True)
class OddDay:
    """A day out of line with those before it.

    :param usual: the median of those
    """

    day: date
    cost: Decimal
    usual: Decimal


@dataclass(frozen=True, slots=True, kw_only=True)
class Overview:
    """Everything on the page.

    :param apart: report tags that have a page of their own only, since adding them up takes reading every call
    :param odd: what is said of each odd day, the dearest first
    :param begun: the day on which the ledger begins, where that is within the compared range
    :param beyond: the days of the compared range that none of this one stands against, and what they came to
    :param other_currencies: what calls in them came to; ``None`` where only calls could answer, and are gone
    :param dearest_of: of how many of the latest calls the dearest are told, where there are too many to look at all
    """

    total: Spend
    today: Spend | None
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
    other_currencies: tuple[Spend, ...] | None
    moved: Moved | None
    series: tuple[Series, ...]
    wide: StackedBars
    narrow: StackedBars
    days: tuple[DayRow, ...]
    panels: tuple[Breakdown, ...]
    by: Breakdown
    movers: tuple[Mover, ...]
    apart: tuple[str, ...]
    dearest: tuple[CallRow, ...]
    dearest_of: int | None
    facts: Facts
    odd: tuple[str, ...]
    odd_days: tuple[OddDay, ...]
    begun: date | None
    beyond: tuple[Bucket, Decimal] | None
    pruned: date | None
    past: tuple[date, ...]

    @property
    def bar_unit(self) -> str:
        """What one bar stands for: ``day``, ``week`` or ``month``."""
        return self.days[0].bucket.unit if self.days else "day"

    def spark(self, row: Row) -> str:
        """The points of a row's sparkline; none where what it cost is not known, as a flat line would say nothing."""
        return "" if row.cost is None else charts.sparkline([row.days.get(day, Decimal(0)) for day in self.past])


def overview_of(visit: Visit, selection: Selection, key: str | None = None) -> Response:
    """The page, its files and its JSON.

    :param key: of a tag whose one value is the subject of the page
    """
    bars: list[BudgetBar] = []
    with visit.session() as session:
        if not selection.by:
            selection = replace(selection, by=leading(session, selection, visit.report_tags))
        if selection.format == "csv":
            return _spend_csv(session, selection)
        time = timeline(session, selection)
        if not time.total.calls and selection.format == "html":
            return nothing(visit, session, selection)
        page = build(session, selection, visit.links, visit.names, visit.report_tags, time)
        since = visit.list_since(session, selection)
        # How they stand now belongs to no other days.
        if key is None and not selection.narrow and selection.period.running:
            bars = budget_bars(visit, visit.names, most=_MOST_BUDGETS)
    if selection.format == "json":
        return json_response({**pages_json.overview(selection, page), "budgets": [plainly(bar) for bar in bars]})
    found = {item.dimension: item for item in (page.by, *page.panels)}.values()
    shown = [name for name in visit.report_tags if name not in visit.base.scope]
    tagged = {name: [call.tags[name] for call in page.dearest if name in call.tags] for name in shown}
    subject = None
    if key is not None:
        value = selection.filter.tags[key]
        subject = UNTAGGED if value is None else visit.names(key, [value]).get(value, value)
    return visit.html(
        "overview.html",
        sel=selection,
        it=page,
        key=key,
        subject=subject,
        budgets=bars,
        blocking=visit.state.budgets is not None,
        unpriced_calls=UNPRICED,
        list_since=since,
        tags=shown,
        names={name: visit.names(name, values) for name, values in tagged.items()},
        controls=overview_controls(selection, visit.report_tags, found),
        chips=chips(selection, visit.here, visit.names, besides=key),
    )


def _spend_csv(session: Session, selection: Selection) -> Response:
    by, zone = selection.by, selection.period.zone
    dimensions = ("day", by) if selection.table == "days" else (by,)
    found = queries.pivot(session, selection.filter, dimensions, zone=zone)
    empty = UNTAGGED if by.startswith("tag:") else None
    rows = [
        [
            *(empty if row[name] is None else row[name] for name in dimensions),
            *(row[name] for name in _SPEND),
            selection.currency,
        ]
        for row in found
    ]
    header = [*dimensions, *_SPEND, "currency"]
    return csv_response(filename("spend", selection, *dimensions), header, rows, decimal=selection.decimal)


def build(
    session: Session, selection: Selection, links: Links, names: Names, report_tags: tuple[str, ...], time: Timeline
) -> Overview:
    """Ask all that the page shows. *time* is the selection's, asked already to see that there is anything."""
    flt, period = selection.filter, selection.period
    total, before = time.total, time.before
    keys = [key for key in report_tags if key not in selection.base.scope]
    left = too_many_to_add_up(session, flt, [key for key in keys if f"tag:{key}" != selection.by], total.calls)
    apart = tuple(key for key in keys if key in left)
    dimensions = [f"tag:{key}" for key in keys if key not in apart] + ["model"]
    sample = latest(session, flt)
    dearest, of_all = dearest_calls(session, sample, _MOST_DEAREST)
    also: dict[str, list[str]] = {}
    for key, value in (pair for call in dearest for pair in call.tags.items() if pair[0] in report_tags):
        also.setdefault(key, []).append(value)
    asked = [breakdown(session, selection, name, time) for name in dict.fromkeys([selection.by, *dimensions])]
    found = {item.dimension: item for item in named(asked, names, also)}
    by = found[selection.by]
    panels = tuple(found[name] for name in dimensions if found[name].tagged or name == "model")

    heading = None
    if period.name == "this_month" and total.cost is not None:
        heading = forecast(total.cost, time.costs, period.today, period.last)
    unusual = odd_days([day for day in period.days if day < period.today], time.costs)
    rows, chart, narrow, odd = drawn(selection, links, by, time, heading, unusual)
    delta = total.cost - before.cost if before.calls and total.cost is not None and before.cost is not None else None
    telling = [name for name in dimensions if name not in selection.pinned] or dimensions
    leader_dimension = next((name for name in telling[1:] if name != "model" and found[name].tagged), telling[0])
    drives, most = driver(found[telling[0]], delta)
    quality, others = _completeness(session, selection)
    return Overview(
        total=total,
        today=time.daily[period.today] if period.running else None,
        before=before,
        delta=delta,
        heading=heading,
        leader=leader(found[leader_dimension]),
        leader_dimension=leader_dimension,
        driver=drives,
        driver_dimension=telling[0],
        driver_explains_most=most,
        completeness=quality,
        unpriced=tuple(queries.unpriced_models(session, flt)) if quality.unpriced or quality.partial else (),
        other_currencies=others,
        moved=moved_since(session, flt, period.until) if period.until <= period.now else None,
        series=series_of(by),
        wide=chart,
        narrow=narrow,
        days=rows,
        panels=panels,
        by=by,
        movers=movers([found[name] for name in telling], selection.filter.currency or "USD") if before.calls else (),
        apart=apart,
        dearest=dearest,
        dearest_of=None if of_all else sample.size,
        facts=_facts(sample, total),
        odd=odd,
        odd_days=tuple(OddDay(day=day, cost=time.costs[day], usual=usual) for day, usual in unusual),
        begun=time.begun,
        beyond=beyond(time, period),
        pruned=time.pruned,
        past=time.past,
    )


def _completeness(session: Session, selection: Selection) -> tuple[Completeness, tuple[Spend, ...] | None]:
    """How much is in the number, and what calls in other currencies came to; ``None`` where those are gone."""
    try:
        found = queries.by_currency(session, selection.filter)
    except DetailPrunedError:
        return queries.completeness(session, selection.filter), None
    _, quality = found.get(selection.currency, (None, queries.ALL_OF_NOTHING))
    return quality, tuple(row for currency, (row, _) in found.items() if currency != selection.currency)


def _facts(sample: Sample, total: Spend) -> Facts:
    return Facts(
        median_cost=quantile(sample.costs, 0.5),
        p95_cost=quantile(sample.costs, 0.95),
        cache_share=cache_share(total),
        median_latency=quantile(sample.latencies, 0.5),
        median_first_token=quantile(sample.first_tokens, 0.5),
        sampled=sample.size if sample.size < total.calls else None,
    )
