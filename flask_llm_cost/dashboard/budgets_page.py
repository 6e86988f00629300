"""Budgets: what each has spent and holds, what it refused, and when it will be used up. Rows that are read, never sums."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import timedelta
from decimal import Decimal
from typing import Any, Final
from zoneinfo import ZoneInfo

from flask import Response

from flask_llm_cost.budgets import Budget, BudgetStatus, OpenHold
from flask_llm_cost.dashboard import pages_json
from flask_llm_cost.dashboard.breakdown import Names, dimension_name
from flask_llm_cost.dashboard.export import csv_response, json_response
from flask_llm_cost.dashboard.formatting import MINUS, money, short_count
from flask_llm_cost.dashboard.visit import Visit
from flask_llm_cost.ledger.call_queries import recorded
from flask_llm_cost.wording import plural

_MOST_HOLDS: Final = 50
#: How many scopes of each budget a page shows; its file and its JSON have all.
_MOST_OF_EACH: Final = 200


@dataclass(frozen=True, slots=True, kw_only=True)
class BudgetBar:
    """A budget as it is drawn.

    :param name: for people: the budget's, or that of whose it is
    :param tag: whose it is, key and value; ``None`` for everybody's
    :param where: the filters that its ``where`` stands for; ``None`` where no filter says as much
    :param parts: what is spent, held and unresolved as shares of the limit, together at most 1
    """

    status: BudgetStatus
    name: str
    detail: str
    tag: tuple[str, str] | None
    where: Mapping[str, str] | None
    parts: tuple[float, float, float]

    @property
    def state(self) -> str:
        """``well``, ``near`` or ``over``."""
        if self.status.exhausted:
            return "over"
        return "near" if (self.status.share or 0) >= Decimal("0.8") else "well"

    def params(self, zone: ZoneInfo) -> dict[str, str] | None:
        """The query string of what counts in it: the calls of whose it is, in the days of its period.

        ``None`` where there is none: a budget of everybody's that has no days, or counts what no filter asks for.
        """
        status = self.status
        if not self.tag and (status.ends_at is None or self.where is None):
            return None
        held = {f"tag.{self.tag[0]}": self.tag[1]} if self.tag else {}
        held.update(self.where or {})
        if status.unit == "cost" and status.currency != "USD":
            held["currency"] = status.currency
        if status.period == "month" or status.ends_at is None:
            return held  # this month's is what is shown anyway
        last = status.ends_at - timedelta(microseconds=1)
        days = {"from": status.starts_at, "to": last}
        return {**held, **{name: at.astimezone(zone).date().isoformat() for name, at in days.items()}}

    def amount(self, value: Decimal | None) -> str:
        """``$21.40``, ``1,204 calls``, ``3.1M tokens``."""
        if value is None:
            return "no limit"
        if self.status.unit == "cost":
            return money(value, self.status.currency)
        sign = MINUS if value < 0 else ""
        if self.status.unit == "calls":
            return sign + plural(int(abs(value)), "call")
        return f"{sign}{short_count(abs(value))} tokens"


@dataclass(frozen=True, slots=True, kw_only=True)
class HoldRow:
    """An open hold as it is listed.

    :param name: and *detail*: as its budget's bar has them
    :param recorded: whether there is a page of its call: one under way has none yet
    """

    hold: OpenHold
    name: str
    detail: str
    recorded: bool


def budgets(visit: Visit) -> Response:
    """The page, its file and its JSON. Within a scope, the budgets of that scope only."""
    selection = visit.selection()
    if selection.format == "csv" and selection.table == "holds":
        columns = ("created_at", "call_id", "budget", "scope", "state", "expires_at", "amount", "unit", "currency")
        held = [[getattr(hold, name) for name in columns] for hold in open_holds(visit, most=None)]
        return csv_response("llm-open-holds.csv", columns, held, decimal=selection.decimal)
    holds = open_holds(visit)
    visit.expect(_tagged(hold.scope for hold in holds))
    each = _MOST_OF_EACH if selection.format == "html" else None
    bars = budget_bars(visit, visit.names, each=each)
    if selection.format == "json":
        found = {"budgets": [plainly(bar) for bar in bars], "open_holds": [pages_json.plainly(hold) for hold in holds]}
        return json_response({"as_of": visit.now, "scope": dict(visit.base.scope), **found})
    if selection.format == "csv":
        header = (
            "budget", "detail", "unit", "currency", "period", "action", "limit", "spent", "held", "unresolved",
            "blocked_calls", "starts_at", "ends_at", "exhausted_at",
        )  # fmt: skip
        rows = [(bar.name, bar.detail, *(getattr(bar.status, name) for name in header[2:])) for bar in bars]
        return csv_response("llm-budgets.csv", header, rows, decimal=selection.decimal)
    zone = visit.state.config.timezone
    cut = each if each in Counter(bar.status.budget for bar in bars).values() else None
    rows_of_holds = _hold_rows(visit, holds)
    return visit.html("budgets.html", sel=selection, bars=bars, cut=cut, holds=rows_of_holds, zone=zone, now=visit.now)


def plainly(bar: BudgetBar) -> dict[str, Any]:
    """A budget in JSON: what is drawn of it, and how it stands."""
    told = {"name": bar.name, "detail": bar.detail, "tag": bar.tag, "share": bar.status.share, "state": bar.state}
    return {**told, **pages_json.plainly(bar.status)}


def _shown(visit: Visit) -> list[tuple[str | None, tuple[Budget, ...]]]:
    """Which budgets may be seen, and of whom: all of everybody's, or those that count nothing beyond the scope.

    Within a scope a budget is somebody's by the tag that it is per; every other tag of the scope its filter has to hold.
    """
    budgets = visit.state.budgets
    if budgets is None:
        return []
    if not visit.scoped:
        return [(None, budgets.declared)]
    scope = visit.base.scope
    shown: list[tuple[str | None, tuple[Budget, ...]]] = []
    for key, value in scope.items():
        others = {f"tag.{other}": scope[other] for other in scope if other != key}
        theirs = tuple(
            budget for budget in budgets.declared if budget.per == key and others.items() <= _held(budget).items()
        )
        if theirs:
            shown.append((f"{key}={value}", theirs))
    return shown


def budget_bars(visit: Visit, names: Names, *, most: int | None = None, each: int | None = _MOST_OF_EACH) -> list[BudgetBar]:
    """How they stand, the most used first.

    :param most: so many in all; ``None`` for all
    :param each: so many scopes of each budget; ``None`` for all
    """
    budgets = visit.state.budgets
    if budgets is None:
        return []
    found = [status for scope, which in _shown(visit) for status in budgets.statuses(scope, which, most=each)][:most]
    named = {key: names(key, values) for key, values in _tagged(status.scope for status in found).items()}
    where = {budget.name: _where(budget) for budget in budgets.declared}
    return [_bar(status, named, where.get(status.budget)) for status in found]


def open_holds(visit: Visit, *, most: int | None = _MOST_HOLDS) -> list[OpenHold]:
    """What is held now, the oldest first; *most* of them, or with ``None`` all."""
    budgets = visit.state.budgets
    if budgets is None:
        return []
    return [hold for scope, which in _shown(visit) for hold in budgets.open_holds(scope, which, most=most)][:most]


def _hold_rows(visit: Visit, holds: Sequence[OpenHold]) -> list[HoldRow]:
    if not holds or visit.state.budgets is None:
        return []
    with visit.session() as session:
        there = recorded(session, visit.base.narrowed(currency=None), {hold.call_id for hold in holds})
    named = {key: visit.names(key, values) for key, values in _tagged(hold.scope for hold in holds).items()}
    rows = []
    for hold in holds:
        name, detail = _said(hold.budget, _tag(hold.scope), named)
        rows.append(HoldRow(hold=hold, name=name, detail=detail, recorded=hold.call_id in there))
    return rows


def _tagged(scopes: Iterable[str]) -> dict[str, tuple[str, ...]]:
    """The values of each key among *scopes*."""
    found: dict[str, tuple[str, ...]] = {}
    for key, value in filter(None, map(_tag, scopes)):
        found[key] = (*found.get(key, ()), value)
    return found


def _tag(scope: str) -> tuple[str, str] | None:
    key, equals, value = scope.partition("=")
    return (key, value) if equals else None


def _held(budget: Budget) -> dict[str, str]:
    """What all calls that count in a budget have in common by its filter, by the names of a query string."""
    found = {}
    for name, patterns in budget.where.items():
        if len(patterns) == 1 and "*" not in patterns[0]:
            found[name if name in ("provider", "model") else f"tag.{name.removeprefix('tag:')}"] = patterns[0]
    return found


def _where(budget: Budget) -> dict[str, str] | None:
    """Its filter as a query string; ``None`` where none says as much."""
    found = _held(budget)
    return found if len(found) == len(budget.where) else None


def _said(budget: str, tag: tuple[str, str] | None, named: Mapping[str, Mapping[str, str]]) -> tuple[str, str]:
    """A budget's name for people, or that of whose it is; and which one it is in full, where the name is somebody's."""
    if tag is None:
        return budget.replace("_", " "), ""
    key, value = tag
    return named.get(key, {}).get(value, value), f"{budget}, {dimension_name('tag:' + key)} {value}"


def _bar(status: BudgetStatus, named: Mapping[str, Mapping[str, str]], where: Mapping[str, str] | None) -> BudgetBar:
    tag, left, parts = _tag(status.scope), 1.0, []
    for part in (status.spent, status.held, status.unresolved):
        parts.append(min(left, float(part / status.limit)) if status.limit else 0.0)
        left -= parts[-1]
    name, detail = _said(status.budget, tag, named)
    return BudgetBar(
        status=status,
        name=name,
        detail=detail,
        tag=tag,
        where=where,
        parts=(parts[0], parts[1], parts[2]),
    )
