"""One row of the ledger is locked by somebody, and all else of the database is there."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
import sqlalchemy as sa
from apps import Apps
from flask import Flask

from flask_llm_cost import track

pytestmark = pytest.mark.slow


@pytest.fixture
def inline_app(url: sa.URL, tmp_path: Path) -> Iterator[Flask]:
    apps = Apps(tmp_path, LLM_COST_WRITE_MODE="inline")
    app = apps.make(url)
    with app.app_context():
        yield app
    apps.close()


@pytest.fixture(params=["postgresql", "mariadb"])
def url(request: pytest.FixtureRequest) -> sa.URL:
    found: sa.URL = request.getfixturevalue(f"{request.param}_url")
    return found


def test_the_next_call_is_written_at_once(inline_app: Flask, url: sa.URL) -> None:
    """A call that met a lock waits in the spool; the next one is in the database when it returns, and both are, once."""
    engine = sa.create_engine(url)

    def stored() -> list[int]:
        with engine.connect() as connection:
            return sorted(connection.exec_driver_sql("SELECT input_tokens FROM llm_cost_calls").scalars())

    track("openai", model="gpt-4o", usage={"input": 1})
    with engine.begin() as connection:
        assert connection.exec_driver_sql("SELECT id FROM llm_cost_usage_rollups FOR UPDATE").all()
        track("openai", model="gpt-4o", usage={"input": 2})
        assert 2 not in stored()
    track("openai", model="gpt-4o", usage={"input": 3})
    assert 3 in stored()
    assert inline_app.extensions["llm_cost"].ledger.flush(20)
    assert stored() == [1, 2, 3]
    engine.dispose()
