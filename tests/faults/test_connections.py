"""Connections of our own, and what happens to them on the way."""

from __future__ import annotations

import time
from collections.abc import Iterator
from pathlib import Path

import pytest
import sqlalchemy as sa
from cutting_proxy import CuttingProxy
from desks import Desk

from flask_llm_cost.testing.provider import PlayedProvider


@pytest.fixture(params=["postgresql", "mariadb"])
def server_desk(
    request: pytest.FixtureRequest, tmp_path: Path, provider: PlayedProvider
) -> Iterator[tuple[Desk, CuttingProxy]]:
    """A desk whose connections go through a proxy, once on each kind of server."""
    url: sa.URL = request.getfixturevalue(f"{request.param}_url")
    if request.param == "postgresql":
        proxy = CuttingProxy(f"{url.query['host']}/.s.PGSQL.{url.port or 5432}")
        query = {"sslmode": "disable", "gssencmode": "disable"}
    else:
        proxy = CuttingProxy(str(url.query["unix_socket"]))
        query = {"charset": "utf8mb4"}
    desk = Desk(url.set(host="127.0.0.1", port=proxy.port, query=query), tmp_path, provider)
    yield desk, proxy
    desk.close()
    proxy.close()


@pytest.mark.parametrize("cuts", [10, pytest.param(100, marks=pytest.mark.slow), pytest.param(1000, marks=pytest.mark.soak)])
def test_the_line_is_cut_after_commit(server_desk: tuple[Desk, CuttingProxy], cuts: int) -> None:
    """The database has committed and nobody hears of it: the batch is delivered again, and is there once."""
    desk, proxy = server_desk
    app = desk.app()
    ledger = desk.ledger(app)
    proxy.armed = True
    number = 0
    while proxy.cuts < cuts:
        desk.ask(app, range(number, number + 3))
        number += 3
        assert number < 30 * cuts
        deadline = time.monotonic() + 60
        while not ledger.flush(0.05):
            assert time.monotonic() < deadline
    proxy.armed = False
    print(f"{proxy.cuts} cuts after COMMIT, {ledger.health().duplicates} delivered again:")
    figures = desk.figures()
    figures.check()
    assert figures.stored == number
    assert ledger.health().duplicates >= cuts


def test_one_connection_a_process_and_none_of_the_apps(postgresql_desk: Desk) -> None:
    """Nothing is connected before the first record; then one connection of ours, while the app's pool stays untouched."""
    desk = postgresql_desk

    def connected() -> int:
        query = sa.text(
            "SELECT count(*) FROM pg_stat_activity WHERE datname = current_database() AND pid <> pg_backend_pid()"
        )
        with desk.engine.connect() as connection:
            return connection.scalar(query) or 0

    app = desk.app(tables=False)
    for made in desk._apps:
        with made.app_context():
            made.extensions["sqlalchemy"].engine.dispose()
    before = connected()
    for start in range(0, 30, 10):
        returned = desk.ask(app, range(start, start + 10))
        assert desk.ledger(app).flush(20)
        assert connected() == before + 1
    with app.app_context():
        assert app.extensions["sqlalchemy"].engine.pool.checkedout() == 0
        assert app.extensions["sqlalchemy"].engine.pool.checkedin() == 0
    desk.ledger(app).close()
    assert len(returned) == 10
    deadline = time.monotonic() + 20
    while connected() > before:
        assert time.monotonic() < deadline
        time.sleep(0.01)
