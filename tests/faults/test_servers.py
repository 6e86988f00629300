"""Under gunicorn and uWSGI, whose workers are forked, recycled, reloaded and told to stop while they answer."""

from __future__ import annotations

import os
import signal
import sqlite3
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing

import httpx
import pytest
from desks import Desk
from servers import Server, gunicorn, uwsgi, uwsgi_without_threads

#: gunicorn replaces a worker after so many requests, and uWSGI if it is told that it need not live for a minute.
PATIENT = ["--max-requests", 15, "--graceful-timeout", 30, "--timeout", 120, "--worker-class"]
GTHREAD, GEVENT = ["gthread", "--threads", 4], ["gevent", "--worker-connections", 20]
RECYCLED = ["--max-requests", 8, "--min-worker-lifetime", 0]
#: uWSGI takes SIGTERM for a reload otherwise.
HASTY = [*RECYCLED, "--die-on-term"]
#: With this it ends what it answers before it stops, as gunicorn does.
GRACEFUL = [*RECYCLED, "--hook-master-start", "unix_signal:15 gracefully_kill_them_all"]

#: What doctor says of the process that answers, how many calls a receiver has heard of, and which threads there are.
EXAMINED = """
import threading
from desk import make_app
from flask_llm_cost.doctor import examine
from flask_llm_cost.signals import call_recorded

app = make_app(budgets=[{"limit": "5", "period": "day", "action": "block"}])
heard = []

@call_recorded.connect_via(app)
def hear(sender, call):
    heard.append(call)

@app.get("/doctor")
def doctor():
    said = [check.message for check in examine(app.extensions["llm_cost"]) if check.name == "threads"]
    ours = [thread.name for thread in threading.enumerate() if thread.name.startswith("llm-cost")]
    return {"said": said, "heard": len(heard), "threads": sorted(ours)}
"""

Start = Callable[..., Server]

slow, soak = pytest.mark.slow, pytest.mark.soak
#: An older version is installed once, by one of the workers.
older = pytest.mark.matrix, pytest.mark.xdist_group("uwsgi")


def old_uwsgi(desk: Desk, *options: object, **more: str) -> Server:
    return uwsgi(desk, *options, installed=uwsgi_without_threads(), **more)


def get(client: httpx.Client, path: str) -> httpx.Response:
    return client.get(path, headers={"connection": "close"})


@pytest.mark.parametrize(
    ("start", "options", "signals"),
    [
        pytest.param(gunicorn, [*PATIENT, "sync", "--preload"], "TERM", marks=slow, id="gunicorn sync, preload"),
        pytest.param(gunicorn, [*PATIENT, *GTHREAD], "TERM", marks=slow, id="gunicorn gthread"),
        pytest.param(gunicorn, [*PATIENT, "sync"], "TERM", marks=soak, id="gunicorn sync"),
        pytest.param(gunicorn, [*PATIENT, *GTHREAD, "--preload"], "TERM", marks=soak, id="gunicorn gthread, preload"),
        pytest.param(gunicorn, [*PATIENT, *GEVENT], "TERM", marks=soak, id="gunicorn gevent"),
        pytest.param(gunicorn, [*PATIENT, *GEVENT, "--preload"], "TERM", marks=soak, id="gunicorn gevent, preload"),
        pytest.param(uwsgi, [*GRACEFUL, "--enable-threads"], "HUP TERM", marks=slow, id="uwsgi, graceful"),
        pytest.param(uwsgi, [*HASTY, "--threads", 4], "HUP TERM", marks=slow, id="uwsgi threads"),
        pytest.param(uwsgi, [*HASTY, "--threads", 4, "--lazy-apps"], "HUP INT", marks=slow, id="uwsgi threads, lazy"),
        pytest.param(uwsgi, [*HASTY, "--enable-threads"], "HUP INT", marks=soak, id="uwsgi"),
        pytest.param(uwsgi, [*HASTY, "--enable-threads", "--lazy-apps"], "HUP TERM", marks=soak, id="uwsgi, lazy"),
        pytest.param(old_uwsgi, [*GRACEFUL], "HUP TERM", marks=older, id="uwsgi without threads, graceful"),
        pytest.param(old_uwsgi, [*HASTY], "HUP INT", marks=older, id="uwsgi without threads"),
        pytest.param(old_uwsgi, [*HASTY, "--lazy-apps"], "HUP TERM", marks=older, id="uwsgi without threads, lazy"),
        pytest.param(old_uwsgi, [*HASTY, "--enable-threads"], "HUP TERM", marks=[*older, soak], id="old uwsgi"),
        pytest.param(old_uwsgi, [*HASTY, "--threads", 4], "HUP TERM", marks=[*older, soak], id="old uwsgi threads"),
    ],
)
def test_recycled_and_told_to_stop(sqlite_desk: Desk, start: Start, options: list[object], signals: str) -> None:
    """Workers end after some requests, and the server is told to load the app again, and to stop, while it answers: none
    lost, none twice.
    """
    server = start(sqlite_desk, *options)
    enough = 6 if "HUP" in signals else 4
    answered: list[str] = []
    stopped_at: list[int] = []

    def ask(number: int) -> None:
        if stopped_at and number > stopped_at[0] + 20:
            return
        try:
            answer = get(client, f"/ask/{number}")
        except httpx.HTTPError:
            return  # its worker was replaced, or the server has stopped
        if answer.status_code == 200:
            answered.append(answer.text)
            if len(answered) == 30 and "HUP" in signals:
                server.process.send_signal(signal.SIGHUP)
            # A recycled worker may take a second to end.
            if len(answered) >= 60 and server.workers >= enough and not stopped_at:
                stopped_at.append(number)
                server.process.send_signal(signal.SIGINT if "INT" in signals else signal.SIGTERM)

    with httpx.Client(base_url=server.address, timeout=120) as client, ThreadPoolExecutor(4) as pool:
        list(pool.map(ask, range(3000)))
    assert server.process.wait(120) == 0
    assert stopped_at
    print(f"{len(answered)} answered by {server.workers} workers, {sqlite_desk.stored()} stored by them:")
    # A call in the middle of which a worker is cut off is billed, and nobody ever gets to see it.
    sqlite_desk.figures(answered if "--die-on-term" in options else None).check()


