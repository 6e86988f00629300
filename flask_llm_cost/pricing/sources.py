"""Where prices are synchronised from, and what each offers, by our keys.

LiteLLM's file is the first; OpenRouter's list of models fills in cache rates that it lacks. Both are read as if by an enemy:
what does not parse completely offers nothing.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from decimal import Decimal
from pathlib import Path
from typing import Any, Final

from flask_llm_cost.errors import PriceSourceError
from flask_llm_cost.pricing.drafts import Report, as_json
from flask_llm_cost.pricing.fetch import Download, Trust, safe_name
from flask_llm_cost.pricing.litellm import rate_per_million, read_file

MAX_DEPTH: Final = 32
MAX_ENTRIES: Final = 20_000
_MAX_CONTAINERS: Final = 200_000
_MAX_DIGITS: Final = 40
_BRACKETS: Final = re.compile(rb'"(?:[^"\\]|\\.)*+"|[\[{]|[\]}]', re.DOTALL)


@dataclass(frozen=True, slots=True)
class Feed:
    """One source: a URL and whom to trust with it, or a path."""

    name: str
    url: str
    trust: Trust | None = None

    @property
    def shown(self) -> str:
        """Where it is, without what may be a secret. A source without trust is a file."""
        return Path(self.url).name if self.trust is None else safe_name(self.url)


LITELLM: Final = Feed(
    "litellm",
    "https://raw.githubusercontent.com/BerriAI/litellm/main/model_prices_and_context_window.json",
    Trust(frozenset({"raw.githubusercontent.com"})),
)
OPENROUTER: Final = Feed("openrouter", "https://openrouter.ai/api/v1/models", Trust(frozenset({"openrouter.ai"})))

#: OpenRouter's word for who made a model, to the provider that serves it itself.
_MAKERS: Final = {
    "anthropic": "anthropic",
    "cohere": "cohere",
    "deepseek": "deepseek",
    "google": "gemini",
    "mistralai": "mistral",
    "openai": "openai",
    "perplexity": "perplexity",
    "x-ai": "xai",
}
#: OpenRouter's fields, in USD per token, to our components. Its other rates are a reseller's.
_LISTED: Final = {
    "prompt": "input",
    "completion": "output",
    "input_cache_read": "cache_read",
    "input_cache_write": "cache_write",
}
#: Those that are not read. Anything else in an override is a condition.
_UNREAD: Final = {
    "audio",
    "audio_output",
    "image",
    "image_output",
    "image_token",
    "input_audio_cache",
    "input_cache_write_1h",
    "internal_reasoning",
    "request",
    "web_search",
}
_MOST_TOKENS: Final = 10**12
_DOTTED: Final = re.compile(r"(?<=\d)\.(?=\d)", re.ASCII)


@dataclass(frozen=True, slots=True)
class Offer:
    """What a source says of one model.

    :param entry: as documented for price files
    :param zeros: components that it lists at zero
    """

    entry: Mapping[str, Any]
    zeros: frozenset[str] = frozenset()


@dataclass(frozen=True, slots=True)
class Offers:
    """What one source offers.

    :param version: which edition, made from its content
    :param rejected: keys whose entries are no prices, and why
    """

    source: str
    version: str
    models: Mapping[str, Offer] = field(default_factory=dict)
    rejected: Mapping[str, str] = field(default_factory=dict)


def read(found: Download, *, free: Collection[str] = ()) -> Offers:
    """What a download offers: LiteLLM's file, OpenRouter's list, or a price file in our own form.

    :param free: keys whose price of zero means that they are free
    :raises PriceSourceError: it is none of these, or not whole
    """
    if found.data is None:
        raise PriceSourceError(found.name, "has not changed")
    table = parse(found.name, found.data)
    version = f"sha256:{hashlib.sha256(found.data).hexdigest()[:12]}"
    if not isinstance(table, dict):
        raise PriceSourceError(found.name, "is no table of models")
    listed = table.get("models", table.get("data", table))
    if not isinstance(listed, dict | list) or len(listed) > MAX_ENTRIES:
        raise PriceSourceError(found.name, f"has no models, or more than {MAX_ENTRIES:,}")
    if isinstance(table.get("data"), list):
        return _openrouter(table["data"], version)
    if isinstance(table.get("models"), dict):
        entries = {
            key: Offer({name: value for name, value in raw.items() if not name.startswith("_")})
            for key, raw in table["models"].items()
            if isinstance(raw, dict)
        }
        return Offers("mirror", version, entries)
    return _litellm(found.name, table, version, free)


def parse(name: str, data: bytes) -> Any:
    """JSON of a sane shape, numbers as decimals.

    :raises PriceSourceError: it is cut off, too deep, too large, or has what is no number
    """
    depth = containers = 0
    for token in _BRACKETS.finditer(data):
        first = token[0][:1]
        if first in b"[{":
            depth, containers = depth + 1, containers + 1
            if depth > MAX_DEPTH or containers > _MAX_CONTAINERS:
                raise PriceSourceError(name, f"is nested more than {MAX_DEPTH} deep, or has too many parts")
        elif first in b"]}":
            depth -= 1
    try:
        return json.loads(data, parse_float=_number, parse_int=_number, parse_constant=_number)
    except (ValueError, ArithmeticError, RecursionError, MemoryError) as error:
        raise PriceSourceError(name, f"is no valid JSON, or cut off ({type(error).__name__})") from None


def _number(text: str) -> Decimal:
    if len(text) > _MAX_DIGITS or not (number := Decimal(text)).is_finite():
        raise ValueError("no number")
    return number


def _litellm(name: str, table: Mapping[str, Any], version: str, free: Collection[str]) -> Offers:
    report = Report()
    drafts = read_file(table, report, free=free)
    if not drafts:
        raise PriceSourceError(name, "has no prices that can be read")
    offers = {key: Offer(as_json(draft), frozenset(draft.zeros)) for key, draft in drafts.items()}
    return Offers("litellm", version, offers, {key: why for key, why in report.rejected.items() if key not in drafts})


def _openrouter(listed: list[Any], version: str) -> Offers:
    offers: dict[str, Offer] = {}
    rejected: dict[str, str] = {}
    for item in listed:
        model = item.get("id") if isinstance(item, dict) else None
        prices = item.get("pricing") if isinstance(item, dict) else None
        if not isinstance(model, str) or not model or not isinstance(prices, dict):
            continue
        keys = _keys_of(model)
        try:
            entry = _listed_entry(model, prices)
        except (ArithmeticError, AttributeError, KeyError, TypeError, ValueError):
            rejected.update(dict.fromkeys(keys, "negative, no number, or by a condition that cannot be read"))
        else:
            if "input" in entry["rates"]:
                offers.update(dict.fromkeys(keys, Offer(entry)))
    return Offers("openrouter", version, offers, {key: why for key, why in rejected.items() if key not in offers})


def _listed_entry(model: str, prices: Mapping[str, Any]) -> dict[str, Any]:
    """One of OpenRouter's prices, with those of longer prompts: an override holds from its size on, a later one wins.

    :raises ValueError: a rate or a condition that cannot be read; what ignores it would be a wrong price
    """
    base = _listed_rates(model, prices)
    overrides: list[tuple[int, dict[str, str]]] = []
    for override in prices.get("overrides") or ():
        size = Decimal(override["min_prompt_tokens"])
        if not 0 < size < _MOST_TOKENS or size != int(size) or set(override) - {"min_prompt_tokens", *_LISTED} - _UNREAD:
            raise ValueError("a condition of another kind")
        overrides.append((int(size), _listed_rates(model, override)))
    tiers = []
    for above in sorted({size for size, _ in overrides}):
        rates = dict(base)
        for starts, own in overrides:
            rates.update(own if starts <= above else {})
        tiers.append({"above": above, "inclusive": True, "rates": _known(rates)})
    return {"rates": _known(base)} | ({"tiers": tiers} if tiers else {})


def _listed_rates(model: str, prices: Mapping[str, Any]) -> dict[str, str]:
    """USD per 1M of the components that are read; 0 where it is listed so."""
    rates: dict[str, str] = {}
    for name, component in _LISTED.items():
        raw = prices.get(name)
        # A write of Gemini's is storage by the hour, spread out by somebody.
        if raw is None or (component == "cache_write" and "gemini" in model):
            continue
        rate = rate_per_million(raw) if isinstance(raw, str | Decimal) and len(str(raw)) <= _MAX_DIGITS else None
        if rate is None:
            raise ValueError("no rate")
        rates[component] = format(rate, "f")
    return rates


def _known(rates: Mapping[str, str]) -> dict[str, str]:
    """Without those of 0, which is unknown and not free."""
    return {name: rate for name, rate in rates.items() if Decimal(rate)}


def _keys_of(model: str) -> tuple[str, ...]:
    """OpenRouter's own key, and that of the provider whose model it is. ``:free`` and its like are models of their own."""
    maker, slash, name = model.partition("/")
    provider = _MAKERS.get(maker)
    if not slash or provider is None or ":" in name:
        return (f"openrouter/{model}",)
    if provider == "anthropic":
        name = _DOTTED.sub("-", name)
    return f"openrouter/{model}", f"{provider}/{name}"
