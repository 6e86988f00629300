"""Calls as the ledger holds them, read back with their line items and tags, to be changed."""

from __future__ import annotations

from collections.abc import Collection
from typing import Any
from uuid import UUID

import sqlalchemy as sa

from flask_llm_cost.ledger.bulk import CALLS, ITEMS, TAGS
from flask_llm_cost.ledger.rows import CallRows, Row


def stored_calls(
    connection: sa.Connection, ids: Collection[UUID], *conditions: sa.ColumnElement[bool], lock: bool = False
) -> tuple[CallRows, ...]:
    """The calls of *ids* that are there and hold *conditions*, in order of id.

    :param connection: an engine's, or ``session.connection()``
    :param conditions: on columns of ``llm_cost_calls``
    :param lock: whether nobody else may change them until the transaction ends
    """
    query = sa.select(CALLS).where(CALLS.c.id.in_(ids), *conditions).order_by(CALLS.c.id)
    if lock:
        query = query.with_for_update()
    calls = [dict(row) for row in connection.execute(query).mappings()]
    found = [call["id"] for call in calls]
    items = _children(connection, ITEMS, found, ITEMS.c.position)
    tags = _children(connection, TAGS, found, TAGS.c.key)
    return tuple(CallRows(call, tuple(items.get(call["id"], ())), tuple(tags.get(call["id"], ()))) for call in calls)


def _children(connection: sa.Connection, table: sa.Table, ids: list[UUID], order: Any) -> dict[UUID, list[Row]]:
    found: dict[UUID, list[Row]] = {}
    if ids:
        query = sa.select(table).where(table.c.call_id.in_(ids)).order_by(order)
        for row in connection.execute(query).mappings():
            found.setdefault(row["call_id"], []).append(dict(row))
    return found
