"""Sessions that only read the ledger."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import sqlalchemy as sa
from sqlalchemy import event
from sqlalchemy.orm import ORMExecuteState, Session

from flask_llm_cost.errors import LedgerError, SchemaMissingError
from flask_llm_cost.ledger.faults import Fault, fault_of


class _ReadSession(Session):
    """Refuses to write. Whatever slips through as text is rolled back in the end."""


@event.listens_for(_ReadSession, "before_flush")
def _refuse_flush(session: Session, *_: object) -> None:
    raise LedgerError("this session only reads the ledger")


@event.listens_for(_ReadSession, "do_orm_execute")
def _refuse_statement(state: ORMExecuteState) -> None:
    if state.is_insert or state.is_update or state.is_delete:
        raise LedgerError("this session only reads the ledger")


@contextmanager
def reading(engine: sa.Engine) -> Iterator[Session]:
    """A session that refuses to write.

    :raises SchemaMissingError: the tables are not there yet
    :raises LedgerError: something was written with it
    """
    with _ReadSession(engine) as session:
        try:
            yield session
        except sa.exc.DBAPIError as error:
            if fault_of(error) is Fault.SCHEMA:
                raise SchemaMissingError from None
            raise
        finally:
            session.rollback()
