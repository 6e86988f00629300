"""Which entry prices a model: exact, alias, date suffix, fine-tune base. Never a prefix, a part of a name, or a likeness.

Providers spell their models in more ways than one; the rules for Azure, Bedrock, Vertex and OpenRouter are here too.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Final

from flask_llm_cost.errors import ConfigError
from flask_llm_cost.pricing.catalog import Catalog
from flask_llm_cost.pricing.entries import Entry

#: Longer names are no model names; the ledger's columns end here too.
MAX_PROVIDER: Final = 64
MAX_MODEL: Final = 256

FREE: Final = ("free", "prepaid")

#: ``_source`` of entries in a price file that nobody wrote by hand.
_SYNCHRONISED: Final = ("seed", "litellm", "openrouter", "mirror")

_DAY: Final = r"(?:0[1-9]|[12]\d|3[01])"
_MONTH: Final = r"(?:0[1-9]|1[0-2])"
DATE: Final = re.compile(rf"-20\d\d(?:-{_MONTH}-{_DAY}|{_MONTH}{_DAY})\Z", re.ASCII)
#: ``gemini-2.5-flash-preview-05-20``, ``gemini-2.5-flash-lite-preview-09-2025``, ``gemini-live-2.5-flash-09-2025``
_GEMINI_DATE: Final = re.compile(rf"(-preview)?((?:(?<=-preview)-{_MONTH}-{_DAY}|-{_MONTH}-20\d\d))\Z", re.ASCII)
#: ``anthropic.claude-sonnet-4-5-20250929-v1:0``, ``amazon.nova-pro-v1:0:300k``
_BEDROCK_VERSION: Final = re.compile(r"(?:(?<=-20\d\d\d\d\d\d)-v\d+:\d+|-v1:0)(?::\d+k)?\Z", re.ASCII)
_VERTEX_DATE: Final = re.compile(r"@[a-z0-9-]+\Z", re.ASCII)
_DOTTED: Final = re.compile(r"(?<=\d)\.(?=\d)", re.ASCII)

_HOST_SPELLING: Final[Mapping[str, tuple[re.Pattern[str], str]]] = {
    "bedrock": (_BEDROCK_VERSION, ""),
    "vertex": (_VERTEX_DATE, ""),
    "openrouter": (_DOTTED, "-"),
}


@dataclass(frozen=True, slots=True)
class Match:
    """The entry that prices a model, and by which rule.

    :param kind: ``exact``, ``alias``, ``date_suffix``, ``fine_tune``, ``spelling`` (the same name as this host writes
        it), ``mapped`` (Azure by OpenAI's price), ``bare`` (a model that only one provider has), ``free`` or ``prepaid``
    :param entry: ``None`` where the configuration says ``free`` or ``prepaid``
    :param catalog: ``overrides``, ``file`` or ``bundled``
    :param via: the entry of ``LLM_COST_MODEL_ALIASES`` that led here
    :param zone: the residency zone that the key itself names, so that no multiplier is due for it
    """

    key: str
    kind: str
    entry: Entry | None
    catalog: str
    version: str
    via: str | None = None
    zone: str | None = None


class Aliases:
    """``LLM_COST_MODEL_ALIASES``: names that only the operator knows."""

    def __init__(self, aliases: Mapping[str, str]) -> None:
        self._exact: dict[str, str] = {}
        self._patterns: list[tuple[str, str]] = []
        for name, target in aliases.items():
            if not isinstance(name, str) or "/" not in name or name.count("*") > 1 or ("*" in name and name[-1] != "*"):
                raise ConfigError(
                    "LLM_COST_MODEL_ALIASES", name, 'write "provider/model", or "provider/*" with the star at the end'
                )
            if not isinstance(target, str) or not (target in FREE or "/" in target) or ("*" in target and "*" not in name):
                raise ConfigError(
                    "LLM_COST_MODEL_ALIASES",
                    target,
                    f'{name!r} must lead to "provider/model", "provider/*" (from a name with a star), "free" or "prepaid"',
                )
            if "*" in name:
                self._patterns.append((name[:-1], target))
            else:
                self._exact[name] = target
        self._patterns.sort(key=lambda pattern: len(pattern[0]), reverse=True)

    def __bool__(self) -> bool:
        return bool(self._exact or self._patterns)

    def target(self, name: str) -> tuple[str, str] | None:
        """``(the configured name, what it leads to)``; an exact name first, then the longest pattern."""
        if name in self._exact:
            return name, self._exact[name]
        for prefix, target in self._patterns:
            if name.startswith(prefix):
                return f"{prefix}*", target.replace("*", name[len(prefix) :])
        return None


def is_listed(catalog: str, entry: Entry) -> bool:
    """Whether nobody wrote *entry* by hand: what it does not say is not so."""
    return catalog == "bundled" or entry.source in _SYNCHRONISED


def find(
    catalogs: Sequence[Catalog],
    aliases: Aliases,
    names: Sequence[tuple[str, str]],
    at: datetime,
    zone: str | None = None,
) -> Match | None:
    """The first entry that one of *names*, ``(provider, model)``, has.

    :param names: what the call may be known by; the last is what the reply says, those before it are looked up in the
        configured aliases only
    :param zone: a residency zone, where the provider has keys for it
    """
    if aliases:
        for provider, model in names:
            if (configured := aliases.target(f"{provider}/{model}")) is None:
                continue
            via, target = configured
            if target in FREE:
                return Match(key=via, kind=target, entry=None, catalog="overrides", version="", via=via)
            target_provider, _, target_model = target.partition("/")
            match = _find(catalogs, target_provider, target_model, at, zone)
            if match is not None:
                return Match(match.key, "alias", match.entry, match.catalog, match.version, via=via, zone=match.zone)
    provider, model = names[-1]
    return _find(catalogs, provider, model, at, zone)


def bounds(catalogs: Sequence[Catalog], aliases: Aliases, names: Sequence[tuple[str, str]]) -> set[datetime]:
    """When the answer of :func:`find` may change."""
    found: set[datetime] = set()
    pairs = list(names)
    for provider, model in names:
        if (configured := aliases.target(f"{provider}/{model}")) and configured[1] not in FREE:
            target_provider, _, target_model = configured[1].partition("/")
            pairs.append((target_provider, target_model))
    for provider, model in pairs:
        for spelled, _ in _spellings(provider, model):
            for catalog in catalogs:
                found.update(catalog.alias_bounds(f"{provider}/{spelled}"))
    return found


def _find(catalogs: Sequence[Catalog], provider: str, model: str, at: datetime, zone: str | None) -> Match | None:
    if not provider:
        return _bare(catalogs, model, at)
    prefixes = _zone_prefixes(provider, zone)
    everywhere: Match | None = None
    for catalog in catalogs:
        for prefix in prefixes:
            if (match := _in_catalog(catalog, provider, model, at, prefix)) is None:
                continue
            # An operator's price is that of every zone. A list has others for some, perhaps further below.
            if prefix == prefixes[0] or match.entry is None or not is_listed(catalog.name, match.entry):
                return match
            everywhere = everywhere or match
    if everywhere is not None:
        return everywhere
    if provider == "azure":
        mapped = _find(catalogs, "openai", model, at, None)
        if mapped is not None:
            return Match(mapped.key, "mapped", mapped.entry, mapped.catalog, mapped.version)
    return None


def _zone_prefixes(provider: str, zone: str | None) -> tuple[str, ...]:
    if zone and provider in ("azure", "bedrock"):
        return (f"{zone}/", "")
    return ("",)


def _in_catalog(catalog: Catalog, provider: str, model: str, at: datetime, prefix: str) -> Match | None:
    zone = prefix[:-1] or None
    for spelled, kind in _spellings(provider, model):
        name = f"{provider}/{prefix}{spelled}"
        if (entry := catalog.entry(name)) is not None:
            return Match(name, kind, entry, catalog.name, catalog.version, zone=zone)
        target = catalog.alias(name, at)
        if target is not None and (entry := catalog.entry(target)) is not None:
            return Match(target, "alias" if kind == "exact" else kind, entry, catalog.name, catalog.version, zone=zone)
    return None


def _spellings(provider: str, model: str) -> Iterator[tuple[str, str]]:
    """The names to try, in order, and the rule that each follows."""
    yield model, "exact"
    same = [model]
    if (rule := _HOST_SPELLING.get(provider)) and (other := rule[0].sub(rule[1], model)) != model:
        same.append(other)
    for spelled in same[1:]:
        yield spelled, "spelling"
    if model.startswith("ft:"):
        yield from _fine_tune_bases(model)
        return
    for spelled in same:
        for undated in _undated(provider, spelled):
            yield undated, "date_suffix"


def _undated(provider: str, model: str) -> Iterator[str]:
    """*model* without the one date at its end."""
    if (bare := DATE.sub("", model)) != model:
        if not DATE.search(bare):
            yield bare
    elif (provider in ("gemini", "vertex", "openrouter") and "gemini" in model) and (match := _GEMINI_DATE.search(model)):
        yield model[: match.start(2)]
        if match[1]:
            yield model[: match.start()]


def _fine_tune_bases(model: str) -> Iterator[tuple[str, str]]:
    """``ft:base:org:name:id`` by its own parts, from the longest to ``ft:base``. Never the base itself: it costs less."""
    parts = model.split(":")
    for length in range(len(parts) - 1, 1, -1):
        base = ":".join((*parts[:2], *parts[2:length]))
        yield base, "fine_tune"
        if (undated := DATE.sub("", parts[1])) != parts[1]:
            yield ":".join(("ft", undated, *parts[2:length])), "fine_tune"
    if len(parts) == 2 and (undated := DATE.sub("", model)) != model:
        yield undated, "fine_tune"


def _bare(catalogs: Sequence[Catalog], model: str, at: datetime) -> Match | None:
    """A model without a provider: only where exactly one entry of all has that name."""
    if "/" in model:
        provider, _, rest = model.partition("/")
        return _find(catalogs, provider, rest, at, None)
    keys = {key for catalog in catalogs for key in catalog.providers_of(model)}
    if len(keys) != 1:
        return None
    (key,) = keys
    for catalog in catalogs:
        if (entry := catalog.entry(key)) is not None:
            return Match(key, "bare", entry, catalog.name, catalog.version)
    return None
