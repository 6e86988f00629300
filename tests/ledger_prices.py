"""A price for made-up calls, for tests that need exact costs and no price book."""

from __future__ import annotations

from dataclasses import replace
from decimal import Decimal
from uuid import UUID

from flask_llm_cost.records import CallRecord, Cost, Line, Price, Rate

MILLION = Decimal(1_000_000)
RATES = {"input": Decimal("2.50"), "cache_read": Decimal("1.25"), "output": Decimal("10.00")}
PRICE = Price(
    id=UUID("0f8fad5b-d9cb-8469-a165-70867728950e"),
    source="bundled",
    source_version="2026-10-01",
    key="openai/gpt-4o",
    match="exact",
    currency="USD",
    rates={name: Rate(rate, MILLION) for name, rate in RATES.items()},
)


def price(record: CallRecord) -> CallRecord:
    """The record with the exact cost of its tokens; without a cost where nothing was counted."""
    lines = tuple(
        Line(name, "token", quantity, RATES[name], MILLION, RATES[name] * quantity / MILLION, "priced")
        for name, quantity in record.usage.quantities.items()
    )
    if not lines:
        return record
    return replace(record, cost=Cost(sum((line.cost or Decimal(0) for line in lines), Decimal(0)), lines, "priced", PRICE))
