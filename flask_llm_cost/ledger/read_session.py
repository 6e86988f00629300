"""Sessions that only read the ledger."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from types import MappingProxyType
from typing import Any, Final

import sqlalchemy as sa
from sqlalchemy import event
from sqlalchemy.orm import ORMExecuteState, Session

from flask_llm_cost.errors import LedgerError, SchemaMissingError, TooLargeSumError
from flask_llm_cost.ledger.faults import Fault, fault_of

#: A note on errors of a question that was asked where ``LLM_COST_READ_BIND_KEY`` leads.
READ_BIND: Final = "asked of the database of LLM_COST_READ_BIND_KEY, which is the ledger's own where that is not set"

#: How it is read on servers: in a transaction, also where the host's engine commits each statement by itself.
READING: Final = "READ COMMITTED"

#: A page asks dozens of small questions, for which PostgreSQL's further processes and its compiler are not worth their
#: start: one that takes six milliseconds takes twenty with them. Those that take seconds have the processes all the same.
_MANY_SMALL_QUESTIONS: Final[Mapping[str, object]] = MappingProxyType({"parallel_setup_cost": 20_000, "jit": "off"})


class _ReadSession(Session):
    """Refuses to write, and to commit what slips through as text: it is rolled back in the end."""


@event.listens_for(_ReadSession, "before_flush")
def _refuse_flush(session: Session, *_: object) -> None:
    raise LedgerError("this session only reads the ledger")


@event.listens_for(_ReadSession, "before_commit")
def _refuse_commit(session: Session) -> None:
    raise LedgerError("this session only reads the ledger")


@event.listens_for(_ReadSession, "do_orm_execute")
def _refuse_statement(state: ORMExecuteState) -> None:
    if state.is_insert or state.is_update or state.is_delete:
        raise LedgerError("this session only reads the ledger")


@contextmanager
def reading(
    engine: sa.Engine, *, longest: float | None = None, replica: bool = True, snapshot: bool = False
) -> Iterator[Session]:
    """A session that refuses to write.

    :param replica: whether *engine* is that of the read bind: errors of the database carry :data:`READ_BIND` then
    :param snapshot: whether all of its questions see the ledger as it is at the first of them
    :param longest: seconds after which PostgreSQL, MariaDB or MySQL gives a query up; SQLite knows no such limit
    :raises SchemaMissingError: the tables are not there yet
    :raises TooLargeSumError: SQLite cannot hold a sum
    :raises LedgerError: something was written with it
    """
    with _ReadSession(engine) as session:
        try:
            if snapshot and engine.dialect.name == "sqlite":
                _hold_still(session)
            elif engine.dialect.name != "sqlite":
                level = "REPEATABLE READ" if snapshot else READING
                limit_reading(session.connection(execution_options={"isolation_level": level}), longest)
            yield session
        except sa.exc.DBAPIError as error:
            if fault_of(error) is Fault.SCHEMA:
                raise SchemaMissingError from None
            if engine.dialect.name == "sqlite" and "integer overflow" in str(error.orig):
                raise TooLargeSumError from None
            if replica:
                error.add_note(READ_BIND)
            raise
        finally:
            session.rollback()
            if longest is not None and _keeps_settings(engine):
                with suppress(sa.exc.DBAPIError):  # then the connection is gone, and its limit with it
                    _limit(session.connection(), None)
                    session.rollback()


def limit_reading(connection: sa.Connection, longest: float | None = None) -> None:
    """Let a server give queries up after *longest* seconds, or after none, whatever writers have set on the connection."""
    if longest is not None or _keeps_settings(connection):
        _limit(connection, longest)


def _keeps_settings(where: sa.Engine | sa.Connection) -> bool:
    """Whether what is set for a session outlasts it on its connection, as what writers set does, too."""
    return where.dialect.name in ("mysql", "mariadb")


def _hold_still(session: Session) -> None:
    """Let what others commit from here on change no answer of SQLite's.

    Not without a write-ahead log, where the app could not write as long as this reads.
    """
    connection = session.connection()
    driver: Any = connection.connection.driver_connection
    if not driver.in_transaction and connection.exec_driver_sql("PRAGMA journal_mode").scalar() == "wal":
        connection.exec_driver_sql("BEGIN")


def _limit(connection: sa.Connection, seconds: float | None) -> None:
    dialect = connection.dialect  # which server it is, it knows by its first connection
    if dialect.name == "postgresql":
        settings = {"statement_timeout": int((seconds or 0) * 1000), **_MANY_SMALL_QUESTIONS}
        text = "; ".join(f"SET LOCAL {name} = {value}" for name, value in settings.items())
    elif getattr(dialect, "is_mariadb", False):
        text = f"SET SESSION max_statement_time = {'DEFAULT' if seconds is None else seconds}"
    else:
        text = f"SET SESSION max_execution_time = {'DEFAULT' if seconds is None else int(seconds * 1000)}"
    connection.exec_driver_sql(text)
