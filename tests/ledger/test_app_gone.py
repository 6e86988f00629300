"""An app that is gone takes what it had of the ledger along."""

from __future__ import annotations

import gc
import os
import time
from contextlib import suppress
from pathlib import Path

import pytest
import sqlalchemy as sa
from flask import Flask
from flask_sqlalchemy import SQLAlchemy

from flask_llm_cost import LlmCostTracker, track
from flask_llm_cost.ledger import Call


def record_in_an_app(folder: Path, *, flush: bool, tables: bool = True) -> None:
    app = Flask("app", instance_path=str(folder))
    app.config["SQLALCHEMY_DATABASE_URI"] = f"sqlite:///{folder}/app.db"
    db = SQLAlchemy(app)
    costs = LlmCostTracker(app)
    with app.app_context():
        if tables:
            db.create_all()
        track("openai", model="gpt-4o", usage={"input": 1})
        if flush:
            assert costs.flush(10)
        db.engine.dispose()


def open_now() -> set[str]:
    """Threads and open files, as Linux shows them."""
    found = {f"thread {name}" for name in os.listdir("/proc/self/task")}
    for name in os.listdir("/proc/self/fd"):
        with suppress(FileNotFoundError):  # that of the listing itself
            found.add(f"file {name} {os.readlink(f'/proc/self/fd/{name}')}")
    return found


def wait_for(before: set[str]) -> None:
    deadline = time.monotonic() + 10
    while open_now() - before and time.monotonic() < deadline:
        gc.collect()
        time.sleep(0.1)
    assert open_now() - before == set()


@pytest.mark.skipif(not Path("/proc/self/fd").exists(), reason="looks at threads and files as Linux shows them")
@pytest.mark.parametrize("tables", [True, False])
def test_threads_and_files_go_with_the_app(tmp_path: Path, tables: bool) -> None:
    """Eight test apps leave no thread, no open file and no connection behind, whether they could write or not."""
    gc.collect()
    before = open_now()
    for number in range(8):
        folder = tmp_path / str(number)
        folder.mkdir()
        record_in_an_app(folder, flush=tables, tables=tables)
    wait_for(before)
    left = list(tmp_path.glob("*/llm_cost_spool/*.spool"))
    assert len(left) == (0 if tables else 8)


def test_what_the_gone_app_left_is_adopted(tmp_path: Path) -> None:
    """A call that was recorded right before its app went is in the database when the next app has flushed."""
    record_in_an_app(tmp_path, flush=False)
    gc.collect()
    app = Flask("app", instance_path=str(tmp_path))
    app.config["SQLALCHEMY_DATABASE_URI"] = f"sqlite:///{tmp_path}/app.db"
    db = SQLAlchemy(app)
    costs = LlmCostTracker(app)
    with app.app_context():
        deadline = time.monotonic() + 10
        count = 0
        while not count and time.monotonic() < deadline:
            gc.collect()
            costs.flush(5)
            with costs.session() as session:
                count = len(session.scalars(sa.select(Call)).all())
            time.sleep(0.1)
        assert count == 1
        app.extensions["llm_cost"].ledger.close()
        db.engine.dispose()
