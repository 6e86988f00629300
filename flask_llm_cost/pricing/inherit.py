"""``"inherit": true``: an override that names some rates and takes the rest from the book below it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from datetime import UTC, datetime
from decimal import Decimal
from typing import Any

from flask_llm_cost.pricing.catalog import Catalog
from flask_llm_cost.pricing.entries import Block, Entry, Window
from flask_llm_cost.pricing.matching import Aliases, Match, find, is_listed
from flask_llm_cost.pricing.rates import Place


def inherited(catalog: Catalog, below: Sequence[Catalog]) -> None:
    """Complete every inheriting entry of *catalog* from the catalogs *below* it.

    :raises PriceBookError: there is nothing to inherit from
    """
    for key in catalog.inheriting:
        entry = catalog.entry(key)
        if entry is None or not entry.inherit:
            continue
        provider, _, model = key.partition("/")
        match = find(below, Aliases({}), ((provider, model),), datetime.now(UTC))
        if match is None or match.entry is None:
            raise Place(catalog.origin, key, "inherit").error(
                True, 'the book has no such model to inherit from; give all rates and leave "inherit" out'
            )
        catalog.complete(merged(entry, match.entry))


def told_of_reasoning(match: Match, catalogs: Sequence[Catalog]) -> Match:
    """*match*, where its own source does not say whether the model reasons, with what the sources below say of it."""
    entry = match.entry
    if entry is None or entry.reasoning_model is not None or match.catalog == "bundled":
        return match
    for catalog in catalogs:
        other = catalog.entry(entry.key) if catalog.name != match.catalog else None
        if other is not None and (other.reasoning_model is not None or is_listed(catalog.name, other)):
            return replace(match, entry=replace(entry, reasoning_model=bool(other.reasoning_model)))
    return match


def merged(entry: Entry, base: Entry) -> Entry:
    """*base* with what *entry* names laid over it: rate by rate, at every date and hour; other fields whole."""
    block = _over(base.block, entry)
    history = tuple((when, _sections(sections, entry)) for when, sections in base.history)
    scheduled = tuple((when, _sections(sections, entry)) for when, sections in base.scheduled)
    named = entry.named
    return replace(
        base,
        key=entry.key,
        currency=entry.currency if "currency" in named else base.currency,
        block=block,
        history=entry.history if "history" in named else history,
        scheduled=entry.scheduled if "scheduled" in named else scheduled,
        per={**base.per, **entry.per},
        minimum={**base.minimum, **entry.minimum},
        aliases=entry.aliases,
        reasoning_model=entry.reasoning_model if "reasoning_model" in named else base.reasoning_model,
        max_output=entry.max_output if "max_output" in named else base.max_output,
        source=entry.source,
        source_version=entry.source_version,
        named=named,
    )


def _over(block: Block, entry: Entry) -> Block:
    own = entry.block
    return Block(
        rates={**block.rates, **own.rates},
        modes=_modes(block.modes, own.modes),
        tiers=own.tiers if "tiers" in entry.named else block.tiers,
        windows=own.windows
        if "windows" in entry.named
        else tuple(Window(window.spans, _sections(window.sections, entry)) for window in block.windows),
        multipliers={**block.multipliers, **own.multipliers},
        tools={**block.tools, **own.tools},
    )


def _sections(sections: Mapping[str, Any], entry: Entry) -> Mapping[str, Any]:
    """A dated block or a window of the base, with the rates that the override names in place."""
    own = entry.block
    found = dict(sections)
    if "rates" in found:
        found["rates"] = {**found["rates"], **own.rates}
    if "modes" in found:
        found["modes"] = _modes(found["modes"], own.modes)
    for name in ("multipliers", "tools"):
        if name in found:
            found[name] = {**found[name], **getattr(own, name)}
    if "tiers" in entry.named:
        found.pop("tiers", None)
    if "windows" in entry.named:
        found.pop("windows", None)
    elif "windows" in found:
        found["windows"] = tuple(Window(window.spans, _sections(window.sections, entry)) for window in found["windows"])
    return found


def _modes(base: Mapping[str, Any], own: Mapping[str, Any]) -> dict[str, Mapping[str, Decimal] | None]:
    found: dict[str, Mapping[str, Decimal] | None] = dict(base)
    for mode, rates in own.items():
        below = found.get(mode)
        found[mode] = rates if rates is None or below is None else {**below, **rates}
    return found
