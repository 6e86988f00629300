"""What a change of the ledger moves: a step of the transaction that writes the calls, so that both happen or neither."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from decimal import Decimal
from typing import Any, Final, cast
from uuid import UUID
from zoneinfo import ZoneInfo

import sqlalchemy as sa

from flask_llm_cost.budgets import holds
from flask_llm_cost.budgets.accounts import Account, Period, Subject, account_id, accounts_of
from flask_llm_cost.budgets.declaration import Budget
from flask_llm_cost.budgets.holds import HOLDS, OPEN, PERIODS, RELEASED, SETTLED, UNRESOLVED, ZERO, Move, Standing, stored
from flask_llm_cost.budgets.limits import Limits
from flask_llm_cost.ledger.change import Change, DoFirst
from flask_llm_cost.ledger.models import Alert, Call
from flask_llm_cost.ledger.rows import CallRows, Row

_ALERTS: Final = cast(sa.Table, Alert.__table__)
_CALLS: Final = cast(sa.Table, Call.__table__)


@dataclass(frozen=True, slots=True)
class Crossing:
    """A threshold that an account has crossed, for the first time in any process. Amounts are in the budget's unit."""

    account: Account
    threshold: Decimal
    spent: Decimal
    limit: Decimal


@dataclass(frozen=True, slots=True)
class Measured:
    """An account whose thresholds a change may have crossed.

    :param amount: of the call, as stored, where the account is for a call alone; ``None`` where its row says what it has
    """

    account: Account
    amount: Decimal | None = None


def subject_of(rows: CallRows) -> Subject:
    """What budgets ask of a recorded call: from its rows, so that it is the same however it came here."""
    call = rows.call
    models = dict.fromkeys(name for name in (call["requested_model"], call["model"]) if name)
    return Subject(call["provider"], tuple(models), {tag["key"]: tag["value"] for tag in rows.tags}, call["occurred_at"])


def amount_of(unit: str, currency: str, call: Row) -> Decimal | None:
    """What a call adds to a budget of this unit, as stored; ``None`` where that is not known, or not in its currency."""
    if call["outcome"] == "blocked":
        return ZERO
    if unit == "calls":
        return stored(1, _MILLION)
    if unit == "tokens":
        tokens = call["total_tokens"]
        return None if tokens is None else stored(tokens, _MILLION)
    cost = call["total_cost"]
    return None if cost is None or call["currency"] != currency else stored(cost, Decimal(1))


_MILLION: Final = Decimal(1_000_000)


def standing_after(connection: sa.Connection, account: Account, call_id: UUID | None) -> Standing | None:
    """What an account has, or, where it is for a call alone, what that call came to; ``None`` where that is not known."""
    budget = account.budget
    if budget.period != "call":
        return holds.standing(connection, account.id)
    call = connection.execute(sa.select(_CALLS).where(_CALLS.c.id == call_id)).mappings().one_or_none()
    amount = None if call is None else amount_of(budget.unit, budget.currency, dict(call))
    return None if amount is None else Standing(amount, ZERO, ZERO)


