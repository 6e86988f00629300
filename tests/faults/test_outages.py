"""The ledger's database is away, slow, locked or full, and the app asks on."""

from __future__ import annotations

import time

import pytest
import sqlalchemy as sa
from databases import Server
from desks import Desk


@pytest.mark.parametrize(
    ("calls", "seconds"),
    [(20, 0.5), pytest.param(2000, 60.0, marks=pytest.mark.soak)],
    ids=["a moment", "a minute"],
)
def test_refused_connections(any_desk: Desk, database_server: Server, calls: int, seconds: float) -> None:
    """While the database refuses everybody, calls go on and wait; once it is back all are in, once."""
    app = any_desk.app()
    ledger = any_desk.ledger(app)
    returned = any_desk.ask(app, range(10))
    assert ledger.flush(20)
    any_desk.engine.dispose()
    with app.app_context():
        app.extensions["sqlalchemy"].engine.dispose()
    with database_server.down(any_desk.url):
        until = time.monotonic() + seconds
        returned += any_desk.ask(app, range(10, 10 + calls))
        assert not ledger.flush(max(0.3, until - time.monotonic()))
        assert ledger.health().waiting == calls
    figures = any_desk.figures(returned)
    figures.check()
    assert figures.stored == 10 + calls


@pytest.mark.parametrize("calls", [pytest.param(3000, marks=pytest.mark.slow), pytest.param(9000, marks=pytest.mark.soak)])
def test_more_than_the_spool_may_hold(sqlite_desk: Desk, calls: int, caplog: pytest.LogCaptureFixture) -> None:
    """Past LLM_COST_SPOOL_MAX_MB the oldest calls go: counted, logged, and an error in doctor; the rest is exact."""
    app = sqlite_desk.app(spool_max_mb=1)
    ledger = sqlite_desk.ledger(app)
    with sqlite_desk.engine.begin() as connection:
        connection.execute(sa.text("ALTER TABLE llm_cost_calls RENAME TO away"))
    returned = []
    for start in range(0, calls, 100):
        returned += sqlite_desk.ask(app, range(start, start + 100))
        ledger.flush(0.05)
    deadline = time.monotonic() + 60
    while not ledger.health().lost and time.monotonic() < deadline:
        ledger.flush(0.1)
    with sqlite_desk.engine.begin() as connection:
        connection.execute(sa.text("ALTER TABLE away RENAME TO llm_cost_calls"))
    assert ledger.flush(60)
    lost = ledger.health().lost
    figures = sqlite_desk.figures(returned)
    figures.check(lost)
    assert 0 < lost < calls
    assert figures.stored == calls - lost
    assert "calls are lost" in caplog.text
    assert f"{lost:,} calls were lost" in app.test_cli_runner().invoke(args=["llm-cost", "doctor"]).output


@pytest.mark.parametrize("seconds", [1.5, pytest.param(30.0, marks=pytest.mark.soak)])
def test_a_lock_that_somebody_holds(any_desk: Desk, seconds: float) -> None:
    """While somebody locks the ledger's tables the app's calls return and wait; afterwards all are in, once."""
    app = any_desk.app()
    ledger = any_desk.ledger(app)
    with any_desk.locked():
        returned = any_desk.ask(app, range(40))
        assert not ledger.flush(seconds)
        assert ledger.health().waiting == 40
    any_desk.figures(returned).check()


# SQLite is slow when it is locked.
@pytest.mark.parametrize("database_server", ["postgresql", pytest.param("mariadb", marks=pytest.mark.slow)], indirect=True)
def test_a_database_that_takes_its_time(any_desk: Desk) -> None:
    """Each insert takes longer than twenty calls do: the calls do not wait for it."""
    delays = {
        "postgresql": [
            "CREATE FUNCTION dawdle() RETURNS trigger LANGUAGE plpgsql AS 'BEGIN PERFORM pg_sleep(0.5); RETURN NULL; END'",
            "CREATE TRIGGER slow AFTER INSERT ON llm_cost_calls FOR EACH STATEMENT EXECUTE FUNCTION dawdle()",
        ],
        "mysql": ["CREATE TRIGGER slow AFTER INSERT ON llm_cost_calls FOR EACH ROW DO SLEEP(0.03)"],
    }
    with any_desk.engine.begin() as connection:
        for statement in delays[any_desk.url.get_backend_name()]:
            connection.exec_driver_sql(statement)
    app = any_desk.app()
    returned = any_desk.ask(app, range(60))
    assert any_desk.stored() < 60
    any_desk.figures(returned).check()


