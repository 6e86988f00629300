"""What the limit of an account is: declared, computed by the app for a scope, or lifted for a while by somebody."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass
from datetime import UTC, datetime
from decimal import Decimal
from typing import Any, Final, cast

import sqlalchemy as sa
from sqlalchemy.orm import Session

from flask_llm_cost.budgets.accounts import Account, scope_tags
from flask_llm_cost.budgets.declaration import DeclarationError, amount
from flask_llm_cost.budgets.holds import stored
from flask_llm_cost.ledger.models import Adjustment
from flask_llm_cost.log import log

#: For how long an answer of the app's is taken for true.
FRESH_SECONDS: Final = 5.0
_MOST: Final = 10_000
LIFT: Final = "lift"

_ADJUSTMENTS: Final = cast(sa.Table, Adjustment.__table__)


class LimitError(Exception):
    """The app's function did not say what the limit is. Carries the class of what it raised."""


@dataclass(frozen=True, slots=True)
class Lift:
    """A higher limit for one scope, until a time. The amount is as stored."""

    budget: str
    scope: str
    to: Decimal
    until: datetime | None
    actor: str | None
    reason: str | None


def active_lifts(connection: sa.Connection | Session) -> list[Lift]:
    """The lifts in force, the latest of each scope only."""
    table = _ADJUSTMENTS
    query = (
        sa.select(table.c.budget, table.c.scope, table.c.amount, table.c.until, table.c.actor, table.c.reason)
        .where(table.c.kind == LIFT, sa.or_(table.c.until.is_(None), table.c.until > datetime.now(UTC)))
        .order_by(table.c.made_at)
    )
    return list({(row.budget, row.scope): Lift(*row) for row in connection.execute(query)}.values())


class Limits:
    """The limits of one app.

    :param functions: what ``@costs.budget_limit`` registered, by the name of the budget
    :param context: an app context for them
    """

    def __init__(
        self,
        functions: Mapping[str, Callable[[Mapping[str, str]], Any]],
        context: Callable[[], AbstractContextManager[Any]],
    ) -> None:
        self._functions = functions
        self._context = context
        self._lock = threading.Lock()
        self._answers: dict[tuple[str, str], tuple[float, Decimal | LimitError | None]] = {}
        self._lifts: dict[tuple[str, str], Lift] = {}
        self._warned: set[str] = set()

    def is_fresh(self, account: Account) -> bool:
        """Whether :meth:`declared` answers from memory."""
        if account.budget.name not in self._functions:
            return True
        answer = self._answers.get((account.budget.name, account.scope))
        return answer is not None and answer[0] > time.monotonic()

    def declared(self, account: Account) -> Decimal | None:
        """The limit without any lift, as stored; ``None`` for no limit. May ask the app.

        :raises LimitError: the app's function raised, or gave no amount
        """
        budget = account.budget
        function = self._functions.get(budget.name)
        if function is None:
            return None if budget.limit is None else stored(budget.limit, budget.scale)
        key = (budget.name, account.scope)
        answer = self._answers.get(key)
        if answer is None or answer[0] <= time.monotonic():
            answer = (time.monotonic() + FRESH_SECONDS, self._ask(account, function))
            with self._lock:
                if len(self._answers) >= _MOST:
                    self._answers.clear()
                self._answers[key] = answer
        if isinstance(answer[1], LimitError):
            raise answer[1]
        return answer[1]

    def remembered(self, account: Account) -> Decimal | None:
        """The same, and none where the app did not say."""
        try:
            return self.declared(account)
        except LimitError:
            return None

    def effective(self, account: Account) -> Decimal | None:
        """The limit that is enforced: the declared one, or a higher one that somebody lifted it to.

        :raises LimitError: as :meth:`declared`
        """
        limit = self.declared(account)
        lift = self._lifts.get((account.budget.name, account.scope))
        if limit is None or lift is None or (lift.until is not None and lift.until <= datetime.now(UTC)):
            return limit
        return max(limit, lift.to)

    def load_lifts(self, connection: sa.Connection) -> None:
        """Look which lifts are in force. Done where a limit would refuse a call, so that a lift works at once."""
        self._lifts = {(lift.budget, lift.scope): lift for lift in active_lifts(connection)}

    def lift_of(self, account: Account) -> Lift | None:
        return self._lifts.get((account.budget.name, account.scope))

    def _ask(self, account: Account, function: Callable[[Mapping[str, str]], Any]) -> Decimal | LimitError | None:
        budget = account.budget
        try:
            with self._context():
                given = function(scope_tags(account.scope))
            if given is None:
                return None if budget.limit is None else stored(budget.limit, budget.scale)
            return stored(amount(given), budget.scale)
        except Exception as error:
            problem = "gave no amount" if isinstance(error, DeclarationError) else f"raised {type(error).__name__}"
            if budget.name not in self._warned:
                self._warned.add(budget.name)
                log.warning("the budget_limit function of budget %r %s", budget.name, problem)
            return LimitError(problem)
