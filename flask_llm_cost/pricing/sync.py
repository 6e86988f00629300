"""What a price file becomes when its sources are asked: planned first, shown, and only then written."""

from __future__ import annotations

import difflib
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from decimal import Decimal
from typing import Any, Final

from flask_llm_cost.errors import LlmCostError, PriceBookError
from flask_llm_cost.pricing.catalog import Catalog
from flask_llm_cost.pricing.entries import ToolRate, parse_entry
from flask_llm_cost.pricing.fetch import Download
from flask_llm_cost.pricing.matching import DATE
from flask_llm_cost.pricing.merging import Merged, full, in_force, merge
from flask_llm_cost.pricing.pricefile import PriceFile
from flask_llm_cost.pricing.rates import Place, plain
from flask_llm_cost.pricing.sources import Feed, Offer, Offers, read

#: Fewer entries that are gone are single retired models, not a file that was cut off.
_FEW: Final = 2
_GONE: Final = Decimal("0.10")
_MOVED: Final = Decimal("0.50")
_MANY: Final = 20
#: How many of the models that are gone a person is told of by name.
_NAMED: Final = 20
_RESELLER: Final = Decimal("0.05")
#: How far apart the audio rates of one model at two dates are no coincidence.
_SIBLING: Final = Decimal("2.5")
_AUDIO: Final = {"audio_input", "audio_output", "audio_cache_read"}

Fetch = Callable[[Feed, str | None], Download]


@dataclass
class Plan:
    """What a synchronisation would do.

    :param changed: entries whose price changes, doubtful ones included
    :param added: new keys and their entries
    :param orphans: models of the file that its source no longer has; they stay
    :param rejected: keys of the file for which a source has no price, and why
    :param refused: why nothing at all is taken, unless it is accepted by hand
    :param failures: sources that could not be had
    :param resellers: models that cost something else at OpenRouter
    :param kept: entries that are hand-written, or that were decided by hand for the book, so that no source changes them
    """

    changed: list[Merged] = field(default_factory=list)
    added: dict[str, dict[str, Any]] = field(default_factory=dict)
    orphans: list[str] = field(default_factory=list)
    rejected: dict[str, str] = field(default_factory=dict)
    refused: list[str] = field(default_factory=list)
    failures: list[LlmCostError] = field(default_factory=list)
    resellers: list[str] = field(default_factory=list)
    kept: int = 0
    compared: int = 0
    asked: int = 0
    unknown: dict[str, tuple[str, ...]] = field(default_factory=dict)
    seeded: int = 0
    models: dict[str, dict[str, Any]] = field(default_factory=dict)
    synced: dict[str, dict[str, Any]] = field(default_factory=dict)

    @property
    def refusals(self) -> list[Merged]:
        return [merged for merged in self.changed if merged.refusals]

    @property
    def flags(self) -> list[Merged]:
        return [merged for merged in self.changed if merged.flags]

    @property
    def drifts(self) -> bool:
        """Whether the file says something else than its sources."""
        return bool(self.changed or self.added or self.refused)

    @property
    def strictly_bad(self) -> bool:
        return bool(self.failures or self.rejected or self.refused or self.refusals or self.flags or self.unknown)


def seed(file: PriceFile, bundled: Catalog, *, all_of_it: bool) -> int:
    """Put entries of the bundled book into *file*: those that it lacks, and those that an older edition of the book gave.

    :param all_of_it: whether to add what the file lacks
    :returns: how many
    """
    count = 0
    for key in bundled.keys if all_of_it else [key for key in file.models if key in bundled]:
        raw = file.models.get(key)
        if raw is not None and (raw.get("_source") != "seed" or raw.get("_source_version") == bundled.version):
            continue
        entry = {name: value for name, value in bundled.raw(key).items() if name[0] != "_" or name == "_filled"}
        file.models[key] = {**entry, "_source": "seed", "_source_version": bundled.version}
        count += 1
    if all_of_it:
        for name in ("aliases", "tools"):
            ours = bundled.aliases if name == "aliases" else bundled.fees
            file.header[name] = {**ours, **file.header.get(name, {})}
        # An entry of the file goes before another name for it.
        for key in file.models:
            file.header["aliases"].pop(key, None)
    return count


