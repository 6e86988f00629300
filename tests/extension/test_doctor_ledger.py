"""Doctor on the ledger's schema and on a replica, each with the fault really made."""

from __future__ import annotations

import shutil
import sqlite3
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import pytest
from flask import Flask
from flask_sqlalchemy import SQLAlchemy

from flask_llm_cost import LlmCostTracker, track
from flask_llm_cost.doctor import examine


@pytest.fixture
def app(tmp_path: Path) -> Iterator[Flask]:
    app = Flask("shop", instance_path=str(tmp_path))
    app.config.update(SQLALCHEMY_DATABASE_URI=f"sqlite:///{tmp_path}/app.db", TESTING=True)
    app.config.update(SQLALCHEMY_BINDS={"replica": f"sqlite:///{tmp_path}/replica.db"}, LLM_COST_READ_BIND_KEY="replica")
    database = SQLAlchemy(app)
    LlmCostTracker(app)
    app.test_cli_runner().invoke(args=["llm-cost", "install"])
    with app.app_context():
        track("openai", model="gpt-4o", usage={"input": 1})
        assert app.extensions["llm_cost"].ledger.flush(5)
    shutil.copy(tmp_path / "app.db", tmp_path / "replica.db")
    yield app
    app.extensions["llm_cost"].ledger.close(0)
    with app.app_context():
        for engine in database.engines.values():
            engine.dispose()


def told(app: Flask, name: str) -> list[str]:
    with app.app_context():
        return [check.message for check in examine(app.extensions["llm_cost"]) if check.name == name]


def execute(path: Path, statement: str) -> None:
    with closing(sqlite3.connect(path)) as connection:
        connection.execute(statement)
        connection.commit()


def test_missing_columns_indexes_and_keys_are_named(app: Flask, tmp_path: Path) -> None:
    """What the database lacks is named, column by column, index by index and key by key, with the command."""
    assert told(app, "tables") == ["all tables, columns, indexes and foreign keys are there"]
    path = tmp_path / "app.db"
    execute(path, "DROP INDEX ix_llm_cost_calls_occurred_at")
    execute(path, "ALTER TABLE llm_cost_calls DROP COLUMN flags")
    execute(path, "ALTER TABLE llm_cost_calls ADD COLUMN later VARCHAR(9) NOT NULL DEFAULT ''")
    execute(path, "DROP TABLE llm_cost_line_items")
    execute(
        path,
        "CREATE TABLE llm_cost_line_items (call_id CHAR(32) NOT NULL, position SMALLINT NOT NULL, component VARCHAR(32), "
        "unit VARCHAR(16), quantity BIGINT, rate BIGINT, rate_per BIGINT, cost BIGINT, cost_status VARCHAR(16), "
        "future INTEGER NOT NULL, PRIMARY KEY (call_id, position))",
    )
    command = "run 'flask db migrate' and 'flask db upgrade'"
    assert told(app, "indexes") == [
        f"indexes are missing (ix_llm_cost_calls_occurred_at), so questions take long; {command}"
    ]
    assert told(app, "columns") == [f"columns are missing (llm_cost_calls.flags); {command}"]
    assert told(app, "foreign keys") == [f"foreign keys are missing (llm_cost_line_items.call_id); {command}"]
    assert "llm_cost_line_items.future" in told(app, "unknown columns")[0]


def test_a_replica_that_is_behind_is_named(app: Flask, tmp_path: Path) -> None:
    """Doctor says how far the replica is behind, and warns when that is long."""
    assert told(app, "replica") == ["0:00:00 behind the ledger"]
    moved = (
        "UPDATE llm_cost_counters SET updated_at = datetime(updated_at, '-20 minutes') || '.000000' WHERE name = 'heartbeat'"
    )
    execute(tmp_path / "replica.db", moved)
    (message,) = told(app, "replica")
    assert "behind the ledger; look at its replication" in message
