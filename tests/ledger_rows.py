"""Calls put into the ledger's tables directly, for tests of what reads them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import datetime
from decimal import Decimal
from typing import Any
from uuid import UUID

from sqlalchemy.orm import Session

from flask_llm_cost.ledger.models import Call, CallTag, LineItem, PriceSnapshot
from flask_llm_cost.records import new_call_id

#: component, quantity, rate per million, cost
Item = tuple[str, int, str, str]


def add_call(
    session: Session,
    at: datetime,
    cost: str | None = "0.01",
    *,
    tags: Mapping[str, str] = {},
    items: Sequence[Item] = (),
    price: PriceSnapshot | None = None,
    **columns: Any,
) -> UUID:
    """Add one call, its tags and its lines; ``cost=None`` makes it unpriced."""
    call_id = columns.pop("id", None) or new_call_id(int(at.timestamp() * 1e9))
    amount = None if cost is None else Decimal(cost)
    values: dict[str, Any] = {
        "id": call_id,
        "occurred_at": at,
        "recorded_at": at,
        "provider": "openai",
        "model": "gpt-4o",
        "requested_model": columns.get("model", "gpt-4o"),
        "host": "api.openai.com",
        "operation": "chat.completions",
        "stream": False,
        "attempt": 1,
        "outcome": "ok",
        "http_status": 200,
        "usage_source": "response",
        "cost_status": "unpriced" if cost is None else "priced",
        "total_cost": amount,
        "currency": "USD",
        "input_tokens": 1000,
        "cache_read_tokens": 400,
        "cache_write_tokens": 0,
        "output_tokens": 200,
        "reasoning_tokens": None,
        "total_tokens": 1200,
        "latency_ms": 900,
        "first_token_ms": None,
        "price_id": price.id if price else None,
    }
    call = Call(**{**values, **columns})
    session.add(call)
    session.flush()
    session.add_all(CallTag(call_id=call_id, key=key, value=value, occurred_at=at) for key, value in tags.items())
    session.add_all(
        LineItem(
            call_id=call_id,
            position=position,
            component=component,
            unit="token",
            quantity=Decimal(quantity),
            rate=Decimal(rate),
            rate_per=Decimal(1_000_000),
            cost=Decimal(part),
            cost_status="priced",
        )
        for position, (component, quantity, rate, part) in enumerate(items)
    )
    session.flush()
    return call_id
