"""Is it set up as it is meant to be?"""

from __future__ import annotations

from collections.abc import Iterator

from flask_llm_cost.config import keys_without_effect, unknown_keys
from flask_llm_cost.doctor.check import Check
from flask_llm_cost.extension import AppState


def setup(state: AppState) -> Iterator[Check]:
    if state.config.enabled:
        yield Check("Setup", "enabled", "ok", "calls are recorded")
    else:
        yield Check("Setup", "enabled", "warning", "switched off: nothing is recorded; take LLM_COST_ENABLED=0 away")
    for key, meant in unknown_keys(state.app.config):
        hint = f"rename it to {meant}" if meant else "take it away"
        yield Check("Setup", "unknown key", "error", f"{key} is no key of flask-llm-cost; {hint}")
    for key in keys_without_effect(state.config):
        yield Check("Setup", "key without effect", "warning", f"{key} has no effect in this version; take it away")
