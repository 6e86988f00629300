"""What budgets have of one app's database: connections, threads that wait for them, and what is still to be done."""

from __future__ import annotations

import functools
import threading
import time
from collections import Counter
from collections.abc import Callable, Collection, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Final, TypeVar
from uuid import UUID

import sqlalchemy as sa
from sqlalchemy.orm import Session

from flask_llm_cost.budgets import holds
from flask_llm_cost.budgets.desk import Desk
from flask_llm_cost.budgets.refusals import Trouble
from flask_llm_cost.ledger import lifecycle
from flask_llm_cost.ledger.engine import OwnEngine
from flask_llm_cost.ledger.faults import Fault, fault_of, name_of
from flask_llm_cost.ledger.models import Counter as Counters
from flask_llm_cost.ledger.read_session import READING, limit_reading, reading
from flask_llm_cost.ledger.transaction import Transactions, WriteError

_T = TypeVar("_T")

#: How long a call waits for the database in all, and how long a transaction may take of that.
PATIENCE_SECONDS: Final = 0.5
TRANSACTION_SECONDS: Final = 0.4
_BUSY_MS: Final = 200
#: For how long nobody asks a database that did not answer.
_AWAY_SECONDS: Final = 1.0
_SWEEP_SECONDS: Final = 30.0
_IDLE_CONNECTION_SECONDS: Final = 30.0


