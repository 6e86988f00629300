"""Makes every call that a family of SDKs has, and prints what was billed and what was recorded, as JSON.

    python tests/matrix/driver.py openai_routes [--without aiohttp]

It runs in the environment of the SDKs, with this package installed, so it needs nothing of the tests.
"""

from __future__ import annotations

import argparse
import asyncio
import contextvars
import gc
import importlib
import importlib.metadata
import inspect
import json
import sys
import tempfile
import traceback
from collections.abc import Callable, Mapping
from contextlib import AsyncExitStack, ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from flask import Flask
from flask_sqlalchemy import SQLAlchemy

from flask_llm_cost import LlmCostTracker, tags
from flask_llm_cost.ledger import Call
from flask_llm_cost.testing.provider import Billed, PlayedProvider

#: The first part of a path on the played provider, and the provider that it plays.
PLAYED = ("openai", "anthropic", "azure", "gemini", "vertex", "bedrock", "mistral", "groq")


class Provider(PlayedProvider):
    """The played provider, with an address for each name that it plays."""

    def at(self, name: str) -> str:
        return f"{self.url}/{name}"

    @property
    def hosts(self) -> dict[str, str]:
        return {f"{self.host}/{name}": name for name in PLAYED}


#: Of what is tagged for it, no call fits in.
NO_ROOM: Any = {"name": "no_room", "limit": "0", "period": "total", "action": "block", "where": {"room": "none"}}


@dataclass(frozen=True)
class Route:
    """One way to make a billed call.

    :param run: makes it; may be a coroutine function
    :param needs: an attribute of the SDK's client that not every version has
    """

    name: str
    run: Callable[[Provider], Any]
    needs: Callable[[], bool] = lambda: True


@dataclass
class Routes:
    """The routes of one family of SDKs."""

    packages: tuple[str, ...]
    found: list[Route] = field(default_factory=list)

    def add(self, name: str, run: Callable[[Provider], Any], needs: Callable[[], bool] = lambda: True) -> None:
        assert all(route.name != name for route in self.found), name
        self.found.append(Route(name, run, needs))

    def __call__(self, function: Callable[[Provider], Any]) -> Callable[[Provider], Any]:
        self.add(function.__name__, function)
        return function


def has(owner: object, path: str) -> bool:
    """Whether *owner* has what the dotted *path* names."""
    for name in path.split("."):
        owner = getattr(owner, name, None)
        if owner is None:
            return False
    return True


def consume(result: Any) -> None:
    """Read all of what a sync SDK method gave: an object, a stream, a context manager around one, a raw response."""
    with ExitStack() as stack:
        if type(result).__name__.endswith("Manager"):
            result = stack.enter_context(result)
        if hasattr(result, "__next__") or type(result).__name__.endswith("Stream"):
            for _ in result:
                pass
        elif type(result).__name__.endswith("APIResponse"):
            result.read() if stack._exit_callbacks else result.parse()  # type: ignore[attr-defined]  # entered or not


async def consume_async(result: Any) -> None:
    """The same for an async SDK method."""
    async with AsyncExitStack() as stack:
        if inspect.isawaitable(result):
            result = await result
        entered = type(result).__name__.endswith("Manager")
        if entered:
            result = await stack.enter_async_context(result)
        if hasattr(result, "__aiter__"):
            async for _ in result:
                pass
        elif type(result).__name__.endswith("APIResponse"):
            read = result.read() if entered else result.parse()
            if inspect.isawaitable(read):
                await read


def billed(truth: Billed) -> dict[str, Any]:
    """What the provider says it billed, in our components. A reply of the routes' own says it in these already."""
    usage: Mapping[str, Any] = truth.usage
    if "cache_read_input_tokens" in usage:
        cached = usage["cache_read_input_tokens"] + usage["cache_creation_input_tokens"]
        counted = {"input": usage["input_tokens"] + cached, "output": usage["output_tokens"]}
    elif "input_tokens" in usage:
        counted = {"input": usage["input_tokens"], "output": usage["output_tokens"]}
    elif "prompt_tokens" in usage:
        counted = {"input": usage["prompt_tokens"], "output": usage.get("completion_tokens", 0)}
    else:
        counted = {"input": 0, "output": 0, **usage}
    return {"stream": truth.streamed, "id": truth.response_id, **counted}


