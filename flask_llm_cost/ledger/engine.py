"""The ledger's own connections: made like the host's, never the host's session's."""

from __future__ import annotations

import hashlib
import re
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, Final

import sqlalchemy as sa
from sqlalchemy.pool import StaticPool

from flask_llm_cost.ledger import lifecycle
from flask_llm_cost.ledger.gate import Gate

#: How long a fork waits for a connection that a server is asked for: it may hang, and nothing of it is used by the child.
CONNECTING_SECONDS: Final = 0.05

#: Parts of a URL's query that say which database it is.
_PLACE_PARAMETERS = ("host", "port", "service", "unix_socket", "dbname")


def is_memory(url: sa.URL) -> bool:
    """Whether *url* is a SQLite database that lives in this process only."""
    if url.get_backend_name() != "sqlite":
        return False
    database = url.database or ""
    return database in ("", ":memory:") or ":memory:" in database or url.query.get("mode") == "memory"


def identity_of(url: sa.URL, bind_key: str | None, app_name: str) -> str:
    """A hash that two apps share when they keep the same ledger. No credentials go into it."""
    place = [url.host, url.port, url.database, *(url.query.get(name) for name in _PLACE_PARAMETERS)]
    if not any(place):
        place.append(app_name)  # made by creator=: the URL says nothing
    parts = [url.get_backend_name(), *map(str, place), str(bind_key)]
    # Of PostgreSQL: a search_path is another ledger in the same database.
    if found := re.search(r"search_path\s*=\s*(\S+)", str(url.query.get("options", ""))):
        parts.append(found[1])
    return hashlib.sha256("\0".join(parts).encode()).hexdigest()[:16]


class SharedConnection:
    """The host's one connection to its in-memory database, borrowed: only a transaction of ours is ours to end."""

    def __init__(self, driver_connection: Any) -> None:
        self.driver_connection = driver_connection
        self.ours = False

    def __getattr__(self, name: str) -> Any:
        return getattr(self.driver_connection, name)

    def commit(self) -> None:
        if self.ours:
            self.driver_connection.commit()

    def rollback(self) -> None:
        if self.ours:
            self.driver_connection.rollback()

    def close(self) -> None:
        """It stays the host's."""


class OwnEngine:
    """An engine of our own on the host's database, made at first use.

    :param host: gives the host's engine; asked once a process
    """

    def __init__(self, host: Callable[[], sa.Engine]) -> None:
        self._host = host
        self._engine: sa.Engine | None = None
        self._url: sa.URL | None = None
        self._shared: SharedConnection | None = None
        self._lock = threading.Lock()
        self._used_at = 0.0
        #: Around what talks to the database, but for sessions that are read with: these are the app's to keep open.
        self.gate = Gate()
        #: How many threads wait for a connection at this moment.
        self.connecting = 0

    @property
    def url(self) -> sa.URL:
        if self._url is None:
            self._url = self._host().url
        return self._url

    @property
    def made(self) -> sa.Engine | None:
        """The engine, if there is one now and it is not borrowed."""
        return self._engine if self._shared is None else None

    @property
    def in_memory(self) -> bool:
        return is_memory(self.url)

    def get(self) -> sa.Engine:
        """The engine, with the host's ``creator=`` and connect listeners (tokens, row security settings)."""
        lifecycle.notice_fork()
        self._used_at = time.monotonic()
        with self._lock:
            if self._shared is not None and _driver_connection(self._host()) is not self._shared.driver_connection:
                self._engine = self._shared = None  # the host has made its in-memory database anew
            if self._engine is None:
                host = self._host()
                if is_memory(host.url):
                    self._engine = self._borrow(host)
                else:
                    self._engine = sa.create_engine(host.url, pool=host.pool.recreate(), hide_parameters=True)
                    if self._engine.dialect.driver == "psycopg":
                        sa.event.listen(self._engine, "connect", _prepare_nothing_behind_a_pooler)
            return self._engine

    @contextmanager
    def connect(self) -> Iterator[sa.Connection]:
        """A connection, for one transaction."""
        engine = self.get()
        with self.gate:
            self.connecting += 1
            try:
                connection = engine.connect()
            finally:
                self.connecting -= 1
            with connection:
                yield connection

    def _borrow(self, host: sa.Engine) -> sa.Engine:
        shared = self._shared = SharedConnection(_driver_connection(host))
        return sa.create_engine(host.url, creator=lambda: shared, poolclass=StaticPool, hide_parameters=True)

    @contextmanager
    def owned(self) -> Iterator[bool]:
        """Around a transaction of ours. Gives ``False`` where the one shared connection has the host's work open."""
        self.get()
        shared = self._shared
        if shared is None:
            yield True
        elif shared.driver_connection.in_transaction:
            yield False
        else:
            shared.ours = True
            try:
                yield True
            finally:
                shared.ours = False

    def close_idle(self, seconds: float) -> None:
        """Close connections that nobody has used for so long."""
        if self._engine is not None and time.monotonic() - self._used_at > seconds:
            self.dispose()

    def dispose(self) -> None:
        """Close every connection that is not in use."""
        with self._lock:
            engine, self._engine, self._shared = self._engine, None, None
        if engine is not None:
            with self.gate:
                engine.dispose()

    def before_fork(self, patience: float) -> None:
        """Let nobody begin a transaction, and wait at most *patience* seconds for those who are at it."""
        engine = self._engine
        hangs = engine is not None and engine.dialect.name != "sqlite"
        brief = max(0.0, min(patience, CONNECTING_SECONDS)) if hangs else max(0.0, patience)
        self.gate.shut(brief)
        self.gate.shut(max(0.0, patience - brief), lambda: self.connecting)

    def after_fork_in_parent(self) -> None:
        self.gate.open()

    def abandon(self) -> None:
        """In a forked child: forget the parent's connections without a word to the server."""
        self._lock, self.gate, self.connecting = threading.Lock(), Gate(), 0
        engine, self._engine = self._engine, None
        if engine is not None and self._shared is None:
            engine.dispose(close=False)
        self._shared = None


def _prepare_nothing_behind_a_pooler(connection: Any, _record: object) -> None:
    """Behind PgBouncer in transaction mode the next transaction may be on another server connection, where a prepared
    statement is missing, or is another client's under the same name. Without a pooler they save half of the time.

    A pooler gives its client a number of its own for the backend.
    """
    if connection.prepare_threshold is not None:
        (pid,) = connection.execute("SELECT pg_backend_pid()").fetchone()
        connection.rollback()
        if pid != connection.info.backend_pid:
            connection.prepare_threshold = None


def _driver_connection(host: sa.Engine) -> Any:
    pool = host.pool
    if isinstance(pool, StaticPool):
        # A checkout would end in a rollback of whatever the host has open on it.
        return pool.connection.driver_connection
    fairy = host.raw_connection()
    try:
        return fairy.driver_connection
    finally:
        fairy.close()
