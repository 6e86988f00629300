"""One entry of a price book: read, checked, and laid out in time.

The shape is the one documented in ``docs/prices.rst``: ``rates``, ``modes``, ``tiers`` and ``windows``, which ``history``
and ``scheduled`` replace until or from a date; and beside them ``per``, ``minimum``, ``multipliers``, ``tools``,
``aliases``, ``currency``, ``max_output``, ``inherit``.
"""

from __future__ import annotations

import itertools
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from datetime import UTC, date, datetime
from decimal import Decimal
from typing import Any, Final, TypeAlias

from flask_llm_cost.pricing.modes import CHOICES, RESIDENCY, canonical_mode
from flask_llm_cost.pricing.rates import (
    COMPONENT_ALIASES,
    RATED,
    TOOLS,
    Place,
    decimal,
    default_per,
    items,
    known_names,
    mapping,
    rates,
)

_CURRENCY: Final = re.compile(r"[A-Z]{3}")
_SPAN: Final = re.compile(r"([01]\d|2[0-4]):([0-5]\d)-([01]\d|2[0-4]):([0-5]\d)")
_DAY: Final = 24 * 60
_WEEK: Final = 7 * _DAY

#: A mode that is known not to exist for a model stands as ``None``.
Modes: TypeAlias = Mapping[str, Mapping[str, Decimal] | None]

#: What a dated block may hold.
SECTIONS: Final = ("rates", "modes", "tiers", "windows", "multipliers", "tools")
FIELDS: Final = (
    *SECTIONS,
    "history",
    "scheduled",
    "per",
    "minimum",
    "aliases",
    "currency",
    "inherit",
    "reasoning_model",
    "max_output",
)


@dataclass(frozen=True, slots=True)
class Tier:
    """Rates of the whole call when its input is longer than ``above`` tokens (or as long, where ``inclusive``)."""

    above: int
    inclusive: bool
    rates: Mapping[str, Decimal]
    modes: Modes

    @property
    def label(self) -> str:
        return f"{'>=' if self.inclusive else '>'}{self.above}"


@dataclass(frozen=True, slots=True)
class Window:
    """Sections that stand in at certain hours of the week. Spans are minutes of the week, UTC, Monday first."""

    spans: tuple[tuple[int, int], ...]
    sections: Mapping[str, Any]

    def covers(self, minute: int) -> bool:
        return any(start <= minute < end or start <= minute + _WEEK < end for start, end in self.spans)


@dataclass(frozen=True, slots=True)
class ToolRate:
    """A fee per ``per`` uses."""

    rate: Decimal
    per: Decimal
    reasoning_models: Decimal | None = None
    currency: str = "USD"

    def fee(self, reasons: bool | None) -> Decimal | None:
        """The fee for a model that *reasons*, or does not; ``None`` where that decides and nobody says."""
        if self.reasoning_models is None or self.reasoning_models == self.rate or reasons is False:
            return self.rate
        return self.reasoning_models if reasons else None


@dataclass(frozen=True, slots=True)
class Block:
    """What is in force during one stretch of time."""

    rates: Mapping[str, Decimal] = field(default_factory=dict)
    modes: Modes = field(default_factory=dict)
    tiers: tuple[Tier, ...] = ()
    windows: tuple[Window, ...] = ()
    multipliers: Mapping[str, Decimal] = field(default_factory=dict)
    tools: Mapping[str, ToolRate] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class AliasName:
    """Another model name of an entry, from and until a date where it moved."""

    name: str
    starts: datetime | None = None
    ends: datetime | None = None

    def active(self, at: datetime) -> bool:
        return (self.starts is None or self.starts <= at) and (self.ends is None or at < self.ends)


