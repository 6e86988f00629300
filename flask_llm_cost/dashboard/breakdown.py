"""Spend by one dimension: the dearest values, the rest as one row, each with its days and its change."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import date
from decimal import Decimal
from typing import TypeAlias

from sqlalchemy.orm import Session

from flask_llm_cost.dashboard.filters import Selection
from flask_llm_cost.dashboard.formatting import UNTAGGED
from flask_llm_cost.ledger import queries
from flask_llm_cost.ledger.queries import Spend

#: Names for the ids of a tag key, asked once a page: key and values to value and name.
Names: TypeAlias = Callable[[str, Sequence[str]], Mapping[str, str]]


@dataclass(frozen=True, slots=True, kw_only=True)
class Row:
    """One value of a dimension.

    :param value: ``None`` for the calls without the tag
    :param label: its name, for people
    :param cost: ``None`` when none of its calls could be priced
    :param before: what it came to in the compared period
    :param share: of the total's cost, 0 to 1; ``None`` where either is unknown
    :param days: cost of each day up to today
    """

    value: str | None
    label: str
    spend: Spend
    before: Spend
    share: Decimal | None
    days: Mapping[date, Decimal]

    @property
    def cost(self) -> Decimal | None:
        return self.spend.cost


@dataclass(frozen=True, slots=True, kw_only=True)
class Breakdown:
    """The dearest values of a dimension, the dearest first.

    :param rows: at most as many as were asked for
    :param others: how many more values there are
    :param rest: what those came to; ``None`` where there are no more
    :param gone: values of the compared period that have no calls now
    """

    dimension: str
    rows: tuple[Row, ...]
    others: int
    rest: Decimal | None
    rest_calls: int
    gone: tuple[Row, ...]

    @property
    def tagged(self) -> bool:
        """Whether any call has the tag at all."""
        return any(row.value is not None for row in self.rows)


def breakdown(
    session: Session,
    selection: Selection,
    dimension: str,
    total: Spend,
    names: Names,
    *,
    most: int = 7,
) -> Breakdown:
    """Spend of the selection by *dimension*, in four or five queries whatever the number of values."""
    zone, flt = selection.period.zone, selection.filter
    top = queries.pivot(session, flt, (dimension,), top=most + 1)
    shown = top[:most]
    values = [row.key for row in shown]
    wanted = {dimension: values}
    before = {row.key: row for row in queries.pivot(session, selection.compared(), (dimension,), only=wanted)}
    days: dict[object, dict[date, Decimal]] = {}
    for row in queries.pivot(session, flt, ("day", dimension), zone=zone, only=wanted):
        days.setdefault(row[dimension], {})[row.day] = row.cost or Decimal(0)  # type: ignore[index] # days are dates
    others = 0
    if len(top) > most:
        others = queries.count_values(session, flt, dimension) - sum(value is not None for value in values)
        # The untagged may be among the rest.
        others += int(dimension.startswith("tag:") and None not in values and _any_without(session, selection, dimension))
    earlier = queries.pivot(session, selection.compared(), (dimension,), top=most)
    missing = [row.key for row in earlier if row.key not in values]
    if missing:
        still = {row.key for row in queries.pivot(session, flt, (dimension,), only={dimension: missing})}
        missing = [value for value in missing if value not in still]
    labels = _labels(dimension, [*values, *missing], names)
    known = [row.cost for row in shown if row.cost is not None]
    return Breakdown(
        dimension=dimension,
        rows=tuple(_row(row, labels, before.get(row.key, queries.NOTHING), total, days.get(row.key, {})) for row in shown),
        others=others,
        rest=(total.cost or Decimal(0)) - sum(known, Decimal(0)) if others else None,
        rest_calls=total.calls - sum(row.calls for row in shown),
        gone=tuple(_row(queries.NOTHING, labels, row, total, {}, row.key) for row in earlier if row.key in missing),
    )


def _any_without(session: Session, selection: Selection, dimension: str) -> bool:
    return queries.any_calls(session, selection.filter.narrowed(tags={dimension[4:]: None}))


def _row(
    spend: Spend,
    labels: Mapping[object, str],
    before: Spend,
    total: Spend,
    days: Mapping[date, Decimal],
    value: object = ...,
) -> Row:
    value = spend.key if value is ... else value
    share = spend.cost / total.cost if spend.cost is not None and total.cost else None
    text = None if value is None else str(value)
    return Row(value=text, label=labels[value], spend=spend, before=before, share=share, days=days)


def _labels(dimension: str, values: Iterable[object], names: Names) -> dict[object, str]:
    if not dimension.startswith("tag:"):
        return {value: "(no model)" if value is None else str(value) for value in values}
    known = [value for value in values if isinstance(value, str)]
    named = names(dimension[4:], known) if known else {}
    return {None: UNTAGGED, **{value: named.get(value) or value for value in known}}


def dimension_name(dimension: str) -> str:
    """``tag:tenant_id`` as one says it: ``tenant``."""
    if not dimension.startswith("tag:"):
        return dimension
    key = dimension[4:]
    return (key.removesuffix("_id") or key).replace("_", " ")
