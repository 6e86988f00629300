"""Is everything in order? A list of checks, a file a group; one that fails ends in what repairs it."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Final

from flask_llm_cost.doctor import capture, dashboard, ledger, prices, rollups, schema, setup
from flask_llm_cost.doctor.check import MIGRATE, Check
from flask_llm_cost.errors import LlmCostError, SchemaMissingError
from flask_llm_cost.extension import AppState

__all__ = ["Check", "examine"]


def examine(state: AppState) -> list[Check]:
    """Run every check. A check that fails itself is an error of its own, never an exception."""
    found: list[Check] = []
    for group, look in _CHECKS:
        try:
            found.extend(look(state))
        except SchemaMissingError:
            # One cause, one error: the group that looks for the tables says what to do.
            if look is schema.schema:
                found.append(Check(group, "tables", "error", f"the tables are missing; {MIGRATE}"))
        except Exception as error:
            reason = str(error) if isinstance(error, LlmCostError) else type(error).__name__
            found.append(Check(group, look.__name__, "error", f"could not be checked: {reason}"))
    return found


_CHECKS: Final[tuple[tuple[str, Callable[[AppState], Iterator[Check]]], ...]] = (
    ("Setup", setup.setup),
    ("Schema", schema.schema),
    ("Capture", capture.capture),
    ("Prices", prices.prices),
    ("Ledger", ledger.ledger),
    ("Ledger", rollups.rollups),
    ("Dashboard", dashboard.dashboard),
)
