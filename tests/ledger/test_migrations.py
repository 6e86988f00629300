"""Flask-Migrate sees the ledger's tables as if they were the host's own."""

from __future__ import annotations

import re
import subprocess
import sys
from datetime import UTC, datetime
from decimal import Decimal
from pathlib import Path
from uuid import uuid4

import pytest
import sqlalchemy as sa
from ledger_rows import add_call
from sqlalchemy.orm import Session

from flask_llm_cost.ledger.models import Base, PriceSnapshot

APP = Path(__file__).with_name("migrating_app.py")
TABLES = {table.name for table in Base.metadata.sorted_tables}

pytestmark = pytest.mark.slow


def run(url: sa.URL, folder: Path, variant: str, *commands: str) -> set[str]:
    """The tables after the commands."""
    database = url.render_as_string(hide_password=False)
    done = subprocess.run(
        [sys.executable, APP, database, folder, variant, *commands], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return set(done.stdout.split())


@pytest.mark.parametrize("variant", ["plain", "naming", "schema", "bind"])
def test_one_migration_makes_the_tables_and_nothing_is_left(database_url: sa.URL, variant: str, tmp_path: Path) -> None:
    """With an unmodified ``env.py``, migrate gives one file of stock types; upgrade and check are clean.

    With and without a naming convention, with a default schema, and on a bind of its own.
    """
    assert run(database_url, tmp_path, variant, "init", "migrate", "upgrade") >= TABLES
    files = list((tmp_path / "migrations" / "versions").glob("*.py"))
    assert len(files) == 1
    assert "flask_llm_cost" not in files[0].read_text()
    # As a process of its own, as people run it: Flask-Migrate keeps what the migrate command configured.
    assert not run(database_url, tmp_path, variant, "check", "downgrade") & TABLES


def test_the_tables_go_in_the_order_of_the_page(database_url: sa.URL) -> None:
    """What the page about upgrades drops is all that there is, in an order that every database takes, with calls in it."""
    page = (Path(__file__).parents[2] / "docs" / "upgrading.rst").read_text()
    names = re.findall(r'"(\w+)"', page.partition("def upgrade():")[2].partition("op.drop_table")[0])
    assert {f"llm_cost_{name}" for name in names} == TABLES
    engine = sa.create_engine(database_url)
    if engine.dialect.name == "sqlite":
        sa.event.listen(engine, "connect", lambda connection, _: connection.execute("PRAGMA foreign_keys=ON"))
    Base.metadata.create_all(engine)
    price = PriceSnapshot(
        id=uuid4(), source="a", source_version="1", matched_key="a/b", match_kind="exact", currency="USD", rates={},
        multiplier=Decimal(1), discount=Decimal(0), created_at=datetime.now(UTC),
    )  # fmt: skip
    with Session(engine) as session:
        session.add(price)
        session.flush()
        line = ("input", 1, "1", "0.000001")
        add_call(session, datetime.now(UTC), tags={"feature": "a"}, items=[line], price_id=price.id)
        session.commit()
    with engine.begin() as connection:
        for name in names:
            Base.metadata.tables[f"llm_cost_{name}"].drop(connection)
        assert not set(sa.inspect(connection).get_table_names()) & TABLES
    engine.dispose()
