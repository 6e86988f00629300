"""Do the rollups say what the calls add up to? Looked at in samples: the answer may cost no more for ten million calls."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, date, datetime, timedelta
from typing import Any, Final
from zoneinfo import ZoneInfo

import sqlalchemy as sa
from sqlalchemy.orm import Session

from flask_llm_cost.chance import CHANCE
from flask_llm_cost.ledger.local_time import start_of_day
from flask_llm_cost.ledger.models import Call, TagRollup, UsageRollup
from flask_llm_cost.ledger.rollup_state import RollupState
from flask_llm_cost.ledger.rollup_sums import ENDING, IN_PARTS, OVER_MODELS, PRESENT

_SAMPLES: Final = 12
_BUCKET: Final = timedelta(minutes=15)
_MEASURES: Final = ("calls", "cost", "input_tokens", "output_tokens")


@dataclass(frozen=True, slots=True)
class Agreement:
    """What was looked at.

    :param buckets: quarters of an hour whose rollups were compared with their calls
    :param wrong_buckets: those of them, in UTC, that say something else than their calls
    :param wrong_days: the days of them that add up to something else than their quarters, or by a tag's values to something
        else than by its models or by who has it
    """

    buckets: int
    wrong_buckets: tuple[datetime, ...]
    wrong_days: tuple[date, ...]


def sampled_agreement(session: Session, state: RollupState) -> Agreement:
    """Compare the first, the last and a few other quarters of an hour, others each time, with their calls.

    Calls that were pruned are in the rollups alone, so it begins after them.
    """
    buckets = _buckets(session, state.pruned)
    wrong = tuple(bucket for bucket in buckets if not _sound(session, state, bucket))
    zone = ZoneInfo(state.zone)
    days = sorted({bucket.astimezone(zone).date() for bucket in buckets})
    if state.pruned is not None and state.pruned_day is not None:
        # The day of the mark may be another zone's, and have calls that are not of its own.
        begun = ((day, start_of_day(day, zone)) for day in days)
        days = [day for day, at in begun if at >= state.pruned and (at == state.pruned or day > state.pruned_day)]
    wrong_days = tuple(
        day
        for day in days
        if not (_agree(session, _tags(day), _usage(*_ends(day, zone))) and _agree_within(session, state, day))
    )
    return Agreement(len(buckets), wrong, wrong_days)


def _buckets(session: Session, since: datetime | None) -> list[datetime]:
    """Some that have calls, and some that have rollups: where either is missing, that is what is looked for."""
    found: set[datetime] = set()
    for column, condition in ((Call.occurred_at, sa.true()), (UsageRollup.bucket, UsageRollup.component == "")):
        there = condition if since is None else sa.and_(condition, column >= since)
        first, last = (session.scalar(sa.select(end(column)).where(there)) for end in (sa.func.min, sa.func.max))
        if first is None or last is None:
            continue
        found |= {_bucket_of(first), _bucket_of(last)}
        for number in range(_SAMPLES):
            at = first + (last - first) * ((number + CHANCE.random()) / _SAMPLES)
            near = sa.select(column).where(there, column >= at).order_by(column).limit(1)
            found.add(_bucket_of(session.scalar(near) or last))
    return sorted(found)


def _bucket_of(at: datetime) -> datetime:
    at = at.astimezone(UTC)
    return at.replace(minute=at.minute // 15 * 15, second=0, microsecond=0)


def _ends(day: date, zone: ZoneInfo) -> tuple[datetime, datetime]:
    return start_of_day(day, zone), start_of_day(day + timedelta(days=1), zone)


def _calls(bucket: datetime) -> sa.Select[Any]:
    sums: list[Any] = [
        sa.func.count(),
        sa.func.sum(Call.total_cost),
        sa.func.sum(Call.input_tokens),
        sa.func.sum(Call.output_tokens),
    ]
    return sa.select(*sums).where(*_within(bucket))


def _within(bucket: datetime) -> tuple[sa.ColumnElement[bool], ...]:
    return Call.occurred_at >= bucket, Call.occurred_at < bucket + _BUCKET


def _usage(since: datetime, until: datetime, component: str = "") -> sa.Select[Any]:
    sums = [sa.func.sum(getattr(UsageRollup, name)) for name in _MEASURES]
    within = (UsageRollup.bucket >= since, UsageRollup.bucket < until)
    return sa.select(*sums).where(UsageRollup.component == component, *within)


def _tags(day: date) -> sa.Select[Any]:
    sums = [sa.func.sum(getattr(TagRollup, name)) for name in _MEASURES]
    return sa.select(*sums).where(TagRollup.key == "", TagRollup.day == day)


def _agree_within(session: Session, state: RollupState, day: date) -> bool:
    """Whether the rows of a day that say the same in several ways do: one by one, over all models, whatever the value."""
    since = start_of_day(day, ZoneInfo(state.zone))
    same = [(key, f"{key}{OVER_MODELS}") for key in state.kept]
    if state.has_all_kinds(since):
        alone = [key for key in state.kept if "," not in key]
        same += [(key, f"{key}{kind}") for key in alone for kind in (PRESENT, IN_PARTS, ENDING, ENDING + OVER_MODELS)]
        same += [("", ENDING), ("", IN_PARTS)]
    keys = {key for pair in same for key in pair}
    sums = [sa.func.sum(getattr(TagRollup, name)) for name in _MEASURES]
    query = sa.select(TagRollup.key, *sums).where(TagRollup.key.in_(keys), TagRollup.day == day).group_by(TagRollup.key)
    found = {key: values for key, *values in session.execute(query)}
    nothing = [0] * len(_MEASURES)
    return all(found.get(one, nothing) == found.get(other, nothing) for one, other in same)


def _sound(session: Session, state: RollupState, bucket: datetime) -> bool:
    """Whether a quarter of an hour says what its calls add up to, by model and over all, and no call exceeds its bounds."""
    if not _agree(session, _calls(bucket), _usage(bucket, bucket + _BUCKET)):
        return False
    if not state.has_all_kinds(bucket):
        return True
    if not _agree(session, _calls(bucket), _usage(bucket, bucket + _BUCKET, OVER_MODELS)):
        return False
    there = session.execute(sa.select(*_highest(Call.total_cost, Call.latency_ms)).where(*_within(bucket))).one()
    bounds = sa.select(*_highest(UsageRollup.most_cost, UsageRollup.most_latency_ms)).group_by(UsageRollup.component)
    rows = session.execute(bounds.where(UsageRollup.component.in_(("", OVER_MODELS)), UsageRollup.bucket == bucket))
    return all(value <= most for row in rows for value, most in zip(there, row, strict=True))


def _highest(*columns: Any) -> list[sa.ColumnElement[Any]]:
    return [sa.func.coalesce(sa.func.max(column), -1) for column in columns]


def _agree(session: Session, one: sa.Select[Any], other: sa.Select[Any]) -> bool:
    # In one statement, so that a call which is written meanwhile is in both or in neither.
    rows: Sequence[Any] = session.execute(sa.union_all(one, other)).all()
    return [value or 0 for value in rows[0]] == [value or 0 for value in rows[1]]
