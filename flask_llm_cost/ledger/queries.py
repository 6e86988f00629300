"""The questions: what was spent, by whom and on what, and how complete the answer is.

Every question takes a :class:`Filter`, and every filter names its scope. What is narrower is made with
:meth:`Filter.narrowed`, which cannot widen or leave the scope. Answers are frozen rows; money is ``Decimal``, unknown is
``None``. No answer adds up different currencies.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import UTC, date, datetime, timedelta, timezone
from decimal import Decimal
from types import MappingProxyType
from typing import Any, Final, TypeAlias
from zoneinfo import ZoneInfo

import sqlalchemy as sa
from sqlalchemy.orm import Session, aliased

from flask_llm_cost.errors import QueryError
from flask_llm_cost.ledger.columns import Money
from flask_llm_cost.ledger.filter import COLUMNS, MODEL, TIMES, Filter, check_dimension
from flask_llm_cost.ledger.local_time import days_between, local_text, offset_text
from flask_llm_cost.ledger.models import Call, CallTag

_NONE: Final[Mapping[str, Any]] = MappingProxyType({})
Key: TypeAlias = str | bool | date | datetime | None

_TEXT_LENGTH: Final = {"hour": 13, "day": 10, "month": 7}

#: Usage that was counted here, not reported by the provider to its end.
ESTIMATED_SOURCES: Final = ("estimated", "stream_partial")
#: Nothing was counted, or not yet.
UNCOUNTED_SOURCES: Final = ("unknown", "pending")
FAILED_OUTCOMES: Final = ("error", "blocked")


@dataclass(frozen=True, slots=True, kw_only=True)
class Spend:
    """What calls came to. ``row["model"]`` and ``row.model`` are its keys, ``row["tag:feature"]`` a tag's value.

    :param keys: what it was grouped by, to its value; ``None`` for a tag that the calls do not have
    :param cost: ``None`` when there were calls and none could be priced; else what could be
    :param input_tokens: all input, cached included
    :param avg_latency_ms: mean over the calls whose latency is known
    :param unpriced_calls: calls whose cost is unknown and missing from ``cost``; refused calls that reported nothing are not
    :param partial_calls: calls of whose bill a part is missing from ``cost``
    """

    keys: Mapping[str, Key] = field(default_factory=lambda: _NONE)
    calls: int
    cost: Decimal | None
    input_tokens: int
    cache_read_tokens: int
    output_tokens: int
    total_tokens: int
    avg_latency_ms: float | None
    unpriced_calls: int
    partial_calls: int
    priced_calls: int
    timed_calls: int

    def __getitem__(self, name: str) -> Any:
        if name in self.keys:
            return self.keys[name]
        if name in self.__slots__:
            return getattr(self, name)
        raise KeyError(name)

    def __getattr__(self, name: str) -> Key:
        if not name.startswith("_") and name in self.keys:
            return self.keys[name]
        raise AttributeError(name)

    @property
    def key(self) -> Key:
        """The first of its keys."""
        return next(iter(self.keys.values()))


NOTHING: Final = Spend(
    calls=0,
    cost=Decimal(0),
    input_tokens=0,
    cache_read_tokens=0,
    output_tokens=0,
    total_tokens=0,
    avg_latency_ms=None,
    unpriced_calls=0,
    partial_calls=0,
    priced_calls=0,
    timed_calls=0,
)


def _count(condition: sa.ColumnElement[bool]) -> sa.ColumnElement[int]:
    return sa.func.sum(sa.case((condition, 1), else_=0))


_COST: Final[sa.ColumnElement[Any]] = sa.func.sum(Call.total_cost)
_MEASURES: Final[tuple[sa.ColumnElement[Any], ...]] = (
    sa.func.count(),
    _COST,
    sa.func.sum(Call.input_tokens),
    sa.func.sum(Call.cache_read_tokens),
    sa.func.sum(Call.output_tokens),
    sa.func.sum(Call.total_tokens),
    sa.func.sum(Call.latency_ms),
    sa.func.count(Call.latency_ms),
    # What failed and reported nothing is not missing from the sum.
    _count(
        sa.and_(
            Call.cost_status == "unpriced",
            sa.or_(Call.outcome.not_in(FAILED_OUTCOMES), Call.usage_source.not_in(UNCOUNTED_SOURCES)),
        )
    ),
    _count(Call.cost_status == "partial"),
    sa.func.count(Call.total_cost),
)


def _spend(keys: Mapping[str, Key], measures: Sequence[Any]) -> Spend:
    calls, cost = int(measures[0]), measures[1]
    tokens_in, cached, tokens_out, tokens, latency, timed, unpriced, partial, priced = (int(n or 0) for n in measures[2:])
    return Spend(
        keys=keys,
        calls=calls,
        cost=cost if calls else Decimal(0),
        input_tokens=tokens_in,
        cache_read_tokens=cached,
        output_tokens=tokens_out,
        total_tokens=tokens,
        avg_latency_ms=latency / timed if timed else None,
        unpriced_calls=unpriced,
        partial_calls=partial,
        priced_calls=priced,
        timed_calls=timed,
    )


def totals(session: Session, flt: Filter) -> Spend:
    """Everything that the filter lets through, as one row without keys."""
    return pivot(session, flt, ())[0]


def pivot(
    session: Session,
    flt: Filter,
    dimensions: Sequence[str],
    *,
    zone: ZoneInfo | None = None,
    only: Mapping[str, Collection[Key]] = _NONE,
    top: int | None = None,
) -> list[Spend]:
    """Spend grouped by *dimensions*: columns, ``hour``, ``day``, ``month``, ``tag:<key>``, several at once.

    Rows without calls are left out. Grouped by time first they are in order of time, else the dearest is first. Calls
    without a tag are a row of their own whose key is ``None``.

    :param zone: whose hours, days and months; UTC where none is given
    :param only: dimension to the values wanted, ``None`` among them for the untagged
    :param top: only so many rows, the dearest
    :raises QueryError: for an unknown dimension, or for several currencies in one row
    """
    for name in dimensions:
        check_dimension(name)
    if flt.currency is None and "currency" not in dimensions:
        raise QueryError("amounts in different currencies do not add up: filter by currency, or group by it")
    if {*dimensions} & {*TIMES}:
        flt = _bounded(session, flt)
    zone = zone or ZoneInfo("UTC")
    query = sa.select().select_from(Call).where(*flt.conditions())
    labels = []
    for position, name in enumerate(dimensions):
        expression, query = _expression(query, name, flt, zone)
        labels.append(f"k{position}")
        query = query.add_columns(expression.label(labels[-1]))
        if name in only:
            query = query.where(_among(expression, only[name]))
    # By label: PostgreSQL takes two renderings of one expression with parameters for two expressions.
    query = query.add_columns(*_MEASURES).group_by(*(sa.text(label) for label in labels))
    if top is not None:
        query = query.order_by(sa.func.coalesce(_COST, sa.literal(Decimal(-1), Money)).desc(), sa.func.count().desc())
        query = query.order_by(*(sa.text(label) for label in labels)).limit(top)
    rows = []
    for values in session.execute(query):
        keys = {name: _key(name, value) for name, value in zip(dimensions, values, strict=False)}
        rows.append(_spend(keys, values[len(labels) :]))
    if dimensions and dimensions[0] in TIMES:
        return sorted(rows, key=lambda row: (row.key, *_dearest(row)))
    return sorted(rows, key=_dearest)


def _dearest(row: Spend) -> tuple[Any, ...]:
    return (row.cost is None, -(row.cost or 0), -row.calls, str(list(row.keys.values())))


def _bounded(session: Session, flt: Filter) -> Filter:
    """The filter with both ends, because a zone's clock changes are looked up for a range."""
    if flt.since is not None and flt.until is not None:
        return flt
    first, last = extent(session, flt)
    now = datetime.now(UTC)
    since = flt.since or first or now
    return replace(flt, since=since, until=flt.until or max((last or since) + timedelta(microseconds=1), since))


