"""The ledger of one app: takes records, knows where they are, and opens it for reading."""

from __future__ import annotations

import contextlib
import os
import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Final

import sqlalchemy as sa
from sqlalchemy.orm import Session

from flask_llm_cost.errors import LedgerError, SchemaMissingError
from flask_llm_cost.ledger import lifecycle
from flask_llm_cost.ledger.adoption import ledger_of, spool_files
from flask_llm_cost.ledger.change import Within
from flask_llm_cost.ledger.drain import Drain
from flask_llm_cost.ledger.engine import OwnEngine, identity_of
from flask_llm_cost.ledger.faults import Fault
from flask_llm_cost.ledger.folders import probe, temporary_folder
from flask_llm_cost.ledger.health import Health, damaged, survey
from flask_llm_cost.ledger.lines import encode
from flask_llm_cost.ledger.models import Counter
from flask_llm_cost.ledger.quarantine import put_back
from flask_llm_cost.ledger.read_session import reading
from flask_llm_cost.ledger.rollups import Rollups
from flask_llm_cost.ledger.settings import LedgerConfig
from flask_llm_cost.ledger.spool import Spool
from flask_llm_cost.ledger.tally import COUNTERS, Tally, log_call
from flask_llm_cost.ledger.transaction import WriteError
from flask_llm_cost.ledger.writer import Writer
from flask_llm_cost.log import log
from flask_llm_cost.records import CallRecord

INLINE_SECONDS: Final = 0.2
#: After a failed inline write, calls go to the spool at once for so long.
AWAY_SECONDS: Final = 5.0
IDLE_CONNECTION_SECONDS: Final = 30.0

_MEGABYTE: Final = 1_000_000


@dataclass(frozen=True, slots=True)
class _Process:
    """What one process has of a ledger, from its first record on."""

    spool: Spool
    drain: Drain


