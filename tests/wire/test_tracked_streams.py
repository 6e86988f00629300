"""track_stream: it is told a provider's name, and reads whatever streams that provider sends."""

from __future__ import annotations

import threading
import tracemalloc
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import pytest
from corpus import Shape, shapes
from flask import Flask
from google.genai.types import GenerateContentResponse
from test_shapes import read

from flask_llm_cost import UsageError, track_stream
from flask_llm_cost.records import CallRecord, Reading, Usage
from flask_llm_cost.testing import capture_calls
from flask_llm_cost.usage import Format

STREAMED = [
    pytest.param(shape, id=shape.name)
    for shape in shapes()
    if shape.streamed and shape.expected and shape.reply["framing"] in ("sse", "ndjson", "json-array", "aws")
    if "batch" not in shape.name  # the lines of a batch are no stream
]


@pytest.fixture(scope="module")
def app(app: Flask) -> Iterator[Flask]:
    app.extensions["llm_cost"].tracker.register_format(Acme())
    with app.app_context():
        yield app


class Acme(Format):
    """A wire shape that only this app knows."""

    name = "acme"
    mark = b'"spent"'
    paths = ("/v1/acme/ask",)

    def fits(self, body: Mapping[str, Any]) -> bool:
        return "spent" in body

    def read(self, body: Mapping[str, Any]) -> Reading:
        return Reading(Usage({"input": body["spent"]["asked"], "output": body["spent"]["told"]}, "response"))


def tracked(provider: str, pieces: list[Any], broken: bool = False, model: str | None = None) -> list[CallRecord]:
    with capture_calls() as calls:
        try:
            with track_stream(provider, model=model) as stream:
                for piece in pieces:
                    stream.feed(piece)
                if broken:
                    raise ConnectionError
        except ConnectionError:
            assert broken
    return calls


def said(found: list[Any]) -> list[Any]:
    """Quantities, source and flags of records or readings. Nothing settles later what is told by hand: it is unknown."""
    return [(dict(one.usage.quantities), one.usage.source.replace("pending", "unknown"), one.usage.flags) for one in found]


def events_of(shape: Shape) -> list[Any]:
    return [event for event in shape.reply["events"] if set(event) != {"comment"}]


@pytest.mark.parametrize("shape", STREAMED)
def test_every_format_by_its_providers_name(app: Flask, shape: Shape) -> None:
    """A stream of any built-in format is read by its provider's name: as events, in bytes of any size, and as text."""
    content = shape.content()
    ways: list[list[Any]] = [[content], shape.pieces(), [content[at : at + 1] for at in range(len(content))]]
    if shape.reply["framing"] != "aws":
        ways.append([content.decode()])
        ways.append(events_of(shape))
    elif "converse" in shape.name:
        ways.append(events_of(shape))
    model = "the-model"
    wanted = said(read(shape, [content]))
    for way in ways:
        calls = tracked(shape.provider, way, broken=shape.cut, model=model)
        assert said(calls) == wanted
        assert {call.outcome for call in calls} == {"interrupted" if shape.cut or shape.failed else "ok"}
        assert all(call.stream and call.model for call in calls)


def test_an_sdks_events_are_read(app: Flask) -> None:
    """Google's SDK names its fields in its own way; they are read all the same, and the last running count is the one."""
    chunks = [
        GenerateContentResponse.model_validate(
            {
                "modelVersion": "gemini-2.5-flash",
                "candidates": [{"content": {"parts": [{"text": "hi"}]}}],
                "usageMetadata": {"promptTokenCount": 8, "candidatesTokenCount": told, "totalTokenCount": 8 + told},
            }
        )
        for told in (1, 5, 9)
    ]
    (call,) = tracked("gemini", chunks)
    assert (call.model, call.usage["input"], call.usage["output"]) == ("gemini-2.5-flash", 8, 9)


def test_a_registered_format_by_its_name(app: Flask) -> None:
    """What register_format taught is read by its provider's name, as events and as bytes of each framing."""
    events: list[Any] = [{"word": "hi"}, {"word": "you", "spent": {"asked": 3, "told": 4}}]
    raw = b'data: {"word": "hi"}\n\ndata: {"spent": {"asked": 3, "told": 4}}\n\n'
    lines = b'{"word": "hi"}\n{"spent": {"asked": 3, "told": 4}}\n'
    for pieces in (events, [raw], [lines[:7], lines[7:]], [memoryview(lines)], [b"[", lines.replace(b"}\n{", b"},{"), b"]"]):
        (call,) = tracked("acme", pieces, model="m")
        assert (call.usage["input"], call.usage["output"], call.usage.source) == (3, 4, "stream_final")


