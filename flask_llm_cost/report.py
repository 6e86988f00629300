"""The report: a table that a person would paste into a chat, and the same for programs."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import date, timedelta
from decimal import ROUND_HALF_EVEN, Decimal
from typing import Final
from zoneinfo import ZoneInfo

from sqlalchemy.orm import Session

from flask_llm_cost.ledger import queries
from flask_llm_cost.ledger.filter import Filter
from flask_llm_cost.ledger.local_time import start_of_day
from flask_llm_cost.ledger.queries import Spend, UnpricedModel
from flask_llm_cost.spreadsheets import defused
from flask_llm_cost.wording import cents, plural, symbol

#: Columns of the report after its keys, with what stands above them.
_NUMBERS = (
    ("calls", "calls"),
    ("input_tokens", "input"),
    ("cache_read_tokens", "cached"),
    ("output_tokens", "output"),
)

#: How many values of a leading tag are named.
_LEADING: Final = 3
_USD: Final = "USD"


@dataclass(frozen=True, slots=True)
class Report:
    """Spend of a range of days of the reporting zone, both ends included, grouped by some dimensions.

    :param rows: of ``currency`` only, unless ``currency`` is one of the dimensions
    :param total: of ``currency`` only
    :param others: what calls in each other currency came to
    """

    since: date
    until: date
    zone: str
    currency: str
    dimensions: tuple[str, ...]
    rows: Sequence[Spend]
    total: Spend
    unpriced: Sequence[UnpricedModel]
    others: Sequence[Spend] = ()
    #: Calls that went through and reported no usage: they are not in the number either.
    uncounted: int = 0
    #: Dimension to its dearest rows, what and who: shown above a table that is not by tags itself.
    leads: Mapping[str, Sequence[Spend]] = field(default_factory=dict)

    @property
    def mixed(self) -> bool:
        """Whether the rows have every currency: each has one of its own."""
        return "currency" in self.dimensions

    @property
    def totals(self) -> Sequence[Spend]:
        """What the rows add up to, in each of their currencies."""
        return [row for row in (self.total, *self.others) if row.calls] if self.mixed else [self.total]


def make_report(
    session: Session, dimensions: Sequence[str], *, days: int, today: date, zone: ZoneInfo, tags: Sequence[str] = ()
) -> Report:
    """Ask the ledger for the last *days* days, *today* included.

    :param tags: the keys to lead with, ``LLM_COST_REPORT_TAGS``, unless *dimensions* name a tag
    :raises QueryError: for a dimension that is not known; the message lists those that are
    """
    first = today - timedelta(days=days - 1)
    flt = Filter(scope={}, since=start_of_day(first, zone), until=start_of_day(today + timedelta(days=1), zone))
    asked = flt.narrowed(currency=None) if "currency" in dimensions else flt
    found = queries.by_currency(session, flt)
    return Report(
        since=first,
        until=today,
        zone=str(zone),
        currency=_USD,
        dimensions=tuple(dimensions),
        rows=queries.pivot(session, asked, tuple(dimensions), zone=zone),
        total=found[_USD][0] if _USD in found else queries.NOTHING,
        unpriced=queries.unpriced_models(session, asked),
        others=[row for currency, (row, _) in found.items() if currency != _USD],
        uncounted=sum(quality.uncounted for currency, (_, quality) in found.items() if asked.currency in (None, currency)),
        leads={} if any(name.startswith("tag:") for name in dimensions) else _leads(session, flt, tags, zone),
    )


def _leads(session: Session, flt: Filter, tags: Sequence[str], zone: ZoneInfo) -> dict[str, Sequence[Spend]]:
    found = {f"tag:{key}": queries.pivot(session, flt, (f"tag:{key}",), zone=zone, top=_LEADING + 1) for key in tags}
    named = {name: [row for row in rows if row.key is not None][:_LEADING] for name, rows in found.items()}
    return {name: rows for name, rows in named.items() if rows}


def as_text(report: Report) -> str:
    """The report as an aligned table. What is not in the number is said below it."""
    totals = report.totals
    currencies = " and ".join(map(_currency, totals)) or report.currency
    title = f"LLM spend, {report.since} to {report.until} ({report.zone}, {currencies})"
    if not any(row.calls for row in totals):
        if report.others:
            return "\n".join([title, "", f"No call in {report.currency} in these days.", *in_others(report)])
        return f"{title}\n\nNo call in these days. What is watched, and what is not: flask llm-cost doctor"
    heads = [*(_head(name) for name in report.dimensions), *(head for _, head in _NUMBERS), "cost"]
    body = [[*map(_key, (row[name] for name in report.dimensions)), *_numbers(row)] for row in report.rows]
    blank = [""] * (len(report.dimensions) - 1)
    ends = [[f"total {_currency(row)}" if len(totals) > 1 else "total", *blank, *_numbers(row)] for row in totals]
    table = text_table(heads, body, *ends, keys=len(report.dimensions))
    return "\n".join([title, "", *_leading(report), *table, *_missing(report)])


def text_table(heads: Sequence[str], body: Sequence[Sequence[str]], *totals: Sequence[str], keys: int) -> list[str]:
    """The lines of an aligned table, the first *keys* columns to the left, with rules under heads and above the totals."""
    table = [heads, *body, *totals]
    widths = [max(len(line[column]) for line in table) for column in range(len(heads))]
    lines = [
        "  ".join(
            cell.ljust(width) if column < keys else cell.rjust(width)
            for column, (cell, width) in enumerate(zip(line, widths, strict=True))
        ).rstrip()
        for line in table
    ]
    rule = "-" * max(map(len, lines))
    end = 1 + len(body)
    return [lines[0], rule, *lines[1:end], rule, *lines[end:]]


def _leading(report: Report) -> list[str]:
    """A line for each of the leading tags: its dearest values, and their part of all."""
    if not report.leads:
        return []
    width = max(len(_head(name)) for name in report.leads)
    whole = report.total.cost
    lines = []
    for name, rows in report.leads.items():
        parts = [
            f"{row.key} {_cost(row)}" + (f" ({row.cost / whole * 100:.0f}%)" if whole and row.cost else "") for row in rows
        ]
        lines.append(f"{_head(name).ljust(width)}  {', '.join(parts)}")
    return [*lines, ""]


def as_json(report: Report) -> str:
    """The report as one JSON object. Amounts are strings, exact; ``null`` is unknown."""
    return json.dumps(
        {
            "since": report.since.isoformat(),
            "until": report.until.isoformat(),
            "timezone": report.zone,
            "currency": report.currency,
            "rows": [_plain(report, row) for row in report.rows],
            "total": _plain(report, report.total),
            "other_currencies": plainly(report.others),
            "leads": {
                name: [{"value": row.key, "calls": row.calls, "cost": _exact(row.cost)} for row in rows]
                for name, rows in report.leads.items()
            },
            "unpriced_models": [
                {"provider": item.provider, "model": item.model, "calls": item.calls} for item in report.unpriced
            ],
        },
        indent=2,
        default=str,
    )


def as_csv(report: Report) -> str:
    """The rows as CSV, with exact amounts."""
    text = io.StringIO()
    fields = [*report.dimensions, *_MEASURES]
    writer = csv.DictWriter(text, fields, lineterminator="\n")
    writer.writeheader()
    for row in report.rows:
        cells = _plain(report, row).items()
        writer.writerow({name: defused(value) if isinstance(value, str) else value for name, value in cells})
    return text.getvalue()


_MEASURES = (
    "calls",
    "cost",
    "input_tokens",
    "cache_read_tokens",
    "output_tokens",
    "total_tokens",
    "avg_latency_ms",
    "unpriced_calls",
)


def _plain(report: Report, row: Spend) -> dict[str, object]:
    keys = {name: row.keys[name] for name in report.dimensions if name in row.keys}
    measures = {name: getattr(row, name) for name in _MEASURES}
    return {**keys, **measures, "cost": _exact(row.cost)}


def _exact(amount: Decimal | None) -> str | None:
    return None if amount is None else format(amount.normalize(), "f")


def _missing(report: Report) -> list[str]:
    return [*in_others(report), *_without_price(report), *_without_usage(report)]


def in_others(report: Report) -> list[str]:
    """What is said of calls in other currencies, where the rows do not have them."""
    if report.mixed or not report.others:
        return []
    by = ",".join(("currency", *report.dimensions))
    return ["", f"Not in this number: {counted_apart(report.others)}.", f"What for: flask llm-cost report --by {by}"]


def other_currencies(session: Session, flt: Filter) -> tuple[Spend, ...]:
    """What a filter's calls came to in each currency but its own."""
    return tuple(row for currency, (row, _) in queries.by_currency(session, flt).items() if currency != flt.currency)


