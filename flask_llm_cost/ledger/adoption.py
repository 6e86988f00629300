"""Spool files whose process is gone, and what can be read from them."""

from __future__ import annotations

import os
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

from flask_llm_cost.ledger import locks
from flask_llm_cost.ledger.folders import NEW_SUFFIX, places
from flask_llm_cost.ledger.lines import FORMAT, HEADER, LOST, STARTED, record_of, unpack
from flask_llm_cost.ledger.spool import SUFFIX, Generation
from flask_llm_cost.records import CallRecord

#: A file that never got its name, older than this, was left by a process that died while making it.
_STALLED_SECONDS: Final = 60.0


@dataclass(frozen=True, slots=True)
class Entry:
    """One line of a spool file that is no header.

    :param record: ``None`` for a whole line that cannot be understood: written by another version, to be kept aside
    """

    line: bytes
    record: CallRecord | None
    started: bool


@dataclass(slots=True)
class SpoolReading:
    """Reads a file's entries, and says afterwards how the file was."""

    #: Lines with a wrong CRC.
    torn: int = 0
    #: Whether whole lines came after a torn one: then it was no write cut short by the end of the process.
    corrupt: bool = False
    #: Calls that were given up while it was written.
    lost: int = 0
    #: Lines to set aside once all else is in the database: until then the file is read again, and they with it.
    aside: list[bytes] = field(default_factory=list)

    def entries(self, lines: Iterator[bytes]) -> Iterator[Entry]:
        for line in lines:
            fields = unpack(line)
            if fields is None:
                self.torn += 1
                continue
            self.corrupt = self.torn > 0
            if fields.get("kind") == HEADER:
                continue
            if fields.get("kind") == LOST:
                self.lost += int(fields["calls"])
                continue
            try:
                record = record_of(fields)
            except ValueError:
                yield Entry(line, None, False)
            else:
                yield Entry(line, record, fields.get("kind") == STARTED)


def ledger_of(path: Path) -> str | None:
    """The identity in a spool file's header; ``None`` where there is no header that this version can read."""
    try:
        with path.open("rb") as file:
            line = next((line for line in file if line.strip(b"\n")), b"")
    except OSError:
        return None
    fields = unpack(line.strip(b"\n"))
    if fields is None or fields.get("kind") != HEADER or fields.get("format") != FORMAT:
        return None
    return str(fields.get("ledger"))


def spool_files(folders: Sequence[Path]) -> list[Path]:
    """Every spool file in *folders*, oldest name first."""
    found = []
    for folder in places(folders):
        try:
            found += [path for path in folder.iterdir() if path.suffix == SUFFIX]
        except OSError:
            continue
    return sorted(found, key=lambda path: path.name.partition("-")[2])


def orphans(folders: Sequence[Path], identity: str) -> Iterator[Generation]:
    """Files of ledger *identity* that no process holds, each locked by us from here on. Others stay as they are."""
    for path in spool_files(folders):
        generation = _adopt(path)
        if generation is None:
            continue
        if ledger_of(path) == identity:
            yield generation
        else:
            generation.release()


def _adopt(path: Path) -> Generation | None:
    try:
        fd = os.open(path, os.O_RDWR | os.O_CLOEXEC | os.O_NOFOLLOW)
    except OSError:
        return None
    try:
        # The lock is on the file itself: a process id says nothing, containers that share a volume have the same ones.
        locks.take(fd)
        if os.fstat(fd).st_nlink:
            return Generation(0, path, fd, None, [], {})
    except OSError:
        pass
    os.close(fd)
    return None


def sweep_stalled(folders: Sequence[Path]) -> None:
    """Remove files that a process began to make and died: nothing was ever recorded in one."""
    for folder in places(folders):
        try:
            stalled = [path for path in folder.iterdir() if path.suffix == NEW_SUFFIX]
        except OSError:
            continue
        for path in stalled:
            try:
                if time.time() - path.stat().st_mtime > _STALLED_SECONDS:
                    path.unlink(missing_ok=True)
            except OSError:
                continue
