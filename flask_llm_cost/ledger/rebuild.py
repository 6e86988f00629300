"""Make the rollups anew from the calls, piece by piece, while calls come in.

Marks in the ledger make it resumable, and let writers know what is theirs: until a rebuild has come to the time of a call,
whoever writes that call leaves its rollups to the rebuild; from then on they move with it.
"""

from __future__ import annotations

import functools
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import datetime
from typing import Final

import sqlalchemy as sa

from flask_llm_cost.ledger import rollup_state
from flask_llm_cost.ledger.bulk import CALLS, TAG_ROLLUPS, USAGE_ROLLUPS
from flask_llm_cost.ledger.change import Change
from flask_llm_cost.ledger.rollup_state import NOTHING_FILLED, RollupState, hold_state, pairs_of
from flask_llm_cost.ledger.rollups import Rollups, delete_some
from flask_llm_cost.ledger.stored import stored_calls
from flask_llm_cost.ledger.transaction import Transactions, WriteError, not_written

#: Calls in one transaction, so that nobody waits long: on SQLite nobody else can write meanwhile.
_PIECE: Final = 1_000
_PIECE_SQLITE: Final = 100
_CLEARED: Final = 2_000


@dataclass(frozen=True, slots=True)
class Progress:
    """How far a rebuild is, in calls."""

    done: int
    total: int


def rebuild(transactions: Transactions, rollups: Rollups) -> Iterator[Progress]:
    """Rebuild the rollups, or go on with a rebuild that was broken off. Step by step, as it is iterated.

    :raises LedgerError: the database is away; run it again, and it goes on where it was
    """
    try:
        total = transactions.run(functools.partial(_begin, rollups=rollups))
        yield Progress(0, total)
        while transactions.run(_clear):
            yield Progress(0, total)
        done, more = 0, True
        while more:
            count, more = transactions.run(functools.partial(_fill, rollups=rollups))
            done += count
            yield Progress(done, max(done, total))
    except WriteError as error:
        raise not_written(error) from None


def _begin(connection: sa.Connection, rollups: Rollups) -> int:
    """Mark that a rebuild is on, unless one is. How many calls there are to do."""
    state = hold_state(connection, alone=True)
    zone = str(rollups.zone)
    if state is None:
        rollup_state.begin(connection, zone)
        state = hold_state(connection, alone=True)
        assert state is not None
    if state.complete or state.zone != zone:
        known = {key for key in (*state.kept, *state.left_out) if "," not in key}
        keys = {*known, *pairs_of(known & rollups.report), *state.kept}
        # Of what was left out when calls were pruned, their part is not to be had any more.
        kept = {key for key in keys if rollups.wants(key) and (state.pruned is None or key in state.kept)}
        rollup_state.decide(connection, kept, kept=True)
        rollup_state.decide(connection, keys - kept, kept=False)
        if state.all_kinds is None:
            rollup_state.set_all_kinds(connection, state.pruned or NOTHING_FILLED)
        rollup_state.set_zone(connection, zone)
        rollup_state.set_filled_to(connection, state.pruned or NOTHING_FILLED)
        rollup_state.set_clearing(connection, clearing=True)
        state = hold_state(connection, alone=True)
        assert state is not None
    since = CALLS.c.occurred_at >= state.filled_to
    return connection.scalar(sa.select(sa.func.count()).select_from(CALLS).where(since)) or 0


def _clear(connection: sa.Connection) -> bool:
    """Take away some of the rollups that are made anew. What was pruned cannot be, and stays. Whether there may be more."""
    state = hold_state(connection, alone=True)
    if state is None or not state.clearing:
        return False
    usage: sa.ColumnElement[bool] = sa.true()
    tags: sa.ColumnElement[bool] = sa.true()
    if state.pruned is not None and state.pruned_day is not None:
        usage, tags = USAGE_ROLLUPS.c.bucket >= state.pruned, TAG_ROLLUPS.c.day >= state.pruned_day
    if delete_some(connection, USAGE_ROLLUPS, usage, _CLEARED) or delete_some(connection, TAG_ROLLUPS, tags, _CLEARED):
        return True
    rollup_state.set_clearing(connection, clearing=False)
    return False


def _fill(connection: sa.Connection, rollups: Rollups) -> tuple[int, bool]:
    """Do the next piece. How many calls it had, and whether there are more."""
    state = hold_state(connection, alone=True)
    if state is None or state.filled_to is None:
        return 0, False
    until = _next(connection, state.filled_to)
    ids = sa.select(CALLS.c.id).where(CALLS.c.occurred_at >= state.filled_to)
    if until is not None:
        ids = ids.where(CALLS.c.occurred_at < until)
    found = stored_calls(connection, list(connection.scalars(ids)))
    rollup_state.set_filled_to(connection, until)
    _add(connection, rollups, Change(added=found), state, until)
    return len(found), until is not None


def _add(connection: sa.Connection, rollups: Rollups, change: Change, state: RollupState, until: datetime | None) -> None:
    rollups.settle_keys(change, state)
    rollups.add(connection, change, state.filled(until))
    rollups.measure_sometimes(connection, change, state)


def _next(connection: sa.Connection, since: datetime) -> datetime | None:
    """The time up to which the next piece goes; ``None`` for all the rest."""
    piece = _PIECE_SQLITE if connection.dialect.name == "sqlite" else _PIECE
    times = sa.select(CALLS.c.occurred_at).where(CALLS.c.occurred_at >= since).order_by(CALLS.c.occurred_at)
    found: datetime | None = connection.scalar(times.offset(piece).limit(1))
    if found is None or found > since:
        return found
    # More calls of one instant than fit.
    later: datetime | None = connection.scalar(
        sa.select(sa.func.min(CALLS.c.occurred_at)).where(CALLS.c.occurred_at > since)
    )
    return later
