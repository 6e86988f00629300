"""The report: what leads it, odd days for cron, an invoice beside it."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from pathlib import Path
from typing import Any

import pytest
from click.testing import Result
from flask import Flask
from flask_sqlalchemy import SQLAlchemy
from ledger_rows import add_call

from flask_llm_cost import LlmCostTracker
from flask_llm_cost.dashboard.forecast import ANOMALY_RULE

Run = Callable[..., Result]


def today() -> datetime:
    """The first second of the day that it is now: a run may pass midnight."""
    return datetime.now(UTC).replace(hour=0, minute=0, second=1, microsecond=0)


@pytest.fixture
def app(tmp_path: Path) -> Iterator[Flask]:
    app = Flask("reporting", instance_path=str(tmp_path))
    app.config.update(SQLALCHEMY_DATABASE_URI=f"sqlite:///{tmp_path}/app.db", TESTING=True)
    database = SQLAlchemy(app)
    LlmCostTracker(app)
    with app.app_context():
        database.create_all()
        yield app
        database.session.remove()
        database.engine.dispose()
    app.extensions["llm_cost"].ledger.close()


@pytest.fixture
def add(app: Flask) -> Callable[..., Any]:
    def add(days_ago: float, cost: str | None, **columns: Any) -> None:
        session = app.extensions["sqlalchemy"].session
        at = columns.pop("at", None) or today() - timedelta(days=days_ago)
        add_call(session, at, cost, **columns)
        session.commit()

    return add


@pytest.fixture
def run(app: Flask) -> Run:
    def invoke(*arguments: str) -> Result:
        result = app.test_cli_runner().invoke(args=["llm-cost", "report", *arguments])
        assert result.exception is None or isinstance(result.exception, SystemExit)
        return result

    return invoke


def test_what_and_who_lead(add: Callable[..., Any], run: Run) -> None:
    """Above a table by model stands a line for each of LLM_COST_REPORT_TAGS that calls have; a table by tag needs none."""
    for number, (feature, cost) in enumerate((("chat", "6"), ("search", "3"), ("digest", "1"), ("triage", "0.5"))):
        add(number, cost, tags={"feature": feature, "tenant_id": "acme"})
    lines = run().output.splitlines()
    assert lines[2] == "feature    chat $6.00 (57%), search $3.00 (29%), digest $1.00 (10%)"
    assert lines[3] == "tenant_id  acme $10.50 (100%)"
    assert not any(line.startswith("user_id") for line in lines)
    assert "chat $6.00" not in run("--by", "tag:feature").output
    found = json.loads(run("--format", "json").output)
    assert found["leads"]["tag:tenant_id"] == [{"value": "acme", "calls": 4, "cost": "10.5"}]


def test_what_is_not_in_the_number_is_said(add: Callable[..., Any], run: Run) -> None:
    """A blocked call cost nothing, which is not unknown; calls that reported no usage are told of below the table."""
    silent = {"cost_status": "unpriced", "usage_source": "unknown"}
    add(0, None, model="gpt-4o", outcome="blocked", tags={"feature": "chat"}, **silent)
    lines = run().output.splitlines()
    assert [line.split()[-1] for line in lines if line.startswith(("gpt-4o", "total"))] == ["none", "none"]
    assert lines[2] == "feature  chat none"
    assert "Not in this number" not in run().output
    add(0, None, model="o3", outcome="interrupted", **silent)
    output = run().output
    assert [line.split()[-1] for line in output.splitlines() if line.startswith(("o3", "total"))] == ["unknown", "unknown"]
    assert "Not in this number: 1 call that reported no usage." in output
    assert output.endswith("flask llm-cost report --by usage_source,outcome,model\n")


def test_calls_in_other_currencies_are_not_passed_over(add: Callable[..., Any], run: Run) -> None:
    """What was paid in other currencies is not in the number, never added to it, and said to be missing from it."""
    add(0, "3", currency="EUR", provider="acme", model="m")
    add(0, "0.5", currency="EUR", provider="acme", model="m")
    output = run().output
    assert "No call in USD in these days." in output
    assert "Not in this number: 2 calls in EUR (€3.50)." in output
    add(0, "7")
    add(0, "900", currency="JPY")
    output = run().output
    assert output.splitlines()[-1] == "What for: flask llm-cost report --by currency,model"
    assert "Not in this number: 2 calls in EUR (€3.50) and 1 call in JPY (¥900)." in output
    assert [line.split()[-1] for line in output.splitlines() if line.startswith("total")] == ["$7.00"]
    found = json.loads(run("--format", "json").output)
    assert (found["currency"], found["total"]["cost"]) == ("USD", "7")
    assert found["other_currencies"][0] == {"currency": "EUR", "calls": 2, "cost": "3.5"}
    assert "2 calls in EUR" in run("--format", "csv").stderr
    assert "2 calls in EUR" not in run("--format", "csv").stdout


def test_a_report_by_currency(add: Callable[..., Any], run: Run) -> None:
    """By currency the rows are those of every currency, each in its own, and so are the totals; nothing is missing then."""
    for cost, currency in (("7", "USD"), ("3", "EUR"), ("1", "EUR")):
        add(0, cost, currency=currency, model="m")
    lines = run("--by", "model,currency").output.splitlines()
    assert lines[0].endswith("(UTC, USD and EUR)")
    assert [(line.split()[:2], line.split()[-1]) for line in lines if line.startswith(("m ", "total"))] == [
        (["m", "USD"], "$7.00"), (["m", "EUR"], "€4.00"), (["total", "USD"], "$7.00"), (["total", "EUR"], "€4.00"),
    ]  # fmt: skip
    assert not any("Not in this number" in line for line in lines)
    rows = json.loads(run("--by", "currency", "--format", "json").output)["rows"]
    assert {row["currency"]: row["cost"] for row in rows} == {"USD": "7", "EUR": "4"}
    assert run("--by", "currency", "--format", "csv").stderr == ""


def test_odd_days_and_invoices_say_what_they_leave_out(add: Callable[..., Any], run: Run) -> None:
    """Days and invoices are compared in US dollars, and calls in other currencies are said to be left out."""
    add(0, "300", currency="EUR", provider="acme", model="m")
    assert "Not looked at: 1 call in EUR (€300.00)." in run("--anomalies").output
    assert json.loads(run("--anomalies", "--format", "json").output)["other_currencies"][0]["cost"] == "300"
    written = f"--invoice={today():%Y-%m}=acme:300"
    output = run(written).output
    assert "Not in the ledger's number: 1 call in EUR (€300.00). Invoices are compared in USD only." in output
    assert "has no calls of acme" not in output
    assert "it has some of acme." in run(f"--invoice={today():%Y-%m}=acne:300").output
    (found,) = json.loads(run(written, "--format", "json").output)
    assert found["other_currencies"] == [{"currency": "EUR", "calls": 1, "cost": "300"}]


@pytest.fixture
def month(add: Callable[..., Any]) -> None:
    """Four quiet weeks, a little more and a little less, until yesterday."""
    for day in range(2, 31):
        add(day, "2" if day % 2 else "2.2", model="gpt-4o", tags={"feature": "chat"})


def test_a_quiet_month_has_no_odd_day(month: None, run: Run) -> None:
    """``--anomalies`` exits 0 where nothing is out of line."""
    result = run("--anomalies", "--days", "10")
    assert (result.exit_code, result.output.startswith("No odd day")) == (0, True)


def test_odd_days_fail_a_cron_job(month: None, add: Callable[..., Any], run: Run) -> None:
    """A day out of line is told with what it went to and the dashboard's rule, and makes the exit code 1."""
    add(1, "2", model="gpt-4o", tags={"feature": "chat"})
    add(1, "38", model="o3-pro", tags={"feature": "digest"})
    result = run("--anomalies")
    assert result.exit_code == 1
    assert f"{(today() - timedelta(days=1)).date()}  $40.00, " in result.output
    assert "model o3-pro ($38.00 more), feature digest ($38.00 more)" in result.output
    assert ANOMALY_RULE[1:] in result.output
    found = json.loads(run("--anomalies", "--format", "json").output)["anomalies"]
    assert [(odd["cost"], odd["usual"]) for odd in found] == [("40", "2.1")]
    assert run("--anomalies", "--days", "1").exit_code == 0


