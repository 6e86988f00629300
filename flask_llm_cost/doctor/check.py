"""What a check says."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final, Literal

Status = Literal["ok", "warning", "error"]

MIGRATE: Final = "run 'flask db upgrade' (Flask-Migrate) or 'flask llm-cost install'"


@dataclass(frozen=True, slots=True)
class Check:
    """One thing that was looked at.

    :param group: ``Setup``, ``Capture``, ``Schema``, ``Prices``, ``Ledger``, ``Budgets`` or ``Dashboard``
    :param message: what is so; where it is not in order, ends in what to do
    """

    group: str
    name: str
    status: Status
    message: str
