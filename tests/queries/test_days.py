"""Days of the reporting zone: right across clock changes, and adding up to the range."""

from __future__ import annotations

from datetime import UTC, date, datetime, timedelta
from zoneinfo import ZoneInfo

from hypothesis import given
from hypothesis import strategies as st
from ledger_rows import add_call
from sqlalchemy.orm import Session

from flask_llm_cost.ledger import queries
from flask_llm_cost.ledger.filter import Filter
from flask_llm_cost.ledger.local_time import days_between, offset_changes, start_of_day

EVERYTHING = Filter(scope={})
ZONES = (
    "UTC", "Europe/Berlin", "America/New_York", "Asia/Kolkata", "Australia/Lord_Howe", "America/Havana", "Africa/Casablanca",
    "Pacific/Apia", "America/St_Johns", "Asia/Beirut",
)  # fmt: skip


def test_days_and_hours_add_up(session: Session) -> None:
    """Across clock changes every call is in the day that a clock on the wall showed, and none is lost from an hour."""
    starts = (datetime(2026, 3, 5, 0, 7, tzinfo=UTC), datetime(2026, 10, 20, 23, 53, tzinfo=UTC))
    times = [start + timedelta(minutes=151 * n) for start in starts for n in range(300)]
    for at in times:
        add_call(session, at, "0.001")
    for name in ZONES:
        zone = ZoneInfo(name)
        for unit in ("day", "hour", "month"):
            found = queries.over(session, EVERYTHING, unit, zone)
            assert sum(row.calls for row in found.values()) == len(times), (name, unit)
        expected: dict[date, int] = {}
        for at in times:
            day = at.astimezone(zone).date()
            expected[day] = expected.get(day, 0) + 1
        days = queries.over(session, EVERYTHING, "day", zone)
        assert {day: row.calls for day, row in days.items() if row.calls} == expected, name


def test_the_last_instant_of_a_day(session: Session) -> None:
    """The last microsecond of a day is that day's, although SQLite rounds times to milliseconds."""
    zone = ZoneInfo("Europe/Berlin")
    midnight = start_of_day(date(2026, 11, 4), zone)
    add_call(session, midnight - timedelta(microseconds=1), "1")
    add_call(session, midnight, "2")
    found = queries.over(session, EVERYTHING, "day", zone)
    assert {day: row.cost for day, row in found.items()} == {date(2026, 11, 3): 1, date(2026, 11, 4): 2}


def test_a_repeated_hour_is_two(session: Session) -> None:
    """The hour that the clock shows twice in autumn is two rows, told apart by their offset."""
    zone = ZoneInfo("Europe/Berlin")
    for at in (datetime(2026, 10, 25, 0, 30, tzinfo=UTC), datetime(2026, 10, 25, 1, 30, tzinfo=UTC)):
        add_call(session, at, "1")
    rows = queries.pivot(session, EVERYTHING, ("hour",), zone=zone)
    assert [str(row.key) for row in rows] == ["2026-10-25 02:00:00+02:00", "2026-10-25 02:00:00+01:00"]


def test_empty_days_are_there(session: Session) -> None:
    """A range shows every one of its days, those without calls with a cost of 0."""
    zone = ZoneInfo("America/New_York")
    add_call(session, datetime(2026, 11, 3, 12, tzinfo=UTC), "1")
    flt = EVERYTHING.narrowed(since=start_of_day(date(2026, 11, 1), zone), until=start_of_day(date(2026, 11, 8), zone))
    found = queries.over(session, flt, "day", zone)
    assert list(found) == [date(2026, 11, day) for day in range(1, 8)]
    assert [row.cost for row in found.values()] == [0, 0, 1, 0, 0, 0, 0]


def test_a_pivot_by_day_and_model(session: Session) -> None:
    """Grouped by time first, rows come in order of time, the dearest first within it."""
    zone = ZoneInfo("UTC")
    for day in (2, 1):
        for model, cost in (("a", "1"), ("b", "2")):
            add_call(session, datetime(2026, 11, day, 12, tzinfo=UTC), cost, model=model)
    rows = queries.pivot(session, EVERYTHING, ("day", "model"), zone=zone)
    assert [(row.day.day, row.model) for row in rows] == [(1, "b"), (1, "a"), (2, "b"), (2, "a")]  # type: ignore[union-attr]


@given(
    st.sampled_from(ZONES),
    st.datetimes(datetime(1990, 1, 1), datetime(2036, 1, 1)),
    st.integers(0, 800),
    st.floats(0, 1),
)
def test_offsets_are_those_of_the_zone(name: str, start: datetime, days: int, position: float) -> None:
    """At any instant of a range the offset looked up beforehand is the one that the zone gives."""
    zone = ZoneInfo(name)
    since = start.replace(tzinfo=UTC)
    until = since + timedelta(days=days)
    at = since + timedelta(days=days) * position
    seconds = next(offset for end, offset in offset_changes(zone, since, until) if end is None or at < end)
    assert timedelta(seconds=seconds) == at.astimezone(zone).utcoffset()


@given(st.sampled_from(ZONES), st.dates(date(1990, 1, 1), date(2036, 1, 1)))
def test_a_day_begins_where_the_last_ends(name: str, day: date) -> None:
    """Days leave no gap and do not overlap, and their first instant is theirs, also where midnight is skipped."""
    zone = ZoneInfo(name)
    first, following = start_of_day(day, zone), start_of_day(day + timedelta(days=1), zone)
    if first == following:  # a day that a zone left out, such as 30 December 2011 in Samoa
        return
    assert first.astimezone(zone).date() == day
    assert (first - timedelta(microseconds=1)).astimezone(zone).date() < day
    assert list(days_between(first, following, zone)) == [day]
