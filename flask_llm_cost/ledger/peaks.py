"""Where the dearest and the slowest calls are: the rollups of each quarter of an hour know what none of its calls exceeds.

There is no index of costs or of latencies, and a range of ten million calls takes seconds to sort. The quarters whose bounds
are highest have what is wanted, and the next bound says when there is nothing better anywhere else.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from datetime import datetime
from decimal import Decimal
from typing import Any, Final

import sqlalchemy as sa
from sqlalchemy.orm import Session

from flask_llm_cost.ledger.bulk import CALLS, USAGE_ROLLUPS
from flask_llm_cost.ledger.filter import Filter
from flask_llm_cost.ledger.models import Call
from flask_llm_cost.ledger.pieces import QUARTER, into_quarter, plain
from flask_llm_cost.ledger.rollup_state import state_of
from flask_llm_cost.ledger.rollup_sums import OVER_MODELS

#: What is not known is below everything.
UNKNOWN: Final = -1
#: Quarters that are read beside one for each call that is wanted.
_MORE: Final = 3
#: Looking up one more quarter takes as long as sorting so many calls, and no more than so many are looked up.
_WORTH: Final = 750
_MOST: Final = 400


@dataclass(frozen=True, slots=True)
class Shortlist:
    """Some of a filter's calls, among which the first ones may be: those of *flt* that hold *condition*.

    :param final: whether no other calls can be wanted, however few there are
    """

    flt: Filter
    condition: sa.ColumnElement[bool]
    final: bool


def near_the_top(
    session: Session,
    flt: Filter,
    bound: Any,
    value: sa.ColumnElement[Any],
    wanted: int,
    place: Decimal | int | None,
    *,
    backwards: bool,
) -> Iterator[Shortlist]:
    """Calls of a filter that are the highest by *value*, short lists first.

    There are none where nothing quicker is known than to look at all calls.

    :param bound: the column of the rollups that no call's value exceeds
    :param wanted: how many calls are wanted
    :param place: the value of the call after which they come, or, *backwards*, before which
    """
    if wanted + _MORE > _MOST:
        return
    known = wanted + _MORE if place is None else _MOST
    bounds, calls = _bounds(session, flt, bound, known)
    quarters, largest = [at for at, _ in bounds], min(_MOST, calls // _WORTH)
    # Calls below the place may be in any quarter that reaches above it. Where all that are known do, there may be more.
    needed = 0 if place is None else sum(most >= place for _, most in bounds)
    # PostgreSQL would look up the whole range besides.
    anytime = replace(flt, since=None, until=None)
    if backwards:
        if needed < len(bounds) and needed <= largest:
            yield Shortlist(anytime, _of_quarters(session, quarters[:needed], flt), final=True)
        return
    # First a quarter for each call, then as many as are worth it: what else is filtered may let few of their calls through.
    for size in sorted({needed + wanted + _MORE, largest}):
        if known < size <= largest:
            bounds, _ = _bounds(session, flt, bound, _MOST)
            quarters, known = [at for at, _ in bounds], _MOST
        if needed + wanted <= size < len(bounds) and size <= largest:
            at, most = bounds[size]
            # Of equals the latest come first, and of quarters with the same bound so do those that are looked at.
            better = sa.or_(value > most, sa.and_(value == most, Call.occurred_at >= at + QUARTER))
            yield Shortlist(anytime, sa.and_(_of_quarters(session, quarters[:size], flt), better), final=False)


def _bounds(session: Session, flt: Filter, bound: Any, size: int) -> tuple[Sequence[tuple[datetime, Any]], int]:
    """The quarters of an hour with the highest bounds, one more than *size*, and the calls of all that there are."""
    state = state_of(session)
    if flt.scope or flt.tags or state is None or not state.complete or not state.has_all_kinds(flt.since):
        return (), 0
    component = "" if flt.provider is not None or flt.model is not None else OVER_MODELS
    bucket, unknown = USAGE_ROLLUPS.c.bucket, sa.literal(UNKNOWN, bound.type)
    most = sa.func.coalesce(sa.func.max(bound), unknown, type_=bound.type)
    calls = sa.func.sum(sa.func.sum(USAGE_ROLLUPS.c.calls)).over()
    query = sa.select(bucket, most, calls).where(USAGE_ROLLUPS.c.component == component, *plain(flt, USAGE_ROLLUPS.c))
    if flt.since is not None:
        query = query.where(bucket >= flt.since - into_quarter(flt.since))
    if flt.until is not None:
        query = query.where(bucket < flt.until)
    query = query.group_by(bucket).order_by(most.desc(), bucket.desc()).limit(size + 1)
    rows = session.execute(query).all()
    return [(at, value) for at, value, _ in rows], int(rows[0][-1]) if rows else 0


def _of_quarters(session: Session, quarters: Sequence[datetime], flt: Filter) -> sa.ColumnElement[bool]:
    """Whether a call is of one of some quarters of an hour, and in the range of a filter. Neighbours are one range."""
    ranges: list[tuple[datetime, datetime]] = []
    for at in sorted(quarters):
        if ranges and ranges[-1][1] == at:
            ranges[-1] = (ranges[-1][0], at + QUARTER)
        else:
            ranges.append((at, at + QUARTER))
    clipped = (
        (since if flt.since is None else max(since, flt.since), until if flt.until is None else min(until, flt.until))
        for since, until in ranges
    )
    within = [sa.and_(Call.occurred_at >= since, Call.occurred_at < until) for since, until in clipped]
    if within and session.get_bind().dialect.name == "sqlite":
        # It reads the whole table for more than some dozens of ranges, and looks each of these up.
        return CALLS.c.id.in_(sa.union_all(*(sa.select(CALLS.c.id).where(one).correlate(None) for one in within)))
    return sa.or_(sa.false(), *within)
