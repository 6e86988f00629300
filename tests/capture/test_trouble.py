"""What goes wrong, on either side: the app's call behaves as if nobody watched it."""

from __future__ import annotations

import json
import logging
import socket
import subprocess
import sys
from collections.abc import Callable
from decimal import Decimal
from types import ModuleType
from typing import Any

import httpx
import httpx2
import openai
import pytest
from flask import Flask
from played_app import ledger_of

from flask_llm_cost import LlmCostTracker, UnknownPriceError
from flask_llm_cost.capture import patching
from flask_llm_cost.errors import IntegrationError, LedgerError
from flask_llm_cost.ledger import Call
from flask_llm_cost.testing.provider import PlayedProvider

Ledger = Callable[[], list[Call]]

QUESTION: Any = [{"role": "user", "content": "hello"}]
GOOD = {"prompt_tokens": 7, "completion_tokens": 5, "total_tokens": 12}


def ask(client: openai.OpenAI, model: str = "gpt-4o") -> Any:
    return client.chat.completions.create(model=model, messages=QUESTION)


DEEP: Any = []
for _ in range(900):
    DEEP = [DEEP]

HOSTILE: list[Any] = [
    {**GOOD, "prompt_tokens": -1},
    {**GOOD, "prompt_tokens": 1e30},
    {**GOOD, "prompt_tokens": 10**30},
    {**GOOD, "completion_tokens": "5"},
    {**GOOD, "completion_tokens": [5]},
    {**GOOD, "completion_tokens": {"count": 5}},
    {**GOOD, "completion_tokens": 5.5},
    {**GOOD, "completion_tokens": True},
    {**GOOD, "completion_tokens": float("nan")},
    {**GOOD, "completion_tokens": float("inf")},
    {**GOOD, "prompt_tokens_details": [1, 2]},
    {**GOOD, "prompt_tokens_details": {"cached_tokens": -3}},
    [GOOD],
    "usage",
    7,
    {"prompt_tokens": DEEP},
    None,
    {},
]


@pytest.mark.parametrize("usage", HOSTILE, ids=range(len(HOSTILE)))
def test_a_usage_block_that_makes_no_sense_is_unknown(
    app: Flask,
    calls: Ledger,
    provider: PlayedProvider,
    caplog: pytest.LogCaptureFixture,
    usage: Any,
) -> None:
    """One row whose usage and cost are unknown, a log line without what was sent, and the reply untouched."""
    body = json.dumps({"id": "x", "object": "chat.completion", "model": "gpt-4o", "choices": [], "usage": usage})
    provider.reply_with("chat/completions", body=body)
    with app.app_context(), httpx2.Client() as client:
        reply = client.post(f"{provider.openai_url}/chat/completions", json={"model": "gpt-4o", "messages": QUESTION})
    assert reply.text == body
    (call,) = calls()
    assert (call.usage_source, call.total_cost, call.input_tokens, call.cost_status) == ("unknown", None, None, "unpriced")
    assert call.outcome == "ok"
    assert any(record.levelno == logging.WARNING for record in caplog.records)
    assert "1e+30" not in caplog.text


@pytest.mark.parametrize("body", ["", "no JSON", "[]", "{", "null", "<html>", '{"id": 1}'])
def test_a_reply_that_is_no_reply_is_one_row(app: Flask, calls: Ledger, provider: PlayedProvider, body: str) -> None:
    """A known host that answers 200 with anything else: one row, usage unknown."""
    provider.reply_with("chat/completions", body=body)
    with app.app_context(), httpx.Client() as client:
        reply = client.post(f"{provider.openai_url}/chat/completions", json={"model": "gpt-4o", "messages": QUESTION})
    assert reply.text == body
    (call,) = calls()
    assert (call.usage_source, call.total_cost, call.requested_model) == ("unknown", None, "gpt-4o")


