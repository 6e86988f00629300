"""Between the app and the first bytes of a reply: redirects, cancelled waits, bodies that must not change, held events."""

from __future__ import annotations

import asyncio
import functools
import gzip
import json
import threading
import time
from collections.abc import Awaitable, Callable, Mapping
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import aiohttp
import httpx
import httpx2
import pytest
import requests
import urllib3
from flask import Flask
from played_app import ledger_of
from requests.adapters import HTTPAdapter

from flask_llm_cost.capture.httpx import LlmCostTransport
from flask_llm_cost.capture.requests import LlmCostAdapter  # type: ignore[attr-defined]  # made on demand
from flask_llm_cost.ledger import Call
from flask_llm_cost.testing.provider import PlayedProvider

Ledger = Callable[[], list[Call]]
Content = bytes
Headers = Mapping[str, str]

JSON = {"content-type": "application/json"}
ASK = json.dumps({"model": "gpt-4o", "messages": [{"role": "user", "content": "hello there"}]}).encode()
STREAM = json.dumps({"model": "gpt-4o", "messages": [{"role": "user", "content": "hello there"}], "stream": True}).encode()


def by_httpx(url: str, content: Content, headers: Headers) -> bytes:
    with (
        httpx.Client(follow_redirects=True) as client,
        client.stream("POST", url, content=content, headers=dict(headers)) as reply,
    ):
        return reply.read()


def by_httpx2(url: str, content: Content, headers: Headers) -> bytes:
    with (
        httpx2.Client(follow_redirects=True) as client,
        client.stream("POST", url, content=content, headers=dict(headers)) as reply,
    ):
        return reply.read()


def by_requests(url: str, content: Content, headers: Headers) -> bytes:
    with requests.post(url, data=content, headers=dict(headers), stream=True, timeout=20) as reply:
        return reply.content


async def send_by_httpx(url: str, content: Content, headers: Headers) -> bytes:
    async with (
        httpx.AsyncClient(follow_redirects=True) as client,
        client.stream("POST", url, content=content, headers=dict(headers)) as reply,
    ):
        return await reply.aread()


async def send_by_httpx2(url: str, content: Content, headers: Headers) -> bytes:
    async with (
        httpx2.AsyncClient(follow_redirects=True) as client,
        client.stream("POST", url, content=content, headers=dict(headers)) as reply,
    ):
        return await reply.aread()


async def send_by_aiohttp(url: str, content: Content, headers: Headers) -> bytes:
    async with aiohttp.ClientSession() as session, session.post(url, data=content, headers=dict(headers)) as reply:
        return await reply.read()


def waited(send: Callable[[str, Content, Headers], Awaitable[bytes]]) -> Callable[[str, Content, Headers], bytes]:
    def run(url: str, content: Content, headers: Headers) -> bytes:
        async def wait() -> bytes:
            return await send(url, content, headers)

        return asyncio.run(wait())

    return run


ASYNC: Any = [
    pytest.param(send_by_httpx, id="httpx async"),
    pytest.param(send_by_httpx2, id="httpx2 async"),
    pytest.param(send_by_aiohttp, id="aiohttp"),
]
EVERY: Any = [
    pytest.param(by_httpx, id="httpx"),
    pytest.param(by_httpx2, id="httpx2"),
    pytest.param(by_requests, id="requests"),
    *(pytest.param(waited(param.values[0]), id=param.id) for param in ASYNC),
]


@pytest.mark.parametrize("send", EVERY)
def test_a_redirected_call_is_one_row(app: Flask, calls: Ledger, provider: PlayedProvider, send: Any) -> None:
    """However many places it is sent on to, a call is the one row that was billed."""
    url = f"{provider.openai_url}/chat/completions"
    for place, target in (("one", f"{provider.openai_url}/two/chat/completions"), ("two", url)):
        provider.reply_with(f"{place}/chat/completions", status=307, headers={"Location": target}, body={"moved": True})
    with app.app_context():
        reply = json.loads(send(f"{provider.openai_url}/one/chat/completions", ASK, JSON))
    assert reply["choices"]
    assert len(provider.requests) == 3
    (call,) = calls()
    assert (call.outcome, call.input_tokens) == ("ok", reply["usage"]["prompt_tokens"])


