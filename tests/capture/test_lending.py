"""Another body in a request's place while it is sent."""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Callable

import pytest

from flask_llm_cost.capture import lending


# Forking with threads is what is tested here; Python 3.12 and later warn about it.
@pytest.mark.filterwarnings("ignore:This process:DeprecationWarning")
def test_a_child_that_is_made_in_the_middle_waits_for_nobody() -> None:
    """A child that is forked while another thread puts a body in place sends its own requests, and none of that one."""
    request, begun, go_on = object(), threading.Event(), threading.Event()

    def replace() -> Callable[[], None]:
        begun.set()
        go_on.wait(60)
        return lambda: None

    worker = threading.Thread(target=lending.lend, args=(request, lambda: b"own", replace))
    worker.start()
    assert begun.wait(60)
    child = os.fork()
    if child == 0:
        signal.alarm(30)  # ends a child that waits for the parent's thread
        mine = lending.lend(request, lambda: b"child's", lambda: lambda: None)
        os._exit(0 if mine and lending.own_body(request, lambda: b"sent") == b"child's" else 3)
    go_on.set()
    worker.join(60)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
    lending.give_back(request)
    assert lending.own_body(request, lambda: b"own") == b"own"
