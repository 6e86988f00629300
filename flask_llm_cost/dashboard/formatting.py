"""Figures as people read them. What is rounded here is exact in the page's JSON and in each figure's title."""

from __future__ import annotations

import shlex
from datetime import date, datetime, timedelta
from decimal import ROUND_CEILING, ROUND_FLOOR, ROUND_HALF_EVEN, Decimal
from typing import Final
from zoneinfo import ZoneInfo

from flask_llm_cost.wording import cents
from flask_llm_cost.wording import plural as plural  # for templates, which know this file only
from flask_llm_cost.wording import several as several
from flask_llm_cost.wording import symbol as symbol

_NAMES: Final = {"USD": "US dollars", "EUR": "euros", "GBP": "pounds", "JPY": "yen"}
_SMALLEST: Final = Decimal("0.000001")
# Not strftime's, which follow whatever locale the host has set.
MONTHS: Final = (
    "January", "February", "March", "April", "May", "June",
    "July", "August", "September", "October", "November", "December",
)  # fmt: skip
_WEEKDAYS: Final = ("Monday", "Tuesday", "Wednesday", "Thursday", "Friday", "Saturday", "Sunday")
MINUS: Final = "−"
UNKNOWN: Final = "unknown"
UNTAGGED: Final = "(untagged)"


def currency_name(currency: str) -> str:
    return _NAMES.get(currency, currency)


def money(amount: Decimal | None, currency: str = "USD", places: int | None = None) -> str:
    """Cents from ten cents up, three significant digits below: ``$2,998.30``, ``$0.0715``, ``$0.0004``; ``¥2,998``.

    :param places: so many for every amount of a column or legend, see :func:`places_of`; one below the last says ``<$0.01``
    """
    if amount is None:
        return UNKNOWN
    sign, size = (MINUS if amount < 0 else ""), abs(amount)
    if size == 0:
        return f"{symbol(currency)}0"
    smallest = _SMALLEST if places is None else Decimal(1).scaleb(-places)
    if size < smallest:
        return f"{sign}<{symbol(currency)}{smallest:f}"
    if places is not None:
        return f"{sign}{symbol(currency)}{_rounded(size, places):,f}"
    return f"{sign}{symbol(currency)}{_trimmed(_rounded(size, _places(size, currency)), currency)}"


def _trimmed(size: Decimal, currency: str) -> str:
    """Without the zeros at its end, never under its cents."""
    whole, _, fraction = f"{size:,f}".partition(".")
    fraction = fraction.rstrip("0").ljust(cents(currency), "0")
    return f"{whole}.{fraction}" if fraction else whole


def _places(size: Decimal, currency: str) -> int:
    least = cents(currency)
    return least if size >= Decimal(10).scaleb(-least) or not size else 2 - size.adjusted()


def places_of(total: Decimal | None, currency: str = "USD") -> int:
    """How many places the sums of a page have, by its total: cents from 100 of them up, else two more, or what it takes."""
    size, least = abs(total or Decimal(0)), cents(currency)
    return least if size >= Decimal(100).scaleb(-least) or not size else max(least + 2, 2 - size.adjusted())


def call_money(amount: Decimal | None, currency: str = "USD") -> str:
    """What a call costs, wherever it is told: a hundredth of a cent, three significant digits below that."""
    places = cents(currency) + 2
    if amount is None or 0 < abs(amount) < Decimal(1).scaleb(-places):
        return money(amount, currency)
    return f"{MINUS if amount < 0 else ''}{symbol(currency)}{_rounded(abs(amount), places):,f}"


def round_money(amount: Decimal | None, currency: str = "USD") -> str:
    """Whole units from ten up, for sentences and legends: ``$569``."""
    if amount is None or abs(amount) < 10:
        return money(amount, currency)
    return f"{MINUS if amount < 0 else ''}{symbol(currency)}{_rounded(abs(amount), 0):,f}"


def exact_money(amount: Decimal | None, currency: str = "USD") -> str:
    """Every digit that is kept: ``0.0715324 USD``."""
    if amount is None:
        return "no price is known"
    return f"{plain(amount)} {currency}"


def plain(number: Decimal | int) -> str:
    """A number without exponent, grouping or trailing zeros: ``0.000004``."""
    text = f"{Decimal(number):f}"
    return text.rstrip("0").rstrip(".") if "." in text else text


def exact_amount(amount: Decimal | None, currency: str = "USD") -> str:
    """An amount with every digit, for arithmetic that is to be checked: ``$0.002515``, never under its cents."""
    if amount is None:
        return UNKNOWN
    return f"{MINUS if amount < 0 else ''}{symbol(currency)}{_trimmed(abs(amount), currency)}"


