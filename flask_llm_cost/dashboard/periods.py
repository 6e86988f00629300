"""Ranges of days in the reporting zone, what each is compared with, and the bars it is drawn in."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from datetime import UTC, date, datetime, timedelta
from typing import Final
from zoneinfo import ZoneInfo

from flask_llm_cost.dashboard.formatting import day as short_day
from flask_llm_cost.dashboard.formatting import full_day
from flask_llm_cost.dashboard.formatting import month as month_name
from flask_llm_cost.errors import QueryError
from flask_llm_cost.ledger.local_time import start_of_day

#: The relative ranges, which stay relative in a saved link.
RANGES: Final[Mapping[str, str]] = {
    "this_month": "this month",
    "last_month": "last month",
    "7d": "the last 7 days",
    "30d": "the last 30 days",
    "90d": "the last 90 days",
    "custom": "the days",
}
LONGEST: Final = 1100
#: Two months of days. Each bar has its parts, its words and its row in the table: more would make a heavy page.
_MOST_BARS: Final = 62
_DAY: Final = timedelta(days=1)


@dataclass(frozen=True, slots=True)
class Period:
    """Days *first* to *last*, both included, and the instants they span.

    :param name: the range's name in the URL
    :param running: whether today is among the days
    :param before: first day of what it is compared with
    :param before_last: last day of that
    :param before_until: until when that counts, so that both sides are as long when today is only half over
    """

    name: str
    first: date
    last: date
    zone: ZoneInfo
    now: datetime
    before: date
    before_last: date
    before_until: datetime

    @property
    def since(self) -> datetime:
        return start_of_day(self.first, self.zone)

    @property
    def until(self) -> datetime:
        return start_of_day(self.last + _DAY, self.zone)

    @property
    def before_since(self) -> datetime:
        return start_of_day(self.before, self.zone)

    @property
    def today(self) -> date:
        return self.now.astimezone(self.zone).date()

    @property
    def running(self) -> bool:
        return self.first <= self.today <= self.last

    @property
    def days(self) -> tuple[date, ...]:
        return tuple(self.first + _DAY * step for step in range((self.last - self.first).days + 1))

    @property
    def whole_month(self) -> bool:
        return self.first == first_of_month(self.first) and self.last == last_of_month(self.first)

    @property
    def in_words(self) -> str:
        """``so far in November``, ``in October``, ``in the last 30 days``, ``from 3 Nov to 9 Nov``."""
        if self.name == "this_month":
            return f"so far in {month_name(self.first)}"
        if self.whole_month:
            return f"in {month_name(self.first)} {self.first.year}"
        if self.name in RANGES and self.name != "custom":
            return f"in {RANGES[self.name]}"
        if self.first == self.last:
            return f"on {full_day(self.first)}"
        start = short_day(self.first) if self.first.year == self.last.year else full_day(self.first)
        return f"from {start} to {full_day(self.last)}"

    @property
    def before_name(self) -> str:
        """All of what it is compared with: ``October``, ``the 30 days before``."""
        if self.whole_month:
            return month_name(self.before)
        days = (self.last - self.first).days + 1
        return "the day before" if days == 1 else f"the {days} days before"

    @property
    def before_in_words(self) -> str:
        """What of that counts: ``October by the same day``, ``the 30 days before up to the same time``."""
        if self.before_until >= start_of_day(self.before_last + _DAY, self.zone):
            return self.before_name
        return f"{self.before_name} {'by the same day' if self.whole_month else 'up to the same time'}"


def first_of_month(day: date) -> date:
    return day.replace(day=1)


def last_of_month(day: date) -> date:
    return first_of_month(first_of_month(day) + timedelta(days=31)) - _DAY


def period(name: str, zone: ZoneInfo, now: datetime, first: date | None = None, last: date | None = None) -> Period:
    """The days that a range's name stands for at *now*.

    :param name: one of :data:`RANGES`; ``custom`` needs *first* and *last*
    :raises QueryError: for an unknown name, or days that make no range
    """
    today = now.astimezone(zone).date()
    if name == "this_month":
        first, last = first_of_month(today), last_of_month(today)
    elif name == "last_month":
        last = first_of_month(today) - _DAY
        first = first_of_month(last)
    elif name in ("7d", "30d", "90d"):
        first, last = today - _DAY * (int(name[:-1]) - 1), today
    elif name != "custom":
        raise QueryError(f"there is no range {name[:40]!r}", choices=tuple(RANGES))
    elif first is None or last is None:
        raise QueryError("a custom range needs its first and its last day: from=2026-11-01&to=2026-11-30")
    if last < first:
        raise QueryError(f"the range ends on {last}, before it begins on {first}")
    if (last - first).days >= LONGEST:
        raise QueryError(f"a range may span {LONGEST} days at most")
    if first == first_of_month(first) and last == last_of_month(first):
        before_last = first - _DAY
        before = first_of_month(before_last)
    else:
        before, before_last = first - (last - first + _DAY), first - _DAY
    return Period(name, first, last, zone, now, before, before_last, _aligned(first, last, before, before_last, now, zone))


def _aligned(first: date, last: date, before: date, before_last: date, now: datetime, zone: ZoneInfo) -> datetime:
    end = start_of_day(before_last + _DAY, zone)
    local = now.astimezone(zone)
    if not first <= local.date() <= last:
        return end
    same_day = datetime.combine(before + (local.date() - first), local.time(), zone)
    return min(same_day.astimezone(UTC), end)


@dataclass(frozen=True, slots=True)
class Bucket:
    """The days that one bar stands for, both ends included.

    :param unit: ``day``, ``week`` or ``month``
    """

    first: date
    last: date
    unit: str = "day"

    @property
    def label(self) -> str:
        """``17 Nov``, ``12 to 18 Nov``, ``28 Dec 2025 to 3 Jan 2026``, ``November 2026``."""
        if self.unit == "month":
            return f"{month_name(self.first)} {self.first.year}"
        if self.first == self.last:
            return short_day(self.first)
        if self.first.year != self.last.year:
            return f"{full_day(self.first)} to {full_day(self.last)}"
        start = str(self.first.day) if self.first.month == self.last.month else short_day(self.first)
        return f"{start} to {short_day(self.last)}"

    def tick(self, *, years: bool) -> str:
        """Its name under a chart, with its year where that shows *years*."""
        if self.unit == "month":
            return f"{month_name(self.first)[:3]} {self.first.year}"
        return full_day(self.first) if years else short_day(self.first)


def buckets(days: Iterable[date], most: int = _MOST_BARS) -> tuple[Bucket, ...]:
    """The days as bars, at most *most*: by day, else by week (from Monday), else by month."""
    days = tuple(days)
    if len(days) <= most:
        return tuple(Bucket(day, day) for day in days)
    weekly = len(days) <= most * 7 - 7
    groups: dict[date, list[date]] = {}
    for day in days:
        groups.setdefault(day - _DAY * day.weekday() if weekly else first_of_month(day), []).append(day)
    return tuple(Bucket(group[0], group[-1], "week" if weekly else "month") for group in groups.values())
