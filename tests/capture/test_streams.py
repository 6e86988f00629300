"""Streams: what the app sees does not change, and however they end there is one row."""

from __future__ import annotations

import asyncio
import gc
import json
from collections.abc import Callable
from typing import Any

import httpx
import httpx2
import openai
import pytest
from flask import Flask
from played_app import ledger_of

from flask_llm_cost.capture import patching
from flask_llm_cost.ledger import Call
from flask_llm_cost.testing.provider import PlayedProvider

Ledger = Callable[[], list[Call]]

QUESTION: Any = [{"role": "user", "content": "count to twenty, slowly and with care"}]
ASK = {"model": "gpt-4o", "messages": QUESTION, "stream": True}


def raw_stream(library: Any, provider: PlayedProvider, body: dict[str, Any]) -> tuple[list[bytes], dict[str, str]]:
    """The decoded pieces of a streamed reply, and its headers, as a plain HTTP client sees them."""
    with (
        library.Client() as client,
        client.stream(
            "POST", f"{provider.openai_url}/chat/completions", json=body, headers={"user-agent": "OpenAI/Python"}
        ) as reply,
    ):
        return list(reply.iter_bytes()), dict(reply.headers)


@pytest.mark.parametrize("library", [httpx, httpx2], ids=lambda library: library.__name__)
def test_the_app_reads_the_very_bytes_that_it_would_have_read(
    app: Flask, calls: Ledger, provider: PlayedProvider, library: Any
) -> None:
    """A stream that we ask for usage gives the app the same bytes as one that nobody asked, and gives us the usage."""
    provider.reply_with("chat/completions", usage={"prompt_tokens": 7, "completion_tokens": 5, "total_tokens": 12}, times=2)
    patching.uninstall()
    try:
        bare, _ = raw_stream(library, provider, ASK)
    finally:
        patching.install("auto")
    with app.app_context():
        watched, _ = raw_stream(library, provider, ASK)
    assert "stream_options" not in provider.requests[0].json()
    assert provider.requests[1].json()["stream_options"] == {"include_usage": True}
    assert without_names(b"".join(watched)) == without_names(b"".join(bare))
    (call,) = calls()
    assert (call.input_tokens, call.output_tokens, call.usage_source) == (7, 5, "stream_final")


def without_names(stream: bytes) -> list[Any]:
    """The events with what is made anew for each reply taken out; text outside JSON is kept as it is."""
    events = []
    for line in stream.decode().split("\n"):
        try:
            body = json.loads(line.removeprefix("data: "))
        except ValueError:
            events.append(line)
        else:
            events.append([(key, value) for key, value in body.items() if key not in ("id", "created")])
    return events


@pytest.mark.parametrize("encoding", ["gzip", "br", "deflate"])
def test_an_encoded_stream_is_read_on_a_copy(
    app: Flask, calls: Ledger, provider: PlayedProvider, openai_client: openai.OpenAI, encoding: Any
) -> None:
    """Compressed streams, also one that we asked for its usage, reach the app and the ledger whole."""
    asked = [
        {
            "id": "c",
            "object": "chat.completion.chunk",
            "model": "gpt-4o",
            "choices": [{"index": 0, "delta": {"content": word}}],
        }
        | {"usage": None}
        for word in ("one ", "two ")
    ]
    last = {**asked[0], "choices": [], "usage": {"prompt_tokens": 3, "completion_tokens": 2, "total_tokens": 5}}
    provider.reply_with("chat/completions", events=[*asked, last, "[DONE]"], encoding=encoding, chunk_size=7)
    with app.app_context():
        chunks = list(openai_client.chat.completions.create(model="gpt-4o", messages=QUESTION, stream=True))
    assert [chunk.choices[0].delta.content for chunk in chunks] == ["one ", "two "]
    (call,) = calls()
    assert (call.input_tokens, call.output_tokens, call.usage_source) == (3, 2, "stream_final")


