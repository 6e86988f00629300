"""What is deleted, and what is erased: old calls, whose sums stay, and what a person's tag says wherever it is kept."""

from __future__ import annotations

import functools
import secrets
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import suppress
from dataclasses import dataclass, replace
from datetime import UTC, date, datetime, timedelta
from pathlib import Path
from typing import Any, Final, cast
from uuid import UUID
from zoneinfo import ZoneInfo

import sqlalchemy as sa

from flask_llm_cost.errors import LedgerError
from flask_llm_cost.ledger import rollup_state
from flask_llm_cost.ledger.bulk import CALLS, ITEMS, TAG_ROLLUPS, TAGS
from flask_llm_cost.ledger.change import Change
from flask_llm_cost.ledger.local_time import start_of_day
from flask_llm_cost.ledger.models import Adjustment, BudgetHold, BudgetPeriod
from flask_llm_cost.ledger.rollup_state import RollupState, hold_state, read_state
from flask_llm_cost.ledger.rollup_sums import MEASURES, TAG_KEYS, by_value, rollup_id
from flask_llm_cost.ledger.rollups import Rollups, zone_mismatch
from flask_llm_cost.ledger.rows import CallRows, Row
from flask_llm_cost.ledger.stored import stored_calls
from flask_llm_cost.ledger.transaction import Transactions, WriteError, not_written
from flask_llm_cost.records import new_call_id

ERASED: Final = "(erased)"

#: How long a call that is pending is kept. Providers keep what a batch or a background response came to for about 30 days,
#: and whoever reads it settles the call: were that gone by then, it would be counted once more, and for nobody.
PENDING_KEPT: Final = timedelta(days=60)

#: A batch is made smaller when it took longer, and larger when it took much less.
BATCH_SECONDS: Final = 0.1
_FIRST_BATCH: Final = 50
_MOST: Final = 2_000
_ERASED_AT_ONCE: Final = 200

_HOLDS: Final = cast(sa.Table, BudgetHold.__table__)
_PERIODS: Final = cast(sa.Table, BudgetPeriod.__table__)
_ADJUSTMENTS: Final = cast(sa.Table, Adjustment.__table__)
#: Tables that say whose budget it is.
_SCOPED: Final = (_PERIODS, _ADJUSTMENTS)


@dataclass(frozen=True, slots=True)
class Cutoff:
    """Calls before *instant*, which is the start of *day* in the reporting zone, are old."""

    day: date
    instant: datetime

    @classmethod
    def of(cls, day: date, zone: ZoneInfo) -> Cutoff:
        return cls(day, start_of_day(day, zone))


@dataclass(frozen=True, slots=True)
class Old:
    """What is older than a cutoff."""

    calls: int
    holds: int


def old(connection: sa.Connection, cutoff: Cutoff) -> Old:
    """Count what :func:`prune` would delete."""
    counts = [
        connection.scalar(sa.select(sa.func.count()).select_from(table).where(condition)) or 0
        for table, condition in ((CALLS, _old_calls(cutoff)), (_HOLDS, _old_holds(cutoff)))
    ]
    return Old(*counts)


def pruned(connection: sa.Connection) -> Cutoff | None:
    """Before when calls may be gone; ``None`` where none are."""
    state = read_state(connection)
    if state is None or state.pruned is None or state.pruned_day is None:
        return None
    return Cutoff(state.pruned_day, state.pruned)


