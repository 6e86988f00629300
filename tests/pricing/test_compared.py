"""The golden cases, priced by genai-prices and LiteLLM where they can: any difference is listed with its reason."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from decimal import Decimal
from pathlib import Path
from typing import Any

import pytest

HERE = Path(__file__).parent
TOOLS = ("litellm==1.109.1", "genai-prices==0.2.3")


def _environment(folder: Path) -> Path:
    """A Python that has both, and nothing of ours: they are no dependencies, not even of the tests."""
    python = folder / "bin" / "python"
    if uv := shutil.which("uv"):
        commands = [
            [uv, "venv", "-q", "-p", sys.executable, str(folder)],
            [uv, "pip", "install", "-q", "-p", str(python), *TOOLS],
        ]
    else:
        commands = [[sys.executable, "-m", "venv", str(folder)], [str(python), "-m", "pip", "install", "-q", *TOOLS]]
    for command in commands:
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        if done.returncode and os.environ.get("CI", "").lower() != "true":
            pytest.skip("litellm and genai-prices cannot be installed here")
        assert done.returncode == 0, done.stderr[-2000:]
    return python


@pytest.mark.slow
def test_every_difference_to_other_tools_has_a_reason(tmp_path: Path) -> None:
    """Where we have a whole price the others have the same one, or the list says why not; and the list has nothing else."""
    python = _environment(tmp_path / "environment")
    command = [str(python), str(HERE / "price_elsewhere.py"), str(HERE / "golden.json")]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-2000:]
    theirs: dict[str, dict[str, str | None]] = json.loads(done.stdout)
    cases: dict[str, Any] = {case["case"]: case for case in json.loads((HERE / "golden.json").read_text("utf-8"))}
    listed = {(row["case"], row["tool"]): row for row in json.loads((HERE / "differences.json").read_text("utf-8"))}
    assert all(row["reason"] for row in listed.values())
    compared, different = 0, {}
    for name, amounts in theirs.items():
        ours = cases[name]["total"] if cases[name]["status"] in ("priced", "free") else None
        for tool, amount in amounts.items():
            if amount is None:
                continue
            compared += 1
            # LiteLLM computes in floats.
            if ours is None or abs(Decimal(amount) - Decimal(ours)) > Decimal("1e-12"):
                different[name, tool] = amount
    assert compared >= 150
    assert {key: Decimal(amount) for key, amount in different.items()} == {
        key: Decimal(row["theirs"]) for key, row in listed.items()
    }


def test_the_list_of_differences_is_about_the_golden_table() -> None:
    """Each names a case that is there, and says in a sentence why."""
    cases = {case["case"] for case in json.loads((HERE / "golden.json").read_text("utf-8"))}
    for row in json.loads((HERE / "differences.json").read_text("utf-8")):
        assert row["case"] in cases
        assert row["tool"] in ("litellm", "genai-prices")
        assert len(row["reason"]) > 15
