"""What a database error means for the records that met it."""

from __future__ import annotations

from dataclasses import replace
from uuid import UUID

import pytest
import sqlalchemy as sa
from ledger_calls import PRICE, LedgerMaker, calls, price

from flask_llm_cost.ledger.faults import Fault, fault_of
from flask_llm_cost.records import UNPRICED


class _DriverError(Exception):
    """As a driver raises it: psycopg has ``sqlstate``, PyMySQL a number first."""

    sqlstate: str | None = None


@pytest.mark.parametrize("wrapper", [sa.exc.DataError, sa.exc.OperationalError, sa.exc.InternalError, sa.exc.DBAPIError])
@pytest.mark.parametrize(
    ("sqlstate", "number"), [("22P02", None), ("22008", None), (None, 1292), (None, 1366), (None, 1264)]
)
def test_refused_values_are_data_whatever_their_class(
    wrapper: type[sa.exc.DBAPIError], sqlstate: str | None, number: int | None
) -> None:
    """A value that the database refuses condemns its record, not the ledger, however the driver classes the error."""
    original = _DriverError(number, "text") if number else _DriverError("text")
    original.sqlstate = sqlstate
    assert fault_of(wrapper("INSERT", {}, original)) is Fault.DATA


def test_one_poison_row_never_blocks_the_ledger(make_ledger: LedgerMaker) -> None:
    """On each database a record that it refuses is set aside, and those before and after it are written."""
    ledger = make_ledger()
    records = calls(3)
    # MariaDB takes only some variants of UUIDs; the others refuse the latency.
    odd = replace(PRICE, id=UUID("5fe3a3c5-d7a6-1d56-40f3-7d6c00b3c9a1"))
    cost = replace(price(records[1]).cost or UNPRICED, price=odd)
    records[1] = replace(records[1], latency_ms=2**70, cost=cost)
    for record in records:
        ledger.append(record)
    assert ledger.flush(20)
    assert make_ledger.stored()[0] == 2
    assert ledger.health().quarantined == 1
