"""What is given up when the spool is full and the database away: the oldest calls, counted in a line that outlives us."""

from __future__ import annotations

from pathlib import Path

from flask_llm_cost.ledger.adoption import ledger_of, orphans, spool_files
from flask_llm_cost.ledger.lines import pack_lost
from flask_llm_cost.ledger.spool import ROTATE_BYTES, Spool
from flask_llm_cost.ledger.tally import Tally


def make_room(spool: Spool, tally: Tally, max_bytes: int, *, adopt: bool) -> None:
    """Keep files small, and let the oldest calls of this ledger go when all are more than *max_bytes*.

    :param adopt: whether what dead processes left is ours to give up, which goes first
    """
    if spool.tail.lines is not None or spool.tail.size >= min(ROTATE_BYTES, max_bytes // 8):
        spool.seal()
    mine = {generation.path: generation for generation in spool.chain()}
    others = [path for path in spool_files(spool.folders) if path not in mine and ledger_of(path) == spool.identity]
    excess = sum(generation.size for generation in mine.values()) + sum(map(_size, others)) - max_bytes
    if excess > 0 and adopt and others:
        excess -= _drop_orphans(spool, tally, excess)
    while excess > 0 and (generation := spool.sealed()) is not None and generation.quiet(0.1):
        excess -= max(1, generation.size)
        # Who reads the line is another process, should this one not live to tell: what it has lost so far is in its tally.
        calls, before = generation.calls(), generation.lost()
        tally.lost += calls
        spool.append(pack_lost(calls + before))
        spool.drained(generation)


def _drop_orphans(spool: Spool, tally: Tally, excess: int) -> int:
    """Give up what dead processes left, oldest first, until *excess* bytes are free. How many bytes that made."""
    freed = 0
    for generation in orphans(spool.folders, spool.identity):
        if freed >= excess:
            generation.release()
            break
        freed += generation.size
        calls = generation.calls() + generation.lost()
        tally.lost += calls
        spool.append(pack_lost(calls))
        generation.remove()
    return freed


def _size(path: Path) -> int:
    try:
        return path.stat().st_size
    except OSError:
        return 0
