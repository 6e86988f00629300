"""Client libraries other than the SDKs' own, patched and explicit."""

from __future__ import annotations

import asyncio
import contextlib
import contextvars
import copy
import functools
import io
import json
import pickle
import shutil
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import aiohttp
import httpx
import httpx2
import pytest
import requests
import urllib3
from botocore import hooks
from flask import Flask
from played_app import ledger_of
from requests.adapters import BaseAdapter

from flask_llm_cost import tags
from flask_llm_cost.capture import patching
from flask_llm_cost.capture.httpx import AsyncLlmCostTransport, LlmCostTransport
from flask_llm_cost.capture.requests import LlmCostAdapter  # type: ignore[attr-defined]  # made on demand
from flask_llm_cost.ledger import Call
from flask_llm_cost.testing.provider import PlayedProvider

Ledger = Callable[[], list[Call]]

BODY: Any = {"model": "gpt-4o", "messages": [{"role": "user", "content": "hello there"}]}
STREAM: Any = {**BODY, "stream": True}
COUNTED: Any = {"prompt_tokens": 3, "completion_tokens": 2, "total_tokens": 5}
ASKED: Any = {**STREAM, "stream_options": {"include_usage": True}}


@pytest.fixture
def url(provider: PlayedProvider) -> str:
    return f"{provider.openai_url}/chat/completions"


def seen(calls: list[Call]) -> list[tuple[bool, str, str]]:
    return [(call.stream, call.outcome, call.usage_source) for call in calls]


def test_requests_calls_and_streams(app: Flask, calls: Ledger, provider: PlayedProvider, url: str) -> None:
    """requests: plain, streamed in lines and odd pieces, read raw, broken off; the app reads what nobody asked for."""
    with app.app_context(), requests.Session() as session:
        assert session.post(url, json=BODY).json()["choices"]
        with session.post(url, json=STREAM, stream=True) as reply:
            lines = list(reply.iter_lines())
        with session.post(url, json=STREAM, stream=True) as reply:
            pieces = b"".join(reply.iter_content(7))
        with session.post(url, json=ASKED, stream=True) as reply:
            raw = reply.raw.read()
        with session.post(url, json=STREAM, stream=True) as reply:
            next(reply.iter_content(10))
    assert lines[-2:] == [b"data: [DONE]", b""]
    assert b'"usage"' not in pieces
    assert b'"usage":' in raw
    assert seen(calls()) == [
        (False, "ok", "response"),
        (True, "ok", "stream_final"),
        (True, "ok", "stream_final"),
        (True, "ok", "stream_final"),
        (True, "interrupted", "unknown"),
    ]
    assert [request.json().get("stream_options") for request in provider.requests] == [
        None,
        {"include_usage": True},
        {"include_usage": True},
        {"include_usage": True},
        {"include_usage": True},
    ]


def by_copying(raw: Any) -> list[bytes]:
    copy = io.BytesIO()
    shutil.copyfileobj(raw, copy, 50)
    return [copy.getvalue()]


def by_filling(raw: Any) -> list[bytes]:
    buffer, found = bytearray(41), []
    while count := raw.readinto(buffer):
        found.append(bytes(buffer[:count]))
    return found


def by_entering(raw: Any) -> list[bytes]:
    with raw as entered:
        assert entered is raw
        found: bytes = entered.read()
    assert raw.closed
    return [found]


def by_stepping(raw: Any) -> list[bytes]:
    first, *rest = iter(lambda: next(raw, b""), b"")
    return [first, *rest]


def by_data(raw: Any) -> list[bytes]:
    found: bytes = raw.data
    assert raw.data == found
    return [found]


def by_keeping(raw: Any) -> list[bytes]:
    found: bytes = raw.read(cache_content=True)
    assert raw.data == found
    return [found]


def by_draining(raw: Any) -> list[bytes]:
    first: bytes = raw.read(20)
    raw.drain_conn()
    return [first, raw.read()]


