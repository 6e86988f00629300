"""Whose call it is, and what it was for."""

from __future__ import annotations

import asyncio
import gc
import logging
import threading
import time
import weakref
from collections.abc import AsyncIterator, Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from typing import Any

import click
import httpx
import openai
import pytest
from celery import Celery
from celery.contrib.testing.worker import start_worker
from flask import (
    Flask,
    Response,
    copy_current_request_context,
    g,
    has_app_context,
    request,
    send_file,
    session,
    stream_with_context,
)
from flask_login import LoginManager, UserMixin, login_user
from flask_sqlalchemy import SQLAlchemy
from played_app import ledger_of
from werkzeug.test import create_environ

from flask_llm_cost import LlmCostTracker, carry_tags, current_tags, tags, track
from flask_llm_cost.capture import attribution
from flask_llm_cost.doctor import examine
from flask_llm_cost.ledger import Call
from flask_llm_cost.testing.provider import PlayedProvider

Ledger = Callable[[], list[Call]]

QUESTION: Any = [{"role": "user", "content": "hello"}]


def tags_of(call: Call) -> dict[str, str]:
    return {tag.key: tag.value for tag in call.tags}


@pytest.fixture
def ask(openai_client: openai.OpenAI) -> Callable[[], None]:
    def make_a_call() -> None:
        openai_client.chat.completions.create(model="gpt-4o", messages=QUESTION)

    return make_a_call


def tracker_of(app: Flask) -> LlmCostTracker:
    tracker: LlmCostTracker = app.extensions["llm_cost"].tracker
    return tracker


def test_a_request_tags_its_calls(app: Flask, calls: Ledger, ask: Callable[[], None]) -> None:
    """Endpoint and the tagger's tags are on every call of a request; the tagger is asked once, at the first call."""
    asked = []

    @tracker_of(app).request_tagger
    def who() -> dict[str, Any]:
        asked.append(1)
        return {"user_id": g.user, "tenant_id": 7}

    @app.route("/twice")
    def twice() -> str:
        g.user = "ada"
        ask()
        with tags(feature="second", tenant_id=8):
            ask()
        return "ok"

    @app.route("/none")
    def none() -> str:
        return "ok"

    app.test_client().get("/none")
    assert asked == []
    app.test_client().get("/twice")
    assert asked == [1]
    first, second = calls()
    assert tags_of(first) == {"endpoint": "twice", "user_id": "ada", "tenant_id": "7"}
    assert tags_of(second) == {"endpoint": "twice", "user_id": "ada", "tenant_id": "8", "feature": "second"}


def test_every_source_of_tags_has_its_rank(make_app: Callable[..., Flask]) -> None:
    """track(tags=) wins over the inner block, that over the outer, that over the tagger, that over the defaults."""
    app = make_app(default_tags={"a": "default", "b": "default", "c": "default", "d": "default", "e": "default"})
    tracker_of(app).request_tagger(lambda: {"b": "tagger", "c": "tagger", "d": "tagger", "e": "tagger"})
    with (
        app.test_request_context(),
        tags(c="outer", d="outer", e="outer"),
        tags(d="inner", e="inner"),
    ):
        record = track("openai", model="gpt-4o", usage={"input": 1}, tags={"e": "track"})
    assert record.tags == {"a": "default", "b": "tagger", "c": "outer", "d": "inner", "e": "track"}


def test_of_too_many_tags_the_weakest_go(make_app: Callable[..., Flask]) -> None:
    """A call with more than 32 tags keeps those that rank first: of track(), of the inner block, then of those around it."""
    app = make_app(default_tags={"weak": "default", "both": "default"})
    outer: dict[str, Any] = {f"outer{number}": number for number in range(30)}
    inner: dict[str, Any] = {f"inner{number}": number for number in range(25)}
    strong = {"job": "x", "both": "track", "outer0": "track"}
    with app.app_context(), tags(twice="outer", **outer), tags(twice="inner", **inner):
        record = track("openai", model="gpt-4o", usage={"input": 1}, tags=strong)
    assert len(record.tags) == 32
    assert {"twice": "inner", **{key: str(value) for key, value in inner.items()}, **strong}.items() <= record.tags.items()
    assert "weak" not in record.tags


