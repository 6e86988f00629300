"""The price book: what a call costs, by which rule, and from when.

Pure: it knows neither Flask nor a database nor a network. Immutable once loaded; another edition is another book.
"""

from __future__ import annotations

import functools
from collections.abc import Iterable, Mapping, Sequence
from datetime import UTC, date, datetime
from decimal import Decimal
from pathlib import Path
from types import MappingProxyType
from typing import Any, Final

from flask_llm_cost.errors import ConfigError
from flask_llm_cost.pricing import hosts
from flask_llm_cost.pricing.catalog import Catalog, bundled, from_file, from_overrides
from flask_llm_cost.pricing.entries import Entry
from flask_llm_cost.pricing.explain import Explanation, explain_match, explain_unknown
from flask_llm_cost.pricing.inherit import inherited, told_of_reasoning
from flask_llm_cost.pricing.matching import MAX_MODEL, MAX_PROVIDER, Aliases, Match, bounds, find
from flask_llm_cost.pricing.modes import CHOICES, read_mode
from flask_llm_cost.pricing.rates import EXACT, MAX_QUANTITY, ONE, Place, amount, decimal
from flask_llm_cost.pricing.tariff import Route, Segment, Tariff, billed_price
from flask_llm_cost.records import COMPONENTS, UNPRICED, CallRecord, Cost, Line, Price, Quantity, Usage

_ZERO: Final = Decimal(0)
_MANY: Final = 4096
#: Prices that were looked up longer ago than this are doubtful.
OLD_DAYS: Final = 30
_NOTHING: Final[Mapping[str, Any]] = MappingProxyType({})
_multiply = EXACT.multiply
_add = EXACT.add
# Every call makes these. Past their constructors it takes a third of the time, and pricing a call half of it.
_line = tuple.__new__
_blank_cost = functools.partial(object.__new__, Cost)
_set_total, _set_lines, _set_status, _set_price, _set_currency, _set_computed = (
    getattr(Cost, name).__set__ for name in ("total", "lines", "status", "price", "currency", "computed")
)


