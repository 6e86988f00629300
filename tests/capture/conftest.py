"""An app whose calls go to a provider played on loopback."""

from __future__ import annotations

import contextlib
import gc
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import anthropic
import boto3
import openai
import pytest
import sqlalchemy as sa
from flask import Flask
from flask_sqlalchemy import SQLAlchemy
from played_app import ledger_of

from flask_llm_cost import LlmCostTracker
from flask_llm_cost.ledger import Call
from flask_llm_cost.testing.provider import PlayedProvider


@pytest.fixture
def make_app(provider: PlayedProvider, tmp_path: Path) -> Callable[..., Flask]:
    """A factory of apps with a SQLite file each, unless a URL says otherwise; keywords are ``LLM_COST_`` keys."""
    made: list[Flask] = []

    def make(url: sa.URL | None = None, **config: Any) -> Flask:
        name = f"app{len(made)}"
        app = Flask(name, instance_path=str(tmp_path / name))
        (tmp_path / name).mkdir()
        app.config["SQLALCHEMY_DATABASE_URI"] = url or f"sqlite:///{tmp_path / name}/app.db"
        app.config["TESTING"] = True
        app.config["LLM_COST_HOSTS"] = provider.hosts
        app.config.update({f"LLM_COST_{key.upper()}": value for key, value in config.items()})
        database = SQLAlchemy(app)
        LlmCostTracker(app)
        with app.app_context():
            database.create_all()
        made.append(app)
        return app

    yield make
    for app in made:
        app.extensions["llm_cost"].ledger.close()
        with app.app_context():
            for engine in app.extensions["sqlalchemy"].engines.values():
                engine.dispose()
    made.clear()
    gc.collect()  # an app is a cycle, and a dead one must not own the next test's calls


@pytest.fixture
def bedrock_client(provider: PlayedProvider) -> Iterator[Callable[..., Any]]:
    """A factory of botocore's clients for the played Bedrock."""
    keys = {"aws_access_key_id": "test", "aws_secret_access_key": "test"}
    with contextlib.ExitStack() as clients:

        def make(**options: Any) -> Any:
            url, region = provider.url, "us-east-1"
            client = boto3.client("bedrock-runtime", endpoint_url=url, region_name=region, **keys, **options)
            return clients.enter_context(contextlib.closing(client))

        yield make


@pytest.fixture
def app(make_app: Callable[..., Flask]) -> Flask:
    return make_app()


@pytest.fixture
def calls(app: Flask) -> Callable[[], list[Call]]:
    """What is in the ledger now, in the order in which it happened."""
    return lambda: ledger_of(app)


@pytest.fixture
def openai_client(provider: PlayedProvider) -> Iterator[openai.OpenAI]:
    with openai.OpenAI(base_url=provider.openai_url, api_key="test") as client:
        yield client


@pytest.fixture
def anthropic_client(provider: PlayedProvider) -> Iterator[anthropic.Anthropic]:
    with anthropic.Anthropic(base_url=provider.anthropic_url, api_key="test") as client:
        yield client
