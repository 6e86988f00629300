"""One entry, and what a source offers for it: what changes, what is doubtful, and the entry afterwards."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from decimal import Decimal
from typing import Any, Final

from flask_llm_cost.errors import PriceBookError
from flask_llm_cost.pricing.drafts import written
from flask_llm_cost.pricing.entries import FIELDS, SECTIONS, Block, Entry, Tier, ToolRate, moment, parse_entry
from flask_llm_cost.pricing.rates import EXACT, Place, plain
from flask_llm_cost.pricing.sources import Offer

FAR: Final = Decimal(100)
_NEAR: Final = Decimal(3)
_ONE: Final = Decimal(1)
#: LiteLLM cuts a price by the hour off where it divides it by 3600.
_SECONDS_NOISE: Final = Decimal("0.005")
#: The one figure that is compared and is no price.
MAX_OUTPUT: Final = "max_output"
SILENCE: Final = "skip_relative_change"

_EMPTY: Final[Mapping[str, Any]] = {"rates": {}, "modes": {}, "tiers": [], "windows": [], "multipliers": {}, "tools": {}}

Rates = dict[str, Decimal]


@dataclass(frozen=True, slots=True)
class Row:
    """One figure that changes. ``what`` is ``input``, ``batch.input``, ``>200000.input``, ``tool.web_search``, …"""

    what: str
    old: Decimal | None
    new: Decimal | None

    @property
    def factor(self) -> Decimal | None:
        return EXACT.divide(self.new, self.old) if self.old and self.new is not None else None


@dataclass(slots=True)
class Merged:
    """What becomes of one entry.

    :param entry: as it is written afterwards; ``None`` where it stays as it is
    :param flags: what a person should look at
    :param refusals: why it is not taken, unless it is accepted by hand
    """

    key: str
    rows: list[Row] = field(default_factory=list)
    flags: list[str] = field(default_factory=list)
    refusals: list[str] = field(default_factory=list)
    entry: dict[str, Any] | None = None


def merge(
    key: str,
    raw: Mapping[str, Any],
    offer: Offer,
    now: datetime,
    *,
    tools: Mapping[str, ToolRate],
    currency: str = "USD",
) -> Merged:
    """Lay *offer* over the entry *raw*. What the offer names wins, what it does not name stays.

    What was before goes into ``history``, unless nothing but figures that were missing has come, or that are no price.

    :param now: when the offer was fetched; the price changed at some time before
    :param tools: fees of the provider for any model, which an offer repeats
    :param currency: of an entry that names none
    :raises PriceBookError: one of the two is no entry
    """
    raw = full(raw)
    entry = parse_entry(key, raw, Place("the file"), currency=currency)
    fresh = parse_entry(key, offer.entry, Place("the offer"))
    old, new = entry.block_at(now), fresh.block
    merged = Merged(key)
    if entry.currency != fresh.currency:
        merged.refusals.append(f"its currency would change from {entry.currency} to {fresh.currency}")
        merged.entry = {name: value for name, value in raw.items() if name not in ("history", "currency")} | dict(
            offer.entry
        )
        return merged
    comparing = _Comparing(entry, fresh, merged)
    sections: dict[str, Any] = {
        "rates": comparing.rates(old.rates, new.rates, ""),
        "modes": comparing.modes(old.modes, new.modes, ""),
        "tiers": comparing.tiers(old.tiers, new.tiers),
        "windows": comparing.windows(old, new, raw, offer.entry, now),
        "multipliers": comparing.plain(old.multipliers, new.multipliers, "factor."),
        "tools": comparing.tools(old.tools, new.tools, tools),
    }
    _missing(merged, old, new, offer, sections["rates"], frozenset(raw.get("_filled", ())))
    most = {} if fresh.max_output is None else {"max_output": fresh.max_output}
    if not merged.rows and most and entry.max_output is None:
        # No price, so nothing that anybody has to look at.
        merged.entry = {**raw, **most}
    if fresh.max_output is not None and entry.max_output not in (None, fresh.max_output):
        merged.rows.append(Row(MAX_OUTPUT, Decimal(entry.max_output), Decimal(fresh.max_output)))
    if not merged.rows:
        return merged
    _judge(merged, sections["rates"], sections["modes"], raw)
    same_price = all(row.what == MAX_OUTPUT or (row.old is None and not row.what.startswith(">")) for row in merged.rows)
    merged.entry = _rewritten(raw, sections, None if same_price else old, now) | most
    merged.entry.update(comparing.units(raw))
    if fresh.reasoning_model:
        merged.entry["reasoning_model"] = True
    try:
        parse_entry(key, merged.entry, Place("the merged entry"))
    except PriceBookError as error:
        merged.refusals.append(f"cannot be written: {error}")
        merged.entry = None
    return merged


class _Comparing:
    """Puts sections together, noting every figure that changes."""

    def __init__(self, entry: Entry, fresh: Entry, merged: Merged) -> None:
        self._entry = entry
        self._fresh = fresh
        self._merged = merged
        self._units: dict[str, str] = {}

    def _note(self, what: str, old: Decimal | None, new: Decimal | None) -> None:
        self._merged.rows.append(Row(what, old, new))

    def rates(self, old: Mapping[str, Decimal], new: Mapping[str, Decimal], label: str) -> Rates:
        found = dict(old)
        for component, rate in new.items():
            before = old.get(component)
            per, own = self._fresh.per_of(component), self._entry.per_of(component)
            if per != own and before is not None:
                rate = EXACT.divide(EXACT.multiply(rate, own), per)
                if len(rate.as_tuple().digits) > 30:
                    rate = rate.quantize(Decimal("1e-12"), context=EXACT).normalize(EXACT)
            elif per != own:
                self._units[component] = plain(per)
            if component.startswith("audio_") and before and abs(rate / before - 1) < _SECONDS_NOISE and per != own:
                continue
            if before != rate:
                self._note(label + component, before, rate)
                found[component] = rate
        return found

    def modes(
        self, old: Mapping[str, Mapping[str, Decimal] | None], new: Mapping[str, Mapping[str, Decimal] | None], label: str
    ) -> dict[str, Rates | None]:
        found: dict[str, Rates | None] = {name: None if rates is None else dict(rates) for name, rates in old.items()}
        for mode, rates in new.items():
            if rates is not None:
                found[mode] = self.rates(found.get(mode) or {}, rates, f"{label}{mode}.")
        return found

    def tiers(self, old: Iterable[Tier], new: Iterable[Tier]) -> list[dict[str, Any]]:
        before = {tier.above: tier for tier in old}
        found = []
        for tier in new:
            own = before.pop(tier.above, None)
            label = f"{tier.label}."
            made: dict[str, Any] = {"above": tier.above}
            if tier.inclusive:
                made["inclusive"] = True
            if own is not None and own.inclusive != tier.inclusive:
                self._note(f"{tier.label} inclusive", _ONE, None)
            made["rates"] = self.rates(own.rates if own else {}, tier.rates, label)
            modes = self.modes(own.modes if own else {}, tier.modes, label)
            found.append(made | ({"modes": modes} if modes else {}))
        for gone in before.values():
            self._note(f"{gone.label}.input", gone.rates.get("input"), None)
            self._merged.flags.append(f"the tier {gone.label} is gone: calls of that size cost what others do")
        return found

    def windows(self, old: Block, new: Block, raw: Mapping[str, Any], offered: Mapping[str, Any], now: datetime) -> Any:
        if old.windows == new.windows:
            return in_force(raw, now).get("windows", [])
        self._note("windows", Decimal(len(old.windows)), Decimal(len(new.windows)))
        if not new.windows:
            self._merged.flags.append("the hours with prices of their own are gone")
        return offered.get("windows", [])

    def plain(self, old: Mapping[str, Decimal], new: Mapping[str, Decimal], label: str) -> Rates:
        for name, value in new.items():
            if old.get(name) != value:
                self._note(label + name, old.get(name), value)
        return {**old, **new}

    def tools(
        self, old: Mapping[str, ToolRate], new: Mapping[str, ToolRate], usual: Mapping[str, ToolRate]
    ) -> dict[str, dict[str, Any]]:
        found = dict(old)
        for name, fee in new.items():
            before = old.get(name, usual.get(name))
            if before is None or before.rate * fee.per != fee.rate * before.per:
                self._note(f"tool.{name}", before.rate if before else None, fee.rate)
                found[name] = fee
        return {
            name: {"rate": fee.rate, "per": fee.per}
            | ({} if fee.reasoning_models is None else {"reasoning_models": fee.reasoning_models})
            for name, fee in found.items()
        }

    def units(self, raw: Mapping[str, Any]) -> dict[str, Any]:
        return {"per": {**raw.get("per", {}), **self._units}} if self._units else {}


def _missing(merged: Merged, old: Block, new: Block, offer: Offer, rates: Rates, filled: frozenset[str]) -> None:
    """Rates that the source no longer has. Only what a bill cannot do without is asked for; the rest stays as it is.

    :param filled: components that the source never had
    """
    for component, rate in old.rates.items():
        if component in new.rates or component in filled:
            continue
        if component in offer.zeros and rate:
            merged.rows.append(Row(component, rate, Decimal(0)))
            merged.refusals.append(f"{component} would become 0")
            rates[component] = Decimal(0)
        elif component in ("input", "output") and component not in offer.zeros:
            merged.rows.append(Row(component, rate, None))
            merged.refusals.append(f"{component} would be removed")
            del rates[component]


def _judge(merged: Merged, rates: Rates, modes: Mapping[str, Rates | None], raw: Mapping[str, Any]) -> None:
    silenced = SILENCE in (raw.get("_validator_override") or ())
    for row in merged.rows:
        factor = row.factor
        if row.what == "windows" or row.new is None or (row.old is not None and not row.new):
            continue
        if row.old is not None and not row.old:
            merged.refusals.append(f"{row.what} was free and would cost {plain(row.new)}")
        elif factor is not None and (factor >= FAR or factor <= 1 / FAR):
            merged.refusals.append(f"{row.what} would change {_times(factor)}")
        elif factor is not None and not silenced and (factor > _NEAR or factor < 1 / _NEAR):
            merged.flags.append(f"{row.what} changes {_times(factor)}")
    moved = {row.what.rpartition(".")[2] for row in merged.rows}
    for cheap, dear in _SIBLINGS:
        if {cheap, dear} & moved and dear in rates and rates.get(cheap, Decimal(0)) > rates[dear]:
            merged.flags.append(f"{cheap} {plain(rates[cheap])} is more than {dear} {plain(rates[dear])}")
    for component, rate in (modes.get("batch") or {}).items():
        if component in moved and rate > rates.get(component, rate):
            merged.flags.append(f"batch {component} {plain(rate)} is more than standard {plain(rates[component])}")


#: What never costs more than its sibling, wherever both have a price.
_SIBLINGS: Final = (
    ("cache_read", "input"),
    ("cache_write", "cache_write_1h"),
    ("cache_write_1h", "cache_write_12h"),
    ("audio_cache_read", "audio_input"),
    ("image_cache_read", "image_input"),
    ("input", "audio_input"),
)


def _times(factor: Decimal) -> str:
    return f"{float(factor):.3g} times" if factor >= 1 else f"to 1/{float(1 / factor):.3g}"


def full(raw: Mapping[str, Any]) -> dict[str, Any]:
    """The full form of an entry that may be in the short one."""
    if any(name in FIELDS for name in raw):
        return dict(raw)
    table: dict[str, Any] = {"rates": {name: value for name, value in raw.items() if not name.startswith("_")}}
    return table | {name: value for name, value in raw.items() if name.startswith("_")}


def replaced(raw: Mapping[str, Any], rates: Rates, now: datetime) -> dict[str, Any]:
    """The entry *raw* with these rates and nothing else of a price, and all that was in force before in ``history``."""
    entry = {name: value for name, value in raw.items() if name not in (*SECTIONS, "scheduled") and name[0] != "_"}
    history = [dict(block) for block in raw.get("history", ())]
    _push(history, now, {**_come_to_pass(raw, history, now), "_observed": True})
    return {**entry, "rates": written({"rates": rates})["rates"], "history": history}


def in_force(raw: Mapping[str, Any], now: datetime) -> dict[str, Any]:
    """The sections as written, with the scheduled blocks whose time has come laid over them."""
    found = {name: raw[name] for name in SECTIONS if name in raw}
    for _, block in _scheduled(raw, now)[0]:
        found.update({name: block[name] for name in SECTIONS if name in block})
    return found


def _scheduled(raw: Mapping[str, Any], now: datetime) -> tuple[list[tuple[datetime, Any]], list[Any]]:
    """``(those that have come to pass, in order; those to come)``"""
    dated = [(moment(block["from"], Place("the file")), block) for block in raw.get("scheduled", ())]
    return sorted((d for d in dated if d[0] <= now), key=lambda d: d[0]), [block for at, block in dated if at > now]


def _rewritten(raw: Mapping[str, Any], sections: Mapping[str, Any], old: Block | None, now: datetime) -> dict[str, Any]:
    """The entry with its new sections, and those that were in force before in ``history`` until *now*.

    Scheduled blocks that have come to pass turn into history too: the new sections already have them in.
    """
    ours = written(dict(sections))
    history = [dict(block) for block in raw.get("history", ())]
    to_come = _scheduled(raw, now)[1]
    before = _come_to_pass(raw, history, now)
    if old is not None:
        changed = {name: before.get(name, _EMPTY[name]) for name in SECTIONS if ours[name] != _normal(name, before, old)}
        _push(history, now, {**changed, "_observed": True})
    entry = {name: value for name, value in raw.items() if name not in (*SECTIONS, "history", "scheduled")}
    for name in SECTIONS:
        if ours[name] or name == "rates":
            entry[name] = ours[name]
    if history:
        entry["history"] = history
    if to_come:
        entry["scheduled"] = to_come
    return entry


def _come_to_pass(raw: Mapping[str, Any], history: list[dict[str, Any]], now: datetime) -> dict[str, Any]:
    """Put what scheduled blocks have replaced into *history*. Returns the sections in force."""
    sections = {name: raw[name] for name in SECTIONS if name in raw}
    for at, block in _scheduled(raw, now)[0]:
        named = [name for name in SECTIONS if name in block]
        _push(history, at, {name: sections.get(name, _EMPTY[name]) for name in named})
        sections.update({name: block[name] for name in named})
    return sections


def _normal(name: str, before: Mapping[str, Any], old: Block) -> Any:
    """A section as it was, in the form that it would be written in now."""
    if name == "windows":
        return before.get("windows", [])
    value: Any = getattr(old, name)
    if name == "tiers":
        value = [
            {"above": tier.above}
            | ({"inclusive": True} if tier.inclusive else {})
            | {"rates": dict(tier.rates)}
            | ({"modes": dict(tier.modes)} if tier.modes else {})
            for tier in value
        ]
    elif name == "tools":
        value = {
            tool: {"rate": fee.rate, "per": fee.per}
            | ({} if fee.reasoning_models is None else {"reasoning_models": fee.reasoning_models})
            for tool, fee in value.items()
        }
    else:
        value = dict(value)
    return written({name: value})[name]


def _push(history: list[dict[str, Any]], until: datetime, sections: Mapping[str, Any]) -> None:
    """A block of what held until then. One of that very time that is there already knows better what came before it."""
    for block in history:
        if moment(block["until"], Place("the file")) == until:
            for name, value in sections.items():
                block.setdefault(name, value)
            return
    history.append({"until": _text(until), **sections})


def _text(at: datetime) -> str:
    at = at.astimezone(UTC)
    midnight = (at.hour, at.minute, at.second, at.microsecond) == (0, 0, 0, 0)
    return at.date().isoformat() if midnight else at.isoformat().replace("+00:00", "Z")