READERS: dict[str, Callable[[Any], list[bytes]]] = {
    "read": lambda raw: list(iter(lambda: raw.read(40), b"")),
    "read1": lambda raw: list(iter(lambda: raw.read1(40), b"")),
    "readline": lambda raw: list(iter(raw.readline, b"")),
    "readlines": lambda raw: raw.readlines(),
    "readinto": by_filling,
    "copyfileobj": by_copying,
    "TextIOWrapper": lambda raw: [line.encode() for line in io.TextIOWrapper(raw, "utf-8", newline="")],
    "read_chunked": lambda raw: list(raw.read_chunked(30)),
    "read, then all": lambda raw: [raw.read(25), raw.read()],
    "with": by_entering,
    "next": by_stepping,
    "data": by_data,
    "data, read before": by_keeping,
    "drain_conn": by_draining,
}


@pytest.mark.parametrize("reader", READERS.values(), ids=READERS)
def test_requests_however_the_raw_body_is_read(
    app: Flask, calls: Ledger, provider: PlayedProvider, url: str, reader: Callable[[Any], list[bytes]]
) -> None:
    """Every way to read a raw stream gives what it gives unwatched, without the event that we asked for, and one row."""
    events: list[Any] = [{"model": "gpt-4o", "choices": [{"index": 0, "delta": {"content": word * 9}}]} for word in "ab"]
    usage = {"model": "gpt-4o", "choices": [], "usage": {"prompt_tokens": 3, "completion_tokens": 2, "total_tokens": 5}}
    provider.reply_with("chat/completions", events=[*events, usage])
    provider.reply_with("chat/completions", events=events)
    with app.app_context(), requests.Session() as session, session.post(url, json=STREAM, stream=True) as reply:
        watched = reader(reply.raw)
    with urllib3.PoolManager() as pool:
        unwatched = reader(pool.request("POST", url, json=STREAM, preload_content=False))
    assert b"".join(watched) == b"".join(unwatched)
    if reader in (READERS["readline"], READERS["readlines"], READERS["TextIOWrapper"], by_stepping):
        assert watched == unwatched
    assert seen(calls()) == [(True, "ok", "stream_final")]


def by_decoding(raw: Any) -> list[bytes]:
    raw.decode_content = True
    return by_copying(raw)


def by_text(raw: Any) -> list[bytes]:
    raw.decode_content, raw.auto_close = True, False
    return [line.encode() for line in io.TextIOWrapper(raw, "utf-8", newline="")]


def by_another_read(raw: Any) -> list[bytes]:
    raw.read = functools.partial(raw.read, decode_content=True)
    return by_copying(raw)


@pytest.mark.parametrize("reader", [by_decoding, by_text, by_another_read])
def test_requests_with_options_that_are_set_on_the_raw_body(
    app: Flask, calls: Ledger, provider: PlayedProvider, url: str, reader: Callable[[Any], list[bytes]]
) -> None:
    """What the app sets on a raw body holds: a compressed stream that it wants decoded is, as without us, and counted."""
    events = [{"model": "gpt-4o", "choices": [], "usage": COUNTED}]
    provider.reply_with("chat/completions", events=events, encoding="gzip", times=2)
    with app.app_context(), requests.Session() as session, session.post(url, json=ASKED, stream=True) as reply:
        watched = reader(reply.raw)
    patching.uninstall()
    try:
        with requests.Session() as session, session.post(url, json=ASKED, stream=True) as reply:
            assert watched == reader(reply.raw)
    finally:
        patching.install("auto")
    assert b"".join(watched).startswith(b"data: ")
    assert seen(calls()) == [(True, "ok", "stream_final")]


class EndsWithNone(io.BytesIO):
    """A file whose end is no bytes at all, as that of a socket that does not wait."""

    def read(self, size: int | None = -1) -> Any:
        return super().read(size) or None


class FromFile(BaseAdapter):
    """An adapter of the app's own, whose replies are files."""

    def send(self, request: requests.PreparedRequest, *args: Any, **kwargs: Any) -> requests.Response:
        reply = requests.Response()
        reply.status_code, reply.request, reply.url = 200, request, str(request.url)
        reply.raw = EndsWithNone(json.dumps({"model": "gpt-4o", "choices": [], "usage": COUNTED}).encode())
        return reply

    def close(self) -> None:
        """Nothing is open."""


