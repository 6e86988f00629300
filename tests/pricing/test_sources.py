"""A source of prices is read as if by an enemy: what does not parse completely offers nothing, and never a wrong number."""

from __future__ import annotations

import json
from decimal import Decimal
from typing import Any

import pytest

from flask_llm_cost.errors import PriceSourceError
from flask_llm_cost.pricing.fetch import Download
from flask_llm_cost.pricing.sources import Offers, read

GPT = {"litellm_provider": "openai", "mode": "chat", "input_cost_per_token": 2.5e-06, "output_cost_per_token": 1e-05}


def _read(data: Any) -> Offers:
    text = data if isinstance(data, bytes) else json.dumps(data).encode()
    return read(Download("prices.json", text))


def _entry(offers: Offers, key: str) -> Any:
    return offers.models[key].entry


def test_litellm_s_file_is_read_by_our_keys() -> None:
    """Rates per million, exact; its edition is a hash of what it says."""
    offers = _read({"gpt-4o": GPT})
    assert offers.source == "litellm"
    assert offers.version.startswith("sha256:")
    assert _entry(offers, "openai/gpt-4o") == {"rates": {"input": "2.5", "output": "10"}}


def test_openrouter_s_list_is_read_by_its_keys_and_by_the_makers() -> None:
    """Each model under ``openrouter/``, and under the provider that serves it itself; variants are models of their own."""
    prices = {
        "prompt": "0.000003",
        "completion": "0.000015",
        "input_cache_read": "0.0000003",
        "audio": "0.000003",
        "image": "0.004",
        "internal_reasoning": "0.000009",
        "web_search": "0",
    }
    offers = _read(
        {
            "data": [
                {"id": "anthropic/claude-sonnet-4.5", "pricing": prices},
                {"id": "google/gemini-3.8-flash:free", "pricing": prices},
                {"id": "someone/else", "pricing": prices},
                {"id": "openrouter/auto", "pricing": {"prompt": "-1", "completion": "-1"}},
                {"id": "openai/nan", "pricing": {"prompt": "NaN", "completion": "1"}},
                {"id": "openai/long", "pricing": {"prompt": "1" * 50}},
                {"id": 7, "pricing": prices},
                {"id": "openai/none"},
                "nothing",
            ]
        }
    )
    assert offers.source == "openrouter"
    assert set(offers.models) == {
        "openrouter/anthropic/claude-sonnet-4.5",
        "anthropic/claude-sonnet-4-5",
        "openrouter/google/gemini-3.8-flash:free",
        "openrouter/someone/else",
    }
    assert _entry(offers, "anthropic/claude-sonnet-4-5") == {"rates": {"input": "3", "output": "15", "cache_read": "0.3"}}
    assert set(offers.rejected) >= {"openrouter/openrouter/auto", "openai/nan", "openai/long"}


def _listed(model: str, **prices: Any) -> Offers:
    plain = {
        "prompt": "0.000001",
        "completion": "0.000002",
        "input_cache_read": "0.0000001",
        "input_cache_write": "0.000001",
    }
    return _read({"data": [{"id": model, "pricing": {**plain, **prices}}]})


def test_a_longer_prompt_costs_what_openrouter_s_overrides_say() -> None:
    """From the size on, itself included; a later override goes before an earlier one, and what none names is as below."""
    overrides = [
        {"min_prompt_tokens": 200000, "prompt": "0.000003", "input_cache_read": "0.0000003"},
        {"min_prompt_tokens": 128000, "prompt": "0.000002", "web_search": "0.01"},
    ]
    assert _entry(_listed("x-ai/grok-9", overrides=overrides), "xai/grok-9") == {
        "rates": {"input": "1", "output": "2", "cache_read": "0.1", "cache_write": "1"},
        "tiers": [
            {
                "above": 128000,
                "inclusive": True,
                "rates": {"input": "2", "output": "2", "cache_read": "0.1", "cache_write": "1"},
            },
            {
                "above": 200000,
                "inclusive": True,
                "rates": {"input": "2", "output": "2", "cache_read": "0.3", "cache_write": "1"},
            },
        ],
    }


def test_a_zero_of_openrouter_s_is_no_rate() -> None:
    """Neither below a size nor above it, where it does not mean the rate from below; all zero is no price."""
    free = _listed("x/y", input_cache_read="0", overrides=[{"min_prompt_tokens": 9, "completion": "0"}])
    assert _entry(free, "openrouter/x/y") == {
        "rates": {"input": "1", "output": "2", "cache_write": "1"},
        "tiers": [{"above": 9, "inclusive": True, "rates": {"input": "1", "cache_write": "1"}}],
    }
    assert not _listed("x/y:free", prompt="0", completion="0", input_cache_read="0", input_cache_write="0").models


@pytest.mark.parametrize(
    "override",
    [
        {"prompt": "0.000003"},
        {"min_prompt_tokens": 5, "utc_start": "01:00", "utc_end": "04:00", "prompt": "0.000003"},
        {"min_prompt_tokens": 0, "prompt": "0.000003"},
        {"min_prompt_tokens": 1.5, "prompt": "0.000003"},
        {"min_prompt_tokens": "many", "prompt": "0.000003"},
        {"min_prompt_tokens": [5], "prompt": "0.000003"},
        {"min_prompt_tokens": 5, "prompt": "-1"},
        "always",
    ],
)
def test_an_override_that_cannot_be_read_leaves_no_price(override: Any) -> None:
    """The plain price alone would be a wrong one at some hours or sizes."""
    offers = _listed("x/y", overrides=[override])
    assert not offers.models
    assert "condition that cannot be read" in offers.rejected["openrouter/x/y"]


