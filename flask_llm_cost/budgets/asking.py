"""What a call asks of the budgets, and what they answer."""

from __future__ import annotations

from dataclasses import dataclass
from uuid import UUID

from flask_llm_cost.budgets.accounts import Account, Subject
from flask_llm_cost.errors import BudgetExceededError
from flask_llm_cost.records import CallRecord


@dataclass(frozen=True, slots=True)
class Ask:
    """A call that asks whether it may be sent.

    :param content: its body; ``None`` where it is sent piece by piece
    :param length: the length that is announced for it then
    :param host: where it goes, which may decide its price
    :param mode: the pricing mode that the host alone implies
    """

    call_id: UUID
    subject: Subject
    operation: str
    content: bytes | None
    length: int
    accounts: tuple[Account, ...]
    host: str = ""
    mode: str | None = None

    @property
    def as_recorded(self) -> CallRecord:
        """What would be recorded of it if it had no reply."""
        return CallRecord(
            id=self.call_id,
            occurred_at=self.subject.at,
            provider=self.subject.provider or "",
            operation=self.operation,
            model=self.subject.models[0] if self.subject.models else None,
            host=self.host,
            pricing_mode=self.mode,
        )


@dataclass(frozen=True, slots=True)
class Answer:
    """Whether it may.

    :param holds: whether something is held for it, that must be settled or given back
    """

    error: BudgetExceededError | None = None
    holds: bool = False
