"""A desk for each kind of database, and the provider that it asks."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
import sqlalchemy as sa
from desks import Desk

from flask_llm_cost.testing.provider import PlayedProvider


@pytest.fixture
def any_desk(database_url: sa.URL, tmp_path: Path, provider: PlayedProvider) -> Iterator[Desk]:
    """A desk with tables, once on each kind of database."""
    yield from _desk(database_url, tmp_path, provider)


@pytest.fixture
def sqlite_desk(sqlite_url: sa.URL, tmp_path: Path, provider: PlayedProvider) -> Iterator[Desk]:
    """A desk on a SQLite file, for what is the same on every database."""
    yield from _desk(sqlite_url, tmp_path, provider)


@pytest.fixture
def postgresql_desk(postgresql_url: sa.URL, tmp_path: Path, provider: PlayedProvider) -> Iterator[Desk]:
    """A desk on PostgreSQL."""
    yield from _desk(postgresql_url, tmp_path, provider)


def _desk(url: sa.URL, folder: Path, provider: PlayedProvider) -> Iterator[Desk]:
    made = Desk(url, folder, provider)
    made.app()
    yield made
    made.close()
