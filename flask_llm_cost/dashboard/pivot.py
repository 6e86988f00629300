"""A pivot as it is shown: headings, rows, and the totals that they add up to."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from decimal import Decimal
from typing import Any, Final

from flask_llm_cost.dashboard.filters import Selection
from flask_llm_cost.ledger.queries import Spend

#: So many cells lead to their calls: hundreds of addresses would weigh more than the table.
_MOST_LINKS: Final = 250


@dataclass(frozen=True, slots=True)
class Heading:
    """A column: a value of a dimension, or days.

    :param params: the query string that shows this column alone; ``None`` where there is none
    :param value: what it is of: the value itself, whatever its name, or the days in full
    """

    label: str
    params: Mapping[str, Any] | None = None
    value: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class PivotRow:
    """A value, its cells in the order of the columns, and all of it.

    :param before: what it came to in the compared range
    """

    value: str | None
    label: str
    cells: tuple[Spend, ...]
    total: Spend
    before: Spend
    share: Decimal | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Invoice:
    """What a provider says one owes, beside what the ledger has for the same days."""

    provider: str
    amount: Decimal
    ledger: Spend

    @property
    def difference(self) -> Decimal | None:
        """Of the invoice, what the ledger does not have; negative where it has more."""
        return None if self.ledger.cost is None else self.amount - self.ledger.cost

    @property
    def covered(self) -> Decimal | None:
        return self.ledger.cost / self.amount if self.ledger.cost is not None and self.amount else None


@dataclass(frozen=True, slots=True, kw_only=True)
class Pivot:
    """The table.

    :param rest: the rows that are not shown, as one
    :param more: how many those are, in words
    :param total: the totals row; its total is the overview's
    :param measure: what a cell shows, as a figure
    """

    columns: tuple[Heading, ...]
    rows: tuple[PivotRow, ...]
    rest: PivotRow | None
    more: str
    total: PivotRow
    invoice: Invoice | None
    measure: Callable[[Spend], Any]

    @property
    def linked(self) -> bool:
        """Whether each cell leads to its calls: in a table of ordinary size, as hundreds of addresses weigh more than it."""
        return len(self.rows) * len(self.columns) <= _MOST_LINKS

    @property
    def highest(self) -> Decimal:
        """The largest figure of a cell, which the others are tinted by."""
        return max((Decimal(self.measure(cell) or 0) for row in self.rows for cell in row.cells), default=Decimal(0))

    @staticmethod
    def params(selection: Selection, row: PivotRow, column: Heading | None = None) -> dict[str, Any]:
        """The query string of the calls behind a row, or behind its cell in a column."""
        asked = selection.with_value(selection.rows, row.value)
        if column is not None and column.params is not None:
            shown = selection.changed()
            narrowing = {name: value for name, value in column.params.items() if shown.get(name) != value}
            lacking = dict.fromkeys([*asked.get("untagged", ()), *narrowing.get("untagged", ())])
            asked = {**asked, **narrowing, **({"untagged": list(lacking)} if lacking else {})}
            if "from" in narrowing:
                asked.pop("range", None)
        return {name: value for name, value in asked.items() if name not in ("rows", "cols", "show", "invoice")}

    def tint(self, cell: Spend, highest: Decimal) -> int:
        """0 to 5, by the root of its part of the *highest*, so that one outlier does not pale the rest."""
        figure = Decimal(self.measure(cell) or 0)
        return max(1, round(math.sqrt(figure / highest) * 5)) if figure > 0 else 0
