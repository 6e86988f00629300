"""Are the tables as this version wants them?"""

from __future__ import annotations

from collections.abc import Iterator

import sqlalchemy as sa

from flask_llm_cost.doctor.check import MIGRATE, Check
from flask_llm_cost.extension import AppState
from flask_llm_cost.ledger.models import Base


def schema(state: AppState) -> Iterator[Check]:
    with state.ledger.session() as session:
        inspector = sa.inspect(session.connection())
        present = set(inspector.get_table_names())
        missing = [table.name for table in Base.metadata.sorted_tables if table.name not in present]
        if missing:
            yield Check("Schema", "tables", "error", f"{len(missing)} tables are missing ({missing[0]}, …); {MIGRATE}")
            return
        lacking = [
            f"{table.name}.{column}"
            for table in Base.metadata.sorted_tables
            for column in sorted(set(table.columns.keys()) - {found["name"] for found in inspector.get_columns(table.name)})
        ]
    if lacking:
        yield Check(
            "Schema",
            "columns",
            "error",
            f"columns are missing ({', '.join(lacking)}); run 'flask db migrate' and 'flask db upgrade'",
        )
    else:
        yield Check("Schema", "tables", "ok", "all tables and columns are there")
