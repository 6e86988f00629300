"""Tags with so many values that nobody can ask by them are told of, in little memory and by each way of looking."""

from __future__ import annotations

import logging
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import sqlalchemy as sa
from flask import Flask
from flask_sqlalchemy import SQLAlchemy
from ledger_calls import a_call

from flask_llm_cost import LlmCostTracker, dashboard_blueprint, tags, track
from flask_llm_cost.doctor import examine
from flask_llm_cost.ledger.models import TagRollup
from flask_llm_cost.ledger.variety import MANY_VALUES, Variety
from flask_llm_cost.records import new_call_id


@pytest.mark.parametrize("shape", ["{}", "req-{:08x}", "user{}@mail.example", "Zürich {}"])
def test_it_is_said_at_ten_thousand_values(shape: str) -> None:
    """Once, between 9,700 and 10,300 values; what came before does not count again."""
    variety = Variety()
    crossed = []
    for n in range(12_000):
        values = (shape.format(n), shape.format(n // 2), shape.format(0))
        crossed += [n for value in values if variety.add({"key": value, "few": str(n % 50)})]
    assert len(crossed) == 1
    assert abs(crossed[0] - MANY_VALUES) < 300


def test_it_takes_little_memory() -> None:
    """A hundred keys are looked at, with eight kilobytes each; any others are left alone."""
    variety = Variety()
    for n in range(1000):
        variety.add({f"key{n}": "x", "few": "y"})
    assert len(variety._seen) == 100
    assert sum(sys.getsizeof(bits) for bits, _ in variety._seen.values()) < 1_000_000


@pytest.fixture
def app(tmp_path: Path) -> Iterator[Flask]:
    app = Flask("shop", instance_path=str(tmp_path))
    app.config.update(SQLALCHEMY_DATABASE_URI=f"sqlite:///{tmp_path}/app.db", TESTING=True)
    database = SQLAlchemy(app)
    LlmCostTracker(app)
    app.register_blueprint(dashboard_blueprint(guard=None), url_prefix="/c")
    with app.app_context():
        database.create_all()
        yield app
        app.extensions["llm_cost"].ledger.close()
        database.engine.dispose()


def issues(app: Flask) -> dict[str, Any]:
    found = app.test_client().get("/c/data-quality?format=json").get_json()["issues"]
    return {issue["name"]: issue for issue in found}


def test_the_alarm_is_heard(app: Flask, caplog: pytest.LogCaptureFixture) -> None:
    """The log and Data quality name a tag with over 10,000 values, once, and no other; nobody names a value."""
    ledger = app.extensions["llm_cost"].ledger
    ledger.append(a_call(tags={"feature": "chat", "request": "MARKER-first"}))
    assert ledger.flush(20)
    assert not [name for name in issues(app) if name.startswith("Very many")]
    # As if written before by this process: ten thousand calls would take the test half a minute.
    for n in range(MANY_VALUES - 400):
        ledger._tally.variety.add({"request": f"MARKER-{n}"})
    with caplog.at_level(logging.WARNING, "flask_llm_cost"):
        for n in range(900):
            ledger.append(a_call(tags={"feature": "chat", "request": f"MARKER-x{n}"}))
        assert ledger.flush(60)
    assert [message.split(" values")[0] for message in caplog.messages] == ["llm_cost: tag request has had over 10,000"]
    assert "MARKER" not in caplog.text
    (issue,) = [issue for name, issue in issues(app).items() if name.startswith("Very many")]
    assert issue["name"] == "Very many values of the tag request"
    assert (issue["level"], issue["found"].split(", ")[0]) == ("warning", "over 10,000")
    assert "MARKER" not in app.test_client().get("/c/data-quality").get_data(as_text=True)


def test_doctor_counts_what_is_kept(app: Flask) -> None:
    """Doctor warns of a key with 10,000 values in the ledger, whoever wrote them; with one fewer it says nothing."""
    ledger = app.extensions["llm_cost"].ledger
    ledger.append(a_call(tags={"feature": "chat", "order": "o0"}))
    assert ledger.flush(20)

    def told() -> list[tuple[str, str]]:
        return [(c.name, c.status) for c in examine(app.extensions["llm_cost"]) if c.name.startswith("tag ")]

    with ledger.session() as session:
        row = dict(session.execute(sa.select(TagRollup.__table__).where(TagRollup.key == "order")).mappings().one())
    rows = [row | {"id": new_call_id(), "value": f"o{n}"} for n in range(1, MANY_VALUES)]
    database = app.extensions["sqlalchemy"]
    for some, expected in ((rows[:-1], []), (rows[-1:], [("tag order", "warning")])):
        database.session.execute(sa.insert(TagRollup), some)
        database.session.commit()
        assert told() == expected


def test_redactions_are_counted(app: Flask) -> None:
    """What looked like a secret is counted for all processes, and Data quality and doctor say so."""
    assert issues(app) == {} or issues(app)["Tags redacted"]["found"] == "none"
    with app.app_context(), tags(note="sk-proj-" + "a" * 40, feature="chat"):
        track("openai", model="gpt-4o", usage={"input": 1})
    assert app.extensions["llm_cost"].ledger.flush(20)
    assert issues(app)["Tags redacted"]["found"].startswith("1, last on ")
    assert issues(app)["Tags redacted"]["level"] == "warning"
    assert [c.status for c in examine(app.extensions["llm_cost"]) if c.name == "redacted so far"] == ["warning"]
