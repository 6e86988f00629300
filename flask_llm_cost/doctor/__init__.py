"""Is everything in order? A list of checks, a file a group; one that fails ends in what repairs it."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Final

import sqlalchemy as sa

from flask_llm_cost.doctor import (
    bills,
    budgets,
    calls,
    capture,
    dashboard,
    ledger,
    prices,
    replica,
    rollups,
    schema,
    setup,
    tags,
)
from flask_llm_cost.doctor.check import MIGRATE, Check
from flask_llm_cost.errors import LlmCostError, SchemaMissingError
from flask_llm_cost.extension import AppState

__all__ = ["Check", "examine"]


GROUPS: Final = ("Setup", "Capture", "Schema", "Prices", "Ledger", "Budgets", "Dashboard")


def examine(state: AppState, *, try_calls: bool = False) -> list[Check]:
    """Run every check. A check that fails itself is an error of its own, never an exception.

    :param try_calls: also make a call through each client library, see :mod:`flask_llm_cost.doctor.calls`
    """
    found: list[Check] = []
    for group, look in (*_CHECKS, *(_TRIALS if try_calls else ())):
        try:
            found.extend(look(state))
        except SchemaMissingError:
            # One cause, one error: the group that looks for the tables says what to do.
            if look is schema.schema:
                found.append(Check(group, "tables", "error", f"the tables are missing; {MIGRATE}"))
        except sa.exc.DBAPIError as error:
            if not any(check.name == setup.UNREACHABLE and check.status == "error" for check in found):
                found.append(Check(group, look.__name__, "error", _unchecked(type(error.orig or error).__name__)))
        except Exception as error:
            reason = str(error) if isinstance(error, LlmCostError) else type(error).__name__
            found.append(Check(group, look.__name__, "error", _unchecked(reason)))
    # A group may have several checks in several places.
    return sorted(found, key=lambda check: GROUPS.index(check.group))


def _unchecked(reason: str) -> str:
    return f"could not be checked: {reason}; run 'flask llm-cost doctor' again, and report it if it stays"


_CHECKS: Final[tuple[tuple[str, Callable[[AppState], Iterator[Check]]], ...]] = (
    ("Setup", setup.setup),
    ("Setup", setup.database),
    ("Schema", schema.schema),
    ("Setup", setup.clock),
    ("Capture", capture.capture),
    ("Capture", capture.hosts),
    ("Prices", prices.prices),
    ("Ledger", ledger.ledger),
    ("Ledger", rollups.rollups),
    ("Ledger", tags.tags),
    ("Ledger", replica.replica),
    ("Ledger", bills.bills),
    ("Budgets", budgets.budgets),
    ("Dashboard", dashboard.dashboard),
)
_TRIALS: Final[tuple[tuple[str, Callable[[AppState], Iterator[Check]]], ...]] = (("Capture", calls.calls),)
