"""Fixtures for the tests of apps that use flask-llm-cost: pytest finds them, and nothing is imported until one is used."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from flask_llm_cost.records import CallRecord
    from flask_llm_cost.testing.provider import PlayedProvider


@pytest.fixture
def llm_costs() -> Iterator[list[CallRecord]]:
    """The LLM calls that the test makes, priced, in a list that fills as they end. None is written to a ledger."""
    from flask_llm_cost.testing import capture_calls

    with capture_calls() as calls:
        yield calls


@pytest.fixture
def llm_provider(monkeypatch: pytest.MonkeyPatch) -> Iterator[PlayedProvider]:
    """OpenAI and Anthropic, played on loopback. Clients that the test makes find it by their usual environment variables."""
    from flask_llm_cost.testing.provider import PlayedProvider
    from flask_llm_cost.usage.recognition import playing

    with PlayedProvider() as provider, playing(provider.hosts):
        for name, value in provider.environment.items():
            monkeypatch.setenv(name, value)
        yield provider
