"""One transaction for a batch of priced records: each is in the ledger exactly once, however often it is delivered."""

from __future__ import annotations

import random
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from typing import Any, Final, cast
from uuid import UUID

import sqlalchemy as sa

from flask_llm_cost.ledger.bulk import CALLS, ITEMS, PRICES, TAGS, Inserts
from flask_llm_cost.ledger.engine import OwnEngine
from flask_llm_cost.ledger.faults import Fault, fault_of, name_of
from flask_llm_cost.ledger.models import Counter
from flask_llm_cost.ledger.rows import CallRows, Row, call_rows, price_row
from flask_llm_cost.records import CallRecord

BATCH: Final = 500

#: How long one statement may wait for a lock, and take in all, on a server.
LOCK_MS: Final = 1_000
STATEMENT_MS: Final = 20_000

_TRIES: Final = 8

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
#: again, so that rollups and budgets move exactly once with the rows. What it returns is called once they are committed.
Within = Callable[[sa.Connection, Change], Callable[[], None] | None]

#: Called before the transaction, for what must not be waited for inside: rows that others are making too.
Before = Callable[[Sequence[CallRecord]], None]


class Writer:
    """Writes batches on a connection of its own.

    :param engine: where to
    :param within: what else moves with the rows, in order
    :param before: what is made ready for them, in transactions of its own
    :param busy_ms: how long a statement waits for somebody else's lock
    """

    def __init__(
        self, engine: OwnEngine, within: Sequence[Within] = (), *, before: Sequence[Before] = (), busy_ms: int = 200
    ) -> None:
        self._engine = engine
        self._within = tuple(within)
        self._before = tuple(before)
        self._busy_ms = busy_ms
        self._inserts: Inserts | None = None

    @property
    def connecting(self) -> bool:
        """Whether somebody waits for a server to take a connection, which may hang for long."""
        return self._engine.connecting > 0

    @property
    def engine(self) -> sa.Engine | None:
        """Where to, if anything was written since connections were last closed."""
        return self._engine.made

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
        for ready in self._before:
            ready(records)
        failure: BaseException = _ConflictError()
        for attempt in range(_TRIES):
            if attempt:
                pause = random.uniform(0.0, 0.01 * 2**attempt)
                if deadline is not None and time.monotonic() + pause > deadline:
                    break
                time.sleep(pause)
            try:
                return self._transaction(rows, now, patience)
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

    def _transaction(self, rows: Sequence[CallRows], now: datetime, patience: float | None) -> list[CallRecord]:
        with self._connect() as connection:
            inserts = self._inserts_for(connection)
            # What takes time comes before the transaction, so that nobody waits for it.
            bound = [_bind(row, inserts) for row in rows]
            begin(connection, self._busy_ms, patience)
            held = self._held([row.record.id for row in rows], connection)
            removed, settled = self._replace_provisional(rows, held, now, connection)
            if settled:
                rows = [settled.get(row.record.id, row) for row in rows]
                bound = [_bind(row, inserts) for row in rows]
            added = tuple(row for row in rows if row.record.id not in held)
            after: list[Callable[[], None] | None] = []
            if added:
                self._insert_prices(added, now, inserts, connection)
                fresh = [row for row in bound if row.call_id not in held]
                if inserts.calls(connection, [row.call for row in fresh]) < len(fresh) and _skips(connection):
                    raise _ConflictError
                inserts.items(connection, [item for row in fresh for item in row.items])
                inserts.tags(connection, [tag for row in fresh for tag in row.tags])
                change = Change(added, removed)
                after = [step(connection, change) for step in self._within]
            connection.commit()
        for told in after:
            if told is not None:
                told()
        return [row.record for row in added]

    @contextmanager
    def _connect(self) -> Iterator[sa.Connection]:
        with self._engine.owned() as free:
            if not free:
                raise WriteError(Fault.RETRY, "the app has a transaction open on the in-memory database")
            with self._engine.connect() as connection:
                yield connection

    def _inserts_for(self, connection: sa.Connection) -> Inserts:
        inserts = self._inserts
        if inserts is None or inserts.dialect is not connection.dialect:
            inserts = self._inserts = Inserts(connection.dialect)
        return inserts

    @staticmethod
    def _held(ids: Sequence[UUID], connection: sa.Connection) -> dict[UUID, bool]:
        """Ids that are there already, and whether what is there is provisional."""
        query = sa.select(CALLS.c.id, CALLS.c.outcome, CALLS.c.usage_source).where(CALLS.c.id.in_(ids))
        return {
            call_id: source == "pending" or (outcome == "interrupted" and source == "unknown")
            for call_id, outcome, source in connection.execute(query)
        }

    @staticmethod
    def _replace_provisional(
        rows: Sequence[CallRows], held: dict[UUID, bool], now: datetime, connection: sa.Connection
    ) -> tuple[tuple[Removed, ...], dict[UUID, CallRows]]:
        """Make room for real records where calls wait for their usage, or were left by a process that looked dead.

        Takes those ids out of *held*. Returns what was removed, and the rows of the calls that were waiting: they keep the
        time, the words and the tags of whoever made them, not of whoever asked how they went.
        """
        removed = []
        settled: dict[UUID, CallRows] = {}
        for row in rows:
            record = row.record
            if not held.get(record.id) or not _is_final(record):
                continue
            provisional = (
                CALLS.c.id == record.id,
                sa.or_(
                    CALLS.c.usage_source == "pending",
                    sa.and_(CALLS.c.outcome == "interrupted", CALLS.c.usage_source == "unknown"),
                ),
            )
            tags = connection.execute(sa.select(TAGS.c.key, TAGS.c.value).where(TAGS.c.call_id == record.id)).all()
            found = connection.execute(sa.select(CALLS).where(*provisional).with_for_update()).mappings().first()
            if found is None:
                continue
            for children in (TAGS, ITEMS):
                connection.execute(sa.delete(children).where(children.c.call_id == record.id))
            connection.execute(sa.delete(CALLS).where(CALLS.c.id == record.id))
            del held[record.id]
            removed.append(Removed(dict(found), tuple((key, value) for key, value in tags)))
            if found["usage_source"] == "pending":
                kept = ("occurred_at", "operation", "requested_model", "host", "stream", "attempt")
                words = {name: found[name] for name in kept}
                settled[record.id] = call_rows(replace(record, tags=dict(tags), **words), now)
        return tuple(removed), settled

    @staticmethod
    def _insert_prices(added: Sequence[CallRows], now: datetime, inserts: Inserts, connection: sa.Connection) -> None:
        applied = (row.record.cost.price for row in added if row.record.cost is not None)
        prices = {price.id: price for price in applied if price is not None}
        if prices:
            there = set(connection.scalars(sa.select(PRICES.c.id).where(PRICES.c.id.in_(prices))))
            missing = sorted(prices.keys() - there)
            inserts.prices(connection, [inserts.prices.bind(price_row(prices[price_id], now)) for price_id in missing])

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
                with self._connect() as connection:
                    begin(connection, self._busy_ms)
                    for name in sorted({*counts, *texts}):
                        _add(connection, name, counts.get(name, 0), texts.get(name))
                    connection.commit()
                return
            except WriteError:
                raise
            except Exception as error:
                failure = error
                if fault_of(error) not in (Fault.RETRY, Fault.DOUBT):
                    break
        raise WriteError(fault_of(failure) if failure else Fault.RETRY, name_of(failure) if failure else "")


