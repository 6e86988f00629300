"""A desk: an app, its database, its spool and its provider, as processes that may come to harm."""

from __future__ import annotations

import gc
import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import desk
import sqlalchemy as sa
from figures import Figures, compare
from flask import Flask

from flask_llm_cost.extension import state_of
from flask_llm_cost.ledger.store import Ledger
from flask_llm_cost.testing.provider import PlayedProvider

HERE = Path(__file__).parent


class Desk:
    """Makes apps and processes that share one ledger and one spool."""

    def __init__(self, url: sa.URL, folder: Path, provider: PlayedProvider) -> None:
        self.url = url
        self.folder = folder
        self.provider = provider
        self.engine = sa.create_engine(url)
        self.settings = {
            "DESK_FOLDER": str(folder),
            "DESK_DATABASE": url.render_as_string(hide_password=False),
            "DESK_PROVIDER": provider.host,
        }
        self._apps: list[Flask] = []
        self._processes: list[subprocess.Popen[bytes]] = []

    @property
    def environment(self) -> dict[str, str]:
        """For a process that imports ``desk``."""
        # Where nothing compiled may be kept, each process would compile every library anew, for many seconds.
        changed = {"PYTHONPATH": os.pathsep.join([str(HERE), *sys.path]), "PYTHONDONTWRITEBYTECODE": ""}
        return {**os.environ, **self.settings, **changed}

    def app(self, *, tables: bool = True, **config: Any) -> Flask:
        """An app in this process."""
        app = desk.make_app(self.settings, **config)
        self._apps.append(app)
        if tables:
            with app.app_context():
                app.extensions["sqlalchemy"].create_all()
        return app

    def ledger(self, app: Flask | None = None) -> Ledger:
        return state_of(app or self.app()).ledger

    def ask(self, app: Flask, numbers: range) -> list[str]:
        """Calls in this process, one after the other."""
        with app.app_context():
            return [desk.ask(self.provider.host, number) for number in numbers]

    def start(self, *arguments: object, output: Any = subprocess.PIPE, **more: Any) -> subprocess.Popen[bytes]:
        """A Python process.

        :param more: environment variables in capitals, and what ``Popen`` takes
        """
        changed = {name: more.pop(name) for name in list(more) if name.isupper()}
        command = [sys.executable, *map(str, arguments)]
        environment = self.environment | changed
        process = subprocess.Popen(command, stdout=output, env=environment, cwd=self.folder, **more)
        self._processes.append(process)
        return process

    def asking(self, threads: int, each: int, *, first: int = 0, then: str = "exit", **more: Any) -> subprocess.Popen[bytes]:
        """A process that makes calls, see :mod:`asking_process`."""
        return self.start(HERE / "asking_process.py", threads, each, first, then, **more)

    def load(self, processes: int, threads: int, each: int) -> list[str]:
        """Many processes and threads make calls at once, and end. The ids of the replies that they got."""
        started = [self.asking(threads, each, first=number * threads * each) for number in range(processes)]
        returned: list[str] = []
        for process in started:
            output, _ = process.communicate(timeout=600)
            assert process.returncode == 0
            *ids, last = output.decode().split()
            assert last == "done"
            returned += ids
        return returned

    def figures(self, returned: list[str] | None = None) -> Figures:
        """How the ledger stands against the truth, once every spool is drained by a process that lives."""
        ledger = self.ledger()
        for app in self._apps:
            assert state_of(app).ledger.flush(120)
        assert ledger.health().waiting == 0
        return compare(self.provider.truth, self.engine, returned)

    @contextmanager
    def locked(self) -> Iterator[None]:
        """Somebody else's transaction keeps the ledger's tables to itself."""
        backend = self.url.get_backend_name()
        with self.engine.connect() as connection:
            if backend == "sqlite":
                connection.exec_driver_sql("BEGIN IMMEDIATE")
            elif backend == "postgresql":
                connection.exec_driver_sql("LOCK TABLE llm_cost_calls IN ACCESS EXCLUSIVE MODE")
            else:
                connection.exec_driver_sql("LOCK TABLES llm_cost_calls WRITE")
            try:
                yield
            finally:
                if backend == "mysql":
                    connection.exec_driver_sql("UNLOCK TABLES")
                connection.rollback()

    def stored(self) -> int:
        """Calls in the ledger at this moment."""
        with self.engine.connect() as connection:
            return connection.scalar(sa.text("SELECT count(*) FROM llm_cost_calls")) or 0

    def close(self) -> None:
        for process in self._processes:
            if process.poll() is None:
                process.kill()
            process.communicate()
        for app in self._apps:
            state_of(app).ledger.close()
            with app.app_context():
                app.extensions["sqlalchemy"].engine.dispose()
        self._apps.clear()
        desk.close_clients()
        self.engine.dispose()
        gc.collect()  # an app is a cycle, and a dead one must not own the next test's calls
