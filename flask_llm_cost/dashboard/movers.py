"""What changed against the compared period: who is new, who stopped, whose volume and whose price of a call moved."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from decimal import Decimal
from typing import Final

from flask_llm_cost.dashboard.breakdown import Breakdown, Row
from flask_llm_cost.dashboard.formatting import count, money

_MOST: Final = 6
_SMALLEST: Final = Decimal("0.01")


@dataclass(frozen=True, slots=True, kw_only=True)
class Mover:
    """One value whose cost moved.

    :param kind: ``new``, ``gone``, ``volume`` (its calls became more or fewer) or ``per_call`` (each costs more or less)
    :param why: the arithmetic, for people
    """

    dimension: str
    value: str | None
    label: str
    delta: Decimal
    kind: str
    why: str


def movers(found: Iterable[Breakdown], currency: str = "USD") -> tuple[Mover, ...]:
    """The values that moved most, whatever their dimension, the furthest first."""
    all_of_them = [
        mover
        for item in found
        for row in (*item.rows, *item.gone)
        if row.value is not None and (mover := _mover(item.dimension, row, currency)) is not None
    ]
    return tuple(sorted(all_of_them, key=lambda item: (-abs(item.delta), item.dimension, item.label))[:_MOST])


def _mover(dimension: str, row: Row, currency: str) -> Mover | None:
    now, before = row.spend, row.before
    if now.cost is None or before.cost is None or abs(delta := now.cost - before.cost) < _SMALLEST:
        return None
    if not before.calls:
        kind, why = "new", f"new: {count(now.calls)} calls, none before"
    elif not now.calls:
        kind, why = "gone", f"no calls any more, {count(before.calls)} before"
    else:
        each, formerly = now.cost / now.calls, before.cost / before.calls
        # delta = (calls - calls before) x former cost of a call + calls x change of that: the larger part names it.
        by_volume, by_price = (now.calls - before.calls) * formerly, now.calls * (each - formerly)
        kind = "volume" if abs(by_volume) >= abs(by_price) else "per_call"
        calls = f"{count(before.calls)} → {count(now.calls)} calls"
        price = f"{money(formerly, currency)} → {money(each, currency)} each"
        why = f"{calls}, {price}" if kind == "volume" else f"{price}, {calls}"
    return Mover(dimension=dimension, value=row.value, label=row.label, delta=delta, kind=kind, why=why)
