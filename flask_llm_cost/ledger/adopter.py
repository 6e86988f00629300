"""Brings in what dead processes left in their spools."""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Callable, Sequence
from typing import Final
from uuid import UUID

from flask_llm_cost.ledger.adoption import SpoolReading, orphans, sweep_stalled
from flask_llm_cost.ledger.spool import Generation, Spool, UnreadableError
from flask_llm_cost.ledger.tally import Tally
from flask_llm_cost.ledger.writer import BATCH
from flask_llm_cost.log import log
from flask_llm_cost.records import CallRecord, Usage

#: After this many seconds the process's own records have their turn again.
PASS_SECONDS: Final = 2.0

#: Files held at once whose calls have not all ended yet.
_MOST_HELD: Final = 64


class Adopter:
    """Adopts for one drain.

    :param deliver: writes a batch, or raises; returns the lines of what the database refuses
    :param quarantine: keeps a line aside that nobody understands, or the database refuses
    """

    def __init__(
        self,
        spool: Spool,
        tally: Tally,
        deliver: Callable[[Sequence[CallRecord]], Sequence[bytes]],
        quarantine: Callable[[bytes], None],
    ) -> None:
        self._spool = spool
        self._tally = tally
        self._deliver = deliver
        self._quarantine = quarantine
        self._begun: dict[UUID, CallRecord] = {}
        self._ended: set[UUID] = set()

    def adopt(self) -> tuple[bool, bool]:
        """Take over files for about :data:`PASS_SECONDS`. Whether there was any, and whether that were all.

        A file goes as soon as the database has it, so that a process that is killed in the middle has got on. Only one
        with a call that began and has no end yet stays until the others are read, where its end may be. A call whose end
        is nowhere becomes an interrupted one.
        """
        sweep_stalled(self._spool.folders)
        until = time.monotonic() + PASS_SECONDS
        held: dict[Generation, SpoolReading] = {}
        found, complete = False, True
        self._begun, self._ended = {}, set()
        try:
            for generation in orphans(self._spool.folders, self._spool.identity):
                if found and (time.monotonic() > until or len(held) >= _MOST_HELD):
                    generation.release()
                    complete = False
                    break
                found = True
                reading = held[generation] = SpoolReading()
                if self._take(generation, reading) <= self._ended:
                    self._finish(generation, held.pop(generation))
            begun = [_interrupted(record) for name, record in self._begun.items() if name not in self._ended]
            for line in self._deliver(begun):
                self._quarantine(line)
            while held:
                self._finish(*held.popitem())
        finally:
            for generation in held:
                generation.release()
        return found, complete

    def _take(self, generation: Generation, reading: SpoolReading) -> set[UUID]:
        """Deliver the finished calls of one file. The ids of those that it saw begin."""
        begun: set[UUID] = set()
        batch: list[CallRecord] = []
        try:
            for entry in reading.entries(generation.read()):
                if entry.record is None:
                    reading.aside.append(entry.line)
                elif entry.started:
                    begun.add(entry.record.id)
                    self._begun[entry.record.id] = entry.record
                else:
                    self._ended.add(entry.record.id)
                    batch.append(entry.record)
                    if len(batch) >= BATCH:
                        reading.aside += self._deliver(batch)
                        batch = []
        except UnreadableError:
            reading.corrupt = True
        reading.aside += self._deliver(batch)
        return begun

    def _finish(self, generation: Generation, reading: SpoolReading) -> None:
        self._tally.torn += reading.torn
        self._tally.lost += reading.lost
        for line in reading.aside:
            self._quarantine(line)
        if reading.corrupt and generation.path is not None:
            try:
                generation.path.rename(generation.path.with_suffix(".corrupt"))
            finally:
                generation.release()
            log.warning("llm_cost: a spool file was corrupt; its whole lines are in the ledger, the file is kept")
        else:
            generation.remove()


def _interrupted(record: CallRecord) -> CallRecord:
    return dataclasses.replace(record, outcome="interrupted", usage=Usage())
