"""Holds in the database: taken before a call, and what becomes of them.

Who changes a hold has the row of its period locked, and rows of periods are locked one by one in ascending order of their
ids: so nothing is counted twice, and nobody waits for somebody who waits for him. SQLite has one writer at a time.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from decimal import ROUND_CEILING, ROUND_HALF_EVEN, Context, Decimal
from typing import Any, Final, cast
from uuid import UUID

import sqlalchemy as sa

from flask_llm_cost.budgets.accounts import Account
from flask_llm_cost.ledger.change import DoFirst
from flask_llm_cost.ledger.columns import Money
from flask_llm_cost.ledger.models import BudgetHold, BudgetPeriod, Counter
from flask_llm_cost.ledger.transaction import ConflictError

PERIODS: Final = cast(sa.Table, BudgetPeriod.__table__)
HOLDS: Final = cast(sa.Table, BudgetHold.__table__)
COUNTERS: Final = cast(sa.Table, Counter.__table__)

OPEN, SETTLED, UNRESOLVED, RELEASED = "open", "settled", "unresolved", "released"

#: How many holds one transaction moves at most.
BATCH: Final = 500
#: How long a hold that is done with is kept.
KEPT: Final = timedelta(days=7)

_MARGIN: Final = timedelta(minutes=1)

ZERO: Final = Decimal(0)
_LAST_PLACE: Final = Decimal(1).scaleb(-12)
_EXACT: Final = Context(prec=64)


def stored(amount: Decimal | int, account_scale: Decimal, *, up: bool = False) -> Decimal:
    """An amount of a budget's unit as its column keeps it.

    :param up: rounded up, for what must not be too little
    """
    quotient = _EXACT.divide(Decimal(amount), account_scale)
    return quotient.quantize(_LAST_PLACE, ROUND_CEILING if up else ROUND_HALF_EVEN, _EXACT)


@dataclass(frozen=True, slots=True)
class Hold:
    """What a call asks of one account, as stored.

    :param limit: ``None`` where this account has none
    """

    account: Account
    amount: Decimal
    limit: Decimal | None


@dataclass(frozen=True, slots=True)
class Standing:
    """What an account has, as stored."""

    spent: Decimal
    held: Decimal
    unresolved: Decimal

    @property
    def total(self) -> Decimal:
        return self.spent + self.held + self.unresolved


@dataclass(frozen=True, slots=True)
class Refusal:
    """The account that could not take a hold, and what it had."""

    hold: Hold
    standing: Standing


def too_much_alone(wanted: Iterable[Hold]) -> Refusal | None:
    """The limit of a single call that it may pass."""
    for hold in wanted:
        if hold.account.budget.period == "call" and hold.limit is not None and hold.amount > hold.limit:
            return Refusal(hold, Standing(ZERO, ZERO, ZERO))
    return None


def _money(name: str) -> sa.BindParameter[Decimal]:
    return sa.bindparam(name, type_=Money())


_JUDGED: Final = PERIODS.c.spent + PERIODS.c.unresolved + PERIODS.c.held
_TAKE: Final = (
    sa.update(PERIODS)
    .where(PERIODS.c.id == sa.bindparam("row"), _JUDGED + _money("amount") <= _money("limit"))
    .values(held=PERIODS.c.held + _money("amount"), limit_amount=_money("limit"), updated_at=sa.bindparam("now"))
)
_TAKE_UNLIMITED: Final = (
    sa.update(PERIODS)
    .where(PERIODS.c.id == sa.bindparam("row"))
    .values(held=PERIODS.c.held + _money("amount"), limit_amount=None, updated_at=sa.bindparam("now"))
)
_STANDING: Final = sa.select(PERIODS.c.spent, PERIODS.c.held, PERIODS.c.unresolved).where(
    PERIODS.c.id == sa.bindparam("row")
)
_LOCK: Final = sa.update(PERIODS).where(PERIODS.c.id == sa.bindparam("row")).values(updated_at=sa.bindparam("now"))
_MOVE: Final = (
    sa.update(PERIODS)
    .where(PERIODS.c.id == sa.bindparam("row"))
    .values(
        spent=PERIODS.c.spent + _money("more_spent"),
        held=PERIODS.c.held + _money("more_held"),
        unresolved=PERIODS.c.unresolved + _money("more_unresolved"),
        updated_at=sa.bindparam("now"),
    )
)
_SET_LIMIT: Final = sa.update(PERIODS).where(PERIODS.c.id == sa.bindparam("row")).values(limit_amount=_money("limit"))
_BLOCKED: Final = (
    sa.update(PERIODS)
    .where(PERIODS.c.id == sa.bindparam("row"))
    .values(
        blocked_calls=PERIODS.c.blocked_calls + sa.bindparam("calls"),
        limit_amount=_money("limit"),
        updated_at=sa.bindparam("now"),
    )
)


def open_accounts(accounts: Iterable[tuple[Account, Decimal | None]]) -> Callable[[sa.Connection], None]:
    """Makes the rows of *accounts* that are not there, each with its limit: in a transaction of its own, beforehand.

    In the transaction that takes the hold, MariaDB's first callers of a new period run into each other's locks.
    """
    wanted = {account.id: (account, limit) for account, limit in accounts}

    def work(connection: sa.Connection) -> None:
        there = set(connection.scalars(sa.select(PERIODS.c.id).where(PERIODS.c.id.in_(wanted))))
        now = datetime.now(UTC)
        for period_id in sorted(wanted.keys() - there, key=lambda missing: missing.int):
            # Whoever else makes it at this moment is an error of integrity here: all is looked at again.
            connection.execute(sa.insert(PERIODS).values(period_row(*wanted[period_id], now)))

    return work


def period_row(account: Account, limit: Decimal | None, now: datetime) -> dict[str, Any]:
    """The row of an account that nothing has been spent of."""
    budget, period = account.budget, account.period
    return {
        "id": account.id,
        "budget": budget.name,
        "scope": account.scope,
        "period": budget.period,
        "starts_at": period.starts_at,
        "ends_at": period.ends_at,
        "unit": budget.unit,
        "currency": budget.currency,
        "limit_amount": limit,
        "spent": ZERO,
        "held": ZERO,
        "unresolved": ZERO,
        "blocked_calls": 0,
        # A batch that begins an account took its own time before.
        "created_at": now - _MARGIN,
        "updated_at": now,
    }


def standing(connection: sa.Connection, period: UUID) -> Standing | None:
    """What an account has now; ``None`` where it has no row yet."""
    row = connection.execute(_STANDING, {"row": period}).one_or_none()
    return None if row is None else Standing(row.spent, row.held, row.unresolved)


def take(call_id: UUID, holds: Sequence[Hold], now: datetime) -> Callable[[sa.Connection], Refusal | None]:
    """Takes all of *holds* for a call, or none, and says who refused."""
    ordered = sorted(holds, key=lambda hold: hold.account.id.int)

    def work(connection: sa.Connection) -> Refusal | None:
        for hold in ordered:
            values = {"row": hold.account.id, "amount": hold.amount, "now": now}
            if hold.limit is None:
                taken = connection.execute(_TAKE_UNLIMITED, values).rowcount
            else:
                taken = connection.execute(_TAKE, {**values, "limit": hold.limit}).rowcount
            if taken:
                continue
            found = standing(connection, hold.account.id)
            if found is None:
                raise DoFirst(open_accounts((other.account, other.limit) for other in ordered))
            if hold.limit is None or found.total + hold.amount <= hold.limit:
                # There is room by now: somebody made the row, or gave something back, between the two statements.
                raise ConflictError
            connection.rollback()
            return Refusal(hold, found)
        connection.execute(sa.insert(HOLDS), [_hold_row(call_id, hold, now) for hold in ordered])
        return None

    return work


def _hold_row(call_id: UUID, hold: Hold, now: datetime) -> dict[str, Any]:
    return {
        "call_id": call_id,
        "period_id": hold.account.id,
        "amount": hold.amount,
        "actual": None,
        "state": OPEN,
        "created_at": now,
        "expires_at": now + timedelta(seconds=hold.account.budget.hold_seconds),
        "settled_at": None,
    }


def count_blocked(account: Account, limit: Decimal | None, calls: int = 1) -> Callable[[sa.Connection], None]:
    """Counts calls that an account refused."""

    def work(connection: sa.Connection) -> None:
        values = {"row": account.id, "calls": calls, "limit": limit, "now": datetime.now(UTC)}
        if not connection.execute(_BLOCKED, values).rowcount:
            raise DoFirst(open_accounts([(account, limit)]))

    return work


@dataclass(slots=True)
class Move:
    """By how much one account moves."""

    spent: Decimal = ZERO
    held: Decimal = ZERO
    unresolved: Decimal = ZERO

    def without(self, hold: Mapping[str, Any]) -> None:
        """What a hold has stood for until now is not held any more, nor unresolved."""
        if hold["state"] == OPEN:
            self.held -= hold["amount"]
        elif hold["state"] == UNRESOLVED:
            self.unresolved -= hold["amount"]


def move(connection: sa.Connection, moves: Mapping[UUID, Move], now: datetime) -> set[UUID]:
    """Move accounts, in the one order. Returns those whose row is there."""
    there = set()
    for period_id in sorted(moves, key=lambda key: key.int):
        moved = moves[period_id]
        values = {
            "row": period_id,
            "more_spent": moved.spent,
            "more_held": moved.held,
            "more_unresolved": moved.unresolved,
            "now": now,
        }
        if connection.execute(_MOVE, values).rowcount:
            there.add(period_id)
    return there


def set_limits(connection: sa.Connection, limits: Mapping[UUID, Decimal]) -> None:
    """Say the limits that the app has told, and lock the rows."""
    for period_id in sorted(limits, key=lambda key: key.int):
        connection.execute(_SET_LIMIT, {"row": period_id, "limit": limits[period_id]})


def locked(
    connection: sa.Connection, *which: sa.ColumnElement[bool], now: datetime, most: int | None = None
) -> list[dict[str, Any]]:
    """The holds of which this is true, with the rows of their periods locked: looked at, locked, looked at again."""
    chosen = sa.select(HOLDS).where(*which).limit(most)
    found = [dict(row) for row in connection.execute(chosen).mappings()]
    if not found or connection.dialect.name == "sqlite":
        return found
    periods = {row["period_id"] for row in found}
    for period_id in sorted(periods, key=lambda key: key.int):
        connection.execute(_LOCK, {"row": period_id, "now": now})
    calls = {row["call_id"] for row in found}
    again = sa.select(HOLDS).where(*which, HOLDS.c.call_id.in_(calls), HOLDS.c.period_id.in_(periods))
    return [dict(row) for row in connection.execute(again).mappings()]


def close(connection: sa.Connection, holds: Iterable[Mapping[str, Any]], state: str, now: datetime) -> None:
    """Say what became of holds: what each still stands for, as its ``amount``, and what it is known to have cost."""
    closing = (
        sa.update(HOLDS)
        .where(HOLDS.c.call_id == sa.bindparam("call"), HOLDS.c.period_id == sa.bindparam("period"))
        .values(state=state, amount=_money("what_stands"), actual=_money("what_it_was"), settled_at=now)
    )
    values = [
        {
            "call": row["call_id"],
            "period": row["period_id"],
            "what_stands": row["amount"],
            "what_it_was": row["actual"],
        }
        for row in holds
    ]
    if values:
        connection.execute(closing, values)


def void(call_id: UUID, periods: Collection[UUID] | None = None) -> Callable[[sa.Connection], None]:
    """Gives back what a call holds that was never sent, or was refused by the provider: it costs nothing.

    :param periods: only of these accounts, in which it does not count after all
    """

    def work(connection: sa.Connection) -> None:
        now = datetime.now(UTC)
        which = [HOLDS.c.call_id == call_id, HOLDS.c.state.in_((OPEN, UNRESOLVED))]
        if periods is not None:
            which.append(HOLDS.c.period_id.in_(periods))
        holds = locked(connection, *which, now=now)
        moves: dict[UUID, Move] = {}
        for hold in holds:
            moves.setdefault(hold["period_id"], Move()).without(hold)
        move(connection, moves, now)
        if periods is None:
            close(connection, holds, RELEASED, now)
        else:  # gone: what the call is going to cost would be counted where it has a hold, of whatever state
            connection.execute(sa.delete(HOLDS).where(*which))

    return work


def expire(connection: sa.Connection) -> list[UUID]:
    """Count as unresolved what nobody has heard of for too long. Returns the account of each hold."""
    now = datetime.now(UTC)
    holds = locked(connection, HOLDS.c.state == OPEN, HOLDS.c.expires_at < now, now=now, most=BATCH)
    moves: dict[UUID, Move] = {}
    for hold in holds:
        moved = moves.setdefault(hold["period_id"], Move())
        moved.without(hold)
        moved.unresolved += hold["amount"]
    move(connection, moves, now)
    close(connection, holds, UNRESOLVED, now)
    return [hold["period_id"] for hold in holds]


def forget(connection: sa.Connection) -> int:
    """Delete what has been done with for long. Returns how many holds that were."""
    done = sa.and_(HOLDS.c.state.in_((SETTLED, RELEASED)), HOLDS.c.expires_at < datetime.now(UTC) - KEPT)
    keys = connection.execute(sa.select(HOLDS.c.call_id, HOLDS.c.period_id).where(done).limit(BATCH)).all()
    for call_id, period_id in sorted(keys, key=lambda key: (key[1].int, key[0].int)):
        connection.execute(sa.delete(HOLDS).where(HOLDS.c.call_id == call_id, HOLDS.c.period_id == period_id, done))
    return len(keys)


def count(counts: Mapping[str, int], connection: sa.Connection) -> None:
    """Add to the ledger's counters."""
    now = datetime.now(UTC)
    for name in sorted(counts):
        values = {"value": COUNTERS.c.value + counts[name], "updated_at": now}
        if not connection.execute(sa.update(COUNTERS).where(COUNTERS.c.name == name).values(values)).rowcount:
            connection.execute(sa.insert(COUNTERS).values(name=name, value=counts[name], text=None, updated_at=now))