def test_an_unknown_host_counts_by_the_shape_of_its_reply(make_app: Callable[..., Flask], provider: PlayedProvider) -> None:
    """On a host that nobody named, a reply of the right shape is a call, unpriced under the host's name; others are not."""
    app = make_app(hosts={})
    with app.app_context(), httpx.Client() as client:
        provider.reply_with("chat/completions", body={"model": "m", "choices": [], "usage": GOOD})
        provider.reply_with("messages", body={"messages": ["hello"]})
        client.post(f"{provider.url}/v1/chat/completions", json={"model": "m"})
        client.post(f"{provider.url}/inbox/messages", json={"text": "hello"})
        client.get(f"{provider.url}/inbox/messages")
    (call,) = ledger_of(app)
    assert (call.provider, call.input_tokens, call.total_cost) == (provider.host, 7, None)


def test_errors_of_the_provider_are_not_billed(
    app: Flask, calls: Ledger, provider: PlayedProvider, openai_client: openai.OpenAI
) -> None:
    """A 4xx leaves no row, and is raised as the SDK raises it."""
    provider.reply_with("chat/completions", status=400)
    with app.app_context(), pytest.raises(openai.BadRequestError):
        ask(openai_client)
    assert calls() == []


@pytest.mark.parametrize(
    "body",
    [
        {"error": {"message": "upstream failed", "code": 502}, "user_id": "u"},
        {"type": "error", "error": {"type": "overloaded_error", "message": "no"}},
        {"id": "gen-1", "model": "gpt-4o", "choices": [], "error": "no"},
    ],
)
@pytest.mark.parametrize("streamed", [False, True])
def test_an_error_that_comes_with_200(
    app: Flask,
    calls: Ledger,
    provider: PlayedProvider,
    caplog: pytest.LogCaptureFixture,
    body: dict[str, Any],
    streamed: bool,
) -> None:
    """Some gateways answer 200 and say in the body what went wrong: the row says so too, at a cost that nobody knows."""
    provider.reply_with("chat/completions", body=body)
    url, question = f"{provider.openai_url}/chat/completions", {"model": "gpt-4o"}
    with app.app_context(), httpx.Client() as client:
        if streamed:
            with client.stream("POST", url, json=question) as response:
                response.read()
        else:
            client.post(url, json=question)
    (call,) = calls()
    assert (call.outcome, call.http_status, call.usage_source, call.total_cost) == ("error", 200, "unknown", None)
    assert "had no usage" not in caplog.text


def test_a_retried_call_says_which_attempt_was_billed(
    app: Flask, calls: Ledger, provider: PlayedProvider, openai_client: openai.OpenAI
) -> None:
    """500, 500, 200: one row, attempt 3."""
    provider.reply_with("chat/completions", status=500, headers={"retry-after-ms": "1"}, times=2)
    with app.app_context():
        ask(openai_client)
    (call,) = calls()
    assert (call.attempt, call.outcome) == (3, "ok")


def test_a_timeout_may_have_been_billed(
    app: Flask, calls: Ledger, provider: PlayedProvider, openai_client: openai.OpenAI
) -> None:
    """A request that left and was not answered in time is a row whose usage is unknown, for each attempt."""
    provider.reply_with("chat/completions", delay=1.0, times=2)
    impatient = openai_client.with_options(timeout=0.1, max_retries=1)
    with app.app_context(), pytest.raises(openai.APITimeoutError):
        ask(impatient)
    found = calls()
    assert [(call.attempt, call.outcome, call.error_class, call.total_cost) for call in found] == [
        (1, "error", "ReadTimeout", None),
        (2, "error", "ReadTimeout", None),
    ]


def test_a_request_that_never_left_is_not_a_call(app: Flask, calls: Ledger) -> None:
    """A refused connection costs nothing and leaves no row."""
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        url = f"http://127.0.0.1:{unused.getsockname()[1]}/v1"
        client = openai.OpenAI(base_url=url, api_key="x", max_retries=0)
        with app.app_context(), client, pytest.raises(openai.APIConnectionError):
            ask(client)
    assert calls() == []


