"""What the limit of an account is: declared, computed by the app for a scope, or lifted for a while by somebody."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass
from datetime import UTC, datetime
from decimal import Decimal
from typing import Any, Final, TypeAlias, cast
from uuid import UUID

import sqlalchemy as sa
from sqlalchemy.orm import Session

from flask_llm_cost.budgets.accounts import Account, scope_tags
from flask_llm_cost.budgets.declaration import Budget, DeclarationError
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


#: As stored; ``None`` for no limit.
Told: TypeAlias = Decimal | LimitError | None


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


def declared_limit(budget: Budget) -> Decimal | None:
    """The limit of the declaration, as stored."""
    return None if budget.limit is None else stored(budget.limit, budget.scale)


class Limits:
    """The limits of one app.

    What asks the app may take as long as the app likes, and use the database: never while we write.

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
        #: Without a lock, which a forked child could have for good: each step is whole by itself.
        self._answers: dict[tuple[str, str], tuple[float, Told]] = {}
        self._lifts: dict[tuple[str, str], Lift] = {}
        self._warned: set[str] = set()

    def known(self, accounts: Iterable[Account]) -> dict[UUID, Decimal | None]:
        """The limits, without any lift, that nobody has to be asked for, as stored; ``None`` for no limit.

        An account whose limit only the app can say is not in it, unless it was asked a moment ago.
        """
        told = self.told(accounts)
        return {key: None if isinstance(limit, LimitError) else limit for key, limit in told.items()}

    def told(self, accounts: Iterable[Account]) -> dict[UUID, Told]:
        """The same, and where the app's function did not say one a moment ago, that."""
        now, found = time.monotonic(), dict[UUID, Told]()
        for account in accounts:
            if account.budget.name not in self._functions:
                found[account.id] = self._without_function(account.budget)
                continue
            answer = self._answers.get((account.budget.name, account.scope))
            if answer is not None and answer[0] > now:
                found[account.id] = answer[1]
        return found

    def answer(self, account: Account) -> Told:
        """The limit without any lift, as stored; ``None`` for no limit. Asks the app where it has not just been asked."""
        budget = account.budget
        function = self._functions.get(budget.name)
        if function is None:
            return self._without_function(budget)
        key = (budget.name, account.scope)
        answer = self._answers.get(key)
        if answer is None or answer[0] <= time.monotonic():
            given = self._call(account, function)
            answer = (time.monotonic() + FRESH_SECONDS, given)
            if len(self._answers) >= _MOST:
                self._answers.clear()
            self._answers[key] = answer
        return answer[1]

    def missing(self, budget: Budget) -> bool:
        """Whether nobody says its limit: the declaration leaves that to a function, and there is none."""
        return budget.limit is None and budget.name not in self._functions

    def _without_function(self, budget: Budget) -> Told:
        # A cap whose function was never imported must not let everything pass.
        return LimitError("is not registered") if budget.blocks and self.missing(budget) else declared_limit(budget)

    def asked(self, accounts: Iterable[Account]) -> dict[UUID, Decimal]:
        """The same of several accounts: those that have a limit, as far as the app says so."""
        found = {}
        for account in accounts:
            limit = self.answer(account)
            if limit is not None and not isinstance(limit, LimitError):
                found[account.id] = limit
        return found

    def lifted(self, account: Account, limit: Decimal | None) -> Decimal | None:
        """*limit*, or a higher one that somebody lifted it to."""
        lift = self._lifts.get((account.budget.name, account.scope))
        if limit is None or lift is None or (lift.until is not None and lift.until <= datetime.now(UTC)):
            return limit
        return max(limit, lift.to)

    def load_lifts(self, connection: sa.Connection) -> None:
        """Look which lifts are in force. Done where a limit would refuse a call, so that a lift works at once."""
        self._lifts = {(lift.budget, lift.scope): lift for lift in active_lifts(connection)}

    def _call(self, account: Account, function: Callable[[Mapping[str, str]], Any]) -> Told:
        budget = account.budget
        try:
            with self._context():
                given = function(scope_tags(account.scope))
            if given is None:
                return declared_limit(budget)
            return stored(budget.amount(given), budget.scale)
        except Exception as error:
            # What it gave is the app's own: our sentence about it says what would be right, and no more.
            wrong = isinstance(error, DeclarationError)
            problem = f"gave no usable amount: {error}" if wrong else f"raised {type(error).__name__}"
            if budget.name not in self._warned:
                self._warned.add(budget.name)
                log.warning("the budget_limit function of budget %r %s", budget.name, problem)
            return LimitError(problem)
