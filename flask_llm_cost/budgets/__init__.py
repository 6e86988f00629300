"""Budgets: a call asks before it is sent, what it may cost is held, and what it did cost is settled.

To read them, from the dashboard, a command or the app itself::

    state = state_of()                     # or app.extensions["llm_cost"]
    state.budgets.statuses()               # a BudgetStatus for each budget and scope of the current period
    state.budgets.statuses(scope="tenant_id=42")
    state.budgets.open_holds()             # an OpenHold for each call that holds something, or is unresolved

``state.budgets`` is ``None`` for an app that has declared none.
"""

from flask_llm_cost.budgets.declaration import Budget
from flask_llm_cost.budgets.statuses import BudgetStatus, OpenHold

__all__ = ["Budget", "BudgetStatus", "OpenHold"]
