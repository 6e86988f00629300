"""The book as it ships, loaded once: it never changes."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from price_server import PriceServer, price_server
from price_sources import Sources

from flask_llm_cost.pricing import PriceBook


@pytest.fixture(scope="session")
def book() -> PriceBook:
    return PriceBook.load()


@pytest.fixture
def server(tmp_path: Path) -> Iterator[PriceServer]:
    """A real HTTPS server on loopback."""
    with price_server(tmp_path) as server:
        yield server


@pytest.fixture
def sources(server: PriceServer) -> Sources:
    """LiteLLM and OpenRouter on that server."""
    return Sources(server)


@pytest.fixture
def path(tmp_path: Path) -> Path:
    """Of a price file that is not there yet."""
    return tmp_path / "prices.json"
