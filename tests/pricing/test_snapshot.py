"""The bundled prices: enough of them, in order, readable, and built from what they say."""

from __future__ import annotations

import json
import re
import tracemalloc
from collections import Counter
from importlib import resources
from typing import Any

import pytest

from flask_llm_cost.pricing import PriceBook
from flask_llm_cost.pricing.catalog import bundled

TEXT = resources.files("flask_llm_cost.pricing").joinpath("snapshot.json").read_text("utf-8")
WHOLE: dict[str, Any] = json.loads(TEXT)
MAJORS = ("openai", "anthropic", "gemini", "azure", "groq", "deepseek", "xai", "mistral", "bedrock", "vertex")


def test_it_is_large_enough_and_small_enough() -> None:
    """At least 2,000 models of 20 providers, the ten that matter among them, in less than 600 KB."""
    providers = Counter(key.partition("/")[0] for key in WHOLE["models"])
    assert len(WHOLE["models"]) >= 2000
    assert len(providers) >= 20
    assert all(providers[name] >= 8 for name in MAJORS), providers
    assert len(TEXT.encode()) < 600_000


def test_loaded_it_is_small() -> None:
    """Less than 5 MB, since entries are converted when they are asked for. How long it takes: ``benchmarks/pricing.py``."""
    PriceBook.load()
    tracemalloc.start()
    try:
        book = PriceBook.load()
        size = tracemalloc.get_traced_memory()[0]
    finally:
        tracemalloc.stop()
    assert book.entries >= 2000
    assert size < 5_000_000


def test_one_entry_a_line_in_one_order() -> None:
    """A changed price is one changed line, and what is read line by line is what the file says."""
    assert list(WHOLE["models"]) == sorted(WHOLE["models"])
    catalog = bundled()
    assert {key: json.loads(str(catalog._raw[key])) for key in catalog.keys} == WHOLE["models"]
    assert TEXT.count("\n") > len(WHOLE["models"])


def test_every_entry_can_be_read(book: PriceBook) -> None:
    """No entry waits with an error for the first call that needs it."""
    for key in book.keys:
        entry = book.entry(key)
        assert entry is not None
        assert entry.block.rates, key
        assert entry.source, key
        assert entry.source == "manual" or entry.source_version, key


def test_every_alias_leads_to_an_entry() -> None:
    """And none hides an entry of its own name."""
    for name, target in WHOLE["aliases"].items():
        assert target in WHOLE["models"], name
        assert name not in WHOLE["models"], name


def test_rates_are_decimal_texts() -> None:
    """Each is written in one way: digits, no exponent, no trailing zeros, no float noise."""

    def rates(value: Any) -> list[Any]:
        if isinstance(value, dict):
            return [item for name, inner in value.items() if not name.startswith("_") for item in rates(inner)]
        if isinstance(value, list):
            return [item for inner in value for item in rates(inner)]
        return [value]

    plain = re.compile(r"(?:0|[1-9]\d*)(?:\.\d*[1-9])?|\d{4}-\d\d-\d\d|\d\d:\d\d-\d\d:\d\d|[A-Z]{3}")
    for key, entry in WHOLE["models"].items():
        for value in rates(entry):
            assert value is None or isinstance(value, bool | int) or plain.fullmatch(value), (key, value)
            assert not isinstance(value, str) or len(value.replace(".", "").lstrip("0")) <= 13, (key, value)


def test_a_price_of_zero_is_never_an_unknown_one() -> None:
    """Zero stands only where the provider says that it is free."""
    for key, entry in WHOLE["models"].items():
        if any(rate == "0" for rate in entry["rates"].values()):
            assert key.startswith("openai/omni-moderation") or key.endswith(":free") or "moderation" in key, key


def test_gemini_has_no_write_rate() -> None:
    """Its caches are billed by storage; a write rate of a reseller is that, spread out."""
    for key, entry in WHOLE["models"].items():
        if key.startswith("gemini/gemini"):
            assert "cache_write" not in entry["rates"], key


def test_it_knows_how_long_answers_can_be() -> None:
    """The models that people call directly have a maximum of output, a whole number of tokens, where they have output."""
    found = {key: entry["max_output"] for key, entry in WHOLE["models"].items() if "max_output" in entry}
    assert all(type(most) is int and most > 0 for most in found.values())
    assert {key: found[key] for key in ("openai/gpt-4o", "anthropic/claude-sonnet-4-5", "gemini/gemini-2.5-pro")} == {
        "openai/gpt-4o": 16_384,
        "anthropic/claude-sonnet-4-5": 64_000,
        "gemini/gemini-2.5-pro": 65_536,
    }
    for provider in MAJORS:
        assert any(key.startswith(f"{provider}/") for key in found), provider
    assert all(any(name.endswith("output") for name in WHOLE["models"][key]["rates"]) for key in found)


def test_it_says_where_it_comes_from() -> None:
    """A version, and the sources with theirs."""
    assert re.fullmatch(r"\d{4}-\d\d-\d\d\.\d+", WHOLE["version"])
    assert [source["source"] for source in WHOLE["generated_from"]] == ["litellm", "genai-prices"]


@pytest.mark.parametrize("model", ["gpt-4o", "gpt-5.4", "text-embedding-3-small", "o3", "whisper-1"])
def test_the_models_of_every_readme_are_there(model: str) -> None:
    """What a first user tries has a price."""
    assert f"openai/{model}" in WHOLE["models"]