@pytest.mark.parametrize("size", [1, 13, "line", None])
def test_the_size_of_the_pieces_does_not_matter(
    app: Flask, calls: Ledger, provider: PlayedProvider, openai_client: openai.OpenAI, size: Any
) -> None:
    """A stream in single bytes, odd pieces, lines or events gives the app the same chunks and the ledger the same row."""
    provider.reply_with(
        "chat/completions", usage={"prompt_tokens": 7, "completion_tokens": 5, "total_tokens": 12}, chunk_size=size
    )
    with app.app_context():
        chunks = list(openai_client.chat.completions.create(model="gpt-4o", messages=QUESTION, stream=True))
    assert all(chunk.choices and chunk.usage is None for chunk in chunks)
    assert "".join(chunk.choices[0].delta.content or "" for chunk in chunks)
    (call,) = calls()
    assert (call.input_tokens, call.output_tokens) == (7, 5)


@pytest.mark.parametrize("library", [httpx, httpx2], ids=lambda library: library.__name__)
@pytest.mark.parametrize("kind", ["text/plain", "application/json", ""])
@pytest.mark.parametrize("size", [1, None])
def test_a_stream_that_is_called_something_else(
    app: Flask, calls: Ledger, provider: PlayedProvider, library: Any, kind: str, size: int | None
) -> None:
    """Events under a wrong content type are counted as events, and the one that we asked for stays away from the app."""
    chunk = {"id": "c", "object": "chat.completion.chunk", "model": "gpt-4o", "choices": [{"index": 0, "delta": {}}]}
    usage = {**chunk, "choices": [], "usage": {"prompt_tokens": 7, "completion_tokens": 5, "total_tokens": 12}}
    events = [f"data: {json.dumps(event)}\n\n".encode() for event in (chunk, usage)]
    done = b"data: [DONE]\n\n"
    provider.reply_with("chat/completions", events=[*events, done], headers={"content-type": kind}, chunk_size=size)
    with app.app_context():
        pieces, _ = raw_stream(library, provider, ASK)
    assert b"".join(pieces) == events[0] + done
    (call,) = calls()
    assert (call.input_tokens, call.output_tokens, call.usage_source, call.stream) == (7, 5, "stream_final", True)


@pytest.mark.parametrize("explicit", [{"include_usage": True}, {"include_usage": False}])
def test_an_explicit_choice_of_the_app_is_respected(
    app: Flask, calls: Ledger, provider: PlayedProvider, openai_client: openai.OpenAI, explicit: Any
) -> None:
    """Who asks for usage gets the event with it; who says no gets no usage, and the row says that it is unknown."""
    with app.app_context():
        chunks = list(
            openai_client.chat.completions.create(model="gpt-4o", messages=QUESTION, stream=True, stream_options=explicit)
        )
    assert provider.requests[0].json()["stream_options"] == explicit
    assert any(chunk.usage for chunk in chunks) is explicit["include_usage"]
    (call,) = calls()
    assert call.usage_source == ("stream_final" if explicit["include_usage"] else "unknown")
    assert (call.total_cost is not None) is explicit["include_usage"]


@pytest.mark.parametrize("options", [{"include_obfuscation": False}, {}])
def test_options_that_say_nothing_of_usage_are_kept(
    app: Flask, calls: Ledger, provider: PlayedProvider, openai_client: openai.OpenAI, options: Any
) -> None:
    """Options without a word on usage go out as they are with the question added, whose answer the app does not see."""
    with app.app_context():
        chunks = list(
            openai_client.chat.completions.create(model="gpt-4o", messages=QUESTION, stream=True, stream_options=options)
        )
    assert provider.requests[0].json()["stream_options"] == {"include_usage": True, **options}
    assert all(chunk.choices and chunk.usage is None for chunk in chunks)
    assert [call.usage_source for call in calls()] == ["stream_final"]


