"""Waiting for what living processes have recorded: they write it themselves, and nobody else may."""

from __future__ import annotations

import time
from typing import Final

from flask_llm_cost.ledger.spool import count_calls
from flask_llm_cost.ledger.store import Ledger

_LOOK_SECONDS: Final = 0.05


def outlast(ledger: Ledger, seconds: float) -> int:
    """Wait at most *seconds* until the calls that are in spool files now are in the database. How many still are not then.

    Calls that come in meanwhile are not waited for: where much is recorded, some always wait.
    """
    deadline = time.monotonic() + seconds
    files = ledger.health().waiting_in
    # A file goes when the database has all of it.
    while (files := tuple(path for path in files if path.exists())) and time.monotonic() < deadline:
        time.sleep(_LOOK_SECONDS)
    return sum(map(count_calls, files))
