"""LiteLLM's file is read by the grammar of its field names, and never for more than it says."""

from __future__ import annotations

import json
from decimal import Decimal
from pathlib import Path
from typing import Any

import pytest

from flask_llm_cost.pricing.drafts import Report, as_json
from flask_llm_cost.pricing.litellm import read_entry, read_file

VERDICTS = Path(__file__).parents[2] / "scripts" / "price_verdicts.json"


def _read(key: str = "openai/model", **fields: Any) -> dict[str, Any] | str:
    found = read_entry(key, fields, Report())
    return found if isinstance(found, str) else as_json(found)


def test_a_field_says_component_lifetime_size_and_mode() -> None:
    """Any size and any mode that the grammar knows, in any combination; new thresholds need no new code."""
    assert _read(
        input_cost_per_token=Decimal("2.5e-06"),
        input_cost_per_token_above_999k_tokens=Decimal("5e-06"),
        input_cost_per_token_above_999k_tokens_priority=Decimal("1e-05"),
        cache_creation_input_token_cost_above_12hr=Decimal("1e-05"),
        cache_creation_input_token_cost_above_1hr_above_999k_tokens_flex=Decimal("7e-06"),
        cache_read_input_audio_token_cost_batches=Decimal("1e-07"),
    ) == {
        "rates": {"input": "2.5", "cache_write_12h": "10"},
        "modes": {"batch": {"audio_cache_read": "0.1"}},
        "tiers": [
            {
                "above": 999000,
                "rates": {"input": "5"},
                "modes": {"flex": {"cache_write_1h": "7"}, "priority": {"input": "10"}},
            }
        ],
    }


#: LiteLLM's base names as pricing.md's table of its grammar has them, and what each is the rate of.
BASES = [
    ("input_cost_per_token", "input"),
    ("output_cost_per_token", "output"),
    ("cache_read_input_token_cost", "cache_read"),
    ("cache_creation_input_token_cost", "cache_write"),
    ("cache_creation_input_token_cost_above_1hr", "cache_write_1h"),
    ("cache_creation_input_token_cost_above_12hr", "cache_write_12h"),
    ("input_cost_per_audio_token", "audio_input"),
    ("output_cost_per_audio_token", "audio_output"),
    ("cache_read_input_audio_token_cost", "audio_cache_read"),
    ("input_cost_per_image_token", "image_input"),
    ("output_cost_per_image_token", "image_output"),
    ("cache_read_input_image_token_cost", "image_cache_read"),
    ("input_cost_per_video_token", "video_input"),
    ("output_cost_per_reasoning_token", "reasoning"),
    ("citation_cost_per_token", "citation"),
]


@pytest.mark.parametrize(("base", "component"), BASES)
def test_every_base_is_one_component_in_every_mode_and_size(base: str, component: str) -> None:
    """Plain, in each mode, above a size, and in each mode above it: seven numbers that are never one another."""
    plain = {"input_cost_per_token": Decimal("9e-06"), "input_cost_per_token_above_128k_tokens": Decimal("9e-06")}
    modes = {"_batches": "batch", "_flex": "flex", "_priority": "priority", "_ultrafast": "ultrafast"}
    above = "_above_128k_tokens"
    names = {base: "1", f"{base}{above}": "2"}
    names |= {f"{base}{suffix}": f"3.{n}" for n, suffix in enumerate(modes, 1)}
    names |= {f"{base}{above}{suffix}": f"4.{n}" for n, suffix in enumerate(modes, 1)}
    found = _read(**plain | {name: Decimal(rate) / 1_000_000 for name, rate in names.items()})
    assert isinstance(found, dict)
    assert found["rates"] == {"input": "9", component: "1"}
    assert found["modes"] == {mode: {component: f"3.{n}"} for n, mode in enumerate(modes.values(), 1)}
    (tier,) = found["tiers"]
    assert (tier["above"], tier["rates"]) == (128_000, {"input": "9", component: "2"})
    assert tier["modes"] == {mode: {component: f"4.{n}"} for n, mode in enumerate(modes.values(), 1)}


