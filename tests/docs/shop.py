"""The app that the samples of the testing page test."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from flask import Flask, request
from flask.typing import ResponseReturnValue
from flask_sqlalchemy import SQLAlchemy
from openai import OpenAI, OpenAIError

from flask_llm_cost import LlmCostTracker, tags

db = SQLAlchemy()
costs = LlmCostTracker()


def create_app(config: Mapping[str, Any]) -> Flask:
    app = Flask(__name__)
    app.config.from_mapping(config)
    app.config.from_prefixed_env()
    db.init_app(app)
    costs.init_app(app)
    with app.app_context():
        db.create_all()

    @app.post("/chat")
    @tags(feature="support_chat")
    def chat() -> ResponseReturnValue:
        messages: Any = [{"role": "user", "content": request.form["message"]}]
        try:
            reply = OpenAI(max_retries=0).chat.completions.create(model="gpt-4o-mini", messages=messages)
        except OpenAIError:
            return "The assistant is away.", 502
        return reply.choices[0].message.content or ""

    return app
