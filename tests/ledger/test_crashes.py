"""A killed process loses nothing that it acknowledged, and nothing is there twice."""

from __future__ import annotations

import multiprocessing
import os
import random
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path
from uuid import UUID

import pytest
import sqlalchemy as sa
from ledger_calls import LedgerMaker, a_call, calls, total_of

from flask_llm_cost.ledger.models import Call, CallTag
from flask_llm_cost.records import CallRecord

SCRIPT = Path(__file__).with_name("recording_process.py")
FORKING = Path(__file__).with_name("forking_process.py")


def start(maker: LedgerMaker, count: int, threads: int = 4, *more: str) -> subprocess.Popen[bytes]:
    url = maker.url.render_as_string(hide_password=False)
    command = [sys.executable, SCRIPT, url, maker.folder, str(count), str(threads), *more]
    return subprocess.Popen(command, stdout=subprocess.PIPE)


def heard(output: bytes) -> tuple[set[UUID], set[UUID]]:
    """What a process said before it was killed: the calls that it had acknowledged, and those that it had seen begin."""
    ended, started = set(), set()
    for line in output.split(b"\n")[:-1]:  # the last one may be torn
        word, _, name = line.decode().partition(" ")
        (ended if word == "ended" else started).add(UUID(name))
    return ended, started


def stored_ids(maker: LedgerMaker, *conditions: sa.ColumnElement[bool]) -> set[UUID]:
    with maker.engine.connect() as connection:
        return set(connection.scalars(sa.select(Call.id).where(*conditions)))


def adopt(maker: LedgerMaker) -> None:
    """What a living process does at its first record."""
    ledger = maker()
    ledger.append(a_call())
    assert ledger.flush(60)
    ledger.close()


def test_sigkill_right_after_the_calls_returned(make_ledger: LedgerMaker) -> None:
    """200 concurrent calls return, the process is killed: the next process brings in exactly those 200."""
    process = start(make_ledger, 50)
    lines = []
    assert process.stdout is not None
    while (line := process.stdout.readline()) != b"done\n":
        lines.append(line)
    process.kill()
    process.communicate()
    adopt(make_ledger)
    assert len(stored_ids(make_ledger)) == 200 + 1
    assert len(stored_ids(make_ledger, Call.outcome == "interrupted")) == 4
    assert make_ledger.spool_files == []


def crash_rounds(maker: LedgerMaker, rounds: int) -> None:
    acknowledged: set[UUID] = set()
    begun: set[UUID] = set()
    rng = random.Random(7)
    url = maker.url.render_as_string(hide_password=False)
    for _ in range(rounds):
        # Into files: a full pipe would hold the writers at one and the same place.
        outputs = [maker.folder / f"output{number}" for number in range(3)]
        processes = []
        for output in outputs:
            with output.open("wb") as file:
                command = [sys.executable, SCRIPT, url, maker.folder, "0", "4"]
                processes.append(subprocess.Popen(command, stdout=file))
        deadline = time.monotonic() + 60
        while not all(output.stat().st_size for output in outputs):
            assert time.monotonic() < deadline, "a process that records nothing shows nothing"
            time.sleep(0.01)
        for process in rng.sample(processes, len(processes)):
            time.sleep(rng.uniform(0.0, 0.7))
            process.kill()
            process.wait(30)
        for output in outputs:
            ended, started = heard(output.read_bytes())
            assert ended
            acknowledged |= ended
            begun |= started
    adopt(maker)
    stored = stored_ids(maker)
    assert acknowledged <= stored
    assert begun <= stored
    # A thread may be killed between its record and its word: one call for each of them, and the one that adopted.
    assert len(stored - acknowledged - begun) <= rounds * 3 * 4 + 1
    assert maker.spool_files == []
    with maker.engine.connect() as connection:
        tags = connection.scalar(sa.select(sa.func.count()).select_from(CallTag))
    assert tags == len(stored) * 3
    print(f"{rounds * 3} killed: {len(acknowledged)} acknowledged, {len(stored)} stored")


@pytest.mark.slow
def test_sigkill_at_random_moments(make_ledger: LedgerMaker) -> None:
    """Writers, who drain and adopt dead ones' files as they go, are killed at any moment: 0 lost, 0 twice."""
    crash_rounds(make_ledger, 2)


@pytest.mark.soak
def test_sigkill_at_random_moments_for_long(make_ledger: LedgerMaker) -> None:
    """The same, a hundred times."""
    crash_rounds(make_ledger, 34)


def _fork_and_record(maker: LedgerMaker, ledger_index: int, count: int) -> int:
    pid = os.fork()
    if pid == 0:
        status = 1
        try:
            ledger = maker.ledgers[ledger_index]
            for record in calls(count, seed=os.getpid()):
                ledger.append(record)
            status = 0 if ledger.flush(120) else 2
        finally:
            os._exit(status)
    return pid


