"""What the provider's id settles is one row on every kind of database, however many processes and threads read it."""

from __future__ import annotations

import itertools
import logging
import sqlite3
import subprocess
import sys
import threading
import tracemalloc
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from decimal import Decimal
from pathlib import Path
from typing import Any

import httpx
import openai
import pytest
import sqlalchemy as sa
from flask import Flask
from played_app import ledger_of
from test_batches import BATCH, DONE, openai_lines

from flask_llm_cost import tags
from flask_llm_cost.ledger import spend
from flask_llm_cost.testing import capture_calls
from flask_llm_cost.testing.provider import PlayedProvider

RESPONSE: Any = {
    "id": "resp_1",
    "object": "response",
    "created_at": 1790000000,
    "status": "queued",
    "background": True,
    "model": "gpt-4o",
    "output": [],
    "usage": None,
}
USAGE = {"input_tokens": 1000, "output_tokens": 100, "total_tokens": 1100}
LINES = 700  # more than one transaction takes

#: What 10 input and 4 output tokens of gpt-4o cost in a batch, and 1,000 and 100 at once.
LINE, RESPONDED = Decimal("0.0000325"), Decimal("0.0035")


@pytest.fixture
def two_apps(database_url: sa.URL, make_app: Callable[..., Flask]) -> tuple[Flask, Flask]:
    """Two apps on one ledger, as two processes have it, once on each kind of database."""
    return make_app(database_url), make_app(database_url)


def at_once(apps: tuple[Flask, Flask], work: Callable[[], object], times: int) -> None:
    """Do *work* in threads of both apps, all at the same moment."""
    start = threading.Barrier(2 * times)

    def one(app: Flask) -> None:
        with app.app_context(), tags(feature="reader"):
            start.wait(20)
            work()

    with ThreadPoolExecutor(2 * times) as pool:
        list(pool.map(one, apps * times))
    for app in apps:
        assert app.extensions["llm_cost"].ledger.flush(30)


def spent(app: Flask) -> Decimal:
    """What the rollups say."""
    with app.app_context():
        return spend.total().cost or Decimal(0)


def test_a_background_response_is_settled_once(
    two_apps: tuple[Flask, Flask], provider: PlayedProvider, openai_client: openai.OpenAI
) -> None:
    """Asked for by six threads of two apps when it is done: the creator's one row, and its cost once in every sum."""
    provider.reply_with("/responses", body=RESPONSE)
    provider.reply_with("/responses/resp_1", body=RESPONSE)
    provider.reply_with("/responses/resp_1", body={**RESPONSE, "status": "completed", "usage": USAGE}, times=6)
    with two_apps[0].app_context(), tags(feature="creator"):
        openai_client.responses.create(model="gpt-4o", input="x", background=True)
        openai_client.responses.retrieve("resp_1")
    (call,) = ledger_of(two_apps[0])
    assert (call.usage_source, call.total_cost) == ("pending", None)
    at_once(two_apps, lambda: openai_client.responses.retrieve("resp_1"), 3)
    (call,) = ledger_of(two_apps[1])
    assert (call.usage_source, call.input_tokens, call.output_tokens) == ("response", 1000, 100)
    assert {tag.key: tag.value for tag in call.tags} == {"feature": "creator"}
    assert call.total_cost == spent(two_apps[0]) == RESPONDED


def test_who_makes_a_response_names_a_model(
    make_app: Callable[..., Flask], provider: PlayedProvider, openai_client: openai.OpenAI
) -> None:
    """Of a stored prompt the request names none, and the reply's stands in; who asks how it went names none, ever: by that
    the ledger knows whose the call is, in whatever order it is written."""
    provider.reply_with("/responses", body=RESPONSE)
    provider.reply_with("/responses/resp_1", body={**RESPONSE, "status": "completed", "usage": USAGE})
    with make_app().app_context(), capture_calls() as calls:
        openai_client.responses.create(prompt={"id": "pmpt_1"}, background=True)
        openai_client.responses.retrieve("resp_1")
    assert [(call.usage.source, call.requested_model) for call in calls] == [("pending", "gpt-4o"), ("response", None)]
    assert len({call.id for call in calls}) == 1


@pytest.mark.slow
def test_the_lines_of_a_batch_are_settled_once(
    two_apps: tuple[Flask, Flask], provider: PlayedProvider, openai_client: openai.OpenAI
) -> None:
    """Read by four threads of two apps at once: each line is one row of the creator's, and once in every sum."""
    provider.reply_with("/batches", body=BATCH)
    provider.reply_with("/batches/batch_1", body=DONE)
    provider.reply_with("/files/file-out/content", body=openai_lines(LINES), times=4)
    with two_apps[0].app_context(), tags(feature="creator"):
        openai_client.batches.create(input_file_id="file-in", endpoint="/v1/chat/completions", completion_window="24h")
        openai_client.batches.retrieve("batch_1")
    ledger_of(two_apps[0])
    at_once(two_apps, lambda: openai_client.files.content("file-out"), 2)
    found = ledger_of(two_apps[1])
    assert [(call.usage_source, call.total_cost) for call in found] == [("batch", LINE)] * LINES
    assert {tag.value for call in found for tag in call.tags} == {"creator"}
    assert spent(two_apps[0]) == LINE * LINES


