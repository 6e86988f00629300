"""How far is the replica behind?"""

from __future__ import annotations

from collections.abc import Iterator
from datetime import timedelta
from typing import Final

from flask_llm_cost.doctor.check import Check
from flask_llm_cost.extension import AppState
from flask_llm_cost.ledger.replica import lag

_LONG: Final = timedelta(minutes=5)


def replica(state: AppState) -> Iterator[Check]:
    if state.config.read_bind_key is None:
        return
    behind = lag(state.ledger)
    if behind is None:
        yield Check("Ledger", "replica", "ok", "nothing has been written yet")
    elif behind > _LONG:
        message = f"LLM_COST_READ_BIND_KEY is {behind} behind the ledger; look at its replication, or take the key away"
        yield Check("Ledger", "replica", "warning", message)
    else:
        yield Check("Ledger", "replica", "ok", f"{behind} behind the ledger")
