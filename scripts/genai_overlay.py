"""genai-prices' data, laid over what LiteLLM says: what is missing, what came before, what comes, and retired models."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from datetime import UTC, date, datetime, time, timedelta
from decimal import Context, Decimal
from typing import Any

from flask_llm_cost.pricing.drafts import Draft, Rates, Report
from flask_llm_cost.pricing.litellm import TOKEN_FIELDS, model_name, without_writes

MILLION = Decimal(1_000_000)
THOUSAND = Decimal(1_000)

#: genai-prices' provider to ours.
GENAI_PROVIDERS = {
    "anthropic": ("anthropic",),
    "aws": ("bedrock",),
    "azure": ("azure",),
    "cerebras": ("cerebras",),
    "cohere": ("cohere",),
    "deepseek": ("deepseek",),
    "fireworks": ("fireworks",),
    "google": ("gemini", "vertex"),
    "groq": ("groq",),
    "mistral": ("mistral",),
    "moonshotai": ("moonshot",),
    "openai": ("openai",),
    "openrouter": ("openrouter",),
    "perplexity": ("perplexity",),
    "together": ("together",),
    "voyageai": ("voyage",),
    "x-ai": ("xai",),
    "zai": ("zai",),
}
#: genai-prices keeps what Google hosts in one place; these are the names of Google's own models.
OWN_MODELS = {"gemini": ("gemini", "gemma", "text-embedding", "embedding"), "vertex": ("gemini",)}
GENAI_FIELDS = {
    "input_mtok": ("input", MILLION),
    "output_mtok": ("output", MILLION),
    "cache_read_mtok": ("cache_read", MILLION),
    "cache_write_mtok": ("cache_write", MILLION),
    "cache_write_1h_mtok": ("cache_write_1h", MILLION),
    "input_audio_mtok": ("audio_input", MILLION),
    "output_audio_mtok": ("audio_output", MILLION),
    "cache_audio_read_mtok": ("audio_cache_read", MILLION),
    "input_image_mtok": ("image_input", MILLION),
    "output_image_mtok": ("image_output", MILLION),
    "cache_image_read_mtok": ("image_cache_read", MILLION),
    "input_video_mtok": ("video_input", MILLION),
    "output_reasoning_mtok": ("reasoning", MILLION),
    "output_citation_mtok": ("citation", MILLION),
    "audio_hours": ("audio_seconds", Decimal(3600)),
    "input_mchars": ("characters", MILLION),
    "input_document_kpages": ("pages", THOUSAND),
    "requests_kcount": ("requests", THOUSAND),
}
VARIANTS = {
    ("processing", "batch"): "batch",
    ("service_tier", "flex"): "flex",
    ("service_tier", "priority"): "priority",
    ("service_tier", "fast"): "fast",
    ("speed", "fast"): "fast",
}
DATE = re.compile(r"-20\d\d(?:-(?:0[1-9]|1[0-2])-(?:0[1-9]|[12]\d|3[01])|(?:0[1-9]|1[0-2])(?:0[1-9]|[12]\d|3[01]))$")


def equal_names(match: Any) -> Iterator[str]:
    kind = type(match).__name__
    if kind == "ClauseEquals":
        yield match.equals
    elif kind == "ClauseOr":
        for clause in match.or_:
            yield from equal_names(clause)


@dataclass
class Dated:
    """One price of genai-prices' and since when it holds."""

    starts: date | None
    rates: Rates
    modes: dict[str, Rates | None]
    tiers: list[dict[str, Any]]
    per: dict[str, Decimal]


def genai_blocks(info: Any, inclusive: bool) -> list[Dated] | None:
    """The prices of one model in the order of their dates; ``None`` where they depend on the hour."""
    prices = info.prices if isinstance(info.prices, list) else None
    if prices is None:
        return [genai_block(info, None, info.prices, None, inclusive)]
    if any(type(price.constraint).__name__ == "TimeOfDateConstraint" for price in prices):
        return None
    dated = sorted(
        ((price.constraint.start_date if price.constraint else None, price.prices) for price in prices),
        key=lambda pair: pair[0] or date.min,
    )
    ends = [starts for starts, _ in dated[1:]] + [None]
    return [genai_block(info, starts, price, end, inclusive) for (starts, price), end in zip(dated, ends, strict=True)]


def genai_block(info: Any, starts: date | None, price: Any, end: date | None, inclusive: bool) -> Dated:
    rates, tiers, per = genai_rates(price, inclusive)
    modes: dict[str, Rates | None] = {}
    # A variant's date is when it was checked; it holds for the block if it is active on the block's last day.
    last = datetime.combine(end - timedelta(days=1), time(12), UTC) if end else datetime(9999, 1, 1, tzinfo=UTC)
    for variant in info.price_variants or ():
        mode = VARIANTS.get(next(iter(variant.when.items()))) if len(variant.when) == 1 else None
        if mode is None or mode in modes or (variant.constraint and not variant.constraint.active(last)):
            continue
        if end is None and not newest(info, variant):
            continue
        base, above, _ = genai_rates(variant.prices, inclusive)
        if not base:
            continue
        modes[mode] = base
        for tier in tiers:
            for other in above:
                if other["above"] == tier["above"]:
                    tier["modes"][mode] = other["rates"]
    return Dated(starts, rates, modes, tiers, per)


