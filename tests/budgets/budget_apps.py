"""Apps with budgets for tests, and what their database says."""

from __future__ import annotations

from decimal import Decimal
from pathlib import Path
from typing import Any

import sqlalchemy as sa
from flask import Flask
from flask_sqlalchemy import SQLAlchemy

from flask_llm_cost import LlmCostTracker
from flask_llm_cost.budgets.enforcement import Budgets
from flask_llm_cost.ledger.models import Base, BudgetHold, BudgetPeriod, Call
from flask_llm_cost.testing.provider import PlayedProvider

BODY: Any = {"model": "gpt-4o", "max_tokens": 100, "messages": [{"role": "user", "content": "hello there"}]}

#: What no call fits into.
NOTHING: Any = {"name": "nothing", "limit": "0.000001", "period": "day", "action": "block"}


class BudgetApp:
    """One app, its budgets, and its ledger."""

    def __init__(self, flask: Flask, costs: LlmCostTracker, engine: sa.Engine) -> None:
        self.flask = flask
        self.costs = costs
        self.engine = engine

    @property
    def budgets(self) -> Budgets:
        found: Budgets = self.flask.extensions["llm_cost"].budgets
        return found

    def flush(self) -> None:
        with self.flask.app_context():
            assert self.costs.flush(20)

    def periods(self) -> list[BudgetPeriod]:
        with sa.orm.Session(self.engine, expire_on_commit=False) as session:
            return list(session.scalars(sa.select(BudgetPeriod).order_by(BudgetPeriod.budget, BudgetPeriod.scope)))

    def period(self) -> BudgetPeriod:
        """The only one."""
        (period,) = self.periods()
        return period

    def holds(self) -> list[BudgetHold]:
        with sa.orm.Session(self.engine, expire_on_commit=False) as session:
            return list(session.scalars(sa.select(BudgetHold)))

    def open_amount(self) -> Decimal:
        """What the open holds add up to."""
        return sum((hold.amount for hold in self.holds() if hold.state == "open"), Decimal(0))

    def calls(self) -> list[Call]:
        with sa.orm.Session(self.engine, expire_on_commit=False) as session:
            return list(session.scalars(sa.select(Call).order_by(Call.occurred_at, Call.id)))

    def cost(self) -> Decimal:
        """What all calls cost, by the ledger."""
        return sum((call.total_cost for call in self.calls() if call.total_cost is not None), Decimal(0))


class AppMaker:
    """Makes apps on one database; keywords are ``LLM_COST_`` keys."""

    def __init__(self, url: sa.URL, provider: PlayedProvider, folder: Path) -> None:
        self.url = url
        self.provider = provider
        self._folder = folder
        self._made: list[BudgetApp] = []
        self.engine = sa.create_engine(url)
        Base.metadata.create_all(self.engine)

    def __call__(self, *budgets: Any, costs: LlmCostTracker | None = None, **config: Any) -> BudgetApp:
        name = f"app{len(self._made)}"
        (self._folder / name).mkdir()
        flask = Flask(name, instance_path=str(self._folder / name))
        flask.config.update(
            SQLALCHEMY_DATABASE_URI=self.url,
            TESTING=True,
            LLM_COST_HOSTS=self.provider.hosts,
            LLM_COST_BUDGETS=list(budgets),
        )
        flask.config.update({f"LLM_COST_{key.upper()}": value for key, value in config.items()})
        SQLAlchemy(flask)
        costs = costs or LlmCostTracker()
        costs.init_app(flask)
        made = BudgetApp(flask, costs, self.engine)
        self._made.append(made)
        return made

    def close(self) -> None:
        for made in self._made:
            state = made.flask.extensions["llm_cost"]
            # Until nobody writes any more, however busy the machine: the database goes next.
            state.ledger.close(30.0)
            if state.budgets is not None:
                state.budgets.keeper.desk.settle(30.0)
                state.budgets.keeper.close()
            with made.flask.app_context():
                for engine in made.flask.extensions["sqlalchemy"].engines.values():
                    engine.dispose()
        self._made.clear()
        self.engine.dispose()