STEPS = [
    "flask_llm_cost.capture.exchange.owner",
    "flask_llm_cost.capture.exchange.wire.route",
    "flask_llm_cost.capture.observation.collect_tags",
    "flask_llm_cost.capture.observation.new_call_id",
    "flask_llm_cost.capture.observation.requested_model",
    "flask_llm_cost.capture.observation.ask_for_usage",
    "flask_llm_cost.capture.observation.wire.scanner",
    "flask_llm_cost.capture.withholding.UsageEventFilter",
    "flask_llm_cost.capture.observation.wire.read_body",
    "flask_llm_cost.capture.observation.wire.read_stream",
    "flask_llm_cost.capture.observation.CallRecord",
    "flask_llm_cost.capture.httpx.Request",
    "flask_llm_cost.capture.httpx._content",
    "flask_llm_cost.capture.exchange.Observation",
    "flask_llm_cost.recorder.Recorder.record",
    "flask_llm_cost.recorder.Recorder.started",
    "flask_llm_cost.ledger.store.Ledger.append",
]


@pytest.mark.parametrize("step", STEPS)
@pytest.mark.parametrize("error", [RuntimeError, MemoryError, LedgerError])
def test_whatever_breaks_in_us_the_call_goes_on(
    app: Flask,
    provider: PlayedProvider,
    openai_client: openai.OpenAI,
    monkeypatch: pytest.MonkeyPatch,
    step: str,
    error: type[Exception],
) -> None:
    """Each step of ours raises in turn: the app gets its answer and its chunks, and the provider one request each."""

    def broken(*args: Any, **kwargs: Any) -> Any:
        raise error("a fault of ours")

    monkeypatch.setattr(step, broken)
    with app.app_context():
        assert ask(openai_client).choices
        assert list(openai_client.chat.completions.create(model="gpt-4o", messages=QUESTION, stream=True))
    assert len(provider.requests) == 2


def test_an_unknown_price_is_raised_where_the_app_sees_it(
    make_app: Callable[..., Flask], provider: PlayedProvider, openai_client: openai.OpenAI
) -> None:
    """With LLM_COST_UNKNOWN_PRICE="raise" the app gets that very error, after one request, and the call is recorded."""
    app = make_app(unknown_price="raise")
    with app.app_context():
        with pytest.raises(UnknownPriceError) as raised:
            ask(openai_client, "inhouse-7b")
        assert (raised.value.provider, raised.value.model) == ("openai", "inhouse-7b")
        assert ask(openai_client, "gpt-4o").choices
    assert len(provider.requests) == 2
    assert [call.cost_status for call in ledger_of(app)] == ["unpriced", "priced"]


def test_an_inline_write_that_fails_is_raised_on_request_only(
    make_app: Callable[..., Flask], provider: PlayedProvider, openai_client: openai.OpenAI
) -> None:
    """Inline, with LLM_COST_WRITE_ERRORS="raise", a missing table reaches the app; with "warn" it does not."""
    for errors, expected in (("raise", LedgerError), ("warn", None)):
        app = make_app(write_mode="inline", write_errors=errors)
        with app.app_context():
            app.extensions["sqlalchemy"].drop_all()
            if expected is None:
                assert ask(openai_client).choices
            else:
                with pytest.raises(expected):
                    ask(openai_client)


def test_a_price_of_the_apps_own(make_app: Callable[..., Flask], openai_client: openai.OpenAI) -> None:
    """LLM_COST_PRICE_OVERRIDES prices what the book does not know."""
    app = make_app(price_overrides={"openai/inhouse-7b": {"input": "0.30", "output": "1.20"}})
    with app.app_context():
        ask(openai_client, "inhouse-7b")
    (call,) = ledger_of(app)
    assert call.input_tokens is not None
    assert call.output_tokens is not None
    assert call.total_cost == (call.input_tokens * Decimal("0.30") + call.output_tokens * Decimal("1.20")) / 1_000_000


# Patching.


