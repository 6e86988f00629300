"""Bedrock's streams by botocore, however they end: one row, its known part priced, and the app's own exception."""

from __future__ import annotations

import base64
import gc
import json
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from botocore.config import Config
from botocore.exceptions import EventStreamError
from flask import Flask
from played_app import ledger_of
from urllib3.exceptions import ReadTimeoutError

from flask_llm_cost.ledger import Call
from flask_llm_cost.testing.provider import PlayedProvider

sys.path.insert(0, str(Path(__file__).parents[1] / "wire"))

from corpus import aws_frame

MODEL = "anthropic.claude-sonnet-4-6"
START: Any = {
    "type": "message_start",
    "message": {
        "id": "msg_1",
        "type": "message",
        "model": "claude-sonnet-4-6",
        "usage": {"input_tokens": 100, "output_tokens": 1},
    },
}
WORD: Any = {"type": "content_block_delta", "index": 0, "delta": {"type": "text_delta", "text": "word " * 20}}
END: Any = {"type": "message_delta", "delta": {"stop_reason": "end_turn"}, "usage": {"output_tokens": 40}}


def chunk(event: Any) -> bytes:
    return aws_frame("chunk", json.dumps({"bytes": base64.b64encode(json.dumps(event).encode()).decode()}).encode())


FRAMES = [chunk(START), *[chunk(WORD)] * 20, chunk(END)]
HEADERS = {"content-type": "application/vnd.amazon.eventstream", "x-amzn-bedrock-content-type": "application/json"}


@pytest.fixture
def bedrock_app(make_app: Callable[..., Flask], provider: PlayedProvider) -> Flask:
    return make_app(hosts={provider.host: "bedrock"})


@pytest.fixture
def bedrock(bedrock_client: Callable[..., Any]) -> Any:
    return bedrock_client(config=Config(read_timeout=1, retries={"total_max_attempts": 1}))


@pytest.fixture
def opened(bedrock_app: Flask, bedrock: Any, provider: PlayedProvider) -> Iterator[Callable[..., Any]]:
    """Open a stream of InvokeModelWithResponseStream: what the app iterates over. At the end its socket is closed,
    below us, so that the interpreter does not warn of it.
    """
    sockets = []

    def stream(frames: list[bytes] = FRAMES) -> Any:
        provider.reply_with("/invoke-with-response-stream", events=frames, headers=HEADERS)
        found = bedrock.invoke_model_with_response_stream(modelId=MODEL, body='{"messages": []}')["body"]
        sockets.append(found._raw_stream)
        return found

    yield stream
    for socket in sockets:
        socket.close()


def said(call: Call) -> tuple[str, str, int | None, int | None]:
    return call.outcome, call.usage_source, call.input_tokens, call.output_tokens


class BrokenError(Exception):
    """The app's own."""


def leave_by_close(stream: Any) -> None:
    next(iter(stream))
    stream.close()


def leave_by_break(stream: Any) -> None:
    for _ in stream:
        break


def leave_by_generator(stream: Any) -> None:
    def words() -> Iterator[Any]:
        yield from stream

    generator = words()
    next(generator)
    generator.close()


def leave_by_raising(stream: Any) -> None:
    for _ in stream:
        raise BrokenError


@pytest.mark.parametrize("leave", [leave_by_close, leave_by_break, leave_by_generator, leave_by_raising])
def test_leaving_a_stream(bedrock_app: Flask, opened: Callable[..., Any], leave: Callable[[Any], None]) -> None:
    """Closed, broken off, a generator closed around it, or an exception of the app's: one row with the known part."""
    raised = None
    with bedrock_app.app_context():
        try:
            leave(opened())
        except BrokenError as error:
            raised = type(error)  # not the error itself, which holds the stream
    gc.collect()
    assert raised == (BrokenError if leave is leave_by_raising else None)
    (call,) = ledger_of(bedrock_app)
    assert said(call) == ("interrupted", "stream_partial", 100, 1)
    assert call.total_cost