def test_requests_with_an_adapter_that_gives_files(app: Flask, calls: Ledger, url: str) -> None:
    """A body that is a plain file, as an adapter of the app's own may give it, is read as ever, and counted."""
    with app.app_context(), requests.Session() as session:
        session.mount("http://", FromFile())
        assert session.post(url, json=BODY, stream=True).json()["usage"] == COUNTED
        assert json.loads(session.post(url, json=BODY, stream=True).raw.read())["usage"] == COUNTED
        assert json.loads(b"".join(session.post(url, json=BODY, stream=True).raw))["usage"] == COUNTED
    assert [(call.outcome, call.input_tokens, call.output_tokens) for call in calls()] == [("ok", 3, 2)] * 3


def test_requests_raw_body_as_json(app: Flask, calls: Ledger, provider: PlayedProvider, url: str) -> None:
    """The raw body of a reply that is not streamed is read as JSON by urllib3's own method, and counted."""
    provider.reply_with("chat/completions", usage=COUNTED)
    with app.app_context(), requests.Session() as session, session.post(url, json=BODY, stream=True) as reply:
        assert reply.raw.json()["usage"] == COUNTED
        assert json.loads(reply.raw.data)["usage"] == COUNTED
    assert [(call.outcome, call.input_tokens, call.output_tokens) for call in calls()] == [("ok", 3, 2)]


def test_requests_gives_the_app_its_request_back(app: Flask, provider: PlayedProvider, url: str) -> None:
    """The prepared request that the app made is as it was after a stream was asked for its usage."""
    with app.app_context(), requests.Session() as session:
        prepared = session.prepare_request(requests.Request("POST", url, json=STREAM))
        before = prepared.body, dict(prepared.headers)
        session.send(prepared, stream=True).close()
        assert (prepared.body, dict(prepared.headers)) == before


def by_requests(session: Any, url: str) -> tuple[Any, Callable[[], bytes]]:
    prepared = session.prepare_request(requests.Request("POST", url, json=STREAM))

    def send() -> bytes:
        with session.send(prepared, stream=True) as reply:
            return b"".join(reply.iter_content(50))

    return prepared, send


def by_httpx(client: Any, url: str) -> tuple[Any, Callable[[], bytes]]:
    request = client.build_request("POST", url, json=STREAM)

    def send() -> bytes:
        with contextlib.closing(client.send(request, stream=True)) as reply:
            return b"".join(reply.iter_bytes())

    return request, send


@pytest.mark.parametrize(
    ("make_client", "prepare"), [(requests.Session, by_requests), (httpx.Client, by_httpx)], ids=["requests", "httpx"]
)
def test_one_request_that_two_threads_send(
    app: Flask, calls: Ledger, provider: PlayedProvider, url: str, make_client: Any, prepare: Any
) -> None:
    """A request that is sent again while it is on its way is asked for usage both times, shows none, and is given back."""
    provider.reply_with("chat/completions", delay=1.0)
    with make_client() as client, ThreadPoolExecutor(1) as pool, app.app_context():
        request, send = prepare(client, url)
        before = dict(request.headers)
        first = pool.submit(contextvars.copy_context().run, send)
        while not provider.requests:
            time.sleep(0.01)
        second, third = send(), send()
        first.result()
    assert not any(b'"usage"' in found for found in (first.result(), second, third))
    assert {request.json()["stream_options"]["include_usage"] for request in provider.requests} == {True}
    assert dict(request.headers) == before
    assert seen(calls()) == [(True, "ok", "stream_final")] * 3


