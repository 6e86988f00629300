"""Pricing: the rates in force for what is called, where they are from, since when, and what comes next."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from datetime import datetime
from decimal import Decimal
from typing import Any, Final

from flask import Response

from flask_llm_cost.dashboard import pages_json
from flask_llm_cost.dashboard.export import csv_response, json_response
from flask_llm_cost.dashboard.origins import APP, told
from flask_llm_cost.dashboard.periods import period
from flask_llm_cost.dashboard.visit import Visit
from flask_llm_cost.ledger import queries
from flask_llm_cost.ledger.quality_queries import Mark, marks
from flask_llm_cost.pricing import PriceBook
from flask_llm_cost.records import COMPONENTS

_LATELY: Final = "90d"
_MOST: Final = 60
#: The rates that have a column of their own; any other is in the row's details.
MAIN: Final = ("input", "cache_read", "cache_write", "output")


@dataclass(frozen=True, slots=True, kw_only=True)
class RateLine:
    component: str
    rate: Decimal
    per: Decimal
    unit: str
    status: str


@dataclass(frozen=True, slots=True, kw_only=True)
class PriceRow:
    """The price of one model, as it is today.

    :param calls: how many calls it had lately; ``None`` where it was only looked for
    :param calls_in: the same by currency, as lists of calls are
    :param rates: by component; empty where there is no price
    :param history: the days at which it changed or will
    """

    provider: str
    model: str
    calls: int | None
    calls_in: Mapping[str, int]
    key: str | None
    kind: str | None
    catalog: str | None
    version: str | None
    source: str | None
    currency: str
    rates: tuple[RateLine, ...]
    discount: Decimal
    since: datetime | None
    history: tuple[datetime, ...]

    def rate(self, component: str) -> RateLine | None:
        return next((line for line in self.rates if line.component == component), None)

    @property
    def others(self) -> tuple[RateLine, ...]:
        return tuple(line for line in self.rates if line.component not in MAIN)


@dataclass(frozen=True, slots=True, kw_only=True)
class Pricing:
    """Everything on the page. Within a scope nothing is said of the price book."""

    version: str | None
    entries: int | None
    rows: tuple[PriceRow, ...]
    more: int
    synced: Mark | None


def pricing(visit: Visit) -> Response:
    """The page, its file and its JSON. Within a scope, only what its own calls used."""
    selection = visit.selection()
    book, now, zone = visit.state.book, visit.now, visit.state.config.timezone
    with visit.session() as session:
        # Whole days: their sums outlive the calls.
        span = period(_LATELY, zone, now)
        lately = visit.base.narrowed(since=span.since, until=span.until, currency=None)
        used = queries.pivot(session, lately, ("provider", "model", "currency"), top=500)
        synced = None if visit.scoped else _synced(marks(session).values())
    calls: dict[tuple[str, str], dict[str, int]] = {}
    for row in used:
        if row["model"]:
            calls.setdefault((str(row["provider"]), str(row["model"])), {})[str(row["currency"])] = row.calls
    rows: list[PriceRow] = [
        price_row(book, provider, model, now, dict(sorted(counts.items(), key=lambda item: (item[0] != "USD", -item[1]))))
        for (provider, model), counts in sorted(calls.items(), key=lambda item: -sum(item[1].values()))
    ]
    more = 0
    if selection.search:
        wanted = selection.search.lower()
        rows = [row for row in rows if wanted in f"{row.provider}/{row.model}".lower()]
        if not visit.scoped:
            listed = {(row.provider, row.model) for row in rows}
            keys = [key for key in sorted(book.keys) if wanted in key.lower()]
            others = [key.partition("/") for key in keys]
            found = [(provider, model) for provider, _, model in others if (provider, model) not in listed]
            more = max(0, len(found) - _MOST)
            rows += [price_row(book, provider, model, now, {}) for provider, model in found[:_MOST]]
    if visit.scoped:
        page = Pricing(version=None, entries=None, rows=tuple(_scoped(row) for row in rows), more=more, synced=None)
    else:
        page = Pricing(version=book.version, entries=book.entries, rows=tuple(rows), more=more, synced=synced)
    if selection.format == "json":
        return json_response({"as_of": now, "search": selection.search, "pricing": pages_json.plainly(page)})
    if selection.format == "csv":
        header = ("provider", "model", "component", "rate", "per", "unit", "currency", "rule", "key", "source", "since")
        lines = [_cells(row, line) for row in page.rows for line in (*row.rates, *(() if row.rates else (None,)))]
        return csv_response("llm-prices.csv", header, lines, decimal=selection.decimal)
    return visit.html("pricing.html", sel=selection, it=page, main=MAIN, zone=zone, now=now, lately=_LATELY)


def _synced(found: Iterable[Mark]) -> Mark | None:
    return next((mark for mark in found if mark.name in ("prices_synced", "prices.synced")), None)


def _scoped(row: PriceRow) -> PriceRow:
    if row.catalog is None:
        return row
    catalog, version = told(row.catalog, row.version, scoped=True)
    return replace(row, catalog=catalog, version=version, source=None if catalog == APP else row.source)


def _cells(row: PriceRow, line: RateLine | None) -> tuple[Any, ...]:
    rate = (line.component, line.rate, line.per, line.unit) if line else (None,) * 4
    return (row.provider, row.model, *rate, row.currency, row.kind, row.key, _origin(row), row.since)


def _origin(row: PriceRow) -> str | None:
    return " ".join(part for part in (row.catalog, row.version) if part) or None


def price_row(book: PriceBook, provider: str, model: str, now: datetime, calls: Mapping[str, int]) -> PriceRow:
    """What the book says of one model."""
    match = book.find(provider, model, now)
    # What has no price is not explained: it would be compared with every name that there is.
    tariff = book.explain(provider, model, at=now).tariff if match is not None else None
    entry = match.entry if match else None
    order = {name: index for index, name in enumerate(COMPONENTS)}
    rates = tariff.rates if tariff is not None else {}
    bounds = entry.bounds if entry else ()
    return PriceRow(
        provider=provider,
        model=model,
        calls=sum(calls.values()) if calls else None,
        calls_in=calls,
        key=match.key if match else None,
        kind=match.kind if match else None,
        catalog=match.catalog if match else None,
        version=match.version if match else None,
        source=f"{entry.source} {entry.source_version}".strip() if entry else None,
        currency=entry.currency if entry else "USD",
        rates=tuple(
            RateLine(
                component=name, rate=rates[name].rate, per=rates[name].per, unit=rates[name].unit, status=rates[name].status
            )
            for name in sorted(rates, key=lambda name: order.get(name, 99))
        ),
        discount=tariff.price.discount if tariff is not None else Decimal(0),
        since=max((bound for bound in bounds if bound <= now), default=None),
        history=bounds,
    )
