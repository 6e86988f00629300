"""What ``docs/prices.rst`` says can be pasted, and names everything that may be written."""

from __future__ import annotations

import json
import re
import textwrap
from pathlib import Path
from typing import Any

from flask_llm_cost.pricing import PriceBook
from flask_llm_cost.pricing.entries import FIELDS
from flask_llm_cost.pricing.matching import FREE
from flask_llm_cost.pricing.modes import SERVICES
from flask_llm_cost.pricing.rates import RATED, TOOLS

TEXT = (Path(__file__).parents[2] / "docs" / "prices.rst").read_text("utf-8")


def _blocks(language: str) -> list[str]:
    found = re.findall(rf"^\.\. code-block:: {language}\n\n((?:   .*\n|\n)+)", TEXT, re.MULTILINE)
    return [textwrap.dedent(block) for block in found]


def test_the_examples_work(tmp_path: Path) -> None:
    """Every configuration and every file in the page loads as it stands."""
    scope: dict[str, Any] = {}
    for block in _blocks("python"):
        exec(block, {}, scope)
    file = tmp_path / "prices.json"
    file.write_text(json.dumps(json.loads(_blocks("json")[0])), "utf-8")
    book = PriceBook.load(overrides=scope["LLM_COST_PRICE_OVERRIDES"], aliases=scope["LLM_COST_MODEL_ALIASES"], file=file)
    for provider, model in (
        ("acme", "large"),
        ("acme", "large-latest"),
        ("openai", "ft:gpt-4o-mini:my-org::1"),
        ("azure", "ptu/x"),
    ):
        assert book.find(provider, model) is not None, model


def test_every_field_component_tool_and_mode_is_named() -> None:
    """What an entry may hold is in the page."""
    for name in (*FIELDS, *RATED, *TOOLS, *SERVICES, *FREE):
        assert f"``{name}``" in TEXT or f'"{name}"' in TEXT, name
