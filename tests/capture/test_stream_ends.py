"""However a stream ends, in whichever client: one row, its known part priced, and the app's own exception."""

from __future__ import annotations

import asyncio
import contextlib
import gc
import pickle
from collections.abc import AsyncIterator, Callable, Iterator
from typing import Any

import aiohttp
import anthropic
import httpx
import httpx2
import pytest
import requests
from flask import Flask

from flask_llm_cost.capture import patching
from flask_llm_cost.ledger import Call
from flask_llm_cost.testing.provider import PlayedProvider

Ledger = Callable[[], list[Call]]

BODY: Any = {"model": "claude-sonnet-4-6", "max_tokens": 9, "messages": [{"role": "user", "content": "x"}], "stream": True}
START: Any = {
    "type": "message_start",
    "message": {
        "id": "msg_1",
        "type": "message",
        "role": "assistant",
        "model": "claude-sonnet-4-6",
        "content": [],
        "usage": {"input_tokens": 100, "output_tokens": 1},
    },
}
WORD: Any = {"type": "content_block_delta", "index": 0, "delta": {"type": "text_delta", "text": "word " * 20}}
END: Any = [
    {"type": "message_delta", "delta": {"stop_reason": "end_turn"}, "usage": {"output_tokens": 40}},
    {"type": "message_stop"},
]
WHOLE: Any = [START, *[WORD] * 60, *END]
ERROR: Any = {"type": "error", "error": {"type": "overloaded_error", "message": "Overloaded"}}

#: Outcome, source, input and output of what was broken off: what the first event said.
PARTIAL = ("interrupted", "stream_partial", 100, 1)
FINAL = ("ok", "stream_final", 100, 40)

PLAIN: Any = [httpx, httpx2, requests]
ASYNC: Any = [httpx, httpx2, aiohttp]


def name(library: Any) -> str:
    return str(library.__name__)


@contextlib.contextmanager
def opened(library: Any, provider: PlayedProvider, timeout: float = 20) -> Iterator[tuple[Any, Iterator[bytes]]]:
    """A streamed reply, and what iterates over its pieces."""
    url = f"{provider.anthropic_url}/v1/messages"
    if library is requests:
        with requests.post(url, json=BODY, stream=True, timeout=timeout) as reply:
            yield reply, reply.iter_content(None)
    else:
        with library.Client(timeout=timeout) as client, client.stream("POST", url, json=BODY) as reply:
            yield reply, reply.iter_bytes()


@contextlib.asynccontextmanager
async def opened_async(library: Any, provider: PlayedProvider, timeout: float = 20) -> AsyncIterator[Any]:
    """What iterates over the pieces of a streamed reply."""
    url = f"{provider.anthropic_url}/v1/messages"
    if library is aiohttp:
        limit = aiohttp.ClientTimeout(sock_read=timeout)
        async with aiohttp.ClientSession(timeout=limit) as session, session.post(url, json=BODY) as reply:
            yield reply.content.iter_any()
    else:
        async with library.AsyncClient(timeout=timeout) as client, client.stream("POST", url, json=BODY) as reply:
            yield reply.aiter_bytes()


@pytest.fixture
def slow(provider: PlayedProvider) -> Iterator[Callable[[], None]]:
    """Events come one by one; calling it stops them for good."""
    provider.pace = 0.01

    def stop() -> None:
        provider.pace = 600

    yield stop
    provider.pace = 0.0


def check(calls: list[Call], *wanted: tuple[str, str, int, int]) -> None:
    assert [(call.outcome, call.usage_source, call.input_tokens, call.output_tokens) for call in calls] == list(wanted)
    assert all(call.stream and call.total_cost and call.cost_status in ("priced", "partial") for call in calls)


class BrokenError(Exception):
    """The app's own."""


def leave_by_close(reply: Any, pieces: Iterator[bytes]) -> None:
    next(pieces)
    reply.close()


def leave_by_break(reply: Any, pieces: Iterator[bytes]) -> None:
    for _ in pieces:
        break


def leave_by_generator(reply: Any, pieces: Iterator[bytes]) -> None:
    def words() -> Iterator[bytes]:
        yield from pieces

    generator = words()
    next(generator)
    generator.close()


def leave_by_raising(reply: Any, pieces: Iterator[bytes]) -> None:
    next(pieces)
    raise BrokenError


