"""What each page says, as JSON: the same figures, exact, without the drawing."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, fields, is_dataclass
from datetime import date
from typing import Any, Final

from flask_llm_cost.dashboard.breakdown import Breakdown, Row
from flask_llm_cost.dashboard.filters import CHOICES, Selection
from flask_llm_cost.dashboard.forecast import ANOMALY_RULE, FORECAST_RULE
from flask_llm_cost.dashboard.formatting import masked
from flask_llm_cost.dashboard.origins import Origin
from flask_llm_cost.dashboard.overview import Overview
from flask_llm_cost.ledger.call_queries import CallDetail, CallPage, CallRow
from flask_llm_cost.ledger.queries import Spend

_MEASURES: Final = tuple(item.name for item in fields(Spend) if item.name not in ("keys", "timed_calls"))


def spend(row: Spend) -> dict[str, Any]:
    return {name: getattr(row, name) for name in _MEASURES}


def asked(selection: Selection) -> dict[str, Any]:
    period = selection.period
    filters: dict[str, Any] = {name: value for name in CHOICES if (value := getattr(selection.filter, name)) is not None}
    return {
        "range": {
            "name": period.name,
            "first": period.first,
            "last": period.last,
            "since": period.since,
            "until": period.until,
            "timezone": str(period.zone),
        },
        "as_of": period.now,
        "currency": selection.filter.currency,
        "filters": {**filters, "tags": dict(selection.filter.tags)},
        "scope": dict(selection.base.scope),
    }


def overview(selection: Selection, page: Overview) -> dict[str, Any]:
    period, quality = selection.period, page.completeness
    return {
        **asked(selection),
        "total": spend(page.total),
        "today": spend(page.today) if page.today else None,
        "compared": {
            "since": period.before_since,
            "until": period.before_until,
            "pruned_before": page.pruned,
            **spend(page.before),
        },
        "forecast": {**asdict(page.heading), "rule": FORECAST_RULE} if page.heading else None,
        "odd_days": [{**asdict(odd), "rule": ANOMALY_RULE} for odd in page.odd_days],
        "completeness": asdict(quality),
        "unpriced_models": [asdict(model) for model in page.unpriced],
        "other_currencies": None
        if page.other_currencies is None
        else [{"currency": row.key, **spend(row)} for row in page.other_currencies],
        "by": selection.by,
        "days": [
            {
                "first": row.bucket.first,
                "last": row.bucket.last,
                "calls": row.calls,
                "unpriced_calls": row.unpriced,
                "cost": row.total,
                "compared_cost": row.before,
                "parts": [
                    {"value": item.value, "others": item.other, "cost": amount}
                    for item, amount in zip(page.series, row.amounts, strict=True)
                ],
            }
            for row in page.days
        ],
        "breakdowns": [breakdown(found) for found in {item.dimension: item for item in (page.by, *page.panels)}.values()],
        "changed": [asdict(mover) for mover in page.movers],
        "moved_since_booked": plainly(page.moved),
        "not_broken_down_by": page.apart,
        "dearest_calls_of_latest": page.dearest_of,
        "dearest_calls": [_call(call) for call in page.dearest],
        "facts": asdict(page.facts),
    }


def plainly(value: Any) -> Any:
    """A dataclass as a mapping of its fields; anything else as it is."""
    return asdict(value) if is_dataclass(value) and not isinstance(value, type) else value


def breakdown(found: Breakdown) -> dict[str, Any]:
    return {
        "dimension": found.dimension,
        "rows": [row(item) for item in found.rows],
        "others": {"values": found.others, "or_more": found.endless, **spend(found.rest)} if found.rest else None,
    }


def row(item: Row) -> dict[str, Any]:
    return {"value": item.value, "label": item.label, **spend(item.spend), "compared_cost": item.before.cost}


def calls(selection: Selection, page: CallPage, pruned: date | None) -> dict[str, Any]:
    return {
        **asked(selection),
        "sort": selection.order,
        "calls": [_call(row) for row in page.rows],
        "pruned_before": pruned,
        "after": page.following,
        "before": page.preceding,
    }


def _call(row: CallRow) -> Mapping[str, Any]:
    found = {item.name: getattr(row, item.name) for item in fields(row)}
    found["provider_response_id"] = masked(row.provider_response_id) if row.provider_response_id else None
    found["flags"] = row.flags.split(",") if row.flags else []
    return found


def call(found: CallDetail, origin: Origin | None) -> dict[str, Any]:
    """One call, and where its price is from."""
    price = None
    if found.price is not None and origin is not None:
        price = {**asdict(found.price), "source": origin.source, "source_version": origin.version}
    return {**_call(found.call), "lines": [asdict(line) for line in found.lines], "price": price}
