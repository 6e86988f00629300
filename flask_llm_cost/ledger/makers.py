"""Whose a call is that the provider's own id settles: of whoever made it, in whatever order, and by whomever, it is written.

Its maker's process may be slow, or dead with its spool waiting, while another one has read long ago how the call went. Who
makes a call names a model in the request; who asks how it went names none.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import replace
from datetime import datetime
from typing import Any, Final
from uuid import UUID

import sqlalchemy as sa

from flask_llm_cost.ledger.bulk import CALLS
from flask_llm_cost.ledger.rollup_state import read_state
from flask_llm_cost.ledger.rows import CallRows, tag_rows
from flask_llm_cost.ledger.stored import stored_calls
from flask_llm_cost.records import CallRecord, id_milliseconds

#: What a call keeps of its maker, beside the tags: when it was made, and how.
_WORDS: Final = ("occurred_at", "operation", "requested_model", "host", "stream", "attempt")


def united(records: Iterable[CallRecord]) -> list[CallRecord]:
    """One record for each id. Where one says how a call began and another how it ended, both are in it."""
    by_id: dict[UUID, list[CallRecord]] = {}
    for record in records:
        by_id.setdefault(record.id, []).append(record)
    return [_united(of_one) if len(of_one) > 1 else of_one[0] for of_one in by_id.values()]


def _united(records: Sequence[CallRecord]) -> CallRecord:
    last = records[-1]
    waiting = [record for record in records if record.usage.source == "pending"]
    if not waiting or last.batch is not None:
        return last
    maker = next((record for record in records if record.requested_model is not None), waiting[0])
    ended = [record for record in records if record.usage.source != "pending"]
    if not ended:
        return maker
    words = {name: getattr(maker, name) for name in _WORDS}
    return replace(ended[-1], tags=maker.tags, hold_id=maker.hold_id or ended[-1].hold_id, **words)


def settled(rows: CallRows, record: CallRecord) -> CallRecord:
    """How a call that waited went: it stays its maker's, which is who made *rows* unless *record* is the maker's own.

    :param rows: the call as it waits in the ledger
    :param record: how it ended
    """
    if rows.call["requested_model"] is None and record.requested_model is not None:
        return record
    tags = {tag["key"]: tag["value"] for tag in rows.tags}
    return replace(record, tags=tags, **{name: rows.call[name] for name in _WORDS})


def claimed(
    connection: sa.Connection, entries: Iterable[tuple[CallRecord, CallRows]], held: Collection[UUID]
) -> tuple[tuple[CallRows, ...], tuple[CallRows, ...]]:
    """Calls in the ledger that are somebody else's so far, as they are and as their makers' records make them.

    :param entries: records and their rows
    :param held: ids that are in the ledger
    """
    makers: Mapping[UUID, CallRows] = {
        record.id: rows
        for record, rows in entries
        if record.id in held and record.requested_model is not None and record.batch is None
    }
    if not makers:
        return (), ()
    found = stored_calls(connection, list(makers), CALLS.c.requested_model.is_(None), lock=True)
    return found, tuple(_of_maker(rows, makers[rows.id]) for rows in found)


def read_again(connection: sa.Connection, records: Iterable[CallRecord], held: Collection[UUID]) -> frozenset[UUID]:
    """Ids of records that bring no other call: of who asks once more how one went, where that was pruned meanwhile."""
    asked = [
        record
        for record in records
        if record.requested_model is None and record.id not in held
        if 0 < id_milliseconds(record.id) < _milliseconds(record.occurred_at) - 1
    ]
    state = read_state(connection) if asked else None
    pruned = state.pruned if state is not None else None
    if pruned is None:
        return frozenset()
    before = _milliseconds(pruned)
    return frozenset(record.id for record in asked if id_milliseconds(record.id) < before and record.occurred_at >= pruned)


def _milliseconds(at: datetime) -> float:
    return at.timestamp() * 1000


def _of_maker(rows: CallRows, maker: CallRows) -> CallRows:
    call: dict[str, Any] = {**rows.call, **{name: maker.call[name] for name in _WORDS}}
    tags = {tag["key"]: tag["value"] for tag in maker.tags}
    return CallRows(call, rows.items, tag_rows(call, tags), maker.hold_id)