class Lines(httpx.SyncByteStream):
    """A file that is made while it is read."""

    def __init__(self, count: int) -> None:
        self.count = count

    def __iter__(self) -> Iterator[bytes]:
        piece = openai_lines(100)
        for _ in range(self.count // 100):
            yield piece


@pytest.mark.slow
def test_a_large_batch_takes_no_more_memory(make_app: Callable[..., Flask], caplog: pytest.LogCaptureFixture) -> None:
    """Eight times the lines of a batch take no more memory to read: none of them waits for the others."""
    app = make_app(write_mode="log")
    logger, logged, peaks = logging.getLogger("flask_llm_cost"), itertools.count(), []

    def swallow(record: logging.LogRecord) -> bool:
        next(logged)
        return False

    logger.addFilter(swallow)
    caplog.set_level(logging.INFO, logger.name)
    try:
        for count in (200, 400, 3_200):
            transport = httpx.MockTransport(lambda request, count=count: httpx.Response(200, stream=Lines(count)))
            with app.app_context(), httpx.Client(transport=transport) as client:
                tracemalloc.start()
                with client.stream("GET", "https://api.openai.com/v1/files/file-out/content") as reply:
                    length = sum(map(len, reply.iter_bytes()))
                peaks.append(tracemalloc.get_traced_memory()[1])
                tracemalloc.stop()
    finally:
        logger.removeFilter(swallow)
    assert length > 700_000
    assert next(logged) >= 3_800
    assert max(peaks) < 4_000_000
    assert peaks[2] < 2 * peaks[1]


STEP = """
import os
import sys
import time
import openai
from flask import Flask
from flask_sqlalchemy import SQLAlchemy
from flask_llm_cost import LlmCostTracker, tags

folder, url, host, step = sys.argv[1:]
app = Flask("worker", instance_path=folder)
app.config.update(SQLALCHEMY_DATABASE_URI=url, LLM_COST_HOSTS={host: "openai"})
db = SQLAlchemy(app)
costs = LlmCostTracker(app)
client = openai.OpenAI(base_url=f"http://{host}/v1", api_key="test")
with app.app_context(), tags(feature=step):
    if step.startswith("creator"):
        client.responses.create(model="gpt-4o", input="x", background=True)
    else:
        client.responses.retrieve("resp_1")
    if step == "creator that is killed":
        os.kill(os.getpid(), 9)
    assert costs.flush(20)
    while step == "heir" and sum(name.endswith(".spool") for _, _, names in os.walk(folder) for name in names) > 1:
        time.sleep(0.05)
"""


@pytest.mark.slow
@pytest.mark.parametrize("dies", [False, True], ids=["the creator lives", "the creator is killed"])
def test_a_background_response_in_processes(
    make_app: Callable[..., Flask], provider: PlayedProvider, tmp_path: Path, dies: bool
) -> None:
    """Made in one process, asked for in four others, two of them at once: one row of the creator's, its cost once. So it is
    where the creator was killed with its spool unwritten, and another process takes that over when all is read.
    """
    app = make_app()
    url = str(app.config["SQLALCHEMY_DATABASE_URI"])
    provider.reply_with("/responses", body=RESPONSE)
    provider.reply_with("/responses/resp_1", body=RESPONSE)
    provider.reply_with("/responses/resp_1", body={**RESPONSE, "status": "completed", "usage": USAGE}, times=3)

    def start(step: str, folder: str) -> subprocess.Popen[bytes]:
        (tmp_path / folder).mkdir(exist_ok=True)
        return subprocess.Popen([sys.executable, "-c", STEP, str(tmp_path / folder), url, provider.host, step])

    creator = "creator that is killed" if dies else "creator"
    with sqlite3.connect(url.removeprefix("sqlite:///")) as lock:
        if dies:
            lock.execute("BEGIN IMMEDIATE")  # so that the creator cannot write
        assert start(creator, "desk").wait(60) == (-9 if dies else 0)
    lock.close()
    assert start("early reader", "reader").wait(60) == 0
    assert [process.wait(60) for process in (start("one", "one"), start("two", "two"))] == [0, 0]
    (call,) = ledger_of(app)
    assert (call.usage_source, {tag.value for tag in call.tags} == {creator}) == ("response", not dies)
    assert start("heir", "desk").wait(60) == 0
    (call,) = ledger_of(app)
    assert (call.usage_source, call.total_cost, call.requested_model) == ("response", RESPONDED, "gpt-4o")
    assert {tag.key: tag.value for tag in call.tags} == {"feature": creator}
    assert spent(app) == RESPONDED
