"""An app with the extension, users that sign in by a header, and a ledger to plant calls in."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import UTC, datetime, timedelta
from typing import Any
from uuid import UUID

import sqlalchemy as sa
from flask import Flask, Request
from flask_login import LoginManager, UserMixin, login_required
from flask_sqlalchemy import SQLAlchemy
from ledger_rows import add_call
from werkzeug.test import TestResponse

from flask_llm_cost.dashboard import dashboard_blueprint
from flask_llm_cost.extension import LlmCostTracker

PREFIX = "/llm-costs"


class User(UserMixin):
    def __init__(self, name: str) -> None:
        self.id = name


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

    def add(self, cost: str | None = "0.01", *, ago: timedelta = timedelta(minutes=5), **values: Any) -> UUID:
        """Plant a call that was made *ago*, or at ``at``."""
        with self.app.app_context():
            call_id = add_call(self.database.session, values.pop("at", datetime.now(UTC) - ago), cost, **values)
            self.database.session.commit()
        return call_id

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
