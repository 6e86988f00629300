from __future__ import annotations

from collections.abc import Callable, Iterator

import pytest
import sqlalchemy as sa
from flask import Flask
from mounted_app import MountedApp

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
