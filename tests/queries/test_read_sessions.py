"""Sessions that read on servers: whatever writers, pages and the host have set on a connection, it is not theirs."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import sqlalchemy as sa
from databases import Server

from flask_llm_cost.ledger.engine import OwnEngine, identity_of
from flask_llm_cost.ledger.models import Base, Counter
from flask_llm_cost.ledger.read_session import reading
from flask_llm_cost.ledger.transaction import Transactions

pytestmark = pytest.mark.slow


@pytest.fixture(params=["postgresql", "mariadb", "mariadb+pymysql"])
def url(request: pytest.FixtureRequest) -> Iterator[sa.URL]:
    """A database of a server, MariaDB by either of its names."""
    server: Server = request.getfixturevalue(f"{request.param.partition('+')[0]}_server")
    made = server.create()
    yield made.set(drivername=request.param) if "+" in request.param else made
    server.drop(made)


def _engine(url: sa.URL, **options: object) -> Iterator[tuple[sa.Engine, OwnEngine]]:
    host = sa.create_engine(url, **options)
    own = OwnEngine(lambda: host)
    Base.metadata.create_all(host)
    yield host, own
    own.dispose()
    host.dispose()


def _limit(connection: sa.Connection) -> str:
    asked = "SHOW statement_timeout" if connection.dialect.name == "postgresql" else "SELECT @@max_statement_time"
    return str(connection.exec_driver_sql(asked).scalar())


def test_limits_end_with_what_they_were_set_for(url: sa.URL) -> None:
    """After a page and after a write whoever reads on the same connection may take as long as the server lets anybody."""
    for _, own in _engine(url, pool_size=1, max_overflow=0):
        with reading(own.get()) as session:
            free = _limit(session.connection())
        with reading(own.get(), longest=1.5, snapshot=True) as session:
            assert _limit(session.connection()) != free
        with reading(own.get()) as session:
            assert _limit(session.connection()) == free
        assert Transactions(own).run(_limit, patience=0.7) != free
        with reading(own.get()) as session:
            assert _limit(session.connection()) == free


@pytest.mark.parametrize("snapshot", [True, False])
def test_nothing_is_written_where_the_host_commits_by_itself(url: sa.URL, snapshot: bool) -> None:
    """With an engine in AUTOCOMMIT, text that slips through is rolled back with the session all the same."""
    for host, own in _engine(url, isolation_level="AUTOCOMMIT"):
        with host.connect() as connection:
            connection.execute(sa.insert(Counter).values(name="one", value=1, updated_at=sa.func.now()))
        with reading(own.get(), snapshot=snapshot) as session:
            session.execute(sa.text("DELETE FROM llm_cost_counters"))
        with host.connect() as connection:
            assert connection.scalar(sa.select(sa.func.count()).select_from(Counter)) == 1


def test_a_search_path_is_another_ledger() -> None:
    """Two apps on one database whose URLs lead to different schemas take over none of each other's calls."""
    plain = sa.make_url("postgresql+psycopg://app@db/shop")
    paths = [plain.update_query_dict({"options": f"-csearch_path={name}"}) for name in ("a", "b")]
    assert len({identity_of(url, None, "app") for url in (plain, *paths)}) == 3
    slow = plain.update_query_dict({"options": "-c statement_timeout=5000 -c search_path=a"})
    assert identity_of(slow, None, "app") == identity_of(paths[0], None, "app")
    assert identity_of(paths[0], None, "app") == identity_of(paths[0].set(username="else"), None, "app")
