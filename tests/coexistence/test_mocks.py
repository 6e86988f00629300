"""Beside the libraries that play HTTP in an app's tests: respx, responses and VCR, begun before us and after us."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from pathlib import Path
from typing import Any
from unittest import mock

import httpx
import pytest
import requests
import responses
import respx
import vcr
from flask import Flask

from flask_llm_cost.capture import patching
from flask_llm_cost.ledger import Call
from flask_llm_cost.testing.provider import PlayedProvider

MakeApp = Callable[[], Flask]
Tokens = Callable[[Flask], list[tuple[int | None, int | None]]]

URL = "https://api.openai.com/v1/chat/completions"
CHAT: Any = {"model": "gpt-4o", "messages": [{"role": "user", "content": "hello there"}]}
REPLY: Any = {
    "id": "chatcmpl-1",
    "object": "chat.completion",
    "model": "gpt-4o",
    "choices": [],
    "usage": {"prompt_tokens": 3, "completion_tokens": 2, "total_tokens": 5},
}
STREAM = b"".join(
    [
        b'data: {"id": "chatcmpl-1", "object": "chat.completion.chunk", "model": "gpt-4o", "choices": [{"delta": {}}]}\n\n',
        b'data: {"id": "chatcmpl-1", "model": "gpt-4o", "choices": [], "usage": {"prompt_tokens": 3,',
        b' "completion_tokens": 2, "total_tokens": 5}}\n\n',
        b"data: [DONE]\n\n",
    ]
)
EVENTS = {"content-type": "text/event-stream"}
ASKED: Any = {**CHAT, "stream": True, "stream_options": {"include_usage": True}}

FIRST = pytest.mark.parametrize("first", ["ours", "theirs"])


def by_httpx() -> None:
    async def twin() -> None:
        async with httpx.AsyncClient() as client:
            assert (await client.post(URL, json=CHAT)).json() == REPLY

    with httpx.Client() as client:
        assert client.post(URL, json=CHAT).json() == REPLY
    asyncio.run(twin())


def after(app: Flask, provider: PlayedProvider) -> int:
    """How many more rows there are after one call by each client that goes to a server again."""
    url = f"{provider.openai_url}/chat/completions"
    ledger = app.extensions["llm_cost"].ledger
    counted = []
    for make in (lambda: None, lambda: ask(url)):
        with app.app_context():
            make()
        assert ledger.flush(20)
        with ledger.session() as session:
            counted.append(session.query(Call).count())
    return counted[1] - counted[0]


def ask(url: str) -> None:
    async def twin() -> None:
        async with httpx.AsyncClient() as client:
            assert (await client.post(url, json=CHAT)).json()["choices"]

    with httpx.Client() as client:
        assert client.post(url, json=CHAT).json()["choices"]
    asyncio.run(twin())
    assert requests.post(url, json=CHAT, timeout=20).json()["choices"]


@pytest.mark.parametrize("library", ["respx", "responses", "vcr"])
def test_what_plays_is_played_without_us(
    make_app: MakeApp, tokens: Tokens, provider: PlayedProvider, tmp_path: Path, library: str
) -> None:
    """Taken back while a mock plays, our patches leave it playing and record nothing; put on again they record each once."""
    app = make_app()

    def play() -> None:
        with app.app_context(), respx.mock() if library == "respx" else responses.RequestsMock() as played:
            if library == "respx":
                played.post(URL).mock(return_value=httpx.Response(200, json=REPLY))
            else:
                played.post(URL, json=REPLY)
            for switch in (patching.uninstall, lambda: patching.install("auto")):
                switch()
                with httpx.Client() as client:
                    got = client.post(URL, json=CHAT) if library == "respx" else requests.post(URL, json=CHAT, timeout=20)
                assert got.json() == REPLY

    def record() -> None:
        url = f"{provider.openai_url}/chat/completions"
        for switch in (patching.uninstall, lambda: patching.install("auto")):
            with app.app_context(), vcr.use_cassette(str(tmp_path / "calls.yaml")):
                switch()
                assert requests.post(url, json=CHAT, timeout=20).json()["choices"]
        assert len(provider.requests) == 1

    record() if library == "vcr" else play()
    assert len(tokens(app)) == 1
    assert after(app, provider) == 3


@FIRST
def test_respx(make_app: MakeApp, tokens: Tokens, provider: PlayedProvider, first: str) -> None:
    """What respx answers is recorded once, respx counts its requests, and nothing of it stays when it ends."""
    app = make_app() if first == "ours" else None
    with respx.mock(base_url="https://api.openai.com") as played:
        route = played.post("/v1/chat/completions").mock(return_value=httpx.Response(200, json=REPLY))
        app = app or make_app()
        with app.app_context():
            by_httpx()
        assert route.call_count == 2
        route.mock(return_value=httpx.Response(200, content=STREAM, headers=EVENTS))
        with app.app_context(), httpx.Client() as client, client.stream("POST", URL, json=ASKED) as reply:
            assert b"".join(reply.iter_bytes()) == STREAM
    assert tokens(app) == [(3, 2)] * 3
    assert after(app, provider) == 3


@FIRST
def test_responses(make_app: MakeApp, tokens: Tokens, provider: PlayedProvider, first: str) -> None:
    """What responses answers for requests is recorded once, whole and streamed, and it still checks its calls."""
    app = make_app() if first == "ours" else None
    with responses.RequestsMock() as played:
        played.post(URL, json=REPLY)
        played.post(URL, body=STREAM, content_type="text/event-stream")
        app = app or make_app()
        with app.app_context(), requests.Session() as session:
            assert session.post(URL, json=CHAT).json() == REPLY
            with session.post(URL, json=ASKED, stream=True) as reply:
                assert b"".join(reply.iter_content(7)) == STREAM
        played.assert_call_count(URL, 2)
    assert tokens(app) == [(3, 2)] * 2
    assert after(app, provider) == 3


@FIRST
def test_vcr(make_app: MakeApp, tokens: Tokens, provider: PlayedProvider, tmp_path: Path, first: str) -> None:
    """What VCR records, and what it plays again, is recorded once each time, and the cassette holds what the app sent."""
    url = f"{provider.openai_url}/chat/completions"
    app = make_app() if first == "ours" else None
    got = []
    for played in (0, 2):
        with vcr.use_cassette(str(tmp_path / "calls.yaml")) as cassette:
            app = app or make_app()
            with app.app_context(), httpx.Client() as client:
                got.append(client.post(url, json=CHAT).json())
                got.append(requests.post(url, json={**CHAT, "n": 1}, timeout=20).json())
            assert cassette.play_count == played
            assert [request.body for request in cassette.requests] == [request.body for request in provider.requests]
    assert got[:2] == got[2:]
    assert len(provider.truth) == 2
    usage = [(entry.usage["prompt_tokens"], entry.usage["completion_tokens"]) for entry in provider.truth]
    assert tokens(app) == usage * 2
    assert after(app, provider) == 3


def test_our_patches_are_taken_back(make_app: MakeApp) -> None:
    """Uninstalled, the classes hold the very functions that they held before, and nothing is listed as patched."""
    before = {name: owner.__dict__["send"] for name, owner in owners().items()}
    make_app()
    assert all(owner.__dict__["send"] is not before[name] for name, owner in owners().items())
    patching.uninstall()
    assert {name: owner.__dict__["send"] for name, owner in owners().items()} == before
    assert patching.patched() == []


def test_a_mock_that_puts_back_what_it_found_does_not_switch_us_off(
    make_app: MakeApp, tokens: Tokens, provider: PlayedProvider
) -> None:
    """Whoever replaced ``send`` before us and restores it after us takes our patch away: the next app sets it again."""
    url = f"{provider.openai_url}/chat/completions"
    with mock.patch.object(httpx.Client, "send", autospec=True):
        make_app()
    app = make_app()
    with app.app_context(), httpx.Client() as client:
        client.post(url, json=CHAT)
    assert len(tokens(app)) == 1


def test_a_stand_in_gets_the_options_that_were_given(make_app: MakeApp, monkeypatch: pytest.MonkeyPatch) -> None:
    """Who replaced ``send`` before us may know fewer options than the library: none is passed on that nobody gave."""
    seen: list[dict[str, Any]] = []

    def stand_in(self: Any, request: httpx.Request, **options: Any) -> httpx.Response:
        seen.append(options)
        return httpx.Response(200, json=REPLY, request=request)

    async def twin(self: Any, request: httpx.Request, **options: Any) -> httpx.Response:
        return stand_in(self, request, **options)

    async def wait(client: httpx.AsyncClient, request: httpx.Request, **options: Any) -> None:
        await client.send(request, **options)

    patching.uninstall()
    monkeypatch.setattr(httpx.Client, "send", stand_in)
    monkeypatch.setattr(httpx.AsyncClient, "send", twin)
    app = make_app()
    given: list[dict[str, Any]] = [{}, {"stream": False}, {"auth": None, "follow_redirects": True}, {"timeout": 3}]
    with app.app_context(), httpx.Client() as client:
        for url in (URL, "https://shop.example/orders"):
            for options in given:
                client.send(client.build_request("POST", url, json=CHAT), **options)
                asyncio.run(wait(httpx.AsyncClient(), client.build_request("POST", url, json=CHAT), **options))
    patching.uninstall()
    assert seen == [options for options in given for _ in "ab"] * 2


def owners() -> dict[str, type]:
    return {"sync": httpx.Client, "async": httpx.AsyncClient, "requests": requests.Session}
