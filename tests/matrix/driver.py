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
import time
import traceback
from collections.abc import Callable, Iterator, Mapping
from contextlib import AsyncExitStack, ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from flask import Flask
from flask_sqlalchemy import SQLAlchemy
from published_prices import dollars

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


@dataclass(frozen=True)
class Route:
    """One way to make a billed call.

    :param run: makes it; may be a coroutine function
    :param needs: an attribute of the SDK's client that not every version has
    :param broken: the app turns away from the stream before its end
    """

    name: str
    run: Callable[[Provider], Any]
    needs: Callable[[], bool] = lambda: True
    broken: bool = False


@dataclass
class Routes:
    """The routes of one family of SDKs."""

    packages: tuple[str, ...]
    found: list[Route] = field(default_factory=list)

    def add(
        self, name: str, run: Callable[[Provider], Any], needs: Callable[[], bool] = lambda: True, broken: bool = False
    ) -> None:
        assert all(route.name != name for route in self.found), name
        self.found.append(Route(name, run, needs, broken))

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


def break_off(result: Any) -> None:
    """Read the first event of a stream, and no more."""
    for _ in result:
        break


async def break_off_async(result: Any) -> None:
    """The same for an async one."""
    if inspect.isawaitable(result):
        result = await result
    async for _ in result:
        break


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
        assert not cached, "dollars() knows no price of it"
        counted = {"input": usage["input_tokens"], "output": usage["output_tokens"]}
    elif "input_tokens" in usage:
        counted = {"input": usage["input_tokens"], "output": usage["output_tokens"]}
    elif "prompt_tokens" in usage:
        counted = {"input": usage["prompt_tokens"], "output": usage.get("completion_tokens", 0)}
    else:
        counted = {"input": 0, "output": 0, **usage}
    price = dollars(truth.path, truth.model, counted)
    return {"stream": truth.streamed, "id": truth.response_id, "dollars": price, **counted}


def recorded(call: Call) -> dict[str, Any]:
    units = {line.component: float(line.quantity) for line in call.line_items if line.unit != "token"}
    return {
        "stream": call.stream,
        "id": call.provider_response_id,
        "dollars": None if call.total_cost is None else f"{call.total_cost:.12f}",
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
        "attempt": call.attempt,
        "usage_source": call.usage_source,
        "cost_status": call.cost_status,
        "total_cost": None if call.total_cost is None else str(call.total_cost),
    }


class Stage:
    """An app of its own, for one pass over all routes."""

    def __init__(self, folder: Path, provider: Provider, loop: asyncio.Runner, **config: Any) -> None:
        folder.mkdir()
        self.provider, self.loop = provider, loop
        self.app = Flask(folder.name, instance_path=str(folder))
        self.app.config.update(
            SQLALCHEMY_DATABASE_URI=f"sqlite:///{folder / 'app.db'}",
            LLM_COST_SPOOL_DIR=str(folder / "spool"),
            LLM_COST_HOSTS=provider.hosts,
            **config,
        )
        database = SQLAlchemy(self.app)
        self.costs = LlmCostTracker(self.app)
        with self.app.app_context():
            database.create_all()

    def play(self, route: Route) -> BaseException | None:
        """Take the route, with its name as a tag; what it raised."""
        self.provider.clear()
        self.provider.pace = 0.02 if route.broken else 0.0  # a stream that is in the client's buffers cannot be broken off
        with self.app.app_context(), tags(route=route.name):
            try:
                result = route.run(self.provider)
                if inspect.iscoroutine(result):
                    self.loop.run(result, context=contextvars.copy_context())
            except Exception as error:
                return error
            finally:
                gc.collect()
                self.loop.run(asyncio.sleep(0))  # what was broken off and collected is closed by the loop
        return None

    def rows(self) -> Iterator[tuple[str, Call]]:
        """Every call in the ledger, with the name of its route."""
        with self.app.app_context(), self.costs.session() as session:
            assert self.costs.flush(60)
            for call in session.query(Call).order_by(Call.occurred_at, Call.id):
                yield next((tag.value for tag in call.tags if tag.key == "route"), "untagged"), call


def truth_of(provider: Provider, broken: bool) -> list[Billed]:
    """What was billed. The provider notices late that a client has turned away."""
    deadline = time.monotonic() + 10
    while broken and not provider.truth and time.monotonic() < deadline:
        time.sleep(0.01)
    return provider.truth


def run(routes: Routes, folder: Path) -> dict[str, Any]:
    """Take every route, once as usual and once where a budget has no room for it."""
    report: dict[str, Any] = {
        "versions": {name: importlib.metadata.version(name) for name in routes.packages},
        "absent": [route.name for route in routes.found if not route.needs()],
        "routes": {},
        "refused": {},
    }
    there = [route for route in routes.found if route.needs()]
    # One loop for all: some packages keep an async client for good.
    with Provider() as provider, asyncio.Runner() as loop:
        usual = Stage(folder / "usual", provider, loop)
        for route in there:
            error = usual.play(route)
            report["routes"][route.name] = {
                "error": error and "".join(traceback.format_exception(error)),
                "broken": route.broken,
                "billed": [billed(entry) for entry in truth_of(provider, route.broken)],
                "recorded": [],
                "rows": [],
            }
        nothing = {"name": "nothing", "limit": "0", "period": "day", "action": "block"}
        strict = Stage(folder / "strict", provider, loop, LLM_COST_BUDGETS=[nothing])
        for route in there:
            error = strict.play(route)
            report["refused"][route.name] = {
                "error": error and type(error).__name__,
                "said": error and "".join(traceback.format_exception(error)),
                "requests": [request.path for request in provider.requests],
                "rows": [],
            }
        nobodys = {"error": None, "broken": False, "billed": [], "requests": []}
        for name, call in usual.rows():
            route_report = report["routes"].setdefault(name, {**nobodys, "recorded": [], "rows": []})
            route_report["recorded"].append(recorded(call))
            route_report["rows"].append(described(call))
        for name, call in strict.rows():
            report["refused"].setdefault(name, {**nobodys, "rows": []})["rows"].append(call.outcome)
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