@dataclass(frozen=True, slots=True)
class Entry:
    """The price of one model, all of its times.

    :param key: ``provider/model``
    :param changes: ``(date, history or scheduled, sections)`` in the order of their dates
    :param max_output: the most tokens that one answer has; ``None`` where nobody says
    :param named: which fields the source gave, for ``inherit``
    """

    key: str
    currency: str
    block: Block
    history: tuple[tuple[datetime, Mapping[str, Any]], ...] = ()
    scheduled: tuple[tuple[datetime, Mapping[str, Any]], ...] = ()
    per: Mapping[str, Decimal] = field(default_factory=dict)
    minimum: Mapping[str, Decimal] = field(default_factory=dict)
    aliases: tuple[AliasName, ...] = ()
    reasoning_model: bool | None = None
    max_output: int | None = None
    inherit: bool = False
    source: str = ""
    source_version: str = ""
    named: frozenset[str] = frozenset()

    @property
    def bounds(self) -> tuple[datetime, ...]:
        """The moments at which the price changes."""
        return tuple(sorted({moment for moment, _ in (*self.history, *self.scheduled)}))

    def block_at(self, at: datetime) -> Block:
        """What is in force at *at*. A dated block replaces, whole, each section that it names."""
        sections: dict[str, Any] = {}
        for starts, named in self.scheduled:
            if starts <= at:
                sections.update(named)
        for ends, named in reversed(self.history):
            if at < ends:
                sections.update(named)
        return replace(self.block, **sections) if sections else self.block

    def per_of(self, component: str) -> Decimal:
        return self.per.get(component) or default_per(component)


def parse_entry(key: str, raw: Any, place: Place, *, currency: str = "USD", source: str = "", version: str = "") -> Entry:
    """Read one entry.

    :param raw: the full form, or the short one: components to rates, per 1,000,000 tokens
    :raises PriceBookError: naming entry, field, value and what would be right
    """
    place = Place(place.source, key)
    provider, slash, model = key.partition("/")
    if not slash or not provider or not model:
        raise place.error(key, 'name it "provider/model", such as "openai/gpt-4o"')
    table = mapping(raw, place)
    if not table:
        raise place.error(raw, 'give at least one rate, such as {"input": "0.30", "output": "1.20"}')
    if not any(name in FIELDS for name in table):
        table = {
            "rates": {name: value for name, value in table.items() if not name.startswith("_")},
            **{name: value for name, value in table.items() if name.startswith("_")},
        }
    known_names(table, FIELDS, place, what="field")
    inherit = table.get("inherit", False)
    if not isinstance(inherit, bool):
        raise place.at("inherit").error(inherit, "write true or false")
    if "rates" not in table and not inherit:
        raise place.at("rates").error(None, 'give "rates", or "inherit": true to take them from the book')
    own_currency = table.get("currency", currency)
    if not isinstance(own_currency, str) or not _CURRENCY.fullmatch(own_currency):
        raise place.at("currency").error(own_currency, 'write a three-letter code, such as "USD"')
    sections = _sections(table, place)
    reasoning_model = table.get("reasoning_model")
    if not isinstance(reasoning_model, bool | None):
        raise place.at("reasoning_model").error(reasoning_model, "write true or false")
    return Entry(
        key=key,
        currency=own_currency,
        block=Block(**sections),
        history=tuple(_dated(table.get("history", ()), "until", place.at("history"))),
        scheduled=tuple(_dated(table.get("scheduled", ()), "from", place.at("scheduled"))),
        per=_quantities(table.get("per", {}), place.at("per")),
        minimum=_quantities(table.get("minimum", {}), place.at("minimum")),
        aliases=tuple(parse_alias(item, place.at(f"aliases[{i}]")) for i, item in items(table.get("aliases", ()), place)),
        reasoning_model=reasoning_model,
        max_output=_size_of(table["max_output"], place.at("max_output")) if "max_output" in table else None,
        inherit=inherit,
        source=str(table.get("_source") or source),
        source_version=str(table.get("_source_version") or version),
        named=frozenset(table),
    )


