"""What the app is told when a budget says no."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime
from decimal import Decimal
from typing import Final
from zoneinfo import ZoneInfo

from flask_llm_cost.budgets.accounts import Account, Subject
from flask_llm_cost.budgets.holds import Hold, Standing
from flask_llm_cost.errors import BudgetExceededError
from flask_llm_cost.wording import symbol

_ZERO: Final = Decimal(0)


@dataclass(frozen=True, slots=True)
class Trouble:
    """Why a budget could not be asked. ``stage`` is ``busy``, ``schema``, ``limit`` or ``unavailable``."""

    stage: str
    reason: str


_REMEDIES: Final = {
    "busy": "SQLite is locked, most often by a write of your own that is still open: commit before calling the model",
    "schema": "its tables are missing: run 'flask db upgrade' or 'flask llm-cost install'",
    "limit": (
        'its limit is not known, and "on_error" of this budget is "block": '
        'look at the function of @costs.budget_limit("{budget}")'
    ),
    "unavailable": 'its database cannot be asked, and "on_error" of this budget is "block"',
}


def _end(account: Account, zone: ZoneInfo) -> datetime | None:
    end = account.period.ends_at
    return None if end is None else end.astimezone(zone)


def exceeded(hold: Hold, standing: Standing, stage: str, zone: ZoneInfo) -> BudgetExceededError:
    """The limit would be passed, or has been."""
    account, scale = hold.account, hold.account.budget.scale
    return BudgetExceededError(
        budget=account.budget.name,
        scope=account.scope,
        limit=(hold.limit or _ZERO) * scale,
        spent=standing.spent * scale,
        held=(standing.held + standing.unresolved) * scale,
        estimate=hold.amount * scale,
        period_ends=_end(account, zone),
        stage=stage,
        unit=account.budget.unit,
        period=account.budget.period,
        symbol=symbol(account.budget.currency),
    )


def unpriced(account: Account, subject: Subject) -> BudgetExceededError:
    """The call has no known price in the budget's currency, nor in US dollars, so that nothing can be held for it."""
    model = subject.models[0] if subject.models else "a model that the request does not name"
    currencies = " or ".join(dict.fromkeys((account.budget.currency, "USD")))
    return _unasked(
        account,
        "unpriced",
        None,
        f"{str(subject.provider)[:64]}/{model[:128]} has no known price in {currencies}; "
        'set one in LLM_COST_PRICE_OVERRIDES, or give the budget "unpriced": "allow"',
    )


def not_checked(account: Account, trouble: Trouble, zone: ZoneInfo) -> BudgetExceededError:
    """Nobody could say whether there is room for the call."""
    remedy = _REMEDIES[trouble.stage].format(budget=account.budget.name)
    return _unasked(account, trouble.stage, zone, f"{remedy} ({trouble.reason})")


def _unasked(account: Account, stage: str, zone: ZoneInfo | None, problem: str) -> BudgetExceededError:
    return BudgetExceededError(
        budget=account.budget.name,
        scope=account.scope,
        limit=account.budget.limit,
        spent=None,
        held=None,
        estimate=None,
        period_ends=None if zone is None else _end(account, zone),
        stage=stage,
        problem=problem,
    )
