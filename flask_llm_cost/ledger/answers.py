"""What answers are made of: sums of calls by their keys, and the rows that people get to see."""

from __future__ import annotations

import itertools
import operator
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import date, datetime, timedelta, timezone
from decimal import Decimal
from types import MappingProxyType
from typing import Any, Final, TypeAlias
from zoneinfo import ZoneInfo

Key: TypeAlias = str | bool | date | datetime | None
Keys: TypeAlias = tuple[Key, ...]
#: Amounts in the order of the measures that were asked for. They add up and can be taken off each other.
Amounts: TypeAlias = list[Any]
Sums: TypeAlias = dict[Keys, Amounts]

_NONE: Final[Mapping[str, Any]] = MappingProxyType({})
_UTC: Final = ZoneInfo("UTC")
_NO_COST: Final = Decimal(0)

#: What a row of spend is made of, by the names of the rollups' columns. The calls come first in every list of measures.
SPEND: Final = (
    "calls", "cost", "input_tokens", "cache_read_tokens", "output_tokens", "total_tokens", "latency_ms", "latency_calls",
    "unpriced_calls", "partial_calls", "priced_calls",
)  # fmt: skip


@dataclass(frozen=True, slots=True, kw_only=True)
class Grouping:
    """How calls are added up.

    :param dimensions: what rows are by
    :param measures: what is added up
    :param zone: whose hours, days and months
    :param only: dimension to the values wanted
    :param tagged: keys of tags that calls have to have
    :param top: only so many rows, the dearest
    """

    dimensions: tuple[str, ...] = ()
    measures: tuple[str, ...]
    zone: ZoneInfo = _UTC
    only: Mapping[str, Collection[Key]] = field(default_factory=lambda: _NONE)
    tagged: Collection[str] = ()
    top: int | None = None


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

    @property
    def nothing_billed(self) -> bool:
        """Whether all of its calls were blocked or refused: there is no cost, and none is missing."""
        return self.calls > 0 and self.cost is None and not self.unpriced_calls


@dataclass(frozen=True, slots=True)
class Cost:
    """What calls cost and nothing else of them, for charts and comparisons: quicker had than :class:`Spend`.

    :param cost: ``None`` when there were calls and none could be priced; else what could be
    """

    calls: int
    cost: Decimal | None
    priced_calls: int


def spend(keys: Mapping[str, Key], amounts: Sequence[Any]) -> Spend:
    """The row of amounts in the order of :data:`SPEND`."""
    calls, cost = int(amounts[0]), amounts[1]
    tokens_in, cached, tokens_out, tokens, latency, timed, unpriced, partial, priced = map(int, amounts[2:])
    return Spend(
        keys=keys,
        calls=calls,
        cost=cost if priced or not calls else None,
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


NOTHING: Final = spend({}, [0, Decimal(0), *[0] * (len(SPEND) - 2)])


def dearest(row: Spend) -> tuple[Any, ...]:
    """Sorts rows by cost, the dearest first, what is unknown last."""
    return (row.cost is None, -(row.cost or 0), -row.calls, str(list(row.keys.values())))


def key_of(name: str, value: Any) -> Key:
    """The key of a dimension from what the database says: days and months are dates, hours have their offset."""
    if name == "day":
        return date.fromisoformat(value)
    if name == "month":
        return date.fromisoformat(value + "-01")
    if name == "hour":
        # With its offset, not its zone: Python takes the two hours of a repeated clock time in one zone for equal.
        return datetime.fromisoformat(value[:13] + ":00").replace(tzinfo=timezone(timedelta(seconds=int(value[13:]))))
    return bool(value) if name == "stream" else value


def keyed(
    rows: Sequence[Any], readers: Sequence[Callable[[Any], Key] | None], measures: Sequence[str]
) -> Iterator[tuple[Keys, Amounts]]:
    """Keys and amounts of rows that have both in this order. By column: row by row takes more than twice as long.

    Amounts are without nulls: what is unknown is known by the count of what is.

    :param readers: what makes a key of what a row says; ``None`` where that is the key
    """
    columns = list(zip(*rows, strict=True))
    parts = [column if read is None else map(read, column) for read, column in zip(readers, columns, strict=False)]
    amounts = [
        [_NO_COST if value is None else value for value in column]
        if name.endswith("cost")
        else [int(value or 0) for value in column]  # which PostgreSQL adds up to decimals
        for name, column in zip(measures, columns[len(readers) :], strict=False)
    ]
    keys = zip(*parts, strict=True) if readers else itertools.repeat(())
    return zip(keys, map(list, zip(*amounts, strict=True)), strict=False)


def add(sums: Sums, more: Sums, sign: int = 1) -> Sums:
    """Add *more* to *sums* in place, or take it off with a *sign* of -1."""
    for keys, amounts in more.items():
        found = sums.get(keys)
        if found is not None:
            put = operator.add if sign == 1 else operator.sub
            found[:] = map(put, found, amounts)
        else:
            sums[keys] = amounts.copy() if sign == 1 else [-amount for amount in amounts]
    return sums


def some(sums: Sums) -> Sums:
    """Without the keys whose calls came to nothing."""
    return {keys: amounts for keys, amounts in sums.items() if amounts[0]}