def _expression(query: sa.Select[Any], name: str, flt: Filter, zone: ZoneInfo) -> tuple[Any, sa.Select[Any]]:
    if name in COLUMNS:
        return COLUMNS[name], query
    if name in TIMES:
        assert flt.since is not None
        assert flt.until is not None
        text = sa.func.substr(
            local_text(Call.occurred_at, zone, flt.since, flt.until), 1, _TEXT_LENGTH[name], type_=sa.String()
        )
        # An hour that the clock shows twice is two hours.
        return text.concat(offset_text(Call.occurred_at, zone, flt.since, flt.until)) if name == "hour" else text, query
    tag = aliased(CallTag)
    return tag.value, query.outerjoin(tag, sa.and_(tag.call_id == Call.id, tag.key == name[4:]))


def _among(expression: Any, values: Collection[Key]) -> sa.ColumnElement[bool]:
    known = expression.in_([value for value in values if value is not None])
    return sa.or_(known, expression.is_(None)) if None in values else known


def _key(name: str, value: Any) -> Key:
    if name == "day":
        return date.fromisoformat(value)
    if name == "month":
        return date.fromisoformat(value + "-01")
    if name == "hour":
        # With its offset, not its zone: Python takes the two hours of a repeated clock time in one zone for equal.
        return datetime.fromisoformat(value[:13] + ":00").replace(tzinfo=timezone(timedelta(seconds=int(value[13:]))))
    return bool(value) if name == "stream" else value


