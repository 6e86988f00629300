"""Sums of calls from the rollups: whole days from those of days, quarters of an hour from theirs, the rest from calls."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from decimal import localcontext
from zoneinfo import ZoneInfo

import sqlalchemy as sa
from sqlalchemy.orm import Session

from flask_llm_cost.errors import DetailPrunedError
from flask_llm_cost.ledger.answers import Grouping, Key, Sums, add, some
from flask_llm_cost.ledger.bulk import TAG_ROLLUPS, USAGE_ROLLUPS
from flask_llm_cost.ledger.columns import USUAL
from flask_llm_cost.ledger.days import with_calls
from flask_llm_cost.ledger.detail import extent as detail_extent
from flask_llm_cost.ledger.detail import from_calls
from flask_llm_cost.ledger.endings import ENDINGS
from flask_llm_cost.ledger.filter import TIMES, Filter
from flask_llm_cost.ledger.local_time import start_of_day
from flask_llm_cost.ledger.pieces import PLAIN, Piece, days_and_calls, parts_and_calls, quarters, split_days
from flask_llm_cost.ledger.rollup_state import MOST_KEYS, RollupState, pair_of, state_of
from flask_llm_cost.ledger.rollup_tables import EndingRows, Question, Rows


def sums(session: Session, flt: Filter, by: Grouping) -> Sums:
    """Sums of the calls that the filter lets through, from wherever they are had quickest.

    :raises DetailPrunedError: only calls could answer, and some of them were pruned
    """
    with localcontext(USUAL):
        return _sums(session, flt, by)


def _sums(session: Session, flt: Filter, by: Grouping) -> Sums:
    state = state_of(session)
    if unused := _unused(flt, by, state):
        return _without(session, flt, by, unused)
    if {*by.dimensions} & {*TIMES}:
        flt = bounded(session, flt)
    question = _question(flt, by, state)
    if question is None or state is None:
        within = with_calls(session, flt)
        return {} if within is None else _from_calls(session, within, by, state)
    pieces = list(_pieces(flt, question, state))
    most = by.top if len(pieces) == 1 else None
    rows = EndingRows if question.of_endings else Rows
    found: Sums = {}
    for source, part, sign in pieces:
        if source == "calls":
            add(found, _from_calls(session, part, replace(by, top=None), state), sign)
        else:
            add(found, rows(session, replace(question, flt=part), source, most).sums(), sign)
    return some(found)


def known(session: Session, flt: Filter, dimension: str) -> bool:
    """Whether rollups know what a filter's calls come to by a dimension: none but those at the ends of a range are read."""
    by, state = Grouping(dimensions=(dimension,), measures=("calls",)), state_of(session)
    return bool(_unused(flt, by, state)) or _question(flt, by, state) is not None


def _unused(flt: Filter, by: Grouping, state: RollupState | None) -> frozenset[str]:
    """The tag keys of a question that no call has ever had: all that any has had are decided upon, and these are not."""
    if state is None or not state.complete or len(state.kept) + len(state.left_out) >= MOST_KEYS:
        return frozenset()
    keys = {*flt.scope, *flt.tags, *by.tagged, *(name[4:] for name in by.dimensions if name.startswith("tag:"))}
    return frozenset(key for key in keys if not state.knows(key))


def _without(session: Session, flt: Filter, by: Grouping, unused: frozenset[str]) -> Sums:
    """Sums by tags some of which nobody has: of any of their values there is nothing, and untagged are all."""
    names = {f"tag:{key}" for key in unused}
    if unused & {*flt.scope, *by.tagged} or any(flt.tags.get(key) is not None for key in unused):
        return {}
    if any(name in names and None not in wanted for name, wanted in by.only.items()):
        return {}
    found = sums(
        session,
        replace(flt, tags={key: value for key, value in flt.tags.items() if key not in unused}),
        replace(
            by,
            dimensions=tuple(name for name in by.dimensions if name not in names),
            only={name: wanted for name, wanted in by.only.items() if name not in names},
        ),
    )

    def whole(keys: tuple[Key, ...]) -> tuple[Key, ...]:
        known = iter(keys)
        return tuple(None if name in names else next(known) for name in by.dimensions)

    return {whole(keys): amounts for keys, amounts in found.items()}