def test_importing_the_package_imports_no_client() -> None:
    """``import flask_llm_cost``, and setting it up, imports no SDK and no HTTP client."""
    program = """
import sys
from flask import Flask
from flask_sqlalchemy import SQLAlchemy
from flask_llm_cost import LlmCostTracker
app = Flask("t"); app.config["SQLALCHEMY_DATABASE_URI"] = "sqlite://"
SQLAlchemy(app); LlmCostTracker(app)
clients = {"httpx", "httpx2", "openai", "anthropic", "requests", "aiohttp", "websockets"}
print((clients | {"flask_migrate", "alembic"}) & set(sys.modules))
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert done.stdout == "set()\n"


@pytest.mark.parametrize("order", ["before", "after"])
def test_a_library_is_patched_whenever_it_is_imported(order: str) -> None:
    """A client library imported before or after init_app is watched, once, and httpx2's alias still works."""
    imports = "import httpx, httpx2\n"
    program = f"""
from flask import Flask
from flask_sqlalchemy import SQLAlchemy
from flask_llm_cost import LlmCostTracker
{imports if order == "before" else ""}
for name in "ab":
    app = Flask(name); app.config["SQLALCHEMY_DATABASE_URI"] = "sqlite://"
    SQLAlchemy(app); LlmCostTracker(app)
{imports if order == "after" else ""}
from flask_llm_cost.capture import patching
bare = httpx.Client.send.__wrapped__
print(len(patching.patched()), bare.__module__, hasattr(bare, "__wrapped__"))
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert done.stdout == "4 httpx._client False\n"


def test_patches_can_be_taken_back(app: Flask, calls: Ledger, provider: PlayedProvider) -> None:
    """Uninstalling restores the very function that was there; what somebody wrapped over ours stays, and counts once."""
    patching.uninstall()
    original = httpx.Client.send
    patching.install("auto")
    ours = httpx.Client.send
    assert ours is not original
    patching.install("auto")
    assert httpx.Client.send is ours
    patching.uninstall()
    assert httpx.Client.send is original
    patching.install("auto")

    def theirs(self: Any, *args: Any, **kwargs: Any) -> Any:
        return ours_now(self, *args, **kwargs)

    ours_now = httpx.Client.send
    httpx.Client.send = theirs  # type: ignore[method-assign]  # what another library would do
    try:
        patching.uninstall()
        assert httpx.Client.send is theirs
        patching.install("auto")
        with app.app_context(), httpx.Client() as client:
            client.post(f"{provider.openai_url}/chat/completions", json={"model": "gpt-4o", "messages": QUESTION})
        assert len(calls()) == 1
        patching.uninstall()
        assert httpx.Client.send is theirs
    finally:
        httpx.Client.send = original  # type: ignore[method-assign]  # and takes back
        patching.install("auto")


def test_a_patch_that_others_undid_is_set_again(app: Flask) -> None:
    """Who restores what was there before us takes our patch away; the next app that is set up has it again."""
    ours = httpx.Client.send
    httpx.Client.send = ours.__wrapped__  # type: ignore[attr-defined, method-assign]  # as mock.patch does when it ends
    try:
        patching.install("auto")
        assert httpx.Client.send is not ours.__wrapped__  # type: ignore[attr-defined]  # wraps() says what it wraps
    finally:
        patching.uninstall()
        patching.install("auto")


@pytest.mark.parametrize("stand_in", [None, object(), ModuleType("aiohttp")], ids=["forbidden", "object", "empty"])
def test_what_stands_in_for_a_library_does_not_stop_the_app(
    make_app: Callable[..., Flask], monkeypatch: pytest.MonkeyPatch, stand_in: object
) -> None:
    """An app starts where an import is forbidden, or replaced by something else; only a replacement is told of."""
    monkeypatch.setitem(sys.modules, "aiohttp", stand_in)
    make_app()
    assert patching.failure("aiohttp") == (stand_in and "it has no ClientSession")
    assert patching.is_imported("aiohttp") is (stand_in is not None)
    with pytest.raises(IntegrationError, match=r"'aiohttp': it (is not installed|has no ClientSession)"):
        make_app(instrument=["aiohttp"])
    monkeypatch.undo()
    patching.install("auto")
    assert patching.failure("aiohttp") is None


def test_a_library_that_is_named_must_be_there(make_app: Callable[..., Flask], monkeypatch: pytest.MonkeyPatch) -> None:
    """A library named explicitly that cannot be watched stops start-up; one that the app left out is not watched."""
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    monkeypatch.delitem(sys.modules, "anthropic", raising=False)
    with pytest.raises(IntegrationError, match="anthropic"):
        make_app(instrument=["anthropic"])


def test_an_app_may_watch_nothing(make_app: Callable[..., Flask], openai_client: openai.OpenAI) -> None:
    """LLM_COST_INSTRUMENT=[] leaves the app's clients alone, also where another app of the process watches them."""
    watching, blind = make_app(), make_app(instrument=[])
    with blind.app_context():
        ask(openai_client)
    with watching.app_context():
        ask(openai_client)
    assert (len(ledger_of(watching)), len(ledger_of(blind))) == (1, 0)