@pytest.mark.parametrize(
    "name",
    [
        "input_cost_per_token_balanced",
        "input_cost_per_token_decisions",
        "input_cost_per_token_above_272k_tokens_decisions",
        "input_cost_per_token_cache_hit",
        "input_cost_per_token_above_1hr",
        "explicit_cache_read_input_token_cost",
        "cache_creation_input_audio_token_cost",
        "input_dbu_cost_per_token",
        "output_cost_per_video_token",
        "output_cost_per_token_somehow",
    ],
)
def test_a_name_that_the_grammar_does_not_know_is_no_rate(name: str) -> None:
    """A mode that is none of ours, or a component: neither the standard rate nor another's."""
    plain = {"input_cost_per_token": Decimal("1e-06"), "output_cost_per_token": Decimal("2e-06")}
    assert _read(**plain, **{name: Decimal("7e-06")}) == {"rates": {"input": "1", "output": "2"}}


@pytest.mark.parametrize(
    ("mode", "name", "value", "rates"),
    [
        ("audio_transcription", "input_cost_per_second", "0.0001", {"audio_seconds": "0.0001"}),
        ("audio_speech", "input_cost_per_character", "1.5e-05", {"characters": "0.000015"}),
        ("image_generation", "output_cost_per_image", "0.04", {"images": "0.04"}),
        ("image_generation", "input_cost_per_image", "0.04", {"images": "0.04"}),
        ("image_edit", "output_cost_per_image", "0.04", {"images": "0.04"}),
        ("video_generation", "output_cost_per_second", "0.4", {"video_seconds": "0.4"}),
        ("video_generation", "output_cost_per_video_per_second", "0.4", {"video_seconds": "0.4"}),
        ("ocr", "ocr_cost_per_page", "0.004", {"pages": "0.004"}),
        ("rerank", "input_cost_per_query", "0.002", {"rerank_query": "0.002"}),
        ("search", "input_cost_per_query", "0.005", {"requests": "0.005"}),
    ],
)
def test_a_unit_is_billed_by_the_piece(mode: str, name: str, value: str, rates: dict[str, str]) -> None:
    """Where the model's own mode says what the unit is; a rate per piece is not multiplied by a million."""
    assert _read(mode=mode, **{name: Decimal(value)}) == {"rates": rates}
    priced = {"input_cost_per_token": Decimal("1e-06")}
    assert _read(mode="chat", **priced, **{name: Decimal(value)}) == {"rates": {"input": "1"}}


def test_a_price_by_the_hour_goes_back_to_the_hour() -> None:
    """LiteLLM divides it by 3600 and cuts it off; the unit is kept with the rate."""
    found = _read(mode="audio_transcription", input_cost_per_second=Decimal("3.083333333333333e-05"))
    assert found == {"rates": {"audio_seconds": "0.111"}, "per": {"audio_seconds": "3600"}}


def test_pages_have_a_batch_price_and_pixels_and_sessions_none() -> None:
    """A picture by its pixels is no unit of ours, and a session's fee is its provider's, whatever the model."""
    pages = {"ocr_cost_per_page": Decimal("0.004"), "ocr_cost_per_page_batches": Decimal("0.002")}
    assert _read(mode="ocr", **pages) == {"rates": {"pages": "0.004"}, "modes": {"batch": {"pages": "0.002"}}}
    for mode, name in (("image_generation", "input_cost_per_pixel"), ("chat", "code_interpreter_cost_per_session")):
        assert _read(mode=mode, **{name: Decimal("0.03")}) == "no price that we bill by"


def test_regions_and_speed_are_factors() -> None:
    """Of Anthropic's and OpenAI's entries by zone, of Vertex's by any place; of other hosts none."""
    price = {"input_cost_per_token": Decimal("1e-06")}

    def factors(key: str, **fields: Any) -> Any:
        found = _read(key, **price, **fields)
        assert isinstance(found, dict)
        return found.get("multipliers")

    special = {"us": Decimal("1.1"), "fast": Decimal("2.0")}
    assert factors("anthropic/m", provider_specific_entry=special) == {"residency:us": "1.1", "fast": "2"}
    assert factors("openai/m", regional_processing_uplift_multiplier_eu=Decimal("1.1")) == {"residency:eu": "1.1"}
    assert factors("openai/m", regional_processing_uplift_multiplier_us=Decimal("1.2")) == {"residency:us": "1.2"}
    assert factors("vertex/m", regional_endpoint_uplift_multiplier=Decimal("1.1")) == {"residency:*": "1.1"}
    assert factors("gemini/m", regional_endpoint_uplift_multiplier=Decimal("1.1")) is None


