"""Streams through the adapter and the transports that an app sets up itself, with nothing patched."""

from __future__ import annotations

import asyncio
import contextlib
import gc
from collections.abc import Callable
from typing import Any

import httpx
import httpx2
import pytest
import requests
from flask import Flask
from played_app import ledger_of

from flask_llm_cost.capture import patching
from flask_llm_cost.capture.httpx import AsyncLlmCostTransport, LlmCostTransport
from flask_llm_cost.capture.requests import LlmCostAdapter  # type: ignore[attr-defined]  # made on demand
from flask_llm_cost.testing.provider import PlayedProvider

STREAM: Any = {"model": "gpt-4o", "messages": [{"role": "user", "content": "hello there"}], "stream": True}
USAGE = {"prompt_tokens": 7, "completion_tokens": 5, "total_tokens": 12}
TAGS = {"via": "explicit"}

#: Reads a stream whole, or leaves it after its first piece, and gives what was read.
Read = Callable[[str, bool], bytes]


def by_transport(library: Any) -> Read:
    def read(url: str, leave: bool) -> bytes:
        content = b""
        with (
            library.Client(transport=LlmCostTransport(library.HTTPTransport(), tags=TAGS)) as client,
            client.stream("POST", url, json=STREAM) as reply,
        ):
            for piece in reply.iter_bytes():
                content += piece
                if leave:
                    break
        return content

    return read


def by_async_transport(library: Any) -> Read:
    async def send(url: str, leave: bool) -> bytes:
        content = b""
        transport = AsyncLlmCostTransport(library.AsyncHTTPTransport(), tags=lambda: TAGS)
        async with (
            library.AsyncClient(transport=transport) as client,
            client.stream("POST", url, json=STREAM) as reply,
            contextlib.aclosing(reply.aiter_bytes()) as pieces,
        ):
            async for piece in pieces:
                content += piece
                if leave:
                    break
        return content

    return lambda url, leave: asyncio.run(send(url, leave))


def by_adapter(url: str, leave: bool) -> bytes:
    content = b""
    with requests.Session() as session:
        session.mount("http://", LlmCostAdapter(tags=TAGS))
        with session.post(url, json=STREAM, stream=True) as reply:
            for piece in reply.iter_content(None):
                content += piece
                if leave:
                    break
    return content


WAYS: Any = [
    pytest.param(by_transport(httpx), id="httpx"),
    pytest.param(by_transport(httpx2), id="httpx2"),
    pytest.param(by_async_transport(httpx), id="httpx async"),
    pytest.param(by_async_transport(httpx2), id="httpx2 async"),
    pytest.param(by_adapter, id="requests"),
]


@pytest.mark.parametrize("read", WAYS)
def test_a_stream_of_an_unpatched_client(make_app: Callable[..., Flask], provider: PlayedProvider, read: Read) -> None:
    """Read whole it is one row with its usage, left it is one that was interrupted; each has the tags of the transport."""
    app = make_app(instrument=[])
    url = f"{provider.openai_url}/chat/completions"
    provider.reply_with("chat/completions", usage=USAGE)
    with app.app_context():
        whole = read(url, False)
        provider.pace = 0.05
        try:
            left = read(url, True)
        finally:
            provider.pace = 0.0
    gc.collect()
    assert whole.endswith(b"data: [DONE]\n\n")
    assert left
    assert not left.endswith(b"data: [DONE]\n\n")
    assert [request.json()["stream_options"] for request in provider.requests] == [{"include_usage": True}] * 2
    assert b'"usage"' not in whole
    first, second = ledger_of(app)
    assert (first.input_tokens, first.output_tokens, first.usage_source, first.outcome) == (7, 5, "stream_final", "ok")
    assert (second.usage_source, second.outcome, second.total_cost) == ("unknown", "interrupted", None)
    assert [{tag.key: tag.value for tag in call.tags} for call in (first, second)] == [TAGS] * 2


@pytest.mark.parametrize("read", WAYS)
def test_a_stream_of_a_patched_client_counts_once(
    make_app: Callable[..., Flask], provider: PlayedProvider, read: Read
) -> None:
    """Where the client is patched as well, a stream is one row all the same, with the tags of the transport."""
    app = make_app()
    assert patching.patched()
    provider.reply_with("chat/completions", usage=USAGE)
    with app.app_context():
        read(f"{provider.openai_url}/chat/completions", False)
    (call,) = ledger_of(app)
    assert (call.input_tokens, call.output_tokens, call.usage_source) == (7, 5, "stream_final")
    assert {tag.key: tag.value for tag in call.tags} == TAGS
