"""Is there a price for what is called?"""

from __future__ import annotations

from collections.abc import Iterator
from datetime import UTC, datetime, timedelta

from flask_llm_cost.doctor.check import Check
from flask_llm_cost.extension import AppState
from flask_llm_cost.ledger import queries
from flask_llm_cost.ledger.filter import Filter


def prices(state: AppState) -> Iterator[Check]:
    book = state.book
    yield Check("Prices", "price book", "ok", f"{book.entries} models, version {book.version}")
    with state.ledger.session() as session:
        week = Filter(scope={}, since=datetime.now(UTC) - timedelta(days=7))
        unpriced = queries.unpriced_models(session, week)
    for item in unpriced[:10]:
        yield Check(
            "Prices",
            "no price",
            "warning",
            f"{item.calls} calls of {item.provider}/{item.model} in the last week have no price; "
            f"run 'flask llm-cost prices explain {item.provider} {item.model}'",
        )
