"""How the budgets of one app stand, and which apply: for the dashboard, the commands and the app itself."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from datetime import UTC, datetime
from decimal import localcontext
from uuid import UUID
from zoneinfo import ZoneInfo

import sqlalchemy as sa

from flask_llm_cost.budgets.accounts import Account, Period, Subject, Verdict, account_id, judge
from flask_llm_cost.budgets.declaration import Budget
from flask_llm_cost.budgets.holds import PERIODS
from flask_llm_cost.budgets.keeper import Keeper
from flask_llm_cost.budgets.limits import Limits, active_lifts
from flask_llm_cost.budgets.statuses import BudgetStatus, OpenHold, open_holds, status_of, statuses
from flask_llm_cost.ledger.columns import USUAL
from flask_llm_cost.ledger.models import BudgetPeriod


class Reading:
    """What is only asked of budgets. Nothing here moves an account."""

    def __init__(self, budgets: Sequence[Budget], zone: ZoneInfo, limits: Limits, keeper: Keeper) -> None:
        self.declared = tuple(budgets)
        self.zone = zone
        self.limits = limits
        self.keeper = keeper

    def statuses(
        self,
        scope: str | None = None,
        budgets: Sequence[Budget] | None = None,
        *,
        at: datetime | None = None,
        most: int | None = 200,
    ) -> list[BudgetStatus]:
        """How each budget stands in the current period, the most used first.

        :param scope: only this one, ``tenant_id=42``
        :param budgets: only these
        :param at: another time, whose period counts
        :param most: rows of each budget; ``None`` for all
        :raises SchemaMissingError: the tables are not there yet
        """
        with self.keeper.session() as session, localcontext(USUAL):
            chosen = self.declared if budgets is None else budgets
            return statuses(session, chosen, self.limits, self.zone, scope=scope, at=at, most=most)

    def status(self, account: Account) -> BudgetStatus:
        """How one account stands.

        :raises SchemaMissingError: the tables are not there yet
        """
        with self.keeper.session() as session, localcontext(USUAL):
            lifts = {(lift.budget, lift.scope): lift for lift in active_lifts(session)}
            row = session.get(BudgetPeriod, account.id)
            return status_of(account, row, self.limits, lifts, datetime.now(UTC))

    def open_holds(
        self, scope: str | None = None, budgets: Sequence[Budget] | None = None, *, most: int | None = 200
    ) -> list[OpenHold]:
        """What is held now, and what is unresolved, the oldest first.

        :param scope: only this one, ``tenant_id=42``
        :param budgets: only these
        :param most: so many; ``None`` for all
        :raises SchemaMissingError: the tables are not there yet
        """
        with self.keeper.session() as session, localcontext(USUAL):
            return open_holds(session, self.declared if budgets is None else budgets, scope=scope, most=most)

    def accounts(self, ids: Collection[UUID]) -> list[Account]:
        """Those of *ids* that are of a budget as it is declared now, of whatever period.

        :raises WriteError: they could not be read
        """
        budgets = {budget.name: budget for budget in self.declared}
        chosen = sa.select(PERIODS).where(PERIODS.c.id.in_(ids), PERIODS.c.budget.in_(budgets))
        rows = self.keeper.read(lambda connection: connection.execute(chosen).all())
        found = (Account(budgets[row.budget], row.scope, Period(row.starts_at, row.ends_at), row.id) for row in rows)
        return [
            account
            for account in found
            if account.id == account_id(account.budget, account.scope, account.period.starts_at.isoformat())
        ]

    def explain(self, subject: Subject) -> list[Verdict]:
        """Which budgets apply to a call, and why, in the order of their declaration."""
        return [judge(budget, subject) for budget in self.declared]