def test_tags_are_taken_when_the_call_starts(
    app: Flask, calls: Ledger, provider: PlayedProvider, openai_client: openai.OpenAI
) -> None:
    """A stream that outlives its block keeps the tags with which it began."""
    with app.app_context():
        with tags(feature="began"):
            stream = openai_client.chat.completions.create(model="gpt-4o", messages=QUESTION, stream=True)
        with tags(feature="ended"):
            list(stream)
    assert tags_of(calls()[0]) == {"feature": "began"}


@pytest.mark.parametrize("keep", [True, False], ids=["stream_with_context", "plain generator"])
def test_a_streamed_body_is_still_the_request(app: Flask, calls: Ledger, ask: Callable[[], None], keep: bool) -> None:
    """Calls made while a streamed body is sent carry the request's tags, with its context or without, and then no more."""
    tracker_of(app).request_tagger(lambda: {"user_id": g.user})

    @app.route("/stream")
    def stream() -> Response:
        g.user = "ada"

        def body() -> Iterator[str]:
            yield "first"
            ask()
            yield "last"

        return Response(stream_with_context(body()) if keep else body())

    response = app.test_client().get("/stream")
    assert response.text == "firstlast"
    response.close()
    with app.app_context():
        ask()
    during, after = calls()
    assert tags_of(during) == {"endpoint": "stream", "user_id": "ada"}
    assert tags_of(after) == {}


@pytest.mark.parametrize("leaves_open", [False, True], ids=["read", "a stream left open"])
def test_a_request_inside_a_view(app: Flask, calls: Ledger, ask: Callable[[], None], leaves_open: bool) -> None:
    """A view that asks its own app: its calls after that, and its body's, are its own request's, and later ones nobody's."""
    kept = []

    @app.route("/inner")
    def inner() -> Response:
        ask()
        return Response(iter(["inner"])) if leaves_open else Response("inner")

    @app.route("/outer")
    def outer() -> Response:
        kept.append(app.test_client().get("/inner"))
        ask()

        def body() -> Iterator[str]:
            ask()
            yield "outer"

        return Response(body())

    with app.test_client().get("/outer") as response:
        assert response.text == "outer"
    kept.pop().close()
    with app.app_context():
        ask()
    assert [tags_of(call) for call in calls()] == [{"endpoint": at} for at in ("inner", "outer", "outer")] + [{}]


def test_a_request_that_fails_leaves_nothing_behind(app: Flask, calls: Ledger, ask: Callable[[], None]) -> None:
    """The tags of a request that raised are not on the next call of the same thread."""

    @app.route("/fail")
    def fail() -> str:
        ask()
        raise RuntimeError("the view's own")

    with pytest.raises(RuntimeError):
        app.test_client().get("/fail")
    with app.app_context():
        ask()
    first, second = calls()
    assert tags_of(first) == {"endpoint": "fail"}
    assert tags_of(second) == {}


def test_flask_logins_user_is_a_tag_by_default(app: Flask, calls: Ledger, ask: Callable[[], None]) -> None:
    """Who is signed in is read from the session: the user loader does not run."""
    loaded = []

    class User(UserMixin):
        id = "42"

    app.secret_key = "test"
    manager = LoginManager(app)

    @manager.user_loader
    def load(user_id: str) -> User:
        loaded.append(user_id)
        return User()

    @app.route("/in")
    def sign_in() -> str:
        login_user(User())
        return "in"

    @app.route("/ask")
    def ask_view() -> str:
        ask()
        return "asked"

    client = app.test_client()
    client.get("/in")
    client.get("/ask")
    assert loaded == []
    assert tags_of(calls()[0]) == {"endpoint": "ask_view", "user_id": "42"}


def test_reading_the_session_does_not_change_it(app: Flask, ask: Callable[[], None]) -> None:
    """A call in a request leaves the session neither accessed nor modified."""
    app.secret_key = "test"
    with app.test_request_context():
        ask()
        context = attribution.request_ctx.__dict__
        stored = context["_session"] if "_session" in context else context["session"]  # as Flask before 3.1.3 has it
        assert not stored.accessed
        assert not stored.modified
        assert session is not None


def test_a_tagger_that_raises_costs_its_tags_only(
    app: Flask, calls: Ledger, ask: Callable[[], None], caplog: pytest.LogCaptureFixture
) -> None:
    """A raising tagger means no tags from it and one warning: the class and where, not the text; the call is untouched."""
    attribution._warned.clear()

    @tracker_of(app).request_tagger
    def who() -> dict[str, Any]:
        raise LookupError("a secret")

    for _ in range(2):
        with app.test_request_context("/"):
            ask()
    assert len(calls()) == 2
    assert caplog.text.count("LookupError") == 1
    line = who.__code__.co_firstlineno + 2
    assert f"the request tagger raised LookupError (test_attribution.py, line {line}): calls go" in caplog.text
    assert "a secret" not in caplog.text