def test_one_request_that_two_tasks_send(app: Flask, calls: Ledger, provider: PlayedProvider, url: str) -> None:
    """The same for two tasks, one of which is cancelled: the other is not disturbed, and the request is given back."""
    provider.reply_with("chat/completions", delay=1.0)

    async def make() -> bytes:
        async with httpx.AsyncClient() as client:
            request = client.build_request("POST", url, json=STREAM)
            before = request.content, dict(request.headers)

            async def send() -> bytes:
                reply = await client.send(request, stream=True)
                return b"".join([piece async for piece in reply.aiter_bytes()])

            first = asyncio.create_task(send())
            while not provider.requests:
                await asyncio.sleep(0.01)
            found = await send()
            first.cancel()
            await asyncio.wait([first])
            assert (request.content, dict(request.headers)) == before
            return found

    with app.app_context():
        assert b'"usage"' not in asyncio.run(make())
    assert [request.json()["stream_options"] for request in provider.requests] == [{"include_usage": True}] * 2
    assert sorted(seen(calls())) == [(False, "interrupted", "unknown"), (True, "ok", "stream_final")]


@pytest.mark.parametrize("encoding", ["gzip", "deflate"])
def test_requests_reads_encoded_bodies(app: Flask, calls: Ledger, provider: PlayedProvider, url: str, encoding: Any) -> None:
    """Encoded streams are counted whether the app lets requests decode them or reads the raw bytes."""
    events = [{"model": "gpt-4o", "choices": [], "usage": {"prompt_tokens": 3, "completion_tokens": 2, "total_tokens": 5}}]
    provider.reply_with("chat/completions", events=events, encoding=encoding, times=2)
    with app.app_context(), requests.Session() as session:
        b"".join(session.post(url, json=ASKED, stream=True).iter_content(9))
        session.post(url, json=ASKED, stream=True).raw.read()
    assert [(call.input_tokens, call.output_tokens) for call in calls()] == [(3, 2), (3, 2)]


def test_requests_follows_a_redirect_as_one_call(app: Flask, calls: Ledger, provider: PlayedProvider, url: str) -> None:
    """A redirected call is one row."""
    provider.reply_with("away/chat/completions", status=307, headers={"Location": url}, body={"moved": True})
    with app.app_context(), requests.Session() as session:
        assert session.post(f"{provider.openai_url}/away/chat/completions", json=BODY).json()["choices"]
    assert len(calls()) == 1


def test_a_refused_connection_is_no_call_and_a_lost_one_is(
    app: Flask, calls: Ledger, provider: PlayedProvider, url: str
) -> None:
    """What never left costs nothing; what was sent and not answered may."""
    provider.reply_with("chat/completions", cut_after=0)
    with app.app_context(), requests.Session() as session:
        with pytest.raises(requests.ConnectionError):
            session.post("http://127.0.0.1:9/v1/chat/completions", json=BODY)
        with pytest.raises(requests.RequestException):
            session.post(url, json=BODY)
    (call,) = calls()
    assert call.outcome == "error"


def test_aiohttp_calls_and_streams(app: Flask, calls: Ledger, provider: PlayedProvider, url: str) -> None:
    """aiohttp: read whole, by line, in pieces and chunks, and broken off."""

    async def make() -> None:
        async with aiohttp.ClientSession() as session:
            async with session.post(url, json=BODY) as reply:
                assert (await reply.json())["choices"]
            async with session.post(url, json=ASKED) as reply:
                assert [line async for line in reply.content][-2] == b"data: [DONE]\n"
            async with session.post(url, data=json.dumps(ASKED)) as reply:
                assert b"[DONE]" in b"".join([piece async for piece in reply.content.iter_chunked(11)])
            async with session.post(url, json=ASKED) as reply:
                assert b"[DONE]" in b"".join([piece async for piece, _ in reply.content.iter_chunks()])
            async with session.post(url, json=ASKED) as reply:
                await reply.content.readany()
            del reply

    with app.app_context(), tags(via="aiohttp"):
        asyncio.run(make())
    found = calls()
    assert seen(found)[:4] == [(False, "ok", "response")] + [(True, "ok", "stream_final")] * 3
    assert len(found) == 5
    assert {tag.value for call in found for tag in call.tags} == {"aiohttp"}