def test_the_apps_pool_is_exhausted(any_desk: Desk) -> None:
    """The app has all connections of its own pool in use: ours is another, so its calls get into the ledger meanwhile."""
    app = any_desk.app()
    with app.app_context():
        engine = app.extensions["sqlalchemy"].engine
        held = [engine.connect() for _ in range(engine.pool.size() + engine.pool._max_overflow)]
        returned = any_desk.ask(app, range(10))
        assert any_desk.ledger(app).flush(20)
        assert any_desk.stored() == 10
        for connection in held:
            connection.close()
    any_desk.figures(returned).check()


def test_a_full_sqlite_file(sqlite_desk: Desk) -> None:
    """SQLite has no room for another page: calls wait in the spool; when there is room again all are in, once."""
    app = sqlite_desk.app()
    limit = ["PRAGMA max_page_count = 1"]  # SQLite takes it for the pages that there are now

    def full(connection: object, _record: object) -> None:
        for pragma in limit:
            connection.execute(pragma)  # type: ignore[attr-defined]

    with app.app_context():
        sa.event.listen(app.extensions["sqlalchemy"].engine, "connect", full)
    ledger = sqlite_desk.ledger(app)
    returned = sqlite_desk.ask(app, range(300))
    assert not ledger.flush(1.0)
    assert (ledger.health().last_error_class or "").endswith("SQLITE_FULL")
    limit.clear()
    ledger._engine.dispose()
    figures = sqlite_desk.figures(returned)
    figures.check()
    assert figures.stored == 300


def test_a_server_that_only_reads(postgresql_desk: Desk, postgresql_server: Server) -> None:
    """After a failover the server at hand refuses writes (25006): calls wait, and a new connection finds one that writes."""
    desk = postgresql_desk
    app = desk.app()
    ledger = desk.ledger(app)
    returned = desk.ask(app, range(5))
    assert ledger.flush(20)
    name = desk.url.database
    with desk.engine.connect().execution_options(isolation_level="AUTOCOMMIT") as admin:
        admin.exec_driver_sql(f"ALTER DATABASE {name} SET default_transaction_read_only = on")
    ledger._engine.dispose()  # as the failover does
    returned += desk.ask(app, range(5, 15))
    assert not ledger.flush(1.0)
    assert (ledger.health().last_error_class or "").endswith("25006")
    assert ledger.health().waiting == 10
    with desk.engine.connect().execution_options(isolation_level="AUTOCOMMIT") as admin:
        admin.exec_driver_sql("SET default_transaction_read_only = off")
        admin.exec_driver_sql(f"ALTER DATABASE {name} RESET default_transaction_read_only")
    # Who kept a connection to the old server would be refused for ever.
    figures = desk.figures(returned)
    assert ledger.flush(20)
    figures.check()


def test_work_of_the_app_that_is_rolled_back(any_desk: Desk) -> None:
    """Calls inside the app's transaction, its savepoint and a session that is removed: the app's rows go, the calls stay."""
    app = any_desk.app()
    with app.app_context():
        session = app.extensions["sqlalchemy"].session
        with any_desk.engine.begin() as connection:
            connection.execute(sa.text("CREATE TABLE notes (id INTEGER PRIMARY KEY)"))
        insert = sa.text("INSERT INTO notes VALUES (:id)")
        returned = []
        for number, end in enumerate(("rollback", "savepoint", "remove", "commit")):
            session.execute(insert, {"id": 10 * number})
            nested = session.begin_nested() if end == "savepoint" else None
            session.execute(insert, {"id": 10 * number + 1})
            returned += any_desk.ask(app, range(4 * number, 4 * number + 4))
            any_desk.ledger(app).flush(0.2)
            if nested is not None:
                nested.rollback()
                session.commit()
            else:
                getattr(session, end)()
        found = session.scalars(sa.text("SELECT id FROM notes ORDER BY id")).all()
        session.remove()
        assert found == [10, 30, 31]
    any_desk.figures(returned).check()
    with any_desk.engine.begin() as connection:
        connection.execute(sa.text("DROP TABLE notes"))
