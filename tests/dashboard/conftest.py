from __future__ import annotations

from collections.abc import Callable, Iterator

import pytest
import sqlalchemy as sa
from databases import SQLiteFolder
from flask import Flask
from mounted_app import BUDGETS, MountedApp

Make = Callable[..., MountedApp]


@pytest.fixture
def make(sqlite_url: sa.URL) -> Iterator[Make]:
    """A maker of apps with the extension and a ledger, mounted as a test likes. They are taken down afterwards."""
    made: list[MountedApp] = []

    def build(*, tables: bool = True, url: sa.URL | str | None = None, **config: object) -> MountedApp:
        app = MountedApp(Flask(f"app{len(made)}"), url or sqlite_url, tables=tables, **config)
        made.append(app)
        return app

    yield build
    for app in made:
        app.close()


@pytest.fixture(scope="module")
def full(sqlite_server: SQLiteFolder) -> Iterator[MountedApp]:
    """A ledger with two weeks of calls, for tests that only ask."""
    yield from _shared(sqlite_server, calls=60)


@pytest.fixture(scope="module")
def empty(sqlite_server: SQLiteFolder) -> Iterator[MountedApp]:
    """A ledger without a call, for tests that only ask."""
    yield from _shared(sqlite_server, calls=0)


def _shared(server: SQLiteFolder, *, calls: int) -> Iterator[MountedApp]:
    url = server.create()
    app = MountedApp(Flask("shared"), url, tables=True, LLM_COST_BUDGETS=BUDGETS if calls else ()).mount()
    if calls:
        app.fill(calls).add("0.000000000007", tags={"feature": "tiny"})
        app.roll_up()
    yield app
    app.close()
    server.drop(url)
