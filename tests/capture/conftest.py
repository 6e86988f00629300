"""An app whose calls go to a provider played on loopback."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import anthropic
import boto3
import openai
import pytest
import sqlalchemy as sa
from apps import Apps
from flask import Flask
from played_app import ledger_of

from flask_llm_cost.ledger import Call
from flask_llm_cost.testing.provider import PlayedProvider


@pytest.fixture
def make_app(provider: PlayedProvider, tmp_path: Path) -> Iterator[Callable[..., Flask]]:
    """A factory of apps; keywords are ``LLM_COST_`` keys."""
    apps = Apps(tmp_path, LLM_COST_HOSTS=provider.hosts)

    def make(url: sa.URL | None = None, **config: Any) -> Flask:
        return apps.make(url, **{f"LLM_COST_{key.upper()}": value for key, value in config.items()})

    yield make
    apps.close()


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
