"""Sums of calls from the calls themselves, for what the rollups do not hold."""

from __future__ import annotations

import functools
from collections.abc import Collection, Mapping
from datetime import datetime
from decimal import Decimal
from types import MappingProxyType
from typing import Any, Final
from zoneinfo import ZoneInfo

import sqlalchemy as sa
from sqlalchemy.orm import Session, aliased

from flask_llm_cost.ledger.answers import Grouping, Key, Sums, key_of, keyed
from flask_llm_cost.ledger.columns import Money, total
from flask_llm_cost.ledger.filter import COLUMNS, TIMES, Filter
from flask_llm_cost.ledger.local_time import local_text, offset_text
from flask_llm_cost.ledger.models import Call, CallTag
from flask_llm_cost.ledger.rollup_state import rare_tags
from flask_llm_cost.ledger.rollup_sums import ESTIMATED_SOURCES, FAILED_OUTCOMES, UNCOUNTED_SOURCES

_TEXT_LENGTH: Final = {"hour": 13, "day": 10, "month": 7}


def _count(condition: sa.ColumnElement[bool]) -> sa.ColumnElement[int]:
    return sa.func.sum(sa.case((condition, 1), else_=0))


_UNPRICED: Final = Call.cost_status == "unpriced"
_UNCOUNTED: Final = Call.usage_source.in_(UNCOUNTED_SOURCES)
_FAILED: Final = Call.outcome.in_(FAILED_OUTCOMES)
_WASTED: Final = Call.outcome.in_(("interrupted", "error"))

#: The measures of the rollups, from the calls: :mod:`~flask_llm_cost.ledger.rollup_sums` says the same of one call.
MEASURES: Final[Mapping[str, sa.ColumnElement[Any]]] = MappingProxyType(
    {
        "calls": sa.func.count(),
        "cost": total(Call.total_cost),
        "input_tokens": sa.func.sum(Call.input_tokens),
        "cache_read_tokens": sa.func.sum(Call.cache_read_tokens),
        "output_tokens": sa.func.sum(Call.output_tokens),
        "total_tokens": sa.func.sum(Call.total_tokens),
        "latency_ms": sa.func.sum(Call.latency_ms),
        "latency_calls": sa.func.count(Call.latency_ms),
        # What failed and reported nothing is not missing from the sum.
        "unpriced_calls": _count(sa.and_(_UNPRICED, ~sa.and_(_FAILED, _UNCOUNTED))),
        "uncounted_calls": _count(sa.and_(_UNPRICED, _UNCOUNTED, ~_FAILED)),
        "partial_calls": _count(Call.cost_status == "partial"),
        "failed_calls": _count(sa.and_(_UNPRICED, _UNCOUNTED, _FAILED)),
        "estimated_calls": _count(sa.and_(~_UNPRICED, Call.usage_source.in_(ESTIMATED_SOURCES))),
        "priced_calls": sa.func.count(Call.total_cost),
        "wasted_calls": _count(_WASTED),
        "wasted_priced_calls": _count(sa.and_(_WASTED, Call.total_cost.is_not(None))),
        "wasted_cost": total(sa.case((_WASTED, Call.total_cost))),
    }
)


def from_calls(session: Session, flt: Filter, by: Grouping) -> Sums:
    """The sums of a filter's calls. By time only of a filter with both ends."""
    query = _of_calls(session, flt)
    labels = []
    for position, name in enumerate(by.dimensions):
        expression, query = expression_of(query, name, flt, by.zone)
        labels.append(f"k{position}")
        query = query.add_columns(expression.label(labels[-1]))
        if name in by.only:
            query = query.where(among(expression, by.only[name]))
        if name[4:] in by.tagged:
            query = query.where(expression.is_not(None))
    for key in by.tagged:
        if f"tag:{key}" not in by.dimensions:
            query = query.where(flt.has_tag(key))
    # By label: PostgreSQL takes two renderings of one expression with parameters for two expressions.
    query = query.add_columns(*(MEASURES[name] for name in by.measures)).group_by(*(sa.text(label) for label in labels))
    if by.top is not None:
        cost = sa.func.coalesce(MEASURES["cost"], sa.literal(Decimal(-1), Money))
        query = query.order_by(cost.desc(), sa.func.count().desc()).order_by(*(sa.text(label) for label in labels))
        query = query.limit(by.top)
    readers = [functools.partial(key_of, name) for name in by.dimensions]
    return dict(keyed(session.execute(query).all(), readers, by.measures))


def _of_calls(session: Session, flt: Filter, *columns: Any) -> sa.Select[Any]:
    """A select of a filter's calls, found by a tag where it asks for one."""
    # An explicit join: what stands after another one's outer join is looked at last by SQLite, whatever it is.
    tag, calls = flt.a_tag(rare_tags(session)), Call.__table__
    source = calls if tag is None else calls.join(CallTag.__table__, CallTag.call_id == Call.id)
    return sa.select(*columns).select_from(source).where(*flt.conditions(joined=tag))


def extent(session: Session, flt: Filter) -> tuple[datetime | None, datetime | None]:
    """When the first and the last of the calls were made; ``None`` where there are none."""
    query = _of_calls(session, flt, sa.func.min(Call.occurred_at), sa.func.max(Call.occurred_at))
    first, last = session.execute(query).one()
    return first, last


def expression_of(query: sa.Select[Any], name: str, flt: Filter, zone: ZoneInfo) -> tuple[Any, sa.Select[Any]]:
    """What a dimension is in SQL, and *query* with the tag that it may need."""
    if name in COLUMNS:
        return COLUMNS[name], query
    if name in TIMES:
        assert flt.since is not None
        assert flt.until is not None
        return time_text(Call.occurred_at, name, zone, flt.since, flt.until), query
    tag = aliased(CallTag)
    # Its own copy of the time besides: where all calls of a range are read, all tags of other ranges would be as well.
    joined = [tag.call_id == Call.id, tag.key == name[4:]]
    joined += [tag.occurred_at >= flt.since] if flt.since is not None else []
    joined += [tag.occurred_at < flt.until] if flt.until is not None else []
    return tag.value, query.outerjoin(tag, sa.and_(*joined))


def time_text(column: Any, name: str, zone: ZoneInfo, since: datetime, until: datetime) -> Any:
    """The hour, day or month of a time on the clocks of *zone*, as text that :func:`key_of` reads."""
    text = sa.func.substr(local_text(column, zone, since, until), 1, _TEXT_LENGTH[name], type_=sa.String())
    # An hour that the clock shows twice is two hours.
    return text.concat(offset_text(column, zone, since, until)) if name == "hour" else text


def among(expression: Any, values: Collection[Key]) -> sa.ColumnElement[bool]:
    """Whether a dimension has one of the values, ``None`` among them for the untagged."""
    known = expression.in_([value for value in values if value is not None])
    return sa.or_(known, expression.is_(None)) if None in values else known
