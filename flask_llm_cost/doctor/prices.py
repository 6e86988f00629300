"""Is there a price for what is called?"""

from __future__ import annotations

import difflib
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta

from flask_llm_cost.doctor.check import Check
from flask_llm_cost.extension import AppState
from flask_llm_cost.ledger import queries
from flask_llm_cost.ledger.filter import Filter
from flask_llm_cost.pricing.book import OLD_DAYS
from flask_llm_cost.wording import plural


def prices(state: AppState) -> Iterator[Check]:
    book = state.book
    what = f"{plural(book.entries, 'model')}, version {book.version}"
    age = book.days_old(datetime.now(UTC).date())
    if age is not None and age > OLD_DAYS:
        yield Check(
            "Prices",
            "price book",
            "warning",
            f"{what}: the prices are {plural(age, 'day')} old, and providers change them twice in ten; "
            "run 'flask llm-cost prices sync', or upgrade",
        )
    else:
        yield Check("Prices", "price book", "ok", what if age is None else f"{what}, {plural(age, 'day')} old")
    if book.outgrown:
        yield Check(
            "Prices",
            "price file",
            "warning",
            f"{state.prices.path.name} was made by another version of the package, and hides the prices of this one; "
            "run 'flask llm-cost prices sync'",
        )
    yield from _discounts(state)
    with state.ledger.session() as session:
        week = Filter(scope={}, since=datetime.now(UTC) - timedelta(days=7))
        unpriced = queries.unpriced_models(session, week)
    for item in unpriced[:10]:
        yield Check(
            "Prices",
            "no price",
            "warning",
            f"without a price in the last week: {plural(item.calls, 'call')} of {item.provider}/{item.model}; "
            f"run 'flask llm-cost prices explain {item.provider} {item.model}'",
        )


def _discounts(state: AppState) -> Iterator[Check]:
    """A provider that is mistyped takes nothing off, and nobody would see it."""
    if not state.config.discounts:
        return
    keys = (*state.book.keys, *state.config.model_aliases)
    known = {*(key.partition("/")[0] for key in keys), *state.config.hosts.values()}
    for provider in sorted(state.config.discounts.keys() - known):
        near = difflib.get_close_matches(provider, sorted(known), 1)
        said = f"LLM_COST_DISCOUNTS has {provider!r}, and no price and no host has that provider, so nothing is taken off"
        remedy = f"write {near[0]!r}, or" if near else "write it as 'flask llm-cost report --by provider' does, or"
        yield Check("Prices", "discount", "warning", f"{said}; {remedy} take it away")