async def aiohttp_ways(session: aiohttp.ClientSession, url: str, body: Any) -> list[bytes]:
    """What a stream's reader gives, by every way of reading it."""

    async def whole(reader: aiohttp.StreamReader) -> bytes:
        return await reader.read()

    async def lines(reader: aiohttp.StreamReader) -> bytes:
        return b"".join([line async for line in reader])

    async def pieces(reader: aiohttp.StreamReader) -> bytes:
        return b"".join([piece async for piece in reader.iter_chunked(11)])

    async def some(reader: aiohttp.StreamReader) -> bytes:
        return b"".join([piece async for piece in reader.iter_any()])

    async def chunks(reader: aiohttp.StreamReader) -> bytes:
        return b"".join([piece async for piece, _ in reader.iter_chunks()])

    async def events(reader: aiohttp.StreamReader) -> bytes:
        found = []
        while not reader.at_eof():
            found.append(await reader.readuntil(b"\n\n"))
        return b"".join(found)

    async def exactly(reader: aiohttp.StreamReader) -> bytes:
        with pytest.raises(asyncio.IncompleteReadError) as caught:
            await reader.readexactly(10**6)
        return caught.value.partial

    found = []
    for way in (whole, lines, pieces, some, chunks, events, exactly):
        async with session.post(url, json=body) as reply:
            found.append(await way(reply.content))
    async with session.post(url, data=json.dumps(body), headers={"content-type": "application/json"}) as reply:
        found.append(await reply.read())
    return found


def test_aiohttp_streams_are_asked(app: Flask, calls: Ledger, provider: PlayedProvider, url: str) -> None:
    """aiohttp's streams are asked for their usage: however they are read, the app gets the bytes of one that was not."""
    hidden = {"prompt_tokens": 3, "completion_tokens": 2, "total_tokens": 5}
    delta = {"id": "c", "model": "gpt-4o", "choices": [{"index": 0, "delta": {"content": "hello \u00e9"}}]}
    last = {"id": "c", "model": "gpt-4o", "choices": [], "usage": hidden}
    asked = [json.dumps({**delta, "usage": None}, separators=(",", ":")), json.dumps(last), "[DONE]"]
    seen_by_app = b"".join(f"data: {text}\n\n".encode() for text in (json.dumps(delta, separators=(",", ":")), "[DONE]"))
    provider.reply_with("chat/completions", events=asked, chunk_size=5, times=8)

    async def make() -> list[bytes]:
        async with aiohttp.ClientSession() as session:
            return await aiohttp_ways(session, url, STREAM)

    with app.app_context():
        assert asyncio.run(make()) == [seen_by_app] * 8
    assert [request.json()["stream_options"] for request in provider.requests] == [{"include_usage": True}] * 8
    assert {request.headers["content-type"].partition(";")[0] for request in provider.requests} == {"application/json"}
    assert [(call.input_tokens, call.output_tokens, call.usage_source) for call in calls()] == [(3, 2, "stream_final")] * 8


def test_an_aiohttp_stream_that_is_left_is_a_row_at_once(
    app: Flask, calls: Ledger, provider: PlayedProvider, url: str
) -> None:
    """Leaving the block of a response before its end is the end of the call: no collector is waited for."""
    rows: list[Any] = []
    words = [{"id": "c", "model": "gpt-4o", "choices": [{"index": 0, "delta": {"content": "word " * 20_000}}]}] * 40
    provider.reply_with("chat/completions", events=words, times=2)

    async def make() -> None:
        async with aiohttp.ClientSession() as session:
            for body in (STREAM, ASKED):
                async with session.post(url, json=body) as reply:
                    async for _ in reply.content:
                        break
                rows.append(seen(await asyncio.to_thread(calls)))

    with app.app_context():
        asyncio.run(make())
    assert rows[1] == [(True, "interrupted", "unknown")] * 2
    assert rows[0] == rows[1][:1]


