"""What watching costs in each client library: per call, per streamed chunk, and for requests that are no calls at all.

    python benchmarks/overhead.py [--rounds 40] [--calls 30] [--only TEXT]

Bare and watched rounds alternate in one run. A round's figure is the lower quartile of its calls, since a busy machine only
ever makes a call slower; what is added is the median of the differences. Requests that are no calls alternate one by one,
in turns as to which goes first, since what is added to them is less than what two rounds differ by. Nothing crosses a
network, except for aiohttp, which has no transport to replace: it talks to a server on loopback in the same event loop, so
only what is added says something there; it is compared up to where the request is refused, for requests that are no calls.
The ledger's background work happens between the rounds.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import gc
import io
import json
import statistics
import tempfile
import time
import types
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import aiohttp
import aiohttp.web
import anthropic
import httpx
import httpx2
import openai
import requests
import urllib3
from flask import Flask
from flask_sqlalchemy import SQLAlchemy
from google import genai

from flask_llm_cost import LlmCostTracker, tags
from flask_llm_cost.capture import patching
from flask_llm_cost.capture.exchange import Request, observe

CHUNKS = 200
OPENAI = "https://api.openai.com/v1/chat/completions"
SHOP = "https://shop.example/orders"
ANSWER = "word " * 120
QUESTION: Any = [{"role": "user", "content": "question " * 100}]
CHAT: Any = {"model": "gpt-4o", "messages": QUESTION}
CHAT_STREAM: Any = {**CHAT, "stream": True, "stream_options": {"include_usage": True}}
MESSAGE: Any = {"model": "claude-sonnet-4-6", "max_tokens": 500, "messages": QUESTION}

USAGE = {
    "prompt_tokens": 420,
    "completion_tokens": 120,
    "total_tokens": 540,
    "prompt_tokens_details": {"cached_tokens": 128},
}
CHAT_HEAD = {"id": "chatcmpl-1", "created": 1763856000, "model": "gpt-4o-2024-08-06", "service_tier": "default"}
MESSAGE_HEAD = {"id": "msg_1", "type": "message", "role": "assistant", "model": "claude-sonnet-4-6", "stop_sequence": None}
GEMINI_USAGE = {"promptTokenCount": 420, "candidatesTokenCount": 120, "totalTokenCount": 540}
EVENTS = {"content-type": "text/event-stream"}


def chat(delta: Any, **more: Any) -> Any:
    choice = {"index": 0, "delta": delta, "finish_reason": None}
    return {"object": "chat.completion.chunk", **CHAT_HEAD, "choices": [choice], "usage": None, **more}


def gemini(text: str) -> Any:
    candidate = {"content": {"role": "model", "parts": [{"text": text}]}, "index": 0}
    return {"candidates": [candidate], "usageMetadata": GEMINI_USAGE, "modelVersion": "gemini-2.5-flash"}


def events(bodies: list[Any], named: bool = False) -> list[bytes]:
    heads = [f"event: {body['type']}\n" if named else "" for body in bodies]
    return [f"{head}data: {json.dumps(body)}\n\n".encode() for head, body in zip(heads, bodies, strict=True)]


def message_events() -> list[bytes]:
    start = {**MESSAGE_HEAD, "content": [], "stop_reason": None, "usage": {"input_tokens": 420, "output_tokens": 1}}
    delta = {"type": "content_block_delta", "index": 0, "delta": {"type": "text_delta", "text": "word "}}
    bodies = [
        {"type": "message_start", "message": start},
        {"type": "content_block_start", "index": 0, "content_block": {"type": "text", "text": ""}},
        *[delta] * (CHUNKS - 5),
        {"type": "content_block_stop", "index": 0},
        {
            "type": "message_delta",
            "delta": {"stop_reason": "end_turn", "stop_sequence": None},
            "usage": {"output_tokens": 120},
        },
        {"type": "message_stop"},
    ]
    return events(bodies, named=True)


MESSAGE_CHOICE = {"index": 0, "message": {"role": "assistant", "content": ANSWER}, "finish_reason": "stop"}
CHAT_REPLY = json.dumps({"object": "chat.completion", **CHAT_HEAD, "choices": [MESSAGE_CHOICE], "usage": USAGE}).encode()
MESSAGE_REPLY = json.dumps(
    {
        **MESSAGE_HEAD,
        "content": [{"type": "text", "text": ANSWER}],
        "stop_reason": "end_turn",
        "usage": {"input_tokens": 420, "output_tokens": 120},
    }
).encode()
GEMINI_REPLY = json.dumps(gemini(ANSWER)).encode()
CHAT_EVENTS = [
    *events([*[chat({"content": "word "})] * (CHUNKS - 2), chat({}, choices=[], usage=USAGE)]),
    b"data: [DONE]\n\n",
]
#: Where nobody asked for the usage: what the app does not ask for itself is asked for, and taken out, by us.
UNCOUNTED_EVENTS = [*CHAT_EVENTS[:-2], CHAT_EVENTS[-1]]
MESSAGE_EVENTS = message_events()
GEMINI_EVENTS = events([gemini("word ")] * CHUNKS)


def reply_to(path: str, body: bytes) -> bytes | list[bytes]:
    """The body of a reply, or the pieces of a streamed one."""
    streamed = b'"stream"' in body or "stream" in path
    if path.endswith("/chat/completions"):
        return (CHAT_EVENTS if b"include_usage" in body else UNCOUNTED_EVENTS) if streamed else CHAT_REPLY
    if path.endswith("/messages"):
        return MESSAGE_EVENTS if streamed else MESSAGE_REPLY
    if ":" in path:
        return GEMINI_EVENTS if streamed else GEMINI_REPLY
    return b'{"ok": true}'


def transport(module: Any) -> Any:
    """A transport of ``httpx`` or ``httpx2`` that answers in process, for sync and async clients."""

    class Pieces(module.SyncByteStream, module.AsyncByteStream):  # type: ignore[misc]  # one of two modules
        def __init__(self, pieces: list[bytes]) -> None:
            self._pieces = pieces

        def __iter__(self) -> Iterator[bytes]:
            return iter(self._pieces)

        async def __aiter__(self) -> AsyncIterator[bytes]:
            for piece in self._pieces:
                yield piece

    def answer(request: Any) -> Any:
        reply = reply_to(request.url.path, request.content)
        if isinstance(reply, list):
            return module.Response(200, headers=EVENTS, stream=Pieces(reply))
        return module.Response(200, headers={"content-type": "application/json"}, content=reply)

    return module.MockTransport(answer)


class Adapter(requests.adapters.BaseAdapter):
    """An adapter of ``requests`` that answers in process."""

    def send(self, request: Any, stream: bool = False, **options: Any) -> requests.Response:
        reply = reply_to(request.path_url, request.body)
        kind = "text/event-stream" if isinstance(reply, list) else "application/json"
        body = b"".join(reply) if isinstance(reply, list) else reply
        response = requests.Response()
        response.status_code, response.url, response.request = 200, request.url, request
        response.headers["Content-Type"] = kind
        response.raw = urllib3.HTTPResponse(io.BytesIO(body), headers={"content-type": kind}, preload_content=False)
        return response

    def close(self) -> None:
        pass


@dataclass(frozen=True)
class Case:
    """One kind of request.

    :param work: makes one; a coroutine function for an async client
    :param chunks: the chunks of a stream, which are what counts then
    :param watched: of a request that is no call: the client, and its method that is watched
    """

    name: str
    work: Callable[[], Any]
    chunks: int = 0
    watched: tuple[Any, str] | None = None


def raw_cases(module: Any) -> Iterator[Case]:
    client, twin = module.Client(transport=transport(module)), module.AsyncClient(transport=transport(module))
    name = module.__name__

    def stream() -> None:
        with client.stream("POST", OPENAI, json=CHAT_STREAM) as reply:
            for _ in reply.iter_bytes():
                pass

    async def stream_async() -> None:
        async with twin.stream("POST", OPENAI, json=CHAT_STREAM) as reply:
            async for _ in reply.aiter_bytes():
                pass

    yield Case(f"{name}, other request", lambda: client.post(SHOP, json={"sku": "1"}), watched=(client, "send"))
    yield Case(f"{name} async, other request", lambda: twin.post(SHOP, json={"sku": "1"}), watched=(twin, "send"))
    yield Case(f"{name}", lambda: client.post(OPENAI, json=CHAT))
    yield Case(f"{name} async", lambda: twin.post(OPENAI, json=CHAT))
    yield Case(f"{name}, stream", stream, CHUNKS)
    yield Case(f"{name} async, stream", stream_async, CHUNKS)


def requests_cases() -> Iterator[Case]:
    session = requests.Session()
    session.mount("https://", Adapter())

    def stream() -> None:
        # In pieces of the size of an event, as a server sends them.
        with session.post(OPENAI, json=CHAT_STREAM, stream=True) as reply:
            for _ in reply.iter_content(len(CHAT_EVENTS[0])):
                pass

    yield Case("requests, other request", lambda: session.post(SHOP, json={"sku": "1"}), watched=(session, "send"))
    yield Case("requests", lambda: session.post(OPENAI, json=CHAT))
    yield Case("requests, stream", stream, CHUNKS)


def sdk_cases(
    name: str,
    ask: Callable[[], Any],
    ask_async: Callable[[], Any],
    stream: Callable[[], Any],
    stream_async: Callable[[], Any],
) -> Iterator[Case]:
    def consume() -> None:
        for _ in stream():
            pass

    async def consume_async() -> None:
        async for _ in await stream_async():
            pass

    yield Case(name, ask)
    yield Case(f"{name} async", ask_async)
    yield Case(f"{name}, stream", consume, CHUNKS)
    yield Case(f"{name} async, stream", consume_async, CHUNKS)


def openai_cases() -> Iterator[Case]:
    client = openai.OpenAI(api_key="benchmark", http_client=httpx2.Client(transport=transport(httpx2)))
    twin = openai.AsyncOpenAI(api_key="benchmark", http_client=httpx2.AsyncClient(transport=transport(httpx2)))
    yield from sdk_cases(
        "openai",
        lambda: client.chat.completions.create(**CHAT),
        lambda: twin.chat.completions.create(**CHAT),
        lambda: client.chat.completions.create(**CHAT_STREAM),
        lambda: twin.chat.completions.create(**CHAT_STREAM),
    )


def unasked_case() -> Case:
    client = openai.OpenAI(api_key="benchmark", http_client=httpx2.Client(transport=transport(httpx2)))

    def stream() -> None:
        for _ in client.chat.completions.create(model="gpt-4o", messages=QUESTION, stream=True):
            pass

    return Case("openai, stream, usage not asked", stream, CHUNKS)


def anthropic_cases() -> Iterator[Case]:
    client = anthropic.Anthropic(api_key="benchmark", http_client=httpx2.Client(transport=transport(httpx2)))
    twin = anthropic.AsyncAnthropic(api_key="benchmark", http_client=httpx2.AsyncClient(transport=transport(httpx2)))
    yield from sdk_cases(
        "anthropic",
        lambda: client.messages.create(**MESSAGE),
        lambda: twin.messages.create(**MESSAGE),
        lambda: client.messages.create(**MESSAGE, stream=True),
        lambda: twin.messages.create(**MESSAGE, stream=True),
    )


def genai_cases() -> Iterator[Case]:
    options: Any = {
        "httpx_client": httpx2.Client(transport=transport(httpx2)),
        "httpx_async_client": httpx2.AsyncClient(transport=transport(httpx2)),
    }
    client = genai.Client(api_key="benchmark", http_options=options)
    asked: Any = {"model": "gemini-2.5-flash", "contents": "question " * 100}
    yield from sdk_cases(
        "google-genai",
        lambda: client.models.generate_content(**asked),
        lambda: client.aio.models.generate_content(**asked),
        lambda: client.models.generate_content_stream(**asked),
        lambda: client.aio.models.generate_content_stream(**asked),
    )


async def serve() -> str:
    """Serve on loopback, in this event loop. Gives the address."""

    async def answer(request: aiohttp.web.Request) -> aiohttp.web.StreamResponse:
        reply = reply_to(request.path, await request.read())
        if isinstance(reply, bytes):
            return aiohttp.web.Response(body=reply, content_type="application/json")
        response = aiohttp.web.StreamResponse(headers={"Content-Type": "text/event-stream"})
        await response.prepare(request)
        for piece in reply:
            await response.write(piece)
        return response

    runner = aiohttp.web.ServerRunner(aiohttp.web.Server(answer))
    await runner.setup()
    site = aiohttp.web.TCPSite(runner, "127.0.0.1", 0)
    await site.start()
    return f"http://127.0.0.1:{runner.addresses[0][1]}"


async def aiohttp_session() -> aiohttp.ClientSession:
    return aiohttp.ClientSession()


def aiohttp_cases(session: aiohttp.ClientSession, url: str) -> list[Case]:
    async def post(path: str, body: Any) -> None:
        async with session.post(url + path, json=body) as reply:
            await reply.read()

    async def stream() -> None:
        async with session.post(f"{url}/openai/v1/chat/completions", json=CHAT_STREAM) as reply:
            async for _ in reply.content:
                pass

    async def other() -> None:
        with contextlib.suppress(aiohttp.InvalidURL, aiohttp.NonHttpUrlClientError):
            await session.post("ftp://shop.example/orders", json={"sku": "1"})

    return [
        Case("aiohttp, other request", other, watched=(session, "_request")),
        Case("aiohttp", lambda: post("/openai/v1/chat/completions", CHAT)),
        Case("aiohttp, stream", stream, CHUNKS),
    ]


def timed(work: Callable[[], Any], calls: int, loop: asyncio.Runner) -> float:
    """Microseconds of one request: the lower quartile of *calls*."""
    times = []

    async def measure() -> None:
        for _ in range(calls):
            start = time.perf_counter_ns()
            await work()
            times.append(time.perf_counter_ns() - start)

    first: Any = work()
    if isinstance(first, Awaitable):

        async def finish() -> None:
            await first

        loop.run(finish())
        loop.run(measure())
    else:
        for _ in range(calls):
            start = time.perf_counter_ns()
            work()
            times.append(time.perf_counter_ns() - start)
    return statistics.quantiles(times, n=4)[0] / 1000


def compare_singly(case: Case, pairs: int, loop: asyncio.Runner) -> tuple[float, float]:
    """The same for a request that is no call, bare and watched one by one."""
    assert case.watched is not None
    client, name = case.watched
    there = getattr(type(client), name)
    methods = {False: types.MethodType(there.__wrapped__, client), True: types.MethodType(there, client)}
    times: dict[bool, list[int]] = {False: [], True: []}

    async def measure() -> None:
        for number in range(2 * pairs):
            watched = number % 4 in (1, 2)
            client.__dict__[name] = methods[watched]
            start = time.perf_counter_ns()
            waiting: Any = case.work()
            if isinstance(waiting, Awaitable):
                await waiting
            times[watched].append(time.perf_counter_ns() - start)

    gc.collect()
    gc.disable()
    loop.run(measure())
    gc.enable()
    del client.__dict__[name]
    differences = [watched - bare for watched, bare in zip(times[True], times[False], strict=True)]
    return statistics.median(times[False]) / 1000, statistics.median(differences) / 1000


def compare(case: Case, rounds: int, calls: int, loop: asyncio.Runner, flush: Callable[[], bool]) -> tuple[float, float]:
    """Microseconds of a request, bare, and what watching adds: medians over the rounds, of the pairs' differences."""
    bare, added = [], []
    for number in range(rounds + 2):
        patching.uninstall()
        one = timed(case.work, calls, loop)
        patching.install("auto")
        other = timed(case.work, calls, loop)
        if number >= 2:  # the first rounds warm up
            bare.append(one)
            added.append(other - one)
        flush()
    return statistics.median(bare), statistics.median(added)


