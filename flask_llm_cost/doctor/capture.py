"""Are calls seen?"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from importlib import metadata

from flask_llm_cost.capture import patching
from flask_llm_cost.config import LIBRARIES
from flask_llm_cost.doctor.check import Check
from flask_llm_cost.extension import AppState
from flask_llm_cost.ledger import queries
from flask_llm_cost.ledger.filter import Filter
from flask_llm_cost.usage import known_provider


def capture(state: AppState) -> Iterator[Check]:
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
