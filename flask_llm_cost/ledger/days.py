"""On which days there are such calls at all, by the rollups, so that no other days are searched for those that are few."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import replace
from datetime import date, timedelta
from typing import Any

import sqlalchemy as sa
from sqlalchemy.orm import Session

from flask_llm_cost.ledger.answers import Grouping
from flask_llm_cost.ledger.endings import asks, under
from flask_llm_cost.ledger.filter import Filter
from flask_llm_cost.ledger.models import TagRollup
from flask_llm_cost.ledger.pieces import plain
from flask_llm_cost.ledger.rollup_state import RollupDays, state_of
from flask_llm_cost.ledger.rollup_sums import PRESENT
from flask_llm_cost.ledger.rollup_tables import EndingRows, Question


def with_calls(session: Session, flt: Filter) -> Filter | None:
    """The filter, from the first to the last day that has such calls; ``None`` where no day has any.

    Looks at how calls ended, at their operation and at the tags that they must not have, each by itself, nothing else.
    """
    state = state_of(session)
    if state is None or not state.complete:
        return flt
    lacking = [key for key, value in flt.tags.items() if value is None and state.counts(key, flt.since)]
    found = [_lacking(session, flt, state.days, key) for key in lacking]
    if asks(flt) and state.has_all_kinds(flt.since):
        found.append(_ended(session, flt, under(flt, state) or {}, state.days))
    if not found:
        return flt
    if not (days := set.intersection(*found)):
        return None
    since, until = state.days.start(min(days)), state.days.start(max(days) + timedelta(days=1))
    return replace(
        flt,
        since=since if flt.since is None else max(since, flt.since),
        until=until if flt.until is None else min(until, flt.until),
    )


def _ended(session: Session, flt: Filter, tag: Mapping[str, str], days: RollupDays) -> set[Any]:
    """The days of a filter with calls, under a tag, that ended so and are of that operation."""
    touched = replace(
        flt,
        since=None if flt.since is None else days.start(days.of(flt.since)),
        until=None if flt.until is None else days.start(days.of(flt.until) + timedelta(days=1)),
    )
    question = Question(touched, Grouping(dimensions=("day",), measures=("calls",)), days, tag, frozenset())
    return {day for (day,), (calls,) in EndingRows(session, question, "days", None).sums().items() if calls}


def _lacking(session: Session, flt: Filter, days: RollupDays, key: str) -> set[date]:
    """The days of a filter with calls that do not have a tag."""
    query = sa.select(TagRollup.day, TagRollup.key, sa.func.sum(TagRollup.calls))
    query = query.where(TagRollup.key.in_(("", key + PRESENT)), *plain(flt, TagRollup), *_touched(flt, days))
    calls: dict[date, int] = {}
    for day, counted, number in session.execute(query.group_by(TagRollup.day, TagRollup.key)):
        calls[day] = calls.get(day, 0) + (int(number) if counted == "" else -int(number))
    return {day for day, left in calls.items() if left}


def _touched(flt: Filter, days: RollupDays) -> Iterator[sa.ColumnElement[bool]]:
    """The days of a filter, those that are in it in part included."""
    if flt.since is not None:
        yield TagRollup.day >= days.of(flt.since)
    if flt.until is not None:
        yield TagRollup.day <= days.of(flt.until)
