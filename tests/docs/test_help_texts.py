"""The help texts: on the page as the terminal prints them, and completed by the shell."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import click
import pytest
from help_texts import WIDTH, help_texts
from pages import page
from test_documentation import commands

APP = """
from flask import Flask
from flask_sqlalchemy import SQLAlchemy
from flask_llm_cost import LlmCostTracker

app = Flask(__name__)
app.config["SQLALCHEMY_DATABASE_URI"] = "sqlite:///app.db"
db = SQLAlchemy(app)
LlmCostTracker(app)
"""


def test_every_help_text_is_on_the_page() -> None:
    """The page has the directive that shows them, and it shows every command."""
    assert ".. help-texts::" in page("cli")
    assert sorted(help_texts()) == sorted(commands())


@pytest.mark.parametrize("name", sorted(commands()))
def test_every_command_and_option_says_what_it_does(name: str) -> None:
    """A command has a sentence, and each of its options one of its own."""
    command = commands()[name]
    assert command.help
    silent = [param.opts[0] for param in command.params if isinstance(param, click.Option) and not param.help]
    assert silent == []


def run(folder: Path, *command: str, **env: str) -> str:
    (folder / "app.py").write_text(APP)
    clean = {key: value for key, value in os.environ.items() if not key.startswith(("FLASK_", "_FLASK"))}
    flask = [str(Path(sys.executable).parent / "flask")]
    return subprocess.run(
        [*flask, *command], cwd=folder, env={**clean, **env}, capture_output=True, text=True, check=True, timeout=120
    ).stdout


def test_the_page_shows_what_the_terminal_prints(tmp_path: Path) -> None:
    """The text on the page is the one of ``flask llm-cost report --help``, but for where lines break."""
    printed = run(tmp_path, "llm-cost", "report", "--help", COLUMNS=str(WIDTH))
    words = re.sub(r"\s+", " ", printed).strip()
    assert words == re.sub(r"\s+", " ", help_texts()["flask llm-cost report"]).strip()


@pytest.mark.parametrize(
    ("typed", "offered"),
    [
        ("flask llm-cost rep", "report"),
        ("flask llm-cost report --fo", "--format"),
        ("flask llm-cost report --by model,pro", "model,provider"),
    ],
)
def test_the_shell_completes(typed: str, offered: str, tmp_path: Path) -> None:
    """With the line that the page names, the shell completes our commands, their options and the dimensions of a report."""
    assert "_FLASK_COMPLETE=bash_source flask" in page("cli")
    words = typed.split()
    shown = run(tmp_path, _FLASK_COMPLETE="bash_complete", COMP_WORDS=typed, COMP_CWORD=str(len(words) - 1))
    assert offered in [line.partition(",")[2] for line in shown.splitlines()]
