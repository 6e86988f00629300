"""The thread that carries records from the spool into the database. One a process, started at the first record."""

from __future__ import annotations

import _thread
import contextlib
import dataclasses
import functools
import threading
import time
import weakref
from collections.abc import Callable, Sequence
from typing import Final, TypeAlias

import sqlalchemy as sa

from flask_llm_cost.chance import CHANCE
from flask_llm_cost.errors import SchemaMissingError
from flask_llm_cost.ledger import lifecycle
from flask_llm_cost.ledger.adopter import Adopter
from flask_llm_cost.ledger.adoption import SpoolReading
from flask_llm_cost.ledger.faults import Fault
from flask_llm_cost.ledger.lines import encode
from flask_llm_cost.ledger.quarantine import set_aside
from flask_llm_cost.ledger.room import make_room
from flask_llm_cost.ledger.spool import Generation, Spool, UnreadableError
from flask_llm_cost.ledger.tally import COUNTERS, Tally
from flask_llm_cost.ledger.transaction import WriteError
from flask_llm_cost.ledger.variety import MANY_VALUES_OF
from flask_llm_cost.ledger.writer import BATCH, Writer, Written
from flask_llm_cost.log import log
from flask_llm_cost.records import CallRecord

ADOPT_SECONDS: Final = 30.0
BEAT_SECONDS: Final = 30.0
BUSY_SECONDS: Final = 0.2
IDLE_SECONDS: Final = 1.0
_BACKOFF_SECONDS: Final = (0.2, 30.0)
_MINUTE: Final = 60.0


