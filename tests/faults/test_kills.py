"""Processes end in every way in which processes end."""

from __future__ import annotations

import ctypes
import multiprocessing
import os
import random
import signal
import threading
import time

import desk
import pytest
from desks import Desk

from flask_llm_cost.ledger.lines import unpack


def kill_at_random_moments(desk: Desk, runs: int, processes: int, threads: int) -> None:
    rng = random.Random(11)
    returned: list[str] = []
    for run in range(runs):
        outputs = [desk.folder / f"output{number}" for number in range(processes)]
        started = []
        for number, output in enumerate(outputs):
            with output.open("wb") as file:
                first = (run * processes + number) * 100_000
                started.append(desk.asking(threads, 100_000, first=first, output=file))
        deadline = time.monotonic() + 120
        while not all(output.stat().st_size for output in outputs):
            assert time.monotonic() < deadline, "a process that asks nothing shows nothing"
            time.sleep(0.01)
        for process in rng.sample(started, len(started)):
            time.sleep(rng.uniform(0.0, 0.5))
            process.kill()
            process.wait(30)
        for output in outputs:
            returned += [line.decode() for line in output.read_bytes().split(b"\n")[:-1]]
    figures = desk.figures(returned)
    print(f"{runs * processes} killed:")
    figures.check()
    # What was under way is there as a call without an end, or as the call itself.
    assert figures.stored >= figures.returned


@pytest.mark.parametrize(
    ("runs", "processes", "threads"),
    [pytest.param(1, 2, 4, marks=pytest.mark.slow), pytest.param(50, 4, 8, marks=pytest.mark.soak)],
)
def test_sigkill_at_random_moments(any_desk: Desk, runs: int, processes: int, threads: int) -> None:
    """Killed in the middle of asking, streaming, writing or adopting: what had returned is in the ledger, once."""
    kill_at_random_moments(any_desk, runs, processes, threads)


@pytest.mark.slow
@pytest.mark.parametrize("then", ["exit", "_exit", "SIGTERM"])
def test_the_ends_of_a_process(any_desk: Desk, then: str) -> None:
    """The normal end, ``os._exit`` and a default SIGTERM: none lost, none twice, whoever brings them in."""
    process = any_desk.asking(4, 10, then="wait" if then == "SIGTERM" else then)
    assert process.stdout is not None
    returned = []
    while (line := process.stdout.readline().decode().strip()) != "done":
        returned.append(line)
    if then == "SIGTERM":
        process.send_signal(signal.SIGTERM)
    process.communicate(timeout=60)
    assert len(returned) == 40
    any_desk.figures(returned).check()


def fork_and_ask(provider: str, number: int, app: desk.Flask) -> int:
    pid = os.fork()
    if pid == 0:
        status = 1
        try:
            with app.app_context():
                desk.ask(provider, number)
                desk.ask(provider, number + 1)
            status = 0
        finally:
            os._exit(status)
    return pid


# Forking with threads is what is tested here; Python 3.12 and later warn about it.
@pytest.mark.filterwarnings("ignore:This process:DeprecationWarning")
@pytest.mark.parametrize("forks", [10, pytest.param(50, marks=pytest.mark.slow), pytest.param(200, marks=pytest.mark.soak)])
def test_forks_while_the_ledger_is_written(any_desk: Desk, forks: int) -> None:
    """Children forked while the parent's threads ask and talk to the database: none hangs, none lost, none twice."""
    app = any_desk.app()
    any_desk.ask(app, range(2))
    gate = any_desk.ledger(app)._engine.gate
    over = threading.Event()

    def hold() -> None:
        while not over.is_set():
            with gate:
                time.sleep(0.002)

    def keep_asking() -> None:
        number = 1_000_000
        while not over.is_set():
            any_desk.ask(app, range(number, number + 2))
            number += 2

    threads = [threading.Thread(target=hold), threading.Thread(target=keep_asking)]
    for thread in threads:
        thread.start()
    try:
        children = []
        for number in range(forks):
            children.append(fork_and_ask(any_desk.provider.host, 10 * number, app))
            if len(children) >= 4:
                assert os.waitstatus_to_exitcode(os.waitpid(children.pop(0), 0)[1]) == 0
        for child in children:
            assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
    finally:
        over.set()
        for thread in threads:
            thread.join()
    assert any_desk.ledger(app).flush(60)
    figures = any_desk.figures()
    figures.check()
    assert figures.stored > 2 * forks


