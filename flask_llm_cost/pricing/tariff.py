"""The rates in force for one model at one time, in one mode and context tier, with every factor in them."""

from __future__ import annotations

import hashlib
import json
from bisect import bisect_right
from collections.abc import Mapping
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from decimal import Decimal
from types import MappingProxyType
from typing import Final, NamedTuple

from flask_llm_cost.pricing.entries import Block, Modes, Tier, ToolRate
from flask_llm_cost.pricing.matching import Match, is_listed
from flask_llm_cost.pricing.modes import SERVICES
from flask_llm_cost.pricing.rates import EXACT, ONE, RATED, default_per, plain
from flask_llm_cost.records import COMPONENTS, Price, Rate, content_id

INPUT_TOKENS: Final = frozenset(name for name, c in COMPONENTS.items() if c.unit == "token" and c.side == "input")

_ZERO: Final = Decimal(0)
_SECONDS: Final = Decimal(60)


class Applied(NamedTuple):
    """One component's rate, ready to multiply.

    :param each: the price of a single unit, where it is a decimal that ends
    :param status: of a line: ``priced``, ``free`` or ``derived``
    """

    unit: str
    rate: Decimal
    per: Decimal
    each: Decimal | None
    status: str


@dataclass(frozen=True, slots=True)
class Tariff:
    """What one call is billed by.

    :param price: what is stored with the call
    :param rates: component to rate; a component that is not here has no known price
    :param minimum: the least quantity that is billed of a component
    :param splits_reasoning: reasoning has a rate of its own, apart from output
    :param why: why nothing of the entry applies, where that is so
    """

    price: Price
    rates: Mapping[str, Applied]
    minimum: Mapping[str, Decimal]
    splits_reasoning: bool = False
    why: str | None = None


class Segment:
    """One stretch of time of one route: an entry's block, its hours and its tiers."""

    __slots__ = ("_tariffs", "block", "effective_from", "flat", "hours", "match")

    def __init__(self, match: Match | None, block: Block | None, effective_from: datetime | None) -> None:
        self.match = match
        self.block = block
        self.effective_from = effective_from
        #: The blocks that stand in at some hours, by the order of the windows.
        self.hours: tuple[Block, ...] = ()
        if block is not None and block.windows:
            self.hours = tuple(replace(block, windows=(), **window.sections) for window in block.windows)
        #: No hours and no tiers: one tariff whatever the call.
        self.flat = block is None or not (block.windows or block.tiers)
        self._tariffs: dict[tuple[int, int], Tariff] = {}

    def block_at(self, at: datetime) -> tuple[int, Block | None]:
        """``(number of the window or -1, what is in force)`` at an hour of the week."""
        if self.hours and self.block is not None:
            utc = at.astimezone(UTC)
            minute = (utc.weekday() * 24 + utc.hour) * 60 + utc.minute
            for number, window in enumerate(self.block.windows):
                if window.covers(minute):
                    return number, self.hours[number]
        return -1, self.block


def tier_of(tiers: tuple[Tier, ...], size: int) -> int:
    """The number of the highest tier that a call of *size* input tokens reaches, -1 for none."""
    number = -1
    for i, tier in enumerate(tiers):
        if size > tier.above or (tier.inclusive and size == tier.above):
            number = i
    return number


