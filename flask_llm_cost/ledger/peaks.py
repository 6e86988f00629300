"""Where the dearest and the slowest calls are: the rollups of each quarter of an hour know what none of its calls exceeds.

There is no index of costs or of latencies, and a range of ten million calls takes seconds to sort. The quarters whose bounds
are highest have what is wanted, and the next bound says when there is nothing better anywhere else.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace
from datetime import datetime
from decimal import Decimal
from typing import Any, Final, TypeAlias

import sqlalchemy as sa
from sqlalchemy.orm import Session

from flask_llm_cost.ledger.bulk import USAGE_ROLLUPS
from flask_llm_cost.ledger.filter import Filter
from flask_llm_cost.ledger.models import Call
from flask_llm_cost.ledger.pieces import QUARTER, into_quarter, plain
from flask_llm_cost.ledger.rollup_state import state_of
from flask_llm_cost.ledger.rollup_sums import OVER_MODELS

#: A filter and a further condition, and whether no other calls can be wanted, however few it finds.
Part: TypeAlias = tuple[Filter, sa.ColumnElement[bool], bool]

#: What is not known is below everything.
UNKNOWN: Final = -1
#: Quarters that are read beside one for each call that is wanted.
_MORE: Final = 14
#: More quarters are no quicker than the whole range.
_MOST: Final = 400


def near_the_top(
    session: Session,
    flt: Filter,
    bound: Any,
    value: sa.ColumnElement[Any],
    wanted: int,
    place: Decimal | int | None,
    *,
    backwards: bool,
) -> Iterator[Part]:
    """Parts of a filter's calls that have the highest by *value*, of which few are looked at first, then more.

    There are none where nothing better is known than to look at all calls.

    :param bound: the column of the rollups that no call's value exceeds
    :param wanted: how many calls are wanted
    :param place: the value of the call after which they come, or, *backwards*, before which
    """
    bounds = _bounds(session, flt, bound)
    # Calls below the place may be in any quarter that reaches above it.
    needed = 0 if place is None else sum(most >= place for _, most in bounds)
    # PostgreSQL would look up the whole range besides.
    anytime = replace(flt, since=None, until=None)
    if backwards:
        if needed < len(bounds):
            yield anytime, _within([at for at, _ in bounds[:needed]], flt), True
        return
    for size in (needed + wanted + _MORE, _MOST):
        if needed <= size < len(bounds):
            at, most = bounds[size]
            # Of equals the latest come first, and of quarters with the same bound so do those that are looked at.
            better = sa.or_(value > most, sa.and_(value == most, Call.occurred_at >= at + QUARTER))
            yield anytime, sa.and_(_within([at for at, _ in bounds[:size]], flt), better), False


def _bounds(session: Session, flt: Filter, bound: Any) -> Sequence[tuple[datetime, Any]]:
    """Quarters of an hour with their bounds, the highest first, one more than are read at most."""
    state = state_of(session)
    if flt.scope or flt.tags or state is None or not state.complete or not state.has_all_kinds(flt.since):
        return ()
    component = "" if flt.provider is not None or flt.model is not None else OVER_MODELS
    bucket, unknown = USAGE_ROLLUPS.c.bucket, sa.literal(UNKNOWN, bound.type)
    most = sa.func.coalesce(sa.func.max(bound), unknown, type_=bound.type)
    query = sa.select(bucket, most).where(USAGE_ROLLUPS.c.component == component, *plain(flt, USAGE_ROLLUPS.c))
    if flt.since is not None:
        query = query.where(bucket >= flt.since - into_quarter(flt.since))
    if flt.until is not None:
        query = query.where(bucket < flt.until)
    query = query.group_by(bucket).order_by(most.desc(), bucket.desc()).limit(_MOST + 1)
    return [(at, value) for at, value in session.execute(query)]


def _within(quarters: Sequence[datetime], flt: Filter) -> sa.ColumnElement[bool]:
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
    return sa.or_(sa.false(), *(sa.and_(Call.occurred_at >= since, Call.occurred_at < until) for since, until in clipped))