def stay_by_httpx(url: str) -> int:
    return httpx.post(url, content=ASK, headers=JSON).status_code


def stay_by_httpx2(url: str) -> int:
    with httpx2.Client() as client, client.stream("POST", url, content=STREAM, headers=JSON) as reply:
        return int(reply.status_code)


def stay_by_requests(url: str) -> int:
    return requests.post(url, data=ASK, headers=JSON, allow_redirects=False, timeout=20).status_code


def stay_by_aiohttp(url: str) -> int:
    async def send() -> int:
        session = aiohttp.ClientSession()
        async with session, session.post(url, data=ASK, headers=JSON, allow_redirects=False) as reply:
            return reply.status

    return asyncio.run(send())


@pytest.mark.parametrize("stay", [stay_by_httpx, stay_by_httpx2, stay_by_requests, stay_by_aiohttp])
def test_a_redirect_that_nobody_follows_is_no_call(
    app: Flask, calls: Ledger, provider: PlayedProvider, stay: Callable[[str], int]
) -> None:
    """A reply that names another place was not billed: it leaves no row where the app does not go there, or goes itself."""
    url = f"{provider.openai_url}/chat/completions"
    provider.reply_with("one/chat/completions", status=307, headers={"Location": url}, body={"moved": True})
    with app.app_context():
        assert stay(f"{provider.openai_url}/one/chat/completions") == 307
        assert calls() == []
        assert stay(url) == 200
    assert len(calls()) == 1


def test_a_redirect_under_an_explicit_transport_is_one_row(make_app: Callable[..., Flask], provider: PlayedProvider) -> None:
    """Below a client that follows, an adapter or transport sees both replies, and records the one that was billed."""
    app = make_app(instrument=[])
    url = f"{provider.openai_url}/chat/completions"
    provider.reply_with("one/chat/completions", status=307, headers={"Location": url}, body={"moved": True}, times=2)
    client, session = httpx.Client(transport=LlmCostTransport(), follow_redirects=True), requests.Session()
    session.mount("http://", LlmCostAdapter())
    with app.app_context(), client, session:
        for sender in (client, session):
            assert sender.post(f"{provider.openai_url}/one/chat/completions", json=json.loads(ASK)).json()["choices"]
    assert [(call.outcome, call.http_status) for call in ledger_of(app)] == [("ok", 200)] * 2


def test_going_in_circles_is_no_call(app: Flask, calls: Ledger, provider: PlayedProvider) -> None:
    """A client that gives up following has been billed for nothing: no row."""
    url = f"{provider.openai_url}/chat/completions"
    provider.reply_with("chat/completions", status=307, headers={"Location": url}, body={"moved": True}, times=99)

    async def send() -> None:
        async with aiohttp.ClientSession() as session:
            with pytest.raises(aiohttp.TooManyRedirects):
                await session.post(url, data=ASK, headers=JSON)

    with app.app_context():
        with pytest.raises(httpx.TooManyRedirects):
            httpx.post(url, content=ASK, headers=JSON, follow_redirects=True)
        with pytest.raises(requests.TooManyRedirects):
            requests.post(url, data=ASK, headers=JSON, timeout=20)
        asyncio.run(send())
    assert calls() == []


def test_refusals_that_requests_gives_up_on_are_no_call(app: Flask, calls: Ledger, provider: PlayedProvider) -> None:
    """503 until the session's retries are used up is an error of requests' own, and no row, as one 503 is none."""
    provider.reply_with("chat/completions", status=503, times=4)
    retry = urllib3.Retry(total=2, status_forcelist=[503], allowed_methods=None, backoff_factor=0)
    url = f"{provider.openai_url}/chat/completions"
    with app.app_context(), requests.Session() as session:
        assert session.post(url, data=ASK, headers=JSON).status_code == 503
        session.mount("http://", HTTPAdapter(max_retries=retry))
        with pytest.raises(requests.exceptions.RetryError):
            session.post(url, data=ASK, headers=JSON)
    assert len(provider.requests) == 4
    assert calls() == []