def per(rate_per: Decimal, unit: str) -> str:
    """What a rate is for: ``1M tokens``, ``1,000 calls``, ``image``."""
    if rate_per == 1:
        return unit
    millions = rate_per / 1_000_000
    number = f"{plain(millions)}M" if millions >= 1 and millions == int(millions) else f"{rate_per.normalize():,f}"
    return f"{number} {several(unit)}"


def quantity(number: Decimal) -> str:
    """``1,204`` or ``2.5``."""
    return f"{number:,.0f}" if number == int(number) else f"{number.normalize():,f}"


def money_range(low: Decimal, high: Decimal, currency: str = "USD", least: Decimal = Decimal(0)) -> tuple[str, str]:
    """A range, outwards to two significant digits of its width, so that it claims no more than it knows.

    :param least: what it cannot come to less than, such as what is spent
    """
    width = max(high - low, abs(high) / 100, _SMALLEST)
    step = Decimal(1).scaleb(width.adjusted() - 1)
    ends = []
    for end, rounding in ((low, ROUND_FLOOR), (high, ROUND_CEILING)):
        # No finer than it is shown, or the second rounding would lead inwards again.
        unit = max(step, Decimal(1).scaleb(-_places(abs(end), currency)))
        ends.append((end / unit).to_integral_value(rounding) * unit)
    show = round_money if step >= 1 else money
    return (show if ends[0] >= least else money)(max(ends[0], least), currency), show(ends[1], currency)


def count(number: int | None) -> str:
    return UNKNOWN if number is None else f"{number:,}"


def signed(number: int) -> str:
    """``+68``, ``−3``."""
    return f"{'+' if number > 0 else MINUS if number < 0 else ''}{abs(number):,}"


def signed_money(amount: Decimal, currency: str = "USD") -> str:
    """``+$6.31``, ``−$0.04``."""
    return f"+{money(amount, currency)}" if amount > 0 else money(amount, currency)


def short_count(number: int | Decimal) -> str:
    """A large count in three digits: ``982``, ``14.2k``, ``3.07M``."""
    value = Decimal(number)
    for power, sign in ((9, "bn"), (6, "M"), (3, "k")):
        if abs(value) >= Decimal("999.5").scaleb(power - 3):
            scaled = value.scaleb(-power)
            return f"{_rounded(scaled, max(0, 2 - scaled.adjusted())):f}{sign}"
    return f"{value:,.0f}"


_COMPONENTS: Final = {"cache_read": "input from cache", "cache_write": "input to cache"}


def component(name: str) -> str:
    """A line of a bill as one says it: ``input from cache``, ``audio output``."""
    for start, words in _COMPONENTS.items():
        if name.startswith(start):
            kept = name.removeprefix(start).strip("_").replace("h", " hour" if name.endswith("_1h") else " hours")
            return f"{words}, kept {kept}" if kept else words
    return name.replace("_", " ")


_MATCH_KINDS: Final = {
    "exact": "exact name",
    "alias": "another name",
    "date_suffix": "name without its date",
    "fine_tune": "base of the fine-tune",
    "spelling": "other spelling",
    "mapped": "OpenAI's price",
    "bare": "name without provider",
}


def match_kind(name: str) -> str:
    """How a price was found, in a word or two."""
    return _MATCH_KINDS.get(name, name.replace("_", " "))


_USAGE_SOURCES: Final = {
    "response": "the answer",
    "stream_final": "the end of the stream",
    "stream_partial": "a stream that was cut short",
    "batch": "the batch's results",
    "manual": "the app, by track()",
    "estimated": "an estimate",
    "pending": "nothing yet",
    "unknown": "nothing was reported",
}


def usage_source(name: str) -> str:
    """Where the counts of a call come from."""
    return _USAGE_SOURCES.get(name, name.replace("_", " "))


def percent(share: float | Decimal | None) -> str:
    """``38%``, ``0.4%``; never 100% or 0% unless it is."""
    if share is None:
        return UNKNOWN
    value = Decimal(str(share)) * 100
    if value in (0, 100) or 10 <= value <= Decimal("99.05"):
        whole = _rounded(value, 0)
        return f"{whole:f}%" if value in (0, 100) or whole < 99 else f"{_floor(value, 1):f}%"
    if 0 < value < Decimal("0.1"):
        return "<0.1%"
    return f"{_floor(value, 1):f}%" if value < 100 else f"{_rounded(value, 0):,f}%"


