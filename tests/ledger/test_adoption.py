"""Many dead processes' files are brought in step by step, and nobody is told too early that all of it is there."""

from __future__ import annotations

from pathlib import Path

import sqlalchemy as sa
from ledger_calls import LedgerMaker, a_call, calls, price

from flask_llm_cost.ledger.lines import STARTED, encode, pack, unpack
from flask_llm_cost.ledger.spool import Spool
from flask_llm_cost.records import CallRecord


def dead_file(maker: LedgerMaker, *lines: bytes) -> Path:
    """A spool file whose process is gone."""
    spool = Spool([maker.folder / "llm_cost_spool"], maker()._identity())
    for line in lines:
        spool.append(line)
    path = spool.tail.path
    assert path is not None
    spool.abandon()
    return path


def test_flush_waits_for_all_that_dead_processes_left(sqlite_ledger: LedgerMaker) -> None:
    """However many files there are, ``flush`` says True only when the calls of all of them are in the database."""
    for number in range(150):
        dead_file(sqlite_ledger, *map(encode, calls(3, seed=number)))
    ledger = sqlite_ledger()
    ledger.append(a_call())
    assert ledger.flush(60)
    assert sqlite_ledger.stored()[0] == 150 * 3 + 1
    assert ledger.health().waiting == 0


def test_calls_that_never_ended_in_many_files(sqlite_ledger: LedgerMaker) -> None:
    """Files that wait for an end elsewhere do not stop those after them: each open call is interrupted, once."""
    for number in range(150):
        ended, begun = calls(2, seed=number)
        dead_file(sqlite_ledger, encode(ended, STARTED), encode(begun, STARTED), encode(ended))
    ledger = sqlite_ledger()
    ledger.append(a_call())
    assert ledger.flush(60)
    assert sqlite_ledger.stored()[0] == 150 * 2 + 1
    assert ledger.health().waiting == 0


def test_an_end_in_a_later_file_is_found(sqlite_ledger: LedgerMaker) -> None:
    """A call that began in one file of a dead process and ended in another is the call itself, not an interrupted one."""
    record = a_call(stream=True)
    dead_file(sqlite_ledger, encode(record, STARTED))
    dead_file(sqlite_ledger, encode(record))
    ledger = sqlite_ledger()
    ledger.append(a_call())
    assert ledger.flush(20)
    assert sqlite_ledger.stored()[:2] == (2, 4)
    assert ledger.health().duplicates == 0


def test_a_file_goes_as_soon_as_it_is_in_the_database(sqlite_ledger: LedgerMaker) -> None:
    """An adopter that is killed in the middle has got on: files that were read before are gone already."""
    paths = [dead_file(sqlite_ledger, *map(encode, calls(3, seed=number))) for number in range(5)]
    seen: list[int] = []
    own = a_call()

    def watch(record: CallRecord) -> CallRecord:
        if record.id != own.id:  # which may be first or last
            seen.append(sum(path.exists() for path in paths))
        return price(record)

    ledger = sqlite_ledger(price=watch)
    ledger.append(own)
    assert ledger.flush(20)
    assert sorted(set(seen), reverse=True) == [5, 4, 3, 2, 1]


def test_a_call_is_set_aside_once(sqlite_url: sa.URL, tmp_path: Path) -> None:
    """However often a dead process's file is tried while the database is away, a line nobody understands is one call."""
    maker = LedgerMaker(sqlite_url, tmp_path)  # no tables yet, so that nothing gets in
    ledger = maker()
    left = Spool([tmp_path / "llm_cost_spool"], ledger._identity())
    fields = unpack(encode(a_call()).strip(b"\n"))
    assert fields is not None
    left.append(pack({**fields, "at": {"of": "another version"}}))
    left.append(encode(a_call()))
    left.abandon()
    for _ in range(3):
        assert not ledger.flush(0.5)
    maker.create_tables()
    assert ledger.flush(60)
    assert (maker.stored()[0], ledger.health().quarantined) == (1, 1)
    maker.close()