# Forking with threads is what is tested here; Python 3.12 and later warn about it.
@pytest.mark.filterwarnings("ignore:This process:DeprecationWarning")
def test_forked_children_record_for_themselves(make_ledger: LedgerMaker) -> None:
    """A fork with the drain thread at work: no child hangs, loses a record, or delivers one of its parent's."""
    ledger = make_ledger()
    own = calls(300, seed=-1)
    children = []
    for number, record in enumerate(own):
        ledger.append(record)
        if number % 30 == 0:
            children.append(_fork_and_record(make_ledger, 0, 10))
    for child in children:
        assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
    assert ledger.flush(30)
    assert make_ledger.stored()[0] == 300 + 10 * 10
    assert {record.id for record in make_ledger.committed} == {record.id for record in own}
    # The lock on the parent's file outlived the children: nobody could have adopted it.
    assert len(make_ledger.spool_files) >= 1


@pytest.mark.filterwarnings("ignore:This process:DeprecationWarning")
def test_a_child_that_ends_abruptly_loses_nothing(make_ledger: LedgerMaker) -> None:
    """A forked child that leaves by os._exit right after its records: its file is adopted."""
    ledger = make_ledger()
    ledger.append(a_call())
    pid = os.fork()
    if pid == 0:
        for record in calls(40):
            ledger.append(record)
        os._exit(0)
    os.waitpid(pid, 0)
    adopt(make_ledger)
    assert ledger.flush(30)  # it may have been the parent that adopted
    assert make_ledger.stored()[0] == 42


@pytest.mark.parametrize("mode", ["background", "inline"])
def test_children_of_unseen_forks_record_for_themselves(make_ledger: LedgerMaker, mode: str) -> None:
    """A fork that runs no hooks, of a process that has a connection: the children leave it alone, make ids of their own, and
    write their calls.
    """
    url = make_ledger.url.render_as_string(hide_password=False)
    command = [sys.executable, FORKING, url, make_ledger.folder, mode]
    done = subprocess.run(command, stdout=subprocess.PIPE, timeout=300, check=True)
    assert len(set(done.stdout.split())) == 30
    assert make_ledger.stored()[0] == 31


def test_a_living_child_does_not_hold_its_dead_parents_file(sqlite_url: sa.URL, tmp_path: Path) -> None:
    """A forked child inherits no lock: its parent is killed, the child lives on, and the parent's file is adopted."""
    maker = LedgerMaker(sqlite_url, tmp_path)  # no tables yet, so that everything waits
    process = start(maker, 20, 1, "fork")
    assert process.stdout is not None
    child = next(int(line) for line in process.stdout if line.strip().isdigit())
    try:
        process.kill()
        process.wait(30)
        maker.create_tables()
        adopt(maker)
        assert maker.stored()[0] == 21
    finally:
        os.kill(child, signal.SIGKILL)
        process.stdout.close()
        maker.close()


def _deliver(url: str, folder: str, seed: int) -> None:
    maker = LedgerMaker(sa.make_url(url), Path(folder))
    ledger = maker()
    records = _shared_records()
    rng = random.Random(seed)
    for _ in range(2):
        for record in rng.sample(records, 600):
            ledger.append(record)
    assert ledger.flush(60)
    maker.close()


def _shared_records() -> list[CallRecord]:
    return [
        replace(record, id=UUID(int=(0x0190_0000_0000_7000_8000 << 48) + number))
        for number, record in enumerate(calls(1000, seed=5))
    ]


@pytest.mark.slow
def test_processes_that_deliver_overlapping_batches(make_ledger: LedgerMaker) -> None:
    """Eight processes deliver the same thousand calls, 9,600 times in all, shuffled: rows and dollars are exact."""
    context = multiprocessing.get_context("spawn")
    url = make_ledger.url.render_as_string(hide_password=False)
    processes = [
        context.Process(target=_deliver, args=(url, str(make_ledger.folder / str(seed % 2)), seed)) for seed in range(8)
    ]
    for process in processes:
        process.start()
    for process in processes:
        process.join(120)
        assert process.exitcode == 0
    everything = _shared_records()
    count, items, tags, total = make_ledger.stored()
    missing = 1000 - count
    assert missing < 10  # each is left out of all draws with a probability of 0.4 to the 16th
    assert (items, tags) == (count * 2, count * 3)
    if not missing:
        assert total == total_of(everything)


def test_sigterm_leaves_what_it_could_not_write(sqlite_ledger: LedgerMaker) -> None:
    """A process ended by SIGTERM's default never runs an exit handler: its records are adopted all the same."""
    process = start(sqlite_ledger, 50, 1)
    assert process.stdout is not None
    while process.stdout.readline() != b"done\n":
        pass
    process.send_signal(signal.SIGTERM)
    process.communicate(timeout=30)
    adopt(sqlite_ledger)
    assert sqlite_ledger.stored()[0] == 51
