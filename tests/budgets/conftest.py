"""Apps with budgets, on every kind of database, whose calls go to a provider played on loopback."""

from __future__ import annotations

import gc
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import sqlalchemy as sa
from budget_apps import AppMaker

from flask_llm_cost.budgets import enforcement, keeper
from flask_llm_cost.testing.provider import PlayedProvider


@pytest.fixture(autouse=True)
def _patience(monkeypatch: pytest.MonkeyPatch) -> None:
    """Half a second is a promise to the app, not to tests that share a machine with others."""
    monkeypatch.setattr(enforcement, "PATIENCE_SECONDS", 30.0)
    monkeypatch.setattr(enforcement, "TRANSACTION_SECONDS", 3.0)
    monkeypatch.setattr(keeper, "TRANSACTION_SECONDS", 3.0)


@pytest.fixture
def app_maker(provider: PlayedProvider, tmp_path: Path) -> Iterator[Callable[[sa.URL], AppMaker]]:
    made: list[AppMaker] = []

    def make(url: sa.URL) -> AppMaker:
        made.append(AppMaker(url, provider, tmp_path))
        return made[-1]

    yield make
    for maker in made:
        maker.close()
    gc.collect()  # an app is a cycle, and a dead one must not own the next test's calls


@pytest.fixture
def make_app(app_maker: Callable[[sa.URL], AppMaker], database_url: sa.URL) -> AppMaker:
    """Makes apps on one database with our tables, once on each kind."""
    return app_maker(database_url)


@pytest.fixture
def sqlite_app(app_maker: Callable[[sa.URL], AppMaker], sqlite_url: sa.URL) -> AppMaker:
    """The same on a SQLite file, for what is the same on every database."""
    return app_maker(sqlite_url)
