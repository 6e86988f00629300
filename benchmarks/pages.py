"""How long the server takes for every page of the dashboard, and how often a page asks the database.

Fills the ledger of each size with made-up calls (``bulk.py``) that end tonight, mounts the dashboard twice in an app, for
everybody's calls and for those of a tenant, and gets each page of the last 30 days through the app's WSGI callable. The
pages take turns. The ledger's tables in that database are dropped and made anew.

    python benchmarks/pages.py [database url] [--calls 100000 1000000] [--rounds 20] [--only calls] [--loaded]

A URL may have ``{calls}`` in its database's name, which is then one of each size. Without a URL it measures SQLite files in
a temporary folder. ``--loaded`` gets the pages of what an earlier run of the same day has loaded, ``--slow 30`` prints the
statements that took longer than so many milliseconds.
"""

from __future__ import annotations

import argparse
import math
import os
import random
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from typing import Any
from urllib.parse import urlencode

import bulk
import sqlalchemy as sa
from flask import Flask, request
from flask_sqlalchemy import SQLAlchemy
from sqlalchemy import event
from werkzeug.test import Client

from flask_llm_cost import LlmCostTracker
from flask_llm_cost.dashboard import dashboard_blueprint
from flask_llm_cost.ledger.models import Call

Address = Callable[[random.Random], str]

#: A view of the same app that asks ``SELECT 1``: what every page is compared with.
BARE = "a bare view, one question"


def tenant(rng: random.Random) -> str:
    return f"tenant-{int(bulk.TENANTS * rng.random() ** 3)}"


def app_on(url: str) -> Flask:
    """An app with the dashboard twice: ``/all`` for everything, ``/mine`` for the tenant of the header ``X-Tenant``."""
    app = Flask("pages")
    app.config.update(SQLALCHEMY_DATABASE_URI=url, LLM_COST_WRITE_MODE="inline", LLM_COST_TIMEZONE="UTC")
    database = SQLAlchemy(app)
    LlmCostTracker(app)
    app.add_url_rule("/bare", "bare", lambda: str(database.session.execute(sa.text("SELECT 1")).scalar()))
    app.register_blueprint(dashboard_blueprint(guard=None, name="all"), url_prefix="/all")
    scoped = dashboard_blueprint(guard=None, scope=lambda: {"tenant_id": request.headers["X-Tenant"]}, name="mine")
    app.register_blueprint(scoped, url_prefix="/mine")
    return app


def addresses(ids: list[Any]) -> Mapping[str, Address]:
    """Every page, open and scoped, plain and with one filter."""

    def page(path: str, **query: Any) -> Address:
        def address(rng: random.Random) -> str:
            asked = {name: value(rng) if callable(value) else value for name, value in query.items()}
            return f"{path}?{urlencode({'range': '30d', **asked})}"

        return address

    model: Any = lambda rng: rng.choice(bulk.MODELS)[1]  # noqa: E731
    feature: Any = lambda rng: f"feature-{rng.randrange(bulk.FEATURES)}"  # noqa: E731
    user: Any = lambda rng: f"user-{rng.randrange(bulk.USERS)}"  # noqa: E731
    found: dict[str, Address] = {BARE: lambda rng: "/bare"}
    for mount in ("/all", "/mine"):
        scoped = "" if mount == "/all" else ", a tenant's"
        found |= {
            f"overview{scoped}": page(f"{mount}/"),
            f"overview of a model{scoped}": page(f"{mount}/", model=model),
            f"overview of a feature{scoped}": page(f"{mount}/", **{"tag.feature": feature}),
            f"overview of an outcome{scoped}": page(f"{mount}/", outcome="ok"),
            f"overview of an operation{scoped}": page(f"{mount}/", operation="chat.completions"),
            f"overview by user{scoped}": page(f"{mount}/", by="tag:user_id"),
            f"explore{scoped}": page(f"{mount}/explore"),
            f"explore of an outcome{scoped}": page(f"{mount}/explore", outcome="ok"),
            f"explore, report tags crossed{scoped}": page(f"{mount}/explore", rows="tag:feature", cols="model"),
            f"explore, any two tags crossed{scoped}": page(f"{mount}/explore", rows="tag:user_id", cols="tag:feature"),
            f"models{scoped}": page(f"{mount}/models"),
            f"models of a feature{scoped}": page(f"{mount}/models", **{"tag.feature": feature}),
            f"calls{scoped}": page(f"{mount}/calls"),
            f"calls, dearest{scoped}": page(f"{mount}/calls", sort="dearest"),
            f"calls, slowest{scoped}": page(f"{mount}/calls", sort="slowest"),
            f"calls of a model{scoped}": page(f"{mount}/calls", model=model),
            f"calls of a feature{scoped}": page(f"{mount}/calls", **{"tag.feature": feature}),
            f"calls of a user{scoped}": page(f"{mount}/calls", **{"tag.user_id": user}),
            f"calls without a user{scoped}": page(f"{mount}/calls", untagged="user_id"),
            f"calls that failed{scoped}": page(f"{mount}/calls", outcome="error"),
            f"calls without a price{scoped}": page(f"{mount}/calls", cost_status="unpriced"),
            f"tags{scoped}": page(f"{mount}/tags"),
            f"a tag of 12 values{scoped}": page(f"{mount}/tags/feature"),
            f"a tag of 100,000 values{scoped}": page(f"{mount}/tags/user_id"),
            f"a value of a tag{scoped}": page(f"{mount}/tags/feature", value=feature),
            f"budgets{scoped}": lambda rng, mount=mount: f"{mount}/budgets",
            f"data quality{scoped}": page(f"{mount}/data-quality"),
            f"data quality of an outcome{scoped}": page(f"{mount}/data-quality", outcome="ok"),
            f"pricing{scoped}": lambda rng, mount=mount: f"{mount}/pricing",
        }  # fmt: skip
    found["a tag of 500 values"] = page("/all/tags/tenant_id")
    found["overview of a tenant"] = page("/all/", **{"tag.tenant_id": tenant})
    found["a call"] = lambda rng: f"/all/calls/{rng.choice(ids)}"
    return found