class Keeper:
    """Opens no connection and starts no thread before it is needed.

    :param engine: gives the host's engine of the ledger's bind
    :param read_engine: the same for what is only shown
    :param write: writes what waits in this process: whether all is written after so many seconds
    :param shortest: seconds after which a hold expires, at the earliest
    :param expired: told of accounts in which holds have become unresolved
    """

    def __init__(
        self,
        engine: Callable[[], sa.Engine],
        read_engine: Callable[[], sa.Engine],
        write: Callable[[float], bool],
        shortest: float,
        expired: Callable[[Collection[UUID]], None],
    ) -> None:
        self.write = write
        self._expired = expired
        self._desk, self._functions = Desk(), Desk()
        #: Where the app's functions are asked that no call waits for: one at a time, so that slow ones keep no call waiting.
        self.asker = Desk(1)
        self._engine = OwnEngine(engine)
        self._read_engine = OwnEngine(read_engine)
        self._transactions = Transactions(self._engine, busy_ms=_BUSY_MS)
        self._lock = threading.Lock()
        #: SQLite has one writer: those of this process take turns, instead of waiting for each other with growing pauses.
        self._turn = threading.Lock()
        #: What could not be done while the database was away, and is tried again.
        self._undone: list[Callable[[sa.Connection], None]] = []
        self._counts: Counter[str] = Counter()
        self._away_until = float("-inf")
        self._away_reason: Trouble | None = None
        self._sweep_seconds = min(_SWEEP_SECONDS, shortest / 4)
        self._sweep_at = float("-inf")
        lifecycle.ledgers.add(self)

    @property
    def desk(self) -> Desk:
        """Where it is asked and told what a call does not have to wait for, or not for long."""
        lifecycle.notice_fork()  # threads stay behind in the parent
        return self._desk

    @property
    def functions(self) -> Desk:
        """Where the app's functions are asked that a call waits for: apart, so that it waits for no others than its own."""
        lifecycle.notice_fork()
        return self._functions

    @property
    def inline(self) -> bool:
        """Whether the database is this process's own memory, which is the thread's that made it."""
        try:
            return self._engine.in_memory
        except Exception:
            return False

    def trouble(self, error: WriteError) -> Trouble:
        if error.fault is Fault.RETRY and self._engine.url.get_backend_name() == "sqlite":
            return Trouble("busy", error.name)
        trouble = Trouble("schema" if error.fault is Fault.SCHEMA else "unavailable", error.name)
        return self.stay_away(trouble) if error.fault is Fault.AWAY else trouble

    def stay_away(self, trouble: Trouble) -> Trouble:
        self._away_reason, self._away_until = trouble, time.monotonic() + _AWAY_SECONDS
        return trouble

    def count(self, name: str) -> None:
        with self._lock:
            self._counts[name] += 1

    def later(self, work: Callable[[sa.Connection], None]) -> None:
        if self.inline:
            self.attempt(work)
        else:
            self.desk.submit(functools.partial(self.attempt, work))

    def attempt(self, work: Callable[[sa.Connection], None]) -> None:
        """Do it, or keep it until the database is there again."""
        try:
            self._run(work, patience=TRANSACTION_SECONDS)
        except WriteError:
            with self._lock:
                self._undone.append(work)

    def _run(self, work: Callable[[sa.Connection], _T], patience: float) -> _T:
        turn: AbstractContextManager[object] = self._turn if self.on_sqlite and not self.inline else nullcontext()
        with turn:
            return self._transactions.run(work, patience=patience)

    @property
    def away(self) -> Trouble | None:
        """Why the database was away a moment ago: not every call has to find that out."""
        return self._away_reason if time.monotonic() < self._away_until else None

    def back(self) -> None:
        """It has answered."""
        self._away_reason = None

    # Housekeeping.

    def sweep_if_due(self) -> None:
        if time.monotonic() >= self._sweep_at:
            self._sweep_at = time.monotonic() + self._sweep_seconds
            if not self.inline:
                self.desk.submit(self._sweep_quietly)

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
            self.attempt(work)
        try:
            if counts:
                self._run(functools.partial(holds.count, counts), patience=1.0)
        except WriteError:
            with self._lock:
                self._counts += counts
            raise
        self._engine.close_idle(_IDLE_CONNECTION_SECONDS)
        more = True
        while more:
            moved = self._run(holds.expire, patience=1.0)
            more = len(moved) == holds.BATCH
            if moved:
                self._expired(set(moved))
        while self._run(holds.forget, patience=1.0) == holds.BATCH:
            pass

    def flush(self, seconds: float) -> bool:
        """Whether all that was to be given back or told is done within *seconds*."""
        deadline = time.monotonic() + seconds
        if self._undone or self._counts:
            if self.inline:
                self._sweep_quietly()
            else:
                self.desk.submit(self._sweep_quietly)
        done = self.desk.settle(max(0.0, deadline - time.monotonic())) and not self._undone
        # The app's functions may take longer. What they say is measured then, and is no part of what was recorded.
        for desk in (self._functions, self.asker, self.desk):
            desk.settle(max(0.0, deadline - time.monotonic()))
        return done

    def run(self, work: Callable[[sa.Connection], _T], patience: float = 5.0) -> _T:
        """Do *work* in a transaction.

        :raises WriteError: it could not be done
        """
        return self._run(work, patience)

    def read(self, work: Callable[[sa.Connection], _T]) -> _T:
        """Look at what is committed, without a lock.

        :raises WriteError: it could not be read
        """
        try:
            with self._engine.connect() as connection:
                if not self.on_sqlite:
                    limit_reading(connection.execution_options(isolation_level=READING))
                return work(connection)
        except Exception as error:
            raise WriteError(fault_of(error), name_of(error)) from None

    @property
    def on_sqlite(self) -> bool:
        return self._engine.url.get_backend_name() == "sqlite"

    def counted(self, name: str) -> int:
        """How often something has happened, in all processes."""
        with self.session() as session:
            counter = session.get(Counters, name)
            return counter.value if counter is not None else 0

    @contextmanager
    def session(self) -> Iterator[Session]:
        """For reading, on the bind that is read. What has expired is counted as such by somebody else, soon."""
        if self.inline:
            self.write(0.0)
        self.sweep_if_due()
        with reading(self._read_engine.get()) as session:
            yield session

    # Forks, and the end of the process: called by the ledger's hooks.

    def before_fork(self, patience: float) -> None:
        for desk in (self._functions, self.asker):
            desk.pause(0.0)  # what they run is the app's
        self._desk.pause(max(0.0, min(patience, PATIENCE_SECONDS)))

    def after_fork_in_parent(self) -> None:
        for desk in (self._desk, self._functions, self.asker):
            desk.resume()

    def after_fork_in_child(self) -> None:
        self._desk, self._functions, self.asker = Desk(), Desk(), Desk(1)
        self._lock, self._turn = threading.Lock(), threading.Lock()
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
