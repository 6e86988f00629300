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

    :param accounts: those of budgets that block in which it counts
    :param before: those for which it has been told already that it may, and holds what it holds: of them it asks no more
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
    before: tuple[Account, ...] = ()

    @property
    def new(self) -> tuple[Account, ...]:
        """The accounts that are still to be asked."""
        known = {account.id for account in self.before}
        return tuple(account for account in self.accounts if account.id not in known)

    @property
    def left(self) -> frozenset[UUID]:
        """The accounts that were asked, and in which the call does not count after all."""
        return frozenset(account.id for account in self.before) - {account.id for account in self.accounts}

    @property
    def is_open(self) -> bool:
        """Whether there is anything to ask, or to give back."""
        return self.accounts is not self.before and bool(self.new or self.left)

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