def recorded(call: Call) -> dict[str, Any]:
    units = {line.component: float(line.quantity) for line in call.line_items if line.unit != "token"}
    return {
        "stream": call.stream,
        "id": call.provider_response_id,
        "input": call.input_tokens or 0,
        "output": call.output_tokens or 0,
        **units,
    }


def described(call: Call) -> dict[str, Any]:
    return {
        "provider": call.provider,
        "operation": call.operation,
        "model": call.model,
        "requested_model": call.requested_model,
        "outcome": call.outcome,
        "usage_source": call.usage_source,
        "cost_status": call.cost_status,
        "total_cost": None if call.total_cost is None else str(call.total_cost),
    }


def make(route: Route, provider: Provider, loop: asyncio.Runner) -> None:
    result = route.run(provider)
    if inspect.iscoroutine(result):
        loop.run(result, context=contextvars.copy_context())


def run(routes: Routes, folder: Path) -> dict[str, Any]:
    """Run every route, each with its name as a tag."""
    report: dict[str, Any] = {
        "versions": {name: importlib.metadata.version(name) for name in routes.packages},
        "absent": [],
        "routes": {},
        "blocked": {},
    }
    # One loop for all: some packages keep an async client for good.
    with Provider() as provider, asyncio.Runner() as loop:
        app = Flask("matrix", instance_path=str(folder))
        app.config.update(
            SQLALCHEMY_DATABASE_URI=f"sqlite:///{folder / 'app.db'}",
            LLM_COST_SPOOL_DIR=str(folder / "spool"),
            LLM_COST_HOSTS=provider.hosts,
            LLM_COST_BUDGETS=[NO_ROOM],
        )
        database = SQLAlchemy(app)
        costs = LlmCostTracker(app)
        with app.app_context():
            database.create_all()
        for route in routes.found:
            if not route.needs():
                report["absent"].append(route.name)
                continue
            before, error = len(provider.truth), None
            with app.app_context(), tags(route=route.name):
                try:
                    make(route, provider, loop)
                except Exception:
                    error = traceback.format_exc()
            truth = [billed(entry) for entry in provider.truth[before:]]
            report["routes"][route.name] = {"error": error, "billed": truth, "recorded": [], "rows": []}
            before = len(provider.truth)
            with app.app_context(), tags(route=route.name, room="none"):
                try:
                    make(route, provider, loop)
                    raised = None
                except BaseException as stopped:
                    raised = f"{type(stopped).__module__}.{type(stopped).__name__}"
            report["blocked"][route.name] = {"raised": raised, "billed": len(provider.truth) - before}
            provider.clear()  # of the replies that nobody came for
        gc.collect()
        loop.run(asyncio.sleep(0.05))  # what was broken off and collected is closed by the loop
        assert costs.flush(60)
        with app.app_context(), costs.session() as session:
            for call in session.query(Call).order_by(Call.occurred_at, Call.id):
                if call.outcome == "blocked":
                    continue
                name = next((tag.value for tag in call.tags if tag.key == "route"), "untagged")
                if name not in report["routes"]:
                    report["routes"][name] = {"error": None, "billed": [], "recorded": [], "rows": []}
                report["routes"][name]["recorded"].append(recorded(call))
                report["routes"][name]["rows"].append(described(call))
    return report


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("family", help="the module with the routes")
    parser.add_argument("--without", metavar="MODULE", help="a module that is not to be found")
    options = parser.parse_args()
    if options.without:
        sys.modules[options.without] = None  # type: ignore[assignment]  # what an import that must fail looks like
    routes: Routes = importlib.import_module(options.family).ROUTES
    with tempfile.TemporaryDirectory() as folder:
        print("\n" + json.dumps(run(routes, Path(folder))))


if __name__ == "__main__":
    # The modules with the routes import this one: they must get this very module.
    sys.modules["driver"] = sys.modules["__main__"]
    main()
