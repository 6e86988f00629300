"""Where records wait."""

from __future__ import annotations

import fcntl
import gc
import os
import queue
import stat
import subprocess
import sys
import tempfile
import threading
import time
from decimal import Decimal
from pathlib import Path

import pytest
import sqlalchemy as sa
from ledger_calls import NOON, LedgerMaker, a_call, calls, price, total_of

from flask_llm_cost.ledger.lines import STARTED, decode, encode, pack
from flask_llm_cost.ledger.models import Base, Call, Counter
from flask_llm_cost.ledger.spool import Spool
from flask_llm_cost.ledger.store import Ledger
from flask_llm_cost.records import CallRecord, Usage


def test_a_line_says_all_that_a_record_says() -> None:
    """Encoded and decoded, a record is what it was: fractions, prices and odd strings included."""
    odd = a_call(
        usage=Usage(
            {"audio_seconds": Decimal("1.25")}, "manual", billed=Decimal("0.1"), flags=("x",), raw={"a": [1.5, None]}
        ),
        tags={"who": "é\ud800\n"},
        stream=True,
        outcome="error",
        error_class="ReadTimeout",
        attempt=3,
        first_token_ms=4,
        pricing_mode="batch",
    )
    for record in (odd, a_call(), price(a_call())):
        line = encode(record)
        assert line.count(b"\n") == 2
        assert decode(line.strip(b"\n")) == record


def dead_file(maker: LedgerMaker, *lines: bytes, identity: str | None = None, folder: Path | None = None) -> Path:
    """A spool file whose process is gone."""
    spool = Spool([folder or maker.folder / "llm_cost_spool"], identity or maker()._identity())
    for line in lines:
        spool.append(line)
    path = spool.tail.path
    assert path is not None
    spool.abandon()
    return path


def adopt(maker: LedgerMaker) -> Ledger:
    ledger = maker()
    ledger.append(a_call())
    assert ledger.flush(20)
    return ledger


