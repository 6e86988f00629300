"""Receivers of signals are the app's own code: whatever they do, no call waits for them and no row is lost by them."""

from __future__ import annotations

import copy
import ctypes
import dataclasses
import os
import pickle
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from flask import Flask
from flask_sqlalchemy import SQLAlchemy

from flask_llm_cost import LlmCostTracker, call_recorded, track
from flask_llm_cost.ledger import spend
from flask_llm_cost.receivers import MOST_WAITING, Receivers
from flask_llm_cost.signals import write_failed

PROCESS = """
import os, sys
from flask import Flask
from flask_sqlalchemy import SQLAlchemy
from flask_llm_cost import LlmCostTracker, call_recorded, track

folder = sys.argv[1]
app = Flask("teller", instance_path=folder)
app.config["SQLALCHEMY_DATABASE_URI"] = f"sqlite:///{folder}/app.db"
db = SQLAlchemy(app)
costs = LlmCostTracker(app)

@call_recorded.connect
def tell(app, call):
    print(os.getpid() == parent, call.model, flush=True)

parent = os.getpid()
with app.app_context():
    db.create_all()
    track("openai", model="gpt-4o", usage={"input": 1})
"""
FORK = """
    costs.flush()
    if os.fork() == 0:
        track("openai", model="gpt-4o-mini", usage={"input": 1})
        costs.flush()
        os._exit(0)
    os.wait()
"""


@pytest.fixture(params=["background", "inline"])
def app(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Flask]:
    app = Flask("told", instance_path=str(tmp_path))
    app.config.update(
        SQLALCHEMY_DATABASE_URI=f"sqlite:///{tmp_path}/app.db", TESTING=True, LLM_COST_WRITE_MODE=request.param
    )
    db = SQLAlchemy(app)
    LlmCostTracker(app)
    with app.app_context():
        db.create_all()
        yield app
        db.engine.dispose()
    app.extensions["llm_cost"].ledger.close()


def test_a_call_can_be_handed_on(app: Flask) -> None:
    """What a receiver is told of can be pickled, copied and made a dict, priced or not; the price that calls share stays."""
    told: list[Any] = []

    def receive(sender: Flask, call: Any) -> None:
        told.append(call)

    with call_recorded.connected_to(receive):
        track("openai", model="gpt-4o", usage={"input": 1000}, tags={"feature": "chat"})
        track("openai", model="of-nobody", usage={})
        assert app.extensions["llm_cost"].ledger.flush(30)
        assert app.extensions["llm_cost"].receivers.settle(30)
    assert len(told) == 2
    for call in told:
        for other in (pickle.loads(pickle.dumps(call)), copy.deepcopy(call)):
            assert (other, other.cost.price) == (call, call.cost.price)
    priced = dataclasses.asdict(told[0])
    assert (priced["usage"]["quantities"], priced["tags"]) == ({"input": 1000}, {"feature": "chat"})
    assert priced["cost"]["price"]["rates"]["input"]["rate"] == told[0].cost.price.rates["input"].rate
    with pytest.raises(TypeError):
        told[0].cost.price.rates["input"] = None


def test_a_receiver_that_sleeps_holds_nothing_up(app: Flask) -> None:
    """While a receiver is stuck calls return and their rows are written; when it goes on it is told of each, once."""
    stuck, go_on, told = threading.Event(), threading.Event(), []

    def receive(sender: Flask, call: Any) -> None:
        stuck.set()
        assert go_on.wait(30)
        told.append(call.model)

    state = app.extensions["llm_cost"]
    with call_recorded.connected_to(receive):
        track("openai", model="gpt-4o", usage={"input": 1})
        assert stuck.wait(30)
        track("openai", model="gpt-4o-mini", usage={"input": 1})
        assert state.ledger.flush(30)
        assert spend.total().calls == 2
        assert told == []
        go_on.set()
        assert state.receivers.settle(30)
    assert told == ["gpt-4o", "gpt-4o-mini"]


def test_flush_waits_for_receivers_and_answers_for_rows(app: Flask) -> None:
    """flush() gives receivers what is left of its time, and says True as soon as the rows are safe."""
    go_on = threading.Event()

    def receive(sender: Flask, call: Any) -> None:
        go_on.wait(30)

    with call_recorded.connected_to(receive):
        track("openai", model="gpt-4o", usage={"input": 1})
        assert app.extensions["llm_cost"].ledger.flush(30)
        assert app.extensions["llm_cost"].tracker.flush(0.1)
        go_on.set()
        assert app.extensions["llm_cost"].receivers.settle(30)


