"""One transaction for a batch of priced records: each is in the ledger exactly once, however often it is delivered."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Final, cast
from uuid import UUID

import sqlalchemy as sa

from flask_llm_cost.ledger import batches, makers
from flask_llm_cost.ledger.bulk import CALLS, ITEMS, PRICES, TAGS, Bound, Inserts, one_of
from flask_llm_cost.ledger.change import After, Change, Within
from flask_llm_cost.ledger.engine import OwnEngine
from flask_llm_cost.ledger.faults import Fault, name_of
from flask_llm_cost.ledger.models import Counter
from flask_llm_cost.ledger.rows import CallRows, call_rows, price_row
from flask_llm_cost.ledger.stored import stored_calls
from flask_llm_cost.ledger.transaction import ConflictError, Transactions, WriteError
from flask_llm_cost.records import UNPRICED, CallRecord, Price, new_call_id

BATCH: Final = 500
#: A batch on SQLite, where one writes at a time, is as large as what keeps the app's own writes waiting for so long, and
#: no smaller than this.
HELD_SECONDS: Final = 0.03
SMALLEST: Final = 25

_COUNTERS = cast(sa.Table, Counter.__table__)


@dataclass(slots=True)
class Written:
    """What became of a batch."""

    #: In the database because of this write, not before.
    fresh: list[CallRecord] = field(default_factory=list)
    duplicates: int = 0
    #: Refused by the database for what is in them.
    poison: list[tuple[CallRecord, str]] = field(default_factory=list)


class Writer:
    """Writes batches on a connection of its own.

    :param engine: where to
    :param within: what else moves with the rows, in order
    :param busy_ms: how long a statement waits for somebody else's lock
    """

    def __init__(self, engine: OwnEngine, within: Sequence[Within] = (), *, busy_ms: int = 200) -> None:
        #: Runs transactions of any kind where the rows are written.
        self.transactions = Transactions(engine, busy_ms=busy_ms)
        self._within = tuple(within)
        self._most = SMALLEST * 4
        self._inserts: Inserts | None = None

    @property
    def engine(self) -> sa.Engine | None:
        """Where to, if anything was written since connections were last closed."""
        return self.transactions.engine.made

    def write(self, records: Iterable[CallRecord], *, patience: float | None = None) -> Written:
        """Write *records* in transactions of at most :data:`BATCH`.

        :param patience: seconds after which somebody else's lock is no longer waited for
        :raises WriteError: the database is away or has no tables; what was written before stays written
        """
        ordered = sorted(makers.united(records), key=batches.in_order)
        written = Written()
        while ordered:
            batch, ordered = ordered[: self._most], ordered[self._most :]
            self._write_batch(batch, written, patience)
            held = self.transactions.held
            self._most = max(SMALLEST, min(BATCH, int(len(batch) * HELD_SECONDS / held))) if held else BATCH
        return written

    def _write_batch(self, records: Sequence[CallRecord], written: Written, patience: float | None) -> None:
        try:
            fresh, duplicates = self._insert(records, patience)
        except WriteError as error:
            if error.fault not in (Fault.DATA, Fault.DOUBT):
                raise
        else:
            written.fresh += fresh
            written.duplicates += duplicates
            return
        doubtful: list[tuple[CallRecord, WriteError]] = []
        taken = 0
        for record in records:
            try:
                fresh, duplicates = self._insert([record], patience)
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
                written.duplicates += duplicates
        if doubtful and not taken and not self._takes_a_plain_call(patience):
            # When not one record gets in it is the tables, not the records: let them wait.
            raise doubtful[0][1]
        written.poison += ((record, error.name) for record, error in doubtful)

    def _takes_a_plain_call(self, patience: float | None) -> bool:
        """Whether the tables take a call with next to nothing in it, which is taken back at once."""
        now = datetime.now(UTC)
        rows = call_rows(
            CallRecord(id=new_call_id(), occurred_at=now, provider="none", operation="none", cost=UNPRICED), now
        )
        taken_back = WriteError(Fault.RETRY, "taken back")

        def insert(connection: sa.Connection) -> None:
            inserts = self.inserts(connection)
            inserts.calls(connection, inserts.calls.bind([rows.call]))
            raise taken_back

        try:
            self.transactions.run(insert, patience=patience)
        except WriteError as error:
            return error is taken_back
        return True

    def _insert(self, records: Sequence[CallRecord], patience: float | None) -> tuple[list[CallRecord], int]:
        """Write *records* in one transaction. Those that are new, and how many were there already."""
        bind, insert = self._made_ready(records)
        fresh, duplicates, after = self.transactions.run(insert, prepare=bind, patience=patience)
        for told in after:
            told()
        return fresh, duplicates

    def rehearse(self, records: Iterable[CallRecord]) -> tuple[CallRows, ...]:
        """Write new *records* as :meth:`write` does, with all that moves with them, read them, and take it all back.

        :raises WriteError: they could not be written
        """
        ordered = sorted(records, key=batches.in_order)
        bind, insert = self._made_ready(ordered)

        def insert_and_read(connection: sa.Connection) -> tuple[CallRows, ...]:
            insert(connection)
            return stored_calls(connection, [record.id for record in ordered])

        return self.transactions.run(insert_and_read, prepare=bind, rehearse=True)

    def _made_ready(
        self, records: Sequence[CallRecord]
    ) -> tuple[Callable[[sa.Connection], None], Callable[[sa.Connection], tuple[list[CallRecord], int, list[After]]]]:
        """What prepares a transaction that writes *records*, and its work."""
        now = datetime.now(UTC)
        try:
            entries = [_Entry(record, call_rows(record, now)) for record in records]
        except Exception as error:
            raise WriteError(Fault.DATA, name_of(error)) from None

        bound: list[_Bound] = []

        def bind(connection: sa.Connection) -> None:
            bound[:] = [_bind([entry.rows for entry in entries], self.inserts(connection))]

        def insert(connection: sa.Connection) -> tuple[list[CallRecord], int, list[After]]:
            return self._insert_within(connection, entries, bound[0], now)

        return bind, insert

    def _insert_within(
        self, connection: sa.Connection, entries: Sequence[_Entry], bound: _Bound, now: datetime
    ) -> tuple[list[CallRecord], int, list[After]]:
        inserts = self.inserts(connection)
        held = self._held([entry.record.id for entry in entries], connection)
        removed, changed = self._replace_provisional(entries, held, connection)
        followed = batches.follow(connection, [entry.record for entry in entries], held)
        for rows in followed.gone:
            _delete(connection, rows.id)
        changed.update(followed.changed)
        unclaimed = [entry.record for entry in entries if entry.record.id not in changed]
        again = makers.read_again(connection, unclaimed, held)
        skipped = followed.skipped | again
        others, claimed = makers.claimed(connection, ((entry.record, entry.rows) for entry in entries), held)
        for rows in others:
            _delete(connection, rows.id)
        removed = (*removed, *followed.gone, *others)
        fresh: list[_Entry] = []
        for entry in entries:
            if entry.record.id not in held and entry.record.id not in skipped:
                record = changed.get(entry.record.id)
                fresh.append(entry if record is None else _Entry(record, call_rows(record, now)))
        added = (*(entry.rows for entry in fresh), *claimed)
        if added:
            self.insert_prices(connection, (entry.record.cost.price for entry in fresh if entry.record.cost), now)
            if claimed or fresh != entries:
                bound = _bind(added, inserts)
            if inserts.calls(connection, bound.calls) < len(added) and _skips(connection):
                raise ConflictError
            inserts.items(connection, bound.items)
            inserts.tags(connection, bound.tags)
        after = self.move(connection, Change(added, removed)) if added or removed else []
        duplicates = len(again) + sum(1 for entry in entries if entry.record.id in held and entry.record.is_call)
        return [entry.record for entry in fresh], duplicates, after

    def move(self, connection: sa.Connection, change: Change) -> list[After]:
        """Let everything that moves with the rows move by *change*. Part of every transaction that changes calls.

        Returns what has to be called after the commit.
        """
        after = [step(connection, change) for step in self._within]
        return [told for told in after if told is not None]

    def inserts(self, connection: sa.Connection) -> Inserts:
        """The inserts as the dialect of *connection* says them."""
        inserts = self._inserts
        if inserts is None or inserts.dialect is not connection.dialect:
            inserts = self._inserts = Inserts(connection.dialect)
        return inserts

    @staticmethod
    def _held(ids: Sequence[UUID], connection: sa.Connection) -> dict[UUID, bool]:
        """Ids that are there already, and whether what is there is provisional."""
        query = sa.select(CALLS.c.id, CALLS.c.outcome, CALLS.c.usage_source).where(
            one_of(CALLS.c.id, ids, connection.dialect)
        )
        return {
            call_id: source == "pending" or (outcome == "interrupted" and source == "unknown")
            for call_id, outcome, source in connection.execute(query)
        }

    @staticmethod
    def _replace_provisional(
        entries: Sequence[_Entry], held: dict[UUID, bool], connection: sa.Connection
    ) -> tuple[tuple[CallRows, ...], dict[UUID, CallRecord]]:
        """Make room for real records where calls wait for their usage, or were left by a process that looked dead.

        Takes those ids out of *held*. Returns what was removed, and the records of the calls that were waiting: they keep
        the time, the words and the tags of whoever made them, not of whoever asked how they went.
        """
        final = {entry.record.id: entry.record for entry in entries if held.get(entry.record.id) and _is_final(entry.record)}
        provisional = sa.or_(
            CALLS.c.usage_source == "pending",
            sa.and_(CALLS.c.outcome == "interrupted", CALLS.c.usage_source == "unknown"),
        )
        removed = stored_calls(connection, list(final), provisional, lock=True) if final else ()
        settled: dict[UUID, CallRecord] = {}
        for rows in removed:
            _delete(connection, rows.id)
            del held[rows.id]
            if rows.call["usage_source"] == "pending":
                settled[rows.id] = makers.settled(rows, final[rows.id])
        return removed, settled

    def insert_prices(self, connection: sa.Connection, applied: Iterable[Price | None], now: datetime) -> None:
        """Put the prices in that are not there yet, in the transaction of the calls that they priced."""
        prices = {price.id: price for price in applied if price is not None}
        if prices:
            there = set(connection.scalars(sa.select(PRICES.c.id).where(PRICES.c.id.in_(prices))))
            missing = sorted(prices.keys() - there)
            inserts = self.inserts(connection)
            inserts.prices(connection, inserts.prices.bind([price_row(prices[price_id], now) for price_id in missing]))

    def count(self, counts: dict[str, int]) -> None:
        """Add *counts* to the counters of these names, in a transaction of its own.

        :raises WriteError: it could not be done
        """

        def add(connection: sa.Connection) -> None:
            for name in sorted(counts):
                _add(connection, name, counts[name])

        self.transactions.run(add)


@dataclass(frozen=True, slots=True, eq=False)
class _Entry:
    """One record on its way in."""

    record: CallRecord
    rows: CallRows


@dataclass(frozen=True, slots=True)
class _Bound:
    """The rows of some records as the driver takes them."""

    calls: Bound
    items: Bound
    tags: Bound


def _delete(connection: sa.Connection, call_id: UUID) -> None:
    for children in (TAGS, ITEMS):
        connection.execute(sa.delete(children).where(children.c.call_id == call_id))
    connection.execute(sa.delete(CALLS).where(CALLS.c.id == call_id))


def _is_final(record: CallRecord) -> bool:
    """Whether a record says how its call ended, so that it may take the place of one that did not."""
    return record.usage.source != "pending" and (record.outcome != "interrupted" or record.usage.known)


def _bind(added: Sequence[CallRows], inserts: Inserts) -> _Bound:
    return _Bound(
        inserts.calls.bind([rows.call for rows in added]),
        inserts.items.bind([item for rows in added for item in rows.items]),
        inserts.tags.bind([tag for rows in added for tag in rows.tags]),
    )


def _skips(connection: sa.Connection) -> bool:
    """Whether a duplicate is skipped by the statement: then a smaller count says that somebody was faster."""
    return connection.dialect.name == "postgresql"


def _add(connection: sa.Connection, name: str, amount: int) -> None:
    values = {"value": _COUNTERS.c.value + amount, "updated_at": datetime.now(UTC)}
    if connection.execute(sa.update(_COUNTERS).where(_COUNTERS.c.name == name).values(values)).rowcount == 0:
        connection.execute(sa.insert(_COUNTERS).values({**values, "name": name, "value": amount}))
