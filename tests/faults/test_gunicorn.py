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


def serve(desk: Desk, kind: str, preload: bool) -> tuple[subprocess.Popen[bytes], str]:
    """A server with two workers that end after some twenty requests each, and its address."""
    options = ["--worker-class", kind, *WORKERS[kind], *(["--preload"] if preload else [])]
    options += ["--workers", "2", "--max-requests", "20", "--max-requests-jitter", "5", "--graceful-timeout", "30"]
    log = desk.folder / "gunicorn.log"
    with socket.create_server(("127.0.0.1", 0)) as listening:
        # The socket is made here, so that no port is ever free for somebody else.
        listening.set_inheritable(True)
        options += ["--bind", f"fd://{listening.fileno()}", "--error-logfile", str(log), "--log-level", "debug"]
        server = desk.start(
            "-m", "gunicorn", *options, "desk:make_app()", output=subprocess.DEVNULL, pass_fds=[listening.fileno()]
        )
        address = f"http://127.0.0.1:{listening.getsockname()[1]}"
    return server, address


@pytest.mark.slow
@pytest.mark.parametrize("preload", [False, True], ids=["each loads", "preload"])
@pytest.mark.parametrize("kind", WORKERS)
def test_recycled_and_told_to_stop(sqlite_desk: Desk, kind: str, preload: bool) -> None:
    """Workers end after twenty requests, and the server is told to stop while it answers: none lost, none twice."""
    server, address = serve(sqlite_desk, kind, preload)
    answered: list[str] = []

    def ask(number: int) -> None:
        try:
            answer = client.get(f"/ask/{number}")
        except httpx.HTTPError:
            return  # its worker was recycled, or the server stopped
        if answer.status_code == 200:
            answered.append(answer.text)
        if len(answered) == 90:
            server.send_signal(signal.SIGTERM)

    transport = httpx.HTTPTransport(retries=20)
    with httpx.Client(base_url=address, timeout=120, transport=transport) as client, ThreadPoolExecutor(4) as pool:
        list(pool.map(ask, range(120)))
    server.wait(120)
    booted = re.findall(r"Booting worker", (sqlite_desk.folder / "gunicorn.log").read_text())
    assert len(answered) >= 90
    assert len(booted) > 3
    print(f"{kind}, {'preloaded' if preload else 'each worker loads'}, {len(booted)} workers:")
    sqlite_desk.figures(answered).check()
