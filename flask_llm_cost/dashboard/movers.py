"""What changed against the compared period: who is new, whose volume moved, and whose mix of models."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from decimal import Decimal
from typing import Final

from flask_llm_cost.dashboard.breakdown import Breakdown, Row
from flask_llm_cost.dashboard.formatting import count, money, plural, signed, signed_money

_MOST: Final = 6
_SMALLEST: Final = Decimal("0.01")


@dataclass(frozen=True, slots=True, kw_only=True)
class Mover:
    """One value whose cost moved.

    :param kind: ``new``, ``volume`` (its calls became more or fewer) or ``mix`` (a call of its came to more or less, by
        other models or longer texts)
    :param why: the arithmetic, for people
    """

    dimension: str
    value: str | None
    label: str
    delta: Decimal
    kind: str
    why: str


#: What each kind is called.
KINDS: Final = {"new": "new", "volume": "volume", "mix": "model mix"}


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
        kind, why = "new", f"{plural(now.calls, 'call')} × {money(now.cost / now.calls, currency)}, none before"
    elif not now.calls:
        kind, why = (
            "volume",
            f"no calls any more, {count(before.calls)} × {money(before.cost / before.calls, currency)} before",
        )
    else:
        each, formerly = now.cost / now.calls, before.cost / before.calls
        # delta = (calls - calls before) x former cost of a call + calls x change of that: the larger part names it.
        more = now.calls - before.calls
        by_volume, by_mix = more * formerly, now.calls * (each - formerly)
        kind = "volume" if abs(by_volume) >= abs(by_mix) else "mix"
        if kind == "mix" and dimension == "model":
            return None  # one model is no mix: its features say why
        calls = f"{signed(more)} {'call' if abs(more) == 1 else 'calls'}"
        dearer = f"{count(now.calls)} × {signed_money(each - formerly, currency)} a call"
        parts = {
            "volume": f"{calls} × {money(formerly, currency)} = {signed_money(by_volume, currency)}",
            "mix": f"{dearer} = {signed_money(by_mix, currency)}",
        }
        why = ", ".join([parts.pop(kind), *parts.values()])
    return Mover(dimension=dimension, value=row.value, label=row.label, delta=delta, kind=kind, why=why)
