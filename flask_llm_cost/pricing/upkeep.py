"""Keeping a price file: start it, bring it up to date, write an entry by hand. What ``flask llm-cost prices`` does."""

from __future__ import annotations

import ssl
import statistics
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from datetime import datetime
from decimal import Decimal
from pathlib import Path
from typing import Any, Final

from flask_llm_cost.errors import PriceBookError, PriceSourceError
from flask_llm_cost.pricing.book import PriceBook
from flask_llm_cost.pricing.catalog import Catalog, bundled
from flask_llm_cost.pricing.fetch import Download, download, own_mirror, read_local
from flask_llm_cost.pricing.merging import FAR, full, replaced
from flask_llm_cost.pricing.pricefile import PriceFile
from flask_llm_cost.pricing.rates import COMPONENT_ALIASES, RATED, Place, decimal, default_per, known_names, plain
from flask_llm_cost.pricing.sources import LITELLM, OPENROUTER, Feed
from flask_llm_cost.pricing.sync import Plan, ask, make_plan, seed, text_of

DEFAULT_FEEDS: Final = (LITELLM, OPENROUTER)


@dataclass
class Sync:
    """One synchronisation: what it would do, and the file that it would do it to."""

    file: PriceFile
    plan: Plan
    synced: dict[str, dict[str, Any]] = field(default_factory=dict)
    feeds: int = 1
    #: The edition of the bundled book that the file is brought up to date with.
    book: str = ""
    #: Whether the file has all of that book, and so gets what a later one adds.
    whole: bool = False

    @property
    def bad(self) -> bool:
        """Something was refused, or there was no source at all."""
        return bool(self.plan.refused or self.plan.refusals or self.plan.unknown or len(self.plan.failures) >= self.feeds)

    def save(self, now: datetime, *, accept: bool) -> bool:
        """Write the file. ``False`` where nothing of it is taken."""
        plan, file = self.plan, self.file
        if plan.refused and not accept:
            return False
        changed = plan.models != file.models or plan.seeded
        file.models = dict(plan.models)
        clean = not (plan.refusals or plan.rejected or plan.failures)
        past = file.header.get("synced", {})
        if self.synced:
            # What was not taken in whole has to be looked at again, changed or not.
            taken = {name: facts if clean else {**facts, "etag": ""} for name, facts in self.synced.items()}
            file.header["synced"] = {**past, **taken, "at": text_of(now), "book": self.book, "whole": self.whole}
        if changed or "version" not in file.header:
            file.header["version"] = text_of(now)
        file.save()
        return True


def feeds_of(origin: str | None) -> tuple[Feed, ...]:
    """The default sources, or the one that the operator names: a URL of their own mirror, or a file."""
    if origin is None:
        return DEFAULT_FEEDS
    if "://" in origin:
        return (Feed("mirror", origin, own_mirror(origin)),)
    return (Feed("mirror", origin),)


def fetch(feed: Feed, etag: str | None, context: ssl.SSLContext | None = None) -> Download:
    """What is at a source now."""
    if feed.trust is None:
        return read_local(Path(feed.url))
    return download(feed.url, feed.trust, etag=etag, context=context)


def synchronise(
    path: Path,
    now: datetime,
    *,
    whole_book: bool,
    feeds: tuple[Feed, ...] = DEFAULT_FEEDS,
    wanted: Collection[str] = (),
    unpriced: Collection[str] = (),
    accept: bool = False,
    fetch: Any = fetch,
) -> Sync:
    """Ask the sources what has become of the prices in *path*. Writes nothing.

    :param whole_book: whether the file starts from the bundled book, as the default file does
    :param wanted: ``provider/model`` to add
    :param unpriced: ``provider/model`` to add where a source has it
    :raises PriceBookError: the file cannot be read
    """
    for key in wanted:
        if "/" not in key:
            raise PriceSourceError("--add", f"{key!r} is no key; write provider/model, such as openai/gpt-4o")
    file = PriceFile.load(path)
    book = bundled()
    whole_book = whole_book or bool(file.header.get("synced", {}).get("whole"))
    seeded = seed(file, book, all_of_it=whole_book)
    missing = [key for key in unpriced if key not in file.models]
    afresh = not file.as_written or bool(seeded or missing or [key for key in wanted if key not in file.models])
    found, failures, synced = ask(file, feeds, fetch, free=_free(file), afresh=afresh)
    offers = [offer for offer in found if offer is not None]
    primary = next((offer for offer in offers if offer.source != "openrouter"), None)
    secondary = next((offer for offer in offers if offer.source == "openrouter"), None)
    plan = make_plan(file, book, primary, secondary, now, wanted=wanted, unpriced=missing, accept=accept)
    plan.failures += failures
    plan.seeded = seeded
    return Sync(file, plan, synced, len(feeds), book.version, whole_book)