def newest(info: Any, variant: Any) -> bool:
    """Whether *variant* is the first of its kind, which is the one that genai-prices takes once all are active."""
    return next(other for other in info.price_variants if other.when == variant.when) is variant


def genai_rates(price: Any, inclusive: bool) -> tuple[Rates, list[dict[str, Any]], dict[str, Decimal]]:
    rates: Rates = {}
    per: dict[str, Decimal] = {}
    stepped: dict[str, Any] = {}
    for name, value in price.__dict__.items():
        if value is None or name not in GENAI_FIELDS:
            continue
        component, units = GENAI_FIELDS[name]
        base = value if isinstance(value, Decimal) else value.base
        if component == "audio_seconds":
            per[component] = units
        elif component in ("characters", "pages", "requests"):
            base /= units
        rates[component] = ten_digits(base)
        if not isinstance(value, Decimal):
            stepped[component] = value.tiers
    starts = sorted({tier.start for tiers in stepped.values() for tier in tiers})
    found = []
    for start in starts:
        above = {}
        for component, rate in rates.items():
            steps = [tier.price for tier in stepped.get(component, ()) if tier.start <= start]
            above[component] = ten_digits(steps[-1]) if steps else rate
        step = {"above": start + (start % 1000 == 999), "inclusive": True} if inclusive else {"above": start}
        found.append({**step, "rates": above, "modes": {}})
    return rates, found, per


def ten_digits(rate: Decimal) -> Decimal:
    """A rate without the endless digits of one that was divided."""
    return +rate.normalize(Context(prec=10))


def overlay(
    models: dict[str, Draft], providers: Iterable[Any], verdicts: dict[str, Any], today: date, report: Report
) -> dict[str, str]:
    """Lay genai-prices over LiteLLM: what is missing, what came before, what comes. Returns further names of its models."""
    aliases: dict[str, str] = {}
    for provider in providers:
        for ours in GENAI_PROVIDERS.get(provider.id, ()):
            names: dict[str, Any] = {}
            for info in provider.models:
                for name in (info.id, *equal_names(info.match)):
                    names.setdefault(model_name(name, ours, ours), info)
            for key in [key for key in models if key.startswith(f"{ours}/")]:
                name = key.partition("/")[2]
                info = names.get(name) or (names.get(DATE.sub("", name)) if ours == "anthropic" else None)
                if info is not None:
                    lay_over(key, models[key], info, ours, verdicts, today, report)
            for info in provider.models:
                key = f"{ours}/{own_name(info, ours)}"
                if key not in models and key.partition("/")[2].startswith(OWN_MODELS.get(ours, ("",))):
                    add(key, info, models, ours, today, report)
            for name, info in names.items():
                key, target = f"{ours}/{name}", f"{ours}/{own_name(info, ours)}"
                if key not in models and target in models and not respelled(name, target.partition("/")[2]):
                    aliases[key] = target
    return aliases


def own_name(info: Any, ours: str) -> str:
    """The model as its host writes it: with the owner in front, where the host does so."""
    names = [name for name in (info.id, *equal_names(info.match)) if name.startswith("accounts/") or ours != "fireworks"]
    if ours in ("openrouter", "fireworks", "together"):
        names.sort(key=lambda name: "/" not in name)
    return model_name(names[0] if names else info.id, ours, ours)


def respelled(name: str, other: str) -> bool:
    """Whether two names differ in dots, dashes or a date only, or in an owner's name in front."""
    plain, base = (DATE.sub("", text.replace(".", "-").replace("@", "-")) for text in (name, other))
    return plain == base or "/" in name or not name.isascii()


def split(blocks: list[Dated], today: date) -> tuple[list[tuple[Dated, date]], Dated, list[Dated]]:
    """``(earlier ones with their ends, the one in force, later ones)``."""
    current = max(i for i, block in enumerate(blocks) if block.starts is None or block.starts <= today)
    ended = [(block, blocks[i + 1].starts) for i, block in enumerate(blocks[:current])]
    return [(block, end) for block, end in ended if end], blocks[current], blocks[current + 1 :]


