"""What somebody does to a budget by hand: lift a limit, release what is unresolved, set right what does not add up.

Each leaves a row of ``llm_cost_adjustments``: what, when, by whom, and why.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from decimal import Decimal
from typing import Any, Final, cast
from uuid import UUID

import sqlalchemy as sa

from flask_llm_cost.budgets.accounts import Account
from flask_llm_cost.budgets.holds import (
    HOLDS,
    OPEN,
    PERIODS,
    RELEASED,
    UNRESOLVED,
    ZERO,
    Move,
    close,
    locked,
    move,
    stored,
)
from flask_llm_cost.budgets.limits import LIFT
from flask_llm_cost.ledger.models import Adjustment
from flask_llm_cost.records import new_call_id

_ADJUSTMENTS: Final = cast(sa.Table, Adjustment.__table__)


def _adjust(connection: sa.Connection, kind: str, **facts: Any) -> None:
    connection.execute(sa.insert(_ADJUSTMENTS).values(id=new_call_id(), made_at=datetime.now(UTC), kind=kind, **facts))


def lift(
    connection: sa.Connection, account: Account, to: Decimal, until: datetime | None, actor: str, reason: str | None
) -> None:
    """Raise the limit of one scope until a time. It works from the next call on, in every process."""
    budget = account.budget
    _adjust(
        connection,
        LIFT,
        budget=budget.name,
        scope=account.scope,
        amount=stored(to, budget.scale),
        currency=budget.currency,
        until=until,
        actor=actor[:128],
        reason=None if reason is None else reason[:256],
    )


@dataclass(frozen=True, slots=True)
class Released:
    """What was released of one account. The amount is as stored."""

    budget: str
    scope: str
    unit: str
    currency: str
    calls: int
    amount: Decimal


def release(
    connection: sa.Connection, name: str | None, scope: str | None, actor: str, reason: str | None
) -> list[Released]:
    """Stop counting what is unresolved: somebody has looked, and the provider did not bill it."""
    now = datetime.now(UTC)
    chosen = sa.select(PERIODS.c.id, PERIODS.c.budget, PERIODS.c.scope, PERIODS.c.unit, PERIODS.c.currency)
    if name is not None:
        chosen = chosen.where(PERIODS.c.budget == name)
    if scope is not None:
        chosen = chosen.where(PERIODS.c.scope == scope)
    waiting = sa.select(HOLDS.c.period_id).where(HOLDS.c.state == UNRESOLVED)
    periods = {row.id: row for row in connection.execute(chosen.where(PERIODS.c.id.in_(waiting)))}
    holds = locked(connection, HOLDS.c.state == UNRESOLVED, HOLDS.c.period_id.in_(periods), now=now) if periods else []
    moves: dict[UUID, Move] = {}
    calls: dict[UUID, int] = {}
    for hold in holds:
        moves.setdefault(hold["period_id"], Move()).unresolved -= hold["amount"]
        calls[hold["period_id"]] = calls.get(hold["period_id"], 0) + 1
    move(connection, moves, now)
    close(connection, holds, RELEASED, now)
    released = []
    for period_id, moved in moves.items():
        row = periods[period_id]
        released.append(Released(row.budget, row.scope, row.unit, row.currency, calls[period_id], -moved.unresolved))
        _adjust(
            connection, "release", budget=row.budget, scope=row.scope, amount=-moved.unresolved, actor=actor[:128],
            reason=reason,
        )  # fmt: skip
    return released


@dataclass(frozen=True, slots=True)
class Mismatch:
    """An account whose row does not say what its holds add up to. Amounts are as stored."""

    period_id: UUID
    budget: str
    scope: str
    starts_at: datetime
    held: Decimal
    open: Decimal
    unresolved: Decimal
    waiting: Decimal


def mismatches(connection: sa.Connection, period_id: UUID | None = None) -> list[Mismatch]:
    """The accounts that do not add up: ``held`` is the sum of open holds, ``unresolved`` that of unresolved ones."""
    sums = {
        state: sa.func.coalesce(sa.func.sum(sa.case((HOLDS.c.state == state, HOLDS.c.amount), else_=None)), ZERO)
        for state in (OPEN, UNRESOLVED)
    }
    query = (
        sa.select(
            PERIODS.c.id, PERIODS.c.budget, PERIODS.c.scope, PERIODS.c.starts_at, PERIODS.c.held, PERIODS.c.unresolved,
            sums[OPEN].label("open"), sums[UNRESOLVED].label("waiting"),
        )
        .select_from(PERIODS.outerjoin(HOLDS, sa.and_(HOLDS.c.period_id == PERIODS.c.id, HOLDS.c.state.in_(sums))))
        .group_by(
            PERIODS.c.id, PERIODS.c.budget, PERIODS.c.scope, PERIODS.c.starts_at, PERIODS.c.held, PERIODS.c.unresolved
        )
    )  # fmt: skip
    if period_id is not None:
        query = query.where(PERIODS.c.id == period_id)
    return [
        Mismatch(row.id, row.budget, row.scope, row.starts_at, row.held, row.open, row.unresolved, row.waiting)
        for row in connection.execute(query)
        if row.held != row.open or row.unresolved != row.waiting
    ]


def repair(connection: sa.Connection, actor: str) -> Sequence[Mismatch]:
    """Make every account say what its holds add up to. Returns what was wrong."""
    wrong = []
    for found in sorted(mismatches(connection), key=lambda mismatch: mismatch.period_id.int):
        now = datetime.now(UTC)
        move(connection, {found.period_id: Move()}, now)  # locks the row: what is read now stays so
        for mismatch in mismatches(connection, found.period_id):
            wrong.append(mismatch)
            off = Move(held=mismatch.open - mismatch.held, unresolved=mismatch.waiting - mismatch.unresolved)
            move(connection, {mismatch.period_id: off}, now)
            _adjust(
                connection, "repair", budget=mismatch.budget, scope=mismatch.scope, amount=off.held + off.unresolved,
                actor=actor[:128], reason="held and unresolved are what the holds add up to",
            )  # fmt: skip
    return wrong