def ask_in_a_child(settings: dict[str, str], first: int) -> None:
    app = desk.make_app(settings)
    with app.app_context():
        for number in range(first, first + 5):
            desk.ask(settings["DESK_PROVIDER"], number)


@pytest.mark.filterwarnings("ignore:This process:DeprecationWarning")
@pytest.mark.parametrize("method", ["fork", pytest.param("spawn", marks=pytest.mark.slow)])
def test_multiprocessing(sqlite_desk: Desk, method: str) -> None:
    """Children of ``multiprocessing``, which run no exit handlers, made either way: none lost, none twice."""
    any_desk = sqlite_desk
    any_desk.ask(any_desk.app(), range(2))
    context = multiprocessing.get_context(method)
    children = [context.Process(target=ask_in_a_child, args=(any_desk.settings, 100 * number)) for number in range(1, 4)]
    for child in children:
        child.start()
    for child in children:
        child.join(120)
        assert child.exitcode == 0
    figures = any_desk.figures()
    figures.check()
    assert figures.stored == 2 + 3 * 5


# What ends a thread may land in a finaliser that runs there, which passes it over with a warning: it is sent again.
@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
@pytest.mark.parametrize("ends", [3, pytest.param(100, marks=pytest.mark.soak)])
def test_the_writing_thread_is_ended_again_and_again(any_desk: Desk, ends: int, caplog: pytest.LogCaptureFixture) -> None:
    """After every hundred records somebody ends the thread that writes: the next one goes on, none lost, none twice."""
    app = any_desk.app()
    for part in range(ends):
        any_desk.ask(app, range(part * 100, part * 100 + 100))
        threads = {thread.ident for thread in threading.enumerate() if thread.name == "llm-cost-drain"}
        for turn in range(12_000):
            if turn % 400 == 0:
                for thread in threads:
                    ctypes.pythonapi.PyThreadState_SetAsyncExc(ctypes.c_ulong(thread or 0), ctypes.py_object(SystemExit))
            if caplog.text.count("was ended (SystemExit)") > part:
                break
            time.sleep(0.005)
        assert caplog.text.count("was ended (SystemExit)") > part
    figures = any_desk.figures()
    figures.check()
    assert figures.stored == 100 * ends


def test_what_is_left_of_a_spool_is_read_whatever_happened_to_it(sqlite_desk: Desk) -> None:
    """Dead processes' files with bytes changed, cut and put in: each whole line is a call, the damaged files are kept."""
    rng = random.Random(3)
    with sqlite_desk.locked():
        output, _ = sqlite_desk.asking(1, 30, then="_exit").communicate(timeout=120)
        paths = sorted((sqlite_desk.folder / "llm_cost_spool").glob("*.spool"))
        lines: list[bytes] = []
        damaged = []
        for path in paths:
            own = [line for line in path.read_bytes().split(b"\n") if line]
            if len(own) > 10:
                for index in rng.sample(range(1, len(own) - 1), 4):
                    line = bytearray(own[index])
                    line[rng.randrange(len(line))] ^= 0x15
                    own[index] = bytes(line)
                damaged.append(path)
                path.write_bytes(b"\n".join([*own[:5], b"\0\xff no line of ours", *own[5:], own[-1][:40]]))
            lines += own
    whole = [unpack(line) or {} for line in lines]
    left = {str(fields["provider_response_id"]) for fields in whole if "id" in fields and "kind" not in fields}
    assert damaged
    assert 10 < len(left) < 30
    assert left < set(output.decode().split())
    figures = sqlite_desk.figures(list(left))
    figures.check()
    begun = {fields["id"] for fields in whole if fields.get("kind") == "started"}
    ended = {fields["id"] for fields in whole if "kind" not in fields and "id" in fields}
    assert (figures.stored, figures.open) == (len(left), len(begun - ended))
    assert [path.with_suffix(".corrupt").exists() for path in damaged] == [True] * len(damaged)
    assert not any(path.exists() for path in paths)