@pytest.mark.parametrize("leave", [leave_by_close, leave_by_break, leave_by_generator, leave_by_raising])
@pytest.mark.parametrize("library", PLAIN, ids=name)
def test_leaving_a_stream(
    app: Flask,
    calls: Ledger,
    provider: PlayedProvider,
    slow: Any,
    library: Any,
    leave: Callable[[Any, Iterator[bytes]], None],
) -> None:
    """Closed, broken off, a generator closed around it, or an exception of the app's: one row with the known part."""
    provider.reply_with("messages", events=WHOLE)
    expected = pytest.raises(BrokenError) if leave is leave_by_raising else contextlib.nullcontext()
    with app.app_context(), expected, opened(library, provider) as (reply, pieces):
        leave(reply, pieces)
    check(calls(), PARTIAL)


@pytest.mark.parametrize("library", PLAIN, ids=name)
def test_a_stream_that_stalls(app: Flask, calls: Ledger, provider: PlayedProvider, slow: Any, library: Any) -> None:
    """A timeout in the middle raises the library's own error, and leaves one row with the known part."""
    provider.reply_with("messages", events=WHOLE)
    error = requests.exceptions.ConnectionError if library is requests else library.ReadTimeout

    def stall() -> None:
        with opened(library, provider, timeout=0.5) as (_, pieces):
            next(pieces)
            slow()
            list(pieces)

    with app.app_context(), pytest.raises(error):
        stall()
    check(calls(), PARTIAL)
    assert "Timeout" in (calls()[0].error_class or "")


@pytest.mark.parametrize("library", PLAIN, ids=name)
def test_a_stream_that_is_cut_or_says_that_it_failed(
    app: Flask, calls: Ledger, provider: PlayedProvider, library: Any
) -> None:
    """A connection that is lost, and an error in place of the end: a row each, with the known part."""
    provider.reply_with("messages", events=WHOLE, cut_after=1500)
    provider.reply_with("messages", events=[START, WORD, ERROR])
    error = requests.RequestException if library is requests else library.RemoteProtocolError
    with app.app_context():
        with pytest.raises(error), opened(library, provider) as (_, pieces):
            list(pieces)
        with opened(library, provider) as (_, pieces):
            assert b"overloaded_error" in b"".join(pieces)
    check(calls(), PARTIAL, PARTIAL)


@pytest.mark.parametrize("library", PLAIN, ids=name)
def test_a_stream_that_is_never_read(app: Flask, calls: Ledger, provider: PlayedProvider, library: Any) -> None:
    """A reply that is left without a look at its body is one row whose usage is unknown, not zero."""
    provider.reply_with("messages", events=WHOLE)
    with app.app_context(), opened(library, provider):
        pass
    (call,) = calls()
    assert (call.outcome, call.usage_source, call.total_cost) == ("interrupted", "unknown", None)


@pytest.mark.parametrize("library", PLAIN, ids=name)
def test_a_stream_that_is_read_again(app: Flask, calls: Ledger, provider: PlayedProvider, library: Any) -> None:
    """Read whole, read again, asked for a second time and pickled: one row, and the same bytes each time."""
    provider.reply_with("messages", events=WHOLE)
    with app.app_context(), opened(library, provider) as (reply, pieces):
        content = b"".join(pieces) if library is requests else reply.read()
        assert b"message_stop" in content
        if library is not requests:
            assert b"".join(reply.iter_bytes()) == content
            assert pickle.loads(pickle.dumps(reply)).content == content
        else:
            with pytest.raises(RuntimeError, match="already consumed"):
                _ = reply.content
    check(calls(), FINAL)


@pytest.mark.parametrize("library", PLAIN, ids=name)
def test_a_stream_that_is_opened_twice(app: Flask, calls: Ledger, provider: PlayedProvider, library: Any) -> None:
    """A second iteration gets what the library gives without us, in the middle and at the end; the row stays one."""
    provider.reply_with("messages", events=WHOLE, times=2)

    def kinds_of_second(leave: bool) -> tuple[str, int]:
        with opened(library, provider) as (reply, pieces):
            next(pieces) if leave else list(pieces)
            try:
                return "none", len(b"".join(reply.iter_content(None) if library is requests else reply.iter_raw()))
            except Exception as error:
                return type(error).__name__, 0

    with app.app_context():
        watched = kinds_of_second(leave=False)
        check(calls(), FINAL)
        kinds_of_second(leave=True)
    assert len(calls()) == 2
    patching.uninstall()
    provider.reply_with("messages", events=WHOLE)
    try:
        assert watched == kinds_of_second(leave=False)
    finally:
        patching.install("auto")
    assert len(calls()) == 2