class Settling:
    """The step. It asks nobody: a limit that only the app can say is asked for once the calls are in.

    :param moved: told of thresholds, and of accounts whose limits have to be asked for first, once the change is committed
    """

    def __init__(
        self,
        budgets: Sequence[Budget],
        zone: ZoneInfo,
        limits: Limits,
        moved: Callable[[Sequence[Crossing], Sequence[Measured]], None],
    ) -> None:
        self._budgets = tuple(budgets)
        self._holding = any(budget.blocks for budget in budgets)
        self._zone = zone
        self._limits = limits
        self._moved = moved
        #: Accounts whose row was made before anybody knew their limit: by now somebody else may have asked for it.
        self._without_limit: set[UUID] = set()

    def __call__(self, connection: sa.Connection, change: Change) -> Callable[[], None] | None:
        now = datetime.now(UTC)
        work = _Work(now)
        if self._holding:
            self._find_holds(connection, change, work)
        for sign, rows in ((-1, change.removed), (1, change.added)):
            for row in rows:
                self._count(row, sign, work)
        self._leave_out_what_was_never_counted(connection, change, work)
        there = holds.move(connection, work.moves, now)
        missing = [account for key, account in work.accounts.items() if key in work.moves and key not in there]
        if missing:
            known = self._limits.known(missing)
            self._without_limit.update(one.id for one in missing if one.budget.warn_at and one.id not in known)
            raise DoFirst(holds.open_accounts((account, known.get(account.id)) for account in missing))
        work.write_holds(connection)
        measured = [Measured(account) for key, account in work.accounts.items() if key in work.moves]
        measured = [found for found in (*measured, *work.single_calls) if found.account.budget.warn_at]
        known = self._limits.known(found.account for found in measured)
        crossings = self._cross(connection, measured, known, now)
        unasked = [found for found in measured if found.account.id not in known or found.account.id in self._without_limit]

        def tell() -> None:
            self._without_limit.difference_update(found.account.id for found in unasked)
            self._moved(crossings, unasked)

        return tell if crossings or unasked else None

    def measure(
        self, connection: sa.Connection, measured: Sequence[Measured], limits: Mapping[UUID, Decimal]
    ) -> list[Crossing]:
        """The thresholds that are crossed where limits had to be asked for: all of a transaction of its own."""
        lasting = [found.account.id for found in measured if found.amount is None]
        holds.set_limits(connection, {key: limits[key] for key in lasting if key in limits})
        return self._cross(connection, measured, limits, datetime.now(UTC))

    def _find_holds(self, connection: sa.Connection, change: Change, work: _Work) -> None:
        calls = {row.id: row.id for row in change.added}
        calls.update({row.hold_id: row.id for row in change.added if row.hold_id is not None})
        if not calls:
            return
        units = {
            row.id: (row.unit, row.currency)
            for row in connection.execute(
                sa.select(PERIODS.c.id, PERIODS.c.unit, PERIODS.c.currency)
                .where(PERIODS.c.id.in_(sa.select(HOLDS.c.period_id).where(HOLDS.c.call_id.in_(calls))))
            )
        }  # fmt: skip
        if not units:
            return
        for hold in holds.locked(connection, HOLDS.c.call_id.in_(calls), now=work.now):
            if hold["period_id"] in units:
                work.held.setdefault(calls[hold["call_id"]], []).append((dict(hold), *units[hold["period_id"]]))

    def _count(self, row: CallRows, sign: int, work: _Work) -> None:
        call = row.call
        accounts = accounts_of(self._budgets, subject_of(row), self._zone)
        counted: dict[UUID, Decimal | None] = {}
        for account in accounts:
            budget = account.budget
            amount = amount_of(budget.unit, budget.currency, call)
            if budget.period == "call":
                if sign > 0 and amount is not None:
                    key, at = account_id(budget, account.scope, str(call["id"])), call["occurred_at"]
                    work.single_calls.append(Measured(Account(budget, account.scope, Period(at, at), key), amount))
                continue
            work.accounts[account.id] = account
            counted[account.id] = amount
            if sign < 0:
                work.before.add((account.id, row.id))
        if sign > 0:
            # Its own first: those of other requests that turn out to be about the same call come after it.
            for hold, unit, currency in sorted(work.held.get(row.id, ()), key=lambda found: found[0]["call_id"] != row.id):
                period_id = hold["period_id"]
                if period_id not in counted:
                    # Not an account of its tags, or not any more: what it was counted with there, its hold says.
                    counted[period_id] = amount_of(unit, currency, call)
                    if hold["actual"] and (period_id, row.id) not in work.before:
                        work.parts.append((period_id, row.id, -hold["actual"]))
                work.settle(hold, counted[period_id], call)
        for period_id, amount in counted.items():
            if amount:
                work.parts.append((period_id, row.id, sign * amount))
            elif amount is None and sign > 0:
                # Nothing to add yet, but the account begins with it: a price that it gets later counts.
                work.moves.setdefault(period_id, Move())

    def _leave_out_what_was_never_counted(self, connection: sa.Connection, change: Change, work: _Work) -> None:
        """A call that was recorded before an account began is not in it: a new price of it does not move it either.

        One that turns out to be somebody else's is new to the account that it was not in before.
        """
        recorded = {row.id: row.call["recorded_at"] for row in change.removed}
        began: dict[UUID, datetime] = {}
        if recorded:
            touched = {period_id for period_id, _ in work.before}
            query = sa.select(PERIODS.c.id, PERIODS.c.created_at).where(PERIODS.c.id.in_(touched))
            began = {row.id: row.created_at for row in connection.execute(query)}
        for period_id, call_id, amount in work.parts:
            was_there = (period_id, call_id) in work.before
            if was_there and (period_id not in began or recorded[call_id] < began[period_id]):
                continue
            work.moves.setdefault(period_id, Move()).spent += amount

    def _cross(
        self, connection: sa.Connection, measured: Sequence[Measured], limits: Mapping[UUID, Decimal | None], now: datetime
    ) -> list[Crossing]:
        """The thresholds that are crossed by now and that no row says were crossed before.

        :param limits: without any lift: a lift only makes a limit higher, so most often none has to be looked for
        """
        totals = {found.account.id: found.amount for found in measured if limits.get(found.account.id) is not None}
        if lasting := [key for key, amount in totals.items() if amount is None]:
            query = sa.select(PERIODS.c.id, PERIODS.c.spent, PERIODS.c.unresolved).where(PERIODS.c.id.in_(lasting))
            totals.update({row.id: row.spent + row.unresolved for row in connection.execute(query)})
        reached: list[tuple[Account, Decimal, Decimal]] = []
        lifts_are_read = False
        for found in measured:
            account, key = found.account, found.account.id
            total, limit = totals.get(key), limits.get(key)
            if total is None or limit is None or total < limit * account.budget.warn_at[0]:
                continue
            if not lifts_are_read:
                self._limits.load_lifts(connection)
                lifts_are_read = True
            limit = self._limits.lifted(account, limit)
            if limit is None or total < limit * account.budget.warn_at[0]:
                continue
            reached.append((account, total, limit))
            if found.amount is not None and connection.scalar(sa.select(PERIODS.c.id).where(PERIODS.c.id == key)) is None:
                values = {**holds.period_row(account, limit, now), "spent": total}
                connection.execute(sa.insert(PERIODS).values(values))
        if not reached:
            return []
        told_of = _ALERTS.c.period_id.in_([account.id for account, *_ in reached])
        known = connection.execute(sa.select(_ALERTS.c.period_id, _ALERTS.c.threshold).where(told_of))
        told = {(row.period_id, row.threshold.normalize()) for row in known}
        crossings, rows = [], []
        for account, total, limit in reached:
            for threshold in account.budget.warn_at:
                if total < limit * threshold or (account.id, threshold) in told:
                    continue
                told.add((account.id, threshold))
                rows.append({"period_id": account.id, "threshold": threshold, "crossed_at": now, "total": total})
                scale = account.budget.scale
                crossings.append(Crossing(account, threshold, total * scale, limit * scale))
        if rows:
            connection.execute(sa.insert(_ALERTS), rows)
        return crossings