@dataclass(frozen=True, slots=True)
class _Bound:
    """The rows of one record as the driver takes them."""

    call_id: UUID
    call: Any
    items: list[Any]
    tags: list[Any]


def _is_final(record: CallRecord) -> bool:
    """Whether a record says how its call ended, so that it may take the place of one that did not."""
    return record.usage.source != "pending" and (record.outcome != "interrupted" or record.usage.known)


def _bind(row: CallRows, inserts: Inserts) -> _Bound:
    items = [inserts.items.bind(item) for item in row.items]
    tags = inserts.tags.bind_alike(row.tags, ("key", "value"))
    return _Bound(row.record.id, inserts.calls.bind(row.call), items, tags)


def _skips(connection: sa.Connection) -> bool:
    """Whether a duplicate is skipped by the statement: then a smaller count says that somebody was faster."""
    return connection.dialect.name == "postgresql"


def begin(connection: sa.Connection, busy_ms: int, patience: float | None = None) -> None:
    """Start a transaction that takes its locks at once and waits for nobody for long, *patience* seconds at most."""
    dialect = connection.dialect
    if dialect.name != "sqlite":
        connection.execution_options(isolation_level="READ COMMITTED")
        statement_ms = STATEMENT_MS if patience is None else max(1, int(patience * 1000))
        if dialect.name == "postgresql":
            lock_ms = min(LOCK_MS, statement_ms)
            connection.exec_driver_sql(f"SET LOCAL lock_timeout = {lock_ms}; SET LOCAL statement_timeout = {statement_ms}")
        elif getattr(dialect, "is_mariadb", False):
            # Lock waits are whole seconds there, 0 for none; the connection is ours alone.
            limits = f"innodb_lock_wait_timeout = {LOCK_MS // 1000}, max_statement_time = {statement_ms / 1000}"
            connection.exec_driver_sql(f"SET SESSION {limits}")
        elif dialect.name == "mysql":
            connection.exec_driver_sql(f"SET SESSION innodb_lock_wait_timeout = {LOCK_MS // 1000}")
        return
    connection.exec_driver_sql(f"PRAGMA busy_timeout = {busy_ms}")
    driver_connection: Any = connection.connection.driver_connection
    if not driver_connection.in_transaction:
        # Deferred, it would fail at its first write without waiting when somebody else has written since.
        connection.exec_driver_sql("BEGIN IMMEDIATE")


def _add(connection: sa.Connection, name: str, amount: int, text: str | None) -> None:
    values: dict[str, Any] = {"value": _COUNTERS.c.value + amount, "updated_at": datetime.now(UTC)}
    if text is not None:
        values["text"] = text[:256]
    if connection.execute(sa.update(_COUNTERS).where(_COUNTERS.c.name == name).values(values)).rowcount == 0:
        connection.execute(sa.insert(_COUNTERS).values({**values, "name": name, "value": amount}))
