"""What a fault did to the ledger, held against what the provider says it billed."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass
from decimal import Decimal

import sqlalchemy as sa

from flask_llm_cost.ledger.models import Call, CallTag, LineItem
from flask_llm_cost.testing.provider import Billed

#: US dollars per million tokens of input and output, from the provider's price page.
RATES = {
    "gpt-4o-mini-2024-07-18": (Decimal("0.15"), Decimal("0.60")),
    "gpt-4.1-nano-2025-04-14": (Decimal("0.10"), Decimal("0.40")),
}


def billed_cost(billed: Billed) -> Decimal:
    """What one exchange costs, reckoned by hand."""
    sent, received = RATES[billed.model]
    return (sent * billed.usage["prompt_tokens"] + received * billed.usage["completion_tokens"]) / 1_000_000


@dataclass(frozen=True)
class Figures:
    """Sent, stored, lost, doubled and paid.

    :param sent: exchanges that the provider billed
    :param returned: calls that returned to the app; what a killed process never got to see is not among them
    :param stored: calls in the ledger whose usage is known
    :param open: calls in the ledger whose process died before their end
    :param lost: returned, but not stored
    :param doubled: stored more than once
    :param unbilled: stored, but never billed
    :param cost: the sum in the ledger
    :param truth: the sum of what the provider billed for the same calls
    """

    sent: int
    returned: int
    stored: int
    open: int
    lost: int
    doubled: int
    unbilled: int
    cost: Decimal
    truth: Decimal

    def __str__(self) -> str:
        return (
            f"sent {self.sent}, returned {self.returned}, stored {self.stored}, open {self.open}, lost {self.lost}, "
            f"twice {self.doubled}, cost {self.cost}, truth {self.truth}"
        )

    def check(self, lost: int = 0) -> None:
        """Print them, and hold them to: *lost* calls lost, none twice, none made up, the cost right to the last digit."""
        print(self)
        assert (self.lost, self.doubled, self.unbilled) == (lost, 0, 0), self
        assert self.cost == self.truth, self


def compare(truth: Iterable[Billed], engine: sa.Engine, returned: Iterable[str] | None = None) -> Figures:
    """Compare the ledger in *engine* with the provider's *truth*.

    :param returned: ids of the replies that the app got; all that were billed when left out
    """
    # A process that is killed while it sends leaves half a request, without a model.
    costs = {str(billed.response_id): billed_cost(billed) for billed in truth if billed.model}
    got = set(costs if returned is None else returned)
    with engine.connect() as connection:
        rows = connection.execute(sa.select(Call.provider_response_id, Call.usage_source, Call.total_cost)).all()
        for child, each in ((LineItem, "position"), (CallTag, "key")):
            orphans = sa.select(sa.func.count(getattr(child, each))).where(child.call_id.not_in(sa.select(Call.id)))
            assert connection.scalar(orphans) == 0
        total = connection.scalar(sa.select(sa.func.sum(Call.total_cost))) or Decimal(0)
    ids = Counter(str(name) for name, source, _cost in rows if source != "unknown")
    return Figures(
        sent=len(costs),
        returned=len(got),
        stored=ids.total(),
        open=sum(source == "unknown" for _name, source, _cost in rows),
        lost=len(got - ids.keys()),
        doubled=ids.total() - len(ids),
        unbilled=len(ids.keys() - costs.keys()),
        cost=total,
        truth=sum((costs[name] for name in ids if name in costs), Decimal(0)),
    )