class Route:
    """All the prices of one ``(provider, model, mode)`` in time, each worked out when it is first needed."""

    __slots__ = ("_bounds", "_discount", "_mode", "_segments", "_tools")

    def __init__(
        self,
        bounds: tuple[datetime, ...],
        segments: tuple[Segment, ...],
        mode: str | None,
        tools: Mapping[str, Mapping[str, ToolRate]],
        discount: Decimal,
    ) -> None:
        self._bounds = bounds
        self._segments = segments
        self._mode = mode
        self._tools = tools
        self._discount = discount

    def segment(self, at: datetime) -> Segment:
        return self._segments[bisect_right(self._bounds, at)] if self._bounds else self._segments[0]

    def tariff(self, at: datetime, quantities: Mapping[str, int | Decimal]) -> Tariff | None:
        """What a call sent at *at* with these quantities is billed by; ``None`` where there is no price."""
        segment = self.segment(at)
        if segment.flat:
            window, tier, block = -1, -1, segment.block
        else:
            window, block = segment.block_at(at)
            tier = -1
            if block is not None and block.tiers:
                size = 0
                for component, quantity in quantities.items():
                    if component in INPUT_TOKENS:
                        size += quantity  # type: ignore[assignment]  # a count of tokens, int or integral Decimal
                tier = tier_of(block.tiers, size)
        tariff = segment._tariffs.get((window, tier))
        if tariff is None and segment.match is not None:
            # Who takes OpenAI's price for a model need not take OpenAI's fees.
            provider = "azure" if segment.match.kind == "mapped" else segment.match.key.partition("/")[0]
            tools = self._tools.get(provider, {})
            tariff = build(segment.match, block, tier, self._mode, tools, self._discount, segment.effective_from)
            segment._tariffs[window, tier] = tariff
        return tariff


def build(
    match: Match,
    block: Block | None,
    tier_number: int,
    mode: str | None,
    provider_tools: Mapping[str, ToolRate],
    discount: Decimal,
    effective_from: datetime | None,
) -> Tariff:
    """Work out the rates: those of the tier, in the mode, times region and fast factor, less the discount."""
    if match.entry is None or block is None:
        return _nothing_to_pay(match)
    entry = match.entry
    tier = block.tiers[tier_number] if tier_number >= 0 else None
    base = tier.rates if tier else block.rates
    chosen, multiplier, applied_mode, why = in_mode(block, base, tier.modes if tier else block.modes, mode, match)
    rates = {component: (rate, entry.per_of(component), "priced") for component, rate in chosen.items()}
    standard = chosen is base
    listed = is_listed(match.catalog, entry)
    if chosen and standard and tier is None and listed and entry.key.startswith("openai/"):
        for component in ("cache_read", "cache_write"):
            # OpenAI bills cached and written input as plain input where it lists no rate for it.
            if component not in rates and "input" in rates:
                rates[component] = (rates["input"][0], entry.per_of("input"), "derived")
    apart = any("reasoning" in listed_rates for listed_rates in (block.rates, base, chosen))
    if "reasoning" not in rates and "output" in rates and not apart:
        # Reasoning is output, unless the entry prices it apart.
        rates["reasoning"] = (rates["output"][0], entry.per_of("output"), "derived")
    for have, want, factor in (("audio_minutes", "audio_seconds", _SECONDS), ("audio_seconds", "audio_minutes", None)):
        if have in rates and want not in rates:
            rate, per, status = rates[have]
            rates[want] = (rate, per * factor, status) if factor else (rate * _SECONDS, per, status)
    factor = EXACT.multiply(multiplier, ONE - discount)
    applied: dict[str, Applied] = {}
    for component, (rate, per, status) in rates.items():
        applied[component] = _applied(component, EXACT.multiply(rate, factor), per, status)
    fees = {name: tool for name, tool in provider_tools.items() if tool.currency == entry.currency} | dict(block.tools)
    reasons = False if entry.reasoning_model is None and listed else entry.reasoning_model
    for component, tool in fees.items():
        if (fee := tool.fee(reasons)) is not None:
            applied[component] = _applied(component, EXACT.multiply(fee, ONE - discount), tool.per, "priced")
    price = _frozen(
        source=match.catalog,
        source_version=_version(match),
        key=entry.key,
        match=match.kind,
        currency=entry.currency,
        rates=MappingProxyType({name: Rate(rate.rate, rate.per) for name, rate in sorted(applied.items())}),
        mode=applied_mode,
        tier=tier.label if tier else None,
        multiplier=multiplier,
        discount=discount,
        effective_from=effective_from,
    )
    return Tariff(price, applied, entry.minimum, splits_reasoning=apart, why=why)