def test_a_call_from_a_response_hook_is_a_call_of_its_own(app: Flask, calls: Ledger, provider: PlayedProvider) -> None:
    """Inside another call, a second one is counted; the same request sent on by a wrapper is not counted twice."""

    class Resend(httpx2.BaseTransport):
        def __init__(self) -> None:
            self.inner = httpx2.Client()

        def handle_request(self, request: httpx2.Request) -> httpx2.Response:
            return self.inner.send(request)

    url, body = f"{provider.openai_url}/chat/completions", {"model": "gpt-4o", "messages": QUESTION}
    second = []

    def hook(response: httpx2.Response) -> None:
        if not second:
            second.append(1)
            with httpx2.Client() as other:
                other.post(url, json=body)

    with app.app_context():
        transport = Resend()
        with httpx2.Client(transport=transport) as client:
            client.post(url, json=body)
        transport.inner.close()
        with httpx2.Client(event_hooks={"response": [hook]}) as client:
            client.post(url, json=body)
    assert len(provider.truth) == 3
    assert len(calls()) == 3


@pytest.mark.parametrize("module", [httpx, httpx2], ids=lambda module: module.__name__)
def test_a_hook_that_raises_leaves_a_row_where_the_call_was_paid_for(
    app: Flask, calls: Ledger, provider: PlayedProvider, module: Any
) -> None:
    """What a response hook raises reaches the app; a reply that was refused leaves no row, one that was billed does."""

    def hook(response: Any) -> None:
        response.raise_for_status()
        raise LookupError

    url = f"{provider.openai_url}/chat/completions"
    provider.reply_with("chat/completions", status=429)
    with app.app_context(), module.Client(event_hooks={"response": [hook]}) as client:
        with pytest.raises(module.HTTPStatusError):
            client.post(url, json={"model": "gpt-4o", "messages": QUESTION})
        assert calls() == []
        with pytest.raises(LookupError):
            client.post(url, json={"model": "gpt-4o", "messages": QUESTION})
    (call,) = calls()
    assert (call.outcome, call.error_class, call.usage_source, call.total_cost) == ("error", "LookupError", "unknown", None)


@pytest.mark.parametrize("module", [httpx, httpx2], ids=lambda module: module.__name__)
def test_a_hook_that_raises_before_the_call_leaves_no_row(
    app: Flask, calls: Ledger, provider: PlayedProvider, module: Any
) -> None:
    """What a request hook raises reaches the app, whatever other hooks there are; nothing was sent: no row."""

    def hook(request: Any) -> None:
        raise LookupError

    hooks = {"request": [hook], "response": [lambda _: None]}
    with app.app_context(), module.Client(event_hooks=hooks) as client, pytest.raises(LookupError):
        client.post(f"{provider.openai_url}/chat/completions", json={"model": "gpt-4o", "messages": QUESTION})
    assert (calls(), provider.truth) == ([], [])


def test_two_trackers_on_one_app(app: Flask) -> None:
    """A second init_app on the same app raises and says what to do instead."""
    with pytest.raises(RuntimeError, match="use that LlmCostTracker object everywhere"):
        LlmCostTracker(app)