def test_a_registered_format_that_raises_harms_nobody(app: Flask) -> None:
    """A taught format that cannot read its own events leaves an unknown call that says so, and raises nothing."""
    (call,) = tracked("acme", [{"spent": None}], model="m")
    assert (call.usage.known, call.usage.flags, call.model) == (False, ("usage_malformed",), "m")


def test_many_threads_feed_one_stream(app: Flask) -> None:
    """Threads may feed at once, also while the block ends: the call is recorded once, and late ones are told so."""
    refused: list[str] = []
    started = threading.Barrier(9)

    def feed(stream: track_stream) -> None:
        started.wait()
        try:
            for _ in range(3000):
                stream.feed({"model": "gpt-4o", "choices": [], "usage": {"prompt_tokens": 5, "completion_tokens": 2}})
        except UsageError as error:
            refused.append(str(error))

    with capture_calls() as calls:
        with track_stream("openai", model="gpt-4o") as stream:
            stream.feed({"model": "gpt-4o", "choices": [], "usage": {"prompt_tokens": 5, "completion_tokens": 2}})
            threads = [threading.Thread(target=feed, args=(stream,)) for _ in range(8)]
            for thread in threads:
                thread.start()
            started.wait()
        enders = [threading.Thread(target=stream.__exit__, args=(None, None, None)) for _ in range(4)]
        for thread in enders:
            thread.start()
        for thread in (*threads, *enders):
            thread.join()
    (call,) = calls
    assert (call.usage["input"], call.usage["output"]) == (5, 2)
    assert all("after the end of the track_stream block" in text for text in refused)
    with pytest.raises(UsageError, match=r"set_usage\(\) after the end of the track_stream block"):
        stream.set_usage(input=1)


def test_a_block_that_raises_wins_over_what_recording_raises(app: Flask) -> None:
    """The app's own exception leaves the block, and the call is recorded once, interrupted, with what was known."""
    started = {"type": "message_start", "message": {"type": "message", "model": "claude-sonnet-4-6", "id": "m"}}
    started["message"]["usage"] = {"input_tokens": 50, "output_tokens": 1}  # type: ignore[index]
    with capture_calls() as calls:
        stream = track_stream("anthropic")

        def interrupted() -> None:
            with stream:
                stream.feed(started)
                raise ZeroDivisionError

        with pytest.raises(ZeroDivisionError):
            interrupted()
        stream.__exit__(None, None, None)
    (call,) = calls
    assert (call.outcome, call.error_class, call.usage.source) == ("interrupted", "ZeroDivisionError", "stream_partial")
    assert call.usage["input"] == 50
    assert call.cost is not None
    assert call.cost.total is not None


@pytest.mark.parametrize(
    ("event", "message"),
    [
        (3, "takes a dict, an SDK event, bytes or text, not int"),
        (None, "not NoneType"),
        (object(), "not object"),
    ],
)
def test_what_is_no_event_is_refused(app: Flask, event: Any, message: str) -> None:
    """Anything but an event is an error that says what is taken; so is a dict that holds itself."""
    endless: dict[str, Any] = {}
    endless["itself"] = endless
    with capture_calls(), track_stream("openai", model="m") as stream:
        with pytest.raises(UsageError, match=message):
            stream.feed(event)
        with pytest.raises(UsageError, match="holds itself"):
            stream.feed(endless)


def chatter(count: int, size: int) -> Callable[[track_stream], None]:
    def feed(stream: track_stream) -> None:
        for number in range(count):
            stream.feed({"model": "m", "text": "x" * size, "usage": {"prompt_tokens": 5, "completion_tokens": number + 1}})

    return feed


@pytest.mark.parametrize(("count", "size"), [(5_000, 400), (40, 500_000)])
def test_a_long_stream_stays_small(app: Flask, count: int, size: int) -> None:
    """Neither many events with a running usage nor large ones add up: a stream holds less than a megabyte."""
    with capture_calls() as calls, track_stream("openai", model="m") as stream:
        chatter(300, 10)(stream)  # what is made once
        tracemalloc.start()
        try:
            chatter(count, size)(stream)
            held, _ = tracemalloc.get_traced_memory()
        finally:
            tracemalloc.stop()
    assert held < 1_000_000
    assert calls[0].usage["output"] == count
