"""How far the price book is from what providers say they charged, where they say so."""

from __future__ import annotations

from dataclasses import dataclass
from decimal import Decimal

import sqlalchemy as sa
from sqlalchemy.orm import Session

from flask_llm_cost.ledger.filter import MODEL, Filter
from flask_llm_cost.ledger.models import Call


@dataclass(frozen=True, slots=True)
class BilledDrift:
    """One model's calls that have both figures.

    :param billed: what the provider says it charged, which is the bill
    :param computed: what the book makes of the same calls
    """

    provider: str
    model: str
    currency: str
    calls: int
    billed: Decimal
    computed: Decimal

    @property
    def difference(self) -> Decimal:
        """By how much the book is too high; below zero where it is too low."""
        return self.computed - self.billed

    @property
    def share(self) -> Decimal | None:
        """The difference as a part of the bill, ``0.05`` for 5%; ``None`` where nothing was charged."""
        return self.difference / self.billed if self.billed else None


def billed_drift(session: Session, flt: Filter, *, latest: int = 5000, top: int = 50) -> list[BilledDrift]:
    """Models whose provider says what it charged, the largest difference first.

    :param latest: how many calls are looked at, the newest: a price that is off is off in those
    """
    both = (
        sa.select(Call.provider, MODEL.label("model"), Call.currency, Call.total_cost, Call.computed_cost)
        .where(*flt.conditions(), Call.computed_cost.is_not(None), Call.total_cost.is_not(None))
        .order_by(Call.occurred_at.desc())
        .limit(latest)
        .subquery()
    )
    keys = (both.c.provider, both.c.model, both.c.currency)
    sums = (sa.func.count(), sa.func.sum(both.c.total_cost), sa.func.sum(both.c.computed_cost))
    rows = session.execute(sa.select(*keys, *sums).group_by(*keys))
    found = [
        BilledDrift(provider, model or "", currency, calls, billed or Decimal(0), computed or Decimal(0))
        for provider, model, currency, calls, billed, computed in rows
    ]
    return sorted(found, key=lambda drift: (-abs(drift.difference), drift.provider, drift.model))[:top]