def test_a_stream_that_stalls(bedrock_app: Flask, opened: Callable[..., Any], provider: PlayedProvider) -> None:
    """A timeout in the middle is botocore's own error, and one row with the known part."""
    provider.pace = 0.01

    def stall() -> None:
        for _ in opened():
            provider.pace = 600

    try:
        with bedrock_app.app_context(), pytest.raises(ReadTimeoutError):
            stall()
    finally:
        provider.pace = 0.0
    (call,) = ledger_of(bedrock_app)
    assert said(call) == ("interrupted", "stream_partial", 100, 1)
    assert call.error_class == "ReadTimeoutError"


def test_a_stream_that_says_that_it_failed(bedrock_app: Flask, opened: Callable[..., Any]) -> None:
    """An exception of Amazon's in place of the end reaches the app, and leaves one row with the known part."""
    failed = aws_frame("throttlingException", b'{"message": "no"}', "exception")
    with bedrock_app.app_context(), pytest.raises(EventStreamError):
        list(opened([*FRAMES[:3], failed]))
    (call,) = ledger_of(bedrock_app)
    assert said(call) == ("interrupted", "stream_partial", 100, 1)


def test_a_stream_that_is_never_read(bedrock_app: Flask, opened: Callable[..., Any]) -> None:
    """A reply that is left without a look is one row whose usage is unknown, closed or collected."""
    with bedrock_app.app_context():
        opened().close()
        opened()
    gc.collect()
    first, second = ledger_of(bedrock_app)
    assert said(first) == said(second) == ("interrupted", "unknown", None, None)


@pytest.mark.parametrize(
    ("header", "value"), [("X-Amzn-Bedrock-Service-Tier", "flex"), ("X-Amzn-Bedrock-PerformanceConfig-Latency", "optimized")]
)
def test_a_stream_at_another_tier(
    bedrock_app: Flask, bedrock: Any, provider: PlayedProvider, header: str, value: str
) -> None:
    """The tier that the reply's header names is the mode of the call, streamed or not: it is not billed as standard."""
    body = {**START["message"], "content": []}
    provider.reply_with("/invoke", body=body, headers={header: value})
    provider.reply_with("/invoke-with-response-stream", events=FRAMES, headers={**HEADERS, header: value})
    with bedrock_app.app_context():
        bedrock.invoke_model(modelId=MODEL, body="{}")["body"].read()
        list(bedrock.invoke_model_with_response_stream(modelId=MODEL, body="{}")["body"])
    assert [call.pricing_mode for call in ledger_of(bedrock_app)] == [value, value]


@pytest.mark.parametrize(
    "read",
    [
        lambda body: body.read(),
        lambda body: b"".join(body.readlines()),
        lambda body: b"".join(body.iter_chunks(7)),
        lambda body: b"".join(body.iter_lines(7, keepends=True)),
    ],
    ids=["read", "readlines", "iter_chunks", "iter_lines"],
)
def test_a_body_is_counted_however_it_is_read(
    bedrock_app: Flask, bedrock: Any, provider: PlayedProvider, read: Callable[[Any], bytes]
) -> None:
    """botocore's body has several ways of being read: by each the app gets what was sent, and the call its tokens."""
    provider.reply_with("/invoke", body={**START["message"], "content": []})
    with bedrock_app.app_context():
        text = read(bedrock.invoke_model(modelId=MODEL, body="{}")["body"])
    assert json.loads(text)["id"] == "msg_1"
    (call,) = ledger_of(bedrock_app)
    assert said(call) == ("ok", "response", 100, 1)


def test_a_stream_that_is_read_whole(bedrock_app: Flask, opened: Callable[..., Any]) -> None:
    """The app reads what Bedrock sent, and closing what was read changes nothing: one row."""
    with bedrock_app.app_context():
        stream = opened()
        events = [json.loads(event["chunk"]["bytes"]) for event in stream]
        stream.close()
        stream.close()
    assert (events[0], events[-1], len(events)) == (START, END, 22)
    (call,) = ledger_of(bedrock_app)
    assert said(call) == ("ok", "stream_final", 100, 40)
