"""What an app hangs into its client, hooks, middlewares, transports, may read the reply, or make calls of its own."""

from __future__ import annotations

import asyncio
import contextvars
import gc
import json
import weakref
from collections.abc import Callable, Iterator
from contextlib import suppress
from inspect import signature
from typing import Any

import aiohttp
import httpx
import httpx2
import openai
import pytest
import requests
from flask import Flask
from played_app import ledger_of

from flask_llm_cost.capture.httpx import LlmCostTransport
from flask_llm_cost.capture.requests import LlmCostAdapter  # type: ignore[attr-defined]  # made on demand
from flask_llm_cost.ledger import Call
from flask_llm_cost.testing.provider import PlayedProvider

Ledger = Callable[[], list[Call]]

BODY: Any = {"model": "gpt-4o", "messages": [{"role": "user", "content": "hello there"}]}
STREAM: Any = {**BODY, "stream": True}

CHUNK: Any = {"id": "c", "object": "chat.completion.chunk", "model": "gpt-4o", "choices": [{"index": 0, "delta": {}}]}
COUNTED: Any = {**CHUNK, "choices": [], "usage": {"prompt_tokens": 3, "completion_tokens": 2, "total_tokens": 5}}
#: What a stream that was not asked for its usage gives.
UNASKED = b"data: " + json.dumps(CHUNK, separators=(",", ":")).encode() + b"\n\ndata: [DONE]\n\n"


@pytest.fixture
def other_provider() -> Iterator[PlayedProvider]:
    with PlayedProvider() as provider:
        yield provider


def read_text(reply: Any, *args: Any, **kwargs: Any) -> None:
    if isinstance(reply, httpx.Response | httpx2.Response):
        reply.read()
    assert "usage" in reply.text


async def read_text_async(reply: Any) -> None:
    await reply.aread()
    assert "usage" in reply.text


def by_httpx(library: Any, url: str) -> list[bytes]:
    client = library.Client(event_hooks={"response": [read_text]})
    with client, client.stream("POST", url, json=STREAM) as reply:
        return [b"".join(reply.iter_bytes()), reply.content, reply.text.encode()]


def by_httpx_async(library: Any, url: str) -> list[bytes]:
    async def send() -> list[bytes]:
        client = library.AsyncClient(event_hooks={"response": [read_text_async]})
        async with client, client.stream("POST", url, json=STREAM) as reply:
            return [b"".join([piece async for piece in reply.aiter_bytes()]), reply.content, reply.text.encode()]

    return asyncio.run(send())


def by_requests(library: Any, url: str) -> list[bytes]:
    with requests.post(url, json=STREAM, stream=True, hooks={"response": read_text}, timeout=20) as reply:
        return [b"".join(reply.iter_content(9)), reply.content, reply.text.encode()]


WITH_HOOK: Any = [
    pytest.param(by_httpx, httpx, id="httpx"),
    pytest.param(by_httpx, httpx2, id="httpx2"),
    pytest.param(by_httpx_async, httpx, id="httpx async"),
    pytest.param(by_httpx_async, httpx2, id="httpx2 async"),
    pytest.param(by_requests, requests, id="requests"),
]


def play_stream(provider: PlayedProvider, encoding: Any = None) -> str:
    asked = [{**CHUNK, "usage": None}, COUNTED, "[DONE]"]
    events = [event if isinstance(event, str) else json.dumps(event, separators=(",", ":")) for event in asked]
    provider.reply_with("chat/completions", events=events, encoding=encoding, times=9)
    return f"{provider.openai_url}/chat/completions"


def check(calls: list[Call], number: int = 1) -> None:
    found = [(call.outcome, call.usage_source, call.input_tokens, call.output_tokens) for call in calls]
    assert found == [("ok", "stream_final", 3, 2)] * number


