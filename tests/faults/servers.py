"""The servers that fork for their workers: gunicorn and uWSGI, each started with two workers on a port of its own."""

from __future__ import annotations

import os
import re
import socket
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from desks import Desk

ROOT = Path(__file__).resolve().parents[2]
#: The last uWSGI that runs no threads unless it is told to. There is no wheel of it for Python 3.13 and later.
WITHOUT_THREADS = "2.0.26"

_STARTED = re.compile(r"Booting worker|pawned uWSGI worker")


class Server:
    """A server at work.

    :param address: where it answers
    """

    def __init__(self, process: subprocess.Popen[bytes], address: str, log: Path) -> None:
        self.process = process
        self.address = address
        self._log = log

    @property
    def log(self) -> str:
        return self._log.read_text()

    @property
    def workers(self) -> int:
        """How many it has started so far."""
        return len(_STARTED.findall(self.log))


def gunicorn(desk: Desk, *options: object) -> Server:
    log = desk.folder / "gunicorn.log"
    with _listening() as (socket_, address):
        given = ["--workers", 2, "--bind", socket_, "--error-logfile", log, *options]
        return Server(_start(desk, "-m", "gunicorn", *given, "desk:make_app()", socket_=socket_), address, log)


def uwsgi(desk: Desk, *options: object, app: str = "desk:make_app()", installed: Path | None = None) -> Server:
    """
    :param installed: a folder with another version than that of the tests' environment
    """
    log = desk.folder / "uwsgi.log"
    path = desk.environment["PYTHONPATH"]
    if installed is not None:
        path = os.pathsep.join([str(installed), path])
    program = (installed / "bin" if installed is not None else Path(sys.executable).parent) / "uwsgi"
    if not program.exists():
        if os.environ.get("CI") == "true":
            pytest.fail("continuous integration runs every test, and pyuwsgi is not installed")
        pytest.skip("pyuwsgi is not installed")
    with _listening() as (socket_, address):
        given = [
            "--master",
            "--no-orphans",
            "--need-app",
            "--processes",
            2,
            "--http-socket",
            socket_,
            "--logto",
            log,
            "--module",
            app,
            *options,
        ]
        return Server(_start(desk, program, *given, socket_=socket_, PYTHONPATH=path), address, log)


def uwsgi_without_threads() -> Path:
    """The folder of :data:`WITHOUT_THREADS`, installed there once."""
    if sys.version_info >= (3, 13):
        pytest.skip(f"uWSGI {WITHOUT_THREADS} has no wheel for this Python")
    folder = ROOT / ".venv-matrix" / f"uwsgi-{WITHOUT_THREADS}-{sys.implementation.cache_tag}"
    if not (folder / "bin" / "uwsgi").exists():
        install = [sys.executable, ROOT / "scripts" / "install.py", "--target", folder, "--no-deps"]
        subprocess.run([*install, f"pyuwsgi=={WITHOUT_THREADS}"], check=True)
    return folder


@contextmanager
def _listening() -> Iterator[tuple[str, str]]:
    """A socket that a server inherits, so that no port is ever free for somebody else, and its address."""
    with socket.create_server(("127.0.0.1", 0), backlog=256) as listening:
        listening.set_inheritable(True)
        yield f"fd://{listening.fileno()}", f"http://127.0.0.1:{listening.getsockname()[1]}"


def _start(desk: Desk, *arguments: object, socket_: str, **environment: str) -> subprocess.Popen[bytes]:
    inherited = [int(socket_.removeprefix("fd://"))]
    # gunicorn keeps a socket at home.
    return desk.start(
        *arguments,
        output=subprocess.DEVNULL,
        pass_fds=inherited,
        start_new_session=True,
        HOME=str(desk.folder),
        **environment,
    )
