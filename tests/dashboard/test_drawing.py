"""Charts, forecasts and figures: what is drawn and written stands for the amounts."""

from __future__ import annotations

from datetime import UTC, date, datetime, timedelta
from decimal import Decimal
from zoneinfo import ZoneInfo

import pytest
from hypothesis import given
from hypothesis import strategies as st

from flask_llm_cost.dashboard import charts, formatting
from flask_llm_cost.dashboard.forecast import forecast, odd_days
from flask_llm_cost.dashboard.periods import buckets, period
from flask_llm_cost.records import COMPONENTS


def test_the_forecast_is_a_range_and_needs_a_week() -> None:
    """Six days of data make no forecast; steady weekdays make one that holds the truth; a month that is over has none."""
    today = date(2026, 11, 23)
    steady = {today - timedelta(days=n): Decimal(10) for n in range(1, 29)}
    assert forecast(Decimal(60), dict(list(steady.items())[:6]), today, date(2026, 11, 30)) is None
    found = forecast(Decimal(220), steady, today, date(2026, 11, 30))
    assert found is not None
    assert found.low <= 300 <= found.high
    assert found.high - found.low < 1
    assert [item.day.day for item in found.days] == [24, 25, 26, 27, 28, 29, 30]
    weekends = {day: amount / 5 if day.weekday() > 4 else amount for day, amount in steady.items()}
    uneven = forecast(Decimal(220), weekends, today, date(2026, 11, 30))
    assert uneven is not None
    assert [item.middle for item in uneven.days] == [10, 10, 10, 10, 2, 2, 10]
    assert forecast(Decimal(1), steady, today, date(2026, 11, 22)) is None


def test_an_odd_day_is_named_by_its_rule() -> None:
    """A day three times the usual one is odd; a start from nothing and small change are not."""
    days = [date(2026, 11, 1) + timedelta(days=n) for n in range(20)]
    usual = dict.fromkeys(days, Decimal(10))
    assert odd_days(days, usual) == []
    assert odd_days(days, {**usual, days[15]: Decimal(31)}) == [(days[15], Decimal(10))]
    assert odd_days(days, {**dict.fromkeys(days, Decimal("0.01")), days[15]: Decimal("0.9")}) == []
    late = {day: (Decimal(10) if n > 9 else Decimal(0)) for n, day in enumerate(days)}
    assert odd_days(days, late) == []


def test_bars_stand_for_their_amounts() -> None:
    """A bar is as high as its amount on the scale, its parts stack without overlap, and nothing leaves the chart."""
    columns = [charts.Column(str(n), (Decimal(n), Decimal(2 * n)), f"bar {n}") for n in (0, 1, 4)]
    chart = charts.stacked_bars(columns, currency="USD", colours=[1, 2], previous=[Decimal(1), None, Decimal(12)])
    assert [tick.label for tick in chart.grid] == ["$0", "$5", "$10", "$15"]
    unit = (chart.bottom - chart.top) / 15
    lower, upper = chart.bars[2].segments
    assert chart.bottom - lower.y == pytest.approx(4 * unit, abs=0.06)
    assert chart.bottom - upper.y == pytest.approx(12 * unit, abs=0.06)
    assert upper.y + upper.height <= lower.y
    assert chart.bars[0].segments == ()
    assert all(chart.left <= bar.x and bar.x + bar.width <= chart.right for bar in chart.bars)
    assert len(chart.previous.split()) == 2


@pytest.mark.parametrize("highest", ["0.0000031", "0.04", "0.9", "1", "13.4", "99", "12345", "9999999"])
def test_the_scale_holds_the_highest(highest: str) -> None:
    """Whatever the amounts, the scale ends at or above the highest, on two to five round lines."""
    chart = charts.stacked_bars([charts.Column("x", (Decimal(highest),), "x")], currency="USD", colours=[1])
    assert chart.bars[0].segments[0].y >= chart.top
    assert 3 <= len(chart.grid) <= 5
    assert all("E" not in tick.label for tick in chart.grid)


def test_many_days_become_weeks_and_months() -> None:
    """A chart has 62 bars at most; every day is in exactly one, in order."""
    for length, unit in ((62, 1), (63, 7), (427, 7), (428, 31), (1100, 31)):
        days = [date(2024, 1, 3) + timedelta(days=n) for n in range(length)]
        found = buckets(days)
        assert len(found) <= 62
        assert [day for item in found for day in days if item.first <= day <= item.last] == days
        assert max((item.last - item.first).days + 1 for item in found) == unit


