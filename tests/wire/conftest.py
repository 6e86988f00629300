from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from corpus import shapes
from flask import Flask
from flask_sqlalchemy import SQLAlchemy

from flask_llm_cost import LlmCostTracker


@pytest.fixture(scope="module")
def app(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Flask]:
    """One app for all shapes, with every host that any of them has named."""
    directory: Path = tmp_path_factory.mktemp("app")
    app = Flask("corpus", instance_path=str(directory))
    app.config["SQLALCHEMY_DATABASE_URI"] = f"sqlite:///{directory}/app.db"
    app.config["LLM_COST_HOSTS"] = {host: name for shape in shapes() for host, name in shape.hosts.items()}
    SQLAlchemy(app)
    LlmCostTracker(app)
    yield app
    app.extensions["llm_cost"].ledger.close()
    with app.app_context():
        app.extensions["sqlalchemy"].engine.dispose()
