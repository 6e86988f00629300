"""Do calls reach the database?"""

from __future__ import annotations

from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from typing import Final

from flask_llm_cost.doctor.check import Check, Status
from flask_llm_cost.extension import AppState
from flask_llm_cost.ledger import lifecycle
from flask_llm_cost.ledger.disks import file_system, is_distant, is_passing
from flask_llm_cost.ledger.health import Health
from flask_llm_cost.wording import plural


def ledger(state: AppState) -> Iterator[Check]:
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
        yield from _disk(health)
    if lifecycle.threads_are_off() and state.config.write_mode == "background":
        yield Check("Ledger", "threads", "warning", lifecycle.NO_THREADS)
    if health.last_error_class:
        yield Check(
            "Ledger", "writing", "error", f"the last write failed ({health.last_error_class}), {_waiting(health)}; "
            "what waits is written as soon as the database takes it"
        )  # fmt: skip
    elif health.waiting and not state.ledger.flush(1.0):
        yield Check("Ledger", "waiting", "warning", f"{_waiting(health)} in the spool; run 'flask llm-cost flush'")
    for count, name, what in (
        (health.lost, "lost", "given up because the spool was full; raise LLM_COST_SPOOL_MAX_MB"),
        (
            health.quarantined,
            "set aside",
            f"refused by the database and kept beside the spool in {health.spool_dir}; "
            "when the reason is gone, run 'flask llm-cost spool replay'",
        ),
    ):
        if count:
            yield Check("Ledger", name, "error", f"{plural(count, 'call')} {what}")
    if health.corrupt:
        kept = f"{plural(health.corrupt, 'damaged spool file')} kept in {health.spool_dir}"
        yield Check("Ledger", "damaged", "error", kept)
    if health.foreign_calls and health.foreign_since:
        yield Check(
            "Ledger",
            "other spools",
            "warning",
            f"{plural(health.foreign_calls, 'call')} of other ledgers in the same folder, the oldest since "
            f"{health.foreign_since:%Y-%m-%d %H:%M} UTC; run 'flask llm-cost flush' in the app, or with the database URL, "
            "that recorded them",
        )
    counters = state.ledger.counters()
    yield from _writer(state, counters.get("heartbeat"))
    recent = datetime.now(UTC) - timedelta(days=7)
    for name, (count, at) in sorted(counters.items()):
        if name in _COUNTED and count:
            status, one, many = _COUNTED[name]
            message = f"{plural(count, one, many)}, last on {at:%Y-%m-%d}, in all processes since the ledger began"
            yield Check("Ledger", f"{name} so far", status if at > recent else "ok", message)


_OUTSIDE: Final = (
    "outside any app context passed unrecorded, since several apps were there; wrap what calls in 'with app.app_context():'"
)
_BUSY: Final = (
    "because somebody else held the database; no call is lost to that. Shorten what the app does in one transaction, or "
    "give the ledger a database of its own with LLM_COST_BIND_KEY"
)

#: What is told of one and of many.
_COUNTED: Final[dict[str, tuple[Status, str, str]]] = {
    "lost": ("error", "call was lost", "calls were lost"),
    "quarantined": (
        "warning",
        "call was refused by the database and set aside",
        "calls were refused by the database and set aside",
    ),
    "unattributed": (
        "warning",
        f"call {_OUTSIDE}",
        f"calls {_OUTSIDE}",
    ),
    "redacted": ("warning", "tag looked like a secret and was not kept", "tags looked like secrets and were not kept"),
    "spooled": ("warning", "inline write had to wait in the spool", "inline writes had to wait in the spool"),
    "busy": ("warning", f"time the ledger waited {_BUSY}", f"times the ledger waited {_BUSY}"),
}

#: How old a waiting call may be before somebody should have written it.
_PATIENCE: Final = timedelta(minutes=2)


def _disk(health: Health) -> Iterator[Check]:
    kind = file_system(health.spool_dir) if health.spool_dir else None
    if is_distant(kind):
        yield Check(
            "Ledger",
            "spool disk",
            "warning",
            f"{health.spool_dir} is on a network file system ({kind}), whose locks may not work; "
            "set LLM_COST_SPOOL_DIR to a disk of this machine",
        )
    elif is_passing(kind) and health.mode != "inline":
        yield Check(
            "Ledger",
            "spool disk",
            "warning",
            f"{health.spool_dir} is on {kind}, which goes with its container or machine, and so would the calls that wait; "
            "set LLM_COST_SPOOL_DIR to a volume, or LLM_COST_WRITE_MODE='inline'",
        )


def _writer(state: AppState, heartbeat: tuple[int, datetime] | None) -> Iterator[Check]:
    """Whether the processes that record also write. What dead ones left has just been flushed."""
    health, now = state.ledger.health(), datetime.now(UTC)
    if health.waiting_since is not None and now - health.waiting_since > _PATIENCE:
        last = f"{heartbeat[1]:%Y-%m-%d %H:%M} UTC" if heartbeat else "never"
        yield Check(
            "Ledger",
            "writer",
            "error",
            f"{_waiting(health)} in a running process since {health.waiting_since:%Y-%m-%d %H:%M} UTC, and the "
            f"ledger was last written {last}; look into its log, and restart it. Under uWSGI, {lifecycle.THREADS_ON}",
        )
    elif heartbeat:
        yield Check("Ledger", "writer", "ok", f"last written {heartbeat[1]:%Y-%m-%d %H:%M} UTC")


def _spool(state: AppState, mode: str) -> Check:
    folder, trouble = state.ledger.probe()
    if folder is None:
        message = f"no folder can be written, so a killed process loses its calls ({trouble}); set LLM_COST_SPOOL_DIR"
        return Check("Ledger", "spool", "error", message)
    if trouble is not None:
        message = f"a folder cannot be written ({trouble}), {folder} is used instead; repair it or set LLM_COST_SPOOL_DIR"
        return Check("Ledger", "spool", "error", message)
    return Check("Ledger", "spool", "ok", f"{mode}, records are safe in {folder}")


def _waiting(health: Health) -> str:
    return plural(health.waiting, "call waits", "calls wait")
