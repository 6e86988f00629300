"""An app whose calls go to a provider played on loopback, with the patches as they are before any app is made."""

from __future__ import annotations

import gc
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from flask import Flask
from flask_sqlalchemy import SQLAlchemy

from flask_llm_cost import LlmCostTracker
from flask_llm_cost.capture import patching
from flask_llm_cost.ledger import Call
from flask_llm_cost.testing.provider import PlayedProvider


@pytest.fixture
def provider() -> Iterator[PlayedProvider]:
    with PlayedProvider() as played:
        yield played


@pytest.fixture
def unpatched() -> Iterator[None]:
    """No patch of ours at the start, and those of the apps made before at the end."""
    patching.uninstall()
    yield
    patching.uninstall()
    patching.install("auto")


@pytest.fixture
def make_app(unpatched: None, provider: PlayedProvider, tmp_path: Path) -> Iterator[Callable[[], Flask]]:
    """Make the app, which installs the patches."""
    made: list[Flask] = []

    def make() -> Flask:
        app = Flask("coexisting", instance_path=str(tmp_path))
        app.config["SQLALCHEMY_DATABASE_URI"] = f"sqlite:///{tmp_path}/app.db"
        app.config["TESTING"] = True
        app.config["LLM_COST_HOSTS"] = provider.hosts
        database = SQLAlchemy(app)
        LlmCostTracker(app)
        with app.app_context():
            database.create_all()
        made.append(app)
        return app

    yield make
    for app in made:
        app.extensions["llm_cost"].ledger.close()
        with app.app_context():
            app.extensions["sqlalchemy"].engine.dispose()
    made.clear()
    gc.collect()  # an app is a cycle, and a dead one must not own the next test's calls


@pytest.fixture
def tokens() -> Callable[[Flask], list[tuple[int | None, int | None]]]:
    """Input and output tokens of every call in an app's ledger, in the order in which they were made."""

    def read(app: Flask) -> list[tuple[int | None, int | None]]:
        state = app.extensions["llm_cost"]
        assert state.ledger.flush(20)
        with state.ledger.session() as session:
            calls = session.query(Call).order_by(Call.occurred_at, Call.id)
            return [(call.input_tokens, call.output_tokens) for call in calls]

    return read
