from collections.abc import Iterator

import anthropic
import openai
import pytest

from flask_llm_cost.testing.provider import PlayedProvider


@pytest.fixture
def provider() -> Iterator[PlayedProvider]:
    with PlayedProvider() as played:
        yield played


@pytest.fixture
def openai_client(provider: PlayedProvider) -> Iterator[openai.OpenAI]:
    with openai.OpenAI(base_url=provider.openai_url, api_key="any") as client:
        yield client


@pytest.fixture
def anthropic_client(provider: PlayedProvider) -> Iterator[anthropic.Anthropic]:
    with anthropic.Anthropic(base_url=provider.anthropic_url, api_key="any") as client:
        yield client
