"""One transaction for a batch of priced records: each is in the ledger exactly once, however often it is delivered."""

from __future__ import annotations

import random
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any, Final, cast
from uuid import UUID

import sqlalchemy as sa
from sqlalchemy.dialects import postgresql

from flask_llm_cost.ledger.engine import OwnEngine
from flask_llm_cost.ledger.faults import Fault, fault_of, name_of
from flask_llm_cost.ledger.models import Call, CallTag, Counter, LineItem, PriceSnapshot
from flask_llm_cost.ledger.rows import CallRows, Row, call_rows, price_row
from flask_llm_cost.records import CallRecord

BATCH: Final = 500

_TRIES: Final = 8

_CALLS = cast(sa.Table, Call.__table__)
_ITEMS = cast(sa.Table, LineItem.__table__)
_TAGS = cast(sa.Table, CallTag.__table__)
_PRICES = cast(sa.Table, PriceSnapshot.__table__)
_COUNTERS = cast(sa.Table, Counter.__table__)


class WriteError(Exception):
    """A batch could not be written, and nothing of it is in the database.

    :param name: class and SQLSTATE of what went wrong
    """

    def __init__(self, fault: Fault, name: str) -> None:
        self.fault = fault
        self.name = name
        super().__init__(name)


class _ConflictError(Exception):
    """Somebody else wrote one of these records after we looked."""


@dataclass(frozen=True, slots=True)
class Removed:
    """A provisional row that the real record of the same call takes the place of."""

    call: Row
    tags: tuple[tuple[str, str], ...]


@dataclass(frozen=True, slots=True)
class Change:
    """What one transaction adds to the ledger, and the provisional rows that it takes away."""

    added: tuple[CallRows, ...]
    removed: tuple[Removed, ...] = ()


@dataclass(slots=True)
class Written:
    """What became of a batch."""

    #: In the database because of this write, not before.
    fresh: list[CallRecord] = field(default_factory=list)
    duplicates: int = 0
    #: Refused by the database for what is in them.
    poison: list[tuple[CallRecord, str]] = field(default_factory=list)


#: Called inside the transaction, after the rows and before the commit. Whatever it does is undone when the batch is tried
#: again, so that rollups and budgets move exactly once with the rows.
Within = Callable[[sa.Connection, Change], None]


