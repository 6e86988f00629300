"""The step that moves the rollups with the calls, in the same transaction, whoever writes and however often it is tried."""

from __future__ import annotations

import functools
from collections.abc import Iterable, Sequence
from typing import Any, Final, Literal
from zoneinfo import ZoneInfo

import sqlalchemy as sa

from flask_llm_cost.chance import CHANCE
from flask_llm_cost.ledger import rollup_state
from flask_llm_cost.ledger.bulk import TAG_ROLLUPS, USAGE_ROLLUPS, Upsert
from flask_llm_cost.ledger.change import Change, DoFirst
from flask_llm_cost.ledger.faults import Fault
from flask_llm_cost.ledger.rollup_state import MOST_KEYS, RollupState, hold_state, pair_of
from flask_llm_cost.ledger.rollup_sums import BOUNDS, MEASURES, TAG_KEYS, USAGE_KEYS, Sums, by_value
from flask_llm_cost.ledger.rows import Row
from flask_llm_cost.ledger.transaction import WriteError

_TAG_MEASURES: Final = MEASURES[:-1]

#: How many calls are written, on average, until a process looks how unique the tags are that it keeps.
_MEASURE_EVERY: Final = 10_000
#: Rows of a key that are looked at, and calls that they must stand for.
_SAMPLE: Final = 20_000
_ENOUGH_CALLS: Final = 1_000
#: A key is nearly unique when so many of its calls have a row of their own: over whole days, and while the first one runs.
_NEARLY_UNIQUE: Final = 0.5
_NEARLY_UNIQUE_AT_FIRST: Final = 0.9
_SWEEP: Final = 2_000


class Rollups:
    """A step of the writer's transactions.

    :param zone: the reporting zone
    :param keys: tag keys that are kept, or ``"auto"`` for all that are not nearly unique
    :param report: tag keys of which pairs are kept together
    """

    def __init__(self, zone: ZoneInfo, keys: Literal["auto"] | Sequence[str], report: Sequence[str]) -> None:
        self.zone = zone
        self.report = frozenset(report)
        self._keys = keys
        self._upserts: tuple[sa.Dialect, Upsert, Upsert] | None = None

    def __call__(self, connection: sa.Connection, change: Change) -> None:
        state = hold_state(connection)
        if state is None:
            raise DoFirst(functools.partial(rollup_state.begin, zone=str(self.zone)))
        if state.zone != str(self.zone):
            raise WriteError(Fault.AWAY, zone_mismatch(state.zone, str(self.zone)))
        self.settle_keys(change, state)
        self.add(connection, change, state)
        self.measure_sometimes(connection, change, state)

    def add(self, connection: sa.Connection, change: Change, state: RollupState) -> None:
        """Move the rollups by *change*, of the calls that they hold by now."""
        sums = Sums(self.zone, state)
        for sign, rows in change.parts:
            if state.holds(rows.call["occurred_at"]):
                sums.add(sign, rows)
        self.write(connection, sums)

    def write(self, connection: sa.Connection, sums: Sums) -> None:
        """Add sums to what is there, in the order of their keys."""
        usage, tags = self._upserts_for(connection)
        usage(connection, sums.usage_rows())
        tags(connection, sums.tag_rows())

    def move_tags(self, connection: sa.Connection, rows: Sequence[Row]) -> None:
        """Add rows of ``llm_cost_tag_rollups`` that are in order of id."""
        names = ("id", *TAG_KEYS, *_TAG_MEASURES)
        self._upserts_for(connection)[1](connection, [[row[name] for name in names] for row in rows])

    def _upserts_for(self, connection: sa.Connection) -> tuple[Upsert, Upsert]:
        found = self._upserts
        if found is None or found[0] is not connection.dialect:
            dialect = connection.dialect
            usage = Upsert(USAGE_ROLLUPS, ("id", *USAGE_KEYS), MEASURES, dialect, bounds=BOUNDS)
            found = (dialect, usage, Upsert(TAG_ROLLUPS, ("id", *TAG_KEYS), _TAG_MEASURES, dialect))
            self._upserts = found
        return found[1], found[2]

    # Which keys.

    @property
    def named(self) -> frozenset[str]:
        """The keys that the configuration names, none under ``"auto"``."""
        return frozenset() if self._keys == "auto" else frozenset(self._keys)

    def wants(self, key: str) -> bool:
        """Whether the configuration lets a key be kept, or both keys of a pair."""
        return self._keys == "auto" or all(part in self._keys for part in key.split(","))

    def settle_keys(self, change: Change, state: RollupState) -> None:
        """Ask for a decision on keys that no call had before, and on those that are not wanted any more."""
        if self._keys != "auto" and (unwanted := [key for key in state.kept if not self.wants(key)]):
            raise DoFirst(functools.partial(self._leave_out, keys=unwanted))
        if len(state.kept) + len(state.left_out) < MOST_KEYS:
            seen = {tag["key"] for rows in change.added for tag in rows.tags}
            if new := {key for key in seen if not state.knows(key)}:
                raise DoFirst(functools.partial(self.decide, keys=sorted(new)))

    def decide(self, connection: sa.Connection, keys: Iterable[str]) -> None:
        """Decide about keys that no call had before. A pair can only begin with one of its keys."""
        state = hold_state(connection, alone=True)
        if state is None:
            return
        new = [key for key in keys if not state.knows(key)]
        known = {key for key in (*state.kept, *state.left_out) if key in self.report}
        pairs = {
            pair_of(key, other)
            for key in new
            if key in self.report
            for other in (*known, *new)
            if other in self.report and other != key
        }
        for key in (*new, *sorted(pairs)):
            kept = self.wants(key) and not (set(key.split(",")) & state.left_out)
            rollup_state.decide(connection, [key], kept=kept)

    @staticmethod
    def _leave_out(connection: sa.Connection, keys: Sequence[str]) -> None:
        state = hold_state(connection, alone=True)
        if state is not None:
            pairs = [key for key in state.kept if set(key.split(",")) & set(keys)]
            rollup_state.decide(connection, {*keys, *pairs} & state.kept, kept=False)

    def measure_sometimes(self, connection: sa.Connection, change: Change, state: RollupState) -> None:
        """:meth:`measure`, once in a while."""
        if self._keys == "auto" and CHANCE.random() * _MEASURE_EVERY < len(change.added):
            self.measure(connection, state)

    def measure(self, connection: sa.Connection, state: RollupState) -> None:
        """Look how unique the kept keys are, and leave out what is nearly so; take away what was left out before."""
        if unique := [key for key in sorted(state.kept) if nearly_unique(connection, key)]:
            raise DoFirst(functools.partial(self._leave_out, keys=unique))
        for key in sorted(state.left_out):
            if any_left(connection, key):
                raise DoFirst(functools.partial(sweep, key=key))