@pytest.mark.parametrize(
    ("amount", "shown"),
    [
        ("2998.3", "$2,998.30"),
        ("0.41", "$0.41"),
        ("0.0715", "$0.0715"),
        ("0.0004", "$0.0004"),
        ("0.000000000001", "<$0.000001"),
        ("0", "$0"),
        ("-3.2", "−$3.20"),
        ("0.09999", "$0.10"),
        (None, "unknown"),
    ],
)
def test_small_amounts_are_not_rounded_away(amount: str | None, shown: str) -> None:
    """$0.0004 is not $0.00, and what is not known is not $0."""
    assert formatting.money(None if amount is None else Decimal(amount)) == shown


@pytest.mark.parametrize(
    ("amount", "shown"),
    [
        ("2998.3", ("¥2,998", "¥2,998.30", "¥2,998.3")),
        ("15.0324", ("¥15", "¥15.03", "¥15.0324")),
        ("7.15", ("¥7.15", "¥7.15", "¥7.15")),
        ("7", ("¥7", "¥7.00", "¥7")),
        ("0.0715", ("¥0.0715", "¥0.07", "¥0.0715")),
        ("0.0004", ("¥0.0004", "¥0.0004", "¥0.0004")),
        ("-30", ("−¥30", "−¥30.00", "−¥30")),
        ("0", ("¥0", "¥0.00", "¥0")),
    ],
)
def test_yen_have_no_cents(amount: str, shown: tuple[str, str, str]) -> None:
    """Sums in a currency without a smaller unit have no cents, a call's two places where others have four, a bill's all."""
    yen = Decimal(amount)
    found = formatting.money(yen, "JPY"), formatting.call_money(yen, "JPY"), formatting.exact_amount(yen, "JPY")
    assert found == shown
    assert formatting.money(yen, "KRW") == shown[0].replace("¥", "KRW ")


def test_a_column_of_yen() -> None:
    """From 100 yen up a page has none, below it two places, and more where all of it is less than one."""
    for total, places, shown in (("2998.3", 0, "¥2,998"), ("99.5", 2, "¥99.50"), ("0.0123", 4, "¥0.0123")):
        assert formatting.places_of(Decimal(total), "JPY") == places
        assert formatting.money(Decimal(total), "JPY", places) == shown
    assert formatting.money(Decimal("0.4"), "JPY", 0) == "<¥1"
    assert formatting.money_range(Decimal("570.4"), Decimal("611.3"), "JPY", Decimal("570.4")) == ("¥570", "¥612")


@pytest.mark.parametrize(
    ("amounts", "shown"),
    [
        (["28.4512", "0.95", "0.0319", "0.0254", "0.00186"], ["$28.45", "$0.95", "$0.03", "$0.03", "<$0.01"]),
        (["0.0987", "0.031", "0.0004"], ["$0.0987", "$0.0310", "$0.0004"]),
        (["0.00123", "0.0009", "0.0000001"], ["$0.00123", "$0.00090", "<$0.00001"]),
        (["-3", None, "0"], ["−$3.00", "unknown", "$0"]),
    ],
)
def test_a_column_has_as_many_places_as_its_total_needs(amounts: list[str | None], shown: list[str]) -> None:
    """The amounts of a page have one number of places, and what is too small for it says so, and is never nothing."""
    known = [None if amount is None else Decimal(amount) for amount in amounts]
    places = formatting.places_of(sum((amount for amount in known if amount is not None), Decimal(0)))
    assert [formatting.money(amount, places=places) for amount in known] == shown


@pytest.mark.parametrize(
    ("share", "shown"), [(0, "0%"), (1, "100%"), (0.9999, "99.9%"), (0.00001, "<0.1%"), (0.011, "1.1%"), (None, "unknown")]
)
def test_nearly_all_is_not_all(share: float | None, shown: str) -> None:
    """100% means all and 0% means none."""
    assert formatting.percent(share) == shown


