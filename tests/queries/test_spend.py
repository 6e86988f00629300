"""``spend``: the questions as an app asks them."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import UTC, date, datetime, timedelta
from decimal import Decimal
from typing import Any
from zoneinfo import ZoneInfo

import pytest
import sqlalchemy as sa
from flask import Flask
from flask_sqlalchemy import SQLAlchemy
from ledger_rows import add_call

from flask_llm_cost.errors import QueryError, SchemaMissingError
from flask_llm_cost.extension import LlmCostTracker
from flask_llm_cost.ledger import spend

BERLIN = ZoneInfo("Europe/Berlin")


@pytest.fixture
def database() -> SQLAlchemy:
    return SQLAlchemy()


@pytest.fixture
def app(database_url: sa.URL, database: SQLAlchemy) -> Iterator[Flask]:
    app = Flask(__name__)
    app.config.update(TESTING=True, SQLALCHEMY_DATABASE_URI=database_url, LLM_COST_TIMEZONE="Europe/Berlin")
    database.init_app(app)
    LlmCostTracker(app)
    with app.app_context():
        yield app
        database.session.remove()
        app.extensions["llm_cost"].ledger.close()
        for engine in database.engines.values():
            engine.dispose()


@pytest.mark.usefixtures("app")
class TestSpend:
    @pytest.fixture(autouse=True)
    def calls(self, app: Flask, database: SQLAlchemy) -> None:
        database.create_all()
        at = datetime(2026, 11, 3, 12, tzinfo=UTC)
        add_call(database.session, at, "1", tags={"feature": "chat"})
        add_call(database.session, at + timedelta(days=1), "2", model="gpt-4o-mini", tags={"feature": "chat"})
        add_call(database.session, at + timedelta(days=2), "4", provider="anthropic", model="claude")
        add_call(database.session, datetime.now(UTC), "8", model="now")
        database.session.commit()

    def test_total_of_days(self) -> None:
        """Dates are days of the reporting zone, half open."""
        assert spend.total(since=date(2026, 11, 3), until=date(2026, 11, 5)).cost == 3
        edge = datetime(2026, 11, 4, tzinfo=BERLIN)
        assert spend.total(since=date(2026, 11, 3), until=edge).cost == 1

    def test_today_and_this_month(self) -> None:
        """Today and this month hold what was spent just now."""
        assert spend.today(model="now").cost == Decimal(8)
        assert spend.this_month(model="now").cost == Decimal(8)

    def test_by_one_and_by_several(self) -> None:
        """Grouped by one dimension or several, the rows add up to the total."""
        november = {"since": date(2026, 11, 1), "until": date(2026, 11, 10)}
        rows = spend.by("provider", "tag:feature", **november)
        assert {(row["provider"], row["tag:feature"]): row["cost"] for row in rows} == {
            ("anthropic", None): 4,
            ("openai", "chat"): 3,
        }
        assert [row.model for row in spend.top("model", 1, **november)] == ["claude"]
        assert sum(row.cost or 0 for row in spend.by("day", **november)) == spend.total(**november).cost

    def test_over_time_has_no_gaps(self) -> None:
        """A series has a row for every day, without calls too."""
        rows = spend.over("day", since=date(2026, 11, 1), until=date(2026, 11, 6))
        assert [(row.day, row.cost) for row in rows] == [
            (date(2026, 11, day), cost) for day, cost in ((1, 0), (2, 0), (3, 1), (4, 2), (5, 4))
        ]

    def test_filters(self) -> None:
        """Filters narrow, the untagged are asked for with None, and a misspelt one is refused with the choices."""
        assert spend.total(tags={"feature": "chat"}).cost == 3
        assert spend.total(tags={"feature": None}, provider="anthropic").cost == 4
        with pytest.raises(QueryError, match="'modle'; known are: since"):
            spend.total(modle="x")
        with pytest.raises(QueryError, match="since='yesterday' is no time; give a date"):
            spend.total(since="yesterday")
        with pytest.raises(QueryError, match="time zone"):
            spend.total(since=datetime(2026, 11, 1))
        with pytest.raises(QueryError, match="before"):
            spend.total(since=date(2026, 11, 2), until=date(2026, 11, 1))
        with pytest.raises(QueryError, match="at least one"):
            spend.by()

    def test_tags_are_asked_for_as_they_are_given(self, database: SQLAlchemy) -> None:
        """A value is asked for as a call's is kept: True as "true", 7 as "7". An empty one is on no call."""
        at = datetime(2026, 11, 3, 12, tzinfo=UTC)
        add_call(database.session, at, "16", tags={"beta": "true", "team": "7", "where": '["a"]', "token": "[redacted]"})
        database.session.commit()
        for given in ({"beta": True}, {"team": 7}, {"where": ["a"]}, {"token": "sk-1"}, {"beta": True, "team": 7}):
            assert spend.total(tags=given).cost == 16, given
            assert spend.total(tags=given, operation="chat.completions").cost == 16, given
        assert spend.total(tags={"beta": False}).calls == spend.total(tags={"beta": ""}).calls == 0
        assert spend.total(tags=None).cost == spend.total().cost == 31

    @pytest.mark.parametrize(
        ("filters", "words"),
        [
            ({"provider": ["openai"]}, r"provider=\['openai'\] must be a string"),
            ({"model": 4}, "model=4 must be a string"),
            ({"stream": "yes"}, "stream='yes' must be True or False"),
            ({"outcome": "failed"}, "outcome='failed' is none that calls have; known are: ok, interrupted"),
            ({"usage_source": b"known"}, "usage_source=b'known' must be a string, or None for any; known are: known"),
            ({"cost_status": "unknown"}, "known are: priced, partial, unpriced, free"),
            ({"tags": ["feature"]}, "must be a dict"),
            ({"tags": {"Feature": "chat"}}, "{'Feature': ...}: no call has such a tag"),
            ({"tags": {7: "chat"}}, "{7: ...}: no call has such a tag"),
        ],
    )
    def test_values_that_no_call_can_have_are_refused(self, filters: dict[str, Any], words: str) -> None:
        """A filter of the wrong type, or with a word that no call has, is an error that names both, never a total of 0."""
        with pytest.raises(QueryError, match=words):
            spend.total(**filters)

    def test_today_has_its_range(self) -> None:
        """today() and this_month() refuse another range, and say whom to ask."""
        for question in (spend.today, spend.this_month):
            for name in ("since", "until"):
                with pytest.raises(QueryError, match=rf"spend.{question.__name__}\(\) has a range.*{name}=.*spend.total"):
                    question(**{name: date(2026, 11, 1)})

    def test_currencies_side_by_side(self) -> None:
        """Grouped by currency, several are told apart; otherwise US dollars are meant."""
        assert [row.currency for row in spend.by("currency")] == ["USD"]
        assert spend.total(currency="EUR").cost == 0


@pytest.mark.usefixtures("app")
def test_missing_tables_say_so() -> None:
    """Before the tables are there, the error says how to make them."""
    with pytest.raises(SchemaMissingError, match="flask db upgrade"):
        spend.this_month()