def test_switched_off_no_stream_is_asked(
    make_app: Callable[..., Flask], provider: PlayedProvider, openai_client: openai.OpenAI, caplog: pytest.LogCaptureFixture
) -> None:
    """With LLM_COST_STREAM_USAGE off the request goes out as it is, and a warning names the remedy."""
    app = make_app(stream_usage=False)
    with app.app_context():
        list(openai_client.chat.completions.create(model="gpt-4o", messages=QUESTION, stream=True))
    assert "stream_options" not in provider.requests[0].json()
    assert "include_usage" in caplog.text


def test_a_reply_that_is_read_whole_is_not_asked(
    app: Flask, calls: Ledger, provider: PlayedProvider, caplog: pytest.LogCaptureFixture
) -> None:
    """Where the client reads the whole stream before anybody can take an event out, nothing is asked or changed but said."""
    with app.app_context(), httpx.Client() as client:
        reply = client.post(f"{provider.openai_url}/chat/completions", json=ASK)
    assert "stream_options" not in provider.requests[0].json()
    assert b'"usage"' not in reply.content
    (call,) = calls()
    assert (call.stream, call.outcome, call.usage_source) == (True, "ok", "unknown")
    assert "set stream_options={'include_usage': True} on the call" in caplog.text


def test_a_listed_host_is_asked_on_every_path(make_app: Callable[..., Flask], provider: PlayedProvider) -> None:
    """A gateway whose paths say nothing is asked for usage where LLM_COST_STREAM_USAGE names it; unnamed, it is not."""
    chunk = {"id": "c", "model": "m", "choices": [{"index": 0, "delta": {"content": "hi"}}]}
    usage = {"prompt_tokens": 3, "completion_tokens": 2, "total_tokens": 5}
    rows = []
    for listed in ([provider.host], True):
        provider.reply_with("/talk", events=[chunk, {**chunk, "choices": [], "usage": usage}, "[DONE]"])
        app = make_app(hosts={provider.host: "gateway"}, stream_usage=listed)
        with app.app_context(), httpx.Client() as client:
            with client.stream("POST", f"{provider.url}/talk", json=ASK) as reply:
                reply.read()
            rows += [(call.input_tokens, b'"usage"' in reply.content) for call in ledger_of(app)]
    assert ["stream_options" in request.json() for request in provider.requests] == [True, False]
    assert rows == [(3, False), (3, True)]


def test_a_body_that_is_signed_or_encoded_is_not_touched(app: Flask, calls: Ledger, provider: PlayedProvider) -> None:
    """A request whose body a header vouches for goes out byte for byte."""
    content = json.dumps(ASK).encode()
    with app.app_context(), httpx.Client() as client:
        for header in ("x-amz-content-sha256", "content-digest"):
            headers = {header: "abc", "content-type": "application/json", "user-agent": "OpenAI/Python"}
            with client.stream("POST", f"{provider.openai_url}/chat/completions", content=content, headers=headers) as reply:
                reply.read()
    assert [request.body for request in provider.requests] == [content, content]
    assert [call.usage_source for call in calls()] == ["unknown", "unknown"]


def test_the_request_of_the_app_is_its_own_again(app: Flask, provider: PlayedProvider) -> None:
    """After a stream was asked for its usage, the request object that the app sent is as the app made it."""
    with app.app_context(), httpx2.Client() as client:
        request = client.build_request("POST", f"{provider.openai_url}/chat/completions", json=ASK)
        before = (request.content, dict(request.headers))
        response = client.send(request, stream=True)
        response.read()
        assert (request.content, dict(request.headers)) == before
        assert response.request is request
    assert provider.requests[0].json()["stream_options"] == {"include_usage": True}


