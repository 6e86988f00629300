"""Apps with the extension, each on a SQLite file of its own, for as long as a test takes."""

from __future__ import annotations

import gc
from pathlib import Path
from typing import Any

import sqlalchemy as sa
from flask import Flask
from flask_sqlalchemy import SQLAlchemy

from flask_llm_cost import LlmCostTracker


class Apps:
    """Makes apps in *folder*, with the settings *config* of all, and takes them down."""

    def __init__(self, folder: Path, **config: Any) -> None:
        self._folder = folder
        self._config = config
        self._made: list[Flask] = []

    def make(self, url: sa.URL | str | None = None, *, tables: bool = True, **config: Any) -> Flask:
        """One more app, on its own SQLite file unless a URL says otherwise."""
        name = f"app{len(self._made)}"
        folder = self._folder / name
        folder.mkdir()
        app = Flask(name, instance_path=str(folder))
        app.config.update({"SQLALCHEMY_DATABASE_URI": url or f"sqlite:///{folder}/app.db", "TESTING": True})
        app.config.update(self._config | config)
        database = SQLAlchemy(app)
        LlmCostTracker(app)
        self._made.append(app)
        if tables:
            with app.app_context():
                database.create_all()
        return app

    def close(self) -> None:
        """Leave nothing open, and no app that could own a later test's calls."""
        for app in self._made:
            state = app.extensions["llm_cost"]
            state.ledger.close(30.0)
            if state.budgets is not None:
                state.budgets.keeper.close()
            with app.app_context():
                for engine in app.extensions["sqlalchemy"].engines.values():
                    engine.dispose()
        self._made.clear()
        gc.collect()  # an app is a cycle
