"""LiteLLM's price file, read by the grammar of its field names, as entries of ours.

The file is ``model_prices_and_context_window_backup.json`` of the ``litellm`` wheel, flat, USD per token. A field is a base
name with a lifetime, a size and a mode where it has them: ``cache_read_input_token_cost_above_272k_tokens_priority``. A list
of the names seen so far would miss the next threshold.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping
from copy import deepcopy
from decimal import Decimal
from typing import Any, Final

from flask_llm_cost.pricing.drafts import Draft, Rates, Report

_MILLION: Final = Decimal(1_000_000)
_THOUSAND: Final = Decimal(1_000)
#: No answer is longer.
_MOST_TOKENS: Final = 1_000_000_000
_NONE: Final[Mapping[str, str]] = {}

#: LiteLLM's provider to ours, where they differ. ``None``: its entries are no prices of calls.
PROVIDERS: Final[Mapping[str, str | None]] = {
    "azure_ai": "azure",
    "azure_text": "azure",
    "bedrock_converse": "bedrock",
    "bedrock_mantle": "bedrock",
    "codestral": "mistral",
    "cohere_chat": "cohere",
    "fireworks_ai": "fireworks",
    "fireworks_ai-embedding-models": "fireworks",
    "text-completion-codestral": "mistral",
    "text-completion-inception": "inception",
    "text-completion-openai": "openai",
    "together_ai": "together",
    "vertex_ai": "vertex",
    "sagemaker": None,
    "chatgpt": None,
    "github_copilot": None,
}
#: Another door to the same models: its price counts where the provider's own key has none.
_SECONDARY: Final = {"azure_ai", "azure_text", "bedrock_mantle"}
#: The first part of LiteLLM's keys that repeats the provider.
_PREFIXES: Final = {"fireworks": "fireworks_ai", "together": "together_ai", "vertex": "vertex_ai"}

#: LiteLLM's base names, in USD per token, to our components.
TOKEN_FIELDS: Final = {
    "input_cost_per_token": "input",
    "output_cost_per_token": "output",
    "cache_read_input_token_cost": "cache_read",
    "cache_creation_input_token_cost": "cache_write",
    "input_cost_per_audio_token": "audio_input",
    "output_cost_per_audio_token": "audio_output",
    "cache_read_input_audio_token_cost": "audio_cache_read",
    "input_cost_per_image_token": "image_input",
    "output_cost_per_image_token": "image_output",
    "cache_read_input_image_token_cost": "image_cache_read",
    "input_cost_per_video_token": "video_input",
    "output_cost_per_reasoning_token": "reasoning",
    "citation_cost_per_token": "citation",
}
_MODES: Final = {"batches": "batch", "flex": "flex", "priority": "priority", "ultrafast": "ultrafast"}
_FIELD: Final = re.compile(
    rf"(?P<base>{'|'.join(TOKEN_FIELDS)})(?:_above_(?P<hours>1|12)hr)?(?:_above_(?P<size>\d+)k_tokens)?"
    rf"(?:_(?P<mode>{'|'.join(_MODES)}))?"
)
#: Unit fields, by what LiteLLM calls the mode of the model; what is not here is not taken.
_UNIT_FIELDS: Final = {
    "audio_transcription": {"input_cost_per_second": "audio_seconds"},
    "audio_speech": {"input_cost_per_character": "characters"},
    "image_generation": {"output_cost_per_image": "images", "input_cost_per_image": "images"},
    "image_edit": {"output_cost_per_image": "images", "input_cost_per_image": "images"},
    "video_generation": {"output_cost_per_second": "video_seconds", "output_cost_per_video_per_second": "video_seconds"},
    "ocr": {"ocr_cost_per_page": "pages"},
    "rerank": {"input_cost_per_query": "rerank_query"},
    "search": {"input_cost_per_query": "requests"},
}
_UNREADABLE: Final = "cannot be read"
_OCR_BATCH: Final = "ocr_cost_per_page_batches"
_LEFT_OUT: Final = re.compile(r"commitment|/guardrails|\*|^(?:fireworks-ai|together-ai)-")
_SIZES: Final = re.compile(r"^(?:\d+-x-\d+|high|low|medium|hd|standard|\d+x\d+)/")
_BEDROCK_VERSION: Final = re.compile(r"(?:(?<=-20\d{6})-v\d+:\d+|-v1:0)$")


def rate_per_million(value: Any) -> Decimal | None:
    """USD per token as USD per 1M. Ten significant digits undo the noise of floats that were divided before."""
    number = Decimal(str(value))
    if not number.is_finite() or number < 0:
        return None
    per_million = number * _MILLION
    if len(per_million.normalize().as_tuple().digits) > 10:
        per_million = per_million.normalize().quantize(Decimal(1).scaleb(per_million.adjusted() - 9))
    return per_million.normalize()


def read_entry(key: str, raw: Mapping[str, Any], report: Report, *, free: Collection[str] = ()) -> Draft | str:
    """One of LiteLLM's entries as ours; a text says why there is none.

    :param key: ours, ``provider/model``
    :param raw: its numbers as ``Decimal`` or text, never floats
    :param free: keys whose price of zero means that they are free; anywhere else it means that nobody knows
    """
    provider = key.partition("/")[0]
    model = Draft()
    sizes: dict[int, tuple[Rates, dict[str, Rates]]] = {}
    zeros = seen = 0
    for name, value in raw.items():
        match = _FIELD.fullmatch(name)
        if match is None or value is None or isinstance(value, dict | list | bool):
            continue
        component = _component(match)
        if component is None:
            continue
        rate = rate_per_million(value)
        if rate is None:
            return "negative or not finite"
        seen += 1
        if not rate and key not in free:
            zeros += 1
            if not match["size"] and not match["mode"]:
                model.zeros.add(component)
            continue
        rates, modes = sizes.setdefault(int(match["size"] or 0), ({}, {}))
        target = modes.setdefault(_MODES[match["mode"]], {}) if match["mode"] else rates
        target[component] = rate
    base, base_modes = sizes.pop(0, ({}, {}))
    model.rates.update(base)
    model.modes.update(base_modes)
    _units(raw, model)
    for size, (rates, modes) in sorted(sizes.items()):
        # What a size does not name has no price there: the rates below it would be wrong ones.
        tier = {"above": size * 1000, "rates": rates, "modes": modes}
        model.tiers.append(tier | ({"inclusive": True} if provider == "xai" else {}))
    _tiered(raw, model)
    _windows(raw, model)
    if not model.rates:
        return (
            "zero in all prices (unknown, not free)" if zeros else "no price that we bill by" if not seen else "no base rate"
        )
    if not any(component in model.rates for component in ("input", "output")) and all(
        component in ("cache_read", "cache_write") for component in model.rates
    ):
        return "a cache rate only"
    if "gemini" in key and provider in ("gemini", "vertex"):
        without_writes(model)
    _same_reasoning(model)
    if model.rates.get("reasoning") is not None and model.rates["reasoning"] == model.rates.get("output"):
        report.notes.append(f"{key}: reasoning equals output in part only")
    _extras(key, raw, model)
    if provider == "openai" and raw.get("supports_reasoning"):
        model.reasoning_model = True
    if any(component.endswith("output") for component in model.rates):
        model.max_output = _max_output(raw.get("max_output_tokens"))
    return model


def _component(field: re.Match[str]) -> str | None:
    """What a field is the rate of; ``None`` for a lifetime of what has none."""
    component = TOKEN_FIELDS[field["base"]]
    if not field["hours"]:
        return component
    return f"{component}_{field['hours']}h" if component == "cache_write" else None


def _max_output(value: Any) -> int | None:
    """What is no whole number of tokens is not said: an entry is not worth less for it."""
    try:
        number = Decimal(str(value))
    except ArithmeticError:
        return None
    return int(number) if number.is_finite() and 0 < number < _MOST_TOKENS and number == int(number) else None


def _units(raw: Mapping[str, Any], model: Draft) -> None:
    for name, component in _UNIT_FIELDS.get(str(raw.get("mode")), {}).items():
        if name in raw and component not in model.rates:
            value = Decimal(str(raw[name])).normalize()
            if component == "audio_seconds" and len(value.as_tuple().digits) > 6:
                # A price per hour, divided: back to the hour, where it ends.
                value = (value * 3600).quantize(Decimal("0.0001")).normalize()
                model.per[component] = Decimal(3600)
            if value > 0:
                model.rates[component] = value
    if _OCR_BATCH in raw and "pages" in model.rates:
        model.modes["batch"] = {**(model.modes.get("batch") or {}), "pages": Decimal(str(raw[_OCR_BATCH])).normalize()}


def _tiered(raw: Mapping[str, Any], model: Draft) -> None:
    """``tiered_pricing``: a table of ranges, ``start < n <= end``, for the whole call."""
    table = raw.get("tiered_pricing")
    if not isinstance(table, list) or model.tiers:
        return
    for step in table:
        if "range" not in step:
            return
        rates: Rates = {}
        for name, value in step.items():
            match = _FIELD.fullmatch(name)
            rate = rate_per_million(value) if match and not match["mode"] and not match["size"] else None
            component = _component(match) if match and rate else None
            if rate and component:
                rates[component] = rate
        start = int(Decimal(str(step["range"][0])))
        if start == 0:
            model.rates.update(rates)
        else:
            model.tiers.append({"above": start, "rates": rates, "modes": {}})


def _windows(raw: Mapping[str, Any], model: Draft) -> None:
    """``off_peak_pricing``: LiteLLM's base is the peak; ours is the rest, and the peak hours are the windows."""
    off_peak = raw.get("off_peak_pricing")
    if not isinstance(off_peak, dict):
        return
    minutes = {day: [False] * 1440 for day in range(1, 8)}
    for window in off_peak["windows"]:
        hours = window["hours_utc"]
        for span in [hours] if isinstance(hours, str) else hours:
            start, end = (int(text[:2]) * 60 + int(text[3:]) for text in span.split("-"))
            for day in window.get("weekdays", range(1, 8)):
                # Past midnight the hours are the next day's.
                for minute in range(start, end if start < end else end + 1440):
                    minutes[(int(day) - 1 + minute // 1440) % 7 + 1][minute % 1440] = True
    peak = {day: _spans([not off for off in day_minutes]) for day, day_minutes in minutes.items()}
    low = {
        TOKEN_FIELDS[name]: rate
        for name, value in off_peak.items()
        if name in TOKEN_FIELDS and (rate := rate_per_million(value))
    }
    high = {component: rate for component, rate in model.rates.items() if component in low}
    model.rates = {**model.rates, **low}
    for hours in sorted({tuple(value) for value in peak.values() if value}):
        days = [day for day, value in peak.items() if tuple(value) == hours]
        model.windows.append({"days": days, "utc": list(hours), "rates": high})


def _spans(flags: list[bool]) -> list[str]:
    found, start = [], None
    for minute, flag in enumerate([*flags, False]):
        if flag and start is None:
            start = minute
        elif not flag and start is not None:
            found.append(f"{start // 60:02}:{start % 60:02}-{minute // 60:02}:{minute % 60:02}")
            start = None
    return found


def _same_reasoning(model: Draft) -> None:
    """Reasoning is a component of its own only where it is priced apart."""
    blocks: list[Rates] = [model.rates, *(rates for rates in model.modes.values() if rates)]
    for tier in model.tiers:
        blocks += [tier["rates"], *tier["modes"].values()]
    if all("reasoning" not in rates or rates["reasoning"] == rates.get("output") for rates in blocks):
        for rates in blocks:
            rates.pop("reasoning", None)


def without_writes(model: Draft) -> None:
    """Gemini's caches are billed by the hour of storage; a write rate is that, spread out by somebody."""
    blocks: list[Rates] = []
    for block in (model.price(), *model.history, *model.scheduled):
        blocks.append(block.get("rates", {}))
        for owner in (block, *block.get("tiers", ())):
            blocks.extend((owner.get("rates", {}), *(rates for rates in owner.get("modes", {}).values() if rates)))
    for rates in blocks:
        for component in [component for component in rates if component.startswith("cache_write")]:
            del rates[component]


def _extras(key: str, raw: Mapping[str, Any], model: Draft) -> None:
    """Factors by region and speed, and the fees of searches."""
    provider, _, name = key.partition("/")
    special = raw.get("provider_specific_entry") or {}
    if isinstance(special, dict):
        for field, kind in (("us", "residency:us"), ("fast", "fast")):
            if field in special:
                model.multipliers[kind] = Decimal(str(special[field])).normalize()
    for zone in ("eu", "us"):
        if (uplift := raw.get(f"regional_processing_uplift_multiplier_{zone}")) is not None:
            model.multipliers[f"residency:{zone}"] = Decimal(str(uplift)).normalize()
    if provider == "vertex" and (uplift := raw.get("regional_endpoint_uplift_multiplier")) is not None:
        model.multipliers["residency:*"] = Decimal(str(uplift)).normalize()
    fees = {str(value) for value in (raw.get("search_context_cost_per_query") or {}).values()}
    if len(fees) == 1 and provider not in ("openai", "anthropic", "bedrock"):
        fee = (Decimal(fees.pop()) * _THOUSAND).normalize()
        google = provider == "gemini" or (provider == "vertex" and "claude" not in name)
        per_query = raw.get("web_search_billing_unit") == "per_query"
        tool = ("grounding_query" if per_query else "grounded_prompt") if google else "web_search"
        model.tools[tool] = {"rate": fee, "per": _THOUSAND}
    if (maps := raw.get("google_maps_grounding_cost_per_query")) is not None:
        model.tools["maps_grounding"] = {"rate": (Decimal(str(maps)) * _THOUSAND).normalize(), "per": _THOUSAND}


def read_file(
    data: Mapping[str, Any],
    report: Report,
    *,
    free: Collection[str] = (),
    leave_out: Mapping[str, str] = _NONE,
) -> dict[str, Draft]:
    """All of LiteLLM's entries that are prices of calls, by our keys.

    :param leave_out: providers of ours that are not wanted, and why
    """
    models: dict[str, Draft] = {}
    ranks: dict[str, int] = {}
    for name, raw in data.items():
        if name == "sample_spec":
            continue
        if not isinstance(raw, Mapping):
            report.leave_out(name, _UNREADABLE)
            continue
        original = str(raw.get("litellm_provider"))
        provider = PROVIDERS.get(original, "vertex" if original.startswith("vertex_ai-") else original)
        if provider is None:
            report.leave_out(name, "a subscription or a machine by the hour, not a price of calls")
            continue
        if provider in leave_out:
            report.leave_out(name, leave_out[provider])
            continue
        if _LEFT_OUT.search(name) or _SIZES.match(name):
            report.leave_out(name, "a commitment, a size class or a picture size, not a model")
            continue
        key = f"{provider}/{model_name(name, provider, original)}"
        if '"' in key or "\\" in key or not key.isascii() or not key.isprintable():
            report.leave_out(name, "a name that cannot be a key")
            continue
        rank = 0 if original in _SECONDARY else 1 + name.startswith(("vertex_ai/", f"{provider}/"))
        try:
            found = read_entry(key, raw, report, free=free)
        except (ArithmeticError, AttributeError, LookupError, TypeError, ValueError):
            found = _UNREADABLE
        if isinstance(found, str):
            report.leave_out(name, found)
            report.rejected.setdefault(key, found)
        elif key not in models:
            models[key] = found
            ranks[key] = rank
        else:
            other = models[key]
            # Of two maximums the larger bounds an answer.
            most = max((found.max_output or 0, other.max_output or 0)) or None
            if other.price() != found.price():
                if rank > ranks[key]:
                    models[key], ranks[key] = found, rank
                report.conflicts.append(f"{key}: LiteLLM has two prices for it; {name!r} is the second")
            models[key].max_output = most
    _drop_dated_spellings(models, report)
    _bedrock_in_region(models, report)
    return models


def model_name(name: str, provider: str, original: str) -> str:
    """A model's name without the provider in front of it, and without Bedrock's version behind."""
    first, slash, rest = name.partition("/")
    if slash and first in (provider, original, _PREFIXES.get(provider), original.partition("-")[0]):
        name = rest
    if provider == "bedrock":
        name = _BEDROCK_VERSION.sub("", name)
    return name


def _drop_dated_spellings(models: dict[str, Draft], report: Report) -> None:
    """Vertex writes dates as ``@20250929``; such a key goes where it says what the plain one says."""
    for key in [key for key in models if key.startswith("vertex/") and "@" in key]:
        plain = models.get(key.partition("@")[0])
        if plain is not None and plain.price() == models[key].price():
            del models[key]
        elif plain is None:
            models.setdefault(key.partition("@")[0], models[key])
            del models[key]
        else:
            report.notes.append(f"{key}: differs from the name without its date, kept")


def _bedrock_in_region(models: dict[str, Draft], report: Report) -> None:
    """A bare Claude id on Bedrock is in-region, at the price of the ``us.`` profile; LiteLLM gives it the global one."""
    for key in [key for key in models if key.startswith("bedrock/anthropic.claude-")]:
        name = key.partition("/")[2]
        in_region, worldwide = models.get(f"bedrock/us.{name}"), models.get(f"bedrock/global.{name}")
        if in_region and worldwide and models[key].rates == worldwide.rates != in_region.rates:
            report.conflicts.append(f"{key}: LiteLLM has the global price for the in-region id; the us. profile's is taken")
            models[key] = deepcopy(in_region)