def over(session: Session, flt: Filter, unit: str, zone: ZoneInfo) -> dict[Key, Spend]:
    """Spend of every ``hour``, ``day`` or ``month`` of the range in *zone*, empty ones included. Their sum is its total."""
    flt = _bounded(session, flt)
    assert flt.since is not None
    assert flt.until is not None
    found = {row.key: row for row in pivot(session, flt, (unit,), zone=zone)}
    empty = {at: replace(NOTHING, keys={unit: at}) for at in _units(unit, flt.since, flt.until, zone)}
    # Found ones besides: where a clock is moved by half an hour, an hour of calls starts at no full hour.
    return dict(sorted({**empty, **found}.items(), key=_in_time))


def _in_time(item: tuple[Key, Spend]) -> Any:
    return item[0]


def _units(unit: str, since: datetime, until: datetime, zone: ZoneInfo) -> Iterator[Key]:
    if unit == "day":
        yield from days_between(since, until, zone)
    elif unit == "month":
        yield from dict.fromkeys(day.replace(day=1) for day in days_between(since, until, zone))
    else:
        local = since.astimezone(zone)
        instant = since.astimezone(UTC) - timedelta(
            minutes=local.minute, seconds=local.second, microseconds=local.microsecond
        )
        while instant < until:
            offset = instant.astimezone(zone).utcoffset()
            assert offset is not None
            yield instant.astimezone(timezone(offset))
            instant += timedelta(hours=1)


@dataclass(frozen=True, slots=True)
class UnpricedModel:
    """A model of which at least one counted thing has no price. *partial* calls are priced in part."""

    provider: str
    model: str | None
    calls: int
    partial: int


def unpriced_models(session: Session, flt: Filter, *, top: int = 50) -> list[UnpricedModel]:
    """Models without a price, most calls first. Calls that reported no usage are not their model's fault."""
    rows = session.execute(
        sa.select(Call.provider, MODEL.label("k1"), sa.func.count().label("calls"), _count(Call.cost_status == "partial"))
        .where(*flt.conditions(), Call.cost_status.in_(("unpriced", "partial")))
        .where(Call.usage_source.not_in(UNCOUNTED_SOURCES))
        .group_by(Call.provider, sa.text("k1"))
        .order_by(sa.text("calls DESC"), Call.provider, sa.text("k1"))
        .limit(top)
    )
    return [UnpricedModel(provider, model, calls, int(partial)) for provider, model, calls, partial in rows]


