"""The geometry of the charts, in numbers. The templates only print it; colour comes from classes."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from decimal import Decimal
from typing import Final

from flask_llm_cost.dashboard.formatting import plain, symbol

#: The grey of what is left over; series before it have colours of their own.
OTHER: Final = 8
_GAP: Final = 0.7


@dataclass(frozen=True, slots=True)
class Column:
    """One bar's data: amounts bottom up, as many as there are series, and what it says and leads to."""

    label: str
    amounts: tuple[Decimal, ...]
    title: str
    href: str | None = None
    partial: bool = False


@dataclass(frozen=True, slots=True)
class Outlook:
    """A bar that is yet to come, as a range."""

    low: Decimal
    middle: Decimal
    high: Decimal


@dataclass(frozen=True, slots=True)
class Segment:
    colour: int
    y: float
    height: float


@dataclass(frozen=True, slots=True)
class Bar:
    """A bar on the page; ``left`` and ``pitch`` are its slot, which is what one points at."""

    left: float
    pitch: float
    x: float
    width: float
    segments: tuple[Segment, ...]
    title: str
    href: str | None
    partial: bool

    def path(self, part: Segment) -> str:
        """The outline of one of its segments."""
        return f"M{self.x} {part.y}h{self.width}v{part.height}h-{self.width}z"


@dataclass(frozen=True, slots=True)
class Tick:
    at: float
    label: str
    anchor: str = "end"


@dataclass(frozen=True, slots=True)
class Range:
    """A forecast bar: its range, and its middle."""

    x: float
    width: float
    y: float
    height: float
    middle: float


@dataclass(frozen=True, slots=True)
class Note:
    """A remark at one bar, with the end of its text that touches the bar."""

    x: float
    top: float
    y: float
    text: str
    text_x: float
    anchor: str


@dataclass(frozen=True, slots=True)
class StackedBars:
    width: int
    height: int
    left: float
    right: float
    top: float
    bottom: float
    bars: tuple[Bar, ...]
    grid: tuple[Tick, ...]
    labels: tuple[Tick, ...]
    previous: str
    ranges: tuple[Range, ...]
    today: float | None
    note: Note | None


def stacked_bars(
    columns: Sequence[Column],
    *,
    currency: str,
    colours: Sequence[int],
    previous: Sequence[Decimal | None] = (),
    outlook: Sequence[Outlook] = (),
    note: tuple[int, str] | None = None,
    width: int = 920,
    height: int = 248,
    most_labels: int = 6,
) -> StackedBars:
    """Bars of amounts over time, the previous period as a line behind, what is to come as ranges after them.

    :param columns: one per bar, the earliest first
    :param colours: class number of each series
    :param previous: the compared period's amount per slot, future slots included
    :param note: index of a column, and what to say of it
    """
    slots = len(columns) + len(outlook)
    sums = [sum(column.amounts, Decimal(0)) for column in columns]
    highest = max(
        [*sums, *(amount for amount in previous if amount), *(ahead.high for ahead in outlook)], default=Decimal(0)
    )
    scale, ticks = _scale(highest)
    label_width = max((len(_tick_label(tick, currency)) for tick in ticks), default=2) * 6.4 + 12
    left, right, top, bottom = label_width, width - 4.0, 26.0, height - 26.0
    pitch = (right - left) / max(slots, 1)
    bar_width = min(pitch * 0.68, 44.0)
    inset = (pitch - bar_width) / 2

    def y(amount: Decimal) -> float:
        return _r(bottom - float(amount / scale) * (bottom - top))

    bars = []
    for index, column in enumerate(columns):
        slot = left + index * pitch
        segments = _segments(column.amounts, colours, y)
        bars.append(
            Bar(_r(slot), _r(pitch), _r(slot + inset), _r(bar_width), segments, column.title, column.href, column.partial)
        )
    ranges = []
    for index, ahead in enumerate(outlook, start=len(columns)):
        x, high = left + index * pitch + inset, y(ahead.high)
        ranges.append(Range(_r(x), _r(bar_width), high, _r(max(y(ahead.low) - high, 1.0)), y(ahead.middle)))
    line = " ".join(
        f"{_r(left + (index + 0.5) * pitch)},{y(amount)}" for index, amount in enumerate(previous) if amount is not None
    )
    labels = _labels([column.label for column in columns], slots, left, right, pitch, most_labels)
    remark = None
    if note is not None:
        index, text = note
        x = left + (index + 0.5) * pitch
        end = x > (left + right) / 2
        remark = Note(_r(x), 16.0, _r(y(sums[index]) - 4), text, _r(x - 7 if end else x + 7), "end" if end else "start")
    return StackedBars(
        width=width,
        height=height,
        left=_r(left),
        right=right,
        top=top,
        bottom=bottom,
        bars=tuple(bars),
        grid=tuple(Tick(y(tick), _tick_label(tick, currency)) for tick in ticks),
        labels=labels,
        previous=line if len(columns) + len(outlook) > 1 else "",
        ranges=tuple(ranges),
        today=_r(left + len(columns) * pitch) if outlook else None,
        note=remark,
    )


