"""``scripts/demo``, from where its virtual environment stands."""

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import httpx
import pytest

ROOT = Path(__file__).parents[2]


def command(state: Path, *arguments: str) -> list[str]:
    return [sys.executable, "-m", "example.demo", "--state", str(state), "--port", "0", *arguments]


@pytest.fixture
def env() -> dict[str, str]:
    return {name: value for name, value in os.environ.items() if not name.endswith("_API_KEY")}


@pytest.mark.slow
def test_demo_reports_serves_and_ends(tmp_path: Path, env: dict[str, str]) -> None:
    """--once makes every kind of call, prints the report and exits 0. A second start goes on with the same database,
    serves, and ends on Ctrl-C with exit code 0, without a stack trace, and with nothing left running."""
    once = subprocess.run(command(tmp_path, "--once"), cwd=ROOT, env=env, capture_output=True, text=True, check=False)
    assert (once.returncode, once.stderr) == (0, "")
    for expected in ("gpt-4o-mini", "claude-haiku-4-5", "text-embedding-3-small", "support_chat", "juniper", "northwind"):
        assert expected in once.stdout
    assert "4 calls without a price (in_house/desk-triage-2)" in once.stdout
    billed = [json.loads(line) for line in (tmp_path / "truth.jsonl").read_text().splitlines()]
    assert {exchange["streamed"] for exchange in billed} == {True, False}
    assert f"total {len(billed)} " in " ".join(once.stdout.split())

    with subprocess.Popen(
        command(tmp_path), cwd=ROOT, env=env, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    ) as serving:
        lines = []
        for line in serving.stdout:
            lines.append(line)
            if "Ctrl-C" in line:
                break
        url = next(line.split()[2] for line in lines if "The app " in line)
        assert httpx.get(url + "login").status_code == 200
        serving.send_signal(signal.SIGINT)
        rest, errors = serving.communicate(timeout=30)
    assert (serving.returncode, errors, rest.strip()) == (0, "", "Stopped.")
    with pytest.raises(httpx.ConnectError):
        httpx.get(url + "login")
    assert len((tmp_path / "truth.jsonl").read_text().splitlines()) == 2 * len(billed)
