"""Is it set up as it is meant to be?"""

from __future__ import annotations

from collections.abc import Iterator
from datetime import UTC, datetime
from typing import Any, Final

import sqlalchemy as sa

from flask_llm_cost.config import changed_keys, unknown_keys
from flask_llm_cost.doctor.check import Check
from flask_llm_cost.extension import AppState
from flask_llm_cost.ledger.models import Call

#: Seconds by which two clocks may differ.
_PATIENCE: Final = 30


def setup(state: AppState) -> Iterator[Check]:
    if state.config.enabled:
        yield Check("Setup", "enabled", "ok", "calls are recorded")
    else:
        yield Check("Setup", "enabled", "warning", "switched off: nothing is recorded; take LLM_COST_ENABLED=0 away")
    for key, meant in unknown_keys(state.app.config):
        hint = f"rename it to {meant}" if meant else "take it away"
        yield Check("Setup", "unknown key", "error", f"{key} is no key of flask-llm-cost; {hint}")
    for key in changed_keys(state.config, state.app.config):
        message = f"{key} was changed after init_app, which has no effect; set it before costs.init_app(app)"
        yield Check("Setup", "changed setting", "warning", message)


def database(state: AppState) -> Iterator[Check]:
    """Asked before all that needs it: a database that is away is one error, not one a check."""
    if state.config.write_mode == "log":
        return
    try:
        with state.ledger.session() as session:
            session.execute(sa.select(1))
            url = session.get_bind().engine.url
    except sa.exc.DBAPIError as error:
        name = type(error.orig or error).__name__
        yield Check(
            "Setup",
            UNREACHABLE,
            "error",
            f"the ledger's database cannot be reached ({name}); recorded calls wait in the spool. "
            "Start it, or correct SQLALCHEMY_DATABASE_URI or SQLALCHEMY_BINDS",
        )
        return
    replica = f", read on {state.config.read_bind_key!r}" if state.config.read_bind_key else ""
    yield Check("Setup", "database", "ok", f"{url.get_backend_name()} answers{replica}")


#: Where this check is an error no other check that needs the database is worth a line.
UNREACHABLE: Final = "database"


def clock(state: AppState) -> Iterator[Check]:
    if state.config.write_mode == "log":
        return
    with state.ledger.session() as session:
        theirs = _time_of(session)
        here = datetime.now(UTC)
        latest = session.scalar(sa.select(sa.func.max(Call.occurred_at)))
    ahead = (here - theirs).total_seconds() if theirs is not None else 0.0
    future = (latest - here).total_seconds() if latest is not None else 0.0
    if abs(ahead) > _PATIENCE:
        way = "ahead of" if ahead > 0 else "behind"
        message = f"this machine's clock is {abs(ahead):.0f} seconds {way} the database's; synchronise both, by chrony say"
        yield Check("Setup", "clock", "warning", message)
    elif future > _PATIENCE:
        how = f"{future / 60:.0f} minutes" if future > 120 else f"{future:.0f} seconds"
        message = f"the latest call is {how} ahead of now; synchronise the clock of the machine that made it"
        yield Check("Setup", "clock", "warning", message)
    else:
        with_whom = "agrees with the database's" if theirs is not None else "is not behind any call"
        yield Check("Setup", "clock", "ok", f"this machine's clock {with_whom}")


def _time_of(session: Any) -> datetime | None:
    """The database server's time; ``None`` for SQLite, which has ours."""
    dialect = session.get_bind().dialect.name
    if dialect == "postgresql":
        now: datetime = session.scalar(sa.text("SELECT clock_timestamp()"))
        return now.astimezone(UTC)
    if dialect in ("mysql", "mariadb"):
        now = session.scalar(sa.text("SELECT UTC_TIMESTAMP(6)"))
        return now.replace(tzinfo=UTC)
    return None
