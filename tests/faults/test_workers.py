"""Job queues, whose workers fork for their jobs and end without a word."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import pytest
import sqlalchemy as sa
from celery import Celery
from desks import Desk
from redis import Redis
from rq import Queue

from flask_llm_cost.ledger import CallTag

pytestmark = pytest.mark.slow

RQ_JOBS = """
import os
from desk import ask, make_app
from flask_llm_cost import tags

app = make_app()

def summarize(number):
    with app.app_context(), tags(job="summarize"):
        ask(os.environ["DESK_PROVIDER"], number)

def untagged(number):
    with app.app_context():
        ask(os.environ["DESK_PROVIDER"], number)

def raising(number):
    with app.app_context(), tags(job="raising"):
        ask(os.environ["DESK_PROVIDER"], number)
        raise LookupError
"""

CELERY_JOBS = """
import os
from celery import Celery
from desk import ask, make_app

app = make_app()
celery = Celery("desk", broker=os.environ["DESK_BROKER"], backend=os.environ["DESK_BROKER"])
app.extensions["llm_cost"].tracker.init_celery(celery)

@celery.task(name="summarize")
def summarize(number):
    with app.app_context():
        return ask(os.environ["DESK_PROVIDER"], number)
"""


@pytest.fixture
def redis(tmp_path: Path) -> Iterator[Redis]:
    server = shutil.which("redis-server")
    if server is None:
        if os.environ.get("CI") == "true":
            pytest.fail("continuous integration runs every test, and redis-server is not installed")
        pytest.skip("redis-server is not installed")
    socket = tmp_path / "redis.sock"
    command = [server, "--port", "0", "--unixsocket", str(socket), "--save", "", "--dir", str(tmp_path)]
    with subprocess.Popen(command, stdout=subprocess.DEVNULL) as process:
        for _ in range(600):
            if socket.exists():
                break
            time.sleep(0.05)
        with Redis(unix_socket_path=str(socket)) as client:
            yield client
        process.terminate()


def job_tags(desk: Desk) -> Counter[str]:
    with desk.engine.connect() as connection:
        return Counter(connection.scalars(sa.select(CallTag.value).where(CallTag.key == "job")))


@pytest.mark.parametrize("worker", ["rq.worker.Worker", "rq.worker.SimpleWorker"])
def test_rq_jobs(redis: Redis, sqlite_desk: Desk, worker: str) -> None:
    """Jobs in forks that end by os._exit, and in one process after each other: each call once, with its own job's tags."""
    (sqlite_desk.folder / "jobs.py").write_text(RQ_JOBS)
    queue = Queue("desk", connection=redis)
    for number in range(0, 9, 3):
        queue.enqueue("jobs.summarize", number)
        queue.enqueue("jobs.untagged", number + 1)
        queue.enqueue("jobs.raising", number + 2)
    socket = redis.connection_pool.connection_kwargs["path"]
    options = ["--burst", "--path", ".", "--url", f"unix://{socket}", "--worker-class", worker]
    sqlite_desk.start("-m", "rq.cli", "worker", *options, "desk").communicate(timeout=300)
    figures = sqlite_desk.figures()
    figures.check()
    assert figures.stored == 9
    assert job_tags(sqlite_desk) == {"summarize": 3, "raising": 3}


@pytest.mark.parametrize(
    "end",
    [
        pytest.param(signal.SIGTERM, id="told to stop"),
        pytest.param(signal.SIGKILL, id="killed", marks=pytest.mark.soak),
    ],
)
def test_celery_prefork(redis: Redis, sqlite_desk: Desk, end: signal.Signals) -> None:
    """Tasks in Celery's forked processes, which are replaced after three each: its end, also a violent one, loses and
    doubles none, and when it was told to stop nothing is left for somebody else to write.
    """
    (sqlite_desk.folder / "jobs.py").write_text(CELERY_JOBS)
    broker = f"redis+socket://{redis.connection_pool.connection_kwargs['path']}"
    options = ["--pool", "prefork", "--concurrency", "2", "--max-tasks-per-child", "3", "--loglevel", "ERROR"]
    worker = sqlite_desk.start(
        "-m", "celery", "--app", "jobs:celery", "worker", *options, start_new_session=True, DESK_BROKER=broker
    )
    celery = Celery("desk", broker=broker, backend=broker)
    results = [celery.send_task("summarize", [number]) for number in range(20)]
    returned = [result.get(timeout=300) for result in results]
    if end == signal.SIGKILL:
        os.killpg(worker.pid, end)
    else:
        worker.send_signal(end)
    worker.communicate(timeout=60)
    celery.close()
    if end == signal.SIGTERM:
        assert sqlite_desk.stored() == 20
    figures = sqlite_desk.figures(returned)
    figures.check()
    assert figures.stored == 20
    assert job_tags(sqlite_desk) == {"summarize": 20}
