"""Forty calls in greenlets under gevent's monkey patches; prints which tags each is recorded with, as JSON."""

from gevent import monkey

monkey.patch_all()

import json  # noqa: E402 - gevent patches first
import tempfile  # noqa: E402
from pathlib import Path  # noqa: E402
from typing import Any  # noqa: E402

import gevent  # noqa: E402
import gevent.pool  # noqa: E402
import openai  # noqa: E402
import requests  # noqa: E402
from flask import Flask  # noqa: E402
from flask_sqlalchemy import SQLAlchemy  # noqa: E402

from flask_llm_cost import LlmCostTracker, tags  # noqa: E402
from flask_llm_cost.ledger import Call  # noqa: E402
from flask_llm_cost.testing.provider import PlayedProvider  # noqa: E402

CHAT: Any = {"model": "gpt-4o", "messages": [{"role": "user", "content": "hello there"}]}


def main() -> None:
    with PlayedProvider(pace=0.001) as provider, tempfile.TemporaryDirectory() as folder:
        app = Flask("green", instance_path=folder)
        app.config["SQLALCHEMY_DATABASE_URI"] = f"sqlite:///{Path(folder) / 'app.db'}"
        app.config["LLM_COST_HOSTS"] = provider.hosts
        database = SQLAlchemy(app)
        costs = LlmCostTracker(app)
        with app.app_context():
            database.create_all()
        client = openai.OpenAI(base_url=provider.openai_url, api_key="test")

        def ask(number: int) -> None:
            with app.app_context(), tags(number=number, kind=number % 4):
                if number % 4 == 0:
                    client.chat.completions.create(**CHAT)
                elif number % 4 == 1:
                    list(client.chat.completions.create(**CHAT, stream=True))
                elif number % 4 == 2:
                    requests.post(f"{provider.openai_url}/chat/completions", json=CHAT, timeout=20).json()
                else:
                    client.responses.create(model="gpt-4o-mini", input="hello there")
                gevent.sleep(0.001)

        gevent.pool.Pool(20).map(ask, range(40))
        flushed = costs.flush(20)
        with costs.session() as session:
            calls = [
                {"operation": call.operation, "outcome": call.outcome, **{tag.key: tag.value for tag in call.tags}}
                for call in session.query(Call)
            ]
        billed = len(provider.truth)
        client.close()
        app.extensions["llm_cost"].ledger.close()
    print(json.dumps({"flushed": flushed, "billed": billed, "calls": calls}))


if __name__ == "__main__":
    main()
