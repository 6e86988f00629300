"""One piece of a range, from one of the two tables of rollups."""

from __future__ import annotations

import functools
import operator
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from decimal import Decimal
from typing import Any, Final

import sqlalchemy as sa
from sqlalchemy.orm import Session

from flask_llm_cost.ledger.answers import Grouping, Key, Sums, add, key_of, keyed, some
from flask_llm_cost.ledger.bulk import TAG_ROLLUPS, USAGE_ROLLUPS
from flask_llm_cost.ledger.columns import Money, total
from flask_llm_cost.ledger.detail import time_text
from flask_llm_cost.ledger.endings import ENDED, ENDINGS, asks, ended, fits
from flask_llm_cost.ledger.filter import TIMES, Filter
from flask_llm_cost.ledger.pieces import PLAIN, day_key, parts_of
from flask_llm_cost.ledger.rollup_state import RollupDays
from flask_llm_cost.ledger.rollup_sums import ENDING, IN_PARTS, OVER_MODELS, PRESENT

_ASKED: Final = "llm_cost_endings"


@dataclass(frozen=True, slots=True)
class Question:
    """A question that rollups can answer.

    :param days: the days of the rollups
    :param wanted: tags that calls must have, to their value
    :param unwanted: tags that calls must not have
    :param all_kinds: whether there are rows of every kind
    :param counted: tags of which it is kept which calls have them, whatever their value
    """

    flt: Filter
    by: Grouping
    days: RollupDays
    wanted: Mapping[str, str]
    unwanted: frozenset[str]
    all_kinds: bool = False
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
    def over_models(self) -> bool:
        """Whether it is nobody's business of which models the calls are."""
        flt = self.flt
        return not {"provider", "model"} & {*self.by.dimensions} and flt.provider is None and flt.model is None

    @property
    def knows_parts(self) -> bool:
        """Whether there are sums of parts of days for it."""
        return self.all_kinds and self.over_models and len(self.tags) == 1

    @property
    def of_endings(self) -> bool:
        """Whether it is about how calls ended."""
        return asks(self.flt) or bool({*self.by.dimensions} & {*ENDINGS})


class Rows:
    """One piece of a range, from one of the two tables."""

    def __init__(self, session: Session, question: Question, source: str, top: int | None) -> None:
        self._session = session
        self._question = question
        self._source = source
        self._table = USAGE_ROLLUPS if source == "quarters" else TAG_ROLLUPS
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
        question, pair = self._question, sorted(present)
        columns = {key: ("value", "second_value")[pair.index(key)] for key in present}
        grouped = tuple(self._column(name, columns) for name in dimensions)
        conditions = self._conditions(pair, columns, dimensions)
        for name, column in zip(dimensions, grouped, strict=True):
            if name in question.by.only and (only := question.by.only[name]):
                conditions.append((column, "in", ["" if value is None else value for value in only]))
        shape = (self._table, grouped, question.by.measures, tuple(item[:2] for item in conditions), top is not None)
        query = (_select if all(isinstance(column, str) for column in grouped) else _select.__wrapped__)(*shape)
        values = {f"p{place}": value for place, (*_, value) in enumerate(conditions)}
        rows = self._session.execute(query, values if top is None else {**values, "most": top}).all()
        found: Sums = {}
        for keys, amounts in keyed(rows, [_reader(name) for name in dimensions], question.by.measures):
            if keys in found:
                add(found, {keys: amounts})  # days of one month
            else:
                found[keys] = amounts
        return found, int(rows[0][-1] or 0) if rows else 0

    def _conditions(
        self, pair: Sequence[str], columns: Mapping[str, str], dimensions: Collection[str]
    ) -> list[tuple[Any, str, Any]]:
        """What the rollups have to hold: column, operator and value."""
        question, flt = self._question, self._question.flt
        found: list[tuple[Any, str, Any]]
        if self._source == "parts":
            day, first, last = parts_of(flt, question.days.zone)
            found = [("key", "=", ",".join(pair) + IN_PARTS), ("day", "=", day)]
            found += [("second_value", ">=", first), ("second_value", "<=", last)]
        elif self._source == "days":
            ends = [instant and question.days.of(instant) for instant in (flt.since, flt.until)]
            found = [("key", "=", ",".join(pair) + self._kind(pair, dimensions)), *_between("day", *ends)]
            found += [] if pair else [("value", "=", "")]
        else:
            component = OVER_MODELS if question.all_kinds and question.over_models else ""
            found = [("component", "=", component), *_between("bucket", flt.since, flt.until)]
        found += [(columns[key], "=", value) for key, value in question.wanted.items() if key in columns]
        return found + [(name, "=", value) for name in PLAIN if (value := getattr(flt, name)) is not None]

    def _kind(self, pair: Sequence[str], dimensions: Collection[str]) -> str:
        """What ends the key of the rows of whole days."""
        if len(pair) == 1 and self._question.any_value(pair[0], dimensions):
            return PRESENT
        return OVER_MODELS if pair and self._question.over_models else ""

    def _column(self, name: str, columns: Mapping[str, str]) -> Any:
        """What a dimension is by: the name of a column, or for times of a quarter of an hour an expression."""
        if name.startswith("tag:"):
            return columns[name[4:]]
        if name == ENDING:
            return "second_value"
        if name not in TIMES:
            return name
        if self._table is TAG_ROLLUPS:
            return "day"  # months are made of days below: the three databases share no way to cut a date
        flt = self._question.flt
        assert flt.since is not None
        assert flt.until is not None
        return time_text(USAGE_ROLLUPS.c.bucket, name, self._question.by.zone, flt.since, flt.until)


