"""Our log lines, and an app whose logging fails."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import openai
import pytest
import sqlalchemy as sa
from flask import Flask
from flask_sqlalchemy import SQLAlchemy

from flask_llm_cost import LlmCostTracker, tags, track
from flask_llm_cost.ledger import Call
from flask_llm_cost.testing.provider import PlayedProvider

LOGGER = logging.getLogger("flask_llm_cost")


@pytest.fixture
def app(tmp_path: Path) -> Iterator[Flask]:
    app = Flask("shop", instance_path=str(tmp_path))
    app.config.update(SQLALCHEMY_DATABASE_URI=f"sqlite:///{tmp_path}/app.db", TESTING=True)
    database = SQLAlchemy(app)
    LlmCostTracker(app)
    with app.app_context():
        database.create_all()
        yield app
        app.extensions["llm_cost"].ledger.close()
        database.engine.dispose()


def fail(*_: object, **__: object) -> Any:
    raise RuntimeError("there is no request to take an id from")


@pytest.fixture(params=["filter", "handler", "record factory"])
def failing(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """What of the app's logging fails, at every line."""
    if request.param == "filter":
        monkeypatch.setattr(LOGGER, "filters", [fail])
    elif request.param == "handler":
        handler = logging.Handler()
        monkeypatch.setattr(handler, "emit", fail)
        monkeypatch.setattr(LOGGER, "handlers", [handler])
    else:
        monkeypatch.setattr(logging, "_logRecordFactory", fail)
    return str(request.param)


def test_logging_that_fails_is_not_the_calls_concern(app: Flask, failing: str) -> None:
    """Whatever we have to say of a call, and whoever cannot bear it: the app has its answer, and the ledger its row."""
    with PlayedProvider() as provider, tags(**{"Bad Key": 1, "feature": "chat"}):
        # A host that nobody named, a model without a price and a key that is none: three lines.
        client = openai.OpenAI(base_url=f"{provider.url}/unnamed/v1", api_key="any", max_retries=0)
        asked = {"model": "no-such-model", "messages": [{"role": "user", "content": "hello"}]}
        assert client.chat.completions.create(**asked).choices[0].message.content  # type: ignore[call-overload]
        list(client.chat.completions.create(**asked, stream=True))  # type: ignore[call-overload]
        client.close()
    track("acme", model="m", usage={"input": 1}, tags={"B@d": 1})
    ledger = app.extensions["llm_cost"].ledger
    assert ledger.flush(20)
    with ledger.session() as session:
        assert session.scalar(sa.select(sa.func.count()).select_from(Call)) == 3


def test_a_line_says_where_it_is_from(app: Flask, caplog: pytest.LogCaptureFixture) -> None:
    """Lines are of the logger "flask_llm_cost", and name the module that has something to say."""
    with caplog.at_level(logging.WARNING, "flask_llm_cost"):
        track("acme", model="m", usage={"input": 1}, tags={"B@d": 1})
    (line,) = [record for record in caplog.records if "dropped" in record.getMessage()]
    assert (line.name, line.levelname, line.module, line.funcName) == ("flask_llm_cost", "WARNING", "tags", "_drop")