@pytest.mark.parametrize(
    ("start", "options", "off"),
    [
        pytest.param(uwsgi, [], False, marks=slow, id="uwsgi"),
        pytest.param(uwsgi, ["--threads", 2], False, marks=soak, id="uwsgi threads"),
        pytest.param(old_uwsgi, [], True, marks=older, id="2.0.26"),
        pytest.param(old_uwsgi, ["--ini", "off.ini"], True, marks=older, id="2.0.26, switched off"),
        pytest.param(old_uwsgi, ["--enable-threads"], False, marks=older, id="2.0.26, switched on"),
        pytest.param(old_uwsgi, ["--threads", 2], False, marks=older, id="2.0.26, threads"),
    ],
)
def test_no_threads_are_told_of(sqlite_desk: Desk, start: Start, options: list[object], off: bool) -> None:
    """Doctor and the log say that uWSGI runs no threads where that is so, and nowhere else; and there we start none."""
    (sqlite_desk.folder / "examined.py").write_text(EXAMINED)
    (sqlite_desk.folder / "off.ini").write_text("[uwsgi]\nenable-threads = false\n")
    server = start(sqlite_desk, "--pythonpath", sqlite_desk.folder, "--processes", 1, *options, app="examined:app")
    with httpx.Client(base_url=server.address, timeout=120) as client:
        get(client, "/ask/1").raise_for_status()
        found = get(client, "/doctor").json()
    said = "uWSGI runs no threads, so each call is written before it returns; set enable-threads = true in uWSGI's"
    assert found["said"] == [f"{said} configuration"] * off
    if off:
        assert (found["heard"], found["threads"]) == (1, [])
    else:
        assert "llm-cost-drain" in found["threads"]
    assert (f"llm_cost: {said}" in server.log) == off
    server.process.send_signal(signal.SIGINT)
    assert server.process.wait(120) == 0


@pytest.mark.matrix
@pytest.mark.xdist_group("uwsgi")
def test_without_threads_calls_are_written_at_once_and_nothing_stands_still(sqlite_desk: Desk) -> None:
    """In a uWSGI without threads a call is in the ledger when it returns, and no lock stays with a worker that waits for
    its next request; what cannot be written waits, for the worker's next call or for ``flush`` once it is killed.
    """
    server = old_uwsgi(sqlite_desk)
    answered: list[str] = []

    def ask(count: int) -> None:
        for _ in range(count):
            answered.append(get(client, f"/ask/{len(answered)}").text)

    with httpx.Client(base_url=server.address, timeout=120) as client:
        for _ in range(30):
            ask(1)
            assert sqlite_desk.stored() == len(answered)
            with closing(sqlite3.connect(str(sqlite_desk.url.database), timeout=30)) as somebody:
                somebody.execute("BEGIN IMMEDIATE")
        with sqlite_desk.locked():
            ask(5)
            assert sqlite_desk.stored() == 30
        # Two workers may have some of the five.
        while sqlite_desk.stored() < len(answered):
            ask(1)
            assert len(answered) < 500
        with sqlite_desk.locked():
            ask(4)
    os.killpg(server.process.pid, signal.SIGKILL)
    server.process.wait(120)
    assert sqlite_desk.stored() == len(answered) - 4
    flush = sqlite_desk.start("-m", "flask", "--app", "desk:make_app()", "llm-cost", "flush")
    assert b"all records are in the database" in flush.communicate(timeout=120)[0]
    assert flush.returncode == 0
    assert sqlite_desk.stored() == len(answered)
    sqlite_desk.figures(answered).check()
