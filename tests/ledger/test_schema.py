"""The tables as the databases have them."""

from __future__ import annotations

import sqlalchemy as sa

from flask_llm_cost.ledger.models import Base


def test_tables_are_made_on_every_database(database_url: sa.URL) -> None:
    """``create_all`` gives every table of the contract on SQLite, PostgreSQL and MariaDB."""
    engine = sa.create_engine(database_url, poolclass=sa.NullPool)
    Base.metadata.create_all(engine)
    assert set(sa.inspect(engine).get_table_names()) == {
        "llm_cost_adjustments",
        "llm_cost_alerts",
        "llm_cost_budget_holds",
        "llm_cost_budget_periods",
        "llm_cost_call_tags",
        "llm_cost_calls",
        "llm_cost_counters",
        "llm_cost_line_items",
        "llm_cost_prices",
        "llm_cost_tag_rollups",
        "llm_cost_usage_rollups",
    }