@pytest.mark.parametrize("send", ASYNC)
def test_a_wait_that_is_cancelled_may_have_been_billed(
    app: Flask, calls: Ledger, provider: PlayedProvider, send: Any
) -> None:
    """Cancelled before the reply has begun: the cancellation goes on, and one row says that nobody knows what it cost."""
    provider.reply_with("chat/completions", delay=5.0)

    async def cancel() -> None:
        task = asyncio.create_task(send(f"{provider.openai_url}/chat/completions", ASK, JSON))
        while not provider.requests:
            await asyncio.sleep(0.01)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task

    with app.app_context():
        asyncio.run(cancel())
    (call,) = calls()
    assert (call.outcome, call.error_class, call.usage_source) == ("interrupted", "CancelledError", "unknown")
    assert (call.requested_model, call.total_cost) == ("gpt-4o", None)


FIXED: Any = [
    pytest.param({"content-encoding": "gzip"}, id="packed"),
    pytest.param({"content-encoding": "identity"}, id="encoded"),
    pytest.param({"authorization": "AWS4-HMAC-SHA256 Credential=x"}, id="signed for AWS"),
    pytest.param({"content-digest": "sha-256=:x:"}, id="with a digest"),
    pytest.param({"signature": "sig=:x:"}, id="signed"),
]


@pytest.mark.parametrize("fixed", FIXED)
@pytest.mark.parametrize("send", EVERY)
def test_a_body_that_something_vouches_for_is_not_touched(
    app: Flask, provider: PlayedProvider, send: Any, fixed: Headers
) -> None:
    """A signed or an encoded body is sent byte for byte, by each client; without the header it is asked for its usage."""
    content = gzip.compress(STREAM) if fixed.get("content-encoding") == "gzip" else STREAM
    provider.reply_with("chat/completions", events=["[DONE]"], times=2)
    with app.app_context():
        send(f"{provider.openai_url}/chat/completions", content, {**JSON, **fixed})
        send(f"{provider.openai_url}/chat/completions", STREAM, JSON)
    untouched, asked = provider.requests
    assert untouched.body == content
    assert asked.json()["stream_options"] == {"include_usage": True}


async def send_by_session(url: str, content: Content, headers: Headers) -> bytes:
    async with aiohttp.ClientSession(headers=dict(headers)) as session, session.post(url, data=content) as reply:
        return await reply.read()


@pytest.mark.parametrize("send", [*EVERY, pytest.param(waited(send_by_session), id="aiohttp's session")])
def test_a_length_that_the_app_says_fits_the_body_that_is_sent(app: Flask, provider: PlayedProvider, send: Any) -> None:
    """A body that is asked for its usage arrives whole where the app gives its length, and the app's own headers stay."""
    provider.reply_with("chat/completions", events=["[DONE]"])
    headers = {**JSON, "Content-Length": str(len(STREAM)), "x-own": "1"}
    with app.app_context():
        send(f"{provider.openai_url}/chat/completions", STREAM, headers)
    (request,) = provider.requests
    assert request.json()["stream_options"] == {"include_usage": True}
    assert (request.headers["content-length"], request.headers["x-own"]) == (str(len(request.body)), "1")
    assert headers["Content-Length"] == str(len(STREAM))


