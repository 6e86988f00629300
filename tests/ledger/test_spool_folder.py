"""Whose the spool's folder is, and who may read it."""

from __future__ import annotations

import stat
from pathlib import Path

import pytest
from ledger_calls import LedgerMaker, a_call

from flask_llm_cost.ledger.lines import encode
from flask_llm_cost.ledger.spool import Spool


def mode_of(path: Path) -> int:
    return stat.S_IMODE(path.stat().st_mode)


@pytest.mark.parametrize("mode", [0o755, 0o750, 0o775])
def test_a_folder_that_others_read_is_left_as_it_is(sqlite_ledger: LedgerMaker, mode: int) -> None:
    """Permissions of a folder that somebody else made never change: the spool lives in a private folder inside it."""
    shared = sqlite_ledger.folder / "shared"
    shared.mkdir()
    shared.chmod(mode)
    ledger = sqlite_ledger(spool_dir=str(shared))
    assert ledger.health().spool_dir == shared / "llm_cost_spool"
    ledger.append(a_call())
    assert mode_of(shared) == mode
    assert mode_of(shared / "llm_cost_spool") == 0o700
    assert ledger.health().spool_dir == shared / "llm_cost_spool"
    assert list((shared / "llm_cost_spool").glob("*.spool"))
    assert ledger.flush(10)
    assert sqlite_ledger.stored()[0] == 1


def test_a_private_folder_is_used_itself(sqlite_ledger: LedgerMaker) -> None:
    """A folder that only this user reads needs none inside it."""
    private = sqlite_ledger.folder / "private"
    private.mkdir(mode=0o700)
    ledger = sqlite_ledger(spool_dir=str(private))
    ledger.append(a_call())
    assert ledger.health().spool_dir == private
    assert not (private / "llm_cost_spool").exists()


def test_files_are_found_when_permissions_have_changed_since(sqlite_ledger: LedgerMaker) -> None:
    """What a dead process left in the folder itself is adopted, also when the folder is not private any more."""
    shared = sqlite_ledger.folder / "shared"
    ledger = sqlite_ledger(spool_dir=str(shared))
    dead = Spool([shared], ledger._identity())
    dead.append(encode(a_call()))
    dead.abandon()
    shared.chmod(0o755)
    ledger.append(a_call())
    assert ledger.flush(20)
    assert sqlite_ledger.stored()[0] == 2