def _free(file: PriceFile) -> frozenset[str]:
    """What is known to be free, so that a source's zero means that."""
    found = set()
    for key, raw in file.models.items():
        rates = full(raw).get("rates")
        if isinstance(rates, Mapping) and rates and all(str(rate) == "0" for rate in rates.values()):
            found.add(key)
    return frozenset(found)


def start(path: Path, now: datetime) -> int:
    """Make the price file from the bundled book. Returns how many models it has.

    :raises PriceBookError: there is one, with models in it
    """
    file = PriceFile.load(path)
    if file.models:
        raise PriceBookError(path.name, "is there already; 'flask llm-cost prices sync' brings it up to date")
    book = bundled()
    seed(file, book, all_of_it=True)
    file.header["version"] = text_of(now)
    file.header["synced"] = {"book": book.version, "whole": True}
    file.save()
    return len(file.models)


@dataclass(frozen=True, slots=True)
class HandSet:
    """A price by hand, before it is written.

    :param lines: what it says, to be read by a person
    :param outliers: rates that are a hundred times from what was to be expected
    """

    file: PriceFile
    lines: tuple[str, ...]
    outliers: tuple[str, ...]


def set_price(path: Path, book: PriceBook, key: str, given: Mapping[str, str], now: datetime) -> HandSet:
    """An entry of the operator's own, whole: what it does not name has no price from now on. What was goes into ``history``.

    :raises PriceBookError: the key, a component or a rate cannot be one
    """
    place = Place("prices set", key)
    provider, slash, model = key.partition("/")
    if not slash or not provider or not model:
        raise place.error(key, 'name it "provider/model", such as "openai/my-ft"')
    rates: dict[str, Decimal] = {}
    for name, text in given.items():
        component = COMPONENT_ALIASES.get(name, name)
        known_names((component,), RATED, place, what="component")
        rates[component] = decimal(text, place.at(name))
    if not rates:
        raise place.error("", "give at least one rate, such as input=0.30 output=1.20")
    file = PriceFile.load(path)
    source = bundled()
    raw = file.models.get(key) or (source.raw(key) if key in source else None)
    per = dict(raw.get("per", {})) if raw else {}
    entry: dict[str, Any] = replaced(full(raw), rates, now) if raw else {"rates": {n: plain(r) for n, r in rates.items()}}
    file.models[key] = {**entry, "_source": "manual", "_set_at": text_of(now)}
    Catalog("file", path.name, file.header, {key: file.models[key]}, "").check()
    file.header["version"] = text_of(now)
    expected = _expected(book, provider, model, now)
    outliers = []
    lines = []
    for component, rate in rates.items():
        units = Decimal(str(per.get(component, default_per(component))))
        quantity = "1M" if units == 1_000_000 else f"{units:,f}"
        lines.append(f"{quantity} {component} = ${_dollars(rate)}")
        usual = expected.get(component)
        if usual and (not rate or not FAR**-1 < rate / usual < FAR):
            outliers.append(f"{component}: ${_dollars(rate)}, where about ${_dollars(usual)} was to be expected")
    return HandSet(file, tuple(lines), tuple(outliers))


def _dollars(rate: Decimal) -> str:
    """With its cents, and every digit behind them."""
    text = plain(rate)
    return text if len(text.partition(".")[2]) > 2 else f"{rate:.2f}"


def _expected(book: PriceBook, provider: str, model: str, now: datetime) -> dict[str, Decimal]:
    """What the model costs by the book now; else what the provider's models cost, or all models."""
    match = book.find(provider, model, now)
    if match is not None and match.entry is not None:
        return dict(match.entry.block_at(now).rates)
    for keys in ([key for key in book.keys if key.startswith(f"{provider}/")], book.keys):
        found: dict[str, list[Decimal]] = {}
        for key in keys:
            entry = book.entry(key)
            for component, rate in entry.block.rates.items() if entry else ():
                if rate:
                    found.setdefault(component, []).append(rate / entry.per_of(component) * default_per(component))  # type: ignore[union-attr]
        if found:
            return {component: statistics.median(rates) for component, rates in found.items()}
    return {}
