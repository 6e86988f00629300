"""A child is made while nobody talks to the database, and neither the fork nor a call waits for long because of that."""

from __future__ import annotations

import os
import threading
import time

import pytest
import sqlalchemy as sa
from ledger_calls import LedgerMaker, a_call

from flask_llm_cost.ledger import gate, lifecycle
from flask_llm_cost.ledger.gate import Gate


# Forking with threads is what is tested here; Python 3.12 and later warn about it.
@pytest.mark.filterwarnings("ignore:This process:DeprecationWarning")
def test_a_fork_waits_for_an_inline_write(sqlite_ledger: LedgerMaker, monkeypatch: pytest.MonkeyPatch) -> None:
    """A write of another thread's is over before a child is made, which would have SQLite's locks as they are then."""
    monkeypatch.setattr(lifecycle, "FORK_SECONDS", 60.0)
    writing, written = threading.Event(), threading.Event()

    def connected(*_: object) -> None:
        writing.set()
        time.sleep(0.3)

    sa.event.listen(sqlite_ledger.engine.pool, "connect", connected)
    sa.event.listen(sqlite_ledger.engine.pool, "checkin", lambda *_: written.set())
    ledger = sqlite_ledger(write_mode="inline")
    worker = threading.Thread(target=ledger.append, args=(a_call(),))
    worker.start()
    assert writing.wait(60)
    child = os.fork()
    if child == 0:
        os._exit(0 if written.is_set() else 3)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
    worker.join(60)
    ledger.append(a_call())
    assert ledger.flush(60)
    assert sqlite_ledger.stored()[0] == 2


def test_a_shut_gate_lets_those_go_on_who_are_inside(monkeypatch: pytest.MonkeyPatch) -> None:
    """Between the start of a fork and its end nobody begins; one who is inside gets on, or the fork would wait for it."""
    monkeypatch.setattr(gate, "_SHUT_SECONDS", 60.0)
    between = Gate()
    inside, shut, begun, ended = (threading.Event() for _ in range(4))

    def stay() -> None:
        with between:
            inside.set()
            assert shut.wait(60)
            with between:
                pass
        ended.set()

    def begin() -> None:
        with between:
            begun.set()

    threads = [threading.Thread(target=stay), threading.Thread(target=begin)]
    threads[0].start()
    assert inside.wait(60)
    between.shut(0.0)
    threads[1].start()
    shut.set()
    between.shut(60.0)
    assert ended.wait(60)
    assert not begun.is_set()
    with between:  # the fork's own thread
        pass
    between.open()
    for thread in threads:
        thread.join(60)
    assert begun.is_set()


def test_nobody_waits_at_a_gate_for_ever(monkeypatch: pytest.MonkeyPatch) -> None:
    """Where a fork does not say that it is over, others go on all the same."""
    monkeypatch.setattr(gate, "_SHUT_SECONDS", 0.1)
    between, begun = Gate(), threading.Event()

    def begin() -> None:
        with between:
            begun.set()

    between.shut(0.0)
    threading.Thread(target=begin, daemon=True).start()
    assert begun.wait(60)