def test_flush_waits_for_as_long_as_it_takes(app: Flask) -> None:
    """flush() takes infinity for a time, and is back when all is told."""
    told = []

    def receive(sender: Flask, call: Any) -> None:
        time.sleep(0.3)
        told.append(call.model)

    with call_recorded.connected_to(receive):
        track("openai", model="gpt-4o", usage={"input": 1})
        assert app.extensions["llm_cost"].tracker.flush(float("inf"))
    assert told == ["gpt-4o"]


def test_a_receiver_may_flush_itself(app: Flask) -> None:
    """A receiver that calls flush() is not waited for by itself."""
    told = []

    def receive(sender: Flask, call: Any) -> None:
        told.append(app.extensions["llm_cost"].tracker.flush(30))

    with call_recorded.connected_to(receive):
        track("openai", model="gpt-4o", usage={"input": 1})
        app.extensions["llm_cost"].tracker.flush(30)
    assert told == [True]


def test_a_receiver_that_exits_silences_nobody(app: Flask, caplog: pytest.LogCaptureFixture) -> None:
    """A receiver that calls sys.exit() is one line in the log: it and all others are told of this call and of the next."""
    told = []

    def leave(sender: Flask, call: Any) -> None:
        told.append(call.model)
        sys.exit()

    def listen(sender: Flask, call: Any) -> None:
        told.append(call.model)

    state = app.extensions["llm_cost"]
    with call_recorded.connected_to(leave), call_recorded.connected_to(listen):
        for model in ("gpt-4o", "gpt-4o-mini"):
            track("openai", model=model, usage={"input": 1})
            assert state.ledger.flush(30)
            assert state.receivers.settle(30)
    assert told == ["gpt-4o", "gpt-4o", "gpt-4o-mini", "gpt-4o-mini"]
    assert "raised SystemExit" in caplog.text


@pytest.mark.filterwarnings("ignore::pytest.PytestUnhandledThreadExceptionWarning")
def test_receivers_outlive_their_thread(app: Flask) -> None:
    """Somebody ends the thread that tells them: another one tells what waits, and what comes."""
    told = []

    def receive(sender: Flask, call: Any) -> None:
        told.append(call.model)

    state = app.extensions["llm_cost"]
    with call_recorded.connected_to(receive):
        track("openai", model="gpt-4o", usage={"input": 1})
        assert state.ledger.flush(30)
        assert state.receivers.settle(30)
        if (thread := state.receivers._thread) is not None:
            ctypes.pythonapi.PyThreadState_SetAsyncExc(ctypes.c_ulong(thread.ident), ctypes.py_object(SystemExit))
        track("openai", model="gpt-4o-mini", usage={"input": 1})
        assert state.ledger.flush(30)
        if thread is not None:
            thread.join(30)
        assert state.receivers.settle(30)
    assert told == ["gpt-4o", "gpt-4o-mini"]


def test_news_for_a_slow_receiver_are_bounded(caplog: pytest.LogCaptureFixture) -> None:
    """What a stuck receiver was not told of does not fill the memory: the oldest news are given up, and the log says so."""
    app = Flask("slow")
    stuck, go_on, told = threading.Event(), threading.Event(), []

    def receive(sender: Flask, error_class: str, waiting: int) -> None:
        stuck.set()
        assert go_on.wait(30)
        told.append(waiting)

    receivers = Receivers(app)
    with write_failed.connected_to(receive):
        receivers.tell(write_failed, {"error_class": "x", "waiting": -1})
        assert stuck.wait(30)
        for number in range(MOST_WAITING + 3):
            receivers.tell(write_failed, {"error_class": "x", "waiting": number})
        go_on.set()
        assert receivers.settle(30)
    assert told == [-1, *range(3, MOST_WAITING + 3)]
    assert "no call is lost" in caplog.text


@pytest.mark.parametrize(
    ("source", "told"),
    [
        pytest.param(PROCESS, ["True gpt-4o"], id="exit"),
        pytest.param(PROCESS + FORK, ["True gpt-4o", "False gpt-4o-mini"], id="fork"),
    ],
)
def test_each_process_tells_of_its_own_calls(source: str, told: list[str], tmp_path: Path) -> None:
    """A process that ends normally tells of its last call first; a forked child tells of its own, and of no other's."""
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", source, str(tmp_path)],
        env={name: value for name, value in os.environ.items() if not name.startswith("FLASK_")},
        capture_output=True, text=True, check=False, timeout=60,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines() == told