class _Work:
    """What one change comes to, gathered before anything is moved."""

    def __init__(self, now: datetime) -> None:
        self.now = now
        self.accounts: dict[UUID, Account] = {}
        #: Call to its holds, each with unit and currency.
        self.held: dict[UUID, list[tuple[Mapping[str, Any], str, str]]] = {}
        #: Period and call, of calls as they were before the change.
        self.before: set[tuple[UUID, UUID]] = set()
        #: Period, call, and by how much it adds to what is spent.
        self.parts: list[tuple[UUID, UUID, Decimal]] = []
        self.moves: dict[UUID, Move] = {}
        self.single_calls: list[Measured] = []
        self._closed: dict[str, list[dict[str, Any]]] = {SETTLED: [], UNRESOLVED: [], RELEASED: []}
        self._renamed: list[tuple[Mapping[str, Any], UUID]] = []
        #: Period and call, of holds that are settled.
        self._settled: set[tuple[UUID, UUID]] = set()

    def settle(self, hold: Mapping[str, Any], amount: Decimal | None, call: Row) -> None:
        """What becomes of a hold whose call is recorded with *amount*."""
        moved = self.moves.setdefault(hold["period_id"], Move())
        state = hold["state"]
        if (hold["period_id"], call["id"]) in self._settled:
            # One call has one hold of an account: a second request that turns out to be about it costs nothing itself.
            moved.without(hold)
            self._close(hold, hold["call_id"], RELEASED, None, hold["amount"])
            return
        self._settled.add((hold["period_id"], call["id"]))
        if hold["call_id"] != call["id"]:
            self._renamed.append((hold, call["id"]))
        if amount is None and call["usage_source"] == "pending":
            return
        if amount is None and state not in (OPEN, UNRESOLVED):
            self._close(hold, call["id"], state, None, hold["amount"])
            return
        moved.without(hold)
        rest = _rest_of(hold, amount, call)
        moved.unresolved += rest
        if amount is None or rest:
            self._close(hold, call["id"], UNRESOLVED, amount, rest)
        else:
            self._close(hold, call["id"], SETTLED, amount, hold["amount"])

    def _close(self, hold: Mapping[str, Any], call_id: UUID, state: str, actual: Decimal | None, amount: Decimal) -> None:
        closed = {"call_id": call_id, "period_id": hold["period_id"], "actual": actual, "amount": amount}
        self._closed[state].append(closed)

    def write_holds(self, connection: sa.Connection) -> None:
        for hold, call_id in self._renamed:
            # From now on it goes by the id by which the provider's later word will settle it.
            key = (HOLDS.c.call_id == hold["call_id"], HOLDS.c.period_id == hold["period_id"])
            connection.execute(sa.update(HOLDS).where(*key).values(call_id=call_id))
        for state, closed in self._closed.items():
            holds.close(connection, closed, state, self.now)


def _rest_of(hold: Mapping[str, Any], known: Decimal | None, call: Row) -> Decimal:
    """What a hold goes on standing for, until it is known, or somebody releases it.

    That is all of it where nothing is known of what the call cost. Where a stream was cut, the provider bills more than it
    had told by then: what is known is spent, and the hold stands for that much less. Both together are what it was at first.
    """
    if hold["state"] not in (OPEN, UNRESOLVED):
        return ZERO
    whole: Decimal = hold["amount"] + (hold["actual"] or ZERO)
    if known is None:
        return whole
    return max(ZERO, whole - known) if call["usage_source"] == "stream_partial" else ZERO