def prune(transactions: Transactions, rollups: Rollups, cutoff: Cutoff) -> Iterator[int]:
    """Delete old calls with their line items and tags, and old holds of budgets. Their sums stay in the rollups.

    Calls that may still be settled stay, for :data:`PENDING_KEPT`. In batches that take a tenth of a second each, with as
    long a pause between, the oldest first; broken off, all that is deleted is deleted whole. Yields how many rows each
    batch took.

    :raises LedgerError: the rollups do not hold all calls, so their sums would be lost; or the database is away
    """
    mark(transactions, rollups, cutoff)
    try:
        for delete in (_delete_calls, _delete_holds):
            size, count = _FIRST_BATCH, 1
            while count:
                began = time.monotonic()
                count = transactions.run(functools.partial(delete, cutoff=cutoff, size=size))
                took = time.monotonic() - began
                size = (
                    max(1, size // 2) if took > BATCH_SECONDS else min(_MOST, size * 2) if took * 3 < BATCH_SECONDS else size
                )
                yield count
                time.sleep(min(took, BATCH_SECONDS))
    except WriteError as error:
        raise not_written(error) from None


def mark(transactions: Transactions, rollups: Rollups, cutoff: Cutoff) -> None:
    """Say that old calls are gone, which :func:`prune` does first, and delete nothing: whoever drops them may do so now.

    :raises LedgerError: as :func:`prune`
    """
    try:
        obstacle = transactions.run(functools.partial(_mark_pruned, rollups=rollups, cutoff=cutoff))
    except WriteError as error:
        raise not_written(error) from None
    if obstacle is not None:
        raise LedgerError(obstacle)


def _mark_pruned(connection: sa.Connection, rollups: Rollups, cutoff: Cutoff) -> str | None:
    """Say first what will be gone: readers take no smaller sum for the whole, and no rebuild takes it from the rollups.

    Returns what is in the way, if anything is.
    """
    state = hold_state(connection, alone=True)
    if state is None:
        rollup_state.begin(connection, str(rollups.zone))
        state = hold_state(connection, alone=True)
        assert state is not None
    if state.zone != str(rollups.zone):
        return zone_mismatch(state.zone, str(rollups.zone))
    if not state.complete:
        return (
            "the rollups do not hold all calls, and what is deleted would be missing from every sum; "
            "run 'flask llm-cost rollups rebuild' first"
        )
    if state.pruned is None or state.pruned < cutoff.instant:
        rollup_state.set_pruned(connection, cutoff.instant, cutoff.day)
    return None


def _old_calls(cutoff: Cutoff) -> sa.ColumnElement[bool]:
    settled = CALLS.c.usage_source != "pending"
    return sa.and_(
        CALLS.c.occurred_at < cutoff.instant, sa.or_(settled, CALLS.c.occurred_at < datetime.now(UTC) - PENDING_KEPT)
    )


def _delete_calls(connection: sa.Connection, cutoff: Cutoff, size: int) -> int:
    oldest = sa.select(CALLS.c.id).where(_old_calls(cutoff)).order_by(CALLS.c.occurred_at).limit(size)
    ids = list(connection.scalars(oldest))
    if ids:
        # Children ourselves: SQLite's foreign keys are off on most connections.
        for children in (TAGS, ITEMS):
            connection.execute(sa.delete(children).where(children.c.call_id.in_(ids)))
        connection.execute(sa.delete(CALLS).where(CALLS.c.id.in_(ids)))
    return len(ids)


def _old_holds(cutoff: Cutoff) -> sa.ColumnElement[bool]:
    # What is unresolved counts against its budget until somebody releases it, and is released by its hold.
    return sa.and_(_HOLDS.c.created_at < cutoff.instant, _HOLDS.c.state.in_(("settled", "released")))


def _delete_holds(connection: sa.Connection, cutoff: Cutoff, size: int) -> int:
    ids: list[UUID] = list(connection.scalars(sa.select(_HOLDS.c.call_id).where(_old_holds(cutoff)).limit(size)))
    if not ids:
        return 0
    return connection.execute(sa.delete(_HOLDS).where(_HOLDS.c.call_id.in_(ids), _old_holds(cutoff))).rowcount


def old_files(files: Iterable[Path], cutoff: Cutoff) -> list[Path]:
    """Those of *files* that were last written to before the cutoff."""
    found = []
    for path in files:
        with suppress(OSError):
            if path.stat().st_mtime < cutoff.instant.timestamp():
                found.append(path)
    return found


def sweep(files: Iterable[Path]) -> int:
    """Delete files. How many."""
    swept = 0
    for path in files:
        with suppress(OSError):
            path.unlink()
            swept += 1
    return swept


# Erasure.


def calls_tagged(connection: sa.Connection, key: str, value: str) -> int:
    """How many calls have a tag with that value."""
    tagged = sa.select(sa.func.count()).select_from(TAGS).where(TAGS.c.key == key, TAGS.c.value == value)
    return connection.scalar(tagged) or 0


def kept_besides(connection: sa.Connection, key: str, value: str) -> bool:
    """Whether rollups, those of pruned calls among them, or budgets have a tag with that value."""
    state = read_state(connection)
    found = [] if state is None else [condition for _, condition in _rollups_with(state, key, value)]
    found += (table.c.scope == _scope(key, value) for table in _SCOPED)
    return any(connection.scalar(sa.select(sa.literal(1)).where(condition).limit(1)) for condition in found)


def forget(transactions: Transactions, rollups: Rollups, key: str, value: str, *, actor: str | None = None) -> Iterator[int]:
    """Put ``(erased)`` in the place of a tag's value: in calls, in the rollups of pruned calls too, and in budgets' scopes,
    there with a random word behind it.

    Every sum stays what it was. Where there was anything it leaves one row in ``llm_cost_adjustments`` that says how many
    calls, and not whose. Yields how many calls each batch changed.

    :raises LedgerError: the rollups are being rebuilt, or the database is away; run it again, and it goes on
    """
    if value == ERASED:
        return  # it would be put in its own place for ever
    try:
        erased, count = 0, 1
        while count:
            count = transactions.run(functools.partial(_erase_calls, rollups=rollups, key=key, value=value))
            erased += count
            yield count
        besides = _until_none(transactions, functools.partial(_erase_rollups, rollups=rollups, key=key, value=value))
        # Nobody's by name, and still somebody's own: what one person's limit was lifted to is not another's.
        nobody = f"{ERASED} {secrets.token_hex(4)}"
        besides += _until_none(transactions, functools.partial(_erase_scopes, key=key, value=value, nobody=nobody))
        if erased or besides:
            transactions.run(functools.partial(_audit, key=key, erased=erased, actor=actor))
    except WriteError as error:
        raise not_written(error) from None


def _until_none(transactions: Transactions, work: Callable[[sa.Connection], int]) -> int:
    done = 0
    while count := transactions.run(work):
        done += count
    return done


def _erase_calls(connection: sa.Connection, rollups: Rollups, key: str, value: str) -> int:
    tagged = sa.select(TAGS.c.call_id).where(TAGS.c.key == key, TAGS.c.value == value).limit(_ERASED_AT_ONCE)
    removed = stored_calls(connection, list(connection.scalars(tagged)), lock=True)
    removed = tuple(rows for rows in removed if any(tag["key"] == key and tag["value"] == value for tag in rows.tags))
    if not removed:
        return 0
    ids = [rows.id for rows in removed]
    changed = sa.update(TAGS).where(TAGS.c.call_id.in_(ids), TAGS.c.key == key).values(value=ERASED)
    connection.execute(changed)
    # The rollups alone: what a budget has spent is nobody's by name, and does not begin anew for the erased.
    rollups(connection, Change(tuple(_erased(rows, key) for rows in removed), removed))
    return len(removed)


def _erased(rows: CallRows, key: str) -> CallRows:
    return replace(rows, tags=tuple({**tag, "value": ERASED} if tag["key"] == key else tag for tag in rows.tags))


def _erase_rollups(connection: sa.Connection, rollups: Rollups, key: str, value: str) -> int:
    """Move what is left under the value, of calls that were pruned, and take the rows away."""
    state = hold_state(connection, alone=True)
    if state is None:
        return 0
    found: list[Row] = []
    for column, condition in _rollups_with(state, key, value):
        rows = connection.execute(sa.select(TAG_ROLLUPS).where(condition).limit(_ERASED_AT_ONCE)).mappings()
        found += ({**row, column: ERASED, "old_id": row["id"]} for row in rows)
    if found:
        moved: dict[UUID, Row] = {}
        for old_row in found:
            _collect(moved, old_row)
        rollups.move_tags(connection, sorted(moved.values(), key=_id))
        connection.execute(sa.delete(TAG_ROLLUPS).where(TAG_ROLLUPS.c.id.in_([row["old_id"] for row in found])))
    return len(found)


def _rollups_with(state: RollupState, key: str, value: str) -> Iterator[tuple[str, sa.ColumnElement[bool]]]:
    """Where rollups have a tag with that value: in which column, and in which rows."""
    for kept in sorted({key, *(name for name in (*state.kept, *state.left_out) if key in name.split(","))}):
        column = "second_value" if kept.split(",")[-1] == key and "," in kept else "value"
        yield column, sa.and_(TAG_ROLLUPS.c.key.in_(by_value(kept)), TAG_ROLLUPS.c[column] == value)


def _collect(moved: dict[UUID, Row], row: Row) -> None:
    new_id = rollup_id(tuple(row[name] for name in TAG_KEYS))
    there = moved.setdefault(new_id, {**row, "id": new_id, **dict.fromkeys(MEASURES, 0)})
    for name in MEASURES:
        if name in row:
            there[name] += row[name] or 0


def _id(row: Row) -> int:
    value: UUID = row["id"]
    return value.int


def _erase_scopes(connection: sa.Connection, key: str, value: str, nobody: str) -> int:
    changed = 0
    for table in _SCOPED:
        erased: Any = sa.update(table).where(table.c.scope == _scope(key, value)).values(scope=_scope(key, nobody))
        changed += connection.execute(erased).rowcount
    return changed


def _scope(key: str, value: str) -> str:
    return f"{key}={value}"


def _audit(connection: sa.Connection, key: str, erased: int, actor: str | None) -> None:
    row = {"id": new_call_id(), "made_at": datetime.now(UTC), "kind": "forget", "scope": key, "actor": actor}
    connection.execute(sa.insert(_ADJUSTMENTS).values(**row, reason=f"{erased} calls"))
