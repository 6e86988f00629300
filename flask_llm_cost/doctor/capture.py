"""Are calls seen?"""

from __future__ import annotations

from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from importlib import metadata

from flask_llm_cost.capture import patching
from flask_llm_cost.config import LIBRARIES
from flask_llm_cost.doctor.check import Check
from flask_llm_cost.doctor.tested import untested
from flask_llm_cost.extension import AppState
from flask_llm_cost.ledger import queries
from flask_llm_cost.ledger.filter import Filter
from flask_llm_cost.usage import known_provider
from flask_llm_cost.wording import plural


def capture(state: AppState) -> Iterator[Check]:
    for name in sorted({*patching.WATCHED, *LIBRARIES}):
        try:
            version = metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
        yield _library(state, name, version)


def _library(state: AppState, name: str, version: str) -> Check:
    if (lacks := patching.failure(name)) is not None:
        other = untested(name, version)
        why = ", ".join(filter(None, (lacks, other)))
        remedy = (
            f"install a version of {name} that is tested, or upgrade flask-llm-cost" if other else "upgrade flask-llm-cost"
        )
        return Check("Capture", name, "error", f"{name} {version} cannot be watched ({why}); {remedy}")
    if name not in patching.WATCHED:  # an SDK, whose client library is watched
        through = sorted(library for library in {*LIBRARIES[name]} & state.libraries if is_installed(library))
        seen = " or ".join(through) or "nothing that is watched"
        said = f"{name} {version} calls through {seen}"
    elif not state.config.enabled:
        said = f"{name} {version} is not watched, since LLM_COST_ENABLED is off"
        return Check("Capture", name, "ok", said)
    elif name not in state.libraries:
        said = f"{name} {version} is not watched; take LLM_COST_INSTRUMENT away, or add {name!r} to it"
        return Check("Capture", name, "warning", said)
    elif gone := patching.undone(name):
        said = f"{name} {version} is not watched any more: somebody replaced {gone[0]} after us"
        return Check("Capture", name, "error", f"{said}; let them do so before LlmCostTracker(app)")
    else:
        said = (
            f"{name} {version} {'is watched' if patching.is_imported(name) else 'will be watched when the app imports it'}"
        )
    if other := untested(name, version):
        return Check(
            "Capture", name, "warning", f"{said}, and is {other}; upgrade flask-llm-cost, or try a call and look at it"
        )
    return Check("Capture", name, "ok", said)


def is_installed(name: str) -> bool:
    """Whether a distribution is there, without importing it."""
    try:
        metadata.version(name)
    except metadata.PackageNotFoundError:
        return False
    return True


def hosts(state: AppState) -> Iterator[Check]:
    with state.ledger.session() as session:
        week = Filter(scope={}, since=datetime.now(UTC) - timedelta(days=7))
        unknown = [item for item in queries.unpriced_models(session, week) if _is_host(item.provider)]
    for item in unknown:
        if (named := state.config.hosts.get(item.provider)) is not None:
            alias = {f"{item.provider}/*": f"{named}/*"}
            said = (
                f"{plural(item.calls, 'call')} went to {item.provider} before LLM_COST_HOSTS named it, and have no price; "
                f"add LLM_COST_MODEL_ALIASES = {alias}, then run 'flask llm-cost backfill'"
            )
        else:
            said = (
                f"{plural(item.calls, 'call')} went to {item.provider}, whose provider nobody has named; "
                f"add LLM_COST_HOSTS = {{{item.provider!r}: '<provider>'}}"
            )
        yield Check("Capture", "unknown host", "warning", said)


def _is_host(provider: str) -> bool:
    return ("." in provider or ":" in provider) and known_provider(provider) is None