def test_a_tagger_that_calls_a_model_is_not_asked_again(app: Flask, calls: Ledger, ask: Callable[[], None]) -> None:
    """A tagger may itself call models, several times: it is asked once, and the request's call has its tags."""
    asked = []

    @tracker_of(app).request_tagger
    def who() -> dict[str, Any]:
        asked.append(1)
        if len(asked) == 1:
            ask()
            ask()
        return {"user_id": 1}

    with app.test_request_context("/"):
        ask()
    assert asked == [1]
    assert [tags_of(call) for call in calls()].count({"user_id": "1"}) == 1
    assert len(calls()) == 3


@pytest.mark.parametrize("carry", [carry_tags, lambda work: work], ids=["carried", "not carried"])
def test_tags_go_into_a_thread_pool_when_carried(
    app: Flask, calls: Ledger, ask: Callable[[], None], carry: Callable[[Any], Any]
) -> None:
    """carry_tags takes block and request into a pool; without it the call is the only app's, untagged."""
    tracker_of(app).request_tagger(lambda: {"user_id": "ada"})
    with ThreadPoolExecutor(2) as pool:
        with app.test_request_context("/"), tags(feature="pooled"):
            attribution._open_request()
            list(pool.map(carry(lambda _: ask()), range(3)))
            attribution._close_request(None)
        pool.submit(ask).result()
    *pooled, last = calls()
    expected = {"feature": "pooled", "user_id": "ada"} if carry is carry_tags else {}
    assert [tags_of(call) for call in pooled] == [expected] * 3
    assert tags_of(last) == {}


def test_functions_of_every_kind_are_carried(app: Flask) -> None:
    """carry_tags takes tags and request into coroutines and generators too, at each of their steps, and into no consumer.

    A block that a generator has opened is open at its next step, and nowhere else.
    """
    state = tracker_of(app)
    state.request_tagger(lambda: {"user_id": "ada"})

    def seen() -> dict[str, str]:
        return attribution.collect_tags(app.extensions["llm_cost"])

    async def coroutine() -> list[dict[str, str]]:
        await asyncio.sleep(0)
        return [seen()]

    def generator() -> Iterator[dict[str, str]]:
        yield seen()
        with tags(step="inner"):
            yield seen()
            yield seen()
        yield seen()

    async def async_generator() -> AsyncIterator[dict[str, str]]:
        for found in generator():
            await asyncio.sleep(0)
            yield found

    with app.test_request_context("/"), tags(feature="carried"):
        attribution._open_request()
        work, steps, async_steps = carry_tags(coroutine), carry_tags(generator), carry_tags(async_generator)
        attribution._close_request(None)

    def consumed() -> list[dict[str, str]]:
        found = []
        for step in steps():
            assert seen() == {}
            found.append(step)
        return found

    async def awaited() -> list[dict[str, str]]:
        found = []
        async for step in async_steps():
            assert seen() == {}
            found.append(step)
        return found

    expected = {"feature": "carried", "user_id": "ada"}
    inner = expected | {"step": "inner"}
    with ThreadPoolExecutor(2) as pool:
        assert pool.submit(lambda: asyncio.run(work())).result() == [expected]
        assert pool.submit(consumed).result() == [expected, inner, inner, expected]
        assert pool.submit(lambda: asyncio.run(awaited())).result() == [expected, inner, inner, expected]


def test_a_copied_request_context_is_the_same_request(app: Flask, calls: Ledger, ask: Callable[[], None]) -> None:
    """In a thread with copy_current_request_context the endpoint and the tagger's tags are there, once per context."""
    tracker_of(app).request_tagger(lambda: {"user_id": "ada"})

    @app.route("/copied")
    def copied() -> str:
        thread = threading.Thread(target=copy_current_request_context(ask))
        thread.start()
        thread.join()
        return "ok"

    app.test_client().get("/copied")
    assert tags_of(calls()[0]) == {"endpoint": "copied", "user_id": "ada"}


