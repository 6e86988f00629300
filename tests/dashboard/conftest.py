from __future__ import annotations

import random
import threading
from collections.abc import Callable, Iterator
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from typing import Any
from uuid import uuid4

import pytest
import sqlalchemy as sa
from addresses import PAGES
from databases import SQLiteFolder
from flask import Flask
from ledger_rows import add_call
from mounted_app import BUDGETS, PREFIX, MountedApp
from playwright.sync_api import Browser, Page, sync_playwright
from werkzeug.serving import make_server

from flask_llm_cost import track
from flask_llm_cost.ledger.models import BudgetHold, BudgetPeriod

Make = Callable[..., MountedApp]
_OPTIONS = ["--no-sandbox", "--disable-gpu", "--disable-background-networking"]
_BUDGETS = [
    {"name": "everything", "limit": "500", "period": "month"},
    {"name": "per_tenant", "limit": "2", "period": "day", "per": "tenant_id", "action": "block"},
    {"name": "tokens", "limit": "90000000", "unit": "tokens", "period": "week"},
]
_LONG = "a_feature_with_a_name_that_is_much_longer_than_anybody_thought_it_would_ever_be"


@pytest.fixture
def make(sqlite_url: sa.URL) -> Iterator[Make]:
    """A maker of apps with the extension and a ledger, mounted as a test likes. They are taken down afterwards."""
    made: list[MountedApp] = []

    def build(*, tables: bool = True, url: sa.URL | str | None = None, **config: object) -> MountedApp:
        app = MountedApp(Flask(f"app{len(made)}"), url or sqlite_url, tables=tables, **config)
        made.append(app)
        return app

    yield build
    for app in made:
        app.close()


@pytest.fixture(scope="module")
def full(sqlite_server: SQLiteFolder) -> Iterator[MountedApp]:
    """A ledger with two weeks of calls, for tests that only ask."""
    yield from _shared(sqlite_server, calls=60)


@pytest.fixture(scope="module")
def empty(sqlite_server: SQLiteFolder) -> Iterator[MountedApp]:
    """A ledger without a call, for tests that only ask."""
    yield from _shared(sqlite_server, calls=0)


def _shared(server: SQLiteFolder, *, calls: int) -> Iterator[MountedApp]:
    url = server.create()
    app = MountedApp(Flask("shared"), url, tables=True, LLM_COST_BUDGETS=BUDGETS if calls else ()).mount()
    if calls:
        app.fill(calls).add("0.000000000007", tags={"feature": "tiny"})
        app.roll_up()
    yield app
    app.close()
    server.drop(url)


