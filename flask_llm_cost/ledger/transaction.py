"""Transactions of ours: they wait for nobody for long, and are tried again when somebody else was in the way."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from decimal import localcontext
from typing import Any, Final, TypeVar

import sqlalchemy as sa

from flask_llm_cost.chance import CHANCE
from flask_llm_cost.errors import LedgerError, SchemaMissingError
from flask_llm_cost.ledger.change import DoFirst
from flask_llm_cost.ledger.columns import USUAL
from flask_llm_cost.ledger.engine import OwnEngine
from flask_llm_cost.ledger.faults import Fault, fault_of, is_given_up, is_read_only, name_of

#: How long one statement may wait for a lock, and take in all, on a server.
LOCK_MS: Final = 1_000
STATEMENT_MS: Final = 20_000

_TRIES: Final = 8
#: Of work that steps ask to be done first, so that two that undo each other come to an end.
_MOST_FIRST: Final = 20

_T = TypeVar("_T")


class WriteError(Exception):
    """Something could not be written, and nothing of it is in the database, unless *unanswered*.

    :param name: class and SQLSTATE of what went wrong
    :param unanswered: the database went away at the commit, so that it may have been done
    """

    def __init__(self, fault: Fault, name: str, *, unanswered: bool = False) -> None:
        self.fault = fault
        self.name = name
        self.unanswered = unanswered
        super().__init__(name)


def not_written(error: WriteError) -> LedgerError:
    """What a person is told who asked for a change that could not be made."""
    if error.fault is Fault.SCHEMA:
        return SchemaMissingError()
    return LedgerError(
        f"the ledger could not be changed ({error.name}); what was done before stays, run it again for the rest"
    )


class ConflictError(Exception):
    """Somebody else wrote, after we looked, what this transaction was going to write: it is tried again."""


class Transactions:
    """Runs transactions on connections of our own.

    :param engine: where to
    :param busy_ms: how long a statement waits for somebody else's lock on SQLite
    """

    def __init__(self, engine: OwnEngine, *, busy_ms: int = 200) -> None:
        self.engine = engine
        #: For how many seconds the last one kept all others from writing: on SQLite, 0 on servers, whose locks are of rows.
        self.held = 0.0
        self._busy_ms = busy_ms

    def run(
        self,
        work: Callable[[sa.Connection], _T],
        *,
        prepare: Callable[[sa.Connection], None] = lambda connection: None,
        patience: float | None = None,
        rehearse: bool = False,
    ) -> _T:
        """Do *work* in a transaction, and commit it. It is called again when somebody else was in the way.

        :param prepare: what takes time and needs the connection's dialect only: done before, so that nobody waits for it
        :param patience: seconds after which somebody else's lock is no longer waited for
        :param rehearse: commit nothing: all is taken back, with what *work* asks to be done first
        :raises WriteError: it could not be done
        """
        deadline = None if patience is None else time.monotonic() + patience
        failure: BaseException = ConflictError()
        attempt = first = 0
        rehearsed: list[DoFirst] = []
        while attempt < _TRIES:
            if attempt:
                pause = CHANCE.uniform(0.0, 0.01 * 2**attempt)
                if deadline is not None and time.monotonic() + pause > deadline:
                    break
                time.sleep(pause)
            attempt += 1
            committing = False
            try:
                with self._connect() as connection, localcontext(USUAL):
                    prepare(connection)
                    self._begin(connection, patience)
                    began = time.monotonic()
                    for wish in rehearsed:
                        wish.work(connection)
                    done = work(connection)
                    if rehearse:
                        connection.rollback()
                    else:
                        committing = True
                        connection.commit()
                    self.held = time.monotonic() - began if connection.dialect.name == "sqlite" else 0.0
                    return done
            except WriteError:
                raise
            except ConflictError as error:
                failure = error
            except DoFirst as wish:
                first += 1
                if first > _MOST_FIRST:
                    raise WriteError(Fault.RETRY, "DoFirst") from None
                if rehearse:
                    rehearsed.append(wish)
                else:
                    self.run(wish.work, patience=patience)
                attempt -= 1
            except Exception as error:
                # Our own patience was at its end: most likely somebody is in the way, and the database is there.
                fault = Fault.RETRY if patience is not None and is_given_up(error) else fault_of(error)
                failure = error
                # A duplicate key is what somebody else has just written: looked at again, it is skipped.
                if fault is not Fault.RETRY and not (fault is Fault.DOUBT and attempt < 3):
                    unanswered = committing and fault is Fault.AWAY
                    raise WriteError(fault, name_of(error), unanswered=unanswered) from None
        raise WriteError(Fault.RETRY, name_of(failure))

    @contextmanager
    def _connect(self) -> Iterator[sa.Connection]:
        with self.engine.owned() as free:
            if not free:
                raise WriteError(Fault.RETRY, "the app has a transaction open on the in-memory database")
            with self.engine.connect() as connection:
                try:
                    yield connection
                except Exception as error:
                    if is_read_only(error):
                        connection.invalidate()
                    raise

    def _begin(self, connection: sa.Connection, patience: float | None) -> None:
        """Start a transaction that takes its locks at once and waits for nobody for long, *patience* seconds at most."""
        dialect = connection.dialect
        if dialect.name == "sqlite":
            connection.exec_driver_sql(f"PRAGMA busy_timeout = {self._busy_ms}")
            driver_connection: Any = connection.connection.driver_connection
            if not driver_connection.in_transaction:
                # Deferred, it would fail at its first write without waiting when somebody else has written since.
                connection.exec_driver_sql("BEGIN IMMEDIATE")
            return
        connection.execution_options(isolation_level="READ COMMITTED")
        statement_ms = STATEMENT_MS if patience is None else max(1, int(patience * 1000))
        if dialect.name == "postgresql":
            # Less than the statement has: somebody's lock is told from a server that is slow by which ends first.
            lock_ms = max(1, min(LOCK_MS, statement_ms * 3 // 4))
            connection.exec_driver_sql(f"SET LOCAL lock_timeout = {lock_ms}; SET LOCAL statement_timeout = {statement_ms}")
        elif getattr(dialect, "is_mariadb", False):
            # Lock waits are whole seconds there, 0 for none; the connection is ours alone.
            limits = f"innodb_lock_wait_timeout = {LOCK_MS // 1000}, max_statement_time = {statement_ms / 1000}"
            connection.exec_driver_sql(f"SET SESSION {limits}")
        elif dialect.name == "mysql":
            connection.exec_driver_sql(f"SET SESSION innodb_lock_wait_timeout = {LOCK_MS // 1000}")
