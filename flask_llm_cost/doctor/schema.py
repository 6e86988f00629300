"""Are the tables as this version wants them?"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any, Final

import sqlalchemy as sa
from sqlalchemy.schema import CreateColumn, CreateIndex

from flask_llm_cost.doctor.check import MIGRATE, Check
from flask_llm_cost.extension import AppState
from flask_llm_cost.ledger.models import Base
from flask_llm_cost.wording import plural

_REVISE: Final = "run 'flask db migrate' and 'flask db upgrade'"


def schema(state: AppState) -> Iterator[Check]:
    with state.ledger.session(replica=False) as session:
        inspector = sa.inspect(session.connection())
        present = set(inspector.get_table_names())
        missing = [table.name for table in Base.metadata.sorted_tables if table.name not in present]
        if missing:
            which = missing[0] if len(missing) == 1 else f"{missing[0]}, …"
            lacking = plural(len(missing), "table is", "tables are")
            yield Check("Schema", "tables", "error", f"{lacking} missing ({which}); {MIGRATE}")
            return
        drift: dict[str, list[str]] = {"columns": [], "unknown columns": [], "indexes": [], "foreign keys": []}
        for table in Base.metadata.sorted_tables:
            found = {column["name"]: column for column in inspector.get_columns(table.name)}
            drift["columns"] += [f"{table.name}.{name}" for name in table.columns.keys() if name not in found]  # noqa: SIM118
            drift["unknown columns"] += [
                f"{table.name}.{name}" for name in found if name not in table.c and _needed(found[name])
            ]
            drift["indexes"] += _indexes(table, inspector.get_indexes(table.name))
            drift["foreign keys"] += _foreign_keys(table, inspector.get_foreign_keys(table.name))
    for what, names in drift.items():
        repair = _repair(state, what, names)
        if names and what == "unknown columns":
            message = f"columns that this version does not fill are NOT NULL ({', '.join(names)}), so nothing can be written"
            yield Check("Schema", what, "error", f"{message}; {repair}")
        elif names and what == "indexes":
            message = f"indexes are missing ({', '.join(names)}), so questions take long; {repair}"
            yield Check("Schema", what, "warning", message)
        elif names:
            yield Check("Schema", what, "error", f"{what} are missing ({', '.join(names)}); {repair}")
    if not any(drift.values()):
        yield Check("Schema", "tables", "ok", "all tables, columns, indexes and foreign keys are there")


def _repair(state: AppState, what: str, names: Sequence[str]) -> str:
    """What to do, where the app has no Flask-Migrate the statements to paste."""
    if "migrate" in state.app.extensions:
        return _REVISE
    bind_key = state.config.bind_key
    database = state.app.extensions["sqlalchemy"]
    dialect, tables = database.engines[bind_key].dialect, database.metadatas[bind_key].tables
    statements: list[str] = []
    if what == "columns":
        for name in names:
            table, _, column = name.partition(".")
            statements.append(
                f"ALTER TABLE {table} ADD COLUMN {CreateColumn(tables[table].c[column]).compile(dialect=dialect)}"
            )
    elif what == "indexes":
        ours = [
            index for table in Base.metadata.sorted_tables for index in tables[table.name].indexes if index.name in names
        ]
        statements += [str(CreateIndex(index).compile(dialect=dialect)) for index in ours]
    elif what == "unknown columns":
        return "make them nullable, or give them a default"
    return f"run in the database: {'; '.join(statements)}" if statements else "add them by hand"


def _needed(column: Any) -> bool:
    """Whether rows without it are refused."""
    return not column["nullable"] and column.get("default") is None


def _indexes(table: sa.Table, found: Sequence[Any]) -> list[str]:
    there = {tuple(index["column_names"]) for index in found}
    wanted = sorted(table.indexes, key=lambda index: str(index.name))
    return [str(index.name) for index in wanted if tuple(column.name for column in index.columns) not in there]


def _foreign_keys(table: sa.Table, found: Sequence[Any]) -> list[str]:
    # By what they do: their names follow the host's naming convention.
    there = {
        (tuple(key["constrained_columns"]), key["referred_table"], str(key["options"].get("ondelete") or "").upper())
        for key in found
    }
    return [
        f"{table.name}.{key.column_keys[0]}"
        for key in table.foreign_key_constraints
        if (tuple(key.column_keys), key.referred_table.name, str(key.ondelete or "").upper()) not in there
    ]
