"""Calls beside another library that patches the same classes, step by step; prints what each side saw, as JSON.

    python tests/coexistence/coexisting.py sentry|opentelemetry ours|theirs

The second argument says who is there first. In a process of its own, since what Sentry patches it never takes back.
"""

from __future__ import annotations

import asyncio
import json
import sys
import tempfile
from pathlib import Path
from typing import Any, Protocol

import httpx
import httpx2
import openai
import requests
from flask import Flask
from flask_sqlalchemy import SQLAlchemy

from flask_llm_cost import LlmCostTracker
from flask_llm_cost.capture import patching
from flask_llm_cost.ledger import Call
from flask_llm_cost.testing.provider import PlayedProvider

CHAT: Any = {"model": "gpt-4o", "messages": [{"role": "user", "content": "hello there"}]}


class Neighbour(Protocol):
    def on(self) -> None: ...

    def off(self) -> None: ...

    def seen(self) -> int:
        """How many requests it has seen since it was asked last."""


class Sentry:
    """Wraps ``Client.send`` of both httpx, ``http.client`` below requests, and the typed methods of OpenAI's SDK."""

    def __init__(self) -> None:
        self._events: list[Any] = []

    def on(self) -> None:
        import sentry_sdk

        sentry_sdk.init(
            dsn="http://key@127.0.0.1:9/1",
            traces_sample_rate=1.0,
            before_send_transaction=self._keep,
        )
        self._transaction = sentry_sdk.start_transaction(name="calls", op="test").__enter__()

    def _keep(self, event: Any, hint: Any) -> None:
        self._events.append(event)

    def off(self) -> None:
        import sentry_sdk

        sentry_sdk.init(default_integrations=False, auto_enabling_integrations=False)

    def seen(self) -> int:
        import sentry_sdk

        self._transaction.__exit__(None, None, None)
        seen = [span for event in self._events for span in event["spans"] if span["op"] == "http.client"]
        self._events.clear()
        self._transaction = sentry_sdk.start_transaction(name="calls", op="test").__enter__()
        return len(seen)


class OpenTelemetry:
    """Wraps ``handle_request`` of the transports of both httpx."""

    def __init__(self) -> None:
        from opentelemetry.instrumentation.httpx import HTTPX2ClientInstrumentor, HTTPXClientInstrumentor
        from opentelemetry.sdk.trace import TracerProvider
        from opentelemetry.sdk.trace.export import SimpleSpanProcessor
        from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter

        self._spans = InMemorySpanExporter()
        self._tracers = TracerProvider()
        self._tracers.add_span_processor(SimpleSpanProcessor(self._spans))
        self._instrumentors = (HTTPXClientInstrumentor(), HTTPX2ClientInstrumentor())

    def on(self) -> None:
        for instrumentor in self._instrumentors:
            instrumentor.instrument(tracer_provider=self._tracers)

    def off(self) -> None:
        for instrumentor in self._instrumentors:
            instrumentor.uninstrument()

    def seen(self) -> int:
        seen = len(self._spans.get_finished_spans())
        self._spans.clear()
        return seen


def make_app(provider: PlayedProvider, folder: str) -> Flask:
    app = Flask("coexisting", instance_path=folder)
    app.config["SQLALCHEMY_DATABASE_URI"] = f"sqlite:///{Path(folder) / 'app.db'}"
    app.config["LLM_COST_HOSTS"] = provider.hosts
    database = SQLAlchemy(app)
    LlmCostTracker(app)
    with app.app_context():
        database.create_all()
    return app


def ask(provider: PlayedProvider) -> int:
    """Six calls, by three libraries. The number of texts that the app got."""
    url = f"{provider.openai_url}/chat/completions"
    got = []

    async def twin() -> None:
        async with openai.AsyncOpenAI(base_url=provider.openai_url, api_key="test") as client:
            got.append((await client.chat.completions.create(**CHAT)).choices[0].message.content)

    with openai.OpenAI(base_url=provider.openai_url, api_key="test") as client:
        got.append(client.chat.completions.create(**CHAT).choices[0].message.content)
        chunks = [chunk.choices[0].delta.content or "" for chunk in client.chat.completions.create(**CHAT, stream=True)]
        got.append("".join(chunks))
    asyncio.run(twin())
    with httpx.Client() as old, httpx2.Client() as new:
        got += [http.post(url, json=CHAT).json()["choices"][0]["message"]["content"] for http in (old, new)]
    got.append(requests.post(url, json=CHAT, timeout=20).json()["choices"][0]["message"]["content"])
    return sum("hello there" in text for text in got)


def main(name: str, first: str) -> None:
    theirs: Neighbour = Sentry() if name == "sentry" else OpenTelemetry()
    steps: dict[str, Any] = {}
    with PlayedProvider() as provider, tempfile.TemporaryDirectory() as folder:
        if first == "theirs":
            theirs.on()
            app = make_app(provider, folder)
        else:
            app = make_app(provider, folder)
            theirs.on()
        ledger = app.extensions["llm_cost"].ledger
        total = 0

        def step(what: str) -> None:
            nonlocal total
            with app.app_context():
                answers = ask(provider)
            assert ledger.flush(20)
            with ledger.session() as session:
                now = session.query(Call).count()
            steps[what] = {"answers": answers, "ours": now - total, "theirs": theirs.seen()}
            total = now

        theirs.seen()
        step("both")
        patching.install("auto")
        step("installed twice")
        theirs.off()
        step("theirs off")
        theirs.on()
        step("theirs on again")
        patching.uninstall()
        left = patching.patched()
        step("ours off")
        patching.install("auto")
        step("ours on again")
        theirs.off()
        ledger.close()
    print(json.dumps({"steps": steps, "left": left}))


if __name__ == "__main__":
    main(*sys.argv[1:])