def test_reading_nothing_is_no_end(make_app: Callable[..., Flask], provider: PlayedProvider, bedrock: Any, url: str) -> None:
    """A read of no bytes gives none, and the call goes on: what is read after it is counted."""
    app = make_app(hosts={provider.host: "bedrock"})
    reply = {"type": "message", "model": "claude", "usage": {"input_tokens": 3, "output_tokens": 2}, "content": []}
    provider.reply_with("/invoke", body=reply)
    provider.reply_with("chat/completions", usage={"prompt_tokens": 3, "completion_tokens": 2, "total_tokens": 5}, times=2)

    async def make() -> None:
        async with aiohttp.ClientSession() as session, session.post(url, json=BODY) as reply:
            assert await reply.content.read(0) == b""
            assert (await reply.json())["choices"]

    with app.app_context(), requests.Session() as session:
        asyncio.run(make())
        with session.post(url, json=BODY, stream=True) as streamed:
            assert streamed.raw.read(0) == b""
            assert json.loads(streamed.raw.read())["choices"]
        body = bedrock.invoke_model(modelId="anthropic.claude-sonnet-4-6-v1:0", body="{}")["body"]
        assert (body.read(0), json.loads(body.read())) == (b"", reply)
    assert [(call.outcome, call.input_tokens, call.output_tokens) for call in ledger_of(app)] == [("ok", 3, 2)] * 3


def ask_whose_call() -> dict[str, str]:
    return {"via": "function"}


@pytest.mark.parametrize("given", [{"via": "dict"}, ask_whose_call])
def test_a_session_with_an_adapter_is_pickled_and_copied(make_app: Callable[..., Flask], url: str, given: Any) -> None:
    """A session with our adapter in it pickles and copies as any other does, and its tags go with it."""
    app = make_app(instrument=[])
    with requests.Session() as session:
        session.mount("http://", LlmCostAdapter(tags=given, pool_maxsize=3))
        again = [pickle.loads(pickle.dumps(session)), copy.deepcopy(session)]
    with app.app_context():
        for other in again:
            with other:
                assert other.post(url, json=BODY).json()["choices"]
                assert other.get_adapter(url)._pool_maxsize == 3
    expected = given if isinstance(given, dict) else given()
    assert [{tag.key: tag.value for tag in call.tags} for call in ledger_of(app)] == [expected] * 2


def test_explicit_transports_need_no_patching(make_app: Callable[..., Flask], url: str) -> None:
    """With LLM_COST_INSTRUMENT=[] the adapter and the transports record all the same, with their tags."""
    app = make_app(instrument=[])

    async def make() -> None:
        async with httpx.AsyncClient(transport=AsyncLlmCostTransport(tags={"via": "async"})) as client:
            await client.post(url, json=BODY)

    with app.app_context():
        with httpx.Client(transport=LlmCostTransport(tags={"via": "httpx"})) as client:
            client.post(url, json=BODY)
        own = httpx2.HTTPTransport(retries=1)
        with httpx2.Client(transport=LlmCostTransport(own, tags=lambda: {"via": "httpx2"})) as client2:
            client2.post(url, json=BODY)
        with requests.Session() as session:
            session.mount("http://", LlmCostAdapter(tags={"via": "requests"}))
            session.post(url, json=BODY)
        asyncio.run(make())
    found = ledger_of(app)
    assert [{tag.key: tag.value for tag in call.tags} for call in found] == [
        {"via": "httpx"},
        {"via": "httpx2"},
        {"via": "requests"},
        {"via": "async"},
    ]
    assert {call.outcome for call in found} == {"ok"}


def test_explicit_and_patched_count_once(app: Flask, calls: Ledger, url: str) -> None:
    """With both, a call is one row; the block's tags win over the transport's."""
    with app.app_context(), tags(feature="block"):
        with httpx.Client(transport=LlmCostTransport(tags={"feature": "transport", "via": "transport"})) as client:
            client.post(url, json=BODY)
        with requests.Session() as session:
            session.mount("http://", LlmCostAdapter(tags={"feature": "adapter", "via": "adapter"}))
            session.post(url, json=BODY)
    assert [{tag.key: tag.value for tag in call.tags} for call in calls()] == [
        {"feature": "block", "via": "transport"},
        {"feature": "block", "via": "adapter"},
    ]


