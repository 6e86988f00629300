"""Which budgets apply to a call, and to which account each of them puts it: one a budget, scope and period."""

from __future__ import annotations

import functools
import hashlib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from fnmatch import fnmatchcase
from typing import Final
from uuid import UUID
from zoneinfo import ZoneInfo

from flask_llm_cost.budgets.declaration import Budget
from flask_llm_cost.ledger.local_time import offset_changes, start_of_day
from flask_llm_cost.ledger.rows import clean_text
from flask_llm_cost.records import content_id

#: The scope of a budget that has one limit in all.
ALL: Final = "all"

_EPOCH: Final = datetime(1970, 1, 1, tzinfo=UTC)
_DAY: Final = timedelta(days=1)
#: Of what ``fnmatch`` takes for special, a filter has the star alone.
_AS_THEY_ARE: Final = str.maketrans({"[": "[[]", "?": "[?]"})


@dataclass(frozen=True, slots=True)
class Period:
    """A half-open stretch of time, in UTC. ``ends_at`` is ``None`` where it has no end."""

    starts_at: datetime
    ends_at: datetime | None


@functools.lru_cache(maxsize=1024)
def _period_of_minute(kind: str, minute: datetime, zone: ZoneInfo) -> Period:
    if kind == "hour":
        return _hour_of(minute.astimezone(UTC), zone)
    first = minute.astimezone(zone).date()
    if kind == "day":
        after = first + _DAY
    elif kind == "week":
        first -= _DAY * first.weekday()
        after = first + 7 * _DAY
    else:
        first = first.replace(day=1)
        after = (first + 31 * _DAY).replace(day=1)
    return Period(start_of_day(first, zone), start_of_day(after, zone))


def _hour_of(minute: datetime, zone: ZoneInfo) -> Period:
    """The hour on the clocks of *zone*. One within which they are moved, as by half an hour, is two."""
    starts_at = minute - timedelta(minutes=minute.astimezone(zone).minute)
    ends_at = starts_at + timedelta(hours=1)
    for change, _ in offset_changes(zone, starts_at, ends_at):
        if change is not None and change <= minute:
            starts_at = change
        elif change is not None:
            ends_at = change
    return Period(starts_at, ends_at)


def period_of(kind: str, at: datetime, zone: ZoneInfo) -> Period:
    """The period of a kind that has the instant *at*, on the clocks of *zone*. Weeks begin on Monday."""
    if kind in ("total", "call"):
        return Period(_EPOCH, None)
    return _period_of_minute(kind, at.replace(second=0, microsecond=0), zone)


@dataclass(frozen=True, slots=True)
class Subject:
    """What budgets ask of a call.

    :param provider: ``None`` where that is not known yet
    :param models: as asked for and as billed; empty where that is not known yet
    """

    provider: str | None
    models: tuple[str, ...]
    tags: Mapping[str, str]
    at: datetime


@dataclass(frozen=True, slots=True)
class Account:
    """What one budget keeps for one scope in one period: a row of ``llm_cost_budget_periods``.

    :param scope: ``tenant_id=42``, or ``all``
    """

    budget: Budget
    scope: str
    period: Period
    id: UUID


def scope_tags(scope: str) -> dict[str, str]:
    """The tag of a scope, as ``@costs.budget_limit`` gets it: ``{"tenant_id": "42"}``."""
    key, equals, value = scope.partition("=")
    return {key: value} if equals else {}


@functools.lru_cache(maxsize=4096)
def _id_of(*parts: str) -> UUID:
    return content_id(hashlib.sha256("\0".join(parts).encode()).digest())


def account_id(budget: Budget, scope: str, part: str) -> UUID:
    """The same in every process: a hash of budget, scope, period, unit and currency.

    :param part: which period, or which call
    """
    return _id_of(budget.name, scope, budget.period, part, budget.unit, budget.currency)


def account_of(budget: Budget, scope: str, at: datetime, zone: ZoneInfo) -> Account:
    """The account of *scope* for the period that has *at*."""
    period = period_of(budget.period, at, zone)
    return Account(budget, scope, period, account_id(budget, scope, period.starts_at.isoformat()))


@dataclass(frozen=True, slots=True)
class Verdict:
    """Whether a budget applies to a call, and why.

    :param scope: ``None`` where it does not apply
    """

    budget: Budget
    scope: str | None
    why: str


def judge(budget: Budget, subject: Subject) -> Verdict:
    """Whether *budget* applies. A filter on what is not known yet does not."""
    for key, patterns in budget.where.items():
        if key == "provider":
            values: tuple[str, ...] = (subject.provider,) if subject.provider else ()
        elif key == "model":
            values = subject.models
        else:
            value = subject.tags.get(key.removeprefix("tag:"))
            values = () if value is None else (value,)
        if not any(fnmatchcase(value, pattern.translate(_AS_THEY_ARE)) for value in values for pattern in patterns):
            have = " or ".join(map(repr, values)) or "unset"
            return Verdict(budget, None, f"it is for {key} {' or '.join(map(repr, patterns))} only, and {key} is {have}")
    if budget.per is None:
        return Verdict(budget, ALL, "it counts all calls" + (" that its filter lets through" if budget.where else ""))
    value = clean_text(subject.tags.get(budget.per, ""), 256)
    if not value:
        return Verdict(budget, None, f"it has a limit per {budget.per}, and the call has no such tag")
    return Verdict(budget, f"{budget.per}={value}", f"it has a limit per {budget.per}")


def accounts_of(budgets: Iterable[Budget], subject: Subject, zone: ZoneInfo) -> list[Account]:
    """The accounts that a call counts in: one of each budget that applies."""
    verdicts = (judge(budget, subject) for budget in budgets)
    return [account_of(verdict.budget, verdict.scope, subject.at, zone) for verdict in verdicts if verdict.scope is not None]