class Writer:
    """Writes batches on a connection of its own.

    :param engine: where to
    :param within: what else moves with the rows, in order
    :param busy_ms: how long a statement waits for somebody else's lock
    """

    def __init__(self, engine: OwnEngine, within: Sequence[Within] = (), *, busy_ms: int = 200) -> None:
        self._engine = engine
        self._within = tuple(within)
        self._busy_ms = busy_ms

    def write(self, records: Iterable[CallRecord], *, patience: float | None = None) -> Written:
        """Write *records* in transactions of at most :data:`BATCH`.

        :param patience: seconds after which somebody else's lock is no longer waited for
        :raises WriteError: the database is away or has no tables; what was written before stays written
        """
        unique = {record.id: record for record in records}
        ordered = sorted(unique.values(), key=lambda record: record.id.int)
        written = Written()
        for start in range(0, len(ordered), BATCH):
            self._write_batch(ordered[start : start + BATCH], written, patience)
        return written

    def _write_batch(self, records: Sequence[CallRecord], written: Written, patience: float | None) -> None:
        try:
            fresh = self._insert(records, patience)
        except WriteError as error:
            if error.fault not in (Fault.DATA, Fault.DOUBT):
                raise
        else:
            written.fresh += fresh
            written.duplicates += len(records) - len(fresh)
            return
        doubtful: list[tuple[CallRecord, WriteError]] = []
        taken = 0
        for record in records:
            try:
                fresh = self._insert([record], patience)
            except WriteError as error:
                if error.fault is Fault.DATA:
                    written.poison.append((record, error.name))
                elif error.fault is Fault.DOUBT:
                    doubtful.append((record, error))
                else:
                    raise
            else:
                taken += 1
                written.fresh += fresh
                written.duplicates += 1 - len(fresh)
        if doubtful and not taken:
            # When not one record gets in it is the tables, not the records: let them wait.
            raise doubtful[0][1]
        written.poison += ((record, error.name) for record, error in doubtful)

    def _insert(self, records: Sequence[CallRecord], patience: float | None) -> list[CallRecord]:
        deadline = None if patience is None else time.monotonic() + patience
        now = datetime.now(UTC)
        try:
            rows = [call_rows(record, now) for record in records]
        except Exception as error:
            raise WriteError(Fault.DATA, name_of(error)) from None
        failure: BaseException = _ConflictError()
        for attempt in range(_TRIES):
            if attempt:
                pause = random.uniform(0.0, 0.01 * 2**attempt)
                if deadline is not None and time.monotonic() + pause > deadline:
                    break
                time.sleep(pause)
            try:
                return self._transaction(rows, now)
            except WriteError:
                raise
            except _ConflictError as error:
                failure = error
            except Exception as error:
                fault = fault_of(error)
                failure = error
                # A duplicate key is a record that somebody else has just delivered: looked at again, it is skipped.
                if fault is not Fault.RETRY and not (fault is Fault.DOUBT and attempt < 2):
                    raise WriteError(fault, name_of(error)) from None
        raise WriteError(Fault.RETRY, name_of(failure))

    def _transaction(self, rows: Sequence[CallRows], now: datetime) -> list[CallRecord]:
        with self._begin() as connection:
            held = self._held([row.record.id for row in rows], connection)
            removed = self._replace_provisional([row for row in rows if row.record.id in held], held, connection)
            added = tuple(row for row in rows if row.record.id not in held)
            if added:
                self._insert_rows(added, now, connection)
                change = Change(added, removed)
                for step in self._within:
                    step(connection, change)
        return [row.record for row in added]

    @contextmanager
    def _begin(self) -> Iterator[sa.Connection]:
        """A transaction that takes its locks at once, commits at the end and waits for nobody for long."""
        with self._engine.owned() as free:
            if not free:
                raise WriteError(Fault.RETRY, "the app has a transaction open on the in-memory database")
            engine = self._engine.get()
            with engine.connect() as connection:
                name = connection.dialect.name
                if name != "sqlite":
                    connection.execution_options(isolation_level="READ COMMITTED")
                elif not connection.connection.driver_connection.in_transaction:  # type: ignore[union-attr] # SQLite's has it
                    connection.exec_driver_sql(f"PRAGMA busy_timeout = {self._busy_ms}")
                    # Deferred, it would fail at its first write without waiting when somebody else has written since.
                    connection.exec_driver_sql("BEGIN IMMEDIATE")
                yield connection
                connection.commit()

    @staticmethod
    def _held(ids: Sequence[UUID], connection: sa.Connection) -> dict[UUID, bool]:
        """Ids that are there already, and whether what is there is provisional."""
        query = sa.select(_CALLS.c.id, _CALLS.c.outcome, _CALLS.c.usage_source).where(_CALLS.c.id.in_(ids))
        return {
            call_id: outcome == "interrupted" and source == "unknown"
            for call_id, outcome, source in connection.execute(query)
        }

    @staticmethod
    def _replace_provisional(
        rows: Sequence[CallRows], held: dict[UUID, bool], connection: sa.Connection
    ) -> tuple[Removed, ...]:
        """Make room for real records where a process that looked dead left rows for calls without an end.

        Takes those ids out of *held*.
        """
        removed = []
        for row in rows:
            record = row.record
            if not held[record.id] or (record.outcome == "interrupted" and not record.usage.known):
                continue
            provisional = (
                _CALLS.c.id == record.id,
                _CALLS.c.outcome == "interrupted",
                _CALLS.c.usage_source == "unknown",
            )
            tags = connection.execute(sa.select(_TAGS.c.key, _TAGS.c.value).where(_TAGS.c.call_id == record.id)).all()
            found = connection.execute(sa.select(_CALLS).where(*provisional).with_for_update()).mappings().first()
            if found is None:
                continue
            for children in (_TAGS, _ITEMS):
                connection.execute(sa.delete(children).where(children.c.call_id == record.id))
            connection.execute(sa.delete(_CALLS).where(_CALLS.c.id == record.id))
            del held[record.id]
            removed.append(Removed(dict(found), tuple((key, value) for key, value in tags)))
        return tuple(removed)

    def _insert_rows(self, added: Sequence[CallRows], now: datetime, connection: sa.Connection) -> None:
        self._insert_prices(added, now, connection)
        statement: Any = sa.insert(_CALLS)
        calls = [row.call for row in added]
        if connection.dialect.name == "postgresql":
            # A duplicate then costs no error in the server's log.
            statement = postgresql.insert(_CALLS).on_conflict_do_nothing()
            result = connection.execute(statement, calls, execution_options={"preserve_rowcount": True})
            if result.rowcount != len(calls):
                raise _ConflictError
        else:
            connection.execute(statement, calls)
        if items := [item for row in added for item in row.items]:
            connection.execute(sa.insert(_ITEMS), items)
        if tags := [tag for row in added for tag in row.tags]:
            connection.execute(sa.insert(_TAGS), tags)

    @staticmethod
    def _insert_prices(added: Sequence[CallRows], now: datetime, connection: sa.Connection) -> None:
        prices = {
            row.record.cost.price.id: row.record.cost.price for row in added if row.record.cost and row.record.cost.price
        }
        if not prices:
            return
        there = set(connection.scalars(sa.select(_PRICES.c.id).where(_PRICES.c.id.in_(prices))))
        missing = [price_row(prices[price_id], now) for price_id in sorted(prices.keys() - there)]
        if not missing:
            return
        statement: Any = sa.insert(_PRICES)
        if connection.dialect.name == "postgresql":
            statement = postgresql.insert(_PRICES).on_conflict_do_nothing()
        connection.execute(statement, missing)

    def count(self, counts: dict[str, int], texts: dict[str, str] | None = None) -> None:
        """Add *counts* to the counters of these names, and set *texts*. In a transaction of its own.

        :raises WriteError: it could not be done
        """
        texts = texts or {}
        failure: BaseException | None = None
        for attempt in range(_TRIES):
            if attempt:
                time.sleep(random.uniform(0.0, 0.01 * 2**attempt))
            try:
                with self._begin() as connection:
                    for name in sorted({*counts, *texts}):
                        _add(connection, name, counts.get(name, 0), texts.get(name))
                return
            except WriteError:
                raise
            except Exception as error:
                failure = error
                if fault_of(error) not in (Fault.RETRY, Fault.DOUBT):
                    break
        raise WriteError(fault_of(failure) if failure else Fault.RETRY, name_of(failure) if failure else "")


def _add(connection: sa.Connection, name: str, amount: int, text: str | None) -> None:
    values: dict[str, Any] = {"value": _COUNTERS.c.value + amount, "updated_at": datetime.now(UTC)}
    if text is not None:
        values["text"] = text[:256]
    if connection.execute(sa.update(_COUNTERS).where(_COUNTERS.c.name == name).values(values)).rowcount == 0:
        connection.execute(sa.insert(_COUNTERS).values({**values, "name": name, "value": amount}))
