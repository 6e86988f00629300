"""Flask-Migrate sees the ledger's tables as if they were the host's own."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
import sqlalchemy as sa

from flask_llm_cost.ledger.models import Base

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
