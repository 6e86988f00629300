"""How calls ended and were counted, by the rollups: there is no index of that, and hardly any calls may have ended so."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace
from datetime import timedelta
from typing import Any, Final
from zoneinfo import ZoneInfo

import sqlalchemy as sa
from sqlalchemy.orm import Session

from flask_llm_cost.ledger.answers import Grouping, Key, Sums, add
from flask_llm_cost.ledger.detail import amounts_of
from flask_llm_cost.ledger.filter import KNOWN, TIMES, Filter
from flask_llm_cost.ledger.local_time import start_of_day
from flask_llm_cost.ledger.models import TagRollup
from flask_llm_cost.ledger.pieces import day_key, days_of, plain
from flask_llm_cost.ledger.rollup_state import state_of
from flask_llm_cost.ledger.rollup_sums import ENDING, ENDING_COLUMNS, UNCOUNTED_SOURCES

#: What filters and groups by how calls ended, in the order of the rollups' value.
ENDINGS: Final = tuple(name for name in ENDING_COLUMNS if name != "flags")


def asks(flt: Filter) -> bool:
    """Whether a filter is about how calls ended."""
    return any(getattr(flt, name) is not None for name in ENDINGS)


def fits(value: str, flt: Filter) -> bool:
    """Whether a filter lets calls through that ended so. *value* is that of a rollup of :data:`ENDING`."""
    return all(
        has not in UNCOUNTED_SOURCES if name == "usage_source" and want == KNOWN else want == has
        for name, has in zip(ENDINGS, _parts(value), strict=False)
        if (want := getattr(flt, name)) is not None
    )


def _parts(value: str) -> list[Key]:
    stream, *rest = value.split("|")
    return [stream == "1", *rest]


def days(
    session: Session, flt: Filter, zone: ZoneInfo, columns: Sequence[Any], measures: Iterable[str]
) -> Iterator[tuple[str, list[Any]]]:
    """How calls of whole days ended, as far as a filter lets them through: the value, then columns and sums by these."""
    sums = [sa.func.sum(getattr(TagRollup, name)) for name in measures]
    query = sa.select(TagRollup.value, *columns, *sums).where(*_conditions(flt), *days_of(flt, zone))
    for value, *row in session.execute(query.group_by(TagRollup.value, *columns)):
        if fits(value, flt):
            yield value, row


def sums_of_days(session: Session, flt: Filter, by: Grouping, zone: ZoneInfo) -> Sums:
    """Sums of whole days by columns, days or months. There are few endings, so all of them are read and sorted here."""
    stored = [name for name in by.dimensions if name not in ENDINGS]
    columns = [TagRollup.day if name in TIMES else getattr(TagRollup, name) for name in stored]
    found: Sums = {}
    for value, row in days(session, flt, zone, columns, by.measures):
        known: dict[str, Any] = dict(zip(ENDINGS, _parts(value), strict=False))
        known |= {name: day_key(name, cell) for name, cell in zip(stored, row, strict=False)}
        if all(known[name] in wanted for name, wanted in by.only.items() if name in known):
            add(found, {tuple(known[name] for name in by.dimensions): amounts_of(by.measures, row[len(stored) :])})
    return found


def with_calls(session: Session, flt: Filter) -> Filter | None:
    """The filter, from the first to the last day that has such calls, its tags aside; ``None`` where no day has any."""
    state = state_of(session)
    if state is None or not state.complete or not asks(flt):
        return flt
    zone = ZoneInfo(state.zone)
    query = sa.select(TagRollup.day, TagRollup.value).where(*_conditions(flt), *_touched(flt, zone))
    found = session.execute(query.group_by(TagRollup.day, TagRollup.value).having(sa.func.sum(TagRollup.calls) > 0))
    ended = [day for day, value in found if fits(value, flt)]
    if not ended:
        return None
    since, until = start_of_day(min(ended), zone), start_of_day(max(ended) + timedelta(days=1), zone)
    return replace(
        flt,
        since=since if flt.since is None else max(since, flt.since),
        until=until if flt.until is None else min(until, flt.until),
    )


def _conditions(flt: Filter) -> list[sa.ColumnElement[bool]]:
    return [TagRollup.key == ENDING, *plain(flt, TagRollup)]


def _touched(flt: Filter, zone: ZoneInfo) -> Iterator[sa.ColumnElement[bool]]:
    """The days of a filter, those that are in it in part included."""
    if flt.since is not None:
        yield TagRollup.day >= flt.since.astimezone(zone).date()
    if flt.until is not None:
        yield TagRollup.day <= flt.until.astimezone(zone).date()