def parse_tools(value: Any, place: Place, currency: str = "USD") -> dict[str, ToolRate]:
    """Tool to fee: ``{"web_search": {"rate": "10", "per": "1000"}}``."""
    found: dict[str, ToolRate] = {}
    table = mapping(value, place)
    known_names(table, TOOLS, place, what="tool")
    for name, raw in table.items():
        if name not in TOOLS:
            continue
        here = place.at(name)
        fee = mapping(raw, here)
        known_names(fee, ("rate", "per", "reasoning_models"), here, what="field")
        special = fee.get("reasoning_models")
        found[name] = ToolRate(
            decimal(fee.get("rate"), here.at("rate")),
            decimal(fee.get("per", 1), here.at("per"), positive=True),
            None if special is None else decimal(special, here.at("reasoning_models")),
            currency,
        )
    return found


def parse_alias(value: Any, place: Place) -> AliasName:
    """``"gpt-4o-latest"``, or ``{"name": "gpt-4o-latest", "from": "2026-03-16", "until": "2026-09-01"}``."""
    if isinstance(value, str) and value:
        return AliasName(value)
    table = mapping(value, place)
    known_names(table, ("name", "from", "until"), place, what="field")
    name = table.get("name")
    if not isinstance(name, str) or not name:
        raise place.at("name").error(name, "write the other model name")
    return AliasName(
        name,
        moment(table["from"], place.at("from")) if "from" in table else None,
        moment(table["until"], place.at("until")) if "until" in table else None,
    )


def moment(value: Any, place: Place) -> datetime:
    """A day (its start, UTC) or a time of one."""
    if isinstance(value, datetime):
        return value.replace(tzinfo=UTC) if value.tzinfo is None else value.astimezone(UTC)
    if isinstance(value, date):
        return datetime(value.year, value.month, value.day, tzinfo=UTC)
    if isinstance(value, str):
        try:
            found = datetime.fromisoformat(value)
        except ValueError:
            pass
        else:
            return found.replace(tzinfo=UTC) if found.tzinfo is None else found.astimezone(UTC)
    raise place.error(value, 'write a date, such as "2026-08-21"')


def _sections(table: Mapping[str, Any], place: Place) -> dict[str, Any]:
    found: dict[str, Any] = {}
    if "rates" in table:
        found["rates"] = rates(table["rates"], place.at("rates"))
    if "modes" in table:
        found["modes"] = _modes(table["modes"], place.at("modes"))
    if "tiers" in table:
        tiers = sorted(
            (_tier(raw, place.at(f"tiers[{i}]")) for i, raw in items(table["tiers"], place.at("tiers"))), key=_size
        )
        for lower, upper in itertools.pairwise(tiers):
            if lower.above == upper.above:
                raise place.at("tiers").error(lower.above, "two tiers start at the same size; keep one")
        found["tiers"] = tuple(tiers)
    if "windows" in table:
        here = place.at("windows")
        found["windows"] = tuple(_window(raw, place.at(f"windows[{i}]")) for i, raw in items(table["windows"], here))
    if "multipliers" in table:
        found["multipliers"] = _multipliers(table["multipliers"], place.at("multipliers"))
    if "tools" in table:
        found["tools"] = parse_tools(table["tools"], place.at("tools"))
    return found


def _size(tier: Tier) -> int:
    return tier.above


def _modes(value: Any, place: Place) -> dict[str, Mapping[str, Decimal] | None]:
    found: dict[str, Mapping[str, Decimal] | None] = {}
    for name, raw in mapping(value, place).items():
        mode = canonical_mode(name)
        if mode is None:
            raise place.error(name, f"no such mode; {CHOICES}")
        # TOML has no null.
        found[mode] = None if raw is None or raw is False else rates(raw, place.at(name))
    return found


