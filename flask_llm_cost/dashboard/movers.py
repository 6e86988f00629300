"""Who explains the number, and what changed against the compared period: new, volume, or the mix of models."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from decimal import Decimal
from typing import Final

from flask_llm_cost.dashboard.breakdown import Breakdown, Row
from flask_llm_cost.dashboard.formatting import count, money, signed_money
from flask_llm_cost.dashboard.sums import per_call
from flask_llm_cost.wording import plural

_MOST: Final = 6
_SMALLEST: Final = Decimal("0.01")


@dataclass(frozen=True, slots=True, kw_only=True)
class Mover:
    """One value whose cost moved.

    :param kind: ``new``, ``volume`` (its calls became more or fewer) or ``mix`` (a call of its came to more or less, by
        other models or longer texts)
    :param why: the arithmetic, for people
    :param gone: whether it has no calls any more, so that there is something to see in the compared range only
    """

    dimension: str
    value: str | None
    label: str
    delta: Decimal
    kind: str
    why: str
    gone: bool = False


#: What each kind is called.
KINDS: Final = {"new": "new", "volume": "volume", "mix": "model mix or length"}


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
    # Calls that have a price, as wherever a cost per call is shown: those without one moved no money that is known.
    each, formerly = per_call(now), per_call(before)
    priced = "call" if (now.priced_calls, before.priced_calls) == (now.calls, before.calls) else "priced call"
    if formerly is None:
        kind, why = "new", f"{plural(now.priced_calls, priced)} × {money(each, currency)}, none before"
    elif each is None:
        kind, why = "volume", f"no calls any more, {count(before.priced_calls)} × {money(formerly, currency)} before"
    else:
        # delta = (calls - calls before) x former cost of a call + calls x change of that: the larger part names it.
        more = now.priced_calls - before.priced_calls
        by_volume, by_mix = more * formerly, now.priced_calls * (each - formerly)
        kind = "volume" if abs(by_volume) >= abs(by_mix) else "mix"
        if kind == "mix" and dimension == "model":
            return None  # one model is no mix: its features say why
        further = "more" if more > 0 else "fewer"
        calls = plural(abs(more), f"{further} {priced}")
        dearer = f"{money(abs(each - formerly), currency)} {'more' if each > formerly else 'less'} each"
        parts = {
            "volume": f"{calls} × {money(formerly, currency)} = {signed_money(by_volume, currency)}" if by_volume else "",
            "mix": f"{plural(now.priced_calls, priced)} × {dearer} = {signed_money(by_mix, currency)}" if by_mix else "",
        }
        why = "; ".join(filter(None, [parts.pop(kind), *parts.values()]))
    return Mover(dimension=dimension, value=row.value, label=row.label, delta=delta, kind=kind, why=why, gone=each is None)


def leader(found: Breakdown) -> Row | None:
    """The dearest tagged value, where naming it says something."""
    tagged = [row for row in found.rows if row.value is not None]
    if len(found.rows) < 2 or not tagged or tagged[0].share is None or tagged[0].share < Decimal("0.2"):
        return None
    return tagged[0]


def driver(found: Breakdown, delta: Decimal | None) -> tuple[Row | None, bool]:
    """What moved most in the direction of the whole, and whether that is more than half of the way."""
    if not delta:
        return None, False
    moved = [
        (row.cost - row.before.cost, row)
        for row in (*found.rows, *found.gone)
        if row.cost is not None and row.before.cost is not None
    ]
    same_way = [item for item in moved if item[0] and (item[0] > 0) == (delta > 0)]
    if not same_way:
        return None, False
    shift, row = max(same_way, key=lambda item: abs(item[0]))
    return row, abs(shift) * 2 >= abs(delta)
