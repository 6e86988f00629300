"""Tiers and hours with prices of their own: no synchronisation takes them away unseen."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from price_sources import NOW, Sources, said_of, total_of, write_models

from flask_llm_cost.pricing.pricefile import PriceFile

TIERS = [{"above": 200000, "rates": {"input": "6", "output": "30"}}]
WINDOWS = [{"days": [1, 2, 3, 4, 5, 6, 7], "utc": ["00:00-24:00"], "rates": {"input": "6", "output": "30"}}]


@pytest.mark.parametrize("fills", [False, True])
@pytest.mark.parametrize("sections", [{"tiers": TIERS}, {"windows": WINDOWS}])
def test_filling_in_a_cache_rate_leaves_tiers_and_hours(
    sources: Sources, path: Path, sections: dict[str, Any], fills: bool
) -> None:
    """OpenRouter is asked for cache rates alone: what it does not say of longer prompts and of hours is no word on them."""
    entry = {"rates": {"input": "3", "output": "15"}, "_source": "litellm", **sections}
    scheduled = {
        "rates": {"input": "1", "output": "5"},
        "scheduled": [{"from": "2026-01-01", "rates": entry["rates"], **sections}],
        "_source": "litellm",
    }
    path.write_text(json.dumps({"models": {"openai/gpt-9": entry, "openai/gpt-8": scheduled}}))
    prices = {"prompt": "0.000003", "completion": "0.000015"} | ({"input_cache_read": "0.0000003"} if fills else {})
    sources.openrouter = {"openai/gpt-9": prices, "openai/gpt-8": prices}
    sources.broken.add("litellm")
    done = sources.sync(path)
    models = PriceFile.load(path).models
    assert ("cache_read" in models["openai/gpt-9"]["rates"]) is fills
    assert {row.what for merged in done.plan.changed for row in merged.rows} == ({"cache_read"} if fills else set())
    ((section, before),) = sections.items()
    assert models["openai/gpt-9"][section] == before
    now_in_force = models["openai/gpt-8"] if fills else models["openai/gpt-8"]["scheduled"][0]
    assert now_in_force[section] == before


@pytest.mark.parametrize("sections", [{"tiers": TIERS}, {"windows": WINDOWS}])
def test_tiers_and_hours_that_a_source_has_no_more_are_shown(sources: Sources, path: Path, sections: dict[str, Any]) -> None:
    """They may have been retired, or forgotten: a person is told, and ``--strict`` waits for them."""
    write_models(path, a={"rates": {"input": "3", "output": "15"}, "_source": "litellm", **sections})
    assert total_of(path, "a", input=1_000_000) == 6
    sources.models(a={"input": 3, "output": 15})
    done = sources.sync(path, NOW)
    assert len(done.plan.flags) == 1
    assert "gone" in said_of(done)
    assert total_of(path, "a", input=1_000_000) == 3
