"""Pages without a call to show: the first run, or a filter that lets nothing through. Both say what to do."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import suppress
from typing import Any, Final

from flask import Response
from sqlalchemy.orm import Session

from flask_llm_cost.dashboard.controls import chips, simple_controls
from flask_llm_cost.dashboard.filters import Selection
from flask_llm_cost.dashboard.visit import Visit
from flask_llm_cost.errors import DetailPrunedError
from flask_llm_cost.ledger import queries
from flask_llm_cost.ledger.health import Health
from flask_llm_cost.ledger.tag_queries import latest_values

_MOST_NAMED: Final = 500


def nothing(visit: Visit, session: Session, selection: Selection) -> Response:
    """The page that says so."""
    if not queries.any_calls(session, selection.base.narrowed(currency=None)):
        health = None if visit.scoped else visit.state.ledger.health()
        return visit.html("first_run.html", health=health, wiring=wiring(visit, health))
    if (meant := _meant(visit, session, selection)) is not None:
        return Response(status=302, headers={"Location": visit.here(meant)})
    first, last = queries.extent(session, selection.without_range())
    elsewhere = None
    with suppress(DetailPrunedError):  # that there are none in this currency is known all the same
        elsewhere = queries.pivot(session, selection.filter.narrowed(currency=None), ("currency",))
    return visit.html(
        "empty.html",
        sel=selection,
        first=first,
        last=last,
        elsewhere=elsewhere,
        controls=simple_controls(selection),
        chips=chips(selection, visit.here, visit.names),
    )


def _meant(visit: Visit, session: Session, selection: Selection) -> Mapping[str, Any] | None:
    """The query string with values for the names that were typed instead, where the latest calls have such."""
    typed = {key: value for key, value in selection.filter.tags.items() if value is not None and visit.labels(key)}
    found = latest_values(session, selection.base.narrowed(currency=None), typed, _MOST_NAMED) if typed else {}
    meant = {}
    for key, values in found.items():
        names = {name.casefold(): value for value, name in visit.names(key, values).items()}
        if typed[key] not in values and (value := names.get(typed[key].strip().casefold())) is not None:
            meant[f"tag.{key}"] = value
    return selection.changed(**meant) if meant else None


def wiring(visit: Visit, health: Health | None) -> list[tuple[bool, str, str]]:
    """Whether a call would be seen, written, priced and shown to the right people: whether so, what, and how it stands."""
    if health is None:
        return []
    state = visit.state
    patched = sorted(state.libraries)
    guarded = all(mount.guarded for mount in visit.mounts if mount.name == visit.links.blueprint)
    return [
        (bool(patched), "Client libraries watched", ", ".join(patched) or "none: see LLM_COST_INSTRUMENT"),
        (
            health.last_error_class is None,
            "Writer",
            f"{health.mode}, {'survives a killed process' if health.durable else 'waits in memory'}"
            if health.last_error_class is None
            else f"the last write failed: {health.last_error_class}",
        ),
        (True, "Price book", f"edition {state.book.version}, {state.book.entries:,} models"),
        (guarded, "Sign-in", "a guard stands before this page" if guarded else "open to everybody: guard=None"),
    ]
