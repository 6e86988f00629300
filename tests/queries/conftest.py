from __future__ import annotations

from collections.abc import Iterator

import pytest
import sqlalchemy as sa
from sqlalchemy.orm import Session

from flask_llm_cost.ledger.models import Base


@pytest.fixture
def session(database_url: sa.URL) -> Iterator[Session]:
    """A session on the ledger's own tables, once on each kind of database."""
    engine = sa.create_engine(database_url)
    Base.metadata.create_all(engine)
    with Session(engine) as session:
        yield session
    engine.dispose()
