"""Prices the golden cases with genai-prices and LiteLLM, in an environment of their own. Prints JSON.

python price_elsewhere.py golden.json
"""

from __future__ import annotations

import json
import os
import sys
from datetime import datetime
from decimal import Decimal
from typing import Any

os.environ["LITELLM_LOCAL_MODEL_COST_MAP"] = "True"  # else it asks the network for its prices

TEXT = {"input", "cache_read", "cache_write", "output"}
GENAI_NAMES = {
    "openai": "openai", "anthropic": "anthropic", "gemini": "google", "groq": "groq", "deepseek": "deepseek", "xai": "x-ai",
    "mistral": "mistral", "azure": "azure", "bedrock": "aws", "cerebras": "cerebras", "perplexity": "perplexity",
}  # fmt: skip
LITELLM_NAMES = {
    "openai": "openai", "anthropic": "anthropic", "gemini": "gemini", "groq": "groq", "deepseek": "deepseek", "xai": "xai",
    "mistral": "mistral", "azure": "azure", "bedrock": "bedrock", "cerebras": "cerebras", "dashscope": "dashscope",
    "vertex": "vertex_ai",
}  # fmt: skip
CONTEXTS = {
    None: {},
    "batch": {"processing": "batch"},
    "flex": {"service_tier": "flex"},
    "priority": {"service_tier": "priority"},
}


def genai(case: dict[str, Any], usage: dict[str, int]) -> str | None:
    from genai_prices import Usage, calc_price

    if case["provider"] not in GENAI_NAMES or case["mode"] not in CONTEXTS:
        return None
    given = Usage(
        input_tokens=usage.get("input", 0) + usage.get("cache_read", 0) + usage.get("cache_write", 0),
        cache_read_tokens=usage.get("cache_read"),
        cache_write_tokens=usage.get("cache_write"),
        output_tokens=usage.get("output"),
    )
    options: dict[str, Any] = {"price_context": CONTEXTS[case["mode"]]} if case["mode"] else {}
    try:
        found = calc_price(
            given,
            case["model"],
            provider_id=GENAI_NAMES[case["provider"]],
            genai_request_timestamp=datetime.fromisoformat(case["at"]),
            **options,
        )
    except (LookupError, ValueError, TypeError, AttributeError):
        return None
    return str(found.total_price)


def litellm(case: dict[str, Any], usage: dict[str, int]) -> str | None:
    import litellm as theirs

    theirs.suppress_debug_info = True  # else it prints an advertisement for each model that it does not have
    if case["provider"] not in LITELLM_NAMES or case["mode"] not in (None, "flex", "priority"):
        return None
    if datetime.fromisoformat(case["at"]).date().isoformat() != "2026-11-18":
        return None  # it knows today's prices only
    if case["model"] == "deepseek-flash":
        return None  # and those by the hour of its own clock
    try:
        parts = theirs.cost_per_token(
            model=case["model"],
            custom_llm_provider=LITELLM_NAMES[case["provider"]],
            prompt_tokens=usage.get("input", 0) + usage.get("cache_read", 0) + usage.get("cache_write", 0),
            completion_tokens=usage.get("output", 0),
            cache_read_input_tokens=usage.get("cache_read", 0),
            cache_creation_input_tokens=usage.get("cache_write", 0),
            service_tier=case["mode"],
        )
    except Exception:  # whatever it raises for a model that it does not have
        return None
    # Floats: what they print with twelve digits is what they mean.
    return str(+Decimal(f"{sum(parts):.12g}"))


def main() -> None:
    with open(sys.argv[1], encoding="utf-8") as file:
        cases = json.load(file)
    found = {}
    for case in cases:
        usage = {line[0]: line[1] for line in case["lines"]}
        if usage and set(usage) <= TEXT:
            found[case["case"]] = {"genai-prices": genai(case, usage), "litellm": litellm(case, usage)}
    json.dump(found, sys.stdout)


if __name__ == "__main__":
    main()