def make_plan(
    file: PriceFile,
    bundled: Catalog,
    primary: Offers | None,
    secondary: Offers | None,
    now: datetime,
    *,
    wanted: Collection[str] = (),
    unpriced: Collection[str] = (),
    accept: bool = False,
) -> Plan:
    """Compare *file* with what its sources offer. Changes nothing.

    :param wanted: keys to add because somebody asks for them
    :param unpriced: keys to add if a source has them, because there are calls without a price
    :param accept: whether to take what is doubtful
    """
    plan = Plan(models=dict(file.models))
    fees = _Fees(file, bundled)
    currency = str(file.header.get("currency", "USD"))
    if primary is not None:
        _refresh(plan, file, bundled, primary, now, fees, currency)
    if secondary is not None:
        _fill(plan, file, bundled, secondary, now, fees, currency)
    for key in (*wanted, *unpriced):
        if key in plan.models:
            continue
        # OpenRouter's is the price of a reseller: what a provider itself takes is not added from there.
        asked = (primary, secondary if key.startswith("openrouter/") else None)
        found = next((offers for offers in asked if offers is not None and key in offers.models), None)
        if found is None:
            if key in wanted:
                keys = [*(primary.models if primary else ()), *(secondary.models if secondary else ())]
                plan.unknown[key] = tuple(difflib.get_close_matches(key, keys, 3, 0.7))
            continue
        entry = {**found.models[key].entry, **_provenance(found, now)}
        try:
            parse_entry(key, entry, Place("the offer"), currency=currency)
        except PriceBookError as error:
            plan.rejected[key] = str(error)
            continue
        plan.added[key] = plan.models[key] = entry
    _judge(plan)
    _beside_siblings(plan)
    if not accept:
        for merged in plan.refusals:
            plan.models[merged.key] = file.models[merged.key]
    return plan


def _provenance(offers: Offers, now: datetime) -> dict[str, Any]:
    return {"_source": offers.source, "_source_version": offers.version, "_fetched_at": text_of(now)}


def text_of(at: datetime) -> str:
    return at.astimezone(UTC).replace(microsecond=0).isoformat().replace("+00:00", "Z")


def is_manual(raw: Mapping[str, Any]) -> bool:
    """Whether an entry is somebody's own, which no source may touch."""
    return raw.get("_source") == "manual" or bool(raw.get("inherit"))


def _decided(key: str, raw: Mapping[str, Any], bundled: Catalog) -> bool:
    """Whether the bundled book's makers decided against LiteLLM for this entry, or have it from elsewhere."""
    if raw.get("_source") != "seed" or key not in bundled:
        return False
    entry = bundled.entry(key)
    return entry is not None and entry.source != "litellm"


def _refresh(
    plan: Plan, file: PriceFile, bundled: Catalog, offers: Offers, now: datetime, fees: _Fees, currency: str
) -> None:
    gone = asked = 0
    for key, raw in file.models.items():
        if is_manual(raw) or (offers.source != "mirror" and _decided(key, raw, bundled)):
            plan.kept += 1
            continue
        offer = offers.models.get(key)
        if offer is None and raw.get("_source") == "openrouter":
            continue
        if offer is None:
            if key in offers.rejected:
                plan.rejected[key] = f"{offers.source}: {offers.rejected[key]}"
            else:
                plan.orphans.append(key)
                gone += "_gone_since" not in raw
                plan.models[key] = {"_gone_since": text_of(now), **raw}
            asked += "_gone_since" not in raw
            continue
        asked += 1
        plan.compared += 1
        here = {name: value for name, value in raw.items() if name != "_gone_since"}
        _take(plan, key, here, offer, offers, now, fees, currency)
        if here != raw and plan.models[key] is raw:
            plan.models[key] = here
    plan.asked = asked
    if gone >= _FEW and gone > asked * _GONE:
        plan.refused.append(f"{gone} of {asked} models are gone from {offers.source}: it may be cut off")