def change(now: Decimal | None, before: Decimal | None) -> str:
    """``+18%``, ``−6%``, ``5.2 ×``, ``new``; empty where there is nothing to compare."""
    if now is None or before is None or (not now and not before):
        return ""
    if not before:
        return "new"
    ratio = now / before
    if ratio >= 3:
        return f"{_rounded(ratio, 1):,f} ×"
    shift = _rounded((ratio - 1) * 100, 0)
    if shift == 0:
        return "±0%"
    return f"{'+' if shift > 0 else MINUS}{abs(shift):f}%"


def duration(milliseconds: float | Decimal | None) -> str:
    """``740 ms``, ``1.9 s``, ``2 min 5 s``."""
    if milliseconds is None:
        return UNKNOWN
    value = Decimal(str(milliseconds))
    if value < 1000:
        return f"{_rounded(value, 0):f} ms"
    if value < 60_000:
        return f"{_rounded(value / 1000, 1):f} s"
    return f"{int(value) // 60_000} min {int(value) % 60_000 // 1000} s"


def day(when: date) -> str:
    """``17 Nov``."""
    return f"{when.day} {MONTHS[when.month - 1][:3]}"


def long_day(when: date) -> str:
    """``Tuesday 17 November 2026``."""
    return f"{_WEEKDAYS[when.weekday()]} {when.day} {MONTHS[when.month - 1]} {when.year}"


def full_day(when: date) -> str:
    """``17 Nov 2026``."""
    return f"{day(when)} {when.year}"


def rate(amount: Decimal | None, currency: str = "USD") -> str:
    """A rate with every digit that it has: ``$2.50``, ``$0.075``."""
    return "" if amount is None else exact_amount(amount, currency)


def period_name(name: str) -> str:
    """A budget's period as one says it."""
    return {"call": "each call", "hour": "hourly", "day": "daily", "week": "weekly", "month": "monthly"}.get(name, "in all")


def near_moment(when: datetime, now: datetime, zone: ZoneInfo) -> str:
    """``at 14:41`` of the same day, ``on 17 Nov`` else."""
    local = when.astimezone(zone)
    if local.date() == now.astimezone(zone).date():
        return f"at {local:%H:%M}"
    if (local.date() - now.astimezone(zone).date()).days == 1:
        return f"tomorrow at {local:%H:%M}"
    return f"on {day(local)}"


def month(when: date) -> str:
    """``November``."""
    return MONTHS[when.month - 1]


def moment(when: datetime, zone: ZoneInfo) -> str:
    """``17 Nov 14:41:07`` on the clocks of *zone*."""
    local = when.astimezone(zone)
    return f"{day(local)} {local:%H:%M:%S}"


def clock(when: datetime, zone: ZoneInfo, *, seconds: bool = False) -> str:
    """``14:41`` or ``14:41:07``."""
    return f"{when.astimezone(zone):{'%H:%M:%S' if seconds else '%H:%M'}}"


def month_start(when: date) -> str:
    return when.replace(day=1).isoformat()


def month_end(when: date) -> str:
    return ((when.replace(day=1) + timedelta(days=31)).replace(day=1) - timedelta(days=1)).isoformat()


def short_name(name: str) -> str:
    """A name for the head of a narrow column: its beginning and its end, which tell models apart."""
    return name if len(name) <= 28 else f"{name[:16]}…{name[-9:]}"


def shell_word(text: str) -> str:
    """*text* as one word of a command line that is to be copied."""
    return shlex.quote(text)


def exact_moment(when: datetime, zone: ZoneInfo) -> str:
    return when.astimezone(zone).isoformat(sep=" ", timespec="milliseconds")


def ordinal(number: int) -> str:
    """``1st``, ``22nd``, ``30th``."""
    ending = "th" if 10 <= number % 100 <= 20 else {1: "st", 2: "nd", 3: "rd"}.get(number % 10, "th")
    return f"{number}{ending}"


def share_words(share: Decimal) -> str:
    """A share of the whole as one says it: ``a third``, ``most``, ``38%``."""
    for low, high, words in (
        ("0.97", "1.01", "nearly all"),
        ("0.73", "0.77", "three quarters"),
        ("0.64", "0.69", "two thirds"),
        ("0.48", "0.52", "half"),
        ("0.31", "0.355", "a third"),
        ("0.235", "0.265", "a quarter"),
    ):
        if Decimal(low) <= share < Decimal(high):
            return words
    return percent(share)


def masked(identifier: str) -> str:
    """The last four characters, enough to compare with the provider's own list."""
    return f"…{identifier[-4:]}" if len(identifier) > 8 else "…"


def _rounded(value: Decimal, places: int) -> Decimal:
    return value.quantize(Decimal(1).scaleb(-places), ROUND_HALF_EVEN)


def _floor(value: Decimal, places: int) -> Decimal:
    return value.quantize(Decimal(1).scaleb(-places), ROUND_FLOOR)
