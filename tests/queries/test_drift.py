"""How far the book is from what providers say they charged."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from decimal import Decimal

from ledger_rows import add_call
from sqlalchemy.orm import Session

from flask_llm_cost.ledger.drift import BilledDrift, billed_drift
from flask_llm_cost.ledger.filter import Filter

AT = datetime(2026, 11, 3, 12, tzinfo=UTC)


def test_both_figures_are_added_up_by_model(session: Session) -> None:
    """Of calls that have both, exactly; the largest difference first, within the filter."""
    add_call(session, AT, "0.30", model="small", computed_cost=Decimal("0.31"))
    for _ in range(3):
        add_call(session, AT, "1.00", model="large", computed_cost=Decimal("0.95"))
    add_call(session, AT, "5.00", model="large")
    add_call(session, AT - timedelta(days=3), "7.00", model="old", computed_cost=Decimal("1"))
    add_call(session, AT, None, model="large")
    found = billed_drift(session, Filter(scope={}, since=AT - timedelta(days=1)))
    assert found == [
        BilledDrift("openai", "large", "USD", 3, Decimal("3.00"), Decimal("2.85")),
        BilledDrift("openai", "small", "USD", 1, Decimal("0.30"), Decimal("0.31")),
    ]
    assert [(drift.difference, drift.share) for drift in found] == [
        (Decimal("-0.15"), Decimal("-0.05")),
        (Decimal("0.01"), Decimal("0.01") / Decimal("0.30")),
    ]
    assert billed_drift(session, Filter(scope={}, provider="nobody")) == []