def test_a_stream_that_is_broken_off_is_one_row(
    app: Flask, calls: Ledger, provider: PlayedProvider, openai_client: openai.OpenAI
) -> None:
    """An early close leaves one row, interrupted, its usage unknown and not zero."""
    with app.app_context():
        stream = openai_client.chat.completions.create(model="gpt-4o", messages=QUESTION, stream=True)
        next(stream)
        stream.close()
    (call,) = calls()
    assert (call.outcome, call.usage_source, call.total_cost, call.input_tokens) == ("interrupted", "unknown", None, None)


def test_a_broken_off_anthropic_stream_keeps_its_known_part(
    app: Flask, calls: Ledger, provider: PlayedProvider, anthropic_client: Any
) -> None:
    """Anthropic says at the start what the input was: that part is priced, and the row says that it is partial."""
    provider.reply_with("messages", usage={"input_tokens": 100, "output_tokens": 400})
    with app.app_context():
        stream = anthropic_client.messages.create(model="claude-sonnet-4-6", max_tokens=500, messages=QUESTION, stream=True)
        next(stream)
        next(stream)
        stream.close()
    (call,) = calls()
    assert (call.outcome, call.usage_source, call.input_tokens) == ("interrupted", "stream_partial", 100)
    assert call.total_cost is not None


def test_a_stream_that_is_cut_is_one_row_and_the_apps_own_error(
    app: Flask, calls: Ledger, provider: PlayedProvider, openai_client: openai.OpenAI
) -> None:
    """A connection lost in the middle raises in the app what it would have raised, and leaves one row."""
    provider.reply_with("chat/completions", cut_after=300)
    # Which of the two depends on the release of the SDK.
    with app.app_context(), pytest.raises((openai.APIConnectionError, httpx2.RemoteProtocolError)):
        list(openai_client.chat.completions.create(model="gpt-4o", messages=QUESTION, stream=True))
    (call,) = calls()
    assert (call.outcome, call.error_class) == ("interrupted", "RemoteProtocolError")


def test_a_stream_that_nobody_reads_is_one_row(
    app: Flask, calls: Ledger, provider: PlayedProvider, openai_client: openai.OpenAI
) -> None:
    """A response that is neither read nor closed is recorded when it is collected."""
    with app.app_context():
        stream = openai_client.chat.completions.create(model="gpt-4o", messages=QUESTION, stream=True)
        stream.response.stream._stream.close()  # the socket, below us, so that the interpreter does not warn of it
        del stream
        gc.collect()
    (call,) = calls()
    assert call.outcome == "interrupted"


def test_an_async_stream_that_is_cancelled_is_one_row(app: Flask, calls: Ledger, provider: PlayedProvider) -> None:
    """A task that is cancelled while it reads leaves one row, and the cancellation goes on."""
    provider.pace = 0.05

    async def read() -> None:
        async with openai.AsyncOpenAI(base_url=provider.openai_url, api_key="test") as client:
            async for _ in await client.chat.completions.create(model="gpt-4o", messages=QUESTION, stream=True):
                pass

    async def cancel() -> None:
        task = asyncio.create_task(read())
        await asyncio.sleep(0.3)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task

    try:
        with app.app_context():
            asyncio.run(cancel())
    finally:
        provider.pace = 0.0
    (call,) = calls()
    assert (call.outcome, call.error_class) == ("interrupted", "CancelledError")


def test_a_huge_event_is_read_in_linear_time(app: Flask, calls: Ledger, provider: PlayedProvider) -> None:
    """An event of megabytes passes, and what follows it is counted."""
    picture = {"type": "image", "b64": "A" * 3_000_000, "model": "gpt-4o"}
    last = {"model": "gpt-4o", "choices": [], "usage": {"prompt_tokens": 3, "completion_tokens": 2, "total_tokens": 5}}
    provider.reply_with("chat/completions", events=[picture, last, "[DONE]"], chunk_size=1400)
    with app.app_context():
        raw_stream(httpx, provider, {**ASK, "stream_options": {"include_usage": True}})
    (call,) = calls()
    assert (call.input_tokens, call.output_tokens) == (3, 2)
