"""The last digit: whoever says what calls came to, rows, rollups, budgets, pages and commands, says the same."""

from __future__ import annotations

import decimal
import json
from collections.abc import Iterator
from decimal import Context, Decimal
from pathlib import Path

import pytest
import sqlalchemy as sa
from apps import Apps
from flask import Flask

from flask_llm_cost import track
from flask_llm_cost.dashboard import dashboard_blueprint
from flask_llm_cost.errors import TooLargeSumError
from flask_llm_cost.ledger import Call, spend

#: A token of input is less than half of the ledger's last place, and forty of them are more than that.
PRICE = {"input": "0.0000004", "output": "0.5"}
BUDGETS = [
    {"name": "all", "limit": "100000", "period": "day"},
    {"name": "tokens", "limit": "9000000000", "period": "day", "unit": "tokens"},
]


@pytest.fixture(params=["inline", "background"])
def app(request: pytest.FixtureRequest, database_url: sa.URL, tmp_path: Path) -> Iterator[Flask]:
    apps = Apps(tmp_path, LLM_COST_PRICE_OVERRIDES={"acme/m": PRICE}, LLM_COST_BUDGETS=BUDGETS)
    app = apps.make(database_url, LLM_COST_WRITE_MODE=request.param)
    app.register_blueprint(dashboard_blueprint(guard=None), url_prefix="/costs")
    with app.app_context():
        yield app
    apps.close()


@pytest.fixture
def coarse() -> Iterator[None]:
    """An app that computes with eight digits, in this thread and in those to come."""
    before, everywhere = decimal.getcontext(), decimal.DefaultContext.prec
    decimal.DefaultContext.prec = 8
    decimal.setcontext(Context(prec=8))
    yield
    decimal.setcontext(before)
    decimal.DefaultContext.prec = everywhere


def _said(app: Flask) -> dict[str, Decimal | None]:
    """What the calls came to, asked in every way."""
    state = app.extensions["llm_cost"]
    found = app.test_client().get("/costs/?format=json").get_json()
    report = app.test_cli_runner().invoke(args=["llm-cost", "report", "--by", "model", "--format", "json"])
    status = {one.budget: one for one in state.budgets.statuses()}
    used = status["all"].used
    with state.tracker.session() as session, decimal.localcontext(Context(prec=64)):
        return {
            "rows": sum(session.scalars(sa.select(Call.total_cost)), Decimal(0)),
            "rollups": spend.total().cost,
            "by tag": sum((row.cost or Decimal(0) for row in spend.by("tag:feature", "day")), Decimal(0)),
            "page": Decimal(found["total"]["cost"]),
            "panel": sum((Decimal(row["cost"]) for row in found["breakdowns"][0]["rows"]), Decimal(0)),
            "report": Decimal(json.loads(report.output)["total"]["cost"]),
            "budget": status["all"].spent,
            "used": used,
            "tokens": status["tokens"].spent,
        }


def _record(calls: int, tokens: int) -> None:
    for number in range(calls):
        track("acme", model="m", usage={"input": tokens, "output": 7 + number}, tags={"feature": f"f{number % 2}"})


def test_amounts_beyond_the_last_place_are_the_same_everywhere(app: Flask) -> None:
    """A call whose cost has more places than the ledger is rounded once, and so it is in every sum; doctor agrees."""
    _record(40, 1)
    assert app.extensions["llm_cost"].tracker.flush(20)
    said = _said(app)
    output = sum(7 + number for number in range(40))
    assert said.pop("tokens") == 40 + output
    assert set(said.values()) == {Decimal(PRICE["output"]) * output / 10**6}, said
    doctor = app.test_cli_runner().invoke(args=["llm-cost", "doctor"]).output
    assert "rollups against calls" in doctor
    assert "changed one of them by hand" not in doctor


@pytest.mark.usefixtures("coarse")
def test_an_app_with_a_coarse_decimal_context_has_exact_sums(app: Flask) -> None:
    """An app that computes with eight digits changes no sum of ours, and its own arithmetic stays as coarse as it is."""
    _record(30, 123_456_789)
    assert app.extensions["llm_cost"].tracker.flush(20)
    said = _said(app)
    assert said.pop("tokens") == sum(123_456_789 + 7 + number for number in range(30))
    assert len(set(said.values())) == 1, said
    assert len((said["rows"] or Decimal(0)).as_tuple().digits) > 8
    assert decimal.getcontext().prec == 8


@pytest.mark.parametrize("mode", ["inline", "background"])
@pytest.mark.parametrize("action", ["notify", "block"])
def test_calls_are_written_where_sqlite_cannot_add_them_up(
    sqlite_url: sa.URL, tmp_path: Path, mode: str, action: str
) -> None:
    """Calls whose sums are too large for SQLite, their budget's too, are written and exact; who asks for the sum is told."""
    apps = Apps(
        tmp_path,
        LLM_COST_PRICE_OVERRIDES={"acme/m": {"rates": {"input": "1000000"}, "currency": "IDR"}},
        LLM_COST_BUDGETS=[{"name": "all", "limit": "9000000", "period": "month", "currency": "IDR", "action": action}],
    )
    app = apps.make(sqlite_url, LLM_COST_WRITE_MODE=mode)
    with app.app_context():
        for _ in range(16):
            track("acme", model="m", usage={"input": 1_000_000})
        state = app.extensions["llm_cost"]
        assert state.tracker.flush(20)
        with state.tracker.session() as session:
            assert list(session.scalars(sa.select(Call.total_cost))) == [Decimal(10) ** 6] * 16
        with pytest.raises(TooLargeSumError):
            spend.total(currency="IDR")
        (status,) = state.budgets.statuses()
        assert (status.spent, status.left) == (16 * 10**6, 0)
    apps.close()