def extent(session: Session, flt: Filter) -> tuple[datetime | None, datetime | None]:
    """When the first and the last of the calls were made; ``None`` where there are none.

    Of pruned calls the day is known, and not which filters they would have passed: its start is the first, and its end the
    last where no calls are left.
    """
    within = with_calls(session, flt)
    if within is None:
        return None, None
    first, last = detail_extent(session, within)
    state = state_of(session)
    if state is not None and state.pruned is not None and (flt.since is None or flt.since < state.pruned):
        days = TAG_ROLLUPS.c
        ends = sa.select(sa.func.min(days.day), sa.func.max(days.day)).where(days.key == "", days.calls > 0)
        day, last_day = session.execute(ends).one()
        bucket = session.scalar(sa.select(sa.func.min(USAGE_ROLLUPS.c.bucket)).where(USAGE_ROLLUPS.c.component == ""))
        if day is not None and bucket is not None:
            zone = ZoneInfo(state.zone)
            # The day may be one of the zone that there was when the calls were pruned, which began earlier.
            day = min(day, bucket.astimezone(zone).date())
            begun = max(start_of_day(day, zone), flt.since or datetime.min.replace(tzinfo=UTC))
            ended = start_of_day(last_day + timedelta(days=1), zone) - timedelta(microseconds=1)
            first, last = min(first or begun, begun), last or max(begun, ended)
    return first, last


def bounded(session: Session, flt: Filter) -> Filter:
    """The filter with both ends, because a zone's clock changes are looked up for a range."""
    if flt.since is not None and flt.until is not None:
        return flt
    first, last = extent(session, flt)
    now = datetime.now(UTC)
    since = flt.since or first or now
    return replace(flt, since=since, until=flt.until or max((last or since) + timedelta(microseconds=1), since))


def _from_calls(session: Session, flt: Filter, by: Grouping, state: RollupState | None) -> Sums:
    check_detail(flt, state)
    return some(from_calls(session, flt, by))


def check_detail(flt: Filter, state: RollupState | None) -> None:
    """Whether all calls of a range are there.

    :raises DetailPrunedError: some were pruned
    """
    if state is not None and state.pruned is not None and (flt.since is None or flt.since < state.pruned):
        raise DetailPrunedError(state.pruned.astimezone(ZoneInfo(state.zone)))


def _question(flt: Filter, by: Grouping, state: RollupState | None) -> Question | None:
    """The question, if the rollups know all that it is about."""
    if state is None or not state.complete:
        return None
    all_kinds = state.has_all_kinds(flt.since)
    if any(name not in (*PLAIN, *ENDINGS, *TIMES) and not name.startswith("tag:") for name in by.dimensions):
        return None
    if any(name in TIMES for name in by.only) or len({*by.dimensions} & {*TIMES}) > 1:
        return None
    wanted: dict[str, str] = {}
    unwanted = set()
    for key, value in (*flt.scope.items(), *flt.tags.items()):
        if value is None:
            unwanted.add(key)
        elif wanted.setdefault(key, value) != value:
            return None
    if unwanted & {*wanted, *by.tagged}:
        return None
    question = Question(flt, by, state.days, wanted, frozenset(unwanted))
    tags = question.tags
    if question.of_endings:
        # By one tag at most, of which there are the values.
        return question if all_kinds and len(tags) < 2 and {*tags} <= state.kept else None
    if all_kinds:
        question = replace(question, all_kinds=True, counted=frozenset(key for key in tags if state.knows(key)))
    if len(tags) == 1 and question.any_value(tags[0], by.dimensions):
        return question
    if len(tags) > 2 or not all(key in state.kept for key in tags):
        return None
    return question if len(tags) < 2 or pair_of(*tags) in state.kept else None


def _has_parts(edge: Filter, question: Question, state: RollupState) -> bool:
    """Whether there are parts of the days at an end of a range. Of days that were pruned they may be another zone's."""
    if not {*question.tags} <= state.kept or edge.since is None:
        return False
    return state.pruned_day is None or question.days.of(edge.since) > state.pruned_day


def _pieces(flt: Filter, question: Question, state: RollupState) -> Iterator[Piece]:
    """The range in pieces."""
    by_time = {*question.by.dimensions} & {*TIMES}
    days, only_days = question.days, bool(question.tags) or question.of_endings
    if "hour" in by_time or (by_time and question.by.zone.key != state.zone):
        yield from [("calls", flt, 1)] if only_days else quarters(flt)
        return
    if only_days:
        for source, part, sign in days_and_calls(flt, days):
            if source == "calls" and question.knows_parts and _has_parts(part, question, state):
                yield from parts_and_calls(part, days.zone, sign)
            else:
                yield source, part, sign
        return
    whole, edges = split_days(flt, days)
    mark = state.pruned
    if mark is not None and any(edge.since is not None and edge.since < mark for edge in edges):
        # Days that were pruned may be another zone's, and not go together with quarters of an hour at the ends of a range.
        if flt.until is None or mark < flt.until:
            yield from _pieces(replace(flt, since=mark), question, state)
            flt = replace(flt, until=mark)
        yield from quarters(flt)
        return
    if whole is not None:
        yield "days", whole, 1
    for edge in edges:
        yield from quarters(edge)
