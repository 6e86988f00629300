"""Whose the lines of a batch are: they keep the tags of whoever created it, whoever reads them.

A batch is a pending call from its creation until its results have been read. Its lines are calls of their own that name it;
where the provider puts them into a file, it goes by the name of that file from then on. All of it may happen in several
processes, and each piece of news may come more than once: news of a batch that is not there means nothing.
"""

from __future__ import annotations

from collections.abc import Container, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any
from uuid import UUID

import sqlalchemy as sa

from flask_llm_cost.ledger.bulk import CALLS
from flask_llm_cost.ledger.rows import CallRows
from flask_llm_cost.ledger.stored import stored_calls
from flask_llm_cost.records import CallRecord


@dataclass(slots=True)
class Followed:
    """What a transaction's records become."""

    #: Records that are somebody else's: with the tags of whoever created their batch.
    changed: dict[UUID, CallRecord] = field(default_factory=dict)
    #: Records that are not to be written.
    skipped: set[UUID] = field(default_factory=set)
    #: Pending calls of batches that are over.
    gone: list[CallRows] = field(default_factory=list)


def in_order(record: CallRecord) -> tuple[int, int]:
    """Batches come before their news, these before their lines, and their ends last; otherwise by id."""
    if record.batch is None:
        return (2 if record.usage.source != "pending" else 0), record.id.int
    return (2 if record.is_call else 3 if record.batch_ended else 1), record.id.int


def follow(connection: sa.Connection, records: Sequence[CallRecord], held: Container[UUID]) -> Followed:
    """Find the batches that *records* name, among them and in the ledger.

    :param records: in order
    :param held: ids that are in the ledger already
    """
    followed = Followed()
    wanted = {record.batch for record in records if record.batch is not None}
    if not wanted:
        return followed
    stored = {rows.id: rows for rows in stored_calls(connection, wanted, CALLS.c.usage_source == "pending", lock=True)}
    makers = {name: _words_of(rows) for name, rows in stored.items()}
    for record in records:
        if record.batch is None:
            if record.id in wanted and record.usage.source == "pending" and record.id not in held:
                makers[record.id] = _words(record)
            continue
        maker = makers.get(record.batch)
        if record.is_call:
            if maker is not None:
                followed.changed[record.id] = _made_by(maker, record)
            continue
        if record.batch_ended or maker is None or record.id in held:
            followed.skipped.add(record.id)
        else:
            followed.changed[record.id] = _made_by(maker, record)
            makers[record.id] = maker
        if maker is not None:
            del makers[record.batch]
            if record.batch in stored:
                followed.gone.append(stored[record.batch])
            else:
                followed.skipped.add(record.batch)
    return followed


def _words_of(rows: CallRows) -> Mapping[str, Any]:
    tags = {tag["key"]: tag["value"] for tag in rows.tags}
    return {"tags": tags, "occurred_at": rows.call["occurred_at"], "requested_model": rows.call["requested_model"]}


def _words(record: CallRecord) -> Mapping[str, Any]:
    return {"tags": record.tags, "occurred_at": record.occurred_at, "requested_model": record.requested_model}


def _made_by(maker: Mapping[str, Any], record: CallRecord) -> CallRecord:
    return replace(record, **maker)
