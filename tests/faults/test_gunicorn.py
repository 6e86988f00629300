"""Under gunicorn, whose workers are forked, recycled and told to stop while they answer."""

from __future__ import annotations

import re
import signal
import socket
import subprocess
from concurrent.futures import ThreadPoolExecutor

import httpx
import pytest
from desks import Desk

WORKERS = {"sync": [], "gthread": ["--threads", "4"], "gevent": ["--worker-connections", "20"]}
#: Requests after which a worker is replaced.
RECYCLED = 15


def serve(desk: Desk, kind: str, preload: bool) -> tuple[subprocess.Popen[bytes], str]:
    """A server with two workers that end after some requests each, and its address."""
    options = ["--worker-class", kind, *WORKERS[kind], *(["--preload"] if preload else [])]
    options += ["--workers", "2", "--max-requests", RECYCLED, "--graceful-timeout", "30", "--timeout", "120"]
    # The socket is made here, so that no port is ever free for somebody else.
    with socket.create_server(("127.0.0.1", 0), backlog=256) as listening:
        listening.set_inheritable(True)
        options += ["--bind", f"fd://{listening.fileno()}", "--error-logfile", desk.folder / "gunicorn.log"]
        server = desk.start(
            "-m",
            "gunicorn",
            *options,
            "desk:make_app()",
            output=subprocess.DEVNULL,
            pass_fds=[listening.fileno()],
            HOME=str(desk.folder),  # it keeps a socket there
        )
        return server, f"http://127.0.0.1:{listening.getsockname()[1]}"


@pytest.mark.parametrize(
    ("kind", "preload"),
    [
        pytest.param("sync", True, marks=pytest.mark.slow, id="sync, preload"),
        pytest.param("gthread", False, marks=pytest.mark.slow, id="gthread"),
        pytest.param("sync", False, marks=pytest.mark.soak, id="sync"),
        pytest.param("gthread", True, marks=pytest.mark.soak, id="gthread, preload"),
        pytest.param("gevent", False, marks=pytest.mark.soak, id="gevent"),
        pytest.param("gevent", True, marks=pytest.mark.soak, id="gevent, preload"),
    ],
)
def test_recycled_and_told_to_stop(sqlite_desk: Desk, kind: str, preload: bool) -> None:
    """Workers end after some requests, and the server is told to stop while it answers: none lost, none twice."""
    server, address = serve(sqlite_desk, kind, preload)
    answered: list[str] = []

    def ask(number: int) -> None:
        try:
            answer = client.get(f"/ask/{number}", headers={"connection": "close"})
        except httpx.HTTPError:
            return  # its worker was replaced, or the server has stopped
        if answer.status_code == 200:
            answered.append(answer.text)
            if len(answered) == 60:
                server.send_signal(signal.SIGTERM)

    with httpx.Client(base_url=address, timeout=120) as client, ThreadPoolExecutor(4) as pool:
        list(pool.map(ask, range(90)))
    assert server.wait(120) == 0
    workers = re.findall(r"Booting worker", (sqlite_desk.folder / "gunicorn.log").read_text())
    assert len(answered) >= 60
    assert len(workers) > 3
    print(f"{kind}, {'preloaded' if preload else 'each worker loads'}, {len(workers)} workers:")
    sqlite_desk.figures().check()