class EndingRows(Rows):
    """Whole days, from the rows that say how calls ended. There are few ways: those that fit are looked for by name."""

    def _ask(self, present: tuple[str, ...], dimensions: tuple[str, ...], top: int | None) -> tuple[Sums, int]:
        stored = tuple(name for name in dimensions if name not in ENDED)
        if len(stored) == len(dimensions):
            return super()._ask(present, dimensions, top)
        rows, count = super()._ask(present, (ENDING, *stored), None)
        found: Sums = {}
        for (value, *keys), amounts in rows.items():
            known = {**ended(str(value)), **dict(zip(stored, keys, strict=True))}
            add(found, {tuple([known[name] for name in dimensions]): amounts})
        return found, count

    def _conditions(
        self, pair: Sequence[str], columns: Mapping[str, str], dimensions: Collection[str]
    ) -> list[tuple[Any, str, Any]]:
        found, flt = super()._conditions(pair, columns, dimensions), self._question.flt
        only = {name: wanted for name, wanted in self._question.by.only.items() if name in ENDED}
        if not only and not asks(flt):
            return found
        every = ((value, ended(value)) for value in self._ways())
        fitting = (
            value for value, how in every if fits(how, flt) and all(how[name] in wanted for name, wanted in only.items())
        )
        return [*found, ("second_value", "in", list(fitting))]

    def _ways(self) -> Sequence[str]:
        """How any calls ended, asked once a session."""
        info = self._session.info
        if _ASKED not in info:
            every = sa.select(TAG_ROLLUPS.c.second_value).where(TAG_ROLLUPS.c.key == ENDING).distinct()
            info[_ASKED] = self._session.scalars(every).all()
        found: Sequence[str] = info[_ASKED]
        return found

    def _kind(self, pair: Sequence[str], dimensions: Collection[str]) -> str:
        return ENDING + OVER_MODELS if pair and self._question.over_models else ENDING


def _reader(name: str) -> Callable[[Any], Key] | None:
    """What makes a key of what a row says of a dimension; ``None`` where that is the key."""
    if name in TIMES:
        return lambda value: (key_of if isinstance(value, str) else day_key)(name, value)
    return functools.partial(day_key, name) if name == "model" else None


def _between(column: str, first: Any, end: Any) -> list[tuple[Any, str, Any]]:
    return [(column, sign, value) for sign, value in ((">=", first), ("<", end)) if value is not None]


_OPERATORS: Final[Mapping[str, Callable[[Any, Any], sa.ColumnElement[bool]]]] = {
    "=": operator.eq, ">=": operator.ge, "<": operator.lt, "<=": operator.le,
    "in": lambda column, values: column.in_(values),
}  # fmt: skip


@functools.lru_cache(maxsize=256)
def _select(
    table: sa.Table, grouped: tuple[Any, ...], measures: tuple[str, ...], conditions: tuple[tuple[Any, str], ...], top: bool
) -> sa.Select[Any]:
    """The question of one shape, whose values are parameters: a page asks dozens, and making one takes as long as asking it.

    :param grouped: names of columns, or expressions
    :param conditions: a column and an operator each, compared with the parameters ``p0``, ``p1``, …
    :param top: whether only the dearest are wanted, as many as the parameter ``most`` says
    """
    columns = table.c

    def column(of: Any) -> Any:
        return columns[of] if isinstance(of, str) else of

    labels = [sa.text(f"k{place}") for place in range(len(grouped))]
    query = sa.select(*(column(item).label(f"k{place}") for place, item in enumerate(grouped)))
    sums = (total(columns[name]) if name.endswith("cost") else sa.func.sum(columns[name]) for name in measures)
    query = query.add_columns(*sums).select_from(table).group_by(*labels)
    # All of them, also where only the dearest are wanted: whether anybody is missing shows in the count.
    query = query.add_columns(sa.func.sum(sa.func.sum(columns.calls)).over())
    for place, (item, sign) in enumerate(conditions):
        value = sa.bindparam(f"p{place}", expanding=sign == "in", type_=column(item).type)
        query = query.where(_OPERATORS[sign](column(item), value))
    if top:
        unknown = sa.func.sum(columns.priced_calls) == 0
        cost = sa.case((unknown, sa.literal(Decimal(-1), Money)), else_=sa.func.sum(columns.cost))
        query = query.having(sa.func.sum(columns.calls) > 0)
        query = query.order_by(cost.desc(), sa.func.sum(columns.calls).desc(), *labels)
        query = query.limit(sa.bindparam("most", type_=sa.Integer))
    return query