def test_async_views_and_tasks_keep_their_tags(app: Flask, calls: Ledger, provider: PlayedProvider) -> None:
    """Concurrent tasks each keep the tags of their own block."""

    async def one(client: openai.AsyncOpenAI, number: int) -> None:
        with tags(task=number):
            await asyncio.sleep(0.01 * (3 - number))
            await client.chat.completions.create(model="gpt-4o", messages=QUESTION)
            assert current_tags() == {"task": number}

    async def every() -> None:
        async with openai.AsyncOpenAI(base_url=provider.openai_url, api_key="test") as client:
            await asyncio.gather(*(one(client, number) for number in range(3)))

    with app.app_context():
        asyncio.run(every())
    assert sorted(tags_of(call)["task"] for call in calls()) == ["0", "1", "2"]


def test_a_command_is_a_tag(app: Flask, calls: Ledger, ask: Callable[[], None]) -> None:
    """Calls of a CLI command carry its name."""

    @app.cli.command("digest")
    def digest() -> None:
        ask()
        click.echo("done")

    result = app.test_cli_runner().invoke(args=["digest"])
    assert result.output == "done\n"
    assert tags_of(calls()[0]) == {"command": "digest"}


def test_the_current_app_owns_the_call(make_app: Callable[..., Flask], ask: Callable[[], None]) -> None:
    """With several apps the current one gets the call; an app without the extension gives it to nobody."""
    one, two = make_app(), make_app()
    with one.app_context():
        ask()
    with two.app_context():
        ask()
        ask()
    with Flask("without").app_context():
        ask()
    assert (len(ledger_of(one)), len(ledger_of(two))) == (1, 2)


@pytest.fixture
def alone(monkeypatch: pytest.MonkeyPatch) -> None:
    """No app of another test, which may still be in memory here."""
    monkeypatch.setattr(attribution, "_apps", weakref.WeakSet())
    monkeypatch.setattr(attribution, "_warned", set())


@pytest.mark.usefixtures("alone")
def test_outside_any_context_the_only_app_owns_the_call(
    app: Flask, calls: Ledger, ask: Callable[[], None], make_app: Callable[..., Flask], caplog: pytest.LogCaptureFixture
) -> None:
    """One app: its call. Two apps: nobody's, said once."""
    ask()
    assert len(calls()) == 1
    make_app()
    with caplog.at_level(logging.WARNING):
        ask()
        ask()
    assert len(calls()) == 1
    assert caplog.text.count("passed unrecorded") == 1


@pytest.mark.usefixtures("alone")
def test_what_passes_unrecorded_is_counted(
    make_app: Callable[..., Flask], ask: Callable[[], None], provider: PlayedProvider, caplog: pytest.LogCaptureFixture
) -> None:
    """A call that may be any of two apps' is counted at both, and doctor says so; of what is no call nothing is said."""
    apps = make_app(), make_app()
    with httpx.Client() as client:
        client.get(f"{provider.openai_url}/models")
        provider.reply_with("/inbox/messages", body={"messages": []})
        client.post(f"{provider.url.replace('127.0.0.1', 'localhost')}/inbox/messages", json={"text": "hello"})
    assert "passed unrecorded" not in caplog.text
    ask()
    ask()
    for app in apps:
        with app.app_context():
            ask()
        assert len(ledger_of(app)) == 1
        assert app.extensions["llm_cost"].ledger.counters()["unattributed"][0] == 2
        with app.app_context():
            told = [check for check in examine(app.extensions["llm_cost"]) if check.name == "unattributed so far"]
        assert [(check.status, check.message.startswith("2 calls outside any app context")) for check in told] == [
            ("warning", True)
        ]


def test_apps_are_held_weakly(tmp_path: Any) -> None:
    """A hundred apps of a test suite cost no thread, no file and no memory once they are gone."""
    gc.collect()
    before, threads = len(attribution._apps), set(threading.enumerate())
    for number in range(100):
        app = Flask(f"made{number}", instance_path=str(tmp_path))
        app.config["SQLALCHEMY_DATABASE_URI"] = "sqlite://"
        SQLAlchemy(app)
        LlmCostTracker(app)
    del app
    gc.collect()
    assert len(attribution._apps) <= before
    assert set(threading.enumerate()) <= threads
    assert list(tmp_path.iterdir()) == []


