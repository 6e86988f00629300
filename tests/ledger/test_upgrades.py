"""A ledger of an earlier version becomes one of this, with all that is in it."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
import sqlalchemy as sa
from ledger_calls import calls, price
from test_migrations import run
from test_rollups import Kept

from flask_llm_cost.ledger.engine import OwnEngine
from flask_llm_cost.ledger.models import Call
from flask_llm_cost.ledger.writer import Writer

pytestmark = pytest.mark.slow


def test_the_first_schema_is_upgraded_with_its_calls(database_url: sa.URL, tmp_path: Path) -> None:
    """On a populated first schema what ``flask db migrate`` writes upgrades it, check is clean and a rebuild adds up."""
    run(database_url, tmp_path, "plain", "init")
    versions = tmp_path / "migrations" / "versions"
    shutil.copy(Path(__file__).with_name("first_schema.py"), versions / "1cb8fa206b54_first.py")
    run(database_url, tmp_path, "plain", "upgrade")
    engine = sa.create_engine(database_url)
    own = OwnEngine(lambda: engine)
    Writer(own).write([price(record) for record in calls(30)])  # the tables of calls are as they were
    own.dispose()
    run(database_url, tmp_path, "plain", "migrate", "upgrade")
    assert len(list(versions.glob("*.py"))) == 2
    run(database_url, tmp_path, "plain", "check")
    kept = Kept(engine)
    assert kept.rebuild() == 30
    kept.write([price(record) for record in calls(5, seed=2)])
    assert kept.found() == kept.expected()
    with engine.connect() as connection:
        assert connection.scalar(sa.select(sa.func.count()).select_from(Call.__table__)) == 35
    kept.close()
    engine.dispose()
