"""Spend added up from rows of spend, so that a page asks for days once and knows its totals."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import replace
from decimal import Decimal
from typing import Final

from sqlalchemy.orm import Session

from flask_llm_cost.dashboard.filters import Selection
from flask_llm_cost.errors import DetailPrunedError
from flask_llm_cost.ledger import queries
from flask_llm_cost.ledger.queries import NOTHING, Cost, Key, Spend

#: What :func:`per_call` divides by, for people.
PER_CALL: Final = "the mean of the calls that have a price"
#: What calls came to that were pruned.
UNKNOWN: Final = replace(NOTHING, cost=None)


def before_of(
    session: Session,
    selection: Selection,
    dimensions: Sequence[str],
    only: Mapping[str, Collection[Key]] = {},
    top: int | None = None,
) -> tuple[list[Spend], Spend]:
    """The compared range by *dimensions*, and what anything else came to in it: nothing, or unknown where it was pruned."""
    try:
        return queries.pivot(session, selection.compared(), dimensions, only=only, top=top), NOTHING
    except DetailPrunedError:
        return [], UNKNOWN


def together(rows: Iterable[Spend]) -> Spend:
    """All *rows* as one without keys. Its cost is unknown when there were calls and none could be priced."""
    rows = [row for row in rows if row.calls]
    if not rows:
        return NOTHING
    timed = sum(row.timed_calls for row in rows)
    latency = sum((row.avg_latency_ms or 0.0) * row.timed_calls for row in rows)
    known = [row.cost for row in rows if row.cost is not None]
    return Spend(
        calls=sum(row.calls for row in rows),
        cost=sum(known, Decimal(0)) if known else None,
        input_tokens=sum(row.input_tokens for row in rows),
        cache_read_tokens=sum(row.cache_read_tokens for row in rows),
        output_tokens=sum(row.output_tokens for row in rows),
        total_tokens=sum(row.total_tokens for row in rows),
        avg_latency_ms=latency / timed if timed else None,
        unpriced_calls=sum(row.unpriced_calls for row in rows),
        partial_calls=sum(row.partial_calls for row in rows),
        priced_calls=sum(row.priced_calls for row in rows),
        timed_calls=timed,
    )


def without(total: Spend, parts: Iterable[Spend]) -> Spend:
    """What is left of *total* beside *parts*."""
    part = together(parts)
    calls = total.calls - part.calls
    if not calls:
        return NOTHING
    priced = total.priced_calls - part.priced_calls
    return Spend(
        calls=calls,
        cost=(total.cost or Decimal(0)) - (part.cost or Decimal(0)) if priced else None,
        input_tokens=total.input_tokens - part.input_tokens,
        cache_read_tokens=total.cache_read_tokens - part.cache_read_tokens,
        output_tokens=total.output_tokens - part.output_tokens,
        total_tokens=total.total_tokens - part.total_tokens,
        avg_latency_ms=None,
        unpriced_calls=total.unpriced_calls - part.unpriced_calls,
        partial_calls=total.partial_calls - part.partial_calls,
        priced_calls=priced,
        timed_calls=0,
    )


def cost_together(rows: Iterable[Cost]) -> Cost:
    """The same of what rows cost."""
    rows = list(rows)
    priced = sum(row.priced_calls for row in rows)
    cost = sum((row.cost for row in rows if row.cost is not None), Decimal(0))
    return Cost(sum(row.calls for row in rows), cost if priced else None, priced)


def per_call(spend: Spend | Cost) -> Decimal | None:
    """The mean cost of a call that has one."""
    return spend.cost / spend.priced_calls if spend.cost is not None and spend.priced_calls else None


def cache_share(spend: Spend) -> Decimal | None:
    """The part of the input that was read from a cache."""
    return Decimal(spend.cache_read_tokens) / spend.input_tokens if spend.input_tokens else None
