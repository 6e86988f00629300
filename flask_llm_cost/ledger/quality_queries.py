"""How sound the numbers are: what was counted, what was priced, what is missing, and what was changed since."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, replace
from datetime import date, datetime
from decimal import Decimal
from typing import Final
from zoneinfo import ZoneInfo

import sqlalchemy as sa
from sqlalchemy.orm import Session

from flask_llm_cost.ledger.answers import Amounts, Grouping, Keys, Sums, add, some
from flask_llm_cost.ledger.endings import under
from flask_llm_cost.ledger.filter import Filter
from flask_llm_cost.ledger.models import Adjustment, Call, Counter
from flask_llm_cost.ledger.pieces import days_and_calls
from flask_llm_cost.ledger.queries import ESTIMATED_SOURCES, FAILED_OUTCOMES, UNCOUNTED_SOURCES
from flask_llm_cost.ledger.rollup_answers import check_detail
from flask_llm_cost.ledger.rollup_state import state_of
from flask_llm_cost.ledger.rollup_tables import EndingRows, Question

_MOST: Final = 500
_SUMS: Final = ("calls", "latency_calls", "priced_calls", "cost")
#: What is told of how calls ended, of ``endings.ENDED``.
_HOW: Final = ("stream", "outcome", "usage_source", "cost_status", "flags", "computed")


@dataclass(frozen=True, slots=True, kw_only=True)
class Soundness:
    """Calls of one provider that are alike in how they ended and were counted.

    :param compared: whether the provider's bill can be set beside the price book's figure
    :param timed: of how many the latency is known
    """

    provider: str
    stream: bool
    outcome: str
    usage_source: str
    cost_status: str
    flags: str | None
    compared: bool
    calls: int
    timed: int
    cost: Decimal | None

    @property
    def failed(self) -> bool:
        """Refused or failed, and nothing was reported: nothing is missing for it."""
        return self.uncounted and self.outcome in FAILED_OUTCOMES

    @property
    def uncounted(self) -> bool:
        return self.cost_status == "unpriced" and self.usage_source in UNCOUNTED_SOURCES

    @property
    def estimated(self) -> bool:
        return self.usage_source in ESTIMATED_SOURCES

    @property
    def inconsistent(self) -> bool:
        return bool(self.flags and ("inconsistent" in self.flags or "malformed" in self.flags))


def soundness(session: Session, flt: Filter) -> list[Soundness]:
    """The calls by how they ended and were counted, the most frequent kind first.

    :raises DetailPrunedError: only calls could answer, and some of them were pruned
    """
    state = state_of(session)
    found: Sums = {}
    tag = under(flt, state) if state is not None and state.complete else None
    if state is None or tag is None:
        check_detail(flt, state)
        add(found, _endings_of_calls(session, flt))
    else:
        question = Question(flt, Grouping(dimensions=("provider", *_HOW), measures=_SUMS), state.days, tag, frozenset())
        for source, part, sign in days_and_calls(flt, state.days):
            if source == "days":
                add(found, EndingRows(session, replace(question, flt=part), source, None).sums(), sign)
            else:
                check_detail(part, state)
                add(found, _endings_of_calls(session, part), sign)
    rows = [_soundness(keys, amounts) for keys, amounts in some(found).items()]
    return sorted(rows, key=lambda row: (-row.calls, row.provider, row.outcome, row.usage_source))[:_MOST]


def _endings_of_calls(session: Session, flt: Filter) -> Sums:
    computed = sa.case((Call.computed_cost.is_(None), 0), else_=1)
    keys = (Call.provider, *(getattr(Call, name) for name in _HOW[:-1]), computed)
    sums = (sa.func.count(), sa.func.count(Call.latency_ms), sa.func.count(Call.total_cost), sa.func.sum(Call.total_cost))
    query = sa.select(*keys, *sums).where(*flt.conditions()).group_by(*keys)
    found: Sums = {}
    for provider, stream, outcome, source, status, flags, both, *amounts in session.execute(query):
        key = (provider, bool(stream), outcome, source, status, flags or None, bool(both))
        add(found, {key: [*amounts[:-1], amounts[-1] or Decimal(0)]})
    return found


def _soundness(keys: Keys, amounts: Amounts) -> Soundness:
    provider, stream, outcome, source, status, flags, computed = keys
    calls, timed, priced, cost = amounts
    return Soundness(
        provider=str(provider), stream=bool(stream), outcome=str(outcome), usage_source=str(source),
        cost_status=str(status), flags=None if flags is None else str(flags), compared=bool(computed),
        calls=int(calls), timed=int(timed), cost=cost if priced else None,
    )  # fmt: skip


def count(rows: Iterable[Soundness]) -> int:
    return sum(row.calls for row in rows)


@dataclass(frozen=True, slots=True, kw_only=True)
class Change:
    """What was changed about the calls of one month, by what, after that month had ended or not.

    :param amount: by how much their sum moved
    """

    month: date
    kind: str
    calls: int
    amount: Decimal
    currency: str
    last: datetime
    booked: bool


def changes(session: Session, *, since: datetime, zone: ZoneInfo, most: int = 20000) -> list[Change]:
    """What backfill and reprice changed since an instant, by the month of the calls, the latest month first."""
    rows = session.execute(
        sa.select(
            Adjustment.kind, Adjustment.occurred_at, Adjustment.made_at, Adjustment.old_cost, Adjustment.new_cost,
            Adjustment.currency,
        )
        .where(Adjustment.kind.in_(("backfill", "reprice")), Adjustment.made_at >= since)
        .order_by(Adjustment.made_at.desc())
        .limit(most)
    )  # fmt: skip
    found: dict[tuple[date, str, str, bool], list[tuple[Decimal, datetime]]] = {}
    for kind, occurred, made, old, new, currency in rows:
        if occurred is None:
            continue
        month = occurred.astimezone(zone).date().replace(day=1)
        booked = made.astimezone(zone).date().replace(day=1) > month
        moved = (new or Decimal(0)) - (old or Decimal(0))
        found.setdefault((month, kind, currency or "USD", booked), []).append((moved, made))
    return [
        Change(
            month=month, kind=kind, calls=len(parts), amount=sum((moved for moved, _ in parts), Decimal(0)),
            currency=currency, last=max(made for _, made in parts), booked=booked,
        )
        for (month, kind, currency, booked), parts in sorted(found.items(), key=lambda item: item[0], reverse=True)
    ]  # fmt: skip


@dataclass(frozen=True, slots=True)
class Mark:
    """A count or a mark that outlives a process."""

    name: str
    value: int
    text: str | None
    at: datetime


def marks(session: Session) -> dict[str, Mark]:
    """All of them, by name."""
    rows = session.execute(sa.select(Counter.name, Counter.value, Counter.text, Counter.updated_at).limit(_MOST))
    return {name: Mark(name, value, text, at) for name, value, text, at in rows}
