"""Doctor on the ledger: its schema, a replica, its writer and the disk of its spool, each with the fault really made."""

from __future__ import annotations

import os
import shutil
import sqlite3
import sys
import time
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from flask import Flask
from flask_sqlalchemy import SQLAlchemy

from flask_llm_cost import LlmCostTracker, track
from flask_llm_cost.doctor import examine
from flask_llm_cost.ledger.disks import file_system


@pytest.fixture
def app(tmp_path: Path) -> Iterator[Flask]:
    app = Flask("shop", instance_path=str(tmp_path))
    app.config.update(SQLALCHEMY_DATABASE_URI=f"sqlite:///{tmp_path}/app.db", TESTING=True)
    app.config.update(SQLALCHEMY_BINDS={"replica": f"sqlite:///{tmp_path}/replica.db"}, LLM_COST_READ_BIND_KEY="replica")
    database = SQLAlchemy(app)
    LlmCostTracker(app)
    app.test_cli_runner().invoke(args=["llm-cost", "install"])
    with app.app_context():
        track("openai", model="gpt-4o", usage={"input": 1})
        assert app.extensions["llm_cost"].ledger.flush(5)
    shutil.copy(tmp_path / "app.db", tmp_path / "replica.db")
    yield app
    app.extensions["llm_cost"].ledger.close(0)
    with app.app_context():
        for engine in database.engines.values():
            engine.dispose()


@pytest.fixture
def spooling(tmp_path: Path) -> Iterator[Flask]:
    """An app that was never written for, with a spool that is not a test's own."""
    app = Flask("spooling", instance_path=str(tmp_path / "instance"))
    app.config.update(SQLALCHEMY_DATABASE_URI=f"sqlite:///{tmp_path}/spooling.db", LLM_COST_SPOOL_DIR=tmp_path / "spool")
    database = SQLAlchemy(app)
    LlmCostTracker(app)
    with app.app_context():
        database.create_all()
    yield app
    app.extensions["llm_cost"].ledger.close(0)
    with app.app_context():
        database.engine.dispose()


def told(app: Flask, name: str) -> list[str]:
    with app.app_context():
        return [check.message for check in examine(app.extensions["llm_cost"]) if check.name == name]


def execute(path: Path, statement: str) -> None:
    with closing(sqlite3.connect(path)) as connection:
        connection.execute(statement)
        connection.commit()


def test_missing_columns_indexes_and_keys_are_named(app: Flask, tmp_path: Path) -> None:
    """What the database lacks is named, column by column, index by index and key by key, with what repairs it."""
    assert told(app, "tables") == ["all tables, columns, indexes and foreign keys are there"]
    path = tmp_path / "app.db"
    execute(path, "DROP INDEX ix_llm_cost_calls_occurred_at")
    execute(path, "ALTER TABLE llm_cost_calls DROP COLUMN flags")
    execute(path, "ALTER TABLE llm_cost_calls ADD COLUMN later VARCHAR(9) NOT NULL DEFAULT ''")
    execute(path, "DROP TABLE llm_cost_line_items")
    execute(
        path,
        "CREATE TABLE llm_cost_line_items (call_id CHAR(32) NOT NULL, position SMALLINT NOT NULL, component VARCHAR(32), "
        "unit VARCHAR(16), quantity BIGINT, rate BIGINT, rate_per BIGINT, cost BIGINT, cost_status VARCHAR(16), "
        "future INTEGER NOT NULL, PRIMARY KEY (call_id, position))",
    )
    index = "CREATE INDEX ix_llm_cost_calls_occurred_at ON llm_cost_calls (occurred_at, id)"
    assert told(app, "indexes") == [
        f"indexes are missing (ix_llm_cost_calls_occurred_at), so questions take long; run in the database: {index}"
    ]
    (columns,) = told(app, "columns")
    assert columns.startswith(
        "columns are missing (llm_cost_calls.flags); run in the database: ALTER TABLE llm_cost_calls ADD"
    )
    assert told(app, "foreign keys") == ["foreign keys are missing (llm_cost_line_items.call_id); add them by hand"]
    assert "llm_cost_line_items.future" in told(app, "unknown columns")[0]
    execute(path, "DROP TABLE llm_cost_alerts")
    assert told(app, "tables")[0].startswith("1 table is missing (llm_cost_alerts); run")
    execute(path, "DROP TABLE llm_cost_counters")
    assert told(app, "tables")[0].startswith("2 tables are missing (llm_cost_counters, …); run")


def test_a_replica_that_is_behind_is_named(app: Flask, tmp_path: Path) -> None:
    """Doctor says how far the replica is behind, and warns when that is long."""
    assert told(app, "replica") == ["0:00:00 behind the ledger"]
    moved = (
        "UPDATE llm_cost_counters SET updated_at = datetime(updated_at, '-20 minutes') || '.000000' WHERE name = 'heartbeat'"
    )
    execute(tmp_path / "replica.db", moved)
    (message,) = told(app, "replica")
    assert "behind the ledger; look at its replication" in message


