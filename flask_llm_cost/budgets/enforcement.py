"""The budgets of one app: asked before a call, told after it."""

from __future__ import annotations

import functools
import time
from collections.abc import Callable, Collection, Mapping, Sequence
from contextlib import AbstractContextManager, suppress
from dataclasses import replace
from datetime import UTC, datetime
from decimal import Decimal, localcontext
from typing import Any, Final
from uuid import UUID
from zoneinfo import ZoneInfo

import sqlalchemy as sa

from flask_llm_cost.budgets import estimate, holds
from flask_llm_cost.budgets.accounts import Account, Subject, accounts_of
from flask_llm_cost.budgets.asking import Answer, Ask
from flask_llm_cost.budgets.declaration import Budget
from flask_llm_cost.budgets.desk import Desk, Job, LateError
from flask_llm_cost.budgets.holds import Hold, Standing, stored
from flask_llm_cost.budgets.keeper import PATIENCE_SECONDS, TRANSACTION_SECONDS, Keeper
from flask_llm_cost.budgets.limits import LimitError, Limits, Told
from flask_llm_cost.budgets.questions import Questions
from flask_llm_cost.budgets.reading import Reading
from flask_llm_cost.budgets.refusals import Trouble, exceeded, not_checked, unpriced
from flask_llm_cost.budgets.settling import Crossing, Measured, Settling, standing_after
from flask_llm_cost.errors import BudgetExceededError
from flask_llm_cost.ledger.columns import USUAL
from flask_llm_cost.ledger.transaction import WriteError
from flask_llm_cost.log import log
from flask_llm_cost.pricing import PriceBook

#: What a call is told that was left waiting.
_LATE: Final = Trouble("unavailable", "it did not answer in time")
_SLOW: Final = LimitError("did not answer in time")

#: The part of a call's patience that functions of the app's may use up: the rest is for the database.
_FOR_FUNCTIONS: Final = 0.8

#: How many writes may wait for the app to say the limits that they moved.
_MOST_WAITING: Final = 100

UNAVAILABLE, ALLOWED, UNPRICED_CALLS = "budget_unavailable", "budget_unavailable_allowed", "budget_unpriced"


def _deadlines() -> tuple[float, float]:
    """Until when a call that asks now waits for functions of the app's, and in all."""
    now = time.monotonic()
    return now + _FOR_FUNCTIONS * PATIENCE_SECONDS, now + PATIENCE_SECONDS


