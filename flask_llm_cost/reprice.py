"""Pricing calls again that are in the ledger: what had no price, or what was priced by a book that was wrong.

Each call is priced by its own rows and with the prices of the time at which it was sent. Nothing is locked while that is
worked out; what somebody else changes meanwhile is left alone.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from decimal import Decimal
from typing import Any, Final
from uuid import UUID

import sqlalchemy as sa
from sqlalchemy.orm import Session

from flask_llm_cost.ledger.columns import to_money
from flask_llm_cost.ledger.models import Call
from flask_llm_cost.ledger.repricing import Repricing
from flask_llm_cost.ledger.repricing import reprice as write
from flask_llm_cost.ledger.rows import CallRows, counted_quantities
from flask_llm_cost.ledger.store import Ledger
from flask_llm_cost.ledger.stored import stored_calls
from flask_llm_cost.pricing import PriceBook
from flask_llm_cost.records import CallRecord, Cost, Usage

BATCH: Final = 500
ACTOR: Final = "flask llm-cost"

_ZERO: Final = Decimal(0)


@dataclass(slots=True)
class Difference:
    """What becomes of the calls of one model, in one currency.

    :param calls: how many change
    :param priced: how many of them had no price before
    """

    calls: int = 0
    priced: int = 0
    old: Decimal = _ZERO
    new: Decimal = _ZERO


@dataclass(slots=True)
class Outcome:
    """What pricing again came to.

    :param by_model: provider, model and currency to the difference
    :param looked_at: how many calls were priced
    :param without: calls that still have no price, or less of one than they have now: they stay as they are
    :param billed: calls whose provider says what it charged, which is the bill whatever a book says
    :param changed_meanwhile: calls that somebody else changed while this ran
    """

    by_model: dict[tuple[str, str, str], Difference] = field(default_factory=dict)
    looked_at: int = 0
    changed: int = 0
    without: int = 0
    billed: int = 0
    changed_meanwhile: int = 0


def record_of(stored: CallRows) -> CallRecord | None:
    """A call as it was before it was priced, from its own rows; ``None`` where nothing was counted."""
    call = stored.call
    quantities = counted_quantities(stored)
    if not quantities:
        return None
    return CallRecord(
        id=call["id"],
        occurred_at=call["occurred_at"],
        provider=call["provider"],
        operation=call["operation"],
        host=call["host"],
        model=call["model"],
        requested_model=call["requested_model"],
        usage=Usage(quantities, source=call["usage_source"], reasoning_tokens=call["reasoning_tokens"]),
        pricing_mode=call["pricing_mode"],
    )


def backfilled(stored: CallRows, cost: Cost) -> bool:
    """Whether *cost* prices what had no price, and leaves every line alone that has one."""
    if cost.status == "unpriced":
        return False
    before = {item["component"]: item for item in stored.items if item["cost"] is not None}
    lines = {line.component: line for line in cost.lines if line.cost is not None}
    kept = all(component in lines and to_money(lines[component].cost) == item["cost"] for component, item in before.items())
    return kept and len(lines) > len(before)


def repriced(stored: CallRows, cost: Cost) -> bool:
    """Whether *cost* is another one, and no less complete."""
    before = sum(item["cost"] is None for item in stored.items)
    if cost.status == "unpriced" or sum(line.cost is None for line in cost.lines) > before:
        return False
    call = stored.call
    return (call["total_cost"], call["cost_status"], call["currency"]) != (to_money(cost.total), cost.status, cost.currency)


def conditions(*, backfill: bool, since: datetime | None = None, until: datetime | None = None) -> list[Any]:
    """Which calls are looked at."""
    found: list[Any] = [Call.usage_source.not_in(("pending", "unknown"))]
    if backfill:
        found.append(Call.cost_status.in_(("unpriced", "partial")))
    if since is not None:
        found.append(Call.occurred_at >= since)
    if until is not None:
        found.append(Call.occurred_at < until)
    return found


def count(session: Session, where: Sequence[Any]) -> int:
    """How many calls are looked at."""
    return session.scalar(sa.select(sa.func.count()).select_from(Call).where(*where)) or 0


def price_again(
    ledger: Ledger,
    book: PriceBook,
    *,
    kind: str,
    where: Sequence[Any],
    dry_run: bool,
    told: Callable[[int], None] = lambda _count: None,
) -> Outcome:
    """Price calls again, in transactions of 500 each. Stopped half-way, the next run does the rest.

    :param kind: ``backfill`` or ``reprice``
    :param where: from :func:`conditions`
    :param dry_run: write nothing
    :param told: how many calls have been looked at since it was last called
    :raises LedgerError: the database is away; what was changed before stays
    """
    outcome = Outcome()
    # What comes in from now on is priced by whoever writes it.
    where = [*where, Call.recorded_at <= datetime.now(UTC)]
    better = backfilled if kind == "backfill" else repriced
    reason = f"prices {book.version}"[:256]
    for batch in _batches(ledger, where):
        repricings: list[Repricing] = []
        for stored in batch:
            if any(item["component"] == "billed_request" for item in stored.items):
                outcome.billed += 1
                continue
            record = record_of(stored)
            cost = book.price_record(record) if record is not None else None
            outcome.looked_at += 1
            if cost is not None and better(stored, cost):
                repricings.append(Repricing(stored, cost))
            elif cost is None or cost.status in ("unpriced", "partial"):
                outcome.without += 1
        done = {item.stored.id for item in repricings}
        if repricings and not dry_run:
            done = set(write(ledger.writer, repricings, kind=kind, actor=ACTOR, reason=reason))
            outcome.changed_meanwhile += len(repricings) - len(done)
        for item in repricings:
            if item.stored.id in done:
                _add(outcome, item)
        told(len(batch))
    return outcome


def _add(outcome: Outcome, item: Repricing) -> None:
    call, cost = item.stored.call, item.cost
    outcome.changed += 1
    key = (call["provider"], call["model"] or call["requested_model"] or "", cost.currency)
    difference = outcome.by_model.setdefault(key, Difference())
    difference.calls += 1
    difference.priced += call["total_cost"] is None
    if call["currency"] == cost.currency:
        difference.old += call["total_cost"] or _ZERO
    difference.new += to_money(cost.total) or _ZERO


def _batches(ledger: Ledger, where: Sequence[Any]) -> Iterator[Sequence[CallRows]]:
    """Calls with their rows in the order of their time, each once, whatever comes in meanwhile."""
    last: tuple[datetime, UUID] | None = None
    while True:
        query = sa.select(Call.occurred_at, Call.id).where(*where).order_by(Call.occurred_at, Call.id).limit(BATCH)
        if last is not None:
            at, call_id = last
            query = query.where(sa.or_(Call.occurred_at > at, sa.and_(Call.occurred_at == at, Call.id > call_id)))
        with ledger.session(replica=False) as session:
            found = session.execute(query).all()
            if not found:
                return
            rows = stored_calls(session.connection(), [call_id for _, call_id in found])
        yield rows
        last = found[-1][0], found[-1][1]


def table(by_model: Mapping[tuple[str, str, str], Difference]) -> Iterator[str]:
    """The difference by model, the largest first, and its sum by currency."""
    rows = sorted(by_model.items(), key=lambda row: -abs(row[1].new - row[1].old))
    sums: dict[str, Difference] = {}
    for (provider, model, currency), one in rows:
        yield _line(f"{provider}/{model}", one, currency)
        total = sums.setdefault(currency, Difference())
        total.calls, total.priced = total.calls + one.calls, total.priced + one.priced
        total.old, total.new = total.old + one.old, total.new + one.new
    for currency, total in sorted(sums.items()):
        yield _line("total", total, currency)


def _line(name: str, one: Difference, currency: str) -> str:
    fresh = f", {one.priced} without a price before" if one.priced else ""
    return (
        f"{name:<40} {one.calls:>8} calls  {one.old:>16.6f} -> {one.new:.6f} {currency}  ({one.new - one.old:+.6f}){fresh}"
    )