def test_today_can_be_odd_already(month: None, add: Callable[..., Any], run: Run) -> None:
    """Today counts: what is too much already does not become less."""
    add(0, "50")
    assert run("--anomalies", "--days", "1").exit_code == 1


@pytest.fixture
def october(add: Callable[..., Any]) -> None:
    inside = datetime(2026, 10, 31, 23, 59, 59, tzinfo=UTC)
    add(0, "900", at=inside, model="gpt-4o")
    add(0, "100", at=inside, model="gpt-4o-mini")
    add(0, None, at=inside, model="gpt-new")
    add(0, "7", at=inside, model="gpt-4o", usage_source="stream_partial")
    add(0, "50", at=datetime(2026, 11, 1, tzinfo=UTC), model="gpt-4o")
    add(0, "50", at=inside, provider="anthropic", model="claude-sonnet-4-6")


def test_an_invoice_beside_the_ledger(october: None, run: Run) -> None:
    """The month's calls of that provider, by model, with differences that add up, and what can explain them."""
    output = run("--invoice", "2026-10=openai:1234.56").output
    assert "Invoice of openai, 2026-10 (UTC, USD)" in output
    assert "$1,007.00" in output
    assert "+$227.56" in output
    assert "1 call without a price" in output
    assert "Estimated: 1 call" in output
    assert "in proportion" in output
    (found,) = json.loads(run("--invoice", "2026-10=openai:1234.56", "--format", "json").output)
    assert (found["ledger"], found["invoice"], found["difference"]) == ("1007", "1234.56", "227.56")
    differences = {row["model"]: row["difference"] for row in found["models"]}
    assert differences["gpt-new"] is None
    assert sum(Decimal(value) for value in differences.values() if value) == Decimal("227.56")


