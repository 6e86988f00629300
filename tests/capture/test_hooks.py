"""What an app hangs into its client, hooks, middlewares, transports, may read the reply, or make calls of its own."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterator
from typing import Any

import aiohttp
import httpx
import pytest
import requests
from flask import Flask
from played_app import ledger_of

from flask_llm_cost.ledger import Call
from flask_llm_cost.testing.provider import PlayedProvider

Ledger = Callable[[], list[Call]]

BODY: Any = {"model": "gpt-4o", "messages": [{"role": "user", "content": "hello there"}]}


@pytest.fixture
def other_provider() -> Iterator[PlayedProvider]:
    with PlayedProvider() as provider:
        yield provider


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