@dataclass(frozen=True, slots=True, kw_only=True)
class Completeness:
    """How much of the calls is in the number. The parts are disjoint and add up to ``calls``.

    :param priced: to the last part, explicit zero prices included
    :param partial: a part of the bill has no price; the amount is a lower bound
    :param unpriced: counted, without a price
    :param uncounted: went through, but no usage is known
    :param failed: refused or failed, and nothing was reported: nothing is missing for them
    :param estimated: of the priced and partial ones, those whose stream was cut or whose usage was estimated
    :param wasted: what interrupted and failed calls cost all the same; ``None`` where it is not known
    """

    calls: int
    priced: int
    partial: int
    unpriced: int
    uncounted: int
    failed: int
    estimated: int
    wasted_calls: int
    wasted: Decimal | None

    @property
    def expected(self) -> int:
        """Calls that ought to have a price."""
        return self.calls - self.failed


def completeness(session: Session, flt: Filter) -> Completeness:
    """How much of the calls is in the number, in one query."""
    counts = dict.fromkeys(("priced", "partial", "unpriced", "uncounted", "failed", "estimated"), 0)
    calls = wasted_calls = 0
    wasted: list[Decimal] = []
    for row in pivot(session, flt, ("cost_status", "usage_source", "outcome")):
        status, source, outcome = row.keys.values()
        calls += row.calls
        if status == "unpriced" and source in UNCOUNTED_SOURCES:
            part = "failed" if outcome in FAILED_OUTCOMES else "uncounted"
        else:
            part = {"partial": "partial", "unpriced": "unpriced"}.get(str(status), "priced")
        counts[part] += row.calls
        if part in ("priced", "partial") and source in ESTIMATED_SOURCES:
            counts["estimated"] += row.calls
        if outcome in ("interrupted", "error"):
            wasted_calls += row.calls
            wasted += [row.cost] if row.cost is not None else []
    known = sum(wasted, Decimal(0)) if wasted or not wasted_calls else None
    return Completeness(calls=calls, wasted_calls=wasted_calls, wasted=known, **counts)


def count_values(session: Session, flt: Filter, dimension: str) -> int:
    """How many different values a column or a tag has among the calls, the untagged not counted."""
    check_dimension(dimension)
    query = sa.select().select_from(Call).where(*flt.conditions())
    expression, query = _expression(query, dimension, flt, ZoneInfo("UTC"))
    return session.scalar(query.add_columns(sa.func.count(sa.distinct(expression)))) or 0


_MEASURED: Final[Mapping[str, Any]] = MappingProxyType(
    {"total_cost": Call.total_cost, "latency_ms": Call.latency_ms, "first_token_ms": Call.first_token_ms}
)


def percentile(session: Session, flt: Filter, measure: str, share: float, known: int) -> Decimal | int | None:
    """The value that *share* of the calls do not exceed, by nearest rank.

    :param measure: ``total_cost``, ``latency_ms`` or ``first_token_ms``
    :param known: for how many calls it is known, where the caller has that already; 0 answers ``None``
    """
    column: Any = {"total_cost": Call.total_cost, "latency_ms": Call.latency_ms, "first_token_ms": Call.first_token_ms}[
        measure
    ]
    if known <= 0:
        return None
    rank = max(0, math.ceil(share * known) - 1)
    query = sa.select(column).where(*flt.conditions(), column.is_not(None)).order_by(column).offset(rank).limit(1)
    found: Decimal | int | None = session.scalar(query)
    return found


def count_known(session: Session, flt: Filter, measure: str) -> int:
    """For how many calls ``latency_ms``, ``first_token_ms`` or ``total_cost`` is known."""
    return session.scalar(sa.select(sa.func.count(_MEASURED[measure])).where(*flt.conditions())) or 0


def extent(session: Session, flt: Filter) -> tuple[datetime | None, datetime | None]:
    """When the first and the last of the calls were made; ``None`` where there are none."""
    query = sa.select(sa.func.min(Call.occurred_at), sa.func.max(Call.occurred_at)).where(*flt.conditions())
    first, last = session.execute(query).one()
    return first, last


def any_calls(session: Session, flt: Filter) -> bool:
    """Whether the filter lets anything through."""
    return session.scalar(sa.select(sa.literal(1)).select_from(Call).where(*flt.conditions()).limit(1)) is not None
