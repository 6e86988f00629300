"""The budgets of one app: asked before a call, told after it."""

from __future__ import annotations

import functools
import logging
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from decimal import Decimal
from typing import Any, Final, TypeVar
from uuid import UUID
from zoneinfo import ZoneInfo

import sqlalchemy as sa
from sqlalchemy.orm import Session

from flask_llm_cost.budgets import estimate, holds
from flask_llm_cost.budgets.accounts import Account, Subject, Verdict, accounts_of, judge
from flask_llm_cost.budgets.declaration import Budget
from flask_llm_cost.budgets.desk import Desk, Job, LateError
from flask_llm_cost.budgets.holds import Hold, Standing, stored
from flask_llm_cost.budgets.limits import LimitError, Limits, active_lifts
from flask_llm_cost.budgets.reading import BudgetStatus, OpenHold, open_holds, status_of, statuses
from flask_llm_cost.budgets.refusals import Trouble, exceeded, not_checked, unpriced
from flask_llm_cost.budgets.settling import Crossing, Settling
from flask_llm_cost.errors import BudgetExceededError
from flask_llm_cost.ledger import lifecycle
from flask_llm_cost.ledger.engine import OwnEngine
from flask_llm_cost.ledger.faults import Fault, fault_of, name_of
from flask_llm_cost.ledger.models import BudgetPeriod
from flask_llm_cost.ledger.models import Counter as Counters
from flask_llm_cost.ledger.reading import reading
from flask_llm_cost.ledger.transaction import Transactions, WriteError
from flask_llm_cost.pricing import PriceBook

logger = logging.getLogger("flask_llm_cost")

_T = TypeVar("_T")

#: How long a call waits for the database in all, and how long a transaction may take of that.
PATIENCE_SECONDS: Final = 0.5
_TRANSACTION_SECONDS: Final = 0.4
_BUSY_MS: Final = 200
#: For how long nobody asks a database that did not answer.
_AWAY_SECONDS: Final = 1.0
_LONGEST_SWEEP_SECONDS: Final = 30.0
_IDLE_CONNECTION_SECONDS: Final = 30.0

UNAVAILABLE, ALLOWED, UNPRICED_CALLS = "budget_unavailable", "budget_unavailable_allowed", "budget_unpriced"


@dataclass(frozen=True, slots=True)
class Ask:
    """A call that asks whether it may be sent.

    :param content: its body; ``None`` where it is sent piece by piece
    :param length: the length that is announced for it then
    """

    call_id: UUID
    subject: Subject
    operation: str
    content: bytes | None
    length: int
    accounts: tuple[Account, ...]


@dataclass(frozen=True, slots=True)
class Answer:
    """Whether it may.

    :param holds: whether something is held for it, that must be settled or given back
    """

    error: BudgetExceededError | None = None
    holds: bool = False