def test_maps_are_billed_apart() -> None:
    """By the call in the source, by the thousand here."""
    found = _read("gemini/m", input_cost_per_token=Decimal("1e-06"), google_maps_grounding_cost_per_query=Decimal("0.025"))
    assert found == {"rates": {"input": "1"}, "tools": {"maps_grounding": {"rate": "25", "per": "1000"}}}


def test_a_size_that_names_one_rate_is_a_tier_all_the_same() -> None:
    """What it does not name has no price above it: the rates of a short call would be wrong ones."""
    fields = {"input_cost_per_token": Decimal("1e-06"), "output_cost_per_token_above_128k_tokens": Decimal("2e-06")}
    assert _read(**fields) == {"rates": {"input": "1"}, "tiers": [{"above": 128000, "rates": {"output": "2"}}]}


@pytest.mark.parametrize(
    ("value", "rate"),
    [
        ("2.4999999999999998e-06", "2.5"),
        ("3.7499999999999997e-07", "0.375"),
        ("2.8333333333333336e-07", "0.2833333333"),
        ("0.00015", "150"),
        ("1e-09", "0.001"),
    ],
)
def test_the_noise_of_floats_goes_and_no_digit_that_counts(value: str, rate: str) -> None:
    """Ten significant digits: what was divided by a million before is whole again."""
    assert _read(input_cost_per_token=Decimal(value)) == {"rates": {"input": rate}}


@pytest.mark.parametrize(
    ("fields", "reason"),
    [
        ({"input_cost_per_token": 0, "output_cost_per_token": 0}, "unknown, not free"),
        ({"max_tokens": 5}, "no price"),
        ({"input_cost_per_token": -1}, "negative"),
        ({"input_cost_per_token": Decimal("NaN")}, "negative or not finite"),
        ({"input_cost_per_token": Decimal("Infinity")}, "negative or not finite"),
        ({"cache_read_input_token_cost": Decimal("1e-06")}, "cache rate only"),
        ({"input_cost_per_token_batches": Decimal("1e-06")}, "no base rate"),
    ],
)
def test_what_is_no_price_is_left_out(fields: dict[str, Any], reason: str) -> None:
    """Zero is not free, -1 is no price, a part of a price is none; each is left out with its reason."""
    found = _read(**fields)
    assert isinstance(found, str)
    assert reason in found


def test_zero_is_free_where_the_provider_says_so() -> None:
    """On the allow-list only."""
    found = read_entry("openai/moderation", {"input_cost_per_token": Decimal(0)}, Report(), free={"openai/moderation"})
    assert not isinstance(found, str)
    assert as_json(found) == {"rates": {"input": "0"}}


def test_a_zero_beside_a_price_is_unknown() -> None:
    """An embedding's output, a write that nobody charges for: no rate, not a free one."""
    assert _read(input_cost_per_token=Decimal("2e-08"), output_cost_per_token=Decimal(0)) == {"rates": {"input": "0.02"}}


def test_off_peak_hours_become_peak_hours() -> None:
    """LiteLLM's base is the peak; ours is the rest, with windows that say when the peak is."""
    found = _read(
        "deepseek/model",
        input_cost_per_token=Decimal("3e-07"),
        output_cost_per_token=Decimal("1.2e-06"),
        off_peak_pricing={
            "input_cost_per_token": Decimal("1.5e-07"),
            "output_cost_per_token": Decimal("6e-07"),
            "windows": [
                {"hours_utc": ["00:00-01:00", "04:00-06:00", "10:00-00:00"], "weekdays": [1, 2, 3, 4, 5]},
                {"hours_utc": "00:00-00:00", "weekdays": [6, 7]},
            ],
        },
    )
    assert found == {
        "rates": {"input": "0.15", "output": "0.6"},
        "windows": [
            {"days": [1, 2, 3, 4, 5], "utc": ["01:00-04:00", "06:00-10:00"], "rates": {"input": "0.3", "output": "1.2"}}
        ],
    }