class Drain:
    """Drains one spool through one writer.

    :param price: puts the cost into a record, or says that there is none; never raises
    :param committed: told of the records that this process recorded and that are now in the database
    :param write_failed: told the kind of error, and how many calls wait, when a batch could not be written
    :param max_bytes: of spool files, beyond which the oldest calls are given up while the database is away
    :param adopt: whether to take over the spools of dead processes
    :param quiet: whether to keep failed writes out of the log; losses are told always
    :param idle: called when there is nothing to do
    """

    def __init__(
        self,
        spool: Spool,
        writer: Writer,
        *,
        tally: Tally,
        price: Callable[[CallRecord], CallRecord],
        committed: Callable[[Sequence[CallRecord]], None],
        write_failed: Callable[[str, int], None],
        max_bytes: int,
        adopt: bool,
        quiet: bool,
        idle: Callable[[], None],
    ) -> None:
        self.tally = tally
        self._spool = spool
        self._writer = writer
        self._price = price
        self._committed = committed
        self._write_failed = write_failed
        self._max_bytes = max_bytes
        self._adopt = adopt
        self._quiet = quiet
        self._idle = idle
        self._awake = threading.Event()
        self._asking = threading.Lock()
        #: Held by whoever does a pass where there is no thread to do it, and when the next one is due there.
        self._at_work = threading.Lock()
        self._due = float("-inf")
        #: What the thread keeps alive: us while something waits, otherwise nothing, so that an app can go.
        self._held: list[Drain] = []
        #: Holds something when there is no thread, and none could be started at that moment.
        self._fallen: list[None] = []
        self._asked = 0
        self._served = 0
        self._blocked = False
        self._stopping = False
        self._stopped = False
        self._failures = 0
        self._adopt_at = float("-inf")
        self._told: dict[str, float] = {}
        self._beaten = Tally()
        self._beaten_at = float("-inf")

    # Life.

    def start(self) -> None:
        """Start the thread. Where none can be started now, a later record tries again."""
        if lifecycle.threads_are_off():
            return  # it could stand still in the middle of a transaction
        self._held[:] = [self]
        _start(weakref.ref(self), self._held, self._awake, self._spool, self._fallen)

    def hold(self) -> None:
        """Something waits: the thread keeps us, and so the ledger and its engine, until it is in the database."""
        self._held[:] = [self]
        if self._fallen:
            with contextlib.suppress(IndexError):  # somebody else starts it
                self._fallen.pop()
                self.start()

    def flush(self, timeout: float) -> bool:
        """Whether everything recorded so far, by dead processes too, got into the database within *timeout* seconds."""
        deadline = time.monotonic() + timeout
        self.hold()
        with self._asking:
            self._asked = mine = self._asked + 1
        self._awake.set()
        self._due = float("-inf")
        while self._served < mine and not self._stopped:
            if time.monotonic() >= deadline or self._at_work.locked():  # perhaps by this thread
                return False
            self.catch_up()
            time.sleep(0.002)
        return self._served >= mine

    def stop(self, patience: float) -> None:
        """Drain once more, for at most *patience* seconds, and end the thread. What is left stays in its file."""
        deadline = time.monotonic() + patience
        self._stopping = True
        self._awake.set()
        self._due = float("-inf")
        while not self._stopped and time.monotonic() < deadline:
            self.catch_up()
            time.sleep(0.002)

    def catch_up(self) -> None:
        """Do what is due of the thread's work in this one, where there can be no other."""
        if lifecycle.threads_are_off() and time.monotonic() >= self._due and self._at_work.acquire(blocking=False):
            try:
                self._due = time.monotonic() + self._turn(0.0)
            finally:
                self._at_work.release()

    def _turn(self, pause: float) -> float:
        """One pass. Returns how many seconds to wait for the next."""
        stopping, asked = self._stopping, self._asked
        try:
            moved = self._pass(stopping, asked)
        except Exception as error:  # a thread that dies here would leave all records waiting
            self._fail(Fault.AWAY, type(error).__name__)
            moved = False
        if not self._failures and not self._blocked:
            self._served = max(self._served, asked)
        self._held.clear()
        # Files outlive the app that cannot write them; memory does not.
        if not self._spool.empty and (not self._failures or self._spool.folder is None):
            self.hold()
        if stopping:
            self._held.clear()
            self._stopped = True
        if self._failures:
            low, high = _BACKOFF_SECONDS
            return CHANCE.uniform(0.5, 1.0) * min(high, low * float(2 ** min(self._failures, 10)))
        return BUSY_SECONDS if moved else min(IDLE_SECONDS, max(BUSY_SECONDS, pause * 1.5))

    # Work.

    def _pass(self, stopping: bool, asked: int) -> bool:
        """Drain what is there. Whether there was anything."""
        self._tell_troubles()
        moved = self._blocked = False
        try:
            # What is sealed from an earlier failure first, then once what has come since: an end even under steady load.
            moved = self._drain_sealed()
            self._spool.seal()
            moved |= self._drain_sealed()
            due = time.monotonic() >= self._adopt_at and not lifecycle.threads_are_off()  # it may take long
            if self._adopt and not stopping and (asked > self._served or due):
                deliver = functools.partial(self._deliver, tell=False)
                found, complete = Adopter(self._spool, self.tally, deliver, self._quarantine).adopt()
                moved |= found
                self._blocked |= not complete
                self._adopt_at = time.monotonic() + (ADOPT_SECONDS if complete else 0.0)
        except WriteError as error:
            self._fail(error.fault, error.name)
            if error.fault is not Fault.RETRY:  # a busy database is back in a moment
                self._make_room()
            return moved
        if self._failures:
            log.warning("llm_cost: the ledger is being written again")
        self._failures = 0
        self._beat()
        if not moved:
            self._idle()
        return moved

    def _drain_sealed(self) -> bool:
        moved = False
        while (generation := self._spool.sealed()) is not None:
            if not generation.quiet(1.0):
                self._blocked = True  # a writer is stuck in the middle: later
                break
            reading = SpoolReading()
            try:
                self._deliver_own(generation, reading)
            except UnreadableError as error:
                self.tally.lost += max(1, generation.calls())
                self._say("unreadable", "llm_cost: a spool file cannot be read (%s); what it held is lost", error)
            for line in reading.aside:
                self._quarantine(line)
            self._spool.drained(generation)
            moved = True
        return moved

    def _beat(self) -> None:
        """Tell the ledger that it is being written, and what was counted since, at most twice a minute."""
        tally, now = self.tally, time.monotonic()
        counts = {name: getattr(tally, name) - getattr(self._beaten, name) for name in COUNTERS}
        counts |= {MANY_VALUES_OF + key: 1 for key in tally.many_values[len(self._beaten.many_values) :]}
        # At once: somebody should hear of it.
        told = any(count for name, count in counts.items() if name not in ("duplicates", "busy", "redacted"))
        if not told and (tally.written == self._beaten.written or now - self._beaten_at < BEAT_SECONDS):
            return
        seen = dataclasses.replace(tally)
        self._beaten_at = now
        try:
            self._writer.count({"heartbeat": 1, **{name: count for name, count in counts.items() if count}})
        except WriteError:
            return  # the calls are in; the counts come with the next beat
        self._beaten = seen

    def _deliver_own(self, generation: Generation, reading: SpoolReading) -> None:
        batch: list[CallRecord] = []
        for entry in reading.entries(generation.read()):
            if entry.record is None:
                reading.aside.append(entry.line)
            elif not entry.started:
                batch.append(entry.record)
                if len(batch) >= BATCH:
                    reading.aside += self._deliver(batch, tell=True)
                    batch = []
        reading.aside += self._deliver(batch, tell=True)
        self.tally.torn += reading.torn

    def _deliver(self, batch: Sequence[CallRecord], *, tell: bool) -> list[bytes]:
        """Write a batch. Returns the lines of what the database refuses."""
        if not batch:
            return []
        priced = [self._price(record) for record in batch]
        written = self._writer.write(priced)
        refused = self._counted(written)
        if tell and written.fresh:
            try:
                self._committed(written.fresh)
            except Exception as error:
                log.warning("llm_cost: telling of recorded calls failed (%s)", type(error).__name__)
        return refused

    def note(self, written: Written) -> None:
        """Count what became of a batch, and set aside what the database refuses."""
        for line in self._counted(written):
            self._quarantine(line)

    def _counted(self, written: Written) -> list[bytes]:
        """Count what became of a batch. Returns the lines of what the database refuses."""
        self.tally.wrote(written.fresh, written.duplicates)
        for _record, name in written.poison:
            self._say("poison", "llm_cost: the database refuses a record (%s); it is set aside", name)
        return [encode(record) for record, _name in written.poison]

    def _quarantine(self, line: bytes) -> None:
        whole = line if line.endswith(b"\n") else b"\n" + line + b"\n"
        try:
            set_aside(self._spool.folders, self._spool.identity, whole)
        except OSError:
            self.tally.lost += 1
            self._say("lost", "llm_cost: a refused record could not be set aside and is lost")
        else:
            self.tally.quarantined += 1

    # Trouble.

    def _fail(self, fault: Fault, name: str) -> None:
        tally = self.tally
        tally.last_error, tally.last_error_at = name, time.time()
        if fault is Fault.SCHEMA:
            if not tally.schema_missing:
                log.error("llm_cost: %s; recorded calls wait until then", SchemaMissingError())
            tally.schema_missing = True
        elif not self._quiet and (fault is not Fault.RETRY or self._failures):
            self._say("failed", "llm_cost: the ledger could not be written (%s); recorded calls wait", name)
        self._failures += 1
        tally.busy += fault is Fault.RETRY
        try:
            self._write_failed(name, self._spool.waiting())
        except Exception as error:
            self._say("told", "llm_cost: telling of a failed write failed (%s)", type(error).__name__)

    def _make_room(self) -> None:
        before = self.tally.lost
        make_room(self._spool, self.tally, self._max_bytes, adopt=self._adopt)
        if self.tally.lost > before:
            self._say("lost", "llm_cost: the spool is full and the ledger away; %d calls are lost so far", self.tally.lost)

    def _tell_troubles(self) -> None:
        while self._spool.troubles:
            _place, name = self._spool.troubles.popleft()
            folder = self._spool.folder
            if folder is None:
                self._say("memory", "llm_cost: no spool folder can be written (%s); records wait in memory", name)
            else:
                self._say("folder", "llm_cost: a spool folder cannot be written (%s); records wait in %s", name, folder)

    def _say(self, topic: str, message: str, *arguments: object) -> None:
        """Log at most once a minute a topic."""
        now = time.monotonic()
        if now - self._told.get(topic, float("-inf")) >= _MINUTE:
            self._told[topic] = now
            log.warning(message, *arguments)