def counted_apart(rows: Sequence[Spend]) -> str:
    """Calls in other currencies as one says it: ``3 calls in EUR (€3.01)``."""
    return " and ".join(f"{plural(row.calls, 'call')} in {_currency(row)} ({_cost(row)})" for row in rows)


def plainly(rows: Sequence[Spend]) -> list[dict[str, object]]:
    """Calls in other currencies for programs, amounts exact as text."""
    return [{"currency": _currency(row), "calls": row.calls, "cost": _exact(row.cost)} for row in rows]


def _without_usage(report: Report) -> list[str]:
    if not report.uncounted:
        return []
    return [
        "",
        f"Not in this number: {plural(report.uncounted, 'call')} that reported no usage.",
        "Which, and how they ended: flask llm-cost report --by usage_source,outcome,model",
    ]


def _without_price(report: Report) -> list[str]:
    if not report.unpriced:
        return []
    calls = sum(item.calls for item in report.unpriced)
    first = report.unpriced[0]
    names = ", ".join(f"{item.provider}/{item.model or '?'}" for item in report.unpriced[:3])
    more = f" and {len(report.unpriced) - 3} more" if len(report.unpriced) > 3 else ""
    return [
        "",
        f"Not in this number: {plural(calls, 'call')} without a price ({names}{more}).",
        f"Why, and what to do: flask llm-cost prices explain {first.provider} {first.model or '?'}",
    ]


def _head(name: str) -> str:
    return name.removeprefix("tag:")


def _key(value: object) -> str:
    return "(untagged)" if value is None else str(value)


def _numbers(row: Spend) -> list[str]:
    return [*(f"{getattr(row, name):,}" for name, _ in _NUMBERS), _cost(row)]


def _cost(row: Spend) -> str:
    """What *row* came to; ``none`` where all of its calls were blocked or refused, so that nothing is missing."""
    return "none" if row.nothing_billed else _money(row.cost, _currency(row))


def _currency(row: Spend) -> str:
    """The currency of a row, which is among its keys where it may be another than the report's."""
    return str(row.keys.get("currency", _USD))


def dollars(amount: Decimal | None) -> str:
    """An amount for people: ``$12.34``, small ones with the digits that matter, ``unknown`` for ``None``."""
    return _money(amount, _USD)


def _money(amount: Decimal | None, currency: str) -> str:
    if amount is None:
        return "unknown"
    if amount == 0 or abs(amount) >= 1:
        return f"{symbol(currency)}{amount:,.{cents(currency)}f}"
    # Two digits that are not zero say enough about a fraction of a cent.
    places = max(2, 1 - amount.adjusted())
    return f"{symbol(currency)}{amount.quantize(Decimal(1).scaleb(-places), ROUND_HALF_EVEN):f}"