@pytest.mark.parametrize("encoding", [None, "gzip"])
@pytest.mark.parametrize(("read", "library"), WITH_HOOK)
def test_a_stream_that_a_hook_has_read(
    app: Flask, calls: Ledger, provider: PlayedProvider, read: Any, library: Any, encoding: Any
) -> None:
    """After a hook that reads the whole stream the app sees no trace of the question: by pieces, whole and as text."""
    url = play_stream(provider, encoding)
    with app.app_context():
        assert read(library, url) == [UNASKED] * 3
    assert provider.requests[0].json()["stream_options"] == {"include_usage": True}
    check(calls())


#: What aiohttp lets an app hang in: middlewares came with 3.12.
WAYS = [name for name in ("middlewares", "raise_for_status") if name in signature(aiohttp.ClientSession).parameters]


async def read_in_middleware(request: Any, handler: Any) -> Any:
    reply = await handler(request)
    await reply.read()
    return reply


async def read_for_status(reply: aiohttp.ClientResponse) -> None:
    assert await reply.read()


READING: Any = {"middlewares": [read_in_middleware], "raise_for_status": read_for_status}


@pytest.mark.parametrize("decodes", [True, False], ids=["decoded", "packed"])
@pytest.mark.parametrize("way", WAYS)
def test_an_aiohttp_reply_that_was_read_on_the_way(
    app: Flask, calls: Ledger, provider: PlayedProvider, way: str, decodes: bool
) -> None:
    """A reply that the app's middleware or its look at the status has read is counted, and its stream is as unasked."""
    url, options = play_stream(provider, None if decodes else "gzip"), {way: READING[way]}

    async def send() -> list[bytes]:
        async with aiohttp.ClientSession(auto_decompress=decodes, **options) as session:
            found = []
            for body in (STREAM, {**STREAM, "stream_options": {"include_usage": True}}):
                async with session.post(url, json=body) as reply:
                    found.append(await reply.read())
            return found

    with app.app_context():
        unasked, asked = asyncio.run(send())
    # What aiohttp does not decode is not asked for more than the app asked.
    assert (unasked == UNASKED) if decodes else (unasked == asked)
    assert [("stream_options" in request.json()) for request in provider.requests] == [decodes, True]
    check(calls(), 2)


def test_an_aiohttp_body_that_was_read_on_the_way(app: Flask, calls: Ledger, provider: PlayedProvider) -> None:
    """A reply that is no stream is counted as well, and the app reads it again."""
    provider.reply_with("chat/completions", usage=COUNTED["usage"])

    async def send() -> Any:
        session = aiohttp.ClientSession(raise_for_status=read_for_status)
        async with session, session.post(f"{provider.openai_url}/chat/completions", json=BODY) as reply:
            return await reply.json()

    with app.app_context():
        assert asyncio.run(send())["usage"] == COUNTED["usage"]
    assert [(call.outcome, call.input_tokens, call.stream) for call in calls()] == [("ok", 3, False)]


def test_the_sdk_with_a_hook_that_reads(app: Flask, calls: Ledger, provider: PlayedProvider) -> None:
    """OpenAI's SDK over a client with such a hook gives no chunk without choices."""
    play_stream(provider)
    http_client = httpx2.Client(event_hooks={"response": [read_text]})
    with app.app_context(), openai.OpenAI(base_url=provider.openai_url, api_key="x", http_client=http_client) as client:
        chunks = list(client.chat.completions.create(**STREAM))
    assert [len(chunk.choices) for chunk in chunks] == [1]
    check(calls())


def test_a_call_of_a_hook_to_another_host_is_a_call(
    make_app: Callable[..., Flask], provider: PlayedProvider, other_provider: PlayedProvider
) -> None:
    """A hook that asks another provider by another library at the same path makes a second call, with a row of its own."""
    app = make_app(hosts={provider.host: "openai", other_provider.host: "groq"})
    other = f"{other_provider.openai_url}/chat/completions"

    def ask_another(reply: Any) -> None:
        requests.post(other, json=BODY, timeout=20)

    with app.app_context(), httpx.Client(event_hooks={"response": [ask_another]}) as client:
        client.post(f"{provider.openai_url}/chat/completions", json=BODY)
    assert sorted(call.provider for call in ledger_of(app)) == ["groq", "openai"]