def _take(
    plan: Plan, key: str, raw: Mapping[str, Any], offer: Offer, offers: Offers, now: datetime, fees: _Fees, currency: str
) -> None:
    try:
        merged = merge(key, raw, offer, now, tools=fees.of(key), currency=currency)
    except PriceBookError as error:
        plan.rejected[key] = str(error)
        return
    if not merged.rows and not merged.refusals:
        plan.models[key] = merged.entry or plan.models[key]
        return
    plan.changed.append(merged)
    if merged.entry is not None:
        merged.entry.update(_provenance(offers, now))
        plan.models[key] = merged.entry


def _fill(plan: Plan, file: PriceFile, bundled: Catalog, offers: Offers, now: datetime, fees: _Fees, currency: str) -> None:
    """Cache rates that nobody else gives, of models that cost the same there."""
    for key, raw in file.models.items():
        offer = offers.models.get(key)
        if is_manual(raw):
            continue
        own = raw.get("_source") == "openrouter" and plan.models[key] is raw
        if offer is None:
            if own and key in offers.rejected:
                plan.rejected[key] = f"openrouter: {offers.rejected[key]}"
            elif own:
                plan.orphans.append(key)
            continue
        if own:
            # An entry that was added from here.
            plan.compared += 1
            _take(plan, key, raw, offer, offers, now, fees, currency)
            continue
        here = full(plan.models[key])
        try:
            rates = parse_entry(key, here, Place("the file"), currency=currency).block_at(now).rates
            theirs = parse_entry(key, offer.entry, Place("the offer")).block.rates
            same = "input" in rates and all(rates[name] == theirs.get(name) for name in ("input", "output") if name in rates)
            filled = set(here.get("_filled", ()))
            missing = [
                name for name in ("cache_read", "cache_write") if name in theirs and (name not in rates or name in filled)
            ]
            if not same:
                if not key.startswith("openrouter/") and (difference := _difference(rates, theirs)):
                    plan.resellers.append(f"{key}: {difference}")
                continue
            agreed = {name: plain(rate) for name, rate in theirs.items() if name in missing or name in rates}
            # An offer without tiers and hours says that they are gone: nobody was asked about them here, so they stay.
            kept = {name: value for name, value in in_force(here, now).items() if name in ("tiers", "windows")}
            asked = {name: rate for name, rate in agreed.items() if name in missing or name[:5] != "cache"}
            merged = merge(
                key,
                here,
                Offer({"rates": asked, "per": here.get("per", {}), **kept}),
                now,
                tools=fees.of(key),
                currency=currency,
            )
        except PriceBookError as error:
            plan.rejected[key] = str(error)
            continue
        if merged.rows and merged.entry is not None:
            merged.entry["_filled"] = sorted({*filled, *missing})
            plan.models[key] = merged.entry
            plan.changed.append(merged)


def _difference(ours: Mapping[str, Decimal], theirs: Mapping[str, Decimal]) -> str:
    rows = [
        f"{name} {plain(ours[name])} here, {plain(theirs[name])} at OpenRouter"
        for name in ("input", "output")
        if ours.get(name) and name in theirs and abs(theirs[name] / ours[name] - 1) >= _RESELLER
    ]
    return ", ".join(rows)


def _judge(plan: Plan) -> None:
    moved = len(plan.changed)
    if moved >= _MANY and moved > plan.compared * _MOVED:
        plan.refused.append(f"{moved} of {plan.compared} prices would change at once")


def _beside_siblings(plan: Plan) -> None:
    """Flag an audio rate that moves far from what the same model costs by another date: sources have shipped such slips."""
    for merged in plan.changed:
        moved = _AUDIO & {row.what for row in merged.rows}
        rates = full(merged.entry)["rates"] if merged.entry is not None else {}
        for key, raw in plan.models.items() if moved else ():
            if key == merged.key or DATE.sub("", key) != DATE.sub("", merged.key):
                continue
            theirs = full(raw).get("rates", {})
            for name in sorted(moved & rates.keys() & theirs.keys()):
                if (other := Decimal(str(theirs[name]))) and Decimal(str(rates[name])) >= other * _SIBLING:
                    merged.flags.append(f"{name} {rates[name]} is {_SIBLING} times that of {key}, or more")


