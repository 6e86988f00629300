"""Is everything in order? A list of checks; each one that is not ends in the command, or the line, that repairs it."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from importlib import metadata
from typing import Final, Literal

import sqlalchemy as sa

from flask_llm_cost.capture import patching
from flask_llm_cost.config import LIBRARIES, keys_without_effect, unknown_keys
from flask_llm_cost.errors import LlmCostError, SchemaMissingError
from flask_llm_cost.extension import AppState
from flask_llm_cost.ledger import queries
from flask_llm_cost.ledger.filter import Filter
from flask_llm_cost.ledger.models import Base
from flask_llm_cost.usage import known_provider

Status = Literal["ok", "warning", "error"]

_MIGRATE: Final = "run 'flask db upgrade' (Flask-Migrate) or 'flask llm-cost install'"


@dataclass(frozen=True, slots=True)
class Check:
    """One thing that was looked at.

    :param group: ``Setup``, ``Capture``, ``Schema``, ``Prices``, ``Ledger`` or ``Dashboard``
    :param message: what is so; where it is not in order, ends in what to do
    """

    group: str
    name: str
    status: Status
    message: str


def examine(state: AppState) -> list[Check]:
    """Run every check. A check that fails itself is an error of its own, never an exception."""
    found: list[Check] = []
    for group, look in _CHECKS:
        try:
            found.extend(look(state))
        except SchemaMissingError:
            # One cause, one error: the group that looks for the tables says what to do.
            if look is _schema:
                found.append(Check(group, "tables", "error", f"the tables are missing; {_MIGRATE}"))
        except Exception as error:
            reason = str(error) if isinstance(error, LlmCostError) else type(error).__name__
            found.append(Check(group, look.__name__.strip("_"), "error", f"could not be checked: {reason}"))
    return found


def _setup(state: AppState) -> Iterator[Check]:
    if state.config.enabled:
        yield Check("Setup", "enabled", "ok", "calls are recorded")
    else:
        yield Check("Setup", "enabled", "warning", "switched off: nothing is recorded; take LLM_COST_ENABLED=0 away")
    for key, meant in unknown_keys(state.app.config):
        hint = f"rename it to {meant}" if meant else "take it away"
        yield Check("Setup", "unknown key", "error", f"{key} is no key of flask-llm-cost; {hint}")
    for key in keys_without_effect(state.config):
        yield Check("Setup", "key without effect", "warning", f"{key} has no effect in this version; take it away")


def _capture(state: AppState) -> Iterator[Check]:
    for name in sorted({*state.libraries, *LIBRARIES}):
        try:
            version = metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
        if name in patching.failures:
            yield Check(
                "Capture", name, "error", f"{name} {version} cannot be watched ({patching.failures[name]}); upgrade it"
            )
        elif name in state.libraries and name in sys.modules:
            yield Check("Capture", name, "ok", f"{name} {version} is watched")
        elif name in state.libraries:
            yield Check("Capture", name, "ok", f"{name} {version} will be watched when the app imports it")
    with state.ledger.session() as session:
        week = Filter(scope={}, since=datetime.now(UTC) - timedelta(days=7))
        unknown = [item for item in queries.unpriced_models(session, week) if _is_host(item.provider)]
    for item in unknown:
        yield Check(
            "Capture",
            "unknown host",
            "warning",
            f"{item.calls} calls went to {item.provider}, whose provider nobody has named; "
            f"add LLM_COST_HOSTS = {{{item.provider!r}: '<provider>'}}",
        )


def _is_host(provider: str) -> bool:
    return ("." in provider or ":" in provider) and known_provider(provider) is None


def _schema(state: AppState) -> Iterator[Check]:
    with state.ledger.session() as session:
        inspector = sa.inspect(session.connection())
        present = set(inspector.get_table_names())
        missing = [table.name for table in Base.metadata.sorted_tables if table.name not in present]
        if missing:
            yield Check("Schema", "tables", "error", f"{len(missing)} tables are missing ({missing[0]}, …); {_MIGRATE}")
            return
        lacking = [
            f"{table.name}.{column}"
            for table in Base.metadata.sorted_tables
            for column in sorted(set(table.columns.keys()) - {found["name"] for found in inspector.get_columns(table.name)})
        ]
    if lacking:
        yield Check(
            "Schema",
            "columns",
            "error",
            f"columns are missing ({', '.join(lacking)}); run 'flask db migrate' and 'flask db upgrade'",
        )
    else:
        yield Check("Schema", "tables", "ok", "all tables and columns are there")


def _prices(state: AppState) -> Iterator[Check]:
    book = state.book
    yield Check("Prices", "price book", "ok", f"{book.entries} models, version {book.version}")
    with state.ledger.session() as session:
        week = Filter(scope={}, since=datetime.now(UTC) - timedelta(days=7))
        unpriced = queries.unpriced_models(session, week)
    for item in unpriced[:10]:
        yield Check(
            "Prices",
            "no price",
            "warning",
            f"{item.calls} calls of {item.provider}/{item.model} in the last week have no price; "
            f"run 'flask llm-cost prices explain {item.provider} {item.model}'",
        )


def _ledger(state: AppState) -> Iterator[Check]:
    health = state.ledger.health()
    if health.mode == "log":
        yield Check("Ledger", "write mode", "warning", "calls are logged, not kept; set LLM_COST_WRITE_MODE='background'")
        return
    if health.mode == "memory":
        yield Check(
            "Ledger",
            "database",
            "warning",
            "an in-memory SQLite database: calls wait in memory until they are read or flushed; use a file or a server",
        )
    else:
        yield _spool(state, health.mode)
    if health.last_error_class:
        yield Check(
            "Ledger", "writing", "error", f"the last write failed ({health.last_error_class}), {health.waiting} calls wait; "
            "they are written as soon as the database takes them"
        )  # fmt: skip
    elif health.waiting and not state.ledger.flush(1.0):
        yield Check("Ledger", "waiting", "warning", f"{health.waiting} calls wait in the spool; run 'flask llm-cost flush'")
    for count, name, what in (
        (health.lost, "lost", "calls were given up because the spool was full; raise LLM_COST_SPOOL_MAX_MB"),
        (
            health.quarantined,
            "set aside",
            f"calls were refused by the database and are kept beside the spool in {health.spool_dir}",
        ),
        (health.corrupt, "damaged", f"spool files were damaged and are kept in {health.spool_dir}"),
    ):
        if count:
            yield Check("Ledger", name, "error", f"{count} {what}")
    if health.foreign_calls and health.foreign_since:
        yield Check(
            "Ledger",
            "other spools",
            "warning",
            f"{health.foreign_calls} calls of other ledgers wait in the same folder, the oldest since "
            f"{health.foreign_since:%Y-%m-%d %H:%M} UTC; run 'flask llm-cost flush' in the app, or with the database URL, "
            "that recorded them",
        )
    recent = datetime.now(UTC) - timedelta(days=7)
    for name, (count, at) in sorted(state.ledger.counters().items()):
        if name in _COUNTED and count:
            status, what = _COUNTED[name]
            message = f"{count} {what}, last on {at:%Y-%m-%d}, in all processes since the ledger began"
            yield Check("Ledger", f"{name} so far", status if at > recent else "ok", message)


_COUNTED: Final[dict[str, tuple[Status, str]]] = {
    "lost": ("error", "calls were lost"),
    "quarantined": ("warning", "calls were refused by the database and set aside"),
    "spooled": ("warning", "inline writes had to wait in the spool"),
}


def _spool(state: AppState, mode: str) -> Check:
    folder, trouble = state.ledger.probe()
    if folder is None:
        message = f"no folder can be written, so a killed process loses its calls ({trouble}); set LLM_COST_SPOOL_DIR"
        return Check("Ledger", "spool", "error", message)
    if trouble is not None:
        message = f"a folder cannot be written ({trouble}), {folder} is used instead; repair it or set LLM_COST_SPOOL_DIR"
        return Check("Ledger", "spool", "error", message)
    return Check("Ledger", "spool", "ok", f"{mode}, records are safe in {folder}")


def _dashboard(state: AppState) -> Iterator[Check]:
    mounts = state.app.extensions.get("llm_cost_dashboards", ())
    if not mounts:
        yield Check(
            "Dashboard",
            "mounted",
            "warning",
            "no dashboard; add app.register_blueprint(dashboard_blueprint(guard=staff_required), url_prefix='/llm-costs')",
        )
    for mount in mounts:
        where = f"{mount.name} at {mount.url_prefix or '/'}"
        if not mount.guarded:
            yield Check("Dashboard", mount.name, "error", f"{where} is open to everybody; give it a guard=")
        elif state.app.config.get("LOGIN_DISABLED"):
            yield Check("Dashboard", mount.name, "error", f"{where}: LOGIN_DISABLED opens every guard; take it away")
        else:
            scoped = "scoped" if mount.scoped else "shows all tenants to whoever its guard lets in"
            yield Check("Dashboard", mount.name, "ok", f"{where} is guarded, {scoped}")


_CHECKS: Final[tuple[tuple[str, Callable[[AppState], Iterator[Check]]], ...]] = (
    ("Setup", _setup),
    ("Schema", _schema),
    ("Capture", _capture),
    ("Prices", _prices),
    ("Ledger", _ledger),
    ("Dashboard", _dashboard),
)