def lay_over(key: str, model: Draft, info: Any, ours: str, verdicts: dict[str, Any], today: date, report: Report) -> None:
    blocks = genai_blocks(info, ours in ("xai",))
    if blocks is None:
        return
    before, now, after = split(blocks, today)
    hourly = now.rates.get("audio_seconds")
    if (
        hourly
        and "audio_seconds" in model.rates
        and abs(model.rates["audio_seconds"] * 3600 / hourly - 1) < Decimal("0.005")
    ):
        # A price per hour, which LiteLLM cut off when it divided it by 3600.
        model.rates["audio_seconds"], model.per["audio_seconds"] = hourly, now.per["audio_seconds"]
    different = differences(model.rates, now.rates, model.per, now.per)
    verdict = verdicts["conflicts"].get(key, {})
    if different:
        taken = verdict.get("take", "litellm")
        text = ", ".join(f"{name} {model.rates[name]} / {now.rates[name]}" for name in different)
        report.conflicts.append(
            f"{key}: LiteLLM / genai-prices {text}: {taken} taken{': ' + verdict['reason'] if verdict else ''}"
        )
        if taken != "genai-prices":
            return
        model.rates.update(now.rates)
        model.modes = {**model.modes, **now.modes}
        model.source = "genai-prices"
    for component, rate in now.rates.items():
        if component not in model.rates and (
            component in now.per or component in TOKEN_FIELDS.values() or component[-1] == "h"
        ):
            if component == "cache_write" and ours in ("gemini", "vertex"):
                continue
            if not rate or (component == "audio_seconds" and "input" in model.rates):
                continue
            model.rates[component] = rate
            if component in ("input", "output"):
                model.filled.add(component)
            if component in now.per:
                model.per[component] = now.per[component]
    add_modes(key, model.modes, now.modes, report)
    if now.tiers and not model.tiers:
        report.conflicts.append(f"{key}: genai-prices has tiers, LiteLLM has none: none taken")
    for tier in model.tiers:
        for other in now.tiers:
            if tier["above"] == other["above"] and not differences(tier["rates"], other["rates"], {}, {}):
                for component, rate in other["rates"].items():
                    tier["rates"].setdefault(component, rate)
                add_modes(f"{key} above {tier['above']}", tier["modes"], other["modes"], report)
    dates(model, before, now, after)
    if "gemini" in key and ours in ("gemini", "vertex"):
        without_writes(model)


def differences(left: Rates, right: Rates, left_per: dict[str, Decimal], right_per: dict[str, Decimal]) -> list[str]:
    return [
        name
        for name in left
        if name in right and right[name] and left[name] / left_per.get(name, 1) != right[name] / right_per.get(name, 1)
    ]


def add_modes(key: str, modes: dict[str, Any], others: dict[str, Any], report: Report) -> None:
    for mode, rates in others.items():
        own = modes.get(mode)
        if own is None:
            modes[mode] = rates
            continue
        for component, rate in rates.items():
            if own.setdefault(component, rate) != rate:
                report.conflicts.append(
                    f"{key} {mode}: LiteLLM / genai-prices {component} {own[component]} / {rate}: litellm taken"
                )


def dates(model: Draft, before: list[tuple[Dated, date]], now: Dated, after: list[Dated]) -> None:
    """Earlier and later prices. A block that changes a rate names modes and tiers too: today's would be wrong in it."""
    for block, end in before:
        changed = changes(model, block, now)
        if changed:
            model.history.append({"until": end.isoformat(), **changed})
    for block in after:
        changed = changes(model, block, now)
        if changed and block.starts:
            model.scheduled.append({"from": block.starts.isoformat(), **changed})


def changes(model: Draft, block: Dated, now: Dated) -> dict[str, Any]:
    if block.rates != now.rates:
        named = {"rates": block.rates}
        for name in ("modes", "tiers"):
            if getattr(model, name) or getattr(block, name):
                named[name] = getattr(block, name)
        return named
    return {"tiers": block.tiers} if block.tiers != now.tiers else {}


def add(key: str, info: Any, models: dict[str, Draft], ours: str, today: date, report: Report) -> None:
    blocks = genai_blocks(info, ours in ("xai", "openrouter"))
    if blocks is None:
        report.leave_out(key, "genai-prices only, by the hour")
        return
    before, now, after = split(blocks, today)
    rates = {component: rate for component, rate in now.rates.items() if rate}
    zero_is_free = not rates and now.rates and key.endswith(":free") and ours == "openrouter"
    if not rates and not zero_is_free:
        report.leave_out(key, "genai-prices only, zero in all prices (unknown, not free)")
        return
    if '"' in key or "\\" in key or not key.isascii():
        report.leave_out(key, "a name that cannot be a key")
        return
    if ours == "openrouter" and "/" not in key.partition("/")[2]:
        report.leave_out(key, "OpenRouter's names have their owner in front")
        return
    model = models[key] = Draft(
        now.rates if zero_is_free else rates,
        {mode: dict(found) for mode, found in now.modes.items() if found},
        now.tiers,
        per={component: units for component, units in now.per.items() if component in rates},
        source="genai-prices",
    )
    dates(model, before, now, after)
    if "gemini" in key:
        without_writes(model)
