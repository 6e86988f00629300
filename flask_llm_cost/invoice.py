"""A provider's invoice beside the ledger, with the difference by model."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from decimal import Decimal, InvalidOperation
from typing import Any, Final

from sqlalchemy.orm import Session

from flask_llm_cost.errors import QueryError
from flask_llm_cost.ledger import queries
from flask_llm_cost.ledger.filter import Filter
from flask_llm_cost.ledger.queries import ESTIMATED_SOURCES, Spend
from flask_llm_cost.report import counted_apart, dollars, other_currencies, plainly, text_table
from flask_llm_cost.wording import plural

_WRITTEN: Final = re.compile(r"(\d{4})-(\d{2})=([^/=]+?)(?:/([^=]+))?:([^:]+)")
#: Thousands may have commas. A comma that stands elsewhere may be a decimal one, and is not guessed at.
_AMOUNT: Final = re.compile(r"[+-]?(\d{1,3}(,\d{3})+(\.\d*)?|[^,]+)")
_CENT: Final = Decimal("0.01")
#: More is no invoice.
_MOST: Final = Decimal("1e12")


@dataclass(frozen=True, slots=True)
class Invoice:
    """What a provider billed for a calendar month (UTC, as providers bill).

    :param total: the invoice's amount; the sum of ``models`` where no total was given
    :param models: amounts that the invoice names for single models
    """

    first: datetime
    until: datetime
    provider: str
    total: Decimal
    models: Mapping[str, Decimal]

    @property
    def month(self) -> str:
        return f"{self.first:%Y-%m}"


@dataclass(frozen=True, slots=True)
class ModelRow:
    """One model: what the ledger has, what the invoice says, and the difference, invoice minus ledger.

    :param cost: ``None`` where the ledger could price nothing
    :param invoiced: ``None`` where the invoice does not name the model
    :param difference: where the invoice is one amount, the model's part of its difference in proportion to the ledger
    """

    model: str
    calls: int
    cost: Decimal | None
    invoiced: Decimal | None
    difference: Decimal | None
    unpriced_calls: int


@dataclass(frozen=True, slots=True)
class Comparison:
    """One invoice beside the ledger, in US dollars.

    :param apart: what the provider's calls came to in other currencies: they are not compared
    :param others: the providers that have calls in that month, where this one has none
    """

    invoice: Invoice
    rows: tuple[ModelRow, ...]
    cost: Decimal
    unpriced_calls: int
    estimated_calls: int
    apart: tuple[Spend, ...]
    others: tuple[str, ...]

    @property
    def difference(self) -> Decimal:
        return self.invoice.total - self.cost


def parse_invoices(written: Sequence[str]) -> list[Invoice]:
    """``2026-10=openai:1234.56`` for the whole, ``2026-10=openai/gpt-4o:1000`` for one model; several of a month together.

    What comes twice, as two invoices of a month do, is added up.

    :raises QueryError: for what is not written so
    """
    totals: dict[tuple[datetime, datetime, str], Decimal] = {}
    models: dict[tuple[datetime, datetime, str], dict[str, Decimal]] = {}
    for text in written:
        found = _WRITTEN.fullmatch(text.strip())
        try:
            if found is None or not _AMOUNT.fullmatch(found[5].strip()):
                raise ValueError
            year, month, provider, model, amount = found.groups()
            first = datetime(int(year), int(month), 1, tzinfo=UTC)
            value = Decimal(amount.replace(",", ""))
            if not value.is_finite() or abs(value) > _MOST:
                raise ValueError
            until = first.replace(year=first.year + first.month // 12, month=first.month % 12 + 1)
        except (ValueError, InvalidOperation):
            raise QueryError(
                f"--invoice {text[:80]!r} is no invoice; write MONTH=PROVIDER:DOLLARS, as in 2026-10=openai:1234.56, "
                "or MONTH=PROVIDER/MODEL:DOLLARS, with a decimal point"
            ) from None
        key = first, until, provider.strip()
        if model is None:
            totals[key] = totals.get(key, Decimal(0)) + value
        else:
            named = models.setdefault(key, {})
            named[model.strip()] = named.get(model.strip(), Decimal(0)) + value
    made = []
    for key in dict.fromkeys([*totals, *models]):
        first, until, provider = key
        named = models.get(key, {})
        total = totals.get(key, sum(named.values(), Decimal(0)))
        made.append(Invoice(first, until, provider, total, named))
    return made


def compare(session: Session, invoice: Invoice) -> Comparison:
    """Put *invoice* beside what the ledger has of its provider in its month."""
    month = Filter(scope={}, since=invoice.first, until=invoice.until)
    flt = month.narrowed(provider=invoice.provider)
    found = queries.pivot(session, flt, ("model",))
    cost = sum((row.cost or Decimal(0) for row in found), Decimal(0))
    shares = {} if invoice.models or not cost else _spread(invoice.total - cost, {row.key: row.cost for row in found}, cost)
    rows = []
    for row in found:
        name = str(row.key or "(no model)")
        invoiced = invoice.models.get(name)
        difference = invoiced - (row.cost or Decimal(0)) if invoiced is not None else shares.get(row.key)
        rows.append(ModelRow(name, row.calls, row.cost, invoiced, difference, row.unpriced_calls))
    for name, amount in invoice.models.items():
        if name not in {row.model for row in rows}:
            rows.append(ModelRow(name, 0, Decimal(0), amount, amount, 0))
    sources = queries.pivot(session, flt, ("usage_source",))
    apart = other_currencies(session, flt)
    others = () if found or apart else queries.pivot(session, month.narrowed(currency=None), ("provider", "currency"))
    return Comparison(
        invoice,
        tuple(rows),
        cost,
        sum(row.unpriced_calls for row in found),
        sum(row.calls for row in sources if row.key in ESTIMATED_SOURCES),
        apart,
        tuple(sorted({str(row["provider"]) for row in others})),
    )


def _spread(difference: Decimal, costs: Mapping[Any, Decimal | None], total: Decimal) -> dict[Any, Decimal]:
    """*difference* in proportion to *costs*, in cents that add up to it; what rounding leaves goes to the dearest."""
    parts = {key: (difference * cost / total).quantize(_CENT) for key, cost in costs.items() if cost}
    dearest = max(parts, key=lambda key: costs[key] or Decimal(0))
    parts[dearest] += difference - sum(parts.values(), Decimal(0))
    return parts


def as_text(made: Comparison) -> str:
    """The comparison as an aligned table, with what can explain a difference below it."""
    invoice = made.invoice
    heads = ["model", "calls", "ledger", "invoice", "difference"]
    body = [
        [
            row.model,
            f"{row.calls:,}",
            dollars(row.cost),
            "" if row.invoiced is None else dollars(row.invoiced),
            _signed(row.difference),
        ]
        for row in made.rows
    ]
    calls = sum(row.calls for row in made.rows)
    total = ["total", f"{calls:,}", dollars(made.cost), dollars(invoice.total), _signed(made.difference)]
    lines = [f"Invoice of {invoice.provider}, {invoice.month} (UTC, USD)", "", *text_table(heads, body, total, keys=1), ""]
    if not made.rows and not made.apart:
        known = f"; it has some of {', '.join(made.others)}" if made.others else ""
        lines.append(f"The ledger has no calls of {invoice.provider} in this month{known}.")
    if invoice.total:
        lines.append(f"The difference is {made.difference / abs(invoice.total) * 100:+.1f}% of the invoice.")
    if not invoice.models and any(row.difference is not None for row in made.rows):
        lines.append("The invoice is one amount: each model's difference is its part of it, in proportion to the ledger.")
    if made.apart:
        lines.append(f"Not in the ledger's number: {counted_apart(made.apart)}. Invoices are compared in USD only.")
    if made.unpriced_calls:
        lines.append(
            f"Not in the ledger's number: {plural(made.unpriced_calls, 'call')} without a price. Set one, and backfill."
        )
    if made.estimated_calls:
        lines.append(f"Estimated: {plural(made.estimated_calls, 'call')}, whose stream was cut or reported no usage.")
    lines.append("Besides, an invoice can hold tax, credits, discounts, and calls of others with the same account.")
    return "\n".join(lines)


def as_row(made: Comparison) -> dict[str, Any]:
    """The comparison for programs, amounts exact as text."""
    return {
        "month": made.invoice.month,
        "provider": made.invoice.provider,
        "ledger": _plain(made.cost),
        "invoice": _plain(made.invoice.total),
        "difference": _plain(made.difference),
        "in_proportion": not made.invoice.models,
        "unpriced_calls": made.unpriced_calls,
        "estimated_calls": made.estimated_calls,
        "other_currencies": plainly(made.apart),
        "models": [
            {
                "model": row.model,
                "calls": row.calls,
                "ledger": _plain(row.cost),
                "invoice": _plain(row.invoiced),
                "difference": _plain(row.difference),
                "unpriced_calls": row.unpriced_calls,
            }
            for row in made.rows
        ],
    }


def _signed(amount: Decimal | None) -> str:
    if amount is None:
        return ""
    return f"{'-' if amount < 0 else '+'}{dollars(abs(amount))}"


def _plain(amount: Decimal | None) -> str | None:
    return None if amount is None else format(amount.normalize(), "f")