class PriceBook:
    """Prices of models: the operator's overrides, a file of theirs, and the bundled snapshot, in this order."""

    def __init__(self, catalogs: Sequence[Catalog], aliases: Aliases, discounts: Mapping[str, Decimal]) -> None:
        self._catalogs = tuple(catalogs)
        self._aliases = aliases
        self._discounts = dict(discounts)
        self._tools: Mapping[str, Mapping[str, Any]] = _Tools(self._catalogs)
        self._routes: dict[Any, Route] = {}
        self._billed: dict[tuple[str, str | None], Price] = {}

    @classmethod
    def load(
        cls,
        *,
        overrides: Mapping[str, Any] = _NOTHING,
        file: Path | None = None,
        aliases: Mapping[str, str] = _NOTHING,
        discounts: Mapping[str, Decimal] = _NOTHING,
    ) -> PriceBook:
        """Read all sources.

        :param overrides: ``LLM_COST_PRICE_OVERRIDES``: ``provider/model`` to rates per 1,000,000 tokens, or to a full entry
        :param file: ``LLM_COST_PRICES_FILE``, JSON or TOML
        :param aliases: ``LLM_COST_MODEL_ALIASES``
        :param discounts: ``LLM_COST_DISCOUNTS``: provider to a part of 1, ``0.15`` for 15%
        :raises PriceBookError: an override or the file cannot be read; names entry, field, value and remedy
        :raises ConfigError: an alias or a discount that makes no sense
        """
        catalogs = [bundled()]
        if file is not None:
            catalogs.insert(0, from_file(file))
        if overrides:
            catalogs.insert(0, from_overrides(overrides))
        for i, catalog in enumerate(catalogs[:-1]):
            inherited(catalog, catalogs[i + 1 :])
        parts: dict[str, Decimal] = {}
        for provider, raw in discounts.items():
            part = decimal(raw, Place("LLM_COST_DISCOUNTS", provider))
            if part >= ONE:
                raise ConfigError("LLM_COST_DISCOUNTS", raw, f'{provider!r}: write a part of 1, such as "0.15" for 15%')
            parts[provider] = part
        return cls(catalogs, Aliases(aliases), parts)

    @property
    def version(self) -> str:
        """The edition: the bundled one, and those of the file and the overrides where there are any."""
        return "+".join(catalog.version for catalog in reversed(self._catalogs))

    @property
    def dated(self) -> date | None:
        """The day of which the prices are: when the file was last synchronised, or when the bundled book was made."""
        return max((catalog.dated for catalog in self._catalogs if catalog.dated is not None), default=None)

    def days_old(self, today: date) -> int | None:
        """The age in days; ``None`` where nothing says of which day the prices are."""
        return max((today - self.dated).days, 0) if self.dated is not None else None

    @property
    def outgrown(self) -> bool:
        """Whether the price file was started from another edition of the bundled book, whose entries it stands before."""
        *above, bundled_book = self._catalogs
        return any(catalog.book not in ("", bundled_book.version) for catalog in above)

    @property
    def entries(self) -> int:
        """How many models have a price."""
        return len({key for catalog in self._catalogs for key in catalog.keys})

    @property
    def keys(self) -> frozenset[str]:
        """``provider/model`` of every entry."""
        return frozenset(key for catalog in self._catalogs for key in catalog.keys)

    def entry(self, key: str) -> Entry | None:
        """The entry of exactly this key, from the first source that has it."""
        for catalog in self._catalogs:
            if (entry := catalog.entry(key)) is not None:
                return entry
        return None

    def find(self, provider: str, model: str | None, at: datetime | None = None, *, mode: str | None = None) -> Match | None:
        """The entry that prices *model*, and by which rule; ``None`` where no rule leads to one."""
        if not _name(provider, MAX_PROVIDER) or not model or not _name(model, MAX_MODEL):
            return None
        return find(self._catalogs, self._aliases, ((provider, model),), _utc(at), _zone(read_mode(mode)[1]))

    def price(self, provider: str, model: str | None, usage: Usage, mode: str | None, at: datetime | None) -> Cost:
        """What a call costs. Never raises for odd usage, models or modes: what is not known has no price.

        :param provider: the provider's name, ``openai``
        :param model: as the reply names it
        :param usage: disjoint quantities; where it says what the provider charged, that is the bill
        :param mode: as served: ``None`` for standard, else ``batch``, ``batch+residency:eu``, …
        :param at: when the call was sent; a time without a zone counts as UTC
        """
        return self._price(provider, model, usage, mode, at, None)

    def price_record(self, record: CallRecord) -> Cost:
        """What a recorded call costs, by what its host says of it as well.

        On Azure a deployment may be named in ``LLM_COST_MODEL_ALIASES`` as ``azure/resource/deployment``; on Bedrock and
        Vertex the region in the host's name counts.
        """
        mode, names, zone = hosts.reading(record)
        # What was asked for on Azure is the name of a deployment, which may be called like any model.
        model = record.model if record.provider == "azure" else record.price_model
        return self._price(
            record.provider,
            model or ("" if names else None),
            record.usage,
            mode,
            record.occurred_at,
            (names, zone) if names or zone else None,
        )

    def max_output(self, provider: str, model: str | None, at: datetime | None) -> int | None:
        """The most tokens that one answer of *model* has, as its entry says; ``None`` where nobody says.

        It is found like a price: by the same rules, in the same order.
        """
        if model is None:
            return None
        route = self._routes.get((provider, model, None, None)) or self._new_route(provider, model, None, None)
        match = route.segment(_utc(at)).match if route is not None else None
        return match.entry.max_output if match is not None and match.entry is not None else None

    def explain(
        self,
        provider: str,
        model: str | None,
        *,
        mode: str | None = None,
        at: datetime | None = None,
        usage: Usage | None = None,
    ) -> Explanation:
        """Why a model costs what it costs, as text by ``str()``; or why it has no price, and what to do."""
        at = _utc(at)
        match = self.find(provider, model, at, mode=mode)
        if match is None:
            return explain_unknown(provider, model, self.keys, at)
        quantities = usage.quantities if usage is not None else _NOTHING
        valid, canonical = read_mode(mode)
        route = self._route(provider, model or "", canonical, None) if valid else None
        tariff = route.tariff(at, _counted(quantities)) if route is not None else None
        cost = self.price(provider, model, usage, mode, at) if usage is not None else None
        segment = route.segment(at) if route is not None else None
        problem = None if valid else f"{str(mode)[:64]!r} is no pricing mode; {CHOICES}"
        return explain_match(provider, model, match, segment, tariff, mode, at, cost, problem)

    def _price(
        self, provider: str, model: str | None, usage: Usage, mode: str | None, at: datetime | None, more: Any
    ) -> Cost:
        quantities = usage.quantities
        if usage.billed is not None and _amount(usage.billed):
            computed = self._computed(provider, model, usage, mode, at, more) if quantities else UNPRICED
            return self._as_billed(provider, model, usage.billed, computed)
        if not quantities:
            return UNPRICED
        return self._computed(provider, model, usage, mode, at, more)

    def _computed(
        self, provider: str, model: str | None, usage: Usage, mode: str | None, at: datetime | None, more: Any
    ) -> Cost:
        quantities = usage.quantities
        if at is None or at.tzinfo is None:
            at = _utc(at)
        try:
            route = self._routes.get((provider, model, mode, more))
        except TypeError:  # a name that is no text
            route = None
        if route is None:
            route = self._new_route(provider, model, mode, more)
        if route is None:
            return _bill(None, quantities, None)
        try:
            tariff = route.tariff(at, quantities)
        except (TypeError, ArithmeticError):  # a quantity that is no number, where the size decides the tier
            tariff = route.tariff(at, _counted(quantities))
        return _bill(tariff, quantities, usage.reasoning_tokens)

    def _new_route(self, provider: str, model: str | None, mode: str | None, more: Any) -> Route | None:
        """The route of names that can be names; it is kept, so that the next call need not look for it."""
        if model is None or not (model or more) or not _name(provider, MAX_PROVIDER) or not _name(model, MAX_MODEL):
            return None
        valid, canonical = read_mode(mode)
        if not valid:
            return None
        route = self._route(provider, model, canonical, more)
        if len(self._routes) >= _MANY:
            self._routes.clear()
        self._routes[provider, model, mode, more] = route
        return route

    def _route(self, provider: str, model: str, mode: str | None, more: Any) -> Route:
        names, zone = more or ((), None)
        pairs = (*names, (provider, model))
        zone = zone or _zone(mode)
        moves = bounds(self._catalogs, self._aliases, pairs)
        probes = [datetime.min.replace(tzinfo=UTC), *sorted(moves)]
        for probe in probes:
            match = find(self._catalogs, self._aliases, pairs, probe, zone)
            if match is not None and match.entry is not None:
                moves.update(match.entry.bounds)
        cuts = tuple(sorted(moves))
        segments = []
        for start in (datetime.min.replace(tzinfo=UTC), *cuts):
            match = find(self._catalogs, self._aliases, pairs, start, zone)
            match = told_of_reasoning(match, self._catalogs) if match is not None else None
            block = match.entry.block_at(start) if match is not None and match.entry is not None else None
            segments.append(Segment(match, block, start if start.year > 1 else None))
        discount = self._discounts.get(provider, _ZERO)
        return Route(cuts, tuple(segments), mode, self._tools, discount)

    def _as_billed(self, provider: str, model: str | None, billed: Decimal, computed: Cost) -> Cost:
        name = model[:MAX_MODEL] if isinstance(model, str) else None
        key = (str(provider)[:MAX_PROVIDER], name)
        price = self._billed.get(key)
        if price is None:
            if len(self._billed) >= _MANY:
                self._billed.clear()
            price = self._billed[key] = billed_price(*key)
        status = "priced" if billed else "free"
        line = Line("billed_request", COMPONENTS["billed_request"].unit, 1, billed, ONE, billed, status)
        # A lower bound is no figure to hold against a bill.
        whole = computed.status in ("priced", "free") and computed.currency == "USD"
        return Cost(billed, (line,), status, price, "USD", computed.total if whole else None)