@pytest.mark.parametrize("library", [httpx, httpx2], ids=name)
def test_a_request_that_is_sent_twice_is_two_calls(
    app: Flask, calls: Ledger, provider: PlayedProvider, library: Any
) -> None:
    """The same request object may be sent again: each reply is a bill."""
    provider.reply_with("messages", events=WHOLE, times=2)
    with app.app_context(), library.Client() as client:
        request = client.build_request("POST", f"{provider.anthropic_url}/v1/messages", json=BODY)
        for _ in range(2):
            reply = client.send(request, stream=True)
            reply.read()
            reply.close()
    check(calls(), FINAL, FINAL)


def test_the_helper_of_anthropics_sdk_may_be_opened_twice(
    app: Flask, calls: Ledger, provider: PlayedProvider, anthropic_client: anthropic.Anthropic
) -> None:
    """``messages.stream()`` sends at each entry of a block: a row each, also where nobody reads it."""
    provider.reply_with("messages", usage={"input_tokens": 100, "output_tokens": 40}, times=2)
    ask: Any = {key: value for key, value in BODY.items() if key != "stream"}
    with app.app_context():
        with anthropic_client.messages.stream(**ask) as stream:
            assert stream.get_final_message().usage.output_tokens == 40
        with anthropic_client.messages.stream(**ask):
            pass
    first, second = calls()
    check([first], FINAL)
    assert (second.outcome, second.usage_source, second.total_cost) == ("interrupted", "unknown", None)


def test_a_reply_of_requests_is_pickled_whole(app: Flask, calls: Ledger, provider: PlayedProvider) -> None:
    """Pickling a streamed reply of requests reads it: the copy has the bytes, and there is one row."""
    provider.reply_with("messages", events=WHOLE)
    with app.app_context(), opened(requests, provider) as (reply, _):
        assert pickle.loads(pickle.dumps(reply)).content == reply.content
    check(calls(), FINAL)


async def leave_by_cancel(pieces: Any, stop: Callable[[], None]) -> None:
    started = asyncio.Event()

    async def read() -> None:
        async for _ in pieces:
            stop()
            started.set()

    task = asyncio.create_task(read())
    await started.wait()
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task


async def leave_by_timeout(pieces: Any, stop: Callable[[], None]) -> None:
    async def read() -> None:
        async for _ in pieces:
            stop()

    with pytest.raises(TimeoutError):
        await asyncio.wait_for(read(), 1.5)


async def leave_by_async_break(pieces: Any, stop: Callable[[], None]) -> None:
    async for _ in pieces:
        break


@pytest.mark.parametrize("leave", [leave_by_cancel, leave_by_timeout, leave_by_async_break])
@pytest.mark.parametrize("library", ASYNC, ids=name)
def test_leaving_an_async_stream(
    app: Flask, calls: Ledger, provider: PlayedProvider, slow: Any, library: Any, leave: Any
) -> None:
    """Cancelled, out of time or broken off in asyncio: one row with the known part, and the app's own exception."""
    provider.reply_with("messages", events=WHOLE)

    async def make() -> None:
        async with opened_async(library, provider) as pieces:
            await leave(pieces, slow)

    with app.app_context():
        asyncio.run(make())
    gc.collect()
    check(calls(), PARTIAL)


@pytest.mark.parametrize("library", ASYNC, ids=name)
def test_an_async_stream_that_is_cut_or_fails(app: Flask, calls: Ledger, provider: PlayedProvider, library: Any) -> None:
    """Cut, failed by its own word, and never read, in asyncio: a row each."""
    provider.reply_with("messages", events=WHOLE, cut_after=1500)
    provider.reply_with("messages", events=[START, WORD, ERROR])
    provider.reply_with("messages", events=WHOLE)
    error = aiohttp.ClientPayloadError if library is aiohttp else library.RemoteProtocolError

    async def read() -> None:
        async with opened_async(library, provider) as pieces:
            _ = [piece async for piece in pieces]

    async def make() -> None:
        with pytest.raises(error):
            await read()
        async with opened_async(library, provider) as pieces:
            assert b"overloaded_error" in b"".join([piece async for piece in pieces])
        async with opened_async(library, provider):
            pass

    with app.app_context():
        asyncio.run(make())
    gc.collect()
    found = calls()
    check(found[:2], PARTIAL, PARTIAL)
    assert [(call.outcome, call.usage_source, call.total_cost) for call in found[2:]] == [("interrupted", "unknown", None)]
