"""Behind PgBouncer in transaction mode, where the next transaction may be on another server connection."""

from __future__ import annotations

import os
import shutil
import subprocess
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
import sqlalchemy as sa
from desks import Desk

from flask_llm_cost.testing.provider import PlayedProvider

#: Server connections for everybody: fewer than there are clients, so that they really are shared.
SHARED = 2


@pytest.fixture
def pooler(postgresql_url: sa.URL) -> Iterator[sa.URL]:
    """The database, by way of a pooler."""
    program = shutil.which("pgbouncer", path=os.pathsep.join((os.environ.get("PATH", ""), "/usr/sbin")))
    if program is None:
        if os.environ.get("CI", "").lower() == "true":
            pytest.fail("continuous integration runs every test, and pgbouncer is not installed")
        pytest.skip("pgbouncer is not installed")
    server = Path(str(postgresql_url.query["host"]))
    folder = Path(tempfile.mkdtemp(prefix="pgb"))
    settings, users = folder / "settings.ini", folder / "users"
    users.write_text(f'"{postgresql_url.username}" ""\n')
    settings.write_text(
        "[databases]\n"
        f"* = host={server}\n"
        "[pgbouncer]\n"
        f"unix_socket_dir = {folder}\n"
        "unix_socket_mode = 0777\n"
        f"auth_type = trust\nauth_file = {users}\n"
        f"pool_mode = transaction\ndefault_pool_size = {SHARED}\nserver_reset_query_always = 0\n"
    )
    # It refuses to run as root, and the server's socket is in a folder of the server's user.
    as_whom = ["--user", server.owner()] if os.geteuid() == 0 else []
    for path in (folder, settings, users):
        shutil.chown(path, server.owner())
    log = folder / "log"
    with log.open("wb") as output:
        process = subprocess.Popen([program, *as_whom, str(settings)], stdout=output, stderr=output)
    try:
        deadline = time.monotonic() + 60
        while not (folder / ".s.PGSQL.6432").exists():
            assert process.poll() is None, log.read_text()
            assert time.monotonic() < deadline
            time.sleep(0.05)
        yield postgresql_url.set(port=6432, query={"host": str(folder)})
    finally:
        process.terminate()
        process.wait(30)
        shutil.rmtree(folder)


@pytest.mark.slow
def test_behind_pgbouncer_in_transaction_mode(
    pooler: sa.URL, tmp_path: Path, provider: PlayedProvider, caplog: pytest.LogCaptureFixture
) -> None:
    """Batches, and reads between them, of several processes on two shared connections: each call is there once, and what one
    has prepared never meets another.
    """
    desk = Desk(pooler, tmp_path, provider)
    try:
        app = desk.app()
        ledger = desk.ledger(app)
        others = [desk.asking(4, 10, first=1000 * number, stderr=subprocess.PIPE) for number in range(1, 3)]
        for start in range(0, 60, 5):
            desk.ask(app, range(start, start + 5))
            assert ledger.flush(60)
            with ledger.session() as session:
                assert (session.scalar(sa.text("SELECT count(*) FROM llm_cost_calls")) or 0) >= start + 5
        said = [process.communicate(timeout=120)[1].decode() for process in others]
        figures = desk.figures()
        figures.check()
        assert figures.stored == 60 + 2 * 40
        assert "PreparedStatement" not in "".join([*said, caplog.text])
    finally:
        desk.close()
