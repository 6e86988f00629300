"""Amounts of budgets in the unit and the currency that they have: what is held, what is shown, what is released."""

from __future__ import annotations

import csv
import io
import json
from datetime import UTC, datetime
from decimal import Decimal
from typing import Any

import sqlalchemy as sa
from budget_apps import BODY, AppMaker, BudgetApp

from flask_llm_cost.budgets.accounts import Subject
from flask_llm_cost.budgets.asking import Answer, Ask
from flask_llm_cost.dashboard import dashboard_blueprint
from flask_llm_cost.records import new_call_id


def ask(app: BudgetApp, provider: str, model: str) -> Answer:
    """What the budgets say to a call."""
    subject = Subject(provider, (model,), {}, datetime.now(UTC))
    body = json.dumps({**BODY, "model": model}).encode()
    return app.budgets.authorise(
        Ask(new_call_id(), subject, "chat.completions", body, len(body), app.budgets.blocking(subject))
    )


def test_a_budget_that_counts_something_else_now(sqlite_app: AppMaker) -> None:
    """What was held in euros is shown and released in euros, though the budget of that name counts tokens by now."""
    then: Any = {"name": "b", "limit": "10", "period": "day", "action": "block", "currency": "EUR"}
    before = sqlite_app(then)
    assert ask(before, "openai", "gpt-4o").error is None
    held = before.open_amount()
    assert 0 < held < 1
    app = sqlite_app({"name": "b", "limit": "1000000", "period": "day", "action": "block", "unit": "tokens"})
    (hold,) = app.budgets.open_holds()
    assert (hold.amount, hold.unit, hold.currency) == (held, "cost", "EUR")
    app.flask.register_blueprint(dashboard_blueprint(guard=None), url_prefix="/costs")
    client = app.flask.test_client()
    assert f"€{held.normalize()}</td>" in client.get("/costs/budgets").get_data(as_text=True)
    file = client.get("/costs/budgets?format=csv&table=holds").data.decode("utf-8-sig")
    (row,) = csv.DictReader(io.StringIO(file))
    assert (Decimal(row["amount"]), row["unit"], row["currency"]) == (held, "cost", "EUR")
    with app.engine.begin() as connection:
        connection.execute(sa.text("UPDATE llm_cost_budget_holds SET state = 'unresolved'"))
        connection.execute(sa.text("UPDATE llm_cost_budget_periods SET unresolved = held, held = 0"))
    result = app.flask.test_cli_runner().invoke(args=["llm-cost", "budgets", "--release"])
    assert result.output == f"b (all): €{held:,.4f} of 1 call released\n"


def test_a_price_in_the_budgets_currency_is_held(sqlite_app: AppMaker) -> None:
    """A budget in euros holds for a model priced in euros; for one priced in dollars, at those, and in no other currency."""
    prices = {
        f"{provider}/m": {"currency": currency, "rates": {"input": "100", "output": "200"}}
        for provider, currency in (("euro", "EUR"), ("dollar", "USD"), ("yen", "JPY"))
    }
    budget: Any = {"limit": "10", "period": "day", "action": "block"}
    app = sqlite_app({**budget, "name": "b", "currency": "EUR"}, price_overrides=prices)
    for provider, held in (("euro", 1), ("dollar", 2)):
        assert ask(app, provider, "m").error is None
        assert len(app.holds()) == held
    assert ask(app, "euro", "of-tomorrow").error is None
    assert len({hold.amount for hold in app.holds()}) == 2  # a longer name is a longer request
    assert "yen/m has no known price in EUR or USD" in str(ask(app, "yen", "m").error)
    dollars = sqlite_app({**budget, "name": "d"}, price_overrides=prices)
    assert "euro/m has no known price in USD; set one" in str(ask(dollars, "euro", "m").error)
