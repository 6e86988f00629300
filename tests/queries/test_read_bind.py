"""``LLM_COST_READ_BIND_KEY``: what asks reads the replica, what records writes the ledger."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
import sqlalchemy as sa
from flask import Flask
from flask_sqlalchemy import SQLAlchemy
from ledger_rows import add_call
from sqlalchemy.orm import Session

from flask_llm_cost import LedgerError, LlmCostTracker, dashboard_blueprint, track
from flask_llm_cost.ledger import Call, spend
from flask_llm_cost.ledger.models import Base


@pytest.fixture
def app(tmp_path: Path) -> Iterator[Flask]:
    """An app whose replica has one call, of a dollar, that the ledger itself has not: who reads it is seen."""
    app = Flask("replicated", instance_path=str(tmp_path))
    replica = f"sqlite:///{tmp_path}/replica.db"
    app.config.update(
        SQLALCHEMY_DATABASE_URI=f"sqlite:///{tmp_path}/app.db",
        SQLALCHEMY_BINDS={"replica": replica},
        LLM_COST_READ_BIND_KEY="replica",
        TESTING=True,
    )
    database = SQLAlchemy(app)
    LlmCostTracker(app)
    app.register_blueprint(dashboard_blueprint(guard=lambda view: view), url_prefix="/costs")
    engine = sa.create_engine(replica)
    Base.metadata.create_all(engine)
    with Session(engine) as session:
        add_call(session, datetime.now(UTC), "1", model="replicated-model")
        session.commit()
    engine.dispose()
    with app.app_context():
        database.create_all()
        yield app
        database.session.remove()
        for made in database.engines.values():
            made.dispose()
    app.extensions["llm_cost"].ledger.close()


def test_who_asks_reads_the_replica(app: Flask) -> None:
    """spend, costs.session(), the report and the dashboard see the replica; a recorded call goes to the ledger."""
    costs = app.extensions["llm_cost"].tracker
    track("openai", model="gpt-4o", usage={"input": 1})
    assert costs.flush()
    assert [row["model"] for row in spend.by("model")] == ["replicated-model"]
    with costs.session() as session:
        assert session.scalars(sa.select(Call.model)).all() == ["replicated-model"]
    assert "replicated-model" in app.test_cli_runner().invoke(args=["llm-cost", "report"]).output
    assert app.test_client().get("/costs/?format=json").json["total"]["calls"] == 1
    database: Any = app.extensions["sqlalchemy"]
    assert database.session.scalars(sa.select(Call.model)).all() == ["gpt-4o"]


def test_the_session_refuses_to_write(app: Flask) -> None:
    """costs.session() raises for a row that is added and for an UPDATE; text that slips through cannot be committed."""
    costs = app.extensions["llm_cost"].tracker
    with pytest.raises(LedgerError, match="only reads"), costs.session() as session:
        session.execute(sa.update(Call).values(total_cost=0))
    with costs.session() as session:
        session.add(Call(id=None))
        with pytest.raises(LedgerError, match="only reads"):
            session.flush()
    with costs.session() as session:
        session.execute(sa.text("DELETE FROM llm_cost_calls"))
    with costs.session() as session:
        session.execute(sa.text("DELETE FROM llm_cost_calls"))
        with pytest.raises(LedgerError, match="only reads"):
            session.commit()
    with costs.session() as session:
        assert session.scalar(sa.select(sa.func.count()).select_from(Call)) == 1
