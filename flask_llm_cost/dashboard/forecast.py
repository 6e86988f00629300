"""Where a month is heading, and which day was odd. Both rules are said on the page."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import date, timedelta
from decimal import Decimal
from statistics import fmean, median
from typing import Final

#: Under a week of days nothing is known of weekdays.
_FEWEST_DAYS: Final = 7
HISTORY: Final = 28
#: Standard deviations to either side that hold four of five outcomes.
_FOUR_OF_FIVE: Final = 1.28
FORECAST_RULE: Final = (
    f"The mean of the same weekdays in the last {HISTORY} days, for every day that is left. "
    "The range holds four of five outcomes if days go on to vary as they did."
)
ANOMALY_RULE: Final = (
    "More than the median of the 28 days before plus four times their median absolute deviation, at least half as much "
    "again as that median, and over 1."
)


@dataclass(frozen=True, slots=True)
class DayForecast:
    day: date
    low: Decimal
    middle: Decimal
    high: Decimal


@dataclass(frozen=True, slots=True)
class Forecast:
    """A range for the whole period's spend, and for each day that is left."""

    low: Decimal
    high: Decimal
    days: tuple[DayForecast, ...]


def forecast(spent: Decimal, by_day: Mapping[date, Decimal], today: date, last: date) -> Forecast | None:
    """Spend at the end of *last*, as a range; ``None`` with less than a week of days to learn from.

    :param spent: what the period has come to so far, today included
    :param by_day: spend of whole days and of today
    """
    if today > last:
        return None
    begun = min((day for day, amount in by_day.items() if amount), default=today)
    whole = {
        day: float(amount) for day, amount in by_day.items() if max(begun, today - timedelta(days=HISTORY)) <= day < today
    }
    if len(whole) < _FEWEST_DAYS:
        return None
    everyday = fmean(whole.values())
    means = {
        weekday: fmean(values)
        for weekday in range(7)
        if (values := [amount for day, amount in whole.items() if day.weekday() == weekday])
    }
    spread = math.sqrt(fmean((amount - means[day.weekday()]) ** 2 for day, amount in whole.items()))
    ahead = []
    expected = 0.0
    for step in range((last - today).days + 1):
        day = today + timedelta(days=step)
        middle = means.get(day.weekday(), everyday)
        if day == today:
            expected += max(0.0, middle - float(by_day.get(today, 0)))
            continue
        expected += middle
        reach = _FOUR_OF_FIVE * spread
        ahead.append(DayForecast(day, _amount(max(0.0, middle - reach)), _amount(middle), _amount(middle + reach)))
    reach = _FOUR_OF_FIVE * spread * math.sqrt(len(ahead) + 1)
    return Forecast(spent + _amount(max(0.0, expected - reach)), spent + _amount(expected + reach), tuple(ahead))


def odd_days(days: Sequence[date], by_day: Mapping[date, Decimal]) -> list[tuple[date, Decimal]]:
    """Days out of line with the 28 before them, with the median of those, the dearest first."""
    found = []
    begun = min((day for day, amount in by_day.items() if amount), default=date.max)
    for day in days:
        past = [day - timedelta(days=step) for step in range(1, HISTORY + 1)]
        before = [by_day[at] for at in past if at >= begun and at in by_day]
        amount = by_day.get(day, Decimal(0))
        if len(before) < _FEWEST_DAYS or amount <= 1:
            continue
        usual = median(before)
        deviation = median(abs(value - usual) for value in before)
        if usual > 0 and amount > usual + 4 * deviation and amount > usual * Decimal("1.5"):
            found.append((day, usual))
    return sorted(found, key=lambda item: -by_day[item[0]])


def _amount(value: float) -> Decimal:
    return Decimal(str(round(value, 9)))
