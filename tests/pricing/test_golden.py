"""Bills worked out by hand, each rate with its source, against the book as it ships."""

from __future__ import annotations

import json
from datetime import datetime
from decimal import Decimal
from pathlib import Path
from typing import Any

import pytest

from flask_llm_cost.pricing import PriceBook
from flask_llm_cost.records import Usage

CASES: list[dict[str, Any]] = json.loads((Path(__file__).parent / "golden.json").read_text("utf-8"))


def _decimal(text: str | None) -> Decimal | None:
    return None if text is None else Decimal(text)


@pytest.mark.parametrize("case", CASES, ids=lambda case: case["case"])
def test_the_bill_is_the_one_worked_out_by_hand(book: PriceBook, case: dict[str, Any]) -> None:
    """Every line, the total, the status, the rule and the tier are those of the published price."""
    # What was used, where the least that is billed is more.
    used = case.get("usage") or {line[0]: line[1] for line in case["lines"]}
    usage = Usage(used or {"input": 0, "output": 0}, source="response")
    cost = book.price(case["provider"], case["model"], usage, case["mode"], datetime.fromisoformat(case["at"]))
    assert [(line.component, line.quantity, line.rate, line.rate_per, line.cost, line.status) for line in cost.lines] == [
        (component, quantity, _decimal(rate), _decimal(per), _decimal(amount), status)
        for component, quantity, rate, per, amount, status in case["lines"]
    ]
    assert (cost.total, cost.status) == (_decimal(case["total"]), case["status"])
    assert (cost.price.match if cost.price else None) == case["match"]
    assert (cost.price.tier if cost.price else None) == case["tier"]


def test_the_golden_table_is_arithmetic() -> None:
    """The table cannot agree with the book by a slip of both: its own lines multiply and add up."""
    assert len(CASES) >= 120
    for case in CASES:
        lines = [line for line in case["lines"] if line[2] is not None]
        for _, quantity, rate, per, amount, _ in lines:
            exact = Decimal(quantity) * Decimal(rate) / Decimal(per)
            # A price by the hour need not end; it is kept to 18 places.
            assert exact == Decimal(amount) or exact.quantize(Decimal("1e-18")) == Decimal(amount), case["case"]
        if case["total"] is not None:
            assert sum((Decimal(line[4]) for line in lines), Decimal(0)) == Decimal(case["total"]), case["case"]
        assert case["source"], case["case"]
