"""An app that asks a played provider, half of the time streamed. Its words come from the environment, so that gunicorn,
Celery and a plain process can all make it."""

from __future__ import annotations

import functools
import json
import os
from typing import Any

import httpx
from flask import Flask
from flask_sqlalchemy import SQLAlchemy

from flask_llm_cost import LlmCostTracker

MODELS = ("gpt-4o-mini", "gpt-4.1-nano")


def make_app(settings: dict[str, str] | None = None, **config: Any) -> Flask:
    """The app of *settings*, or of the environment.

    :param config: ``LLM_COST_`` keys, in lower case
    """
    settings = settings or dict(os.environ)
    app = Flask("desk", instance_path=settings["DESK_FOLDER"])
    app.config["SQLALCHEMY_DATABASE_URI"] = settings["DESK_DATABASE"]
    app.config["SQLALCHEMY_ENGINE_OPTIONS"] = json.loads(settings.get("DESK_ENGINE", "{}"))
    app.config["LLM_COST_HOSTS"] = {f"{settings['DESK_PROVIDER']}/{name}": name for name in ("openai", "anthropic")}
    given = json.loads(settings.get("DESK_CONFIG", "{}")) | config
    app.config.update({f"LLM_COST_{key.upper()}": value for key, value in given.items()})
    SQLAlchemy(app)
    LlmCostTracker(app)

    @app.get("/ask/<int:number>")
    def answer(number: int) -> str:
        return ask(settings["DESK_PROVIDER"], number)

    return app


def close_clients() -> None:
    """Close the connections of this process."""
    if _client.cache_info().currsize:
        _client(os.getpid()).close()
    _client.cache_clear()


@functools.cache
def _client(pid: int) -> httpx.Client:
    return httpx.Client(timeout=60, limits=httpx.Limits(max_connections=64))


def ask(provider: str, number: int) -> str:
    """One call; the odd ones are streamed. Gives the provider's id of the reply, once all of it is there.

    Without an SDK, which takes longer to import than most faults take to happen.
    """
    request: dict[str, Any] = {
        "model": MODELS[number // 2 % len(MODELS)],
        "messages": [{"role": "user", "content": f"letter {number} " * (number % 7 + 1)}],
    }
    url = f"http://{provider}/openai/v1/chat/completions"
    client = _client(os.getpid())
    if number % 2 == 0:
        return str(client.post(url, json=request).json()["id"])
    with client.stream("POST", url, json={**request, "stream": True}) as response:
        events = [line.removeprefix("data: ") for line in response.iter_lines() if line.startswith("data: {")]
    return str(json.loads(events[-1])["id"])
