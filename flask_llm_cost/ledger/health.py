"""How the ledger is: what doctor and the data-quality page ask."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

from flask_llm_cost.ledger.adoption import ledger_of, spool_files
from flask_llm_cost.ledger.folders import place_in, places
from flask_llm_cost.ledger.quarantine import files as quarantine_files
from flask_llm_cost.ledger.spool import Spool, count_calls
from flask_llm_cost.ledger.tally import Tally


@dataclass(frozen=True, slots=True)
class Health:
    """How the ledger is, as this process sees it.

    :param mode: ``background``, ``inline``, ``log``, or ``memory`` for an in-memory database
    :param spool_dir: where records wait; ``None`` where they wait in memory
    :param durable: whether a record survives a killed process
    :param waiting: calls that are not in the database yet, those of other processes and dead ones included
    :param waiting_in: the spool files that hold them
    :param waiting_since: when the oldest file with calls that wait was last written to
    :param foreign: spool files of other ledgers in the same folders
    :param foreign_calls: finished calls in them
    :param foreign_since: when the oldest of those that hold calls was last written to
    :param quarantined: records that the database refused, kept in a file beside the spool
    :param corrupt: spool files that were damaged and are kept, without those that say that they are another ledger's
    :param lost: calls given up by this process because the spool was full
    :param spooled: inline writes that had to wait in the spool
    :param last_error_class: class and SQLSTATE of the last write if it failed, never a message: messages carry data
    :param schema_missing: whether the last write found no tables
    """

    mode: str
    spool_dir: Path | None
    durable: bool
    waiting: int
    waiting_in: tuple[Path, ...]
    waiting_since: datetime | None
    foreign: int
    foreign_calls: int
    foreign_since: datetime | None
    quarantined: int
    corrupt: int
    lost: int
    spooled: int
    written: int
    duplicates: int
    torn: int
    last_write_at: datetime | None
    last_error_at: datetime | None
    last_error_class: str | None
    schema_missing: bool


def survey(
    mode: str, tally: Tally, *, identity: str, folders: Sequence[Path], spool: Spool | None, in_memory: int
) -> Health:
    """Look at the spool folders and at what this process has counted.

    :param spool: this process's, if it has recorded anything
    :param in_memory: records that wait for an in-memory database
    """
    on_disk = mode in ("background", "inline")
    spool_dir = (spool.folder if spool is not None else _first(folders)) if on_disk else None
    files = spool_files(folders) if on_disk else []
    ours = [path for path in files if ledger_of(path) == identity]
    foreign = {path: count for path in files if path not in ours and (count := count_calls(path))}
    mine = {path: count for path in ours if (count := count_calls(path))}
    waiting = sum(mine.values()) + in_memory
    if spool is not None:
        waiting += sum(generation.calls() for generation in spool.chain() if generation.path is None or generation.gone)
    return Health(
        mode=mode,
        spool_dir=spool_dir,
        durable=mode == "inline" or (mode == "background" and spool_dir is not None),
        waiting=waiting,
        waiting_in=tuple(mine),
        waiting_since=_time(min(map(_written_at, mine), default=None)),
        foreign=len(files) - len(ours),
        foreign_calls=sum(foreign.values()),
        foreign_since=_time(min(map(_written_at, foreign), default=None)),
        quarantined=sum(map(count_calls, quarantine_files(folders, identity))),
        corrupt=sum(ledger in (identity, None) for _, ledger in damaged(folders)),
        lost=tally.lost,
        spooled=tally.spooled,
        written=tally.written,
        duplicates=tally.duplicates,
        torn=tally.torn,
        last_write_at=_time(tally.last_write_at),
        last_error_at=_time(tally.last_error_at),
        last_error_class=tally.last_error,
        schema_missing=tally.schema_missing,
    )


def damaged(folders: Sequence[Path]) -> Iterator[tuple[Path, str | None]]:
    """The spool files that were damaged and are kept, each with its ledger; ``None`` where the file does not say."""
    for folder in places(folders):
        if folder.is_dir():
            for path in folder.glob("*.corrupt"):
                yield path, ledger_of(path)


def _written_at(path: Path) -> float:
    try:
        return path.stat().st_mtime
    except OSError:
        return time.time()


def _first(folders: Sequence[Path]) -> Path:
    try:
        return place_in(folders[0])
    except OSError:
        return folders[0]


def _time(stamp: float | None) -> datetime | None:
    return None if stamp is None else datetime.fromtimestamp(stamp, UTC)
