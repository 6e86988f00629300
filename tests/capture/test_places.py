"""Where a call runs decides what it knows of its request, in every place that Python offers, and which app owns it."""

from __future__ import annotations

import asyncio
import contextvars
import gc
import threading
import weakref
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import gevent
import gevent.pool
import openai
import pytest
from flask import Flask, copy_current_request_context, g
from flask.globals import request_ctx
from flask_sqlalchemy import SQLAlchemy
from played_app import ledger_of
from werkzeug.middleware.dispatcher import DispatcherMiddleware
from werkzeug.test import Client

from flask_llm_cost import LlmCostTracker, carry_tags, tags, track
from flask_llm_cost.capture import attribution
from flask_llm_cost.ledger import Call
from flask_llm_cost.testing.provider import PlayedProvider

Ask = Callable[[], None]

QUESTION: Any = [{"role": "user", "content": "hello"}]

BLOCK = {"feature": "here"}
REQUEST = {"endpoint": "view", "user_id": "ada"}
BOTH = {**REQUEST, **BLOCK}


def tags_of(call: Call) -> dict[str, str]:
    return {tag.key: tag.value for tag in call.tags}


@pytest.fixture
def ask(openai_client: openai.OpenAI) -> Ask:
    def make_a_call() -> None:
        openai_client.chat.completions.create(model="gpt-4o", messages=QUESTION)

    return make_a_call


@pytest.fixture(autouse=True)
def alone(monkeypatch: pytest.MonkeyPatch) -> None:
    """No app of another test, which may still be in memory here."""
    gc.collect()
    monkeypatch.setattr(attribution, "_apps", weakref.WeakSet())
    monkeypatch.setattr(attribution, "_warned", set())


def in_thread(ask: Ask) -> None:
    thread = threading.Thread(target=ask)
    thread.start()
    thread.join()


def in_pool(ask: Ask) -> None:
    with ThreadPoolExecutor(1) as pool:
        pool.submit(ask).result()


def in_mapping_pool(ask: Ask) -> None:
    with ThreadPoolExecutor(1) as pool:
        list(pool.map(lambda _: ask(), range(1)))


def in_pool_with_the_whole_context(ask: Ask) -> None:
    with ThreadPoolExecutor(1) as pool:
        pool.submit(contextvars.copy_context().run, ask).result()


def in_copied_request_context(ask: Ask) -> None:
    in_thread(copy_current_request_context(ask))


def in_executor(ask: Ask) -> None:
    async def run() -> None:
        await asyncio.get_running_loop().run_in_executor(None, ask)

    asyncio.run(run())


def in_task(ask: Ask) -> None:
    async def run() -> None:
        async def work() -> None:
            ask()

        await asyncio.create_task(work())

    asyncio.run(run())


def in_to_thread(ask: Ask) -> None:
    async def run() -> None:
        await asyncio.to_thread(ask)

    asyncio.run(run())


def in_greenlet(ask: Ask) -> None:
    gevent.spawn(ask).get()


def in_green_pool(ask: Ask) -> None:
    gevent.pool.Pool(2).map(lambda _: ask(), range(1))


#: The place, what a call there knows, and what it knows with ``LLM_COST_PROPAGATE_TAGS``.
PLACES: Any = [
    pytest.param(lambda ask: ask(), BOTH, BOTH, id="here"),
    pytest.param(in_task, BOTH, BOTH, id="asyncio.create_task"),
    pytest.param(in_to_thread, BOTH, BOTH, id="asyncio.to_thread"),
    pytest.param(in_pool_with_the_whole_context, BOTH, BOTH, id="submit(copy_context().run)"),
    pytest.param(in_copied_request_context, REQUEST, REQUEST, id="copy_current_request_context"),
    pytest.param(in_thread, {}, {}, id="Thread"),
    pytest.param(in_pool, {}, BOTH, id="ThreadPoolExecutor.submit"),
    pytest.param(in_mapping_pool, {}, BOTH, id="ThreadPoolExecutor.map"),
    pytest.param(in_executor, {}, BOTH, id="run_in_executor"),
    pytest.param(in_greenlet, {}, {}, id="gevent.spawn"),
    pytest.param(in_green_pool, {}, {}, id="gevent.pool"),
]


