"""The threads in which budgets ask the database."""

from __future__ import annotations

import ctypes
import threading

import pytest

from flask_llm_cost.budgets import desk
from flask_llm_cost.budgets.desk import Desk, LateError


@pytest.mark.filterwarnings("ignore::pytest.PytestUnhandledThreadExceptionWarning")
def test_a_desk_outlives_its_threads(monkeypatch: pytest.MonkeyPatch) -> None:
    """Somebody ends all threads of a desk: others answer what is asked next."""
    monkeypatch.setattr(desk, "_IDLE_SECONDS", 600.0)
    asked = Desk(2)
    both = threading.Barrier(2)

    def who() -> threading.Thread:
        both.wait(60)
        return threading.current_thread()

    threads = [job.wait(60) for job in [asked.submit(who), asked.submit(who)]]
    assert asked.settle(60)
    for thread in threads:
        ctypes.pythonapi.PyThreadState_SetAsyncExc(ctypes.c_ulong(thread.ident or 0), ctypes.py_object(SystemExit))
    with asked._changed:
        asked._changed.notify_all()
    for thread in threads:
        thread.join(60)
    assert {job.wait(60) for job in [asked.submit(who), asked.submit(who)]}.isdisjoint(threads)


@pytest.mark.filterwarnings("ignore::pytest.PytestUnhandledThreadExceptionWarning")
def test_who_waits_is_not_ended_with_the_thread() -> None:
    """Somebody ends a thread of a desk at its work: there is no answer, and what ended it does not come up in the call."""
    asked = Desk(1)

    def work() -> None:
        raise SystemExit

    with pytest.raises(LateError):
        asked.submit(work).wait(60)
    assert asked.submit(lambda: 7).wait(60) == 7


def test_a_desk_is_waited_for_as_long_as_it_takes() -> None:
    """Infinity is a time to settle in."""
    asked, go_on = Desk(1), threading.Event()
    asked.submit(lambda: go_on.wait(60))
    threading.Timer(0.2, go_on.set).start()
    assert asked.settle(float("inf"))


def test_a_thread_that_goes_leaves_nothing_behind(monkeypatch: pytest.MonkeyPatch) -> None:
    """Work that is handed in when an idle thread is about to go is done."""
    monkeypatch.setattr(desk, "_IDLE_SECONDS", 0.001)
    asked = Desk(1)
    for number in range(300):
        assert asked.submit(lambda: number).wait(60) == number  # noqa: B023 - answered before the next