def _tier(value: Any, place: Place) -> Tier:
    table = mapping(value, place)
    known_names(table, ("above", "inclusive", "rates", "modes"), place, what="field")
    above = _size_of(table.get("above"), place.at("above"))
    inclusive = table.get("inclusive", False)
    if not isinstance(inclusive, bool):
        raise place.at("inclusive").error(inclusive, "write true or false")
    return Tier(
        above, inclusive, rates(table.get("rates"), place.at("rates")), _modes(table.get("modes", {}), place.at("modes"))
    )


def _size_of(value: Any, place: Place) -> int:
    if isinstance(value, str) and value.isascii() and value.isdigit() and len(value) < 12:
        value = int(value)
    elif isinstance(value, Decimal) and value.is_finite() and value == value.to_integral_value():
        value = int(value)  # of a source, which is read without floats
    if isinstance(value, bool) or not isinstance(value, int) or not 0 < value < 10**12:
        raise place.error(value, "write the size in tokens, such as 200000")
    return value


def _window(value: Any, place: Place) -> Window:
    table = mapping(value, place)
    known_names(table, ("days", "utc", "rates", "modes", "tiers"), place, what="field")
    days = [day for _, day in items(table.get("days", (1, 2, 3, 4, 5, 6, 7)), place.at("days"))]
    if not days or not all(isinstance(day, int) and not isinstance(day, bool) and 1 <= day <= 7 for day in days):
        raise place.at("days").error(days, "write weekdays from 1, Monday, to 7, Sunday")
    spans: list[tuple[int, int]] = []
    for _, text in items(table.get("utc", ("00:00-24:00",)), place.at("utc")):
        match = _SPAN.fullmatch(text) if isinstance(text, str) else None
        start, end = (int(match[1]) * 60 + int(match[2]), int(match[3]) * 60 + int(match[4])) if match else (-1, -1)
        if not 0 <= start < _DAY or end > _DAY:
            raise place.at("utc").error(text, 'write hours as "01:00-04:00", UTC')
        if end <= start:
            end += _DAY
        spans.extend(((day - 1) * _DAY + start, (day - 1) * _DAY + end) for day in days)
    sections = _sections({name: table[name] for name in ("rates", "modes", "tiers") if name in table}, place)
    if "rates" not in sections:
        raise place.at("rates").error(None, "give the rates of these hours")
    return Window(tuple(sorted(spans)), sections)


def _dated(value: Any, date_field: str, place: Place) -> Iterator[tuple[datetime, Mapping[str, Any]]]:
    blocks: dict[datetime, Mapping[str, Any]] = {}
    for i, raw in items(value, place):
        here = Place(place.source, place.entry, f"{place.field}[{i}]")
        table = mapping(raw, here)
        known_names(table, (date_field, *SECTIONS), here, what="field")
        when = moment(table.get(date_field), here.at(date_field))
        sections = _sections(table, here)
        if not sections:
            raise here.error(raw, f"give at least one of {', '.join(SECTIONS)}")
        if when in blocks:
            raise here.at(date_field).error(table[date_field], "two blocks have this date; keep one")
        blocks[when] = sections
    yield from sorted(blocks.items(), key=lambda block: block[0])


def _quantities(value: Any, place: Place) -> dict[str, Decimal]:
    table = mapping(value, place)
    found: dict[str, Decimal] = {}
    for name, raw in table.items():
        component = COMPONENT_ALIASES.get(name, name)
        known_names((component,), RATED, place, what="component")
        if component in RATED:
            found[component] = decimal(raw, place.at(name), positive=True)
    return found


def _multipliers(value: Any, place: Place) -> dict[str, Decimal]:
    found: dict[str, Decimal] = {}
    for name, raw in mapping(value, place).items():
        if name != "fast" and not RESIDENCY.fullmatch(name):
            raise place.error(name, 'only "fast" and "residency:<zone>" are multipliers; write other modes as rates')
        found[name] = decimal(raw, place.at(name), maximum=Decimal(100), positive=True)
    return found