class _Fees:
    """Fees of tools that a provider takes whatever the model."""

    def __init__(self, file: PriceFile, bundled: Catalog) -> None:
        self._own = Catalog("file", file.path.name, {"tools": file.header.get("tools", {})}, {}, "")
        self._bundled = bundled

    def of(self, key: str) -> Mapping[str, ToolRate]:
        provider = key.partition("/")[0]
        return {**self._bundled.tools(provider), **self._own.tools(provider)}


def ask(
    file: PriceFile, feeds: Sequence[Feed], fetch: Fetch, *, free: Collection[str], afresh: bool
) -> tuple[list[Offers | None], list[LlmCostError], dict[str, dict[str, Any]]]:
    """Ask the sources, the last first. One that has not changed since it was last taken in whole is not read again.

    :param afresh: read every source, because models are to be added or the file was changed by hand
    :returns: offers in the order of *feeds*, what failed, and what to remember for the next time
    """
    known: Mapping[str, Any] = file.header.get("synced", {})
    failures: list[LlmCostError] = []
    synced: dict[str, dict[str, Any]] = {}
    found: dict[str, Offers | None] = {}
    for feed in reversed(feeds):
        past = known.get(feed.name, {})
        etag = past.get("etag") if not afresh and past.get("url") == feed.shown else None
        try:
            download = fetch(feed, etag)
            if download.data is None:
                found[feed.name] = None
                synced[feed.name] = dict(past)
                continue
            offers = read(download, free=free)
        except LlmCostError as error:
            failures.append(error)
            found[feed.name] = None
            continue
        synced[feed.name] = {"url": download.name, "version": offers.version, "etag": download.etag or ""}
        if past.get("version") != offers.version:
            # What the others lack, this one may fill: they have to be looked at together.
            afresh = True
        found[feed.name] = offers
    return [found[feed.name] for feed in feeds], failures, synced


def describe(plan: Plan) -> Iterator[str]:
    """The plan as lines for a person."""
    for merged in sorted(plan.changed, key=lambda merged: merged.key):
        yield f"~ {merged.key}"
        for row in merged.rows:
            factor = row.factor
            times = f"  ({float(factor):.3g} times)" if factor is not None and factor != 1 else ""
            yield f"    {row.what:<22} {_shown(row.old):>12} -> {_shown(row.new)}{times}"
        yield from (f"    look: {flag}" for flag in merged.flags)
        yield from (f"    REFUSED: {refusal}; --accept takes it" for refusal in merged.refusals)
    for key, entry in sorted(plan.added.items()):
        rates = ", ".join(f"{name} {rate}" for name, rate in entry.get("rates", {}).items())
        yield f"+ {key}  {rates}, from {entry['_source']}"
    for key, near in sorted(plan.unknown.items()):
        yield f"? {key}: no source has it{'; near: ' + ', '.join(near) if near else ''}"
    for key, why in sorted(plan.rejected.items()):
        yield f"! {key}: no price in the source, kept as it is ({why})"
    for key in sorted(plan.orphans)[:_NAMED]:
        yield f"- {key}: its source no longer has it; kept"
    if (more := len(plan.orphans) - _NAMED) > 0:
        yield f"- and {more:,} more; 'flask llm-cost prices check --format json' has them all"
    for line in sorted(plan.resellers):
        yield f"i {line}"
    for failure in plan.failures:
        yield f"FAILED  {failure}"
    for refused in plan.refused:
        yield f"REFUSED  {refused}; --accept takes it"
    doubtful = len(plan.refusals)
    yield (
        f"{len(plan.changed) - doubtful} changed, {len(plan.added)} added, {doubtful} refused, "
        f"{len(plan.flags)} to look at, {len(plan.rejected)} rejected, {len(plan.orphans)} without a source, "
        f"{plan.kept} kept by hand"
    )


def _shown(rate: Decimal | None) -> str:
    return "none" if rate is None else plain(rate)