def test_a_database_that_others_hold_is_named(spooling: Flask, tmp_path: Path) -> None:
    """While somebody keeps the database to himself, doctor says since when calls wait; afterwards, that it was busy."""
    ledger = spooling.extensions["llm_cost"].ledger
    with closing(sqlite3.connect(tmp_path / "spooling.db")) as other:
        other.execute("BEGIN IMMEDIATE")
        with spooling.app_context():
            track("openai", model="gpt-4o", usage={"input": 1})
        deadline = time.monotonic() + 60
        while not ledger.health().last_error_class:
            assert time.monotonic() < deadline
            ledger.flush(0.1)
        assert told(spooling, "writer") == []
        assert "the last write failed (OperationalError SQLITE_BUSY), 1 call waits" in told(spooling, "writing")[0]
        for path in (tmp_path / "spool").glob("*.spool"):
            os.utime(path, (time.time() - 180,) * 2)
        (message,) = told(spooling, "writer")
        assert message.startswith("1 call waits in a running process since ")
        assert "the ledger was last written never" in message
    assert ledger.flush(60)
    (message,) = told(spooling, "writer")
    assert message.startswith("last written ")
    (message,) = told(spooling, "busy so far")
    assert "the ledger waited because somebody else held the database" in message
    assert "LLM_COST_BIND_KEY" in message


@pytest.mark.parametrize(
    ("kind", "name", "said"),
    [
        ("ext4", "the\\040app", None),
        ("overlay", "the\\040app", "goes with its container"),
        ("tmpfs", "the\\040app", "goes with its container"),
        ("nfs4", "the\\040app", "a network file system (nfs4)"),
        ("fuse.sshfs", "the\\040app", "a network file system (fuse.sshfs)"),
        ("nfs4", "elsewhere", None),
    ],
)
def test_a_spool_on_a_disk_that_will_not_do(
    spooling: Flask, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: str, name: str, said: str | None
) -> None:
    """A spool that goes with its container, or is on another machine's disk, is named; inline writes need no disk to stay.

    The kernel's list of mounts is played; what it says is as in proc(5).
    """
    mounts = tmp_path / "mountinfo"
    mounts.write_text(
        "22 1 254:0 / / rw,relatime - ext4 /dev/vda rw\n"
        f"36 22 0:31 / {tmp_path}/{name} rw,noatime shared:1 - {kind} somewhere rw,lowerdir=/a:/b\n"
    )
    monkeypatch.setattr(file_system, "__defaults__", (mounts,))
    spool = tmp_path / "the app" / "spool"
    spool.mkdir(parents=True)
    spooling.config["LLM_COST_SPOOL_DIR"] = spool
    messages = told(again(spooling), "spool disk")
    assert len(messages) == (said is not None)
    assert all(str(spool) in message and str(said) in message for message in messages)
    inline = told(again(spooling, LLM_COST_WRITE_MODE="inline"), "spool disk")
    assert len(inline) == (said is not None and "network" in said)


def again(app: Flask, **config: Any) -> Flask:
    """The app of the same database with another configuration."""
    other = Flask(app.name, instance_path=app.instance_path)
    other.config.update({key: value for key, value in app.config.items() if key.startswith(("SQLALCHEMY_", "LLM_COST_"))})
    other.config.update(config)
    SQLAlchemy(other)
    LlmCostTracker(other)
    return other


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux has /dev/shm")
def test_a_spool_in_memory_is_named(spooling: Flask, tmp_path: Path) -> None:
    """A real tmpfs is known for what it is."""
    spool = Path("/dev/shm") / tmp_path.name  # the one tmpfs that every Linux has
    spooling.config["LLM_COST_SPOOL_DIR"] = spool
    (message,) = told(again(spooling), "spool disk")
    shutil.rmtree(spool, ignore_errors=True)
    assert message.startswith(f"{spool} is on tmpfs, which goes with its container or machine")
    assert message.endswith("set LLM_COST_SPOOL_DIR to a volume, or LLM_COST_WRITE_MODE='inline'")


def test_uwsgi_without_threads_is_named(spooling: Flask, monkeypatch: pytest.MonkeyPatch) -> None:
    """uWSGI's own module says whether it runs threads; tests/faults/test_servers.py asks real ones."""
    assert told(spooling, "threads") == []
    for threads in (0, 1):
        monkeypatch.setitem(sys.modules, "uwsgi", SimpleNamespace(has_threads=threads))
        messages = told(spooling, "threads")
        assert len(messages) == (not threads)
        assert all(message.endswith("set enable-threads = true in uWSGI's configuration") for message in messages)
