"""Are the tables as this version wants them?"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Final

import sqlalchemy as sa

from flask_llm_cost.doctor.check import MIGRATE, Check
from flask_llm_cost.extension import AppState
from flask_llm_cost.ledger.models import Base

_REVISE: Final = "run 'flask db migrate' and 'flask db upgrade'"


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
        slow = [
            str(index.name)
            for table in Base.metadata.sorted_tables
            for index in sorted(table.indexes, key=lambda index: str(index.name))
            if index.name not in {found["name"] for found in inspector.get_indexes(table.name)}
        ]
    if lacking:
        message = f"columns are missing ({', '.join(lacking)}); {_REVISE}"
        yield Check("Schema", "columns", "error", message)
    elif slow:
        message = f"indexes are missing ({', '.join(slow)}), so questions take long; {_REVISE}"
        yield Check("Schema", "indexes", "warning", message)
    else:
        yield Check("Schema", "tables", "ok", "all tables, columns and indexes are there")