@pytest.mark.parametrize(
    ("first", "days", "labels", "ticks"),
    [
        (date(2026, 11, 1), 3, ["1 Nov", "2 Nov"], ["1 Nov", "2 Nov"]),
        (date(2025, 12, 22), 130, ["22 to 28 Dec", "29 Dec 2025 to 4 Jan 2026"], ["22 Dec 2025", "29 Dec 2025"]),
        (date(2024, 6, 1), 909, ["June 2024", "July 2024"], ["Jun 2024", "Jul 2024"]),
    ],
)
def test_bars_say_which_days_they_are(first: date, days: int, labels: list[str], ticks: list[str]) -> None:
    """Days, weeks and months are named so that none can be taken for that of another year."""
    last = first + timedelta(days=days - 1)
    found = buckets(first + timedelta(days=n) for n in range(days))
    assert [bucket.label for bucket in found[:2]] == labels
    assert [bucket.tick(years=first.year != last.year) for bucket in found[:2]] == ticks


def test_a_range_says_its_years() -> None:
    """A range that begins in another year than it ends in says both."""
    zone = ZoneInfo("Europe/Berlin")
    now = datetime(2026, 11, 26, tzinfo=UTC)
    for first, last, words in (
        (date(2024, 6, 1), date(2026, 11, 26), "from 1 Jun 2024 to 26 Nov 2026"),
        (date(2026, 6, 2), date(2026, 11, 26), "from 2 Jun to 26 Nov 2026"),
        (date(2025, 6, 2), date(2025, 6, 2), "on 2 Jun 2025"),
        (date(2025, 6, 1), date(2025, 6, 30), "in June 2025"),
    ):
        assert period("custom", zone, now, first, last).in_words == words


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("input", "input"),
        ("cache_read", "input from cache"),
        ("cache_write", "input to cache"),
        ("cache_write_1h", "input to cache, kept 1 hour"),
        ("cache_write_12h", "input to cache, kept 12 hours"),
        ("cache_storage_token_hour", "cache storage token hour"),
        ("audio_output", "audio output"),
    ],
)
def test_a_bill_speaks_plainly(name: str, words: str) -> None:
    """A line of a bill is named so that somebody who pays it knows what it is."""
    assert formatting.component(name) == words


def test_units_have_their_plural() -> None:
    """Whatever is billed by the piece."""
    assert {component.unit: formatting.several(component.unit) for component in COMPONENTS.values()}.items() >= {
        ("token", "tokens"), ("query", "queries"), ("minute", "minutes"),
    }  # fmt: skip
    assert formatting.per(Decimal(1000), "query") == "1,000 queries"


def test_a_long_name_keeps_its_ends() -> None:
    """The head of a narrow column tells apart what differs in its end."""
    assert formatting.short_name("text-embedding-3-small") == "text-embedding-3-small"
    assert formatting.short_name("accounts/fireworks/models/deepseek-v3-0324") == "accounts/firewor…k-v3-0324"


@pytest.mark.parametrize(
    ("spent", "low", "high", "shown"),
    [
        ("20.06", "20.15", "24.13", ("$20.10", "$24.20")),
        ("19.99", "20.15", "24.13", ("$20.10", "$24.20")),
        ("570.40", "570.62", "611.30", ("$570.40", "$612")),
        ("0", "1204.2", "1311.9", ("$1,200", "$1,320")),
        ("0.0021", "0.00214", "0.00287", ("$0.00214", "$0.00287")),
    ],
)
def test_a_range_is_shown_outwards(spent: str, low: str, high: str, shown: tuple[str, str]) -> None:
    """A forecast is rounded outwards as it is shown, and never begins below what is spent already."""
    assert formatting.money_range(Decimal(low), Decimal(high), "USD", Decimal(spent)) == shown


@given(st.decimals("0.000001", "99999", places=6), st.decimals("0", "9999", places=6), st.decimals("0", "99999", places=6))
def test_no_range_is_narrower_than_it_is(low: Decimal, more: Decimal, less: Decimal) -> None:
    """Whatever the amounts: both ends hold the range, and the lower one is no less than what is spent as that is shown."""
    spent = max(Decimal(0), low - less)
    below, above = formatting.money_range(low, low + more, "USD", spent)
    amounts = [Decimal(text.replace("$", "").replace(",", "")) for text in (below, above, formatting.money(spent))]
    assert amounts[2] <= amounts[0] <= max(low, amounts[2])
    assert amounts[1] >= low + more
