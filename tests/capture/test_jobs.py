"""Jobs in RQ, whose workers fork for each one and end it without a word."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from flask import Flask
from flask_sqlalchemy import SQLAlchemy
from played_app import ledger_of
from redis import Redis
from rq import Queue

from flask_llm_cost import LlmCostTracker
from flask_llm_cost.testing.provider import PlayedProvider

APP = """
import os
import openai
from flask import Flask
from flask_sqlalchemy import SQLAlchemy
from flask_llm_cost import LlmCostTracker, tags

app = Flask("desk", instance_path=os.environ["DESK_FOLDER"])
app.config["SQLALCHEMY_DATABASE_URI"] = os.environ["DESK_DATABASE"]
app.config["LLM_COST_HOSTS"] = {os.environ["DESK_PROVIDER"] + "/openai": "openai"}
SQLAlchemy(app)
LlmCostTracker(app)

def summarize(number):
    with app.app_context(), tags(job="summarize"):
        client = openai.OpenAI(base_url=f"http://{os.environ['DESK_PROVIDER']}/openai/v1", api_key="test")
        client.chat.completions.create(model="gpt-4o", messages=[{"role": "user", "content": f"letter {number}"}])
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
        for _ in range(100):
            if socket.exists():
                break
            time.sleep(0.05)
        with Redis(unix_socket_path=str(socket)) as client:
            yield client
        process.terminate()


@pytest.mark.slow
def test_a_job_that_forks_and_exits_loses_nothing(redis: Redis, provider: PlayedProvider, tmp_path: Path) -> None:
    """Each job runs in a fork that ends by os._exit: every call is in the ledger, once, with the job's tags."""
    (tmp_path / "desk.py").write_text(APP)
    environment = {
        **os.environ,
        "PYTHONPATH": os.pathsep.join([str(tmp_path), *sys.path]),
        "DESK_FOLDER": str(tmp_path),
        "DESK_DATABASE": f"sqlite:///{tmp_path}/desk.db",
        "DESK_PROVIDER": provider.host,
    }
    app = Flask("desk", instance_path=str(tmp_path))
    app.config["SQLALCHEMY_DATABASE_URI"] = environment["DESK_DATABASE"]
    database = SQLAlchemy(app)
    LlmCostTracker(app)
    with app.app_context():
        database.create_all()
    queue = Queue("desk", connection=redis)
    for number in range(5):
        queue.enqueue("desk.summarize", number)
    socket = redis.connection_pool.connection_kwargs["path"]
    worker = [sys.executable, "-m", "rq.cli", "worker", "--burst", "--url", f"unix://{socket}", "desk"]
    subprocess.run(worker, env=environment, check=True, capture_output=True, timeout=120)
    found = ledger_of(app)
    assert len(provider.truth) == 5
    assert len(found) == 5
    assert {tag.value for call in found for tag in call.tags} == {"summarize"}
    app.extensions["llm_cost"].ledger.close()
    with app.app_context():
        database.engine.dispose()