@pytest.fixture(scope="module")
def months(sqlite_server: SQLiteFolder) -> Iterator[MountedApp]:
    """A ledger with 238 days on which each of eight features with long names made a call, for tests that only ask."""
    url, dice = sqlite_server.create(), random.Random(3)
    app = MountedApp(Flask("months"), url, tables=True, LLM_COST_BUDGETS=_BUDGETS).mount()
    app.add_all(
        (
            f"{dice.lognormvariate(1, 1):.6f}",
            {
                "ago": timedelta(days=day, minutes=n),
                "tags": {
                    "feature": f"{n}_a_feature_with_a_name_as_long_as_teams_give_them",
                    "tenant_id": f"tenant-{dice.randrange(12)}-of-the-company",
                    "user_id": f"user-{dice.randrange(90)}@example.com",
                },
                "model": dice.choice(["gpt-4o-mini-2024-07-18", "claude-sonnet-4-6", "models/deepseek-v3-0324"]),
                "input_tokens": dice.randrange(100_000),
                "output_tokens": dice.randrange(10_000),
                "latency_ms": dice.randrange(9000),
            },
        )
        for day in range(238)
        for n in range(8)
    )
    app.roll_up()
    with app.app.app_context():
        for n in range(12):
            tags = {"feature": "chat", "tenant_id": f"tenant-{n}-of-the-company"}
            track("openai", model="gpt-4o", usage={"input": 400_000}, tags=tags)
        assert app.costs.flush(20)
    yield app
    app.close()
    sqlite_server.drop(url)


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path="/usr/bin/chromium", args=_OPTIONS)
        yield browser
        browser.close()


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[str, dict[str, str]]]:
    """An app being served, with two months of calls of every kind; its address, and its pages by name."""
    path = tmp_path_factory.mktemp("site") / "ledger.db"
    app = MountedApp(
        Flask("site"), f"sqlite:///{path}", tables=True, LLM_COST_TIMEZONE="Europe/Berlin", LLM_COST_BUDGETS=_BUDGETS
    )
    app.mount(guard=None)
    app.mount("/mine", guard=None, name="mine", scope=lambda: {"tenant_id": "t1"})
    app.mount("/new", guard=None, name="new", scope=lambda: {"tenant_id": "nobody"})
    dice = random.Random(1)
    now = datetime.now(UTC)
    with app.app.app_context():
        session = app.database.session
        for n in range(700):
            tags = {
                "feature": dice.choice(["chat", "ocr", _LONG, *"abcdefgh"]),
                "tenant_id": f"t{n % 12}",
                "user_id": f"u{n % 90}",
            }
            tags = {key: value for key, value in tags.items() if dice.random() > 0.05}
            cost = None if n % 17 == 0 else f"{dice.lognormvariate(-2, 1.5):.6f}"
            outcome = dice.choice(["ok"] * 9 + ["interrupted"])
            model = dice.choice(["gpt-4o", "claude-sonnet-4-6", "accounts/fireworks/models/" + "very-long-model-name-" * 4])
            call_id = add_call(
                session,
                now - timedelta(hours=n * 2),
                cost,
                tags=tags,
                model=model,
                outcome=outcome,
                items=[("input", 1000, "2.5", "0.0025"), ("output", 200, "10", "0.002")] if cost else (),
                first_token_ms=300,
                provider_response_id="chatcmpl-1234567890",
            )
        session.commit()
        for tenant in ("t1", "t2", _LONG):
            track("openai", model="gpt-4o", usage={"input": 900_000}, tags={"tenant_id": tenant, "feature": "chat"})
        assert app.costs.flush(20)
        used = session.scalars(sa.select(BudgetPeriod).where(BudgetPeriod.budget == "everything")).one()
        used.held, used.unresolved, used.blocked_calls = Decimal("31.25"), Decimal("12.75"), 3
        session.add_all(
            BudgetHold(
                call_id=uuid4(), period_id=used.id, amount=Decimal("31.25"), state="open", created_at=now,
                expires_at=now + timedelta(minutes=30),
            )
            for _ in range(3)
        )  # fmt: skip
        session.commit()
    server = make_server("127.0.0.1", 0, app.app, threaded=True)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    pages = {name: PREFIX + address for name, address in PAGES.items()} | {
        "overview in weeks": f"{PREFIX}/?from=2024-06-01&to={now:%Y-%m-%d}",
        "overview filtered": f"{PREFIX}/?range=30d&model=gpt-4o&tag.feature={_LONG}&untagged=team&outcome=ok",
        "scoped": "/mine/",
        "scoped quality": "/mine/data-quality",
        "calls filtered": f"{PREFIX}/calls?range=90d&tag.feature={_LONG}&limit=10",
        "call": f"{PREFIX}/calls/{call_id}",
        "pricing at length": f"{PREFIX}/pricing?search=gpt-4o",
        "first run": "/new/",
        "empty": f"{PREFIX}/?from=2020-01-01&to=2020-01-31",
        "not understood": f"{PREFIX}/?foo=1",
    }
    yield f"http://127.0.0.1:{server.port}", pages
    server.shutdown()
    thread.join()
    server.server_close()
    app.close()


@pytest.fixture
def open_page(browser: Browser, site: tuple[str, dict[str, str]]) -> Iterator[Callable[..., Page]]:
    contexts = []

    def open_page(name: str, **options: Any) -> Page:
        address, pages = site
        context = browser.new_context(**options)
        contexts.append(context)
        page = context.new_page()
        page.goto(address + pages[name])
        return page

    yield open_page
    for context in contexts:
        context.close()
