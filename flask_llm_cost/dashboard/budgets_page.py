"""Budgets: what each has spent and holds, what it refused, and when it will be used up. Rows that are read, never sums."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from decimal import Decimal
from typing import Any, Final

from flask import Response

from flask_llm_cost.budgets import BudgetStatus, OpenHold
from flask_llm_cost.dashboard import pages_json
from flask_llm_cost.dashboard.breakdown import Names, dimension_name
from flask_llm_cost.dashboard.export import csv_response, json_response
from flask_llm_cost.dashboard.formatting import MINUS, money, plural, short_count
from flask_llm_cost.dashboard.visit import Visit

_MOST_HOLDS: Final = 50


@dataclass(frozen=True, slots=True, kw_only=True)
class BudgetBar:
    """A budget as it is drawn. The parts are shares of the limit, and together at most 1.

    :param name: for people: the budget's, or that of whose it is
    :param params: the query string of what was spent on it; ``None`` where it is everything
    :param state: ``well``, ``near`` or ``over``
    """

    name: str
    detail: str
    spent: Decimal
    held: Decimal
    unresolved: Decimal
    limit: Decimal | None
    spent_share: float
    held_share: float
    unresolved_share: float
    share: Decimal | None
    state: str
    unit: str
    currency: str
    action: str
    period: str
    blocked_calls: int
    starts_at: datetime
    ends_at: datetime | None
    exhausted_at: datetime | None
    lifted_until: datetime | None
    tag: tuple[str, str] | None

    def amount(self, value: Decimal | None) -> str:
        """``$21.40``, ``1,204 calls``, ``3.1M tokens``."""
        if value is None:
            return "no limit"
        if self.unit == "cost":
            return money(value, self.currency)
        sign = MINUS if value < 0 else ""
        if self.unit == "calls":
            return sign + plural(int(abs(value)), "call")
        return f"{sign}{short_count(abs(value))} tokens"


def budgets(visit: Visit) -> Response:
    """The page, its file and its JSON. Within a scope, the budgets of that scope only."""
    selection = visit.selection()
    bars, holds = budget_bars(visit, visit.names), open_holds(visit)
    if selection.format == "json":
        found = {"budgets": [pages_json.plainly(bar) for bar in bars], "open_holds": [_hold(hold) for hold in holds]}
        return json_response({"as_of": visit.now, "scope": dict(visit.base.scope), **found})
    if selection.format == "csv":
        header = (
            "budget", "detail", "unit", "currency", "period", "action", "limit", "spent", "held", "unresolved",
            "blocked_calls", "starts_at", "ends_at", "exhausted_at",
        )  # fmt: skip
        rows = [(bar.name, bar.detail, *(getattr(bar, name) for name in header[2:])) for bar in bars]
        return csv_response("llm-budgets.csv", header, rows, decimal=selection.decimal)
    zone = visit.state.config.timezone
    return visit.html("budgets.html", sel=selection, bars=bars, holds=holds, zone=zone, now=visit.now)


def _hold(hold: OpenHold) -> dict[str, Any]:
    names = ("call_id", "budget", "scope", "unit", "amount", "state", "created_at", "expires_at")
    return {name: getattr(hold, name) for name in names}


def scopes(visit: Visit) -> Sequence[str | None]:
    """Whose budgets may be seen: everybody's, or those of each tag of the scope."""
    return [f"{key}={value}" for key, value in visit.base.scope.items()] if visit.scoped else [None]


def budget_bars(visit: Visit, names: Names, *, most: int | None = None) -> list[BudgetBar]:
    """How they stand, the most used first."""
    budgets = visit.state.budgets
    if budgets is None:
        return []
    found = [status for scope in scopes(visit) for status in budgets.statuses(scope)][:most]
    tagged: dict[str, list[str]] = {}
    for status in found:
        if tag := _tag(status.scope):
            tagged.setdefault(tag[0], []).append(tag[1])
    named = {key: names(key, values) for key, values in tagged.items()}
    return [_bar(status, named) for status in found]


def open_holds(visit: Visit) -> list[OpenHold]:
    """What is held now, the oldest first."""
    budgets = visit.state.budgets
    if budgets is None:
        return []
    return [hold for scope in scopes(visit) for hold in budgets.open_holds(scope)][:_MOST_HOLDS]


def _tag(scope: str) -> tuple[str, str] | None:
    key, equals, value = scope.partition("=")
    return (key, value) if equals else None


def _bar(status: BudgetStatus, named: dict[str, Any]) -> BudgetBar:
    tag = _tag(status.scope)
    parts = [status.spent, status.held, status.unresolved]
    shares = [0.0, 0.0, 0.0]
    if status.limit:
        left = 1.0
        for index, part in enumerate(parts):
            shares[index] = min(left, float(part / status.limit))
            left -= shares[index]
    share = sum(parts, Decimal(0)) / status.limit if status.limit else None
    state = "well" if share is None or share < Decimal("0.8") else "near" if share < 1 else "over"
    whose = named.get(tag[0], {}).get(tag[1], tag[1]) if tag else ""
    return BudgetBar(
        name=whose or status.budget.replace("_", " "),
        detail=f"{status.budget}, {dimension_name('tag:' + tag[0])} {tag[1]}" if tag else "",
        spent=status.spent,
        held=status.held,
        unresolved=status.unresolved,
        limit=status.limit,
        spent_share=shares[0],
        held_share=shares[1],
        unresolved_share=shares[2],
        share=share,
        state=state,
        unit=status.unit,
        currency=status.currency,
        action=status.action,
        period=status.period,
        blocked_calls=status.blocked_calls,
        starts_at=status.starts_at,
        ends_at=status.ends_at,
        exhausted_at=status.exhausted_at,
        lifted_until=status.lifted_until,
        tag=tag,
    )