def record_alone(rounds: int, calls: int, flush: Callable[[], bool]) -> tuple[float, float]:
    """Microseconds from a whole reply to its record in the spool, median and 95%: its usage read, its line written."""
    times = []
    path, headers, body = "/v1/chat/completions", {"content-type": "application/json"}, json.dumps(CHAT).encode()
    for _ in range(rounds):
        for _ in range(calls):
            observed = observe(Request("httpx", object(), "POST", "api.openai.com", path, headers, lambda: body))
            assert observed is not None
            start = time.perf_counter_ns()
            observed.replied(200, "application/json", CHAT_REPLY)
            times.append(time.perf_counter_ns() - start)
        flush()
    return statistics.median(times) / 1000, statistics.quantiles(times, n=20)[-1] / 1000


def main() -> None:
    options = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    options.add_argument("--rounds", type=int, default=40)
    options.add_argument("--calls", type=int, default=30)
    options.add_argument("--only", default="", help="only the cases whose names contain this")
    chosen = options.parse_args()
    with tempfile.TemporaryDirectory() as folder, asyncio.Runner() as loop:
        address, session = loop.run(serve()), loop.run(aiohttp_session())
        app = Flask("benchmark", instance_path=folder)
        app.config["SQLALCHEMY_DATABASE_URI"] = f"sqlite:///{Path(folder) / 'app.db'}"
        app.config["LLM_COST_SPOOL_DIR"] = str(Path(folder) / "spool")
        app.config["LLM_COST_HOSTS"] = {f"{address.removeprefix('http://')}/openai": "openai"}
        database = SQLAlchemy(app)
        costs = LlmCostTracker(app)
        cases = [
            *raw_cases(httpx),
            *raw_cases(httpx2),
            *requests_cases(),
            *aiohttp_cases(session, address),
            *openai_cases(),
            unasked_case(),
            *anthropic_cases(),
            *genai_cases(),
        ]
        with app.app_context(), tags(feature="benchmark", tenant_id=7):
            database.create_all()
            print(f"{'':32}{'bare':>10}{'added':>10}{'ratio':>8}{'a chunk':>10}")
            for case in cases:
                if chosen.only not in case.name:
                    continue
                calls = max(5, chosen.calls // (6 if case.chunks else 1))
                if case.watched:
                    bare, added = compare_singly(case, chosen.rounds * calls, loop)
                else:
                    bare, added = compare(case, chosen.rounds, calls, loop, costs.flush)
                each = f"{added / case.chunks:8.2f}us" if case.chunks else ""
                print(f"{case.name:32}{bare:8.0f}us{added:8.1f}us{1 + added / bare:8.3f}{each:>10}", flush=True)
            middle, slow = record_alone(chosen.rounds, chosen.calls, costs.flush)
            print(f"a record, usage and spool: median {middle:.0f}us, 95% {slow:.0f}us")
            kept = costs.flush(60)
        loop.run(session.close())
        print("every record is in the database" if kept else "records still wait")


if __name__ == "__main__":
    main()