class TakesChunks(BaseHTTPRequestHandler):
    """Answers a body that is sent in chunks with a stream, and keeps what was sent on its server."""

    protocol_version = "HTTP/1.1"

    def do_POST(self) -> None:
        body = b""
        while size := int(self.rfile.readline(), 16):
            body += self.rfile.read(size)
            self.rfile.readline()
        self.rfile.readline()
        vars(self.server).update(sent=json.loads(body), lengths=self.headers.get_all("content-length"))
        self.send_response(200)
        self.send_header("content-type", "text/event-stream")
        self.send_header("content-length", "14")
        self.end_headers()
        self.wfile.write(b"data: [DONE]\n\n")

    def log_message(self, format: str, *args: Any) -> None:
        """Quiet."""


def chunks_by_requests(url: str, content: Content, headers: Headers) -> bytes:
    with requests.Session() as session:
        prepared = session.prepare_request(requests.Request("POST", url, data=content, headers=dict(headers)))
        del prepared.headers["content-length"]
        return session.send(prepared, stream=True, timeout=20).content


def chunks_by_httpx(library: Any, url: str, content: Content, headers: Headers) -> bytes:
    with library.Client() as client:
        request = client.build_request("POST", url, content=content, headers={**headers, "transfer-encoding": "chunked"})
        request.headers.pop("content-length", None)  # httpx gives one all the same, httpx2 does not
        found: bytes = client.send(request, stream=True).read()
        return found


CHUNKED: Any = [functools.partial(chunks_by_httpx, httpx), functools.partial(chunks_by_httpx, httpx2), chunks_by_requests]


@pytest.mark.parametrize("send", CHUNKED, ids=["httpx", "httpx2", "requests"])
def test_a_body_that_the_app_sends_in_chunks_has_no_length(make_app: Callable[..., Flask], send: Any) -> None:
    """Asked for its usage or not, what the app sends in chunks goes out so: a length beside that is against the protocol."""
    with ThreadingHTTPServer(("127.0.0.1", 0), TakesChunks) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        host = f"127.0.0.1:{server.server_port}"
        with make_app(hosts={host: "openai"}).app_context():
            assert send(f"http://{host}/v1/chat/completions", STREAM, JSON) == b"data: [DONE]\n\n"
        server.shutdown()
        assert vars(server)["sent"]["stream_options"] == {"include_usage": True}
        assert vars(server)["lengths"] is None


CHUNK: Any = {"id": "c", "object": "chat.completion.chunk", "model": "gpt-4o", "choices": [{"index": 0, "delta": {}}]}


def first_by_httpx(url: str) -> bytes:
    with httpx.Client() as client, client.stream("POST", url, content=STREAM, headers=JSON) as reply:
        return next(reply.iter_bytes())


def first_by_httpx2(url: str) -> bytes:
    with httpx2.Client() as client, client.stream("POST", url, content=STREAM, headers=JSON) as reply:
        return next(reply.iter_bytes())


def first_by_requests(url: str) -> bytes:
    with requests.post(url, data=STREAM, headers=JSON, stream=True, timeout=20) as reply:
        first: bytes = next(reply.iter_content(None))
        return first


def first_by_aiohttp(url: str) -> bytes:
    async def read() -> bytes:
        async with aiohttp.ClientSession() as session, session.post(url, data=STREAM, headers=JSON) as reply:
            return await reply.content.readany()

    return asyncio.run(read())


@pytest.mark.parametrize("first", [first_by_httpx, first_by_httpx2, first_by_requests, first_by_aiohttp])
def test_no_event_is_held_back(app: Flask, provider: PlayedProvider, first: Callable[[str], bytes]) -> None:
    """Each event of a stream that was asked for its usage is with the app when it comes, not when the next one does."""
    provider.pace = 1.5  # before each event: the second is there after three seconds
    provider.reply_with("chat/completions", events=[CHUNK, CHUNK, "[DONE]"])
    try:
        with app.app_context():
            start = time.monotonic()
            got = first(f"{provider.openai_url}/chat/completions")
    finally:
        provider.pace = 0.0
    assert time.monotonic() - start < 2.5
    assert json.loads(got.removeprefix(b"data: ")) == CHUNK
    assert provider.requests[0].json()["stream_options"] == {"include_usage": True}
