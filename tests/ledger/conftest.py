from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
import sqlalchemy as sa
from ledger_calls import LedgerMaker


@pytest.fixture
def make_ledger(database_url: sa.URL, tmp_path: Path) -> Iterator[LedgerMaker]:
    """Ledgers on a database with our tables, once on each kind."""
    maker = LedgerMaker(database_url, tmp_path)
    maker.create_tables()
    yield maker
    maker.close()


@pytest.fixture
def sqlite_ledger(sqlite_url: sa.URL, tmp_path: Path) -> Iterator[LedgerMaker]:
    """Ledgers on a SQLite file with our tables, for what is the same on every database."""
    maker = LedgerMaker(sqlite_url, tmp_path)
    maker.create_tables()
    yield maker
    maker.close()
