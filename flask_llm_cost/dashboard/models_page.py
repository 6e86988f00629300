"""Models: what each is asked for, what a call of it costs, and which price that is."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import date, datetime
from decimal import Decimal
from typing import Any, Final

from flask import Response
from sqlalchemy.orm import Session

from flask_llm_cost.dashboard import charts, pages_json
from flask_llm_cost.dashboard.controls import chips, page_controls
from flask_llm_cost.dashboard.empty import nothing
from flask_llm_cost.dashboard.export import csv_response, filename, json_response
from flask_llm_cost.dashboard.filters import Selection
from flask_llm_cost.dashboard.origins import told
from flask_llm_cost.dashboard.sums import before_of, cache_share, per_call, without
from flask_llm_cost.dashboard.timeline import timeline
from flask_llm_cost.dashboard.visit import Visit
from flask_llm_cost.ledger import queries
from flask_llm_cost.ledger.queries import Spend
from flask_llm_cost.pricing import PriceBook

_MOST: Final = 100


@dataclass(frozen=True, slots=True, kw_only=True)
class Listed:
    """The rates per million tokens that a model has now, and since when."""

    rate_in: Decimal | None
    rate_out: Decimal | None
    currency: str
    catalog: str
    version: str | None
    since: datetime | None
    changes: datetime | None


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelRow:
    """One model of one provider.

    :param fresh: uncached input, cached input and output as parts of all tokens, 0 to 1 each
    :param listed: ``None`` where the price book has no price for it
    """

    provider: str
    model: str | None
    spend: Spend
    before: Spend
    share: Decimal | None
    days: Mapping[date, Decimal]
    listed: Listed | None

    @property
    def mix(self) -> tuple[float, float, float]:
        tokens = self.spend.input_tokens + self.spend.output_tokens
        if not tokens:
            return (0.0, 0.0, 0.0)
        cached = self.spend.cache_read_tokens / tokens
        return (self.spend.input_tokens / tokens - cached, cached, self.spend.output_tokens / tokens)

    @property
    def each(self) -> Decimal | None:
        return per_call(self.spend)

    @property
    def cached(self) -> Decimal | None:
        return cache_share(self.spend)


@dataclass(frozen=True, slots=True, kw_only=True)
class Models:
    """Everything on the page.

    :param found: how many models there are, with those that are not among the rows
    """

    found: int
    total: Spend
    before: Spend
    rows: tuple[ModelRow, ...]
    rest: Spend | None
    begun: date | None
    past: tuple[date, ...]

    def spark(self, row: ModelRow) -> str:
        return "" if row.spend.cost is None else charts.sparkline([row.days.get(day, Decimal(0)) for day in self.past])


def models(visit: Visit) -> Response:
    """The page, its file and its JSON."""
    selection = visit.selection()
    with visit.session() as session:
        if selection.format == "csv":
            return _csv(session, visit, selection)
        page = build(session, selection, visit.state.book, scoped=visit.scoped)
        if not page.total.calls and selection.format == "html":
            return nothing(visit, session, selection)
        if selection.format == "json":
            return json_response(as_json(selection, page))
        controls = page_controls(visit, session, selection)
    return visit.html(
        "models.html", sel=selection, it=page, controls=controls, chips=chips(selection, visit.here, visit.names)
    )


def build(session: Session, selection: Selection, book: PriceBook, *, scoped: bool) -> Models:
    """Ask all that the page shows, in five queries."""
    flt, period = selection.filter, selection.period
    time = timeline(session, selection)
    top = queries.pivot(session, flt, ("provider", "model"), top=_MOST + 1)
    compared, none = before_of(session, selection, ("provider", "model"))
    before = {(row["provider"], row["model"]): row for row in compared}
    days: dict[tuple[Any, Any], dict[date, Decimal]] = {}
    if top:
        for row in queries.pivot(session, flt, ("day", "provider", "model"), zone=period.zone):
            days.setdefault((row["provider"], row["model"]), {})[row["day"]] = row.cost or Decimal(0)
    rows = []
    for row in top[:_MOST]:
        key = provider, model = str(row["provider"]), row["model"]
        share = row.cost / time.total.cost if row.cost is not None and time.total.cost else None
        rows.append(
            ModelRow(
                provider=provider, model=model, spend=row, before=before.get(key, none), share=share,
                days=days.get(key, {}), listed=listed(book, provider, model, period.now, scoped=scoped),
            )
        )  # fmt: skip
    return Models(
        found=len(days),
        total=time.total,
        before=time.before,
        rows=tuple(rows),
        rest=without(time.total, top[:_MOST]) if len(top) > _MOST else None,
        begun=time.begun,
        past=time.past,
    )


def listed(book: PriceBook, provider: str, model: str | None, now: datetime, *, scoped: bool) -> Listed | None:
    """What the price book says today."""
    if book.find(provider, model, now) is None:
        return None  # explained, it would be compared with every name that there is
    found = book.explain(provider, model, at=now)
    if not found.found or found.match is None or found.tariff is None:
        return None
    entry, rates = found.match.entry, found.tariff.rates
    bounds = entry.bounds if entry else ()
    origin = told(found.match.catalog, found.match.version, scoped=scoped)
    million = {name: rates[name].rate for name in ("input", "output") if name in rates and rates[name].per == 1_000_000}
    return Listed(
        rate_in=million.get("input"),
        rate_out=million.get("output"),
        currency=entry.currency if entry else "USD",
        catalog=origin.source,
        version=origin.version,
        since=max((bound for bound in bounds if bound <= now), default=None),
        changes=min((bound for bound in bounds if bound > now), default=None),
    )


def _csv(session: Session, visit: Visit, selection: Selection) -> Response:
    header = (
        "provider", "model", "calls", "unpriced_calls", "input_tokens", "cache_read_tokens", "output_tokens",
        "total_tokens", "avg_latency_ms", "cost_per_call", "cost", "currency",
    )  # fmt: skip
    rows = [
        (
            row["provider"], row["model"], row.calls, row.unpriced_calls, row.input_tokens, row.cache_read_tokens,
            row.output_tokens, row.total_tokens, None if row.avg_latency_ms is None else round(row.avg_latency_ms),
            _places(per_call(row)), row.cost, selection.currency,
        )
        for row in queries.pivot(session, selection.filter, ("provider", "model"))
    ]  # fmt: skip
    return csv_response(filename("models", selection), header, rows, decimal=selection.decimal)


def _places(amount: Decimal | None) -> Decimal | None:
    return None if amount is None else round(amount, 12)


def as_json(selection: Selection, page: Models) -> dict[str, Any]:
    return {
        **pages_json.asked(selection),
        "total": pages_json.spend(page.total),
        "models": [
            {
                "provider": row.provider,
                "model": row.model,
                **pages_json.spend(row.spend),
                "compared_cost": row.before.cost,
                "cost_per_call": _places(row.each),
                "price": pages_json.plainly(row.listed),
            }
            for row in page.rows
        ],
        "rest": pages_json.spend(page.rest) if page.rest else None,
    }