def test_ranges_become_tiers() -> None:
    """Every range after the first is a tier above its start; xAI's sizes include the bound."""
    step = {"input_cost_per_token": Decimal("1e-06"), "output_cost_per_token": Decimal("2e-06")}
    found = _read("dashscope/model", tiered_pricing=[{**step, "range": [0, 32000]}, {**step, "range": [32000, 128000]}])
    assert found == {
        "rates": {"input": "1", "output": "2"},
        "tiers": [{"above": 32000, "rates": {"input": "1", "output": "2"}}],
    }
    xai = _read("xai/model", input_cost_per_token=Decimal("1e-06"), input_cost_per_token_above_200k_tokens=Decimal("2e-06"))
    assert isinstance(xai, dict)
    assert xai["tiers"][0]["inclusive"] is True


def test_a_range_knows_lifetimes_too() -> None:
    """An hour's write is not the default write; a lifetime of what has none is passed over."""
    step = {"input_cost_per_token": Decimal("1e-06"), "cache_creation_input_token_cost": Decimal("1.25e-06")}
    hour = {"cache_creation_input_token_cost_above_1hr": Decimal("2e-06"), "input_cost_per_token_above_1hr": Decimal(1)}
    found = _read(tiered_pricing=[{"range": [0, 1000], **step, **hour}, {"range": [1000, 2000], **step, **hour}])
    rates = {"input": "1", "cache_write": "1.25", "cache_write_1h": "2"}
    assert found == {"rates": rates, "tiers": [{"above": 1000, "rates": rates}]}


def test_off_peak_hours_go_past_midnight() -> None:
    """Those after it belong to the next day, the last day's to the first."""
    off_peak = {"windows": [{"hours_utc": "16:30-00:30", "weekdays": [7]}], "input_cost_per_token": Decimal("1e-06")}
    found = _read(input_cost_per_token=Decimal("2e-06"), off_peak_pricing=off_peak)
    assert isinstance(found, dict)
    hours = {day: window["utc"] for window in found["windows"] for day in window["days"]}
    assert hours[7] == ["00:00-16:30"]
    assert hours[1] == ["00:30-24:00"]
    assert hours[2] == ["00:00-24:00"]


def test_reasoning_is_a_component_only_where_it_is_priced_apart() -> None:
    """The same price as output's is output."""
    same = {"output_cost_per_token": Decimal("3e-06"), "output_cost_per_reasoning_token": Decimal("3e-06")}
    assert _read(**same) == {"rates": {"output": "3"}}
    apart = {**same, "output_cost_per_reasoning_token": Decimal("4e-06")}
    assert _read(**apart) == {"rates": {"output": "3", "reasoning": "4"}}


def test_a_gemini_cache_has_no_write_rate() -> None:
    """It is billed by storage."""
    prices = {"input_cost_per_token": Decimal("1e-06"), "cache_creation_input_token_cost": Decimal("8e-08")}
    assert _read("gemini/gemini-9", **prices) == {"rates": {"input": "1"}}
    assert _read("vertex/gemini-9", **prices) == {"rates": {"input": "1"}}
    assert _read("vertex/claude-9", **prices) == {"rates": {"input": "1", "cache_write": "0.08"}}


def test_searches_are_billed_by_the_tool_that_the_provider_has() -> None:
    """Gemini by prompt or by query, others by search; a fee that depends on a size is not taken."""
    fee = {
        "input_cost_per_token": Decimal("1e-06"),
        "search_context_cost_per_query": {"low": Decimal("0.014"), "high": Decimal("0.014")},
    }

    def tools(key: str, **more: Any) -> Any:
        found = _read(key, **{**fee, **more})
        assert isinstance(found, dict)
        return found.get("tools")

    once = {"rate": "14", "per": "1000"}
    assert tools("gemini/gemini-9", web_search_billing_unit="per_query") == {"grounding_query": once}
    assert tools("gemini/gemini-9") == {"grounded_prompt": once}
    assert tools("groq/model") == {"web_search": once}
    assert (
        tools("perplexity/model", search_context_cost_per_query={"low": Decimal("0.005"), "high": Decimal("0.012")}) is None
    )


