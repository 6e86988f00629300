"""Whether an installed flask-llm-cost works where nothing else is: run by scripts/check, in empty environments."""

import sys
import tempfile
from pathlib import Path

import flask_llm_cost

HEAVY = {"openai", "anthropic", "httpx", "httpx2", "requests", "aiohttp", "botocore", "flask_migrate"}
assert not HEAVY & set(sys.modules), f"import flask_llm_cost imports {HEAVY & set(sys.modules)}"
assert "site-packages" in flask_llm_cost.__file__, f"this is not the installed one: {flask_llm_cost.__file__}"

from flask import Flask  # noqa: E402
from flask_sqlalchemy import SQLAlchemy  # noqa: E402

from flask_llm_cost import LlmCostTracker, dashboard_blueprint, track  # noqa: E402

with tempfile.TemporaryDirectory() as folder:
    app = Flask("smoke", instance_path=folder)
    app.config["SQLALCHEMY_DATABASE_URI"] = f"sqlite:///{Path(folder) / 'app.db'}"
    database = SQLAlchemy(app)
    costs = LlmCostTracker(app)
    app.register_blueprint(dashboard_blueprint(guard=lambda view: view), url_prefix="/costs")
    with app.app_context():
        database.create_all()
        record = track("anthropic", model="claude-sonnet-4-6", usage={"input": 1_000_000, "output": 100_000})
        assert costs.flush(10)
        assert str(record.cost.total.normalize()) == "4.5", record.cost
    page = app.test_client().get("/costs/")
    assert page.status_code == 200, page.status
    assert "4.5" in page.text
    doctor = app.test_cli_runner().invoke(args=["llm-cost", "doctor", "--capture"])
    assert doctor.exit_code == 0, doctor.output
    answer = app.test_cli_runner().invoke(args=["llm-cost", "report"])
    assert answer.exit_code == 0, answer.output
    assert "claude-sonnet-4-6" in answer.output or "4.5" in answer.output, answer.output

python = ".".join(map(str, sys.version_info[:3]))
print(f"flask-llm-cost {flask_llm_cost.__version__} on Python {python}: imported, recorded, shown, examined and reported")
