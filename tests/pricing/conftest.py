"""The book as it ships, loaded once: it never changes."""

from __future__ import annotations

import pytest

from flask_llm_cost.pricing import PriceBook


@pytest.fixture(scope="session")
def book() -> PriceBook:
    return PriceBook.load()
