"""Questions about single calls whose answer may cost no more for ten million calls than for ten."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from decimal import Decimal
from typing import Any, Final, TypeVar
from uuid import UUID

import sqlalchemy as sa
from sqlalchemy.orm import Session

from flask_llm_cost.ledger.days import with_calls
from flask_llm_cost.ledger.filter import Filter
from flask_llm_cost.ledger.models import Adjustment, Call, CallTag
from flask_llm_cost.ledger.rollup_state import rare_tags

N = TypeVar("N", int, Decimal)

#: The latest calls, of which medians are told, and the dearest where those of all are not found at once.
SAMPLE: Final = 1000


@dataclass(frozen=True, slots=True)
class Sample:
    """The latest calls of a filter: what each cost and how long it took, as far as that is known.

    :param flt: the filter, from the first to the last day that has such calls
    :param whole: whether there are no more
    :param ids: theirs, the dearest first, what cost an unknown amount last; of equals the latest first
    """

    flt: Filter
    size: int
    whole: bool
    ids: tuple[UUID, ...]
    costs: tuple[Decimal, ...]
    latencies: tuple[int, ...]
    first_tokens: tuple[int, ...]


def newest(session: Session, query: Any, flt: Filter, *, few: bool = True) -> Any:
    """The same select, of a filter's calls, the newest first: in the order of a tag where it asks for one.

    :param few: whether no more than some hundred of them are wanted
    """
    tag = flt.a_tag(rare_tags(session))
    at = Call.occurred_at if tag is None else CallTag.occurred_at
    return query.where(*flt.conditions(joined=tag, few=few)).order_by(at.desc())


def latest(session: Session, flt: Filter, size: int = SAMPLE) -> Sample:
    """At most *size* calls, the latest."""
    columns = (Call.total_cost, Call.latency_ms, Call.first_token_ms, Call.id)
    within = with_calls(session, flt)
    rows = [] if within is None else session.execute(newest(session, sa.select(*columns), within).limit(size)).all()
    dearest = sorted(rows, key=lambda row: (row[0] is not None, row[0]), reverse=True)
    return Sample(
        within or flt,
        len(rows),
        len(rows) < size,
        tuple(row[3] for row in dearest),
        tuple(sorted(row[0] for row in rows if row[0] is not None)),
        tuple(sorted(row[1] for row in rows if row[1] is not None)),
        tuple(sorted(row[2] for row in rows if row[2] is not None)),
    )


def quantile(ordered: Sequence[N], share: float) -> N | None:
    """The value that *share* of them do not exceed, by nearest rank; ``None`` of none."""
    if not ordered:
        return None
    return ordered[max(0, -int(-share * len(ordered) // 1) - 1)]


@dataclass(frozen=True, slots=True)
class Moved:
    """What backfill and reprice changed about calls of a range that had ended."""

    calls: int
    amount: Decimal
    last: datetime


def moved_since(session: Session, flt: Filter, booked: datetime) -> Moved | None:
    """By how much the calls of a filter were changed after *booked*; ``None`` where they were not.

    A call that had no price before moves the sum by all that it costs.
    """
    changed = sa.select(
        sa.func.count(sa.distinct(Adjustment.call_id)),
        sa.func.sum(Adjustment.new_cost),
        sa.func.sum(Adjustment.old_cost),
        sa.func.max(Adjustment.made_at),
    ).where(
        Adjustment.occurred_at >= flt.since,
        Adjustment.occurred_at < flt.until,
        Adjustment.kind.in_(("backfill", "reprice")),
        Adjustment.made_at >= booked,
        Adjustment.currency == flt.currency,
    )
    if flt.scope or flt.tags or any(getattr(flt, name) is not None for name in _NARROWING):
        changed = changed.join(Call, Call.id == Adjustment.call_id).where(*flt.conditions())
    calls, new, old, last = session.execute(changed).one()
    return Moved(calls, (new or Decimal(0)) - (old or Decimal(0)), last) if calls else None


_NARROWING = ("provider", "model", "operation", "outcome", "cost_status", "usage_source", "stream")