class Budgets:
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
        self.declared = tuple(budgets)
        self.zone = zone
        self.limits = Limits(functions, context)
        self.settling = Settling(self.declared, zone, self.limits, self._tell)
        self._blocking = tuple(budget for budget in budgets if budget.blocks)
        self._raising = tuple(budget for budget in budgets if budget.action == "raise")
        self._strict = self._blocking + self._raising
        self._default_output = default_output
        self._book = book
        self._flush = flush
        self._crossed = crossed
        self._engine = OwnEngine(engine)
        self._read_engine = OwnEngine(read_engine)
        self._transactions = Transactions(self._engine, busy_ms=_BUSY_MS)
        self._desk = Desk()
        self._lock = threading.Lock()
        #: What could not be done while the database was away, and is tried again.
        self._undone: list[Callable[[sa.Connection], None]] = []
        self._counts: Counter[str] = Counter()
        self._away_until = float("-inf")
        self._away_reason: Trouble | None = None
        shortest = min((budget.hold_seconds for budget in self._blocking), default=0)
        self._sweep_seconds = min(_LONGEST_SWEEP_SECONDS, shortest / 4)
        self._sweep_at = float("-inf")
        self._warned: set[str] = set()
        self._dearest: dict[str, str | None] = {}
        lifecycle.ledgers.add(self)

    # Before a call.

    def ask(
        self,
        call_id: UUID,
        subject: Subject,
        operation: str,
        content: bytes | None,
        length: int,
    ) -> Ask | None:
        """What a call has to ask; ``None`` where no budget that blocks applies to it."""
        accounts = accounts_of(self._blocking, subject, self.zone) if self._blocking else ()
        return Ask(call_id, subject, operation, content, length, tuple(accounts)) if accounts else None

    def authorise(self, ask: Ask) -> Answer:
        """Whether a call may be sent; then what it may cost is held. Takes half a second at most."""
        if (known := self._known(ask)) is not None:
            return known
        if self._inline:
            return self._decide(ask)
        try:
            return self._job(ask).wait(PATIENCE_SECONDS)
        except LateError:
            return self._in_doubt(ask, self._stay_away(Trouble("unavailable", "it did not answer in time")))

    async def authorise_async(self, ask: Ask) -> Answer:
        """The same for a coroutine: the event loop goes on meanwhile."""
        if (known := self._known(ask)) is not None:
            return known
        if self._inline:
            return self._decide(ask)
        try:
            return await self._job(ask).wait_async(PATIENCE_SECONDS)
        except LateError:
            return self._in_doubt(ask, self._stay_away(Trouble("unavailable", "it did not answer in time")))

    def _known(self, ask: Ask) -> Answer | None:
        """The answer while the database is known to be away: not every call has to find that out."""
        if self._away_reason is not None and time.monotonic() < self._away_until:
            return self._in_doubt(ask, self._away_reason)
        return None

    def _job(self, ask: Ask) -> Job[Answer]:
        return self._desk.submit(functools.partial(self._decide, ask), functools.partial(self._undo, ask.call_id))

    def _undo(self, call_id: UUID, answer: Answer) -> None:
        if answer.holds:
            self._try(holds.void(call_id))

    @property
    def _inline(self) -> bool:
        """Whether the database is this process's own memory, which is the thread's that made it."""
        try:
            return self._engine.in_memory
        except Exception:
            return False

    def _decide(self, ask: Ask) -> Answer:
        try:
            asked = self._asked(ask)
            if isinstance(asked, BudgetExceededError):
                return Answer(asked)
            if not asked:
                return Answer()
            refusal = self._take(ask, asked)
        except WriteError as error:
            return self._in_doubt(ask, self._trouble(error))
        except LimitError as error:
            return self._in_doubt(ask, Trouble("unavailable", f"its limit is not known: the function {error}"))
        except Exception as error:  # ours: it must not reach the app as anything else than a budget that said no
            logger.warning("asking a budget failed with %s", type(error).__name__)
            return self._in_doubt(ask, Trouble("unavailable", type(error).__name__))
        self._away_reason = None
        self._sweep_if_due()
        if refusal is None:
            return Answer(holds=True)
        self._later(holds.count_blocked(refusal.hold.account, refusal.hold.limit))
        return Answer(exceeded(refusal.hold, refusal.standing, "admit", self.zone))

    def _asked(self, ask: Ask) -> list[Hold] | BudgetExceededError:
        """What to hold of each account, or why none of it need be tried."""
        request = estimate.read(ask.content, ask.length)
        asked: list[Hold] = []
        for account in ask.accounts:
            budget = account.budget
            amount = self._amount(budget, ask, request)
            if amount is None:
                self._count(UNPRICED_CALLS)
                if budget.unpriced == "allow":
                    self._warn_unpriced(ask, "is allowed without a hold")
                    continue
                self._later(holds.count_blocked(account, self.limits.remembered(account)))
                return unpriced(account, ask.subject)
            hold = Hold(account, stored(amount, budget.scale, up=True), self.limits.effective(account))
            if budget.period != "call":
                asked.append(hold)
            elif hold.limit is not None and hold.amount > hold.limit:
                self._later(holds.count_blocked(account, hold.limit))
                return exceeded(hold, Standing(holds.ZERO, holds.ZERO, holds.ZERO), "admit", self.zone)
        return asked

    def _amount(self, budget: Budget, ask: Ask, request: estimate.Request) -> Decimal | None:
        if budget.unit == "calls":
            return Decimal(1)
        tokens = estimate.tokens_of(
            request, ask.operation, budget.allowance, self._default_output, budget.estimate == "expected"
        )
        if budget.unit == "tokens":
            return Decimal(tokens.total)
        subject, book = ask.subject, self._book()
        provider, model = subject.provider or "", subject.models[0] if subject.models else None
        cost = estimate.cost_of(book, provider, model, tokens, request, subject.at)
        if cost is not None or budget.unpriced != "dearest":
            return cost
        if provider not in self._dearest:
            self._dearest[provider] = estimate.dearest_model(book, provider, subject.at)
        dearest = self._dearest[provider]
        if dearest is None:
            return None
        self._count(UNPRICED_CALLS)
        self._warn_unpriced(ask, f"is held at the price of {dearest}")
        return estimate.cost_of(book, provider, dearest, tokens, request, subject.at)

    def _warn_unpriced(self, ask: Ask, what: str) -> None:
        name = f"{ask.subject.provider}/{(ask.subject.models or ('an unknown model',))[0]}"[:200]
        if name not in self._warned and len(self._warned) < 1000:
            self._warned.add(name)
            logger.warning("no price for %s, which a budget caps: it %s", name.encode("unicode_escape").decode(), what)

    def _take(self, ask: Ask, asked: Sequence[Hold]) -> holds.Refusal | None:
        now = datetime.now(UTC)
        refusal = self._transactions.run(holds.take(ask.call_id, asked, now), patience=_TRANSACTION_SECONDS)
        if refusal is None:
            return None
        self.read(self.limits.load_lifts)
        lifted = [Hold(hold.account, hold.amount, self.limits.effective(hold.account)) for hold in asked]
        if lifted == list(asked):
            return refusal
        return self._transactions.run(holds.take(ask.call_id, lifted, now), patience=_TRANSACTION_SECONDS)

    # When the database does not answer.

    def _trouble(self, error: WriteError) -> Trouble:
        if error.fault is Fault.RETRY and self._engine.url.get_backend_name() == "sqlite":
            return Trouble("busy", error.name)
        trouble = Trouble("schema" if error.fault is Fault.SCHEMA else "unavailable", error.name)
        return self._stay_away(trouble) if error.fault is Fault.AWAY else trouble

    def _stay_away(self, trouble: Trouble) -> Trouble:
        self._away_reason, self._away_until = trouble, time.monotonic() + _AWAY_SECONDS
        return trouble

    def _in_doubt(self, ask: Ask, trouble: Trouble) -> Answer:
        for account in ask.accounts:
            action = account.budget.on_busy if trouble.stage == "busy" else account.budget.on_error
            if action == "block":
                self._count(UNAVAILABLE)
                return Answer(not_checked(account, trouble, self.zone))
        self._count(ALLOWED)
        return Answer()

    def _count(self, name: str) -> None:
        with self._lock:
            self._counts[name] += 1

    # After a call.

    def void(self, call_id: UUID) -> None:
        """Give back what is held for a call that costs nothing. Does not wait."""
        self._later(holds.void(call_id))

    def _later(self, work: Callable[[sa.Connection], None]) -> None:
        if self._inline:
            self._try(work)
        else:
            self._desk.submit(functools.partial(self._try, work))

    def _try(self, work: Callable[[sa.Connection], None]) -> None:
        """Do it, or keep it until the database is there again."""
        try:
            self._transactions.run(work, patience=_TRANSACTION_SECONDS)
        except WriteError:
            with self._lock:
                self._undone.append(work)

    def raises(self, subject: Subject) -> bool:
        """Whether a budget applies that raises once its limit is reached."""
        return bool(self._raising) and bool(accounts_of(self._raising, subject, self.zone))

    def used_up(self, subject: Subject, stage: str) -> BudgetExceededError | None:
        """Which budget that blocks or raises is used up, once what this process has recorded is written.

        :param stage: ``check``, or ``record`` for what is asked after a call: then budgets that only raise are asked, too
        """
        accounts = accounts_of(self._strict, subject, self.zone)
        accounts = [account for account in accounts if account.budget.period != "call"]
        if not accounts:
            return None
        look = functools.partial(self._look, accounts, stage)
        try:
            return look() if self._inline else self._desk.submit(look).wait(PATIENCE_SECONDS)
        except LateError:
            return self._unseen(accounts, stage, Trouble("unavailable", "it did not answer in time"))

    async def used_up_async(self, subject: Subject, stage: str) -> BudgetExceededError | None:
        """The same for a coroutine."""
        accounts = accounts_of(self._raising, subject, self.zone)
        accounts = [account for account in accounts if account.budget.period != "call"]
        if not accounts:
            return None
        look = functools.partial(self._look, accounts, stage)
        try:
            return look() if self._inline else await self._desk.submit(look).wait_async(PATIENCE_SECONDS)
        except LateError:
            return self._unseen(accounts, stage, Trouble("unavailable", "it did not answer in time"))

    def _look(self, accounts: Sequence[Account], stage: str) -> BudgetExceededError | None:
        self._flush(_TRANSACTION_SECONDS)

        def read(connection: sa.Connection) -> dict[UUID, Standing | None]:
            self.limits.load_lifts(connection)
            return {account.id: holds.standing(connection, account.id) for account in accounts}

        try:
            standings = self.read(read)
            for account in accounts:
                limit, found = self.limits.effective(account), standings[account.id]
                if limit is not None and found is not None and found.total >= limit:
                    return exceeded(Hold(account, holds.ZERO, limit), found, stage, self.zone)
        except WriteError as error:
            return self._unseen(accounts, stage, self._trouble(error))
        except LimitError as error:
            return self._unseen(accounts, stage, Trouble("unavailable", f"its limit is not known: the function {error}"))
        return None

    def _unseen(self, accounts: Sequence[Account], stage: str, trouble: Trouble) -> BudgetExceededError | None:
        """A budget that blocks fails closed. After a call there is nothing left to block."""
        for account in accounts:
            action = account.budget.on_busy if trouble.stage == "busy" else account.budget.on_error
            if stage == "check" and account.budget.blocks and action == "block":
                self._count(UNAVAILABLE)
                return not_checked(account, trouble, self.zone)
        self._count(ALLOWED)
        return None

    def _tell(self, crossings: Sequence[Crossing]) -> None:
        def tell() -> None:
            for crossing in crossings:
                self._crossed(crossing)

        if self._inline:
            tell()
        else:
            # Whoever wrote the calls has work to do, and holds locks.
            self._desk.submit(tell)

    # Housekeeping.

    def _sweep_if_due(self) -> None:
        if time.monotonic() >= self._sweep_at:
            self._sweep_at = time.monotonic() + self._sweep_seconds
            if not self._inline:
                self._desk.submit(self._sweep_quietly)

    def _sweep_quietly(self) -> None:
        try:
            self.sweep()
        except WriteError:
            return  # the next one does it

    def sweep(self) -> None:
        """Count as unresolved what nobody has heard of for too long, and do what could not be done before.

        :raises WriteError: it could not be done
        """
        with self._lock:
            undone, self._undone = self._undone, []
            counts, self._counts = self._counts, Counter()
        for work in undone:
            self._try(work)
        try:
            if counts:
                self._transactions.run(functools.partial(holds.count, counts), patience=1.0)
        except WriteError:
            with self._lock:
                self._counts += counts
            raise
        for tidy in (holds.expire, holds.forget):
            while self._transactions.run(tidy, patience=1.0) == holds.BATCH:
                pass

    def flush(self, seconds: float) -> bool:
        """Whether all that was to be given back or told is done within *seconds*."""
        deadline = time.monotonic() + seconds
        if self._undone or self._counts:
            if self._inline:
                self._sweep_quietly()
            else:
                self._desk.submit(self._sweep_quietly)
        return self._desk.settle(max(0.0, deadline - time.monotonic())) and not self._undone

    def run(self, work: Callable[[sa.Connection], _T]) -> _T:
        """A transaction for a command.

        :raises WriteError: it could not be done
        """
        return self._transactions.run(work, patience=5.0)

    def read(self, work: Callable[[sa.Connection], _T]) -> _T:
        """Look at what is committed, without a lock.

        :raises WriteError: it could not be read
        """
        try:
            with self._engine.connect() as connection:
                return work(connection)
        except Exception as error:
            raise WriteError(fault_of(error), name_of(error)) from None

    def statuses(self, scope: str | None = None, *, at: datetime | None = None, most: int = 200) -> list[BudgetStatus]:
        """How each budget stands in the current period, the most used first.

        :param scope: only this one, ``tenant_id=42``
        :param at: another time, whose period counts
        :param most: rows of each budget
        :raises SchemaMissingError: the tables are not there yet
        """
        with self.session() as session:
            return statuses(session, self.declared, self.limits, self.zone, scope=scope, at=at, most=most)

    def status(self, account: Account) -> BudgetStatus:
        """How one account stands.

        :raises SchemaMissingError: the tables are not there yet
        """
        with self.session() as session:
            lifts = {(lift.budget, lift.scope): lift for lift in active_lifts(session)}
            row = session.get(BudgetPeriod, account.id)
            return status_of(account, row, self.limits, lifts, datetime.now(UTC))

    @property
    def on_sqlite(self) -> bool:
        return self._engine.url.get_backend_name() == "sqlite"

    def counted(self, name: str) -> int:
        """How often something has happened, in all processes."""
        with self.session() as session:
            counter = session.get(Counters, name)
            return counter.value if counter is not None else 0

    def open_holds(self, scope: str | None = None, *, most: int = 200) -> list[OpenHold]:
        """What is held now, and what is unresolved, the oldest first.

        :param scope: only this one, ``tenant_id=42``
        :raises SchemaMissingError: the tables are not there yet
        """
        with self.session() as session:
            return open_holds(session, self.declared, scope=scope, most=most)

    @contextmanager
    def session(self) -> Iterator[Session]:
        """For reading, on the bind that is read. What has expired is counted as such by somebody else, soon."""
        if self._inline:
            self._flush(0.0)
        self._sweep_if_due()
        with reading(self._read_engine.get()) as session:
            yield session

    def explain(self, subject: Subject) -> list[Verdict]:
        """Which budgets apply to a call, and why, in the order of their declaration."""
        return [judge(budget, subject) for budget in self.declared]

    # Forks, and the end of the process: called by the ledger's hooks.

    def before_fork(self, patience: float) -> None:
        self._desk.pause(max(0.0, min(patience, PATIENCE_SECONDS)))

    def after_fork_in_parent(self) -> None:
        self._desk.resume()

    def after_fork_in_child(self) -> None:
        self._desk = Desk()
        self._lock = threading.Lock()
        self._undone, self._counts = [], Counter()
        self._engine.abandon()
        self._read_engine.abandon()

    def close_at_exit(self, patience: float) -> None:
        self.close(max(0.0, min(patience, 1.0)))

    def close(self, patience: float = 1.0) -> None:
        """Do what waits, for at most *patience* seconds, and close connections. The rest is unresolved when it expires."""
        self.flush(patience)
        self._engine.dispose()
        self._read_engine.dispose()