_Thread: TypeAlias = tuple["weakref.ref[Drain]", list[Drain], threading.Event, Spool, list[None]]


def _start(*thread: *_Thread) -> None:
    try:
        # Without threading.Thread, whose locks a finaliser could already be holding.
        _thread.start_new_thread(_run, thread)
    except RuntimeError:  # too many threads, or the interpreter's end: then the next process adopts the file
        thread[-1].append(None)


def _run(*thread: *_Thread) -> None:
    """The thread, and the next one should somebody end it."""
    threading.current_thread().name = "llm-cost-drain"
    try:
        _serve(*thread[:-1])
    except BaseException as error:
        log.warning("llm_cost: the thread that writes the ledger was ended (%s), another one goes on", type(error).__name__)
        _start(*thread)


def _serve(drain_of: weakref.ref[Drain], held: list[Drain], awake: threading.Event, spool: Spool) -> None:
    """Between passes this keeps alive what is in *held* only: an app that is gone takes all of it along."""
    pause = 0.0
    engine: sa.Engine | None = None
    while True:
        # The event is only for people who wait; a record never touches it, and is found by looking.
        awake.wait(pause)
        awake.clear()
        drain = drain_of()
        if drain is None:
            break
        pause, stopped, engine = drain._turn(pause), drain._stopped, drain._writer.engine
        del drain
        if stopped:
            return
    spool.forsake()
    if engine is not None:
        engine.dispose()
