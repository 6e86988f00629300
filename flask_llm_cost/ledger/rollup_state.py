"""What the rollups hold, as the ledger itself says it: one answer for every process, whatever its configuration.

Kept in ``llm_cost_counters``: the reporting zone, how far a rebuild has come, each tag key that was decided upon,
and since when there are rows of every kind.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable
from dataclasses import dataclass, replace
from datetime import UTC, date, datetime, timedelta
from itertools import combinations
from typing import Any, Final, cast
from zoneinfo import ZoneInfo

import sqlalchemy as sa
from sqlalchemy.orm import Session

from flask_llm_cost.ledger.bulk import CALLS
from flask_llm_cost.ledger.local_time import start_of_day
from flask_llm_cost.ledger.models import Counter

COUNTERS: Final = cast(sa.Table, Counter.__table__)

_DAY: Final = timedelta(days=1)
_ZONE: Final = "rollups"
_FILLED_TO: Final = "rollups.filled_to"
_CLEARING: Final = "rollups.clearing"
#: The number goes up with what is kept: a ledger of an earlier one is filled by a rebuild.
_ALL_KINDS: Final = "rollups.kinds.4"
_TAG: Final = "rollups.tag:"
_PRUNED: Final = "pruned"
_KEPT: Final = "kept"
_LEFT_OUT: Final = "left out"
_ASKED: Final = "llm_cost_rollups"

#: Tag keys that are decided upon. More are no tags but data, and never kept.
MOST_KEYS: Final = 100
#: Before the first call that there can be: nothing is filled yet.
NOTHING_FILLED: Final = datetime(1970, 1, 1, tzinfo=UTC)

# Held shared by everyone who writes rollups, and alone by who rebuilds them. A number that nobody else is likely to use.
_ADVISORY_LOCK: Final = 0x6C6C6D_636F7374


@dataclass(frozen=True, slots=True)
class RollupDays:
    """The days of the tag rollups: a zone's, but around the mark of a prune.

    That mark is the start of a day of the zone that there was then. What is on one side of it stays on the rows of days of
    that side, since a rebuild makes anew what is on the other.

    :param pruned: calls before it may be gone
    :param first: the first day that has all its calls
    """

    zone: ZoneInfo
    pruned: datetime | None = None
    first: date | None = None

    def of(self, at: datetime) -> date:
        """The day on which a call of that time is."""
        day = at.astimezone(self.zone).date()
        if self.pruned is None or self.first is None:
            return day
        return max(day, self.first) if at >= self.pruned else min(day, self.first - _DAY)

    def start(self, day: date) -> datetime:
        """The first instant whose calls are on *day* or later."""
        start = start_of_day(day, self.zone)
        if self.pruned is None or self.first is None:
            return start
        if day == self.first:
            return self.pruned
        return max(start, self.pruned) if day > self.first else min(start, self.pruned)


@dataclass(frozen=True, slots=True)
class RollupState:
    """What the rollups hold.

    :param zone: whose days the tag rollups are of
    :param filled_to: calls before it are in, later ones are not yet; ``None`` when all are
    :param clearing: whether a rebuild still takes away what there was
    :param kept: tag keys, and pairs of keys joined by a comma, that have rollups
    :param left_out: keys and pairs that have none, because they are nearly unique or not wanted
    :param all_kinds: since when there are rows of every kind, those by how calls ended, by who has a tag that is left out,
        and by parts of a day included; ``None`` where a rebuild has not made them yet
    :param pruned: calls before it may be gone, and are in the rollups all the same
    :param pruned_day: the first day that has all its calls, in the zone of that time
    """

    zone: str
    filled_to: datetime | None
    clearing: bool
    kept: frozenset[str]
    left_out: frozenset[str]
    all_kinds: datetime | None
    pruned: datetime | None
    pruned_day: date | None

    @property
    def days(self) -> RollupDays:
        """The days of the tag rollups."""
        return RollupDays(ZoneInfo(self.zone), self.pruned, self.pruned_day)

    @property
    def complete(self) -> bool:
        """Whether every call is in."""
        return self.filled_to is None

    def holds(self, occurred_at: datetime) -> bool:
        """Whether a call of that time is to be in by now."""
        return self.filled_to is None or occurred_at < self.filled_to

    def filled(self, until: datetime | None) -> RollupState:
        """The state once all before *until* is in."""
        return replace(self, filled_to=until)

    def knows(self, key: str) -> bool:
        """Whether it is decided if a key is kept."""
        return key in self.kept or key in self.left_out

    def counts(self, key: str, since: datetime | None) -> bool:
        """Whether it is kept which calls from *since* on have a tag; from the first one on where it is ``None``."""
        return self.knows(key) and self.has_all_kinds(since)

    def has_all_kinds(self, since: datetime | None) -> bool:
        """Whether there are rows of every kind from *since* on; from the first call on where it is ``None``."""
        return self.all_kinds is not None and self.all_kinds <= (since or NOTHING_FILLED)


def pair_of(first: str, second: str) -> str:
    """The key of two report tags that are kept together."""
    return ",".join(sorted((first, second)))


def pairs_of(keys: Collection[str]) -> list[str]:
    """The keys of all pairs of report tags."""
    return [pair_of(first, second) for first, second in combinations(sorted(set(keys)), 2)]


def read_state(connection: sa.Connection) -> RollupState | None:
    """What the rollups hold; ``None`` where nobody has written any yet."""
    return _read(connection, sa.select(COUNTERS.c.name, COUNTERS.c.text).where(_ours()))


def state_of(session: Session) -> RollupState | None:
    """:func:`read_state`, asked once a session."""
    if _ASKED not in session.info:
        session.info[_ASKED] = read_state(session.connection())
    found: RollupState | None = session.info[_ASKED]
    return found


def rare_tags(session: Session) -> Collection[str]:
    """Keys of tags of which few calls have the same value, as far as that is known."""
    state = state_of(session)
    return () if state is None else state.left_out


def hold_state(connection: sa.Connection, *, alone: bool = False) -> RollupState | None:
    """:func:`read_state`, and until the transaction ends it stays so.

    :param alone: nobody else writes rollups meanwhile; else nobody changes what they hold
    """
    query = sa.select(COUNTERS.c.name, COUNTERS.c.text).where(_ours())
    if connection.dialect.name == "postgresql":
        # In order of arrival: with a row lock, writers that come and go would keep somebody who wants it alone waiting.
        lock = sa.func.pg_advisory_xact_lock if alone else sa.func.pg_advisory_xact_lock_shared
        connection.execute(sa.select(lock(_ADVISORY_LOCK)))
    elif connection.dialect.name != "sqlite":
        zone = sa.select(COUNTERS.c.name).where(COUNTERS.c.name == _ZONE)
        connection.execute(zone.with_for_update(read=not alone))
    return _read(connection, query)


def _ours() -> sa.ColumnElement[bool]:
    return sa.or_(COUNTERS.c.name.startswith(_ZONE), COUNTERS.c.name == _PRUNED)


def _read(connection: sa.Connection, query: sa.Select[Any]) -> RollupState | None:
    found = {name: text or "" for name, text in connection.execute(query)}
    if _ZONE not in found:
        return None
    tags = {name.removeprefix(_TAG): text for name, text in found.items() if name.startswith(_TAG)}
    pruned, _, pruned_day = found.get(_PRUNED, "").partition(" ")
    return RollupState(
        zone=found[_ZONE],
        filled_to=_instant(found.get(_FILLED_TO)),
        clearing=bool(found.get(_CLEARING)),
        kept=frozenset(key for key, text in tags.items() if text == _KEPT),
        left_out=frozenset(key for key, text in tags.items() if text != _KEPT),
        all_kinds=_instant(found.get(_ALL_KINDS)),
        pruned=_instant(pruned),
        pruned_day=date.fromisoformat(pruned_day) if pruned_day else None,
    )


def _instant(text: str | None) -> datetime | None:
    return datetime.fromisoformat(text) if text else None


def begin(connection: sa.Connection, zone: str) -> None:
    """Begin to keep rollups, unless somebody else has. Calls that are there already wait for a rebuild."""
    if hold_state(connection, alone=True) is None:
        any_call = connection.scalar(sa.select(sa.literal(1)).select_from(CALLS).limit(1))
        set_zone(connection, zone)
        set_filled_to(connection, NOTHING_FILLED if any_call else None)
        set_all_kinds(connection, NOTHING_FILLED)


def set_zone(connection: sa.Connection, zone: str) -> None:
    """Say whose days the tag rollups are of."""
    _put(connection, _ZONE, zone)


def set_filled_to(connection: sa.Connection, instant: datetime | None) -> None:
    """Say how far the rollups are filled; ``None`` is all the way."""
    _put(connection, _FILLED_TO, "" if instant is None else instant.isoformat())


def set_all_kinds(connection: sa.Connection, since: datetime) -> None:
    """Say since when there are rows of every kind."""
    _put(connection, _ALL_KINDS, since.isoformat())


def set_clearing(connection: sa.Connection, *, clearing: bool) -> None:
    """Say whether a rebuild still takes away what there was."""
    _put(connection, _CLEARING, "yes" if clearing else "")


def set_pruned(connection: sa.Connection, instant: datetime, day: date) -> None:
    """Say that calls before *instant*, the start of *day*, may be gone."""
    _put(connection, _PRUNED, f"{instant.isoformat()} {day.isoformat()}")


def decide(connection: sa.Connection, keys: Iterable[str], *, kept: bool) -> None:
    """Keep tag keys, or leave them out, from now on."""
    for key in sorted(keys):
        _put(connection, _TAG + key, _KEPT if kept else _LEFT_OUT)


def _put(connection: sa.Connection, name: str, text: str) -> None:
    values = {"text": text, "updated_at": datetime.now(UTC)}
    if connection.execute(sa.update(COUNTERS).where(COUNTERS.c.name == name).values(values)).rowcount == 0:
        connection.execute(sa.insert(COUNTERS).values(name=name, value=0, **values))
