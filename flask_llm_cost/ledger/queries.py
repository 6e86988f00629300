"""The questions: what was spent, by whom and on what, and how complete the answer is.

Every question takes a :class:`Filter`, and every filter names its scope. What is narrower is made with
:meth:`Filter.narrowed`, which cannot widen or leave the scope. Answers are frozen rows; money is ``Decimal``, unknown is
``None``. No answer adds up different currencies.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta, timezone
from decimal import Decimal
from types import MappingProxyType
from typing import Any, Final
from zoneinfo import ZoneInfo

import sqlalchemy as sa
from sqlalchemy.orm import Session

from flask_llm_cost.errors import DetailPrunedError, QueryError
from flask_llm_cost.ledger.answers import NOTHING, SPEND, Amounts, Cost, Grouping, Key, Keys, Spend, dearest, spend
from flask_llm_cost.ledger.detail import expression_of
from flask_llm_cost.ledger.filter import TIMES, Filter, check_dimension
from flask_llm_cost.ledger.local_time import days_between
from flask_llm_cost.ledger.models import Call
from flask_llm_cost.ledger.rollup_answers import bounded, extent, sums
from flask_llm_cost.ledger.rollup_state import state_of
from flask_llm_cost.ledger.rollup_sums import ESTIMATED_SOURCES, FAILED_OUTCOMES, UNCOUNTED_SOURCES
from flask_llm_cost.ledger.sample_queries import newest

__all__ = [
    "ALL_OF_NOTHING", "ESTIMATED_SOURCES", "FAILED_OUTCOMES", "NOTHING", "UNCOUNTED_SOURCES", "Completeness", "Cost", "Key",
    "Spend", "UnpricedModel", "any_calls", "by_currency", "by_day", "completeness", "costs", "count_values", "extent",
    "over", "pivot", "pruned_before", "totals", "unpriced_models",
]  # fmt: skip

_NONE: Final[Mapping[str, Any]] = MappingProxyType({})
_UTC: Final = ZoneInfo("UTC")


def totals(session: Session, flt: Filter) -> Spend:
    """Everything that the filter lets through, as one row without keys."""
    rows = pivot(session, flt, ())
    return rows[0] if rows else NOTHING


def pivot(
    session: Session,
    flt: Filter,
    dimensions: Sequence[str],
    *,
    zone: ZoneInfo | None = None,
    only: Mapping[str, Collection[Key]] = _NONE,
    tagged: Collection[str] = (),
    top: int | None = None,
) -> list[Spend]:
    """Spend grouped by *dimensions*: columns, ``hour``, ``day``, ``month``, ``tag:<key>``, several at once.

    Rows without calls are left out. Grouped by time first they are in order of time, else the dearest is first. Calls
    without a tag are a row of their own whose key is ``None``.

    :param zone: whose hours, days and months; UTC where none is given
    :param only: dimension to the values wanted, ``None`` among them for the untagged
    :param tagged: keys of tags: only calls that have them
    :param top: only so many rows, the dearest
    :raises QueryError: for an unknown dimension, or for several currencies in one row
    """
    _check(flt, dimensions)
    by = Grouping(dimensions=tuple(dimensions), measures=SPEND, zone=zone or _UTC, only=only, tagged=tagged, top=top)
    found = sums(session, flt, by)
    rows = [spend(dict(zip(dimensions, keys, strict=True)), amounts) for keys, amounts in found.items()]
    if not dimensions:
        return rows
    rows = sorted((row for row in rows if row.calls), key=dearest)[:top]
    if dimensions[0] in TIMES:
        return sorted(rows, key=lambda row: (row.key, *dearest(row)))
    return rows


def costs(
    session: Session,
    flt: Filter,
    dimensions: Sequence[str],
    *,
    zone: ZoneInfo | None = None,
    only: Mapping[str, Collection[Key]] = _NONE,
    tagged: Collection[str] = (),
    top: int | None = None,
) -> dict[Keys, Cost]:
    """What calls cost by *dimensions*, where there are calls, in no order. The parameters are those of :func:`pivot`.

    :param top: at least so many, the dearest; of fewer there are no more
    """
    _check(flt, dimensions)
    measures = ("calls", "cost", "priced_calls")
    by = Grouping(dimensions=tuple(dimensions), measures=measures, zone=zone or _UTC, only=only, tagged=tagged, top=top)
    return {
        keys: Cost(calls, cost if priced else None, priced) for keys, (calls, cost, priced) in sums(session, flt, by).items()
    }


def by_day(
    session: Session, flt: Filter, dimension: str, *, zone: ZoneInfo, only: Collection[Key] | None = None
) -> tuple[dict[Key, Spend], dict[Key, dict[Any, Decimal]]]:
    """Spend by *dimension*, and what each of its values cost on each day, in one question: where calls are read, once.

    :param only: the values wanted
    :raises QueryError: for an unknown dimension, or for several currencies in one row
    """
    _check(flt, (dimension,))
    found: dict[Key, list[Amounts]] = {}
    days: dict[Key, dict[Any, Decimal]] = {}
    wanted = _NONE if only is None else {dimension: only}
    by = Grouping(dimensions=(dimension, "day"), measures=SPEND, zone=zone, only=wanted)
    for (value, day), amounts in sums(session, flt, by).items():
        found.setdefault(value, []).append(amounts)
        days.setdefault(value, {})[day] = amounts[1]
    added = {value: list(map(sum, zip(*rows, strict=True))) for value, rows in found.items()}
    return {value: spend({dimension: value}, amounts) for value, amounts in added.items()}, days


def _check(flt: Filter, dimensions: Sequence[str]) -> None:
    for name in dimensions:
        check_dimension(name)
    if flt.currency is None and "currency" not in dimensions:
        raise QueryError("amounts in different currencies do not add up: filter by currency, or group by it")


def over(session: Session, flt: Filter, unit: str, zone: ZoneInfo) -> dict[Key, Spend]:
    """Spend of every ``hour``, ``day`` or ``month`` of the range in *zone*, empty ones included. Their sum is its total."""
    flt = bounded(session, flt)
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
    by = Grouping(dimensions=("provider", "model"), measures=("calls", "unpriced_calls", "uncounted_calls", "partial_calls"))
    found = [
        UnpricedModel(str(provider), None if model is None else str(model), unpriced - uncounted + partial, partial)
        for (provider, model), (_, unpriced, uncounted, partial) in sums(session, flt, by).items()
    ]
    found.sort(key=lambda item: (-item.calls, item.provider, item.model or ""))
    return [item for item in found if item.calls][:top]


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


_COMPLETENESS: Final = (
    "calls", "partial_calls", "unpriced_calls", "uncounted_calls", "failed_calls", "estimated_calls", "wasted_calls",
    "wasted_priced_calls", "wasted_cost",
)  # fmt: skip


def completeness(session: Session, flt: Filter) -> Completeness:
    """How much of the calls is in the number."""
    found = sums(session, flt, Grouping(measures=_COMPLETENESS)).get(())
    return ALL_OF_NOTHING if found is None else _completeness(dict(zip(_COMPLETENESS, found, strict=True)))


def by_currency(session: Session, flt: Filter) -> dict[str, tuple[Spend, Completeness]]:
    """What a filter's calls came to in each currency, whichever it asks for, and how much of them is in that.

    The currency of most calls is first.
    """
    measures = tuple(dict.fromkeys((*SPEND, *_COMPLETENESS)))
    found = sums(session, flt.narrowed(currency=None), Grouping(dimensions=("currency",), measures=measures))
    return {
        str(currency): (
            spend({"currency": currency}, amounts[: len(SPEND)]),
            _completeness(dict(zip(measures, amounts, strict=True))),
        )
        for (currency,), amounts in sorted(found.items(), key=lambda item: (-item[1][0], item[0]))
    }


def _completeness(amounts: Mapping[str, Any]) -> Completeness:
    calls, partial, missing, uncounted, failed, estimated, wasted_calls, wasted_priced, wasted = (
        amounts[name] for name in _COMPLETENESS
    )
    return Completeness(
        calls=calls,
        priced=calls - partial - missing - failed,
        partial=partial,
        unpriced=missing - uncounted,
        uncounted=uncounted,
        failed=failed,
        estimated=estimated,
        wasted_calls=wasted_calls,
        wasted=wasted if wasted_priced or not wasted_calls else None,
    )


#: How much of no calls is in their number.
ALL_OF_NOTHING: Final = _completeness({**dict.fromkeys(_COMPLETENESS, 0), "wasted_cost": Decimal(0)})


def count_values(session: Session, flt: Filter, dimension: str) -> int:
    """How many different values a column or a tag has among the calls, the untagged not counted."""
    check_dimension(dimension)
    state = state_of(session)
    if state is not None and state.complete and (not dimension.startswith("tag:") or dimension[4:] in state.kept):
        found = sums(session, flt, Grouping(dimensions=(dimension,), measures=("calls",)))
        return sum(value is not None for (value,) in found)
    query = sa.select().select_from(Call).where(*flt.conditions())
    expression, query = expression_of(query, dimension, flt, _UTC)
    return session.scalar(query.add_columns(sa.func.count(sa.distinct(expression)))) or 0


def pruned_before(session: Session) -> datetime | None:
    """The instant before which calls may be gone, pruned; ``None`` where none are. Their rollups are there."""
    state = state_of(session)
    return state.pruned if state is not None else None


def any_calls(session: Session, flt: Filter) -> bool:
    """Whether the filter lets anything through, or may have before calls were pruned."""
    # To find that no call lacks a tag, every one would be looked at.
    if None not in flt.tags.values():
        if session.scalar(newest(session, sa.select(Call.id), flt).limit(1)) is not None:
            return True
        if pruned_before(session) is None:
            return False
    try:
        return bool(sums(session, flt, Grouping(measures=("calls",))).get((), [0])[0])
    except DetailPrunedError:
        return True