class HttpxOverAiohttp(httpx.AsyncBaseTransport):
    """A transport that sends by aiohttp, as litellm's and httpx-aiohttp's do."""

    async def handle_async_request(self, request: httpx.Request) -> httpx.Response:
        async with (
            aiohttp.ClientSession() as session,
            session.post(str(request.url), data=request.content, headers={"content-type": "application/json"}) as reply,
        ):
            return httpx.Response(reply.status, content=await reply.read())


def test_a_library_on_a_library_counts_once(app: Flask, calls: Ledger, url: str) -> None:
    """httpx that sends by aiohttp is one call."""

    async def make() -> None:
        async with httpx.AsyncClient(transport=HttpxOverAiohttp()) as client:
            await client.post(url, json=BODY)

    with app.app_context():
        asyncio.run(make())
    assert len(calls()) == 1


@pytest.fixture
def bedrock(bedrock_client: Callable[..., Any]) -> Any:
    return bedrock_client()


def test_clients_that_were_made_before_the_app(
    make_app: Callable[..., Flask], provider: PlayedProvider, bedrock_client: Callable[..., Any], url: str
) -> None:
    """Clients of a module that is imported before there is an app are watched like any other."""
    patching.uninstall()
    bedrock, session, client, client2 = bedrock_client(), requests.Session(), httpx.Client(), httpx2.Client()
    app = make_app(hosts={provider.host: "bedrock"})
    message = {"role": "assistant", "content": [{"text": "hi"}]}
    usage = {"inputTokens": 3, "outputTokens": 2, "totalTokens": 5}
    provider.reply_with("/converse", body={"usage": usage, "output": {"message": message}}, times=2)
    with app.app_context(), session, client, client2:
        for _ in range(2):
            bedrock.converse(modelId="anthropic.claude-sonnet-4-6-v1:0", messages=[])
        for made in (session, client, client2):
            made.post(url, json=BODY)
    assert [call.operation for call in ledger_of(app)] == ["converse"] * 2 + ["chat.completions"] * 3


def test_bedrock_counts_in_headers(make_app: Callable[..., Flask], provider: PlayedProvider, bedrock: Any) -> None:
    """A model whose JSON says nothing is counted by Bedrock's own headers, by botocore and by every other client."""
    app = make_app(hosts={provider.host: "bedrock"})
    headers = {"x-amzn-bedrock-input-token-count": "17", "X-Amzn-Bedrock-Output-Token-Count": "4"}
    provider.reply_with("/invoke", body={"outputs": [{"text": "hi"}]}, headers=headers, times=5)
    url = f"{provider.url}/model/mistral.mistral-7b-instruct-v0:2/invoke"

    async def by_aiohttp() -> None:
        async with aiohttp.ClientSession() as session, session.post(url, json={"prompt": "hi"}) as reply:
            await reply.read()

    with app.app_context():
        bedrock.invoke_model(modelId="mistral.mistral-7b-instruct-v0:2", body="{}")["body"].read()
        httpx.post(url, json={"prompt": "hi"})
        with httpx2.Client() as client, client.stream("POST", url, json={"prompt": "hi"}) as reply:
            reply.read()
        requests.post(url, json={"prompt": "hi"})
        asyncio.run(by_aiohttp())
    assert [(call.input_tokens, call.output_tokens) for call in ledger_of(app)] == [(17, 4)] * 5