class _Tools(dict[str, Mapping[str, Any]]):
    """Provider to tool fees, from the first source that has some for it."""

    def __init__(self, catalogs: Iterable[Catalog]) -> None:
        super().__init__()
        self._catalogs = tuple(catalogs)

    def get(self, provider: str, default: Any = None) -> Any:
        found = super().get(provider)
        if found is None:
            merged: dict[str, Any] = {}
            for catalog in reversed(self._catalogs):
                merged.update(catalog.tools(provider))
            self[provider] = found = merged
        return found


def _bill(tariff: Tariff | None, quantities: Mapping[str, Quantity], reasoning: int | None) -> Cost:
    """Quantities times rates, one line each; nothing is rounded."""
    rates = tariff.rates if tariff is not None else _NOTHING
    if tariff is not None and (tariff.minimum or tariff.splits_reasoning or "grounded_prompt" in quantities):
        quantities = _adjusted(tariff, quantities, reasoning)
    lines: list[Line] = []
    total = _ZERO
    priced = free = unpriced = 0
    for component, quantity in quantities.items():
        counts = 0 <= quantity <= MAX_QUANTITY if type(quantity) is int else _count(quantity)
        if counts and not quantity:
            continue
        applied = rates.get(component)
        if applied is None or not counts:
            unit = COMPONENTS[component].unit if component in COMPONENTS else "unit"
            lines.append(Line(component, unit, quantity if counts else 0, None, None, None, "unpriced"))
            unpriced += 1
            continue
        unit, rate, per, each, status = applied
        cost = amount(quantity, rate, per) if each is None else _multiply(each, quantity)
        lines.append(_line(Line, (component, unit, quantity, rate, per, cost, status)))
        if status == "free":
            free += 1
        else:
            total = _add(total, cost)
            priced += 1
    if tariff is None:
        return Cost(None, tuple(lines), "unpriced") if lines else UNPRICED
    price = tariff.price
    if unpriced:
        if not priced:
            return Cost(None, tuple(lines), "unpriced", None, price.currency)
        return Cost(total, tuple(lines), "partial", price, price.currency)
    whole = _blank_cost()
    _set_total(whole, total)
    _set_lines(whole, tuple(lines))
    _set_status(whole, "priced" if priced or not lines else "free")
    _set_price(whole, price)
    _set_currency(whole, price.currency)
    _set_computed(whole, None)
    return whole


