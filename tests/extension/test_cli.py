"""The commands, as a person types them."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from click.testing import Result
from flask import Flask
from flask_sqlalchemy import SQLAlchemy

from flask_llm_cost import LlmCostTracker, dashboard_blueprint, track


@pytest.fixture
def app(tmp_path: Path) -> Any:
    app = Flask("shop", instance_path=str(tmp_path))
    app.config["SQLALCHEMY_DATABASE_URI"] = f"sqlite:///{tmp_path}/app.db"
    app.config["TESTING"] = True
    database = SQLAlchemy(app)
    LlmCostTracker(app)
    app.register_blueprint(dashboard_blueprint(guard=lambda view: view), url_prefix="/costs")
    yield app
    app.extensions["llm_cost"].ledger.close()
    with app.app_context():
        database.engine.dispose()


@pytest.fixture
def run(app: Flask) -> Callable[..., Result]:
    def invoke(*arguments: str) -> Result:
        result = app.test_cli_runner().invoke(args=["llm-cost", *arguments])
        assert result.exception is None or isinstance(result.exception, SystemExit)
        return result

    return invoke


@pytest.fixture
def spent(app: Flask, run: Callable[..., Result]) -> Flask:
    run("install")
    with app.app_context():
        track("openai", model="gpt-4o", usage={"input": 1_000_000}, tags={"feature": "chat"})
        track("openai", model="gpt-4o", usage={"input": 1_000_000, "cache_read": 200}, tags={"feature": "=1+1"})
        track("openai", model="nobody-knows", usage={"input": 10})
        assert app.extensions["llm_cost"].tracker.flush()
    return app


def test_install_makes_the_tables(run: Callable[..., Result]) -> None:
    """Without Flask-Migrate ``install`` makes the tables, says so, and can be repeated; doctor is content then."""
    before = run("doctor")
    assert before.exit_code == 1
    assert "flask db upgrade" in before.output
    assert "flask llm-cost install" in before.output
    for _ in range(2):
        done = run("install")
        assert done.exit_code == 0
        assert "tables of the ledger are there" in done.output
    after = run("doctor", "--format", "json")
    assert after.exit_code == 0
    checks = json.loads(after.output)
    assert {"Setup", "Schema", "Capture", "Prices", "Ledger", "Budgets", "Dashboard"} == {check["group"] for check in checks}
    assert all(check["status"] in ("ok", "warning") for check in checks)


def test_missing_tables_are_an_error_for_people(run: Callable[..., Result]) -> None:
    """A report without tables says what to run, in a sentence and without a traceback."""
    result = run("report")
    assert result.exit_code == 1
    assert "flask db upgrade" in result.output
    assert "Traceback" not in result.output


def test_the_report_adds_up(spent: Flask, run: Callable[..., Result]) -> None:
    """The table has a row per model, exact totals, and says what is not in the number."""
    output = run("report").output
    assert "gpt-4o" in output
    assert "$5.00" in output
    assert "unknown" in output
    assert "1 call without a price (openai/nobody-knows)" in output
    found = json.loads(run("report", "--by", "tag:feature,model", "--format", "json").output)
    assert found["total"]["cost"] == "5.00025"
    assert found["total"]["calls"] == 3
    assert [row["cost"] for row in found["rows"]] == ["2.50025", "2.5", None]
    lines = run("report", "--by", "tag:feature", "--format", "csv").output.splitlines()
    assert lines[0].startswith("tag:feature,calls,cost,")
    assert any(line.startswith("'=1+1,") for line in lines)


def test_an_unknown_dimension_lists_those_that_are_known(spent: Flask, run: Callable[..., Result]) -> None:
    """A mistyped dimension is an error that names it and the choices."""
    result = run("report", "--by", "modle")
    assert result.exit_code == 1
    assert "modle" in result.output
    assert "provider" in result.output


def test_a_price_is_explained(run: Callable[..., Result]) -> None:
    """``prices explain`` shows source, rule, rates and the arithmetic; for an unknown model the nearest, and exits 1."""
    known = run("prices", "explain", "openai", "gpt-4o-2024-08-06", "--usage", "input=1000,output=20")
    assert known.exit_code == 0
    assert "0.0027" in known.output
    unknown = run("prices", "explain", "openai", "gpt-4x")
    assert unknown.exit_code == 1
    assert "openai/gpt-4o" in unknown.output
    assert "LLM_COST_PRICE_OVERRIDES" in unknown.output
    wrong = run("prices", "explain", "openai", "gpt-4o", "--usage", "inptu=5")
    assert wrong.exit_code == 1
    assert "cache_read" in wrong.output


def test_doctor_names_models_without_a_price(spent: Flask, run: Callable[..., Result]) -> None:
    """A model of the last week without a price is a warning with the command that explains it."""
    assert "flask llm-cost prices explain openai nobody-knows" in run("doctor").output


def test_flush_says_whether_all_is_written(spent: Flask, run: Callable[..., Result]) -> None:
    """``flush`` exits 0 when everything is in the database."""
    result = run("flush")
    assert result.exit_code == 0
    # Other apps of the same test run share its temporary spool folder, and may be named after this.
    assert result.output.startswith("all records are in the database\n")


def test_doctor_sees_an_open_dashboard(app: Flask, run: Callable[..., Result]) -> None:
    """A dashboard published without a guard, and a switched-off login, are errors."""
    run("install")
    app.register_blueprint(dashboard_blueprint(guard=None, name="open"), url_prefix="/open")
    assert "open to everybody" in run("doctor").output
    app.config["LOGIN_DISABLED"] = True
    assert "LOGIN_DISABLED" in run("doctor").output
