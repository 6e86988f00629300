"""The spool's folder is deleted, or its files cannot be read, while the app runs."""

from __future__ import annotations

import os
import shutil
import time

from ledger_calls import LedgerMaker, a_call, calls

from flask_llm_cost.ledger.models import Base


def delete_spool(maker: LedgerMaker) -> None:
    # Out of the way first: the drain may be making a file in it at this moment.
    shutil.rmtree((maker.folder / "llm_cost_spool").rename(maker.folder / "deleted"))


def test_a_deleted_folder_costs_no_call(sqlite_ledger: LedgerMaker) -> None:
    """Somebody deletes the spool folder: what waits is delivered, a new folder made, later calls durable."""
    Base.metadata.drop_all(sqlite_ledger.engine)
    ledger = sqlite_ledger()
    records = calls(30)
    for record in records[:10]:
        ledger.append(record)
    delete_spool(sqlite_ledger)
    for record in records[10:20]:
        ledger.append(record)
    assert ledger.health().waiting == 20
    sqlite_ledger.create_tables()
    assert ledger.flush(20)
    ledger.append(records[20])
    assert ledger.flush(20)
    assert len(sqlite_ledger.spool_files) == 1
    assert ledger.health().lost == 0
    assert sqlite_ledger.stored()[0] == 21


def test_a_deleted_empty_file_is_replaced(sqlite_ledger: LedgerMaker) -> None:
    """Deleted between two calls, the folder is there again soon, so that the next call survives a killed process."""
    ledger = sqlite_ledger()
    ledger.append(a_call())
    assert ledger.flush(20)
    delete_spool(sqlite_ledger)
    deadline = time.monotonic() + 10
    while not sqlite_ledger.spool_files and time.monotonic() < deadline:
        time.sleep(0.05)
    assert len(sqlite_ledger.spool_files) == 1


def test_a_file_that_cannot_be_read_is_counted_and_left_behind(sqlite_ledger: LedgerMaker) -> None:
    """One file that the disk does not give back is counted as lost, and the calls after it are written."""
    Base.metadata.drop_all(sqlite_ledger.engine)
    ledger = sqlite_ledger()
    ledger.append(a_call())
    reader, writer = os.pipe()  # a pipe has no positions: every pread of it fails
    process = ledger._process()
    deadline = time.monotonic() + 10
    while process.spool.sealed() is None and time.monotonic() < deadline:
        time.sleep(0.01)
    generation = process.spool.sealed()
    assert generation is not None
    os.dup2(writer, generation.fd)
    # A pass that has read the file already may still try to write: only the next one finds it unreadable.
    while ledger.health().lost == 0 and time.monotonic() < deadline + 10:
        time.sleep(0.01)
    assert ledger.health().lost == 1
    sqlite_ledger.create_tables()
    ledger.append(a_call())
    assert ledger.flush(20)
    assert sqlite_ledger.stored()[0] == 1
    os.close(reader)
    os.close(writer)