@pytest.mark.parametrize("where", WAYS)
def test_a_call_that_aiohttp_makes_on_the_way_is_a_call(
    app: Flask, calls: Ledger, provider: PlayedProvider, where: str
) -> None:
    """A middleware, or the look at the status, that asks by the same session makes a second call, with a row of its own."""
    url = f"{provider.openai_url}/chat/completions"

    without: Any = {name: {"middlewares": (), "raise_for_status": False}[name] for name in WAYS}

    async def send() -> None:
        async def ask_another() -> None:
            another = {**BODY, "model": "gpt-4o-mini"}
            async with session.post(url, json=another, **without) as reply:
                await reply.read()

        async def on_the_way(request: Any, handler: Any) -> Any:
            await ask_another()
            return await handler(request)

        async def for_status(reply: aiohttp.ClientResponse) -> None:
            await ask_another()

        options: Any = {"middlewares": [on_the_way]} if where == "middlewares" else {"raise_for_status": for_status}
        session = aiohttp.ClientSession(**options)
        async with session, session.post(url, json=BODY) as reply:
            await reply.read()

    with app.app_context():
        asyncio.run(send())
    assert sorted(str(call.requested_model) for call in calls()) == ["gpt-4o", "gpt-4o-mini"]


def test_a_call_that_aiohttp_repeats_on_the_way_is_a_call(app: Flask, calls: Ledger, provider: PlayedProvider) -> None:
    """A look at the status that asks the very same again makes a second call, with a row of its own."""
    url = f"{provider.openai_url}/chat/completions"

    async def send() -> None:
        async def again(reply: aiohttp.ClientResponse) -> None:
            async with session.post(url, json=BODY, raise_for_status=False) as second:
                await second.read()

        session = aiohttp.ClientSession(raise_for_status=again)
        async with session, session.post(url, json=BODY) as reply:
            await reply.read()

    with app.app_context():
        asyncio.run(send())
    assert len(calls()) == len(provider.requests) == 2


class Body(dict[str, Any]):
    """What can be referred to weakly."""


def test_a_connection_of_aiohttp_keeps_no_body(app: Flask, provider: PlayedProvider) -> None:
    """A connection that stays open for the next call keeps nothing of the call that opened it."""

    async def send() -> weakref.ref[Body]:
        body = Body(BODY)
        async with session.post(f"{provider.openai_url}/chat/completions", json=body) as reply:
            await reply.read()
        return weakref.ref(body)

    async def kept() -> list[object]:
        nonlocal session
        async with aiohttp.ClientSession() as session:
            bodies = await asyncio.gather(*(send() for _ in range(3)))
            gc.collect()
            return [body() for body in bodies]

    session: Any = None
    with app.app_context():
        assert asyncio.run(kept()) == [None] * 3


def test_a_call_of_aiohttp_may_be_dropped_from_elsewhere(app: Flask, calls: Ledger, provider: PlayedProvider) -> None:
    """A task that nobody waits for is closed where the collector runs, in another context: it ends, and is a row."""
    provider.reply_with("chat/completions", delay=30.0)

    async def begun() -> Any:
        session = aiohttp.ClientSession()
        call = session._request("POST", f"{provider.openai_url}/chat/completions", json=BODY)
        task = asyncio.create_task(call)
        await asyncio.sleep(0.5)
        return session, task

    loop = asyncio.new_event_loop()
    with app.app_context():
        session, task = loop.run_until_complete(begun())
        contextvars.Context().run(task.get_coro().close)
        with suppress(asyncio.CancelledError, RuntimeError):
            task.cancel()
            loop.run_until_complete(asyncio.sleep(0))
        loop.run_until_complete(session.close())
    loop.close()
    assert [(call.outcome, call.usage_source) for call in calls()] == [("interrupted", "unknown")]