class Ledger:
    """The ledger of one app. Costs nothing before the first record: no thread, no file, no connection.

    :param testing: a spool of its own in a temporary folder, no adoption, no wait at exit
    :param engine: gives the host's engine of the ledger's bind
    :param read_engine: the same for reading, perhaps a replica
    :param price: puts the cost into a record, or says that there is none; never raises; called by whoever writes
    :param committed: told of records that are in the database now, once each
    :param write_failed: told the kind of error and how many calls wait
    :param within: what else moves in the transaction of the rows, in order
    """

    def __init__(
        self,
        config: LedgerConfig,
        *,
        app_name: str,
        testing: bool,
        instance_path: str,
        engine: Callable[[], sa.Engine],
        read_engine: Callable[[], sa.Engine],
        price: Callable[[CallRecord], CallRecord],
        committed: Callable[[Sequence[CallRecord]], None],
        write_failed: Callable[[str, int], None],
        within: Sequence[Within] = (),
    ) -> None:
        self._config = config
        self._app_name = app_name
        self._testing = testing
        self._instance_path = Path(instance_path)
        self._price = price
        self._committed = committed
        self._write_failed = write_failed
        self._engine = OwnEngine(engine)
        self._read_engine = OwnEngine(read_engine)
        self.rollups = Rollups(config.timezone, config.rollup_tags, config.report_tags)
        self._writer = Writer(self._engine, (self.rollups, *within))
        self._tally = Tally()
        self._processes: dict[int, _Process] = {}
        self._memory: deque[CallRecord] = deque()
        self._failed_at = float("-inf")
        self._away: WriteError | None = None
        self._away_until = float("-inf")
        self._mode: str | None = None
        lifecycle.ledgers.add(self)

    # Recording.

    @property
    def mode(self) -> str:
        """``background``, ``inline``, also where no thread can write, ``log``, or ``memory`` for an in-memory database."""
        if self._mode is None:
            mode = self._config.write_mode
            try:
                if mode != "log" and self._engine.in_memory:
                    mode = "memory"
            except Exception as error:
                log.warning("llm_cost: the ledger's engine cannot be had (%s)", type(error).__name__)
                return mode
            if mode == "background" and lifecycle.threads_are_off():
                mode = "inline"
                log.warning("llm_cost: %s", lifecycle.NO_THREADS)
            self._mode = mode
        return self._mode

    def started(self, record: CallRecord) -> None:
        """A call has got an answer that is still coming. Should the process die, it shows as ``interrupted``."""
        if self.mode in ("background", "inline"):
            self._process().spool.started(record)

    def append(self, record: CallRecord, *, quick: bool = False) -> None:
        """Keep *record*. When this returns, it survives a killed process (see :attr:`Health.durable`).

        :param quick: called by a finaliser, which may run in the middle of anything: take no lock and log nothing
        :raises LedgerError: writes are inline, set to raise, and failed; the record is in the spool all the same
        """
        mode = self.mode
        if mode == "background" or (quick and mode == "inline"):
            process = self._process()
            process.spool.append(encode(record))
            process.spool.ended(record.id)
            process.drain.hold()
        elif quick:
            self._memory.append(record)  # until somebody comes who may take a lock
        elif mode == "inline":
            self._append_inline(record)
        elif mode == "memory":
            self._memory.append(record)
            if self._config.write_mode == "inline":
                self._write_memory()
        else:
            self._memory.append(record)
            self._log_memory()

    def _append_inline(self, record: CallRecord) -> None:
        priced = self._price(record)
        try:
            if self._away is not None and time.monotonic() < self._away_until:
                raise self._away
            written = self._writer.write([priced], patience=INLINE_SECONDS)
        except WriteError as error:
            if error.fault is Fault.AWAY and error is not self._away:
                # Each try may cost the app a connect timeout: not at every call.
                self._away, self._away_until = WriteError(error.fault, error.name), time.monotonic() + AWAY_SECONDS
            process = self._process()
            spool = process.spool
            spool.append(encode(priced))
            spool.ended(record.id)
            process.drain.hold()
            self._tally.spooled += 1
            self._report_failure(error, spool.waiting())
            if self._config.write_errors == "raise":
                raise (SchemaMissingError() if error.fault is Fault.SCHEMA else LedgerError(_failed(error))) from None
            return
        if written.poison:
            self._process().drain.note(written)
            if self._config.write_errors == "raise":
                raise LedgerError(f"the database refuses a record ({written.poison[0][1]}); it is set aside")
            return
        self._tally.wrote(written.fresh, written.duplicates)
        if there := self._processes.get(os.getpid()):
            there.spool.ended(record.id)
            there.drain.catch_up()
        self._tell(written.fresh)

    def _report_failure(self, error: WriteError, waiting: int) -> None:
        self._tally.last_error, self._tally.last_error_at = error.name, time.time()
        self._tally.schema_missing = error.fault is Fault.SCHEMA
        now = time.monotonic()
        if self._config.write_errors == "warn" and now - self._failed_at > 60:
            self._failed_at = now
            log.warning("llm_cost: %s", SchemaMissingError() if error.fault is Fault.SCHEMA else _failed(error))
        try:
            self._write_failed(error.name, waiting)
        except Exception as failure:
            log.warning("llm_cost: telling of a failed write failed (%s)", type(failure).__name__)

    def _tell(self, fresh: Sequence[CallRecord]) -> None:
        if fresh:
            try:
                self._committed(fresh)
            except Exception as error:
                log.warning("llm_cost: telling of recorded calls failed (%s)", type(error).__name__)

    def _log_memory(self) -> None:
        for record in filter(lambda record: record.is_call, _taken(self._memory)):
            log_call(self._price(record))

    def _write_memory(self) -> bool:
        """Write what waits for an in-memory database, unless the app has a transaction open on its one connection."""
        batch = _taken(self._memory)
        if not batch:
            return True
        priced = [self._price(record) for record in batch]
        try:
            written = self._writer.write(priced, patience=0.0)
        except WriteError as error:
            self._memory.extendleft(reversed(priced))
            if error.fault is not Fault.RETRY:
                self._report_failure(error, len(self._memory))
            return False
        self._tally.wrote(written.fresh, written.duplicates)
        for _record, name in written.poison:
            self._tally.lost += 1
            log.warning("llm_cost: the database refuses a record (%s); it is lost with the in-memory database", name)
        self._tell(written.fresh)
        return True

    @property
    def writer(self) -> Writer:
        """Writes to the ledger, and runs transactions of any kind on its own connections."""
        return self._writer

    # One process.

    def _process(self) -> _Process:
        pid = os.getpid()
        process = self._processes.get(pid)
        if process is None:
            lifecycle.notice_fork()
            mine = self._make_process()
            process = self._processes.setdefault(pid, mine)
            if process is mine:
                process.drain.start()
            else:
                mine.spool.close()
        return process

    def _make_process(self) -> _Process:
        spool = Spool(self._folders(), self._identity())
        drain = Drain(
            spool,
            self._writer,
            tally=self._tally,
            price=self._price,
            committed=self._committed,
            write_failed=self._write_failed,
            max_bytes=self._config.spool_max_mb * _MEGABYTE,
            adopt=not self._testing,
            quiet=self._config.write_errors == "ignore",
            idle=self._close_idle,
        )
        return _Process(spool, drain)

    def _identity(self) -> str:
        try:
            url = self._engine.url
        except Exception:
            url = sa.URL.create("unknown")
        return identity_of(url, self._config.bind_key, self._app_name)

    def _folders(self) -> tuple[Path, ...]:
        if self._testing:
            return (lifecycle.testing_folder(),)
        return (self._config.spool_dir or self._instance_path / "llm_cost_spool", temporary_folder())

    def _close_idle(self) -> None:
        self._engine.close_idle(IDLE_CONNECTION_SECONDS)

    def flush(self, timeout: float = 10.0) -> bool:
        """Whether every call so far is in the database, waiting at most *timeout* seconds.

        That is what this process recorded, and what dead processes left in the same spool.
        """
        mode = self.mode
        if mode == "memory":
            return self._write_memory()
        if mode == "log":
            self._log_memory()
            return True
        if os.getpid() not in self._processes and not self._left_behind():
            return True
        return self._process().drain.flush(timeout)

    def _left_behind(self) -> bool:
        """Whether there are spool files of this ledger, of a process that is gone or of one that is at work."""
        identity = self._identity()
        return not self._testing and any(ledger_of(path) == identity for path in spool_files(self._folders()))

    def close_at_exit(self, patience: float) -> None:
        """:meth:`close`; what a test leaves is not waited for."""
        self.close(0.0 if self._testing else patience)

    def close(self, patience: float = lifecycle.EXIT_SECONDS) -> None:
        """Drain for at most *patience* seconds, stop the thread and close connections. What is left stays in its file."""
        process = self._processes.get(os.getpid())
        if process is not None:
            process.drain.stop(patience)
            process.spool.close()
            self._processes.pop(os.getpid(), None)
        self._engine.dispose()
        self._read_engine.dispose()

    def before_fork(self, patience: float) -> None:
        self._engine.before_fork(patience)

    def after_fork_in_parent(self) -> None:
        self._engine.after_fork_in_parent()

    def after_fork_in_child(self) -> None:
        processes, self._processes = self._processes, {}
        for process in processes.values():
            process.spool.abandon()
        self._memory.clear()
        self._tally = Tally()
        self._engine.abandon()
        self._read_engine.abandon()

    # Reading.

    @contextlib.contextmanager
    def session(self, *, replica: bool = True, longest: float | None = None, snapshot: bool = True) -> Iterator[Session]:
        """A read-only session on the ledger's read bind, or with *replica* false on its own, on a connection of its own.

        :param snapshot: whether what is written meanwhile changes no answer, so that all of them agree with one another
        :param longest: seconds after which a server gives a query up
        :raises SchemaMissingError: the tables are not there yet
        :raises LedgerError: something was written with it
        """
        if self.mode == "memory":
            self._write_memory()
        engine = (self._read_engine if replica else self._engine).get()
        with reading(engine, longest=longest, replica=replica, snapshot=snapshot) as session:
            yield session

    def note_unattributed(self) -> None:
        """A call passed unrecorded that may have been this app's: it goes into the counters with the next write."""
        self._tally.unattributed += 1

    def counters(self) -> dict[str, tuple[int, datetime]]:
        """What all processes have counted, and when last: :data:`~flask_llm_cost.ledger.tally.COUNTERS`, ``heartbeat``.

        :raises SchemaMissingError: the tables are not there yet
        """
        with self.session() as session:
            found = session.scalars(sa.select(Counter).where(Counter.name.in_((*COUNTERS, "heartbeat"))))
            return {counter.name: (counter.value, counter.updated_at) for counter in found}

    def damaged(self) -> list[Path]:
        """The spool files that were damaged and are kept, of those that say that they are this ledger's."""
        return [path for path, ledger in damaged(self._folders()) if ledger == self._identity()]

    def probe(self) -> tuple[Path | None, str | None]:
        """The spool folder that can be written, tried by making a file, and what is wrong with the one before it."""
        return probe(self._folders())

    def put_back(self) -> int:
        """Put what the database refused back into the spool; :meth:`flush` tries it again. How many calls that are."""
        return put_back(self._folders(), self._identity())

    def health(self) -> Health:
        """How it is. Reads the spool folder, not the database."""
        process = self._processes.get(os.getpid())
        return survey(
            self.mode,
            self._tally,
            identity=self._identity(),
            folders=self._folders(),
            spool=process.spool if process is not None else None,
            in_memory=len(self._memory),
        )


def _failed(error: WriteError) -> str:
    return f"the ledger could not be written ({error.name}); recorded calls wait in the spool"


def _taken(records: deque[CallRecord]) -> list[CallRecord]:
    taken = []
    with contextlib.suppress(IndexError):
        while True:
            taken.append(records.popleft())
    return taken