def test_bedrock_by_threads_that_begin_together(
    make_app: Callable[..., Flask],
    provider: PlayedProvider,
    bedrock_client: Callable[..., Any],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The first calls of a client that threads share are heard once each, however close together they are."""
    app = make_app(hosts={provider.host: "bedrock"})
    message = {"role": "assistant", "content": [{"text": "hi"}]}
    usage = {"inputTokens": 3, "outputTokens": 2, "totalTokens": 5}
    provider.reply_with("/converse", body={"usage": usage, "output": {"message": message}}, times=80)
    add = hooks._PrefixTrie.append_item

    def add_slowly(self: Any, key: str, *args: Any, **kwargs: Any) -> None:
        if "before-call.bedrock-runtime.Converse" in key:
            time.sleep(0.01)  # between botocore's look for an id and its adding it, others have their turn
        add(self, key, *args, **kwargs)

    monkeypatch.setattr(hooks._PrefixTrie, "append_item", add_slowly)
    for _ in range(10):
        client, together = bedrock_client(), threading.Barrier(8)

        def ask(client: Any = client, together: threading.Barrier = together) -> None:
            together.wait()
            with app.app_context():
                client.converse(modelId="anthropic.claude-sonnet-4-6-v1:0", messages=[])

        threads = [threading.Thread(target=ask) for _ in range(8)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        heard = client.meta.events._emitter._handlers.prefix_search("before-call.bedrock-runtime.Converse")
        assert [handler.__name__ for handler in heard].count("_before") == 1
    assert len(ledger_of(app)) == 80


def test_bedrock_into_a_buffer(make_app: Callable[..., Flask], provider: PlayedProvider, bedrock: Any) -> None:
    """A body that is read into the app's buffer is counted as one that is read."""
    app = make_app(hosts={provider.host: "bedrock"})
    reply = {"type": "message", "model": "claude", "usage": {"input_tokens": 5, "output_tokens": 7}, "content": []}
    provider.reply_with("/invoke", body=reply)
    with app.app_context():
        body = bedrock.invoke_model(modelId="anthropic.claude-sonnet-4-6-v1:0", body="{}")["body"]
        assert json.loads(b"".join(by_filling(body))) == reply
    assert [(call.input_tokens, call.output_tokens, call.outcome) for call in ledger_of(app)] == [(5, 7, "ok")]


def test_bedrock_by_botocore(make_app: Callable[..., Flask], provider: PlayedProvider, bedrock: Any) -> None:
    """InvokeModel and Converse are counted, and the app reads its body as ever."""
    app = make_app(hosts={provider.host: "bedrock"})
    model = "anthropic.claude-sonnet-4-6-v1:0"
    reply = {"type": "message", "model": "claude", "usage": {"input_tokens": 5, "output_tokens": 7}, "content": []}
    provider.reply_with("/invoke", body=reply)
    provider.reply_with(
        "/converse",
        body={
            "usage": {"inputTokens": 11, "outputTokens": 13, "totalTokens": 24},
            "output": {"message": {"role": "assistant", "content": [{"text": "hi"}]}},
            "stopReason": "end_turn",
            "metrics": {"latencyMs": 3},
        },
    )
    with app.app_context():
        invoked = bedrock.invoke_model(modelId=model, body=json.dumps({"max_tokens": 5, "messages": []}))
        assert json.loads(invoked["body"].read()) == reply
        conversed = bedrock.converse(modelId=model, messages=[{"role": "user", "content": [{"text": "hi"}]}])
        assert conversed["usage"]["outputTokens"] == 13
    found = ledger_of(app)
    assert [(call.provider, call.input_tokens, call.output_tokens) for call in found] == [
        ("bedrock", 5, 7),
        ("bedrock", 11, 13),
    ]


def test_threads_share_the_transport_that_is_made_for_them(
    app: Flask, calls: Ledger, url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An explicit transport without one of the app's own has one pool, also where threads send their first calls at once."""
    used: list[httpx.HTTPTransport] = []
    barrier = threading.Barrier(4)

    class Slow(httpx.HTTPTransport):
        def __init__(self, *args: Any, **kwargs: Any) -> None:
            super().__init__(*args, **kwargs)
            barrier.wait(20)  # until each has found none

        def handle_request(self, request: httpx.Request) -> httpx.Response:
            used.append(self)
            return super().handle_request(request)

    def post(_: int) -> httpx.Response:
        with app.app_context():
            return client.post(url, json=BODY, timeout=20)

    with httpx.Client(transport=LlmCostTransport()) as client, ThreadPoolExecutor(4) as pool:
        monkeypatch.setattr(httpx, "HTTPTransport", Slow)
        replies = list(pool.map(post, range(4)))
    assert {reply.status_code for reply in replies} == {200}
    assert len(used) == 4
    assert len({id(transport) for transport in used}) == 1
    assert len(calls()) == 4
