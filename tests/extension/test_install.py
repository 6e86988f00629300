"""``flask llm-cost install`` in real apps with Flask-Migrate, as a person runs it."""

from __future__ import annotations

import os
import sqlite3
import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = pytest.mark.slow

APP = """
from flask import Flask
from flask_migrate import Migrate
from flask_sqlalchemy import SQLAlchemy
from flask_llm_cost import LlmCostTracker

app = Flask(__name__)
app.config["SQLALCHEMY_DATABASE_URI"] = "sqlite:///app.db"
db = SQLAlchemy(app)

class User(db.Model):
    id = db.Column(db.Integer, primary_key=True)

Migrate(app, db)
"""
TRACKED = APP + "costs = LlmCostTracker(app)\n"


def flask(folder: Path, *command: str, code: int = 0) -> str:
    done = subprocess.run(
        [sys.executable, "-m", "flask", *command],
        cwd=folder,
        env={key: value for key, value in os.environ.items() if not key.startswith("FLASK_")},
        capture_output=True, text=True, check=False, timeout=300,
    )  # fmt: skip
    assert done.returncode == code, done.stdout + done.stderr
    return done.stdout if code == 0 else done.stdout + done.stderr


def tables(folder: Path) -> set[str]:
    connection = sqlite3.connect(folder / "instance" / "app.db")
    try:
        return {name for (name,) in connection.execute("SELECT name FROM sqlite_master WHERE type = 'table'")}
    finally:
        connection.close()


def test_an_app_without_migrations_gets_them(tmp_path: Path) -> None:
    """Folder and revision are made and applied; what is printed is to be committed and pasted; again changes nothing."""
    (tmp_path / "app.py").write_text(TRACKED)
    said = flask(tmp_path, "llm-cost", "install")
    assert "Made the migrations folder migrations." in said
    assert "commit it" in said
    assert 'dashboard_blueprint(guard=staff_required), url_prefix="/llm-costs"' in said
    assert "@costs.request_tagger" in said
    assert {"user", "llm_cost_calls", "alembic_version"} <= tables(tmp_path)
    (revision,) = (tmp_path / "migrations" / "versions").glob("*.py")
    assert "flask_llm_cost" not in revision.read_text()
    assert "already" in flask(tmp_path, "llm-cost", "install")
    assert [revision] == list((tmp_path / "migrations" / "versions").glob("*.py"))


def test_an_app_with_migrations_gets_one_more(tmp_path: Path) -> None:
    """The app's own revisions stay, and one with our tables follows them."""
    (tmp_path / "app.py").write_text(APP)
    for command in ("init", "migrate", "upgrade"):
        flask(tmp_path, "db", command)
    assert tables(tmp_path) == {"user", "alembic_version"}
    (tmp_path / "app.py").write_text(TRACKED)
    assert "Made the migrations folder" not in flask(tmp_path, "llm-cost", "install")
    assert "llm_cost_calls" in tables(tmp_path)
    assert len(list((tmp_path / "migrations" / "versions").glob("*.py"))) == 2


def test_migrations_of_one_database_do_not_say_that_a_bind_has_its_tables(tmp_path: Path) -> None:
    """Where the ledger is on a bind and the migrations are of the main database only, that is said, and what to do."""
    (tmp_path / "app.py").write_text(APP)
    for command in ("init", "migrate", "upgrade"):
        flask(tmp_path, "db", command)
    bound = 'app.config.update(SQLALCHEMY_BINDS={"costs": "sqlite:///costs.db"}, LLM_COST_BIND_KEY="costs")\ndb = '
    (tmp_path / "app.py").write_text(TRACKED.replace("db = ", bound, 1))
    said = flask(tmp_path, "llm-cost", "install", code=1)
    assert "SQLALCHEMY_BINDS['costs']" in said
    assert "flask db init --multidb" in said
    assert "are in the database" not in said