def in_mode(
    block: Block, base: Mapping[str, Decimal], modes: Modes, mode: str | None, match: Match
) -> tuple[Mapping[str, Decimal], Decimal, str | None, str | None]:
    """``(rates, factor, mode as it applies, why there are none)``.

    A combined key of the book first, then the mode's own rates (or the entry's fast factor) times the region's factor.
    What the book does not say is not priced: never the standard rate.
    """
    if mode is None:
        return base, ONE, None, None
    if mode in modes:
        found = modes[mode]
        return (found, ONE, mode, None) if found is not None else ({}, ONE, mode, f"{mode} is not offered for this model")
    first, _, rest = mode.partition("+")
    service, zone = (first, rest or None) if first in SERVICES else (None, first)
    multiplier, chosen = ONE, base
    if service is not None:
        explicit = modes.get(service)
        if explicit is not None:
            chosen = explicit
        elif service == "fast" and service not in modes and "fast" in block.multipliers:
            multiplier = block.multipliers["fast"]
        else:
            return {}, ONE, mode, f"the book has no {service} rates for this model{' above this size' if base else ''}"
    applied = mode
    if zone is not None:
        name = zone.partition(":")[2]
        vertex = match.key.startswith("vertex/")
        regional = block.multipliers.get(zone) or (
            None if vertex and name == "global" else block.multipliers.get("residency:*")
        )
        if regional is not None:
            multiplier = EXACT.multiply(multiplier, regional)
        elif vertex or match.zone == name:
            # Vertex charges by place only where the entry says so; a key of the region itself needs no factor.
            applied = service or ""
        else:
            return {}, ONE, mode, f"the book has no {zone} factor for this model"
    return chosen, multiplier, applied or None, None


def _applied(component: str, rate: Decimal, per: Decimal, status: str) -> Applied:
    each: Decimal | None = rate if per == ONE else EXACT.divide(rate, per)
    if each is not None and len(each.as_tuple().digits) >= EXACT.prec:
        each = None
    return Applied(COMPONENTS[component].unit, rate, per, each, status if rate else "free")


def _nothing_to_pay(match: Match) -> Tariff:
    """``free`` and ``prepaid`` of the configuration: every component is known to cost nothing."""
    applied = {name: _applied(name, _ZERO, default_per(name), "free") for name in sorted(RATED)}
    price = _frozen(
        source=match.catalog,
        source_version=match.version,
        key=match.key,
        match=match.kind,
        currency="USD",
        rates=MappingProxyType({name: Rate(rate.rate, rate.per) for name, rate in applied.items()}),
        mode=None,
        tier=None,
        multiplier=ONE,
        discount=_ZERO,
        effective_from=None,
    )
    return Tariff(price, applied, {})


def _version(match: Match) -> str:
    entry = match.entry
    origin = f" {entry.source} {entry.source_version}".rstrip() if entry is not None and entry.source else ""
    return f"{match.version}{origin}"[:64]


def _frozen(
    *,
    source: str,
    source_version: str,
    key: str,
    match: str,
    currency: str,
    rates: Mapping[str, Rate],
    mode: str | None,
    tier: str | None,
    multiplier: Decimal,
    discount: Decimal,
    effective_from: datetime | None,
) -> Price:
    """A price whose id is made from all that it says."""
    content = [
        source,
        source_version,
        key,
        match,
        currency,
        {name: [plain(rate.rate), plain(rate.per)] for name, rate in rates.items()},
        mode,
        tier,
        plain(multiplier),
        plain(discount),
        effective_from.isoformat() if effective_from else None,
    ]
    digest = hashlib.sha256(json.dumps(content, sort_keys=True, separators=(",", ":")).encode()).digest()
    return Price(
        content_id(digest),
        source,
        source_version,
        key,
        match,
        currency,
        rates,
        mode,
        tier,
        multiplier,
        discount,
        effective_from,
    )


def billed_price(provider: str, model: str | None) -> Price:
    """Of a call whose provider says what it charged: the amount stands on the line."""
    return _frozen(
        source="provider",
        source_version="",
        key=f"{provider}/{model}" if model else provider,
        match="billed",
        currency="USD",
        rates=MappingProxyType({}),
        mode=None,
        tier=None,
        multiplier=ONE,
        discount=_ZERO,
        effective_from=None,
    )