@pytest.mark.parametrize("instrument", [[], ["httpx", "requests"]], ids=["explicit", "patched"])
@pytest.mark.parametrize("library", [httpx, requests])
def test_a_call_under_an_explicit_transport_is_a_call(
    make_app: Callable[..., Flask], provider: PlayedProvider, library: Any, instrument: list[str]
) -> None:
    """A transport that first asks another model, by an explicit transport or adapter, makes two rows with their tags."""
    app = make_app(instrument=instrument)
    another = {**BODY, "model": "gpt-4o-mini"}

    class Guarded(httpx.HTTPTransport):
        def handle_request(self, request: httpx.Request) -> httpx.Response:
            if library is httpx:
                with httpx.Client(transport=LlmCostTransport(tags={"part": "guard"})) as guard:
                    guard.post(f"{provider.openai_url}/chat/completions", json=another)
            else:
                with requests.Session() as session:
                    session.mount("http://", LlmCostAdapter(tags={"part": "guard"}))
                    session.post(f"{provider.openai_url}/responses", json={"model": "gpt-4o-mini", "input": "hello"})
            return super().handle_request(request)

    with app.app_context(), httpx.Client(transport=LlmCostTransport(Guarded(), tags={"part": "main"})) as client:
        client.post(f"{provider.openai_url}/chat/completions", json=BODY)
    assert {call.requested_model: [(tag.key, tag.value) for tag in call.tags] for call in ledger_of(app)} == {
        "gpt-4o": [("part", "main")],
        "gpt-4o-mini": [("part", "guard")],
    }


def test_a_redirect_under_explicit_and_patched_is_one_call(app: Flask, calls: Ledger, provider: PlayedProvider) -> None:
    """An explicit transport in a watched client sees a redirect as another request: it is the same call, with its tags."""
    end, start = f"{provider.openai_url}/chat/completions", "/v1/elsewhere/chat/completions"
    provider.reply_with(start, status=307, headers={"location": end}, body={})
    transport = LlmCostTransport(tags={"part": "main"})
    with app.app_context(), httpx.Client(transport=transport, follow_redirects=True) as client:
        assert client.post(f"{provider.url}{start}", json=BODY).json()["choices"]
    assert len(provider.requests) == 2
    assert [[tag.value for tag in call.tags] for call in calls()] == [["main"]]


class OverRequests(httpx.BaseTransport):
    """A transport that sends by requests, through a proxy."""

    def __init__(self, proxy: str, url: str) -> None:
        self.proxies = {"http": proxy}
        self.url = url

    def handle_request(self, request: httpx.Request) -> httpx.Response:
        reply = requests.post(self.url, data=request.content, proxies=self.proxies, timeout=20)
        return httpx.Response(reply.status_code, content=reply.content)


class OverAiohttp(OverRequests):
    """The same by aiohttp."""

    def handle_request(self, request: httpx.Request) -> httpx.Response:
        async def send() -> httpx.Response:
            async with (
                aiohttp.ClientSession() as session,
                session.post(self.url, data=request.content, proxy=self.proxies["http"]) as reply,
            ):
                return httpx.Response(reply.status, content=await reply.read())

        return asyncio.run(send())


@pytest.mark.parametrize("over", [OverRequests, OverAiohttp])
@pytest.mark.parametrize("host", ["api.openai.com:80", "[::1]:81"])
def test_a_library_on_a_library_is_one_call_however_the_host_is_written(
    app: Flask, calls: Ledger, provider: PlayedProvider, over: type[OverRequests], host: str
) -> None:
    """Libraries write a default port and an IPv6 address each in its way: one call sent by two of them is one row."""
    url = f"http://{host}/v1/chat/completions"
    with app.app_context(), httpx.Client(transport=over(provider.url, url)) as client:
        assert client.post(url, json=BODY).json()["choices"]
    assert len(provider.requests) == 1
    assert len(calls()) == 1