@pytest.mark.parametrize("propagates", [True, pytest.param(False, marks=pytest.mark.slow)], ids=["propagated", "plain"])
@pytest.mark.parametrize(("place", "plain", "propagated"), PLACES)
def test_what_is_known_where_a_call_runs(
    make_app: Callable[..., Flask],
    place: Callable[[Ask], None],
    plain: dict[str, str],
    propagated: dict[str, str],
    propagates: bool,
) -> None:
    """Each place keeps or loses request and block as it does of itself; carried, both are there; later nothing stays."""
    app = make_app(propagate_tags=propagates)
    tracker_of(app).request_tagger(lambda: {"user_id": g.user})

    @app.route("/")
    def view() -> str:
        g.user = "ada"
        with tags(feature="here"):
            place(ask)
            place(carry_tags(ask))
            ask()
        return "ok"

    def ask() -> None:
        track("openai", model="gpt-4o", usage={"input": 1})

    app.test_client().get("/").close()
    with app.app_context():
        ask() if place is in_copied_request_context else place(ask)
    assert [tags_of(call) for call in ledger_of(app)] == [propagated if propagates else plain, BOTH, BOTH, {}]


def tracker_of(app: Flask) -> LlmCostTracker:
    tracker: LlmCostTracker = app.extensions["llm_cost"].tracker
    return tracker


def test_each_mounted_app_owns_its_calls(provider: PlayedProvider, ask: Ask, tmp_path: Any) -> None:
    """Behind a DispatcherMiddleware, with one tracker for all, each app has its own calls, from pools and bodies too."""
    costs = LlmCostTracker()
    apps = []
    for name in ("one", "two"):
        app = Flask(name, instance_path=str(tmp_path / name))
        (tmp_path / name).mkdir()
        app.config.update(
            SQLALCHEMY_DATABASE_URI=f"sqlite:///{tmp_path / name}/app.db",
            TESTING=True,
            LLM_COST_HOSTS=provider.hosts,
            LLM_COST_PROPAGATE_TAGS=True,
        )
        database = SQLAlchemy(app)
        costs.init_app(app)
        with app.app_context():
            database.create_all()

        @app.route("/")
        def view() -> Any:
            def body() -> Any:
                ask()
                yield "ok"

            ask()
            in_pool(ask)
            return body()

        apps.append(app)
    client = Client(DispatcherMiddleware(apps[0], {"/two": apps[1]}))  # type: ignore[arg-type]  # apps are WSGI callables
    for path in ("/", "/two/", "/two/"):
        client.get(path).close()
    assert [len(ledger_of(app)) for app in apps] == [3, 6]
    for app in apps:
        app.extensions["llm_cost"].ledger.close()
        with app.app_context():
            app.extensions["sqlalchemy"].engine.dispose()


def test_a_teardown_in_another_thread_leaves_the_request_as_it_was(app: Flask, ask: Ask) -> None:
    """copy_current_request_context runs the teardown functions a second time, early, elsewhere: the request goes on."""
    tracker_of(app).request_tagger(lambda: {"user_id": "ada"})
    torn = []
    app.teardown_request(lambda error: torn.append(threading.current_thread() is threading.main_thread()))

    @app.route("/")
    def view() -> str:
        in_copied_request_context(ask)
        in_copied_request_context(lambda: None)
        with tags(feature="here"):
            ask()
        return "ok"

    app.test_client().get("/").close()
    assert torn == [False, False, True]
    assert [tags_of(call) for call in ledger_of(app)] == [REQUEST, BOTH]
    assert attribution.request_here.get() is None


@pytest.mark.parametrize("elsewhere", [True, False], ids=["in a thread", "here"])
def test_a_copy_of_the_context_ends_without_the_request(app: Flask, ask: Ask, elsewhere: bool) -> None:
    """A copy of the request's context that ends before the view's first call takes none of its tags along."""
    tracker_of(app).request_tagger(lambda: {"user_id": "ada"})

    @app.route("/")
    def view() -> str:
        if elsewhere:
            in_copied_request_context(lambda: None)
        else:
            with request_ctx.copy():
                pass
        ask()
        return "ok"

    app.test_client().get("/").close()
    assert [tags_of(call) for call in ledger_of(app)] == [REQUEST]
    assert attribution.request_here.get() is None


def test_a_context_that_nobody_opened_may_be_torn_down(app: Flask, ask: Ask) -> None:
    """A context pushed by hand, where before_request never ran, has its endpoint, and is gone afterwards."""
    app.add_url_rule("/", "view", lambda: "ok")
    for _ in range(2):
        with app.test_request_context("/"):
            ask()
    with app.app_context():
        ask()
    assert [tags_of(call) for call in ledger_of(app)] == [{"endpoint": "view"}] * 2 + [{}]
