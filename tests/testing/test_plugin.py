"""The fixtures for users' own tests, used as a user would: in a suite of their own."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]

APP = """
from flask import Flask, request
from flask_sqlalchemy import SQLAlchemy
from openai import OpenAI
from flask_llm_cost import LlmCostTracker, tags

db, costs = SQLAlchemy(), LlmCostTracker()

def create_app(url):
    app = Flask(__name__)
    app.config.update(TESTING=True, SQLALCHEMY_DATABASE_URI=url)
    db.init_app(app)
    costs.init_app(app)
    with app.app_context():
        db.create_all()

    @app.post("/chat")
    @tags(feature="chat")
    def chat():
        messages = [{"role": "user", "content": request.form["message"]}]
        return OpenAI().chat.completions.create(model="gpt-4o-mini", messages=messages).choices[0].message.content

    return app
"""
SUITE = """
import anthropic, pytest
from openai import OpenAI
from shop import costs, create_app
from flask_llm_cost.ledger import spend

@pytest.fixture
def app(tmp_path):
    app = create_app(f"sqlite:///{tmp_path}/app.db")
    yield app
    app.extensions["llm_cost"].ledger.close()

def test_a_call_is_billed(app, llm_provider, llm_costs):
    assert app.test_client().post("/chat", data={"message": "Hello"}).status_code == 200
    (call,) = llm_costs
    assert (call.provider, call.tags["feature"]) == ("openai", "chat")
    assert call.total_cost > 0
    assert len(llm_provider.truth) == 1

def test_without_an_app(llm_provider, llm_costs):
    reply = anthropic.Anthropic().messages.create(
        model="claude-sonnet-4-6", max_tokens=10, messages=[{"role": "user", "content": "Hello"}])
    assert [call.provider for call in llm_costs] == ["anthropic"]

def test_with_the_ledger(app, llm_provider):
    app.test_client().post("/chat", data={"message": "Hello"})
    with app.app_context():
        assert costs.flush()
        assert spend.by("provider")[0]["provider"] == "openai"

def test_afterwards(monkeypatch):
    import os
    assert "OPENAI_BASE_URL" not in os.environ
"""
LIGHT = """
import sys

def test_nothing_is_imported():
    assert not {"flask", "sqlalchemy", "flask_llm_cost", "openai"} & set(sys.modules)
"""


def run_suite(folder: Path, name: str, suite: str) -> str:
    (folder / f"{name}.py").write_text(suite)
    env = {
        key: value for key, value in os.environ.items() if not key.startswith(("FLASK_", "OPENAI_", "ANTHROPIC_", "PYTEST_"))
    }
    env["PYTHONPATH"] = os.pathsep.join([str(ROOT), *filter(None, [os.environ.get("PYTHONPATH")])])
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-p", "pytest_flask_llm_cost", "-p", "no:cacheprovider", f"{name}.py"],
        cwd=folder, env=env, capture_output=True, text=True, check=False, timeout=120,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@pytest.mark.slow
def test_the_fixtures_serve_a_suite(tmp_path: Path) -> None:
    """llm_provider answers the app's own clients without any setting, llm_costs has their calls, and both leave no trace."""
    (tmp_path / "shop.py").write_text(APP)
    assert "4 passed" in run_suite(tmp_path, "test_shop", SUITE)


def test_a_suite_that_does_not_ask_pays_nothing(tmp_path: Path) -> None:
    """The plugin imports neither Flask nor this package until one of its fixtures is used."""
    assert "1 passed" in run_suite(tmp_path, "test_light", LIGHT)


def test_the_package_registers_it() -> None:
    """The wheel has the module, and the entry point by which pytest finds it, under the module's own name."""
    text = (ROOT / "setup.cfg").read_text()
    assert "py_modules = pytest_flask_llm_cost" in text
    assert "pytest11 =\n    pytest_flask_llm_cost = pytest_flask_llm_cost\n" in text
