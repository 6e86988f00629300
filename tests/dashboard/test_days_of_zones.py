"""Days of any zone, short and long ones, come to the same as the whole range, wherever it is asked."""

from __future__ import annotations

import csv
import io
from collections import defaultdict
from collections.abc import Callable
from datetime import UTC, date, datetime, time, timedelta
from decimal import Decimal
from zoneinfo import ZoneInfo

import pytest
import sqlalchemy as sa
from mounted_app import PREFIX, MountedApp

from flask_llm_cost.ledger import spend
from flask_llm_cost.ledger.models import Call, TagRollup
from flask_llm_cost.records import CallRecord, Usage, new_call_id


@pytest.mark.parametrize(
    ("zone", "first", "last"),
    [
        ("Europe/Berlin", date(2025, 3, 28), date(2025, 4, 2)),  # a day of 23 hours, and the end of a month
        ("America/New_York", date(2025, 10, 30), date(2025, 11, 4)),  # a day of 25 hours
        ("Asia/Kathmandu", date(2025, 2, 26), date(2025, 3, 2)),  # 5:45 ahead of UTC
    ],
)
def test_days_of_a_zone_add_up(make: Callable[..., MountedApp], zone: str, first: date, last: date) -> None:
    """Each day is what a hand adds up; days = range = overview = both files = ``spend``, with and without a tag."""
    app = make(LLM_COST_TIMEZONE=zone).mount()
    ledger, local = app.app.extensions["llm_cost"].ledger, ZoneInfo(zone)
    days = [first + timedelta(days=n) for n in range((last - first).days + 1)]
    begin, end = (datetime.combine(day, time(), local).astimezone(UTC) for day in (first, last + timedelta(days=1)))
    instants = [begin + timedelta(minutes=47 * n) for n in range(-20, int((end - begin) / timedelta(minutes=47)) + 20)]
    for day in (*days, last + timedelta(days=1)):
        midnight = datetime.combine(day, time(), local).astimezone(UTC)
        instants += [midnight - timedelta(microseconds=1), midnight]
    for n, at in enumerate(instants):
        ledger.append(
            CallRecord(
                id=new_call_id(),
                occurred_at=at,
                provider="openai",
                operation="chat.completions",
                model="gpt-4o-mini",
                usage=Usage({"input": 1000 + n, "output": 7 * n}, "response"),
                tags={"feature": f"f{n % 3}"},
            )
        )
    assert ledger.flush(30)
    expected: dict[date, Decimal] = defaultdict(Decimal)
    with app.app.app_context():
        for at, cost in app.database.session.execute(sa.select(Call.occurred_at, Call.total_cost)):
            assert cost is not None
            expected[at.astimezone(local).date()] += cost
        assert app.database.session.scalar(sa.select(sa.func.count()).select_from(TagRollup))
    total = sum((expected[day] for day in days), Decimal(0))
    query = {"range": "custom", "from": str(first), "to": str(last)}
    data = app.get(**query, format="json").get_json()
    assert Decimal(data["total"]["cost"]) == total
    assert {row["first"]: Decimal(row["cost"]) for row in data["days"]} == {str(day): expected[day] for day in days}
    for table in ("by", "days"):
        text = app.get(**query, format="csv", table=table).data.decode("utf-8-sig")
        assert sum(Decimal(row["cost"]) for row in csv.DictReader(io.StringIO(text, newline=""))) == total
    text = app.get(PREFIX + "/calls.csv", **query).data.decode("utf-8-sig")
    assert sum(Decimal(row["total_cost"]) for row in csv.DictReader(io.StringIO(text, newline=""))) == total
    with app.app.app_context():
        until = last + timedelta(days=1)
        assert spend.total(since=first, until=until).cost == total
        assert sum(row.cost or 0 for row in spend.over("day", since=first, until=until)) == total
        assert sum(row.cost or 0 for row in spend.over("month", since=first, until=until)) == total
        assert sum(row.cost or 0 for row in spend.by("tag:feature", since=first, until=until)) == total
        assert sum(spend.total(since=day, until=day + timedelta(days=1)).cost or 0 for day in days) == total