def _adjusted(tariff: Tariff, quantities: Mapping[str, Quantity], reasoning: int | None) -> Mapping[str, Quantity]:
    """The quantities that this tariff bills: reasoning apart from output, the least quantity, one count of a search."""
    billed = dict(quantities)
    if tariff.splits_reasoning and reasoning and "reasoning" not in billed:
        output = billed.get("output", 0)
        if _count(output) and _count(reasoning) and reasoning <= output:
            billed["output"] = output - reasoning
            billed["reasoning"] = reasoning
    for component, least in tariff.minimum.items():
        quantity = billed.get(component)
        if component in tariff.rates and quantity is not None and _count(quantity) and 0 < quantity < least:
            billed[component] = least
    if "grounded_prompt" in billed and "grounding_query" in billed:
        # Two counts of the same searches: a model is billed by one of them.
        for component, other in (("grounded_prompt", "grounding_query"), ("grounding_query", "grounded_prompt")):
            if component not in tariff.rates and other in tariff.rates:
                del billed[component]
    return billed


def _count(quantity: object) -> bool:
    """Whether *quantity* is one that can be billed."""
    if type(quantity) is int:
        return 0 <= quantity <= MAX_QUANTITY
    return isinstance(quantity, Decimal) and quantity.is_finite() and 0 <= quantity <= MAX_QUANTITY


def _counted(quantities: Mapping[str, Quantity]) -> dict[str, Quantity]:
    return {name: quantity for name, quantity in quantities.items() if _count(quantity)}


def _amount(value: object) -> bool:
    return isinstance(value, Decimal) and value.is_finite() and 0 <= value <= MAX_QUANTITY


def _name(value: object, longest: int) -> bool:
    return isinstance(value, str) and len(value) <= longest


def _utc(at: datetime | None) -> datetime:
    if at is None:
        return datetime.now(UTC)
    return at.replace(tzinfo=UTC) if at.tzinfo is None else at


def _zone(mode: str | None) -> str | None:
    return mode.partition("residency:")[2] or None if mode else None
