"""Why a call costs what it costs, for people to read."""

from __future__ import annotations

import difflib
import shlex
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Final

from flask_llm_cost.pricing.matching import DATE, Match
from flask_llm_cost.pricing.rates import ONE, plain
from flask_llm_cost.pricing.tariff import Segment, Tariff
from flask_llm_cost.records import COMPONENTS, Cost

RULES = {
    "exact": "the book has this very name",
    "alias": "another name of this entry",
    "date_suffix": "the book has no entry for this date, so the undated one applies",
    "fine_tune": "a fine-tuned model, by the price of fine-tunes of its base",
    "spelling": "the same model, as this host spells it",
    "mapped": "the book has no Azure price, so OpenAI's applies: compare it with your Azure price sheet",
    "bare": "named without a provider; only this one has it",
    "free": "LLM_COST_MODEL_ALIASES says that it is free",
    "prepaid": "LLM_COST_MODEL_ALIASES says that it is prepaid",
}


@dataclass(frozen=True, slots=True)
class Explanation:
    """What ``flask llm-cost prices explain`` prints.

    :param found: whether a price was found
    :param match: by which rule
    :param tariff: the rates in force
    :param cost: what the given usage costs
    :param nearest: keys that look alike, for a person to choose from; never used to price
    """

    provider: str
    model: str | None
    found: bool
    at: datetime
    lines: tuple[str, ...]
    match: Match | None = None
    tariff: Tariff | None = None
    cost: Cost | None = None
    nearest: tuple[str, ...] = ()

    def __str__(self) -> str:
        return "\n".join(self.lines)


def explain_match(
    provider: str,
    model: str | None,
    match: Match,
    segment: Segment | None,
    tariff: Tariff | None,
    mode: str | None,
    at: datetime,
    cost: Cost | None,
    problem: str | None,
) -> Explanation:
    lines = [f"{provider}/{model}"]
    entry = match.entry
    origin = ""
    if entry is not None and entry.source:
        origin = f", from {entry.source} {entry.source_version}".rstrip()
    rows = [
        ("source", f"{match.catalog} {match.version}".rstrip() + origin),
        ("key", match.key),
        ("rule", f"{match.kind}: {RULES.get(match.kind, match.kind)}"),
    ]
    if match.via:
        rows.append(("alias", f"LLM_COST_MODEL_ALIASES[{match.via!r}]"))
    rows.append(("time", at.astimezone(UTC).strftime("%Y-%m-%d %H:%M UTC")))
    rows.append(("mode", mode or "standard"))
    if tariff is not None:
        price = tariff.price
        if price.tier:
            rows.append(("tier", f"{price.tier} input tokens: all of the call is at this tier's rates"))
        if price.multiplier != ONE:
            rows.append(("factor", f"{plain(price.multiplier)} for region or speed, in the rates below"))
        if price.discount:
            rows.append(("discount", f"{plain(price.discount * 100)}% by LLM_COST_DISCOUNTS, in the rates below"))
    lines.extend(f"  {name:<9} {value}" for name, value in rows)
    if problem or (tariff is not None and tariff.why):
        lines.append(f"  no price  {problem or (tariff.why if tariff else '')}")
    if tariff is not None and match.entry is not None:
        lines.append("  rates")
        lines.extend(_rates(tariff, segment))
        lines.extend(_calendar(match, at))
    if cost is not None:
        lines.append("  arithmetic")
        lines.extend(_arithmetic(cost))
    return Explanation(provider, model, problem is None, at, tuple(lines), match, tariff, cost)


def _rates(tariff: Tariff, segment: Segment | None) -> list[str]:
    since = segment.effective_from if segment is not None else None
    dated = f"since {since:%Y-%m-%d}" if since else "since its first price in the book"
    order = {name: i for i, name in enumerate(COMPONENTS)}
    lines = []
    for name in sorted(tariff.rates, key=lambda name: order.get(name, 99)):
        rate = tariff.rates[name]
        status = "" if rate.status == "priced" else f", {rate.status}"
        lines.append(f"    {name:<24} {plain(rate.rate):>12} per {_units(rate.per)} ({rate.unit}), {dated}{status}")
    return lines


def _calendar(match: Match, at: datetime) -> list[str]:
    if match.entry is None or not match.entry.bounds:
        return []
    dates = ", ".join(f"{bound:%Y-%m-%d}{'' if bound <= at else ' (ahead)'}" for bound in match.entry.bounds)
    return [f"  changes   {dates}"]


def _arithmetic(cost: Cost) -> list[str]:
    lines = []
    for line in cost.lines:
        if line.rate is None or line.rate_per is None or line.cost is None:
            lines.append(f"    {line.component:<24} {line.quantity} x ? = unpriced")
            continue
        per = "" if line.rate_per == ONE else f" / {_units(line.rate_per)}"
        lines.append(
            f"    {line.component:<24} {line.quantity} x {plain(line.rate)}{per} = {plain(line.cost)}, {line.status}"
        )
    total = "unknown" if cost.total is None else f"{plain(cost.total)} {cost.currency}"
    lines.append(f"    {'total':<24} {total}, {cost.status}")
    if cost.computed is not None:
        lines.append(f"    {'by the book':<24} {plain(cost.computed)} {cost.currency}")
    return lines


def _units(per: object) -> str:
    return f"{per:,f}" if per != ONE else "1"


#: Who makes models that others serve under the same name.
_MAKERS: Final = ("openai", "anthropic", "gemini", "mistral", "deepseek", "xai", "cohere")


def _nearest(provider: str, name: str, keys: Sequence[str]) -> tuple[str, ...]:
    """Keys that look alike. A provider that the book does not have, such as a gateway, serves somebody else's models."""
    alike = difflib.get_close_matches(f"{provider}/{name}", keys, n=5, cutoff=0.7)
    if any(key.startswith(f"{provider}/") for key in keys):
        return tuple(alike)
    names = (name, DATE.sub("", name))
    theirs = [*names, *(f"{maker}/{each}" for maker in _MAKERS for each in names)]
    known = set(keys)
    return tuple(dict.fromkeys([*(key for key in theirs if key in known), *alike]))[:5]


def explain_unknown(provider: str, model: str | None, keys: Iterable[str], at: datetime) -> Explanation:
    """Why there is no price, which keys look alike, and what to write."""
    provider, name = str(provider)[:64], str(model)[:128] if model else ""
    key = f"{provider}/{name}"
    nearest = _nearest(provider, name, sorted(keys)) if name else ()
    lines = [f"{key}: no price"]
    if not name:
        lines.append("  why       the call names no model")
    else:
        lines.append("  why       no entry has this name, this alias, or this name without its date")
        lines.append("            (a likeness is never taken for a price)")
    if nearest:
        lines.append("  nearest   " + ", ".join(nearest))
        lines.append(f"  same as   LLM_COST_MODEL_ALIASES = {{{key!r}: {nearest[0]!r}}}")
    if name:
        lines.append(f'  set it    LLM_COST_PRICE_OVERRIDES = {{{key!r}: {{"input": "0.30", "output": "1.20"}}}}')
        lines.append("            USD per 1,000,000 tokens, with your provider's rates in place of these")
        lines.append(f"  or run    flask llm-cost prices set {shlex.quote(key)} input=0.30 output=1.20")
        lines.append("  then      flask llm-cost backfill    (calls that are in the ledger already)")
    if nearest:
        near_provider, _, near_model = nearest[0].partition("/")
        lines.append(f"  look      flask llm-cost prices explain {near_provider} {shlex.quote(near_model)}")
    return Explanation(provider, model, False, at, tuple(lines), nearest=nearest)
