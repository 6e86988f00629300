"""Another cost for calls that are in the ledger: rows, rollups and budgets move together, and the change is on record."""

from __future__ import annotations

import functools
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any, Final, cast
from uuid import UUID

import sqlalchemy as sa

from flask_llm_cost.ledger.bulk import CALLS, ITEMS
from flask_llm_cost.ledger.change import After, Change
from flask_llm_cost.ledger.models import Adjustment
from flask_llm_cost.ledger.rows import CallRows, repriced_rows
from flask_llm_cost.ledger.stored import stored_calls
from flask_llm_cost.ledger.transaction import WriteError, not_written
from flask_llm_cost.ledger.writer import BATCH, Writer
from flask_llm_cost.records import Cost, new_call_id

_ADJUSTMENTS = cast(sa.Table, Adjustment.__table__)

#: What decides whether a call is still as it was when it was priced anew.
_SEEN: Final = ("cost_status", "total_cost", "currency", "price_id", "usage_source", "outcome")
_COST_COLUMNS: Final = ("cost_status", "total_cost", "computed_cost", "currency", "price_id", "raw_usage")


@dataclass(frozen=True, slots=True)
class Repricing:
    """A call as it was read from the ledger, and the cost that takes the place of its own."""

    stored: CallRows
    cost: Cost


def reprice(
    writer: Writer, repricings: Sequence[Repricing], *, kind: str, actor: str | None = None, reason: str | None = None
) -> list[UUID]:
    """Give calls another cost, in transactions of at most 500. Returns the ids of those that have it now.

    A call that somebody else has changed since it was read, or that is gone, is left alone and not among them.

    Read the calls with :func:`~flask_llm_cost.ledger.stored.stored_calls` and price them before: nothing
    is locked meanwhile.

    :param writer: ``state.ledger.writer``
    :param kind: ``reprice`` or ``backfill``, in the row of ``llm_cost_adjustments`` that each change leaves
    :raises LedgerError: the database is away; what was changed before stays
    """
    ordered = sorted(repricings, key=lambda repricing: repricing.stored.id.int)
    done: list[UUID] = []
    for start in range(0, len(ordered), BATCH):
        batch = ordered[start : start + BATCH]
        work = functools.partial(_reprice, writer=writer, batch=batch, kind=kind, actor=actor, reason=reason)
        try:
            ids, after = writer.transactions.run(work)
        except WriteError as error:
            raise not_written(error) from None
        done += ids
        for told in after:
            told()
    return done


def _reprice(
    connection: sa.Connection,
    *,
    writer: Writer,
    batch: Sequence[Repricing],
    kind: str,
    actor: str | None,
    reason: str | None,
) -> tuple[list[UUID], list[After]]:
    now = datetime.now(UTC)
    wanted = {repricing.stored.id: repricing for repricing in batch}
    removed = tuple(
        rows for rows in stored_calls(connection, list(wanted), lock=True) if _as_seen(rows, wanted[rows.id].stored)
    )
    if not removed:
        return [], []
    costs = {rows.id: wanted[rows.id].cost for rows in removed}
    added = tuple(repriced_rows(rows, costs[rows.id]) for rows in removed)
    writer.insert_prices(connection, (cost.price for cost in costs.values()), now)
    _update(connection, added)
    ids = list(costs)
    connection.execute(sa.delete(ITEMS).where(ITEMS.c.call_id.in_(ids)))
    items = writer.inserts(connection).items
    items(connection, items.bind([item for rows in added for item in rows.items]))
    adjustments = [
        _adjustment(old, new, now, kind=kind, actor=actor, reason=reason) for old, new in zip(removed, added, strict=True)
    ]
    connection.execute(sa.insert(_ADJUSTMENTS), adjustments)
    return ids, writer.move(connection, Change(added, removed))


def _as_seen(now: CallRows, seen: CallRows) -> bool:
    return all(now.call[name] == seen.call[name] for name in _SEEN)


def _update(connection: sa.Connection, added: Sequence[CallRows]) -> None:
    calls = sa.update(CALLS).where(CALLS.c.id == sa.bindparam("call"))
    calls = calls.values({name: sa.bindparam(name) for name in _COST_COLUMNS})
    connection.execute(calls, [{"call": rows.id, **{name: rows.call[name] for name in _COST_COLUMNS}} for rows in added])


def _adjustment(
    old: CallRows, new: CallRows, now: datetime, *, kind: str, actor: str | None, reason: str | None
) -> dict[str, Any]:
    return {
        "id": new_call_id(),
        "made_at": now,
        "kind": kind,
        "call_id": old.id,
        "occurred_at": old.call["occurred_at"],
        "old_cost": old.call["total_cost"],
        "new_cost": new.call["total_cost"],
        "currency": new.call["currency"],
        "old_price_id": old.call["price_id"],
        "new_price_id": new.call["price_id"],
        "actor": actor,
        "reason": reason,
    }
