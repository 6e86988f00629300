"""Nobody waits long for the ledger's database: neither an inline call nor a fork."""

from __future__ import annotations

import os
import socket
import time

import pytest
import sqlalchemy as sa
from ledger_calls import NOON, LedgerMaker, a_call

from flask_llm_cost.ledger.models import Call, Counter


def test_inline_waits_briefly_for_a_locked_table(make_ledger: LedgerMaker) -> None:
    """While somebody else's transaction locks our tables, an inline call takes about a second at most; it is kept."""
    ledger = make_ledger(write_mode="inline")
    ledger.append(a_call())
    with make_ledger.engine.connect() as other:
        if make_ledger.url.get_backend_name() == "postgresql":
            other.execute(sa.text(f"LOCK TABLE {Call.__tablename__} IN ACCESS EXCLUSIVE MODE"))
        elif make_ledger.url.get_backend_name() == "sqlite":
            other.execute(sa.insert(Counter).values(name="mine", value=1, updated_at=NOON))
        else:
            other.execute(sa.text(f"LOCK TABLES {Call.__tablename__} WRITE"))
        began = time.monotonic()
        ledger.append(a_call())
        assert time.monotonic() - began < 2.5
        if make_ledger.url.get_backend_name() not in ("postgresql", "sqlite"):
            other.execute(sa.text("UNLOCK TABLES"))
        other.rollback()
    assert ledger.flush(20)
    assert make_ledger.stored()[0] == 2


@pytest.fixture
def silent() -> tuple[socket.socket, sa.URL]:
    """A server that takes connections and never says a word."""
    server = socket.create_server(("127.0.0.1", 0))
    return server, sa.URL.create("mysql+pymysql", "nobody", None, "127.0.0.1", server.getsockname()[1], "nothing")


def test_a_fork_does_not_wait_for_a_connection_that_hangs(
    silent: tuple[socket.socket, sa.URL], sqlite_ledger: LedgerMaker
) -> None:
    """While the drain waits for a server that says nothing, forks take their usual time."""
    server, url = silent
    engine = sa.create_engine(url, connect_args={"connect_timeout": 3})
    ledger = sqlite_ledger(engine=engine)
    ledger.append(a_call())
    deadline = time.monotonic() + 5
    while not ledger._engine.connecting and time.monotonic() < deadline:
        time.sleep(0.01)
    began = time.monotonic()
    child = os.fork()
    if child == 0:
        os._exit(0)
    took = time.monotonic() - began
    os.waitpid(child, 0)
    server.close()
    assert took < 0.5


def test_inline_pays_for_a_dead_server_once(silent: tuple[socket.socket, sa.URL], sqlite_ledger: LedgerMaker) -> None:
    """After one failed connection inline calls go to the spool at once for some seconds."""
    server, url = silent
    engine = sa.create_engine(url, connect_args={"connect_timeout": 1, "read_timeout": 1})
    ledger = sqlite_ledger(engine=engine, write_mode="inline")
    ledger.append(a_call())
    began = time.monotonic()
    for _ in range(20):
        ledger.append(a_call())
    assert time.monotonic() - began < 0.5
    assert ledger.health().spooled == 21
    server.close()
