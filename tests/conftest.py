"""Databases for every test that needs one: SQLite files, PostgreSQL and MariaDB, each real."""

from __future__ import annotations

import gc
import os
from collections.abc import Callable, Iterator
from typing import TypeVar

import pytest
import sqlalchemy as sa
from databases import MariaDBServer, MissingServerError, PostgreSQLServer, Server, SQLiteFolder

from flask_llm_cost.testing.provider import PlayedProvider

#: What is costly to start, and should be once: all tests that ask for it run one after the other in one of the workers.
ONCE = {"running_site", "browser"}

S = TypeVar("S")


def pytest_sessionfinish(session: pytest.Session) -> None:
    """In continuous integration a test that is skipped is a test that failed."""
    reporter = session.config.pluginmanager.get_plugin("terminalreporter")
    skipped = reporter.stats.get("skipped") if reporter is not None else None
    if skipped and os.environ.get("CI", "").lower() == "true":
        reporter.write_line(f"continuous integration runs every test, and {len(skipped)} were skipped", red=True)
        session.exitstatus = pytest.ExitCode.TESTS_FAILED


@pytest.hookimpl(wrapper=True, tryfirst=True)  # before xdist reads the groups
def pytest_collection_modifyitems(items: list[pytest.Item]) -> Iterator[None]:
    for item in items:
        for name in ONCE.intersection(getattr(item, "fixturenames", ())):
            item.add_marker(pytest.mark.xdist_group(name))
    yield


@pytest.fixture(scope="session", autouse=True)
def _only_young_objects() -> None:
    """Collecting after each test looks at what the test made, not at every module that was ever imported."""
    gc.collect()
    gc.freeze()


def _start(server: Callable[[], S]) -> S:
    try:
        return server()
    except MissingServerError as error:
        if os.environ.get("CI", "").lower() == "true":
            pytest.fail(f"continuous integration runs every test, and {error}")
        pytest.skip(str(error))


@pytest.fixture(scope="session")
def played() -> Iterator[PlayedProvider]:
    with PlayedProvider() as provider:
        yield provider


@pytest.fixture
def provider(played: PlayedProvider) -> PlayedProvider:
    """The provider that is played for all tests, with nothing of the test before."""
    played.clear()
    return played


@pytest.fixture(scope="session")
def sqlite_server(tmp_path_factory: pytest.TempPathFactory) -> SQLiteFolder:
    return SQLiteFolder(tmp_path_factory.mktemp("sqlite"))


@pytest.fixture(scope="session")
def postgresql_server() -> Iterator[PostgreSQLServer]:
    server = _start(PostgreSQLServer.start)
    yield server
    server.stop()


@pytest.fixture(scope="session")
def mariadb_server() -> Iterator[MariaDBServer]:
    server = _start(MariaDBServer.start)
    yield server
    server.stop()


@pytest.fixture(params=["sqlite", *(pytest.param(server, marks=pytest.mark.slow) for server in ("postgresql", "mariadb"))])
def database_server(request: pytest.FixtureRequest) -> Server:
    """The server behind ``database_url``; a test that asks for it runs once on each kind of database."""
    server: Server = request.getfixturevalue(f"{request.param}_server")
    return server


@pytest.fixture
def database_url(database_server: Server) -> Iterator[sa.URL]:
    """A fresh, empty database, once on each kind."""
    url = database_server.create()
    yield url
    database_server.drop(url)


@pytest.fixture
def sqlite_url(sqlite_server: SQLiteFolder) -> Iterator[sa.URL]:
    """A fresh, empty SQLite file, for what is the same on every database."""
    url = sqlite_server.create()
    yield url
    sqlite_server.drop(url)


@pytest.fixture
def postgresql_url(postgresql_server: PostgreSQLServer) -> Iterator[sa.URL]:
    """A fresh, empty PostgreSQL database."""
    url = postgresql_server.create()
    yield url
    postgresql_server.drop(url)


@pytest.fixture
def mariadb_url(mariadb_server: MariaDBServer) -> Iterator[sa.URL]:
    """A fresh, empty MariaDB database."""
    url = mariadb_server.create()
    yield url
    mariadb_server.drop(url)