def test_an_invoice_by_model(october: None, run: Run) -> None:
    """Amounts of single models are compared with that model's calls, models that the ledger has not seen included."""
    written = [f"--invoice=2026-10=openai/{name}" for name in ("gpt-4o:907", "gpt-4o-mini:120.5", "dall-e-3:10")]
    (found,) = json.loads(run(*written, "--format", "json").output)
    assert {row["model"]: row["difference"] for row in found["models"]} == {
        "gpt-4o": "0", "gpt-4o-mini": "20.5", "gpt-new": None, "dall-e-3": "10",
    }  # fmt: skip
    assert found["difference"] == "30.5"
    assert "in proportion" not in run(*written).output


@pytest.mark.parametrize(
    "written",
    [
        "openai:12",
        "2026-13=openai:12",
        "2026-10=openai",
        "2026-10=openai:dear",
        "2026-10=:1",
        "9999-12=openai:1",
        "2026-10=openai:1e500",
        "2026-10=openai:625,50",
        "2026-10=openai:1,2345.00",
        "2026-10=openai:,1",
    ],
)
def test_what_is_no_invoice(written: str, run: Run) -> None:
    """A mistyped invoice is an error that shows how to write one."""
    result = run("--invoice", written)
    assert result.exit_code == 1
    assert "2026-10=openai:1234.56" in result.output


def test_two_invoices_of_a_month_are_added_up(october: None, run: Run) -> None:
    """A provider may bill twice a month, for all or for a model: no amount is dropped. Thousands may have commas."""
    (found,) = json.loads(run("--invoice=2026-10=openai:1,000", "--invoice=2026-10=openai:12.50", "--format", "json").output)
    assert (found["invoice"], found["difference"]) == ("1012.5", "5.5")
    written = [f"--invoice=2026-10=openai/gpt-4o:{amount}" for amount in ("900", "10.5")]
    (found,) = json.loads(run(*written, "--format", "json").output)
    assert (found["invoice"], found["models"][0]["difference"]) == ("910.5", "3.5")


def test_an_invoice_of_nobody(october: None, run: Run) -> None:
    """That the ledger has no calls of a provider is said, with those that it has; a credit's percentage has its sign."""
    output = run("--invoice", "2026-10=opnai:3").output
    assert "The ledger has no calls of opnai in this month; it has some of anthropic, openai." in output
    assert "The difference is -20240.0% of the invoice." in run("--invoice", "2026-10=openai:-5").output


@pytest.mark.parametrize(
    ("given", "said"),
    [
        (("--by", ""), "name what to group by"),
        (("--by", " , "), "name what to group by"),
        (("--anomalies", "--by", "model"), "--by is for the table of spend"),
        (("--invoice", "2026-10=openai:1", "--days", "3"), "--days is for the table of spend"),
    ],
)
def test_options_that_say_nothing_are_refused(run: Run, given: tuple[str, ...], said: str) -> None:
    """An empty dimension, and an option that this report does not look at, are errors that say so."""
    result = run(*given)
    assert (result.exit_code, said in result.output) == (2, True)


def test_a_dimension_twice_is_one_column(month: None, run: Run) -> None:
    """A dimension that is named twice is one."""
    assert run("--by", "model,model").output == run("--by", "model").output


@pytest.mark.parametrize("name", ["=1+1", "＝1+1", "－1", "\u00a0@x"])
def test_no_cell_of_a_report_is_a_formula(add: Callable[..., Any], run: Run, name: str) -> None:
    """Text that a spreadsheet would run begins with an apostrophe in the report's CSV as in the dashboard's."""
    add(0, "1", model=name)
    assert f"'{name},1,1," in run("--by", "model", "--format", "csv").output


def test_one_report_at_a_time(run: Run) -> None:
    """Odd days and an invoice at once, or as CSV, are refused with a sentence."""
    assert run("--anomalies", "--invoice", "2026-10=openai:1").exit_code == 2
    assert run("--anomalies", "--format", "csv").exit_code == 2


def test_days_without_calls_say_where_to_look(run: Run, add: Callable[..., Any]) -> None:
    """A report of nothing is no table of zeros: it says what to ask. Programs get their empty rows."""
    result = run()
    assert result.exit_code == 0
    assert result.output.rstrip().endswith("No call in these days. What is watched, and what is not: flask llm-cost doctor")
    assert json.loads(run("--format", "json").output)["rows"] == []
    add(0, None)
    assert "No call" not in run().output
