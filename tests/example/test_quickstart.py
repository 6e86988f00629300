"""The quickstart does what it says."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from flask_llm_cost.testing.provider import PlayedProvider

QUICKSTART = Path(__file__).parents[2] / "docs" / "quickstart.rst"


def first_app() -> str:
    """The first Python block of the page."""
    block = re.search(r"\.\. code-block:: python\n(?:   :.*\n)+\n((?:   .*\n|\n)+)", QUICKSTART.read_text())
    assert block is not None
    return re.sub(r"^   ", "", block[1], flags=re.MULTILINE)


@pytest.mark.slow
def test_five_lines_to_a_first_number(tmp_path: Path) -> None:
    """The page's app, copied as it is, and its commands in order end in a report of the call that was made."""
    (tmp_path / "app.py").write_text(first_app())
    with PlayedProvider() as provider:
        env = {name: value for name, value in os.environ.items() if not name.startswith("FLASK_")}
        env |= {"OPENAI_API_KEY": "any", "OPENAI_BASE_URL": f"{provider.url}/v1"}
        hosts = f'app.config["LLM_COST_HOSTS"] = {{"{provider.host}": "openai"}}\n'
        source = (tmp_path / "app.py").read_text()
        (tmp_path / "app.py").write_text(source.replace("db = SQLAlchemy(app)\n", hosts + "db = SQLAlchemy(app)\n"))

        def run(*command: str) -> str:
            return subprocess.run(
                [sys.executable, *command], cwd=tmp_path, env=env, capture_output=True, text=True, check=True
            ).stdout

        run("-m", "flask", "llm-cost", "install")
        asked = run("-c", "from app import app; print(app.test_client().get('/ask?q=Why+is+the+sky+blue').text)")
        report = run("-m", "flask", "llm-cost", "report")

    assert asked.startswith("You asked: Why is the sky blue")
    assert re.search(r"gpt-4o-mini-2024-07-18 +1 +\d+ +0 +\d+ +\$0\.0000\d+", report)