def test_keys_are_ours() -> None:
    """Providers and models by the names of the contract; a commitment or a picture size is no model."""
    price = {"input_cost_per_token": Decimal("1e-06")}
    names = {
        "gpt-9": "openai",
        "azure/gpt-9": "azure",
        "vertex_ai/claude-9@20290101": "vertex_ai-anthropic_models",
        "gemini-9": "vertex_ai-language-models",
        "gemini/gemini-9": "gemini",
        "anthropic.claude-9-20290101-v1:0": "bedrock_converse",
        "amazon.embed-v2:0": "bedrock",
        "bedrock/us-east-1/anthropic.claude-9": "bedrock",
        "bedrock/*/1-month-commitment/x": "bedrock",
        "groq/openai/gpt-oss-9b": "groq",
        "fireworks_ai/accounts/fireworks/models/x": "fireworks_ai",
        "together_ai/meta/x": "together_ai",
        "1024-x-1024/dall-e-9": "openai",
        "github_copilot/gpt-9": "github_copilot",
        "reseller/gpt-9": "reseller",
        'odd"name': "openai",
    }
    report = Report()
    found = read_file(
        {name: {**price, "litellm_provider": provider} for name, provider in names.items()},
        report,
        leave_out={"reseller": "not wanted"},
    )
    assert sorted(found) == [
        "azure/gpt-9",
        "bedrock/amazon.embed-v2:0",
        "bedrock/anthropic.claude-9-20290101",
        "bedrock/us-east-1/anthropic.claude-9",
        "fireworks/accounts/fireworks/models/x",
        "gemini/gemini-9",
        "groq/openai/gpt-oss-9b",
        "openai/gpt-9",
        "together/meta/x",
        "vertex/claude-9",
        "vertex/gemini-9",
    ]
    assert sum(len(keys) for keys in report.left_out.values()) == 5
    assert report.left_out["not wanted"] == ["reseller/gpt-9"]


@pytest.mark.parametrize(
    ("said", "taken"),
    [
        (Decimal(8192), 8192),
        ("8192", 8192),
        (None, None),
        (0, None),
        (-1, None),
        ("many", None),
        (Decimal("0.5"), None),
        (Decimal("1e999999"), None),
        (Decimal("NaN"), None),
        ([1], None),
    ],
)
def test_a_maximum_of_output_is_a_number_of_tokens_or_nothing(said: Any, taken: int | None) -> None:
    """What is none is not taken, and costs an entry nothing else; what has no output has no maximum of it."""
    found = _read(output_cost_per_token=Decimal("1e-06"), max_output_tokens=said)
    assert found == {"rates": {"output": "1"}} | ({} if taken is None else {"max_output": taken})
    assert _read(input_cost_per_token=Decimal("1e-06"), max_output_tokens=said) == {"rates": {"input": "1"}}


def test_of_two_maximums_the_larger_counts() -> None:
    """It bounds an answer whichever of two entries of one key is right, and it is no conflict of prices."""
    entry = {"output_cost_per_token": Decimal("1e-06"), "litellm_provider": "mistral"}
    for sizes in ((4096, 32000), (32000, 4096), (32000, None), (None, 32000)):
        report = Report()
        names = ("mistral/codestral-9", "codestral-9")
        found = read_file(
            {name: {**entry, "max_output_tokens": size} for name, size in zip(names, sizes, strict=True)}, report
        )
        assert {key: draft.max_output for key, draft in found.items()} == {"mistral/codestral-9": 32000}
        assert not report.conflicts


def test_a_bare_claude_on_bedrock_is_in_region() -> None:
    """LiteLLM gives it the worldwide price; the one of the ``us.`` profile is right, and the change is reported."""
    names = {"anthropic.claude-9": "3e-06", "global.anthropic.claude-9": "3e-06", "us.anthropic.claude-9": "3.3e-06"}
    report = Report()
    found = read_file(
        {name: {"input_cost_per_token": Decimal(rate), "litellm_provider": "bedrock"} for name, rate in names.items()},
        report,
    )
    assert found["bedrock/anthropic.claude-9"].rates == {"input": Decimal("3.3")}
    assert any("in-region" in line for line in report.conflicts)


def test_every_verdict_has_its_reason_and_source() -> None:
    """What was decided by hand can be checked by hand."""
    verdicts = json.loads(VERDICTS.read_text("utf-8"))
    for key, verdict in (*verdicts["conflicts"].items(), *verdicts["entries"].items()):
        assert verdict["reason"], key
        assert verdict["source"].startswith("https://"), key
    assert all(verdicts["leave_out"].values())