def zone_mismatch(kept: str, configured: str) -> str:
    """What to do about rollups whose days are of another zone."""
    return (
        f"the rollups are kept in days of {kept}, LLM_COST_TIMEZONE is {configured}: set it back, "
        "or run 'flask llm-cost rollups rebuild'"
    )


def nearly_unique(connection: sa.Connection, key: str) -> bool:
    """Whether a key has so many values that its rollups are hardly fewer than the calls."""
    latest = connection.scalar(sa.select(sa.func.max(TAG_ROLLUPS.c.day)).where(TAG_ROLLUPS.c.key == key))
    if latest is None:
        return False
    rows, calls = _sampled(connection, key, TAG_ROLLUPS.c.day < latest)
    if calls >= _ENOUGH_CALLS:
        return rows > _NEARLY_UNIQUE * calls
    rows, calls = _sampled(connection, key, sa.true())
    return calls >= _ENOUGH_CALLS * 10 and rows > _NEARLY_UNIQUE_AT_FIRST * calls


def _sampled(connection: sa.Connection, key: str, condition: sa.ColumnElement[bool]) -> tuple[int, int]:
    some = sa.select(TAG_ROLLUPS.c.calls).where(TAG_ROLLUPS.c.key == key, condition)
    sample = some.order_by(TAG_ROLLUPS.c.day.desc()).limit(_SAMPLE).subquery()
    rows, calls = connection.execute(sa.select(sa.func.count(), sa.func.sum(sample.c.calls))).one()
    return int(rows), int(calls or 0)


def any_left(connection: sa.Connection, key: str) -> bool:
    """Whether there are rows of a key."""
    found = sa.select(sa.literal(1)).select_from(TAG_ROLLUPS).where(TAG_ROLLUPS.c.key.in_(by_value(key))).limit(1)
    return connection.scalar(found) is not None


def sweep(connection: sa.Connection, key: str) -> None:
    """Take away some of the rows of a key that is left out."""
    state = hold_state(connection, alone=True)
    if state is not None and key not in state.kept:
        delete_some(connection, TAG_ROLLUPS, TAG_ROLLUPS.c.key.in_(by_value(key)), _SWEEP)


def delete_some(connection: sa.Connection, table: sa.Table, condition: sa.ColumnElement[bool], most: int) -> int:
    """Delete at most so many rows of a rollup table. How many it were."""
    ids: list[Any] = list(connection.scalars(sa.select(table.c.id).where(condition).limit(most)))
    for start in range(0, len(ids), 500):
        connection.execute(sa.delete(table).where(table.c.id.in_(ids[start : start + 500])))
    return len(ids)
