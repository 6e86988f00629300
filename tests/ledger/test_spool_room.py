"""What is given up when the spool is full."""

from __future__ import annotations

import os
import time
from dataclasses import replace
from pathlib import Path

import pytest
import sqlalchemy as sa
from ledger_calls import NOON, LedgerMaker, a_call, calls

from flask_llm_cost.ledger.lines import encode, pack, pack_lost
from flask_llm_cost.ledger.models import Base, Call, Counter
from flask_llm_cost.ledger.spool import Spool
from flask_llm_cost.records import new_call_id


def fill(folder: Path, identity: str, lines: list[bytes]) -> Path:
    """A spool file whose process is gone."""
    spool = Spool([folder], identity)
    for line in lines:
        spool.append(line)
    path = spool.tail.path
    assert path is not None
    spool.abandon()
    return path


def test_files_of_another_ledger_take_no_room(sqlite_ledger: LedgerMaker) -> None:
    """However much another ledger has left in the same folder, none of our calls is given up for it."""
    Base.metadata.drop_all(sqlite_ledger.engine)
    fill(sqlite_ledger.folder / "llm_cost_spool", "another", [pack({"kind": "x", "x": "x" * 2_000_000})])
    ledger = sqlite_ledger(spool_max_mb=1)
    for record in calls(50):
        ledger.append(record)
        ledger.flush(0.02)
    sqlite_ledger.create_tables()
    assert ledger.flush(30)
    assert sqlite_ledger.stored()[0] == 50
    assert ledger.health().lost == 0


def test_a_tag_may_have_the_name_of_a_lines_kind(tmp_path: Path) -> None:
    """A call with a tag kind=lost, =started or =header is one that waits, and says nothing of others that were given up."""
    spool = Spool([tmp_path], "shop")
    for kind in ("lost", "started", "header"):
        spool.append(encode(a_call(tags={"kind": kind})))
    spool.append(pack_lost(7))
    spool.started(a_call(tags={"kind": "call"}))
    assert (spool.waiting(), [generation.lost() for generation in spool.chain()]) == (3, [7])
    spool.abandon()


@pytest.mark.slow
def test_a_busy_database_costs_no_call(sqlite_ledger: LedgerMaker) -> None:
    """While somebody holds the database nothing is given up, however full the spool is."""
    ledger = sqlite_ledger(spool_max_mb=1)
    records = calls(4000)
    assert sum(len(encode(record)) for record in records) > 1_500_000
    with sqlite_ledger.engine.begin() as app:
        app.execute(sa.insert(Counter).values(name="mine", value=1, updated_at=NOON))
        for record in records:
            ledger.append(record)
        failed = time.monotonic() + 15
        while len(sqlite_ledger.failed) < 2 and time.monotonic() < failed:
            time.sleep(0.05)
        assert len(sqlite_ledger.failed) >= 2
    assert ledger.flush(30)
    assert ledger.health().lost == 0
    assert sqlite_ledger.stored()[0] == 4000


@pytest.mark.slow
def test_what_was_lost_is_told_by_whoever_comes_next(sqlite_ledger: LedgerMaker) -> None:
    """How many calls were given up outlives the process, also where what it left is given up by the next one in its turn."""
    Base.metadata.drop_all(sqlite_ledger.engine)
    for _ in range(2):
        ledger = sqlite_ledger(spool_max_mb=1)
        for number, record in enumerate(calls(3000)):
            ledger.append(replace(record, id=new_call_id()))
            if number % 100 == 99:
                ledger.flush(0.1)
        deadline = time.monotonic() + 20
        while not ledger.health().lost and time.monotonic() < deadline:
            ledger.flush(0.1)
        assert ledger.health().lost > 0
        spool = ledger._processes[os.getpid()].spool
        ledger.close(0.2)
        spool.abandon()
    sqlite_ledger.create_tables()
    heir = sqlite_ledger(spool_max_mb=1)
    assert heir.flush(30)
    assert heir.health().lost == 6000 - sqlite_ledger.stored()[0]
    with sqlite_ledger.engine.connect() as connection:
        assert connection.scalar(sa.select(Counter.value).where(Counter.name == "lost")) == heir.health().lost


@pytest.mark.slow
def test_what_dead_processes_left_goes_first_and_no_more_than_is_needed(sqlite_ledger: LedgerMaker) -> None:
    """Past the limit the oldest go: a dead process's calls before our own, and of our own only some."""
    Base.metadata.drop_all(sqlite_ledger.engine)
    ledger = sqlite_ledger(spool_max_mb=1)
    dead = fill(sqlite_ledger.folder / "llm_cost_spool", ledger._identity(), [encode(a_call()) for _ in range(500)])
    records = calls(3100)
    assert sum(len(encode(record)) for record in records) > 1_200_000
    for number, record in enumerate(records):
        ledger.append(record)
        if number % 100 == 99:
            ledger.flush(0.25)
    deadline = time.monotonic() + 10
    while ledger.health().lost <= 500 and time.monotonic() < deadline:
        ledger.flush(0.1)
    assert not dead.exists()
    sqlite_ledger.create_tables()
    assert ledger.flush(30)
    own = ledger.health().lost - 500
    assert 0 < own < 1600
    with sqlite_ledger.engine.connect() as connection:
        assert set(connection.scalars(sa.select(Call.id))) == {record.id for record in records[own:]}
