"""Sums of calls from the rollups: whole days from those of days, quarters of an hour from theirs, the rest from calls."""

from __future__ import annotations

import functools
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from typing import Any
from zoneinfo import ZoneInfo

import sqlalchemy as sa
from sqlalchemy.orm import Session

from flask_llm_cost.errors import DetailPrunedError
from flask_llm_cost.ledger.answers import Grouping, Key, Sums, add, key_of, some
from flask_llm_cost.ledger.columns import Money
from flask_llm_cost.ledger.days import with_calls
from flask_llm_cost.ledger.detail import amounts_of, from_calls, time_text
from flask_llm_cost.ledger.detail import extent as detail_extent
from flask_llm_cost.ledger.endings import ENDINGS, asks, sums_of_days
from flask_llm_cost.ledger.filter import TIMES, Filter
from flask_llm_cost.ledger.local_time import start_of_day
from flask_llm_cost.ledger.models import TagRollup, UsageRollup
from flask_llm_cost.ledger.pieces import PLAIN, Piece, day_key, days_and_calls, days_of, plain, quarters, split_days
from flask_llm_cost.ledger.rollup_state import MOST_KEYS, RollupState, pair_of, state_of
from flask_llm_cost.ledger.rollup_sums import PRESENT


def sums(session: Session, flt: Filter, by: Grouping) -> Sums:
    """Sums of the calls that the filter lets through, from wherever they are had quickest.

    :raises DetailPrunedError: only calls could answer, and some of them were pruned
    """
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
    found: Sums = {}
    for source, part, sign in pieces:
        if source == "calls":
            add(found, _from_calls(session, part, replace(by, top=None), state), sign)
        elif question.of_endings:
            add(found, sums_of_days(session, part, by, question.days), sign)
        else:
            most = by.top if len(pieces) == 1 else None
            add(found, _Rollups(session, replace(question, flt=part), source, most).sums(), sign)
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

    Of pruned calls the day is known, and not which filters they would have passed: its start is the first.
    """
    within = with_calls(session, flt)
    if within is None:
        return None, None
    first, last = detail_extent(session, within)
    state = state_of(session)
    if state is not None and state.pruned is not None and (flt.since is None or flt.since < state.pruned):
        day = session.scalar(sa.select(sa.func.min(TagRollup.day)).where(TagRollup.key == "", TagRollup.calls > 0))
        if day is not None:
            begun = max(start_of_day(day, ZoneInfo(state.zone)), flt.since or datetime.min.replace(tzinfo=UTC))
            first, last = min(first or begun, begun), last or begun
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


@dataclass(frozen=True, slots=True)
class _Question:
    """A question that rollups can answer.

    :param days: the zone of the rollups' days
    :param wanted: tags that calls must have, to their value
    :param unwanted: tags that calls must not have
    :param counted: tags of which it is kept which calls have them, whatever their value
    """

    flt: Filter
    by: Grouping
    days: ZoneInfo
    wanted: Mapping[str, str]
    unwanted: frozenset[str]
    counted: frozenset[str] = frozenset()

    @property
    def tags(self) -> tuple[str, ...]:
        """The tag keys that it is about, those that are wanted first."""
        grouped = [name[4:] for name in self.by.dimensions if name.startswith("tag:")]
        return tuple(dict.fromkeys((*self.wanted, *self.unwanted, *grouped, *self.by.tagged)))

    def any_value(self, key: str, dimensions: Collection[str]) -> bool:
        """Whether sums by *dimensions* ask who has a tag, and not for its values, and that is kept."""
        return key in self.counted and key not in self.wanted and f"tag:{key}" not in dimensions

    @property
    def of_endings(self) -> bool:
        """Whether it is about how calls ended."""
        return asks(self.flt) or bool({*self.by.dimensions} & {*ENDINGS})


def _question(flt: Filter, by: Grouping, state: RollupState | None) -> _Question | None:
    """The question, if the rollups know all that it is about."""
    if state is None or not state.complete:
        return None
    by_operation = flt.operation is not None or "operation" in by.dimensions
    if by_operation and not state.counts_operations(flt.since):
        return None
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
    question = _Question(flt, by, ZoneInfo(state.zone), wanted, frozenset(unwanted))
    tags = question.tags
    if tags and question.of_endings:
        return None
    question = replace(question, counted=frozenset(key for key in tags if state.counts(key, flt.since)))
    if len(tags) == 1 and question.any_value(tags[0], by.dimensions):
        return question
    if len(tags) > 2 or not all(key in state.kept for key in tags):
        return None
    return question if len(tags) < 2 or pair_of(*tags) in state.kept else None


def _pieces(flt: Filter, question: _Question, state: RollupState) -> Iterator[Piece]:
    """The range in pieces."""
    by_time = {*question.by.dimensions} & {*TIMES}
    zone, only_days = question.days, bool(question.tags) or question.of_endings
    if "hour" in by_time or (by_time and question.by.zone.key != state.zone):
        yield from [("calls", flt, 1)] if only_days else quarters(flt)
        return
    if only_days:
        yield from days_and_calls(flt, zone)
        return
    days, edges = split_days(flt, zone)
    if days is not None:
        yield "days", days, 1
    for edge in edges:
        yield from quarters(edge)


class _Rollups:
    """One piece of a range, from one of the two tables."""

    def __init__(self, session: Session, question: _Question, source: str, top: int | None) -> None:
        self._session = session
        self._question = question
        self._table: Any = TagRollup if source == "days" else UsageRollup
        self._top = top

    def sums(self) -> Sums:
        found, _ = self._cells((), self._question.tags, self._question.by.dimensions, self._top)
        return found

    def _cells(
        self, present: tuple[str, ...], pending: tuple[str, ...], dimensions: tuple[str, ...], top: int | None = None
    ) -> tuple[Sums, int]:
        """Sums by *dimensions* over calls that have the tags *present*, whatever else of the *pending* ones they have.

        Calls without a tag have no rollup under its key: they are what all calls come to less those that have it. Returns
        besides how many calls there are, those that were left out for being too cheap included.
        """
        if not pending:
            return self._ask(present, dimensions, top)
        key, *rest = pending
        question, name = self._question, f"tag:{key}"
        others = tuple(dimension for dimension in dimensions if dimension != name)
        if key in question.wanted or key in question.by.tagged:
            return self._cells((*present, key), tuple(rest), dimensions, top)
        having: Sums = {}
        whole: Sums | None = None
        count = 0
        if key not in question.unwanted:
            having, count = self._cells((*present, key), tuple(rest), dimensions, top)
            if name in question.by.only and None not in question.by.only[name]:
                return having, count
            whole, everyone = self._cells(present, tuple(rest), ())
            if everyone == count and name not in question.by.only:
                return having, count  # nobody lacks it
        # Whole on both sides, not only the dearest.
        lacking = whole if whole is not None and not others else self._cells(present, tuple(rest), others)[0]
        place = dimensions.index(name) if name in dimensions else None
        if place is not None and having and name not in question.by.only and (top is None or len(having) < top):
            with_key: Sums = {}
            for keys, amounts in having.items():
                add(with_key, {(*keys[:place], *keys[place + 1 :]): amounts})
        else:
            with_key, _ = self._cells((*present, key), tuple(rest), others)
        for keys, amounts in some(add(lacking, with_key, -1)).items():
            having[keys if place is None else (*keys[:place], None, *keys[place:])] = amounts
            count += amounts[0]
        return having, count

    def _ask(self, present: tuple[str, ...], dimensions: tuple[str, ...], top: int | None) -> tuple[Sums, int]:
        table, question = self._table, self._question
        pair = sorted(present)
        columns = {key: (table.value, table.second_value)[pair.index(key)] for key in present}
        query = sa.select()
        labels = []
        for position, name in enumerate(dimensions):
            label = f"k{position}"
            expression = self._expression(name, columns)
            query = query.add_columns(expression.label(label))
            labels.append(sa.text(label))
            if name in question.by.only and (only := question.by.only[name]):
                query = query.where(expression.in_(["" if value is None else value for value in only]))
        query = (
            query.add_columns(*_measured(table, question.by.measures))
            .select_from(table)
            .where(*self._conditions(pair, columns, dimensions))
            .group_by(*labels)
        )
        # All of them, also where only the dearest are wanted: whether anybody is missing shows in the count.
        query = query.add_columns(sa.func.sum(sa.func.sum(table.calls)).over())
        if top is not None:
            unknown = sa.func.sum(table.priced_calls) == 0
            cost = sa.case((unknown, sa.literal(Decimal(-1), Money)), else_=sa.func.sum(table.cost))
            query = query.having(sa.func.sum(table.calls) > 0)
            query = query.order_by(cost.desc(), sa.func.sum(table.calls).desc(), *labels).limit(top)
        found: Sums = {}
        count = 0
        for *row, whole in self._session.execute(query):
            keys = tuple(self._key(name, value) for name, value in zip(dimensions, row, strict=False))
            add(found, {keys: amounts_of(question.by.measures, row[len(labels) :])})
            count = int(whole or 0)
        return found, count

    def _conditions(
        self, pair: Sequence[str], columns: Mapping[str, Any], dimensions: Collection[str]
    ) -> list[sa.ColumnElement[bool]]:
        table, question, flt = self._table, self._question, self._question.flt
        found: list[sa.ColumnElement[bool]] = []
        if table is TagRollup:
            zone = question.days
            over_models = (
                pair and not {"provider", "model"} & {*question.by.dimensions} and not flt.provider and not flt.model
            )
            any_value = len(pair) == 1 and question.any_value(pair[0], dimensions)
            found.append(TagRollup.key == ",".join(pair) + (PRESENT if any_value else "*" if over_models else ""))
            found += days_of(flt, zone)
        else:
            found.append(UsageRollup.component == "")
            found += [UsageRollup.bucket >= flt.since] if flt.since is not None else []
            found += [UsageRollup.bucket < flt.until] if flt.until is not None else []
        found += [columns[key] == value for key, value in question.wanted.items() if key in columns]
        return [*found, *plain(flt, table)]

    def _expression(self, name: str, columns: Mapping[str, Any]) -> Any:
        if name.startswith("tag:"):
            return columns[name[4:]]
        if name not in TIMES:
            return getattr(self._table, name)
        if self._table is TagRollup:
            return TagRollup.day  # months are made of days below: the three databases share no way to cut a date
        flt = self._question.flt
        assert flt.since is not None
        assert flt.until is not None
        return time_text(UsageRollup.bucket, name, self._question.by.zone, flt.since, flt.until)

    def _key(self, name: str, value: Any) -> Key:
        return key_of(name, value) if name in TIMES and isinstance(value, str) else day_key(name, value)


@functools.cache
def _measured(table: Any, measures: tuple[str, ...]) -> tuple[sa.ColumnElement[Any], ...]:
    """Made once: there are a dozen in each of a page's dozens of questions."""
    return tuple(sa.func.sum(getattr(table, name)) for name in measures)
