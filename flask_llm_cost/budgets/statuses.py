"""What budgets have spent and hold: rows that are read, never sums over the calls, whatever the number of scopes."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from typing import Any
from uuid import UUID
from zoneinfo import ZoneInfo

import sqlalchemy as sa
from sqlalchemy.orm import Session

from flask_llm_cost.budgets.accounts import Account, Period, account_of, period_of
from flask_llm_cost.budgets.declaration import Budget, scale_of
from flask_llm_cost.budgets.holds import OPEN, UNRESOLVED, ZERO
from flask_llm_cost.budgets.limits import Lift, Limits, active_lifts, declared_limit
from flask_llm_cost.ledger.columns import EXACT, Money
from flask_llm_cost.ledger.models import BudgetHold, BudgetPeriod


@dataclass(frozen=True, slots=True)
class BudgetStatus:
    """One budget, for one scope and one period. Amounts are in the budget's unit: dollars, calls or tokens.

    :param budget: its name
    :param scope: ``tenant_id=42``, or ``all``
    :param period: ``call``, ``hour``, ``day``, ``week``, ``month`` or ``total``
    :param limit: as it is enforced now, a lift included; ``None`` where there is none
    :param spent: by calls whose cost is known
    :param held: by calls that are under way
    :param unresolved: by calls that nobody has heard of, or whose cost is not known
    :param blocked_calls: how many calls it refused
    :param starts_at: UTC
    :param ends_at: UTC; ``None`` where the period has no end
    :param exhausted_at: when the limit is reached if spending goes on as in this period so far; ``None`` where it is not
        reached within the period, or nothing was spent
    :param lifted_until: until when the limit is lifted, where it is
    """

    budget: str
    scope: str
    period: str
    unit: str
    currency: str
    action: str
    limit: Decimal | None
    spent: Decimal
    held: Decimal
    unresolved: Decimal
    blocked_calls: int
    starts_at: datetime
    ends_at: datetime | None
    exhausted_at: datetime | None = None
    lifted_until: datetime | None = None

    @property
    def used(self) -> Decimal:
        """What counts against the limit: spent, held and unresolved."""
        return EXACT.add(EXACT.add(self.spent, self.held), self.unresolved)

    @property
    def left(self) -> Decimal | None:
        """What may still be spent; ``None`` where there is no limit."""
        return None if self.limit is None else max(ZERO, EXACT.subtract(self.limit, self.used))

    @property
    def share(self) -> Decimal | None:
        """The used part of the limit: 1 is all of it. ``None`` where there is no limit, or it is 0."""
        return self.used / self.limit if self.limit else None

    @property
    def exhausted(self) -> bool:
        return self.limit is not None and self.used >= self.limit


@dataclass(frozen=True, slots=True)
class OpenHold:
    """What one call holds of one budget. ``state`` is ``open`` or ``unresolved``.

    The amount is in the unit and the currency that the budget had when it was held.
    """

    call_id: UUID
    budget: str
    scope: str
    unit: str
    amount: Decimal
    state: str
    created_at: datetime
    expires_at: datetime
    currency: str


def statuses(
    session: Session,
    budgets: Sequence[Budget],
    limits: Limits,
    zone: ZoneInfo,
    *,
    scope: str | None = None,
    at: datetime | None = None,
    most: int | None = 200,
) -> list[BudgetStatus]:
    """How each budget stands in the period that has *at*, the most used first; a budget nobody has used yet, too.

    :param scope: only this one, ``tenant_id=42``: for a tenant's own view. Budgets with one limit in all are left out then
    :param most: rows of each budget; ``None`` for all
    """
    now = at or datetime.now(UTC)
    lifts = {(lift.budget, lift.scope): lift for lift in active_lifts(session)}
    found: list[BudgetStatus] = []
    for budget in budgets:
        period = period_of(budget.period, now, zone)
        found += _statuses_of(session, budget, period, limits, lifts, zone, scope, now, most)
    return sorted(found, key=_how_used, reverse=True)


def _how_used(status: BudgetStatus) -> tuple[bool, Decimal]:
    return status.exhausted, status.share if status.share is not None else Decimal(-1)


def _statuses_of(
    session: Session,
    budget: Budget,
    period: Period,
    limits: Limits,
    lifts: dict[tuple[str, str], Lift],
    zone: ZoneInfo,
    scope: str | None,
    now: datetime,
    most: int | None,
) -> list[BudgetStatus]:
    query = (
        sa.select(BudgetPeriod)
        .where(
            BudgetPeriod.budget == budget.name,
            BudgetPeriod.starts_at == period.starts_at,
            BudgetPeriod.period == budget.period,
            BudgetPeriod.unit == budget.unit,
            BudgetPeriod.currency == budget.currency,
        )
        .order_by(_share_of(budget).desc(), BudgetPeriod.id)
        .limit(most)
    )
    if scope is not None:
        query = query.where(BudgetPeriod.scope == scope)
    rows = session.scalars(query).all()
    made = [status_of(account_of(budget, row.scope, now, zone), row, limits, lifts, now) for row in rows]
    if not made and budget.per is None and scope in (None, "all"):
        made = [status_of(account_of(budget, "all", now, zone), None, limits, lifts, now)]
    return made


def _share_of(budget: Budget) -> sa.ColumnElement[Any]:
    """The used part of the limit that was enforced last: which rows come first is the database's to say, not the app's."""
    used = BudgetPeriod.spent + BudgetPeriod.held + BudgetPeriod.unresolved
    limit = sa.func.coalesce(BudgetPeriod.limit_amount, sa.literal(declared_limit(budget), Money()), type_=Money())
    share = sa.type_coerce(used, sa.Float) * sa.literal_column("1.0") / sa.func.nullif(sa.type_coerce(limit, sa.Float), 0)
    return sa.case(
        (limit == sa.literal(ZERO, Money()), sa.literal_column("1000000000.0")), else_=sa.func.coalesce(share, -1)
    )


def status_of(
    account: Account, row: BudgetPeriod | None, limits: Limits, lifts: dict[tuple[str, str], Lift], now: datetime
) -> BudgetStatus:
    """How one account stands; without a row, nothing of it is used."""
    budget, scale = account.budget, account.budget.scale
    limit, lift = limits.asked([account]).get(account.id), lifts.get((budget.name, account.scope))
    if limit is not None and lift is not None and lift.to > limit:
        limit = lift.to
    else:
        lift = None
    spent, held, unresolved = (row.spent, row.held, row.unresolved) if row is not None else (ZERO, ZERO, ZERO)
    return BudgetStatus(
        budget=budget.name,
        scope=account.scope,
        period=budget.period,
        unit=budget.unit,
        currency=budget.currency,
        action=budget.action,
        limit=None if limit is None else _plain(limit * scale),
        spent=_plain(spent * scale),
        held=_plain(held * scale),
        unresolved=_plain(unresolved * scale),
        blocked_calls=row.blocked_calls if row is not None else 0,
        starts_at=account.period.starts_at,
        ends_at=account.period.ends_at,
        exhausted_at=_exhausted_at(account, limit, spent + held + unresolved, row, now),
        lifted_until=lift.until if lift is not None else None,
    )


def _plain(amount: Decimal) -> Decimal:
    """Without zeros at the end, and never in powers of ten."""
    amount = amount.normalize()
    return amount if amount.as_tuple().exponent in range(-12, 1) else amount.quantize(Decimal(1))


def _exhausted_at(
    account: Account, limit: Decimal | None, used: Decimal, row: BudgetPeriod | None, now: datetime
) -> datetime | None:
    """When the limit is reached at the pace so far."""
    if limit is None or row is None or not used:
        return None
    if used >= limit:
        return min(row.updated_at, now)
    began = account.period.starts_at if account.period.ends_at is not None else row.created_at
    elapsed = (now - began).total_seconds()
    if elapsed <= 0:
        return None
    seconds = float((limit - used) / used) * elapsed
    if seconds > 10 * 365 * 86_400:
        return None
    at = now + timedelta(seconds=seconds)
    return at if account.period.ends_at is None or at < account.period.ends_at else None


def open_holds(
    session: Session, budgets: Iterable[Budget], *, scope: str | None = None, most: int | None = 200
) -> list[OpenHold]:
    """What is held now, and what is unresolved, the oldest first.

    :param scope: only of this one, ``tenant_id=42``
    :param most: so many; ``None`` for all
    """
    query = (
        sa.select(BudgetHold, BudgetPeriod)
        .join(BudgetPeriod, BudgetPeriod.id == BudgetHold.period_id)
        .where(BudgetHold.state.in_((OPEN, UNRESOLVED)), BudgetPeriod.budget.in_([budget.name for budget in budgets]))
        .order_by(BudgetHold.created_at, BudgetHold.call_id, BudgetHold.period_id)
        .limit(most)
    )
    if scope is not None:
        query = query.where(BudgetPeriod.scope == scope)
    return [
        OpenHold(
            hold.call_id, period.budget, period.scope, period.unit, _plain(hold.amount * scale_of(period.unit)), hold.state,
            hold.created_at, hold.expires_at, period.currency,
        )
        for hold, period in session.execute(query)
    ]  # fmt: skip
