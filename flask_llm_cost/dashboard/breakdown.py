"""Spend by one dimension: the dearest values, the rest as one row, each with its days and its change."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import date
from decimal import Decimal
from typing import Any, Final, TypeAlias

from sqlalchemy.orm import Session

from flask_llm_cost.dashboard.filters import Selection
from flask_llm_cost.dashboard.formatting import UNTAGGED
from flask_llm_cost.dashboard.sums import cost_together, without
from flask_llm_cost.dashboard.timeline import Timeline
from flask_llm_cost.errors import DetailPrunedError
from flask_llm_cost.ledger import queries
from flask_llm_cost.ledger.filter import Filter
from flask_llm_cost.ledger.queries import Cost, Key, Spend
from flask_llm_cost.ledger.tag_queries import few_to_read, too_many_to_add_up

#: Names for the ids of a tag key, asked once a page: key and values to value and name.
Names: TypeAlias = Callable[[str, Sequence[str]], Mapping[str, str]]

#: So many values are told apart; of more it is only said that there are more.
MOST_VALUES: Final = 100
#: What values cost that had no calls, and those whose calls were pruned.
NO_COST: Final = Cost(0, Decimal(0), 0)
_UNKNOWN: Final = Cost(0, None, 0)


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
    before: Cost
    share: Decimal | None
    days: Mapping[date, Decimal]

    @property
    def cost(self) -> Decimal | None:
        return self.spend.cost


@dataclass(frozen=True, slots=True, kw_only=True)
class Breakdown:
    """The dearest values of a dimension, the dearest first.

    :param rows: as many as were asked for at most, and one more where that is all
    :param others: how many more values there are
    :param endless: whether there are even more than that, uncounted
    :param rest: what those came to; ``None`` where there are no more
    :param total: what all values came to
    :param untagged: the calls without the tag, shown or not; ``None`` where there are none
    :param gone: values of the compared period that have no calls now
    :param options: all values that are told apart, with their names
    """

    dimension: str
    rows: tuple[Row, ...]
    others: int
    endless: bool
    rest: Spend | None
    total: Spend
    untagged: Cost | None
    gone: tuple[Row, ...]
    options: tuple[tuple[str | None, str], ...]

    @property
    def tagged(self) -> bool:
        """Whether any call has the tag at all."""
        return any(row.value is not None for row in self.rows)

    @property
    def values(self) -> int:
        """How many values there are, of which the calls without the tag are none; of very many, how many are told apart."""
        return sum(value is not None or not self.dimension.startswith("tag:") for value, _ in self.options)

    @property
    def rest_share(self) -> Decimal | None:
        """The rest's part of the total's cost."""
        if self.rest is None or self.rest.cost is None or not self.total.cost:
            return None
        return self.rest.cost / self.total.cost

    @property
    def more(self) -> str:
        """How many values are not among the rows: ``93 more``, ``over 93 more``."""
        return f"{'over ' if self.endless else ''}{self.others:,} more"


def breakdown(
    session: Session, selection: Selection, dimension: str, time: Timeline, *, most: int = 7, untagged: bool = False
) -> Breakdown:
    """Spend of the selection by *dimension*, in three to seven queries whatever the number of values.

    Calls without a tag are what is left of all. Its labels are the values themselves, until :func:`named` gives them names.

    :param untagged: whether calls without the tag have a row of their own however little they came to
    """
    flt, total = selection.filter, time.total
    # Of few calls that are read one by one all values are had at one look; of more, whatever is not among the dearest is
    # asked for again.
    few = few_to_read(session, flt, dimension, max(total.calls, time.before.calls))
    now, _ = _ranked(session, flt, dimension, total, None if few else MOST_VALUES + 1)
    before, none = _compared(session, selection, dimension, time, most, now, whole=few)
    bare = now.get(None) if dimension.startswith("tag:") else None
    told = sorted(now, key=lambda value: _dearest(now[value]))
    shown, endless = told[:most], len(now) > MOST_VALUES
    if untagged and bare is not None and None not in shown:
        shown.append(None)
    # A row that says "1 more" takes the room of the one that it hides.
    if len(told) == len(shown) + 1:
        shown = told
    spent, days = _shown(session, selection, dimension, time, shown, whole=len(shown) == len(now))
    shown = [value for value in shown if value in spent]  # one may have been forgotten meanwhile
    missing = [value for value in sorted(before, key=lambda value: _dearest(before[value]))[:most] if value not in now]
    others = min(len(now), MOST_VALUES) - len(shown)
    options = told[:MOST_VALUES]
    labels: dict[Key, str] = {value: value_name(dimension, value) for value in (*options, None, *missing)}
    return Breakdown(
        dimension=dimension,
        rows=tuple(_row(spent[value], labels, before.get(value, none), total, days.get(value, {})) for value in shown),
        others=others,
        endless=endless,
        rest=without(total, map(spent.__getitem__, shown)) if others else None,
        total=total,
        untagged=bare,
        gone=tuple(_row(queries.NOTHING, labels, before[value], total, {}, value) for value in missing),
        options=tuple((None if value is None else str(value), labels[value]) for value in options),
    )


def leading(session: Session, selection: Selection, report_tags: Iterable[str]) -> str:
    """What spend is broken down by where nobody has said: the first report tag, else another one, or the model.

    Where calls are many it is something of which there are sums: nobody waits for what was not asked for.
    """
    flt = selection.filter
    keys = [key for key in report_tags if key not in (*flt.scope, *flt.tags)]
    return next((f"tag:{key}" for key in keys if not too_many_to_add_up(session, flt, [key])), "model")


def _dearest(row: Spend | Cost) -> tuple[bool, Decimal, int]:
    return (row.cost is None, -(row.cost or Decimal(0)), -row.calls)


def _shown(
    session: Session, selection: Selection, dimension: str, time: Timeline, values: Sequence[Key], *, whole: bool
) -> tuple[dict[Key, Spend], dict[Key, Mapping[date, Decimal]]]:
    """What each of the values came to, and cost on each day.

    :param whole: whether these are all values that there are
    """
    flt, zone = selection.filter, selection.period.zone
    bare = dimension.startswith("tag:") and None in values
    asked = [value for value in values if value is not None or not bare]
    spent, days = queries.by_day(session, flt, dimension, zone=zone, only=asked) if asked else ({}, {})
    found: dict[Key, Mapping[date, Decimal]] = {**days}
    if bare:
        left = {day: cost for day, cost in time.costs.items() if day >= selection.period.first}
        tagged = spent.values() if whole else queries.pivot(session, flt, ("day",), zone=zone, tagged=[dimension[4:]])
        costs = days.values() if whole else [{row["day"]: row.cost or Decimal(0)} for row in tagged]
        for day, cost in (item for of in costs for item in of.items()):
            left[day] -= cost
        found[None] = {day: cost for day, cost in left.items() if cost}
        spent[None] = replace(without(time.total, tagged), keys={dimension: None})
    return spent, found


def _compared(
    session: Session,
    selection: Selection,
    dimension: str,
    time: Timeline,
    most: int,
    now: Mapping[Key, Cost],
    *,
    whole: bool,
) -> tuple[dict[Key, Cost], Cost]:
    """What values came to in the compared range: exact for those that are shown of either.

    Last comes what a value came to that is not found in it: nothing, or, where that is pruned, nobody knows.

    :param now: the values of the range, the dearest at least
    :param whole: whether those are all, and all of the compared range are wanted
    """
    flt, compared = selection.filter, selection.compared()
    if time.pruned is not None:
        return {}, _UNKNOWN
    try:
        before, cut = _ranked(session, compared, dimension, time.before, None if whole else MOST_VALUES + 1)
    except DetailPrunedError:
        return {}, _UNKNOWN
    # Beyond the dearest, a value that is not found may still be there.
    shown = sorted(now, key=lambda value: _dearest(now[value]))[: most + 2]
    if cut and (unsure := [value for value in shown if value not in before]):
        found = queries.costs(session, compared, (dimension,), only={dimension: unsure})
        before |= {value: row for (value,), row in found.items()}
    if len(now) > MOST_VALUES and not whole:
        earlier = sorted(before, key=lambda value: _dearest(before[value]))[:most]
        if unsure := [value for value in earlier if value not in now]:
            still = {value for (value,) in queries.costs(session, flt, (dimension,), only={dimension: unsure})}
            before = {value: row for value, row in before.items() if value not in still or value in now}
    return before, NO_COST


def _ranked(session: Session, flt: Filter, dimension: str, total: Spend, top: int | None) -> tuple[dict[Key, Cost], bool]:
    """What values cost, the dearest *top* of them and the calls without the tag, and whether there may be more values.

    :param total: what all of the filter's calls came to
    """
    tagged = [dimension[4:]] if dimension.startswith("tag:") else []
    rows = queries.costs(session, flt, (dimension,), tagged=tagged, top=top)
    found: dict[Key, Cost] = {value: row for (value,), row in rows.items()}
    if tagged:
        part = cost_together((queries.costs(session, flt, (), tagged=tagged) if len(found) == top else rows).values())
        if calls := total.calls - part.calls:
            priced = total.priced_calls - part.priced_calls
            found[None] = Cost(calls, (total.cost or Decimal(0)) - (part.cost or Decimal(0)) if priced else None, priced)
    return found, len(rows) == top


def _row(
    spend: Spend,
    labels: Mapping[Key, str],
    before: Cost,
    total: Spend,
    days: Mapping[date, Decimal],
    value: Any = ...,
) -> Row:
    value = spend.key if value is ... else value
    share = spend.cost / total.cost if spend.cost is not None and total.cost else None
    text = None if value is None else str(value)
    return Row(value=text, label=labels[value], spend=spend, before=before, share=share, days=days)


def named(found: Iterable[Breakdown], names: Names, also: Mapping[str, Iterable[str]] = {}) -> list[Breakdown]:
    """The same with names for the values of tags, all that a page needs of one key asked at once.

    :param also: what else the page has of a tag key
    """
    found = list(found)
    wanted: dict[str, list[str]] = {key: list(values) for key, values in also.items()}
    for item in found:
        if item.dimension.startswith("tag:"):
            rows = [row.value for row in (*item.rows, *item.gone)] + [value for value, _ in item.options]
            wanted.setdefault(item.dimension[4:], []).extend(value for value in rows if value is not None)
    known = {key: names(key, list(dict.fromkeys(values))) for key, values in wanted.items() if values}
    return [_relabelled(item, known.get(item.dimension[4:], {})) for item in found]


def _relabelled(item: Breakdown, names: Mapping[str, str]) -> Breakdown:
    if not names or not item.dimension.startswith("tag:"):
        return item

    def rows(of: tuple[Row, ...]) -> tuple[Row, ...]:
        return tuple(replace(row, label=names.get(row.value, row.label)) if row.value is not None else row for row in of)

    options = tuple((value, names.get(value, label) if value is not None else label) for value, label in item.options)
    return replace(item, rows=rows(item.rows), gone=rows(item.gone), options=options)


def value_name(dimension: str, value: object) -> str:
    """A value as one says it, where it has no name of its own."""
    if value is None:
        return UNTAGGED if dimension.startswith("tag:") else f"(no {dimension_name(dimension)})"
    if dimension == "stream":
        return "streamed" if value else "at once"
    return str(value)


def dimension_name(dimension: str) -> str:
    """``tag:tenant_id`` as one says it: ``tenant``."""
    if not dimension.startswith("tag:"):
        return dimension.replace("_", " ")
    key = dimension[4:]
    return (key.removesuffix("_id") or key).replace("_", " ")
