"""Periods of budgets on the clocks of a zone."""

from __future__ import annotations

import itertools
from datetime import UTC, datetime, timedelta
from zoneinfo import ZoneInfo

import pytest

from flask_llm_cost.budgets.accounts import period_of


@pytest.mark.parametrize("kind", ["hour", "day", "week", "month"])
@pytest.mark.parametrize(
    ("zone", "change"),
    [
        ("Australia/Lord_Howe", "2026-04-04T15:00"),  # back by half an hour
        ("Australia/Lord_Howe", "2026-10-03T15:30"),  # ahead by half an hour
        ("Europe/Berlin", "2026-10-25T01:00"),
        ("Europe/Berlin", "2026-03-29T01:00"),
        ("Asia/Kathmandu", "2026-03-29T01:00"),
        ("Antarctica/Casey", "2022-10-01T16:00"),  # back by three hours, at midnight
    ],
)
def test_every_moment_has_one_period(zone: str, change: str, kind: str) -> None:
    """Each moment is in its period, and the next period begins where one ends, however clocks are moved."""
    moved = datetime.fromisoformat(change).replace(tzinfo=UTC)
    moments = [moved + timedelta(minutes=minutes) for minutes in range(-300, 300, 5)]
    periods = [period_of(kind, at, ZoneInfo(zone)) for at in moments]
    for at, period in zip(moments, periods, strict=True):
        assert period.ends_at is not None
        assert period.starts_at <= at < period.ends_at
    for before, after in itertools.pairwise(periods):
        assert after in (before, period_of(kind, before.ends_at or moved, ZoneInfo(zone)))
        assert after.starts_at in (before.starts_at, before.ends_at)


def test_a_repeated_hour_is_two() -> None:
    """The hour that clocks in autumn show twice is two periods, and so is one in which they go back by half an hour."""
    for zone, change in (("Europe/Berlin", "2026-10-25T01:00"), ("Australia/Lord_Howe", "2026-04-04T15:00")):
        moved = datetime.fromisoformat(change).replace(tzinfo=UTC)
        before, after = (period_of("hour", moved + timedelta(minutes=minutes), ZoneInfo(zone)) for minutes in (-1, 1))
        assert (before.ends_at, after.starts_at) == (moved, moved)
