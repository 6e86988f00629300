"""Recording from a finaliser, which the garbage collector runs in the middle of anything."""

from __future__ import annotations

import logging
import threading

import pytest
from ledger_calls import LedgerMaker, a_call


@pytest.mark.parametrize("mode", ["background", "inline"])
def test_a_finaliser_takes_no_lock(sqlite_ledger: LedgerMaker, mode: str) -> None:
    """Inside the ledger's own locks a finaliser records without waiting, and the call is in the database afterwards."""
    ledger = sqlite_ledger(write_mode=mode)
    ledger.append(a_call())
    worker = threading.Thread(target=lambda: ledger.append(a_call(), quick=True), daemon=True)
    with ledger._engine._lock, ledger._engine.gate._changed:
        worker.start()
        worker.join(5)
        assert not worker.is_alive()
    assert ledger.flush(20)
    assert sqlite_ledger.stored()[0] == 2


def test_a_finaliser_logs_nothing(sqlite_ledger: LedgerMaker, caplog: pytest.LogCaptureFixture) -> None:
    """In ``log`` mode a finaliser's call is logged by whoever comes next, since log handlers take locks."""
    caplog.set_level(logging.INFO, "flask_llm_cost")
    ledger = sqlite_ledger(write_mode="log")
    ledger.append(a_call(), quick=True)
    assert not caplog.records
    ledger.append(a_call())
    assert len(caplog.records) == 2
    ledger.append(a_call(), quick=True)
    assert ledger.flush(1)
    assert len(caplog.records) == 3