class Budgets(Reading):
    """The budgets of one app. Opens no connection and starts no thread before the first call that one applies to.

    :param engine: gives the host's engine of the ledger's bind
    :param read_engine: the same for what is only shown
    :param functions: what ``@costs.budget_limit`` registered
    :param context: an app context for them
    :param flush: writes what waits in this process: whether all is written after so many seconds
    :param crossed: told of each threshold, in a thread of ours
    """

    def __init__(
        self,
        budgets: Sequence[Budget],
        *,
        zone: ZoneInfo,
        default_output: int,
        engine: Callable[[], sa.Engine],
        read_engine: Callable[[], sa.Engine],
        book: Callable[[], PriceBook],
        functions: Mapping[str, Callable[[Mapping[str, str]], Any]],
        context: Callable[[], AbstractContextManager[Any]],
        flush: Callable[[float], bool],
        crossed: Callable[[Crossing], None],
    ) -> None:
        shortest = min((budget.hold_seconds for budget in budgets if budget.blocks), default=3600)
        keeper = Keeper(engine, read_engine, flush, shortest, self._expired)
        super().__init__(budgets, zone, Limits(functions, context), keeper)
        self._questions = Questions(self.limits, self.keeper)
        self.settling = Settling(self.declared, zone, self.limits, self._moved)
        self._blocking = tuple(budget for budget in budgets if budget.blocks)
        self._raising = tuple(budget for budget in budgets if budget.action == "raise")
        self._strict = self._blocking + self._raising
        self._default_output = default_output
        self._book = book
        self._crossed = crossed
        self._warned: set[str] = set()
        self._dearest: dict[tuple[str, str], str | None] = {}

    # Before a call.

    def blocking(self, subject: Subject) -> tuple[Account, ...]:
        """The accounts that a call has to ask."""
        return tuple(accounts_of(self._blocking, subject, self.zone))

    def authorise(self, ask: Ask) -> Answer:
        """Whether a call may be sent; then what it may cost is held. Takes half a second at most, and raises nothing."""
        try:
            return self._authorise(ask)
        except Exception as error:
            return self._failed(ask, error)

    async def authorise_async(self, ask: Ask) -> Answer:
        """The same for a coroutine: the event loop goes on meanwhile."""
        try:
            return await self._authorise_async(ask)
        except Exception as error:
            return self._failed(ask, error)

    def _authorise(self, ask: Ask) -> Answer:
        asked = self._asked_at_once(ask)
        if isinstance(asked, Answer):
            return asked
        until, deadline = _deadlines()
        wanted = self._wanted(ask, asked, self._questions.told(ask.new, until))
        if isinstance(wanted, Answer):
            return wanted
        if self.keeper.inline:
            return self._decide(ask, wanted)
        try:
            return self._job(ask, wanted).wait(deadline - time.monotonic())
        except LateError:
            return self._in_doubt(ask.new, _LATE)

    async def _authorise_async(self, ask: Ask) -> Answer:
        asked = self._asked_at_once(ask)
        if isinstance(asked, Answer):
            return asked
        until, deadline = _deadlines()
        wanted = self._wanted(ask, asked, await self._questions.told_async(ask.new, until))
        if isinstance(wanted, Answer):
            return wanted
        if self.keeper.inline:
            return self._decide(ask, wanted)
        try:
            return await self._job(ask, wanted).wait_async(deadline - time.monotonic())
        except LateError:
            return self._in_doubt(ask.new, _LATE)

    def _wanted(self, ask: Ask, asked: Sequence[tuple[Account, Decimal]], told: Mapping[UUID, Told]) -> list[Hold] | Answer:
        """What to hold of each account whose limit is known, or the answer where one must be and is not."""
        wanted = []
        for account, amount in asked:
            limit = told.get(account.id, _SLOW)
            if not isinstance(limit, LimitError):
                wanted.append(Hold(account, amount, self.limits.lifted(account, limit)))
                continue
            answer = self._in_doubt((account,), Trouble("limit", f"it {limit}"))
            if answer.error is not None:
                if ask.left:
                    self.keeper.later(holds.void(ask.call_id, ask.left))
                return answer
        return wanted

    def _asked_at_once(self, ask: Ask) -> list[tuple[Account, Decimal]] | Answer:
        """What to hold of each account, or the answer where that is clear without the database."""
        if (trouble := self.keeper.away) is not None:
            return self._in_doubt(ask.new, trouble)
        try:
            with localcontext(USUAL):
                asked = self._asked(ask)
            return asked if asked or ask.left else Answer()
        except BudgetExceededError as error:
            return Answer(error)

    def _failed(self, ask: Ask, error: Exception) -> Answer:
        # Ours: it must not reach the app as anything else than a budget that said no.
        log.warning("asking a budget failed with %s", type(error).__name__)
        return self._in_doubt(ask.new, Trouble("unavailable", type(error).__name__))

    def _job(self, ask: Ask, wanted: Sequence[Hold]) -> Job[Answer]:
        work = functools.partial(self._decide, ask, wanted)
        return self.keeper.desk.submit(work, functools.partial(self._undo, ask.call_id))

    def _undo(self, call_id: UUID, answer: Answer) -> None:
        if answer.holds:
            self.keeper.attempt(holds.void(call_id))

    def _decide(self, ask: Ask, wanted: Sequence[Hold]) -> Answer:
        lasting = [hold for hold in wanted if hold.account.budget.period != "call"]
        try:
            if ask.left:
                self.keeper.attempt(holds.void(ask.call_id, ask.left))
            if holds.too_much_alone(wanted) is not None:
                with suppress(WriteError):  # it is too much by what is known
                    wanted = self._lifted(wanted)
            refusal = holds.too_much_alone(wanted)
            if refusal is None and lasting:
                refusal = self._take(ask, lasting)
        except WriteError as error:
            answer = self._in_doubt(ask.new, self.keeper.trouble(error))
            if error.unanswered and answer.error is not None:  # what may be held all the same is held for nothing
                self.keeper.later(holds.void(ask.call_id, {hold.account.id for hold in lasting}))
            return replace(answer, holds=error.unanswered and answer.error is None)
        except Exception as error:
            return self._failed(ask, error)
        self.keeper.back()
        self.keeper.sweep_if_due()
        if refusal is None:
            return Answer(holds=bool(lasting))
        self.keeper.later(holds.count_blocked(refusal.hold.account, refusal.hold.limit))
        return Answer(exceeded(refusal.hold, refusal.standing, "admit", self.zone))

    def _asked(self, ask: Ask) -> list[tuple[Account, Decimal]]:
        """What to hold of each account, as stored.

        :raises BudgetExceededError: it cannot be said, and the budget does not let such a call pass
        """
        request = estimate.read(ask.content, ask.length)
        asked = []
        for account in ask.new:
            budget = account.budget
            amount = self._amount(budget, ask, request)
            if amount is not None:
                asked.append((account, stored(amount, budget.scale, up=True)))
                continue
            self.keeper.count(UNPRICED_CALLS)
            if budget.unpriced != "allow":
                limit = None if budget.limit is None else stored(budget.limit, budget.scale)
                self.keeper.later(holds.count_blocked(account, limit))
                raise unpriced(account, ask.subject)
            self._warn_unpriced(ask, "is allowed without a hold")
        return asked

    def _amount(self, budget: Budget, ask: Ask, request: estimate.Request) -> Decimal | None:
        if budget.unit == "calls":
            return Decimal(1)
        call, book = ask.as_recorded, self._book()
        provider = call.provider
        most = book.max_output(provider, call.model, call.occurred_at) or self._default_output
        tokens = estimate.tokens_of(request, ask.operation, budget.allowance, most, budget.estimate == "expected")
        if budget.unit == "tokens":
            return Decimal(tokens.total)
        cost = estimate.cost_of(book, call, tokens, request, budget.currency)
        if cost is not None or budget.unpriced != "dearest":
            return cost
        key = provider, budget.currency
        if key not in self._dearest:
            self._dearest[key] = estimate.dearest_model(book, provider, call.occurred_at, budget.currency)
        if (dearest := self._dearest[key]) is None:
            return None
        self.keeper.count(UNPRICED_CALLS)
        self._warn_unpriced(ask, f"is held at the price of {dearest}")
        return estimate.cost_of(book, replace(call, model=dearest), tokens, request, budget.currency)

    def _warn_unpriced(self, ask: Ask, what: str) -> None:
        name = f"{ask.subject.provider}/{(ask.subject.models or ('an unknown model',))[0]}"[:200]
        if name not in self._warned and len(self._warned) < 1000:
            self._warned.add(name)
            log.warning("no price for %s, which a budget caps: it %s", name.encode("unicode_escape").decode(), what)

    def _take(self, ask: Ask, asked: Sequence[Hold]) -> holds.Refusal | None:
        now = datetime.now(UTC)
        refusal = self.keeper.run(holds.take(ask.call_id, asked, now), patience=TRANSACTION_SECONDS)
        if refusal is None:
            return None
        lifted = self._lifted(asked)
        if lifted == list(asked):
            return refusal
        return self.keeper.run(holds.take(ask.call_id, lifted, now), patience=TRANSACTION_SECONDS)

    def _lifted(self, wanted: Sequence[Hold]) -> list[Hold]:
        """The same by the lifts that are in force now: done before a call is refused, so that they work at once."""
        self.keeper.read(self.limits.load_lifts)
        return [replace(hold, limit=self.limits.lifted(hold.account, hold.limit)) for hold in wanted]

    # When the database does not answer.

    def _in_doubt(self, accounts: Sequence[Account], trouble: Trouble) -> Answer:
        for account in accounts:
            action = account.budget.on_busy if trouble.stage == "busy" else account.budget.on_error
            if action == "block":
                self.keeper.count(UNAVAILABLE)
                return Answer(not_checked(account, trouble, self.zone))
        self.keeper.count(ALLOWED)
        return Answer()

    # After a call.

    def void(self, call_id: UUID) -> None:
        """Give back what is held for a call that costs nothing. Does not wait."""
        self.keeper.later(holds.void(call_id))

    def used_up(self, subject: Subject, stage: str, call_id: UUID | None = None) -> BudgetExceededError | None:
        """Which budget is used up, once what this process has recorded is written.

        :param stage: ``check`` or ``enforce`` for every budget that blocks or raises, ``record`` for those that raise after
            a watched call
        :param call_id: the call that was recorded, which may have cost more than a call may
        """
        accounts = self._accounts_after(stage, subject, call_id)
        if not accounts:
            return None
        until, deadline = _deadlines()
        look = functools.partial(self._look, accounts, stage, call_id, self._questions.told(accounts, until))
        try:
            return look() if self.keeper.inline else self.keeper.desk.submit(look).wait(deadline - time.monotonic())
        except LateError:
            return self._unseen(accounts, stage, _LATE)

    async def used_up_async(self, subject: Subject, stage: str, call_id: UUID | None = None) -> BudgetExceededError | None:
        """The same for a coroutine."""
        accounts = self._accounts_after(stage, subject, call_id)
        if not accounts:
            return None
        until, deadline = _deadlines()
        look = functools.partial(self._look, accounts, stage, call_id, await self._questions.told_async(accounts, until))
        try:
            return (
                look() if self.keeper.inline else await self.keeper.desk.submit(look).wait_async(deadline - time.monotonic())
            )
        except LateError:
            return self._unseen(accounts, stage, _LATE)

    def _accounts_after(self, stage: str, subject: Subject, call_id: UUID | None) -> list[Account]:
        budgets = self._raising if stage == "record" else self._strict
        found = accounts_of(budgets, subject, self.zone)
        return [account for account in found if account.budget.period != "call" or call_id is not None]

    def _look(
        self, accounts: Sequence[Account], stage: str, call_id: UUID | None, told: Mapping[UUID, Told]
    ) -> BudgetExceededError | None:
        self.keeper.write(TRANSACTION_SECONDS)

        def read(connection: sa.Connection) -> dict[UUID, Standing | None]:
            self.limits.load_lifts(connection)
            return {account.id: standing_after(connection, account, call_id) for account in accounts}

        try:
            standings = self.keeper.read(read)
        except WriteError as error:
            return self._unseen(accounts, stage, self.keeper.trouble(error))
        for account in accounts:
            limit, found = told.get(account.id, _SLOW), standings[account.id]
            if isinstance(limit, LimitError):
                if (unseen := self._unseen([account], stage, Trouble("limit", f"it {limit}"))) is not None:
                    return unseen
                continue
            limit = self.limits.lifted(account, limit)
            if limit is None or found is None or found.total < limit:
                continue
            if account.budget.period != "call" or found.total > limit:  # one call may cost what a call may
                return exceeded(Hold(account, holds.ZERO, limit), found, stage.replace("enforce", "record"), self.zone)
        return None

    def _unseen(self, accounts: Sequence[Account], stage: str, trouble: Trouble) -> BudgetExceededError | None:
        """A budget that blocks fails closed. After a call there is nothing left to block."""
        for account in accounts:
            action = account.budget.on_busy if trouble.stage == "busy" else account.budget.on_error
            if stage == "check" and account.budget.blocks and action == "block":
                self.keeper.count(UNAVAILABLE)
                return not_checked(account, trouble, self.zone)
        self.keeper.count(ALLOWED)
        return None

    def _moved(self, crossings: Sequence[Crossing], unasked: Sequence[Measured]) -> None:
        """Calls are in the ledger. Whoever wrote them has work to do, and holds locks: the rest is done elsewhere."""
        if crossings:
            self._elsewhere(self.keeper.desk, functools.partial(self._tell, crossings))
        # Functions that never come back must not fill the memory. What is left out is measured when it moves again.
        if unasked and self.keeper.asker.waiting < _MOST_WAITING:
            self._elsewhere(self.keeper.asker, functools.partial(self._ask_limits, unasked))

    def _expired(self, ids: Collection[UUID]) -> None:
        """What was held is unresolved, which counts for thresholds."""
        measured = [Measured(account) for account in self.accounts(ids) if account.budget.warn_at]
        known = self.limits.known(found.account for found in measured)
        limits = {key: limit for key, limit in known.items() if limit is not None}
        if limits:
            self._measure([found for found in measured if found.account.id in limits], limits)
        self._moved((), [found for found in measured if found.account.id not in known])

    def _elsewhere(self, desk: Desk, work: Callable[[], None]) -> None:
        if self.keeper.inline:
            work()
        else:
            desk.submit(work)

    def _tell(self, crossings: Sequence[Crossing]) -> None:
        for crossing in crossings:
            self._crossed(crossing)

    def _ask_limits(self, unasked: Sequence[Measured]) -> None:
        if limits := self.limits.asked(found.account for found in unasked):
            self._elsewhere(self.keeper.desk, functools.partial(self._measure, unasked, limits))

    def _measure(self, measured: Sequence[Measured], limits: Mapping[UUID, Decimal]) -> None:
        work = functools.partial(self.settling.measure, measured=measured, limits=limits)
        try:
            crossings = self.keeper.run(work)
        except WriteError:
            return  # whatever moves these accounts next measures them again
        self._tell(crossings)
