"""What one transaction changes in the ledger, and what else has to move with it."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import TypeAlias

import sqlalchemy as sa

from flask_llm_cost.ledger.rows import CallRows


@dataclass(frozen=True, slots=True)
class Change:
    """What one transaction adds to the ledger, and what it takes away.

    A call that is new is in ``added``. A provisional call whose real record came, a call with a new price and one whose
    tags were erased are in both: what they were in ``removed``, what they are now in ``added``, under one id. Sums that
    add up all of ``added`` and take off all of ``removed`` are right for every kind of change.
    """

    added: tuple[CallRows, ...] = ()
    removed: tuple[CallRows, ...] = ()

    @property
    def parts(self) -> Iterator[tuple[int, CallRows]]:
        """Every call with its sign: 1 for what is added, -1 for what is taken away."""
        for rows in self.removed:
            yield -1, rows
        for rows in self.added:
            yield 1, rows


#: What a step wants done once its transaction is committed.
After: TypeAlias = Callable[[], None]

#: A step of the transaction, called after its rows are written and before the commit. Whatever it does on the connection is
#: undone when the transaction is tried again, so that its figures move exactly once with the rows. It may raise
#: :class:`DoFirst`. What it returns is called once all is committed.
Within: TypeAlias = Callable[[sa.Connection, Change], After | None]


class DoFirst(Exception):  # noqa: N818 - no error: it asks for something
    """Raised by a step that needs something committed beforehand, such as the rows that it will update.

    The transaction is rolled back, *work* is done in a transaction of its own, and all begins again.

    :param work: does it, and may find that somebody else has done it meanwhile
    """

    def __init__(self, work: Callable[[sa.Connection], None]) -> None:
        self.work = work
        super().__init__()
