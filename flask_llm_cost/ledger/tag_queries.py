"""Which tags there are."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping
from typing import Final

import sqlalchemy as sa
from sqlalchemy.orm import Session

from flask_llm_cost.ledger.filter import Filter
from flask_llm_cost.ledger.models import Call, CallTag
from flask_llm_cost.ledger.queries import totals
from flask_llm_cost.ledger.rollup_answers import known
from flask_llm_cost.ledger.rollup_state import rare_tags, state_of
from flask_llm_cost.ledger.sample_queries import newest

_MOST: Final = 100
_LATEST: Final = 2000


def tag_keys(session: Session, flt: Filter) -> tuple[str, ...]:
    """The keys that calls have, in order: all that there ever were; within a scope those of its latest calls."""
    if flt.scope:
        calls = newest(session, sa.select(Call.id), Filter(scope=flt.scope, currency=None)).limit(_LATEST).subquery()
        query = sa.select(CallTag.key).join(calls, calls.c.id == CallTag.call_id).distinct()
        return tuple(sorted(session.scalars(query)))
    state = state_of(session)
    # The rollups still have those of calls that were pruned.
    pruned = {key for key in state.kept if "," not in key} if state is not None and state.pruned is not None else set()
    # From one key to the next by the index: a plain DISTINCT reads every tag of every call.
    found = sa.select(sa.func.min(CallTag.key).label("key")).cte("found", recursive=True)
    following = sa.select(sa.func.min(CallTag.key)).where(CallTag.key > found.c.key).scalar_subquery()
    found = found.union_all(sa.select(following).where(found.c.key.is_not(None)))
    there = session.scalars(sa.select(found.c.key).where(found.c.key.is_not(None)).limit(_MOST))
    return tuple(sorted(pruned.union(there)))


#: So many calls are read one by one for a part of a page, and no more.
MANY_CALLS: Final = 5_000


def too_many_to_add_up(session: Session, flt: Filter, keys: Iterable[str], calls: int | None = None) -> frozenset[str]:
    """The tags by which sums of a filter's calls are too much for a page that shows other things as well.

    Where rollups cannot answer, for a tag that nearly every call has anew or for one more than they hold together, calls are
    read one by one, and again for each of its figures: all those of one of the filter's tags, or of the range.

    :param calls: how many the filter has, where that is known
    """
    unknown = frozenset(key for key in keys if not known(session, flt, f"tag:{key}"))
    if not unknown:
        return unknown
    tag = flt.a_tag(rare_tags(session))
    read = Filter(
        scope=flt.scope,
        tags={} if tag is None or tag[0] in flt.scope else dict([tag]),
        since=flt.since,
        until=flt.until,
        # There is an index of models by time, and none of those of a tag.
        provider=flt.provider if tag is None else None,
        model=flt.model if tag is None else None,
        currency=flt.currency,
    )
    if calls is None or read != flt:
        calls = totals(session, read).calls
    return unknown if calls > MANY_CALLS else frozenset()


def few_to_read(session: Session, flt: Filter, dimension: str, calls: int) -> bool:
    """Whether only calls can answer by *dimension*, and there are few: what is asked of many in parts is had at one look."""
    return calls <= MANY_CALLS and not known(session, flt, dimension)


def latest_values(session: Session, flt: Filter, keys: Collection[str], most: int) -> Mapping[str, tuple[str, ...]]:
    """Values that the latest calls of a filter have, at most *most* of each key: nothing that needs every call."""
    calls = newest(session, sa.select(Call.id), flt).limit(_LATEST).subquery()
    query = sa.select(CallTag.key, CallTag.value).join(calls, calls.c.id == CallTag.call_id)
    found: dict[str, list[str]] = {key: [] for key in keys}
    for key, value in session.execute(query.where(CallTag.key.in_(keys)).distinct().order_by(CallTag.key, CallTag.value)):
        if len(found[key]) < most:
            found[key].append(value)
    return {key: tuple(values) for key, values in found.items()}
