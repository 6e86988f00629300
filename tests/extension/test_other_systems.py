"""Where the package cannot run it says so."""

from __future__ import annotations

import subprocess
import sys


def test_without_file_locks_the_import_says_why() -> None:
    """On Windows, which has no ``fcntl``, ``import flask_llm_cost`` is one sentence with a way out."""
    program = "import sys; sys.modules['fcntl'] = None; import flask_llm_cost"
    died = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False)
    last = died.stderr.splitlines()[-1]
    assert last.startswith("ImportError: flask-llm-cost needs the file locks of Linux and macOS")
    assert "WSL" in last
