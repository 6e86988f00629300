"""What doctor and flush say of the spool."""

from __future__ import annotations

import os
import sqlite3
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import pytest
import sqlalchemy as sa
from flask import Flask
from flask_sqlalchemy import SQLAlchemy
from ledger_calls import LedgerMaker, a_call

from flask_llm_cost import LlmCostTracker
from flask_llm_cost.ledger.lines import encode
from flask_llm_cost.ledger.spool import Spool


@pytest.fixture
def app(tmp_path: Path) -> Iterator[Flask]:
    app = Flask("app", instance_path=str(tmp_path))
    app.config["SQLALCHEMY_DATABASE_URI"] = f"sqlite:///{tmp_path}/app.db"
    yield app
    app.extensions["llm_cost"].ledger.close()
    with app.app_context():
        app.extensions["sqlalchemy"].engine.dispose()


def started(app: Flask) -> Flask:
    db = SQLAlchemy(app)
    LlmCostTracker(app)
    with app.app_context():
        db.create_all()
    return app


def say(app: Flask, command: str) -> str:
    return app.test_cli_runner().invoke(args=["llm-cost", command]).output


def test_doctor_tries_the_spool_folder(app: Flask, tmp_path: Path) -> None:
    """A folder in which no file can be made is an error that names it and the key, before any call is recorded."""
    (tmp_path / "file").write_text("")
    app.config["LLM_COST_SPOOL_DIR"] = str(tmp_path / "file" / "spool")
    line = next(line for line in say(started(app), "doctor").splitlines() if "spool" in line)
    assert line.split()[0] == "error"
    assert "LLM_COST_SPOOL_DIR" in line
    assert str(tmp_path / "file" / "spool") in line


def test_calls_of_other_ledgers_are_told(app: Flask, tmp_path: Path) -> None:
    """Calls that wait for another database are a warning with their number and age, and flush does not hide them."""
    started(app)
    other = Spool([tmp_path / "llm_cost_spool"], "another")
    for _ in range(3):
        other.append(encode(a_call()))
    path = other.tail.path
    other.abandon()
    assert path is not None
    os.utime(path, (1_700_000_000, 1_700_000_000))
    doctor = say(app, "doctor")
    assert "3 calls of other ledgers" in doctor
    assert "2023-11-14" in doctor
    assert "3 calls of other ledgers" in say(app, "flush")


def test_flush_waits_for_living_processes(app: Flask, tmp_path: Path) -> None:
    """``flush`` is done when the records of running processes, too, are in the database; till then it says how many wait."""
    started(app)
    maker = LedgerMaker(sa.make_url(app.config["SQLALCHEMY_DATABASE_URI"]), tmp_path)
    runner = app.test_cli_runner()
    with closing(sqlite3.connect(tmp_path / "app.db")) as somebody:
        somebody.execute("BEGIN IMMEDIATE")
        other = maker()  # with the same spool folder, as another worker has it
        for _ in range(2):
            other.append(a_call())
        waiting = runner.invoke(args=["llm-cost", "flush", "--timeout", "0.5"])
        assert (waiting.exit_code, "2 calls still wait in running processes" in waiting.output) == (1, True)
        assert "all records" not in waiting.output
    done = runner.invoke(args=["llm-cost", "flush", "--timeout", "60"])
    assert (done.exit_code, done.output) == (0, "all records are in the database\n")
    assert maker.stored()[0] == 2
    maker.close()


def test_counts_outlive_their_process(app: Flask, tmp_path: Path) -> None:
    """What a process lost or set aside is in the database at once, also when it wrote nothing, and doctor reads it there."""
    started(app)
    with app.app_context():
        maker = LedgerMaker(app.extensions["sqlalchemy"].engine.url, tmp_path / "other")
        ledger = maker()
        ledger._tally.lost += 4
        ledger.append(a_call(latency_ms=2**70))
        assert ledger.flush(10)
        maker.close()
    doctor = say(app, "doctor")
    assert "4 calls were lost" in doctor
    assert "1 call was refused" in doctor