def test_the_switch_turns_everything_off(
    make_app: Callable[..., Flask], ask: Callable[[], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    """LLM_COST_ENABLED=0 in the environment wins over the app's configuration: nothing is recorded."""
    monkeypatch.setenv("LLM_COST_ENABLED", "0")
    app = make_app(enabled=True)
    with app.app_context():
        ask()
    assert ledger_of(app) == []


def test_pools_carry_tags_for_the_apps_that_ask(
    make_app: Callable[..., Flask], ask: Callable[[], None], provider: PlayedProvider
) -> None:
    """With LLM_COST_PROPAGATE_TAGS a pool carries the tags of whoever submits, and keeps none of them for later work."""
    app = make_app(propagate_tags=True)
    with ThreadPoolExecutor(1) as pool:
        with app.app_context(), tags(feature="first"):
            pool.submit(ask).result()
            list(pool.map(lambda _: ask(), range(1)))
        with app.app_context(), tags(feature="second"):
            pool.submit(ask).result()
        pool.submit(ask).result()
    assert [tags_of(call).get("feature") for call in ledger_of(app)] == ["first", "first", "second", None]


@contextmanager
def working(celery: Celery, level: str) -> Iterator[None]:
    """A worker in this process. It takes the root logger over, which is put back for the tests that come after."""
    root = logging.getLogger()
    before = root.level, root.handlers[:]
    try:
        with start_worker(celery, perform_ping_check=False, loglevel=level):
            yield
    finally:
        root.setLevel(before[0])
        root.handlers[:] = before[1]


@pytest.mark.slow
def test_celery_tasks_carry_the_tags_of_the_request(
    app: Flask, calls: Ledger, ask: Callable[[], None], tmp_path: Any
) -> None:
    """A task has the tags of the request that enqueued it and its own name, and its records are written when it ends."""
    celery = Celery("desk", broker="memory://", backend="cache+memory://")
    tracker_of(app).init_celery(celery)
    tracker_of(app).request_tagger(lambda: {"tenant_id": 7})

    @celery.task(name="desk.summarize")
    def summarize() -> None:
        with app.app_context():
            ask()

    @app.route("/enqueue")
    def enqueue() -> str:
        with tags(feature="summary"):
            summarize.delay().forget()
        return "queued"

    # Celery sets the level of the root logger, for good.
    with working(celery, "WARNING"):
        app.test_client().get("/enqueue")
        for _ in range(100):
            if len(calls()) == 1:
                break
            time.sleep(0.05)
    (call,) = calls()
    expected = {"endpoint": "enqueue", "tenant_id": "7", "feature": "summary", "job": "desk.summarize"}
    assert tags_of(call) == expected
    assert current_tags() == {}


@pytest.mark.slow
def test_a_celery_task_leaves_nothing_to_the_next(app: Flask, calls: Ledger, ask: Callable[[], None]) -> None:
    """In one worker each task has the tags of who enqueued it, a request, a task or nobody, also after one raised."""
    celery = Celery("desk", broker="memory://", backend="cache+memory://")
    tracker_of(app).init_celery(celery)

    @celery.task(name="desk.ask")
    def one() -> None:
        with app.app_context():
            ask()

    @celery.task(name="desk.raise")
    def raising() -> None:
        one.run()
        with app.app_context(), tags(step="inside"):
            one.delay().forget()
        raise LookupError

    with working(celery, "CRITICAL"):
        with app.app_context(), tags(feature="summary", password="hunter2"):
            raising.delay().forget()
        for number in range(2):
            with app.app_context():
                (one if number else raising).delay().forget()
        for _ in range(200):
            if len(calls()) == 5:
                break
            time.sleep(0.05)
    feature = {"feature": "summary", "password": "[redacted]"}
    wanted: list[dict[str, str]] = [
        {**feature, "job": "desk.raise"},
        {**feature, "step": "inside", "job": "desk.ask"},
        {"job": "desk.raise"},
        {"step": "inside", "job": "desk.ask"},
        {"job": "desk.ask"},
    ]
    assert sorted(map(sorted, map(dict.items, map(tags_of, calls())))) == sorted(sorted(one.items()) for one in wanted)
    assert current_tags() == {}


def test_an_async_view_is_its_request(app: Flask, calls: Ledger, provider: PlayedProvider) -> None:
    """A call awaited in an async view carries the request's and the block's tags."""
    tracker_of(app).request_tagger(lambda: {"user_id": "ada"})

    @app.route("/async")
    async def view() -> str:
        with tags(feature="async"):
            async with openai.AsyncOpenAI(base_url=provider.openai_url, api_key="test") as client:
                await client.chat.completions.create(model="gpt-4o", messages=QUESTION)
        return "ok"

    assert app.test_client().get("/async").text == "ok"
    assert tags_of(calls()[0]) == {"endpoint": "view", "user_id": "ada", "feature": "async"}


def hit(app: Flask, path: str) -> None:
    """A request as a server makes it: the body is read and closed."""
    body = app.wsgi_app(create_environ(path), lambda status, headers, info=None: lambda data: None)
    list(body)
    body.close()


def test_files_and_replaced_responses_leave_no_request_behind(
    app: Flask, calls: Ledger, ask: Callable[[], None], tmp_path: Any
) -> None:
    """After a file is sent, or an after_request has replaced or broken the response, the next work is nobody's request."""

    @app.route("/file")
    def file() -> Any:
        (tmp_path / "a.txt").write_text("hi")
        return send_file(tmp_path / "a.txt")

    @app.route("/stream")
    def stream() -> Response:
        return Response(iter(["a", "b"]))

    @app.after_request
    def replace(response: Response) -> Response:
        return response if request.path == "/file" else Response("replaced")

    for path in ("/file", "/stream"):
        hit(app, path)
        assert attribution.request_here.get() is None
    with app.app_context():
        ask()
    assert tags_of(calls()[0]) == {}


def test_a_request_is_gone_when_it_is_over(app: Flask, ask: Callable[[], None]) -> None:
    """What a request had is freed at its end, without the garbage collector, whether it made a call or not."""
    contexts = []

    @app.route("/")
    def view() -> str:
        contexts.append(weakref.ref(attribution.request_ctx._get_current_object()))
        return "ok"

    @app.route("/ask")
    def asking() -> str:
        ask()
        return view()

    gc.collect()
    gc.disable()
    try:
        hit(app, "/")
        hit(app, "/ask")
        alive = [context for context in contexts if context() is not None]
    finally:
        gc.enable()
    assert (len(contexts), alive) == (2, [])


def test_a_fan_out_asks_the_tagger_once_for_all(app: Flask, calls: Ledger, ask: Callable[[], None]) -> None:
    """Workers that start while the tagger is still thinking get its answer; they get no database session of the request."""
    asked = []

    @tracker_of(app).request_tagger
    def who() -> dict[str, Any]:
        asked.append(1)
        time.sleep(0.05)
        return {"tenant_id": 7}

    @app.route("/fan")
    def fan() -> str:
        def work(_: int) -> bool:
            ask()
            return has_app_context()

        with ThreadPoolExecutor(4) as pool:
            assert list(pool.map(carry_tags(work), range(4))) == [False] * 4
        return "ok"

    app.test_client().get("/fan").close()
    assert asked == [1]
    assert [tags_of(call) for call in calls()] == [{"endpoint": "fan", "tenant_id": "7"}] * 4


def test_a_second_call_of_a_carried_job_is_the_same_request(make_app: Callable[..., Flask], ask: Callable[[], None]) -> None:
    """All calls of a carried job have the request's tags, with several apps in the process too."""
    app = make_app(propagate_tags=True)
    make_app()
    tracker_of(app).request_tagger(lambda: {"tenant_id": 7})

    @app.route("/job")
    def job() -> str:
        def work() -> None:
            ask()
            ask()

        with ThreadPoolExecutor(1) as pool:
            pool.submit(work).result()
        return "ok"

    app.test_client().get("/job").close()
    assert [tags_of(call) for call in ledger_of(app)] == [{"endpoint": "job", "tenant_id": "7"}] * 2


def test_an_expired_user_is_not_read_from_the_database(app: Flask, calls: Ledger, ask: Callable[[], None]) -> None:
    """Taking the user's id opens no transaction of the app's: a committed user is expired, and would read itself again."""
    database = app.extensions["sqlalchemy"]

    class Person(UserMixin, database.Model):  # type: ignore[misc, name-defined]  # a model of the test's own
        id = database.Column(database.Integer, primary_key=True)

    @app.route("/token")
    def token() -> str:
        person = Person(id=42)
        database.session.add(person)
        database.session.commit()
        g._login_user = person
        ask()
        return str(database.session().in_transaction())

    with app.app_context():
        database.create_all()
    assert app.test_client().get("/token").text == "False"
    assert tags_of(calls()[0]) == {"endpoint": "token", "user_id": "42"}
