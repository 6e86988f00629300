"""What the process holds stays what it is."""

from __future__ import annotations

import statistics
import subprocess
import sys
from pathlib import Path

import pytest
import sqlalchemy as sa

SCRIPT = Path(__file__).with_name("steady_app.py")


@pytest.mark.soak
@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="memory is read where Linux tells it")
def test_memory_is_flat(sqlite_url: sa.URL, tmp_path: Path) -> None:
    """Ten minutes at 200 calls a second, each of another user: after the first one it grows by less than 6 MB."""
    rate, seconds = 200, 600
    command = [sys.executable, SCRIPT, sqlite_url.render_as_string(), tmp_path, str(rate), str(seconds)]
    *resident, calls = map(int, subprocess.run(command, stdout=subprocess.PIPE, check=True, timeout=1500).stdout.split())
    assert (len(resident), calls) == (seconds, rate * seconds)
    first, last = statistics.median(resident[60:90]), statistics.median(resident[-30:])
    print(f"{first / 1024:.1f} MB after a minute, {last / 1024:.1f} MB at the end, {max(resident) / 1024:.1f} MB at most")
    assert last - first < 6 * 1024
    engine = sa.create_engine(sqlite_url)
    with engine.connect() as connection:
        assert connection.scalar(sa.text("SELECT count(*) FROM llm_cost_calls")) == calls
    engine.dispose()