def test_openrouter_has_no_write_rate_of_gemini_s() -> None:
    """It is storage by the hour, spread out by somebody: neither under its own key nor under Google's."""
    offers = _listed("google/gemini-9", overrides=[{"min_prompt_tokens": 200000, "input_cache_write": "0.000002"}])
    for key in ("gemini/gemini-9", "openrouter/google/gemini-9"):
        assert "cache_write" not in json.dumps(_entry(offers, key))


def test_a_price_file_of_our_own_form_is_a_mirror_too() -> None:
    """A company's file for all of its apps: its entries, without their marks."""
    offers = _read({"schema": 1, "models": {"acme/large": {"rates": {"input": "1"}, "_source": "manual"}, "acme/odd": 3}})
    assert (offers.source, dict(offers.models)["acme/large"].entry) == ("mirror", {"rates": {"input": "1"}})
    assert "acme/odd" not in offers.models


@pytest.mark.parametrize(
    "fields",
    [
        {"input_cost_per_token": -1},
        {"input_cost_per_token": "NaN"},
        {"input_cost_per_token": "Infinity"},
        {"input_cost_per_token": "a lot"},
        {"input_cost_per_token": "1e999999"},
        {"input_cost_per_token": 0, "output_cost_per_token": 0},
        {"input_cost_per_token": None, "output_cost_per_token": None},
        {"tiered_pricing": [{"range": "x", "input_cost_per_token": 1e-06}]},
        {"off_peak_pricing": {"windows": [{"hours_utc": "nine"}]}},
        {"provider_specific_entry": {"us": "x"}},
    ],
)
def test_an_entry_that_makes_no_sense_offers_nothing(fields: dict[str, Any]) -> None:
    """It is rejected by its key, and the entries beside it are read."""
    offers = _read({"bad": {**GPT, **fields}, "good": GPT})
    assert "openai/good" in offers.models
    assert "openai/bad" not in offers.models
    assert "openai/bad" in offers.rejected


@pytest.mark.parametrize("raw", [None, 3, "text", [], [1], {}, {"litellm_provider": 4}, {"litellm_provider": None}])
def test_what_is_no_entry_is_passed_over(raw: Any) -> None:
    """Whatever stands where an entry should be."""
    offers = _read({"bad": raw, "good": GPT})
    assert list(offers.models) == ["openai/good"]


def test_a_zero_beside_a_price_is_noted() -> None:
    """It is no price, and whoever had one before can tell that it is gone."""
    offers = _read({"gpt": {**GPT, "output_cost_per_token": 0}})
    assert offers.models["openai/gpt"].zeros == {"output"}
    assert _entry(offers, "openai/gpt") == {"rates": {"input": "2.5"}}


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        (json.dumps({"gpt-4o": GPT}).encode()[:-20], "cut off"),
        (b"", "no valid JSON"),
        (b"<html>", "no valid JSON"),
        (b"\xff\xfe\x00", "no valid JSON"),
        (b'{"a": NaN}', "no valid JSON"),
        (b'{"a": -Infinity}', "no valid JSON"),
        (b'{"a": ' + b"9" * 41 + b"}", "no valid JSON"),
        (b'{"a": 1e9999999999}', "no prices"),
        (b"[" * 100_000, "nested"),
        (b"[" * 33 + b"]" * 33, "nested"),
        (b'{"a":' * 100 + b"1" + b"}" * 100, "nested"),
        (b"[" + b"[]," * 200_001 + b"[]]", "too many parts"),
        (b"[1, 2]", "no table"),
        (b'"text"', "no table"),
        (b"{}", "no prices"),
        (b'{"data": 3}', "no models"),
        (json.dumps({f"m{n}": 1 for n in range(20_001)}).encode(), "more than 20,000"),
        (json.dumps({"gpt": {**GPT, "input_cost_per_token": -1}}).encode(), "no prices"),
    ],
)
def test_a_file_that_is_not_whole_or_not_sane_is_refused_as_one(data: bytes, reason: str) -> None:
    """Cut off, too deep, too wide, not JSON, numbers that are none: not a single entry is taken from it."""
    with pytest.raises(PriceSourceError, match=reason):
        _read(data)


def test_brackets_in_texts_are_no_depth() -> None:
    """Only structure counts."""
    text = '{"note": {"a": "' + "[" * 100 + '\\"{{"}, "gpt": ' + json.dumps(GPT) + "}"
    assert "openai/gpt" in _read(text.encode()).models


def test_numbers_are_what_is_written() -> None:
    """No float on the way: 17 digits stay 17 digits until they are rounded to ten, and a fee has the digits that it has."""
    text = json.dumps({"gpt": GPT}).replace("2.5e-06", "2.4999999999999998e-06")
    assert Decimal(_entry(_read(text.encode()), "openai/gpt")["rates"]["input"]) == Decimal("2.5")
    fields = {"provider_specific_entry": {"us": 1.1}, "google_maps_grounding_cost_per_query": 0.014}
    entry = _entry(_read({"gpt": {**GPT, **fields}}), "openai/gpt")
    assert (entry["multipliers"]["residency:us"], entry["tools"]["maps_grounding"]["rate"]) == ("1.1", "14")
