"""Do the calls say what their lines add up to?"""

from __future__ import annotations

from collections.abc import Iterator
from datetime import date
from decimal import Decimal
from itertools import groupby
from typing import Final
from uuid import UUID

import sqlalchemy as sa

from flask_llm_cost.doctor.check import Check
from flask_llm_cost.extension import AppState
from flask_llm_cost.ledger.models import Call, LineItem
from flask_llm_cost.wording import plural

#: Calls that are looked at: the newest, and as many of all others as a scan of the key gives first.
SAMPLE: Final = 500


def bills(state: AppState) -> Iterator[Check]:
    with state.ledger.session() as session:
        ids: set[object] = set()
        for order in (Call.occurred_at.desc(), Call.id.asc()):
            ids |= set(session.scalars(sa.select(Call.id).order_by(order).limit(SAMPLE)))
        wrong: list[tuple[UUID, date]] = []
        for chunk in _chunks(sorted(ids, key=str), 250):
            query = (
                sa.select(Call.id, Call.total_cost, Call.cost_status, LineItem.cost, Call.occurred_at)
                .outerjoin(LineItem, LineItem.call_id == Call.id)
                .where(Call.id.in_(chunk))
                .order_by(Call.id)
            )
            for call_id, rows in groupby(session.execute(query), key=lambda row: row[0]):
                lines = list(rows)
                costs = [row[3] for row in lines if row[3] is not None]
                summed = sum(costs, Decimal(0)) if costs else None
                if not _agree(lines[0][1], lines[0][2], summed):
                    wrong.append((call_id, lines[0][4].astimezone(state.config.timezone).date()))
    if wrong:
        days = [day for _, day in wrong]
        yield Check(
            "Ledger",
            "calls against lines",
            "error",
            f"{len(wrong)} of {len(ids)} calls looked at do not cost what their lines add up to "
            f"(for instance {wrong[0][0]}): somebody changed them by hand; "
            f"run 'flask llm-cost reprice --from {min(days)} --to {max(days)}'",
        )
    elif ids:
        said = f"looked at {plural(len(ids), 'call')}: each costs what its lines add up to"
        yield Check("Ledger", "calls against lines", "ok", said)


def _agree(total: Decimal | None, status: str, summed: Decimal | None) -> bool:
    if total is None or summed is None:
        # A call without lines is free, or has no cost.
        return total is summed or (summed is None and total == 0 and status != "unpriced") or (total is None and summed == 0)
    return total == summed


def _chunks(items: list[object], size: int) -> Iterator[list[object]]:
    for start in range(0, len(items), size):
        yield items[start : start + size]