def _segments(amounts: Sequence[Decimal], colours: Sequence[int], y: Callable[[Decimal], float]) -> tuple[Segment, ...]:
    found, below = [], Decimal(0)
    for colour, amount in zip(colours, amounts, strict=True):
        if amount <= 0:
            continue
        upper, lower = y(below + amount), y(below)
        below += amount
        size = lower - upper
        # A hairline between neighbours, so that they are told apart without colour.
        found.append(Segment(colour, upper, _r(max(size - (_GAP if size > 2 * _GAP else 0), 0.3))))
    return tuple(found)


def _labels(names: Sequence[str], slots: int, left: float, right: float, pitch: float, most: int) -> tuple[Tick, ...]:
    if not names:
        return ()
    step = next((size for size in (1, 2, 3, 4, 7, 14, 28) if slots / size <= most), -(-slots // most))
    found = []
    for index in range(0, len(names), step):
        at = left + (index + 0.5) * pitch
        anchor = "middle"
        if at - 24 < left - 30:
            anchor = "start"
        elif at + 24 > right:
            at, anchor = right, "end"
        found.append(Tick(_r(at), names[index], anchor))
    return tuple(found)


def _scale(highest: Decimal) -> tuple[Decimal, list[Decimal]]:
    """A scale that ends on a round number, and three or four gridlines on the way."""
    if highest <= 0:
        return Decimal(1), [Decimal(0)]
    power = Decimal(1).scaleb((highest / 3).adjusted())
    step = next(power * factor for factor in (1, 2, Decimal("2.5"), 5, 10) if power * factor * 4 >= highest)
    lines = math.ceil(highest / step)
    return step * lines, [step * line for line in range(lines + 1)]


def _tick_label(amount: Decimal, currency: str) -> str:
    if amount >= 10_000:
        return f"{symbol(currency)}{plain(amount / 1000)}k"
    text = plain(amount)
    if amount >= 1000:
        text = f"{amount:,.0f}"
    elif "." in text and amount >= Decimal("0.1"):
        text = f"{amount:.2f}"
    return f"{symbol(currency)}{text}"


def sparkline(amounts: Sequence[Decimal], width: int = 88, height: int = 22) -> str:
    """The points of a small line without axes, at most one in two pixels; empty for fewer than two amounts."""
    if len(amounts) < 2:
        return ""
    if len(amounts) > width // 2:
        size = -(-len(amounts) // (width // 2))
        amounts = [sum(amounts[at : at + size], Decimal(0)) for at in range(0, len(amounts), size)]
    highest = max(amounts)
    step = width / (len(amounts) - 1)
    return " ".join(
        f"{_r(index * step)},{_r(height - 2 - (float(amount / highest) if highest > 0 else 0.0) * (height - 4))}"
        for index, amount in enumerate(amounts)
    )


def _r(value: float) -> float:
    return round(value, 1)
