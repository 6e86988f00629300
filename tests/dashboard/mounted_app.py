"""An app with the extension, users that sign in by a header, and a ledger to plant calls in."""

from __future__ import annotations

import re
from collections import deque
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from html import unescape
from typing import Any
from uuid import UUID

import sqlalchemy as sa
from flask import Flask, Request
from flask_login import LoginManager, UserMixin, login_required
from flask_sqlalchemy import SQLAlchemy
from ledger_rows import add_call
from sqlalchemy import event
from sqlalchemy.engine import Engine
from werkzeug.test import TestResponse

from flask_llm_cost.dashboard import dashboard_blueprint
from flask_llm_cost.extension import LlmCostTracker
from flask_llm_cost.ledger.rebuild import rebuild

PREFIX = "/llm-costs"
#: A budget with one limit, and one for each.
BUDGETS = (
    {"name": "everything", "limit": "100", "period": "month"},
    {"name": "per_tenant", "limit": "10", "period": "day", "per": "tenant_id"},
)


@contextmanager
def statements() -> Iterator[list[str]]:
    """The statements that are sent meanwhile."""
    sent: list[str] = []

    def count(_connection: Any, _cursor: Any, statement: str, *_: object) -> None:
        if not statement.startswith(("PRAGMA", "SET", "SELECT 1")):
            sent.append(statement)

    event.listen(Engine, "before_cursor_execute", count)
    try:
        yield sent
    finally:
        event.remove(Engine, "before_cursor_execute", count)


class User(UserMixin):
    def __init__(self, name: str) -> None:
        self.id = name


def said(response: TestResponse) -> str:
    """What a page says, without its markup."""
    return unescape(re.sub(r"<[^>]+>", "", response.get_data(as_text=True)))


def _user_of(request: Request) -> User | None:
    name = request.headers.get("X-User")
    return User(name) if name else None


class MountedApp:
    def __init__(self, app: Flask, url: sa.URL | str, *, tables: bool, **config: object) -> None:
        self.app = app
        app.config.update(TESTING=True, SECRET_KEY="test", SQLALCHEMY_DATABASE_URI=url, **config)
        self.database = SQLAlchemy()
        self.database.init_app(app)
        self.costs = LlmCostTracker(app)
        manager = LoginManager(app)
        manager.request_loader(_user_of)
        self.client = app.test_client()
        if tables:
            with app.app_context():
                self.database.create_all()

    def mount(self, prefix: str = PREFIX, **arguments: Any) -> MountedApp:
        arguments.setdefault("guard", login_required)
        self.app.register_blueprint(dashboard_blueprint(**arguments), url_prefix=prefix)
        return self

    def add(self, cost: str | None = "0.01", **values: Any) -> UUID:
        """Plant a call that was made five minutes or ``ago``, or at ``at``."""
        return self.add_all([(cost, values)])[0]

    def add_all(self, calls: Iterable[tuple[str | None, dict[str, Any]]]) -> list[UUID]:
        """Plant calls, each of what it cost and the rest of it."""
        now, planted = datetime.now(UTC), []
        with self.app.app_context():
            for cost, values in calls:
                at = now - values.pop("ago", timedelta(minutes=5))
                planted.append(add_call(self.database.session, values.pop("at", at), cost, **values))
            self.database.session.commit()
        return planted

    def fill(self, calls: int = 60) -> MountedApp:
        """Calls of six features, five tenants, three models and a fortnight; some without a tag, some without a price."""
        features = ("chat", "ocr", "search", "digest", "triage", "summary")
        planted: list[tuple[str | None, dict[str, Any]]] = []
        for n in range(calls):
            tags = {"tenant_id": f"t{n % 5}", "user_id": f"u{n % 17}", "a.dotted-key": f"v{n % 3}"}
            if n % 7:
                tags["feature"] = features[n % 6]
            values = {
                "ago": timedelta(hours=n * 6), "tags": tags, "model": f"model-{n % 3}", "stream": n % 2 == 0,
                "outcome": "interrupted" if n % 13 == 0 else "ok",
                "items": [("input", 1000, "2.5", "0.0025")] if n % 11 else (),
            }  # fmt: skip
            planted.append((f"0.{n + 10}" if n % 11 else None, values))
        self.add_all(planted)
        return self

    def roll_up(self) -> MountedApp:
        """Make the rollups of all calls that were planted, as ``flask llm-cost rollups rebuild`` does."""
        ledger = self.app.extensions["llm_cost"].ledger
        with self.app.app_context():
            deque(rebuild(ledger.writer.transactions, ledger.rollups), maxlen=0)
        return self

    def get(self, path: str = PREFIX + "/", user: str | None = "ann", method: str = "GET", **query: Any) -> TestResponse:
        headers: Mapping[str, str] = {"X-User": user} if user else {}
        return self.client.open(path, method=method, query_string=query or None, headers=headers)

    def close(self) -> None:
        state = self.app.extensions["llm_cost"]
        if state.budgets is not None:
            state.budgets.keeper.close()
        state.ledger.close()
        with self.app.app_context():
            self.database.session.remove()
            for engine in self.database.engines.values():
                engine.dispose()
