"""A small support desk whose assistant costs money: what a Flask app with flask-llm-cost looks like.

``flask --app example run`` serves it; any configuration key can be set from the environment as ``FLASK_<KEY>``. The SDKs
read ``OPENAI_API_KEY``, ``OPENAI_BASE_URL``, ``ANTHROPIC_API_KEY`` and ``ANTHROPIC_BASE_URL`` by themselves.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from flask import Flask
from flask_login import current_user, login_required

from example import auth, desk, history, jobs
from example.auth import staff_required
from example.extensions import costs, db, login_manager, migrate
from flask_llm_cost import dashboard_blueprint


def create_app(config: Mapping[str, Any] | None = None) -> Flask:
    app = Flask(__name__)
    app.config.from_mapping(
        SECRET_KEY="dev",  # FLASK_SECRET_KEY overrides it, as any real deployment must
        # Every change is a POST, and a browser sends a Lax cookie with no POST that comes from another site. That is the
        # app's whole defence against cross-site requests; an app with more to lose adds Flask-WTF's tokens.
        SESSION_COOKIE_SAMESITE="Lax",
        SQLALCHEMY_DATABASE_URI="sqlite:///desk.db",
        TRIAGE_URL=None,  # an OpenAI-compatible server of our own, if there is one
    )
    app.config.from_prefixed_env()
    app.config.from_mapping(config or {})

    db.init_app(app)
    migrate.init_app(app, db, directory=str(Path(__file__).parent / "migrations"))
    login_manager.init_app(app)
    costs.init_app(app)

    app.register_blueprint(auth.blueprint)
    app.register_blueprint(desk.blueprint)
    app.cli.add_command(jobs.seed)
    app.cli.add_command(jobs.digest)
    app.cli.add_command(history.history)

    app.register_blueprint(dashboard_blueprint(guard=staff_required), url_prefix="/llm-costs")
    app.register_blueprint(
        dashboard_blueprint(guard=login_required, name="my_usage", scope=lambda: {"tenant_id": current_user.tenant_id}),
        url_prefix="/my-usage",
    )
    return app