@contextmanager
def statements(slow: float | None) -> Iterator[list[str]]:
    """What is asked of the database meanwhile; with *slow* printed where it takes longer."""
    seen: list[str] = []
    began: list[float] = []

    def before(conn: Any, cursor: Any, statement: str, *_: object) -> None:
        seen.append(statement)
        began.append(time.perf_counter())

    def after(conn: Any, cursor: Any, statement: str, parameters: Any, *_: object) -> None:
        taken = (time.perf_counter() - began[-1]) * 1000
        if slow is not None and taken > slow:
            print(f"    {taken:.0f} ms: {' '.join(statement.split())}\n      {parameters}", flush=True)

    event.listen(sa.Engine, "before_cursor_execute", before)
    event.listen(sa.Engine, "after_cursor_execute", after)
    try:
        yield seen
    finally:
        event.remove(sa.Engine, "before_cursor_execute", before)
        event.remove(sa.Engine, "after_cursor_execute", after)


def measure(app: Flask, pages: Mapping[str, Address], rounds: int, slow: float | None) -> None:
    """Print median and 95th percentile of each page, the median as times that of a bare view, and its most questions."""
    client = Client(app)
    taken: dict[str, list[float]] = {name: [] for name in pages}
    asked = dict.fromkeys(pages, 0)
    shown: dict[str, int] = {}
    rng = random.Random(1)
    for turn in range(rounds + 1):
        for name, address in pages.items():
            if sum(taken[name]) > 20_000:
                continue  # a page that takes seconds is asked less often
            url, headers = address(rng), {"X-Tenant": tenant(rng)}
            if slow is not None and turn:
                print(f"  {name}: {url}", flush=True)
            with statements(slow if turn else None) as seen:
                start = time.perf_counter()
                response = client.get(url, headers=headers)
                body = response.get_data()
                spent = (time.perf_counter() - start) * 1000
            assert response.status_code == 200, (name, url, response.status, body[-2000:])
            shown[name] = len(body)
            if turn:  # the first turn compiles templates and statements
                taken[name].append(spent)
                asked[name] = max(asked[name], len(seen))
    print(f"  load {os.getloadavg()[0]:.0f}")
    bare = sorted(taken[BARE])[len(taken[BARE]) // 2]
    for name, times in taken.items():
        times.sort()
        median = times[len(times) // 2]
        p95 = times[math.ceil(0.95 * len(times)) - 1]
        print(
            f"  {name:45} {median:8.1f} {p95:8.1f} ms {median / bare:6.0f}x {asked[name]:4} questions "
            f"{shown[name] // 1024:5} KiB"
        )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("url", nargs="?")
    parser.add_argument("--calls", type=int, nargs="+", default=[100_000, 1_000_000])
    parser.add_argument("--rounds", type=int, default=20)
    parser.add_argument("--only", default="", help="pages whose name has this in it")
    parser.add_argument("--loaded", action="store_true")
    parser.add_argument("--slow", type=float)
    options = parser.parse_args()
    tonight = datetime.now(UTC).replace(hour=0, minute=0, second=0, microsecond=0) + timedelta(days=1)
    with tempfile.TemporaryDirectory() as folder:
        for count in options.calls:
            url = (options.url or f"sqlite:///{folder}/{{calls}}.db").replace("{calls}", str(count))
            engine = sa.create_engine(url)
            print(f"{engine.dialect.name}, {count:,} calls", flush=True)
            if not options.loaded:
                began = time.perf_counter()
                bulk.load(engine, count, tonight)
                print(f"  loaded in {time.perf_counter() - began:,.0f} s", flush=True)
            with engine.connect() as connection:
                ids = list(connection.scalars(sa.select(Call.id).order_by(Call.occurred_at.desc()).limit(200)))
            engine.dispose()
            pages = {name: address for name, address in addresses(ids).items() if options.only in name or name == BARE}
            measure(app_on(url), pages, options.rounds, options.slow)


if __name__ == "__main__":
    main()
