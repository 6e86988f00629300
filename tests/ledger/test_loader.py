"""The ledger that the benchmarks load is one that the package would keep."""

from __future__ import annotations

import importlib.util
from datetime import UTC, datetime
from pathlib import Path
from typing import Any
from zoneinfo import ZoneInfo

import pytest
import sqlalchemy as sa

from flask_llm_cost.ledger.models import Call, TagRollup, UsageRollup
from flask_llm_cost.ledger.rollup_state import read_state
from flask_llm_cost.ledger.rollup_sums import BOUNDS, MEASURES, TAG_KEYS, USAGE_KEYS, Sums
from flask_llm_cost.ledger.stored import stored_calls

LOADER = Path(__file__).parents[2] / "benchmarks" / "bulk.py"


@pytest.mark.parametrize("database_server", ["sqlite", "postgresql"], indirect=True)
def test_rollups_that_are_loaded_are_those_of_the_calls(database_url: sa.URL) -> None:
    """Every rollup of made-up calls that the loader writes by SQL is what the same calls come to, and there is no other."""
    spec = importlib.util.spec_from_file_location("bulk", LOADER)
    assert spec is not None
    assert spec.loader is not None
    bulk = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(bulk)
    engine = sa.create_engine(database_url)
    bulk.load(engine, 700, datetime(2026, 11, 28, tzinfo=UTC))
    with engine.connect() as connection:
        state = read_state(connection)
        assert state is not None
        sums = Sums(ZoneInfo("UTC"), state)
        for rows in stored_calls(connection, list(connection.scalars(sa.select(Call.id)))):
            sums.add(1, rows)
        tables: tuple[Any, ...] = (
            (TagRollup, sums.tag_rows(), TAG_KEYS, MEASURES[:-1]),
            (UsageRollup, sums.usage_rows(), USAGE_KEYS, (*MEASURES, *BOUNDS)),
        )
        for model, wanted, keys, amounts in tables:
            there = connection.execute(sa.select(model.__table__)).mappings().all()
            loaded = {tuple(row[key] for key in keys): tuple(row[name] or 0 for name in amounts) for row in there}
            assert len(loaded) == len(there)
            assert loaded == {
                tuple(row[1 : 1 + len(keys)]): tuple(value or 0 for value in row[1 + len(keys) :]) for row in wanted
            }
    engine.dispose()