def test_a_torn_line_costs_only_itself(sqlite_ledger: LedgerMaker) -> None:
    """A line cut short by the end of its process is skipped, and the lines around it are read."""
    records = calls(3)
    first, second, third = map(encode, records)
    path = dead_file(sqlite_ledger, first, second[: len(second) // 2])
    with path.open("ab") as file:
        file.write(third + encode(a_call())[:40])
    ledger = adopt(sqlite_ledger)
    assert sqlite_ledger.stored()[0] == 2 + 1
    assert ledger.health().torn == 2


def test_a_damaged_file_is_read_and_kept(sqlite_ledger: LedgerMaker, caplog: pytest.LogCaptureFixture) -> None:
    """A file with a changed byte in the middle gives its whole lines, and is set aside for somebody to look at."""
    path = dead_file(sqlite_ledger, *map(encode, calls(3)))
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 0xFF
    path.write_bytes(content)
    ledger = adopt(sqlite_ledger)
    assert sqlite_ledger.stored()[0] == 2 + 1
    assert ledger.health().corrupt == 1
    assert path.with_suffix(".corrupt").exists()
    assert not path.exists()
    assert "corrupt" in caplog.text


def test_a_line_of_another_version_is_kept_aside(sqlite_ledger: LedgerMaker) -> None:
    """A whole line that this version cannot understand is never thrown away."""
    dead_file(sqlite_ledger, encode(a_call()), pack({"kind": "from the future", "x": 1}))
    ledger = adopt(sqlite_ledger)
    assert sqlite_ledger.stored()[0] == 2
    assert ledger.health().quarantined == 1


def test_the_spool_of_another_ledger_is_left_alone(sqlite_ledger: LedgerMaker) -> None:
    """A test run never drains the development spool: files of another database stay, and are counted."""
    path = dead_file(sqlite_ledger, encode(a_call()), identity="another")
    before = path.read_bytes()
    ledger = adopt(sqlite_ledger)
    assert path.read_bytes() == before
    assert ledger.health().foreign == 1
    assert sqlite_ledger.stored()[0] == 1


def test_a_file_that_somebody_holds_is_left_alone(sqlite_ledger: LedgerMaker) -> None:
    """A living process's file is not adopted: the lock is on the file, not in a process id."""
    path = dead_file(sqlite_ledger, encode(a_call()))
    with path.open("rb") as holder:
        fcntl.flock(holder, fcntl.LOCK_EX)
        adopt(sqlite_ledger)
        assert path.exists()
    assert sqlite_ledger.stored()[0] == 1


def test_a_call_that_never_ended_shows_as_interrupted(sqlite_ledger: LedgerMaker) -> None:
    """A stream under way when its process died is one row: interrupted, usage unknown, tags kept, never told as recorded."""
    ended, open_call = calls(2)
    dead_file(sqlite_ledger, encode(ended, STARTED), encode(open_call, STARTED), encode(ended))
    adopt(sqlite_ledger)
    with sqlite_ledger.ledgers[-1].session() as session:
        found = session.scalars(sa.select(Call).where(Call.outcome == "interrupted")).one()
        assert (found.id, found.usage_source, found.total_cost) == (open_call.id, "unknown", None)
        assert len(found.tags) == 3
    assert sqlite_ledger.stored()[0] == 3
    assert len(sqlite_ledger.committed) == 1


def test_a_long_stream_outlives_the_file_that_it_began_in(sqlite_ledger: LedgerMaker) -> None:
    """The drain removes files, but a stream that is still open shows as interrupted should the process die."""
    ledger = sqlite_ledger()
    stream = a_call(stream=True)
    ledger.started(stream)
    for record in calls(5):
        ledger.append(record)
        assert ledger.flush(10)
    process = ledger._process()
    process.drain.stop(5)
    files = sqlite_ledger.spool_files
    process.spool.abandon()
    assert len(files) == 1
    adopt(sqlite_ledger)
    assert stream.id in _interrupted(sqlite_ledger)


def test_a_stream_that_ends_is_no_interruption(sqlite_ledger: LedgerMaker) -> None:
    """Started and ended is one row, and leaves no file behind."""
    ledger = sqlite_ledger()
    for record in calls(5):
        ledger.started(record)
        ledger.append(record)
    ledger.close()
    assert sqlite_ledger.spool_files == []
    assert sqlite_ledger.stored()[0] == 5
    assert not _interrupted(sqlite_ledger)


def _interrupted(maker: LedgerMaker) -> set[object]:
    with maker.engine.connect() as connection:
        return set(connection.scalars(sa.select(Call.id).where(Call.outcome == "interrupted")))


def test_files_are_private(sqlite_ledger: LedgerMaker) -> None:
    """The folder is 0700 and its files 0600, whatever the umask."""
    before = os.umask(0)
    try:
        ledger = sqlite_ledger()
        ledger.append(a_call())
    finally:
        os.umask(before)
    assert stat.S_IMODE((sqlite_ledger.folder / "llm_cost_spool").stat().st_mode) == 0o700
    assert {stat.S_IMODE(path.stat().st_mode) for path in sqlite_ledger.spool_files} == {0o600}


def test_an_idle_app_costs_nothing(sqlite_url: sa.URL, tmp_path: Path) -> None:
    """Five hundred ledgers without a record: no thread, no file, no connection."""
    maker = LedgerMaker(sqlite_url, tmp_path)
    threads, files = set(threading.enumerate()), len(os.listdir("/proc/self/fd")) if Path("/proc").exists() else 0
    ledgers = [maker() for _ in range(500)]
    assert all(ledger.flush(0.0) for ledger in ledgers)
    assert set(threading.enumerate()) <= threads
    assert not Path(str(sqlite_url.database)).exists()
    assert list(tmp_path.iterdir()) == []
    if files:
        assert len(os.listdir("/proc/self/fd")) == files
    maker.close()


def test_nothing_is_left_when_nothing_waits(sqlite_ledger: LedgerMaker) -> None:
    """After a clean end there is no spool file."""
    ledger = sqlite_ledger()
    for record in calls(10):
        ledger.append(record)
    ledger.close()
    assert sqlite_ledger.stored()[0] == 10
    assert sqlite_ledger.spool_files == []


def test_an_unwritable_folder_falls_back_to_a_temporary_one(
    sqlite_ledger: LedgerMaker, tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where the instance folder cannot be written, records wait in a private temporary folder, said aloud once."""
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path_factory.mktemp("temporary")))
    (sqlite_ledger.folder / "llm_cost_spool").write_text("a file where the folder should be")
    ledger = sqlite_ledger()
    ledger.append(a_call())
    health = ledger.health()
    assert health.durable
    assert health.spool_dir is not None
    assert health.spool_dir.parent == Path(tempfile.gettempdir())
    assert ledger.flush(10)
    assert sqlite_ledger.stored()[0] == 1


def test_no_writable_folder_at_all_leaves_memory(
    sqlite_ledger: LedgerMaker, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """Where nothing can be written records wait in memory: said once in the log, seen in health, and still delivered."""
    nowhere = sqlite_ledger.folder / "file"
    nowhere.write_text("")
    monkeypatch.setattr(tempfile, "tempdir", str(nowhere))
    ledger = sqlite_ledger(spool_dir=str(nowhere / "spool"))
    records = calls(20)
    for record in records:
        ledger.append(record)
    health = ledger.health()
    assert not health.durable
    assert health.spool_dir is None
    assert ledger.flush(10)
    assert sqlite_ledger.stored() == (20, 40, 60, total_of(records))
    assert caplog.text.count("wait in memory") == 1


FULL_DISK = """
import resource, sys
from pathlib import Path
import sqlalchemy as sa
from ledger_calls import LedgerMaker, calls
maker = LedgerMaker(sa.make_url(sys.argv[1]), Path(sys.argv[2]))
ledger = maker()
records = calls(60)
ledger.append(records[0])
# From here on no file may grow beyond a size in the middle of a line, as on a full disk.
resource.setrlimit(resource.RLIMIT_FSIZE, (5_000, resource.RLIM_INFINITY))
for record in records[1:]:
    ledger.append(record)
assert ledger.health().waiting == 60, ledger.health()
resource.setrlimit(resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
maker.create_tables()
assert ledger.flush(20)
assert len(maker.committed) == 60
ledger.close()
print(maker.stored()[0])
"""


def test_a_full_disk_costs_no_record(sqlite_url: sa.URL, tmp_path: Path) -> None:
    """When a line does not fit any more, it and those after it go elsewhere, at last to memory; none is lost or doubled."""
    done = subprocess.run(
        [sys.executable, "-c", FULL_DISK, sqlite_url.render_as_string(), tmp_path],
        capture_output=True,
        text=True,
        check=False,
        env={**os.environ, "PYTHONPATH": str(Path(__file__).parent), "TMPDIR": str(tmp_path)},
    )
    assert done.stdout.split() == ["60"], done.stderr


def test_a_full_spool_gives_up_the_oldest_and_says_so(sqlite_url: sa.URL, tmp_path: Path) -> None:
    """Beyond LLM_COST_SPOOL_MAX_MB the oldest calls go, counted; everything else is written when there are tables."""
    maker = LedgerMaker(sqlite_url, tmp_path)
    ledger = maker(spool_max_mb=1)
    records = calls(4000)
    for number, record in enumerate(records):
        ledger.append(record)
        if number % 1000 == 999:
            ledger.flush(0.5)
    deadline = time.monotonic() + 20
    while ledger.health().lost == 0 and time.monotonic() < deadline:
        ledger.flush(0.2)
    maker.create_tables()
    assert ledger.flush(20)
    lost = ledger.health().lost
    assert 0 < lost < 4000
    with maker.engine.connect() as connection:
        stored = set(connection.scalars(sa.select(Call.id)))
    assert len(stored) == 4000 - lost
    assert {record.id for record in records[lost:]} == stored
    maker.close()


class Finalised:
    """Records a call when the garbage collector takes it, from the middle of anything."""

    def __init__(self, ledger: Ledger, record: CallRecord) -> None:
        self.ledger, self.record, self.cycle = ledger, record, self

    def __del__(self) -> None:
        self.ledger.append(self.record)


@pytest.mark.parametrize("mode", ["background", "inline"])
def test_a_finaliser_can_record(sqlite_ledger: LedgerMaker, mode: str) -> None:
    """Finalisers that run inside locks, queues and our own recording neither deadlock nor lose a call."""
    ledger = sqlite_ledger(write_mode=mode)
    records = calls(300)
    own = calls(100, seed=9)
    lines: queue.SimpleQueue[object] = queue.SimpleQueue()
    threshold = gc.get_threshold()

    def work() -> None:
        for number, record in enumerate(records):
            Finalised(ledger, record)
            with threading.Lock():
                lines.put([object() for _ in range(20)])
            if number % 3 == 0:
                ledger.append(own[number // 3])
        gc.collect()

    gc.set_threshold(7, 2, 2)
    try:
        worker = threading.Thread(target=work, daemon=True)
        worker.start()
        worker.join(60)
        assert not worker.is_alive()
    finally:
        gc.set_threshold(*threshold)
    assert ledger.flush(20)
    assert sqlite_ledger.stored()[0] == 400


def test_the_testing_spool_is_temporary_and_adopts_nothing(sqlite_ledger: LedgerMaker) -> None:
    """With app.testing nothing is written to the instance folder, and no dead process's file is adopted."""
    ledger = sqlite_ledger(testing=True)
    folder = ledger.health().spool_dir
    assert folder is not None
    assert sqlite_ledger.folder not in folder.parents
    paths = [dead_file(sqlite_ledger, encode(a_call())), dead_file(sqlite_ledger, encode(a_call()), folder=folder)]
    ledger.append(a_call())
    assert ledger.flush(10)
    assert sqlite_ledger.stored()[0] == 1
    assert all(path.exists() for path in paths)


def test_a_held_lock_of_the_app_delays_only_the_drain(sqlite_ledger: LedgerMaker) -> None:
    """While the app holds SQLite's write lock on this very thread, recording takes no longer; the rows come afterwards."""
    ledger = sqlite_ledger()
    with sqlite_ledger.engine.begin() as app:
        app.execute(sa.insert(Counter).values(name="mine", value=1, updated_at=NOON))
        began = time.monotonic()
        for record in calls(50):
            ledger.append(record)
        assert time.monotonic() - began < 0.5
        assert not ledger.flush(0.5)
    assert ledger.flush(20)
    assert sqlite_ledger.stored()[0] == 50


def test_inline_on_a_busy_sqlite_file_spools(sqlite_ledger: LedgerMaker) -> None:
    """Inline never waits long for the app's own transaction: the record is spooled, counted, and written later."""
    ledger = sqlite_ledger(write_mode="inline")
    with sqlite_ledger.engine.begin() as app:
        app.execute(sa.insert(Counter).values(name="mine", value=1, updated_at=NOON))
        began = time.monotonic()
        ledger.append(a_call())
        assert time.monotonic() - began < 1.0
    assert ledger.health().spooled == 1
    assert ledger.flush(20)
    assert sqlite_ledger.stored()[0] == 1


def test_log_mode_needs_no_database(sqlite_ledger: LedgerMaker, caplog: pytest.LogCaptureFixture) -> None:
    """``log`` writes one line a call, with tag keys but no tag values, and touches no database."""
    Base.metadata.drop_all(sqlite_ledger.engine)
    caplog.set_level("INFO", "flask_llm_cost")
    ledger = sqlite_ledger(write_mode="log")
    ledger.started(a_call())
    ledger.append(a_call())
    assert ledger.flush(1)
    assert len(caplog.records) == 1
    line = caplog.text
    assert "provider=openai model=gpt-4o-2024-08-06" in line
    assert "cost=0.0027" in line
    assert "tags=feature,tenant_id,user_id" in line
    assert "acme" not in line
    assert not sqlite_ledger.spool_files
