"""Hostile replies: whatever is sent, nothing is raised, nothing wrong is billed, and time and memory stay bounded."""

from __future__ import annotations

import copy
import json
import math
import sys
import time
import tracemalloc
from collections.abc import Callable, Iterator
from decimal import Decimal
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from flask_llm_cost.records import COMPONENTS, Reading
from flask_llm_cost.usage import (
    BodyCollector,
    HostMap,
    MalformedUsageError,
    Route,
    read_body,
    read_json,
    read_stream,
    route,
    scanner,
)
from flask_llm_cost.usage.aws import FrameScanner
from flask_llm_cost.usage.excerpt import shortened
from flask_llm_cost.usage.json_array import ArrayScanner
from flask_llm_cost.usage.lines import LineScanner
from flask_llm_cost.usage.scanner import Scanner
from flask_llm_cost.usage.sse import EventScanner

sys.path.insert(0, str(Path(__file__).parents[1] / "wire"))

from corpus import Shape, aws_frame, shapes

CALLS = [shape for shape in shapes() if shape.expected is not None]
SLOW_CHECKS = settings(
    max_examples=150, deadline=None, suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large]
)

HOSTILE = st.one_of(
    st.sampled_from(
        [
            None, True, -1, -0.5, 1.5, 10**12 + 1, 10**30, math.nan, math.inf, -math.inf, 1e308, "", "12", "<script>",
            "x" * 10**5,
            "\ud800", "\x00", [], {}, [[]], [None], {"": None}, {"usage": {"usage": {}}}, [[[[[[[[[[[]]]]]]]]]]], "é" * 600,
        ]
    ),
    st.integers(),
    st.floats(),
    st.text(max_size=20),
    st.recursive(
        st.none() | st.booleans() | st.integers(-5, 5) | st.text(max_size=3),
        lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner, max_size=3),
        max_leaves=8,
    ),
)  # fmt: skip


def places(document: Any, above: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    """The way to every value in a document."""
    yield above
    inner = document.items() if isinstance(document, dict) else enumerate(document) if isinstance(document, list) else ()
    for key, value in inner:
        yield from places(value, (*above, key))


def spoilt(draw: Callable[..., Any], document: Any) -> Any:
    """A document in which some values are something else, or gone."""
    document = copy.deepcopy(document)
    for _ in range(draw(st.integers(1, 3))):
        ways = list(places(document))
        way = ways[draw(st.integers(0, len(ways) - 1))]
        if not way:
            continue
        owner = document
        for key in way[:-1]:
            owner = owner[key]
        if draw(st.booleans()) or isinstance(owner, list):
            owner[way[-1]] = copy.deepcopy(draw(HOSTILE))
        else:
            del owner[way[-1]]
    return document


def routed(shape: Shape) -> Route:
    found = route(HostMap(shape.hosts, True), shape.method, shape.host, shape.path, {}, marked=False)
    assert found is not None
    return found


def sane(readings: list[Reading]) -> None:
    """What may be in a reading, whatever was sent."""
    for reading in readings:
        usage = reading.usage
        assert set(usage.quantities) <= set(COMPONENTS)
        for quantity in usage.quantities.values():
            assert isinstance(quantity, int | Decimal)
            assert Decimal(quantity).is_finite()
            assert 0 <= quantity <= 10**15
        assert usage.billed is None or (usage.billed.is_finite() and usage.billed >= 0)
        json.dumps(usage.raw, allow_nan=False)
        for name in (reading.model, reading.response_id, reading.mode):
            assert name is None or (0 < len(name) <= 512 and name.isprintable())
        if reading.malformed is not None:
            assert (usage.known, usage.flags) == (False, ("usage_malformed",))


@given(data=st.data())
@SLOW_CHECKS
def test_spoilt_documents(data: st.DataObject) -> None:
    """Any value of any known shape replaced or gone: inside the room only MalformedUsageError is raised, outside nothing."""
    shape = data.draw(st.sampled_from(CALLS), label="shape")
    found = routed(shape)
    wire = found.format
    if not shape.streamed:
        if "body" not in shape.reply:
            return
        body = spoilt(data.draw, shape.reply["body"])
        if isinstance(body, dict):
            try:
                fits = wire.fits(body)
                if fits or (found.certain and not wire.shape_only):
                    wire.read_all(body)
            except MalformedUsageError:
                pass
            sane(read_json(found, body))
        return
    events = [event for event in spoilt(data.draw, list(shape.reply["events"])) if isinstance(event, dict)]
    ended = data.draw(st.booleans())
    try:
        if any([wire.fits(event) for event in events]) or (found.certain and not wire.shape_only):  # noqa: C419 - ask all
            wire.read_stream_all(events, ended)
    except MalformedUsageError:
        pass
    sane(read_stream(found, events, ended))


@given(data=st.data())
@SLOW_CHECKS
def test_spoilt_bytes(data: st.DataObject) -> None:
    """Bytes cut off, flipped, doubled and split anywhere: nothing is raised, and nothing insane is read."""
    shape = data.draw(st.sampled_from([shape for shape in CALLS if shape.name != "openai_embeddings_large"]), label="shape")
    found = routed(shape)
    content = bytearray(shape.content())
    for _ in range(data.draw(st.integers(0, 3))):
        place = data.draw(st.integers(0, max(0, len(content) - 1)))
        change = data.draw(st.sampled_from(["flip", "cut", "double", "insert"]))
        if change == "flip" and content:
            content[place] = data.draw(st.integers(0, 255))
        elif change == "cut":
            del content[place:]
        elif change == "double":
            content[place:place] = content[place : place + 40]
        else:
            content[place:place] = data.draw(
                st.sampled_from([b'"', b"\\", b"\n\n", b"\xff\xfe", b"{", b"]", b"\x00", b"\xed\xa0\x80"])
            )
    size = data.draw(st.sampled_from([1, 7, 1000]))
    collected = scanner(found, shape.content_type)
    if collected is None:
        body = BodyCollector(found)
        for start in range(0, len(content), size):
            body.feed(bytes(content[start : start + size]))
        assert body.finish() == bytes(content)
        sane(read_body(found, bytes(content), {"characters": 5}, shape.headers))
        return
    for start in range(0, len(content), size):
        collected.feed(bytes(content[start : start + size]))
    collected.finish()
    sane(read_stream(found, collected.events, True))


CHAT = route(HostMap({}, True), "POST", "api.openai.com", "/v1/chat/completions", {}, marked=False)
assert CHAT is not None
NAMES = b'{"id": "i", "model": "m", "object": "chat.completion", '


INCOMPLETE = ("usage_inconsistent",)


@pytest.mark.parametrize(
    ("content", "quantities", "flags"),
    [
        (
            NAMES + b'"usage": {"prompt_tokens": 3}, "usage": {"prompt_tokens": 5, "completion_tokens": 2}}',
            {"input": 5, "output": 2},
            (),
        ),
        (NAMES + b'"usage": {"prompt_tokens": ' + b"9" * 5000 + b"}}", {}, ("usage_malformed",)),
        (NAMES + b'"usage": {"prompt_tokens": 1e400}}', {}, ("usage_malformed",)),
        (NAMES + b'"usage": {"prompt_tokens": NaN}}', {}, ("usage_malformed",)),
        (
            NAMES + b'"deep": ' + b"[" * 100_000 + b"]" * 100_000 + b', "usage": {"prompt_tokens": 5}}',
            {"input": 5},
            INCOMPLETE,
        ),
        (NAMES + b'"usage": {"prompt_tokens": 5, "deep": ' + b"[" * 1000 + b"]" * 1000 + b"}}", {}, ("usage_malformed",)),
        (NAMES + b'"choices": [{"message": {"content": "half of it', {}, ()),
        (NAMES + b'"usage": {"prompt_tok', {}, ()),
    ],
    ids=["twice", "long number", "infinite", "nan", "deep reply", "deep usage", "cut in a text", "cut in the usage"],
)
def test_broken_bodies_keep_their_names(content: bytes, quantities: dict[str, int], flags: tuple[str, ...]) -> None:
    """Model and id are kept where they are sane, and no count is guessed."""
    assert CHAT is not None
    (reading,) = read_body(CHAT, content)
    assert (dict(reading.usage.quantities), reading.usage.flags) == (quantities, flags)
    assert (reading.model, reading.response_id) == ("m", "i")


@pytest.mark.parametrize("model", ["", None, "x" * 10**5, 7, ["m"], "a\x00b", "\ud800"])
def test_insane_names_are_no_names(model: Any) -> None:
    """A model that is no name is none, so that the one that was asked for prices the call; the counts stay."""
    assert CHAT is not None
    (reading,) = read_json(CHAT, {"model": model, "usage": {"prompt_tokens": 5}})
    assert (reading.model, dict(reading.usage.quantities)) == (None, {"input": 5})
    (reading,) = read_json(CHAT, {"model": "<script>alert(1)</script>", "usage": {"prompt_tokens": 5}})
    assert reading.model == "<script>alert(1)</script>"


# Long events.

USAGE = {"prompt_tokens": 7, "completion_tokens": 9}


def filled(kind: str, size: int) -> dict[str, Any]:
    """An event of about *size* bytes, with usage at its end, in its middle, or both."""
    long: dict[str, Any] = {
        "text": {"text": 'a "quoted" \\ line\n' * (size // 18)},
        "base64": {"data": "QUJD" * (size // 4)},
        "numbers": {"numbers": [0.123] * (size // 7)},
        "words": {"words": ["word"] * (size // 8)},
    }[kind]
    return {"id": "i", "model": "m", **long, "usage": USAGE}


def fed(collected: Scanner, content: bytes, size: int) -> Scanner:
    for start in range(0, len(content), size):
        collected.feed(content[start : start + size])
    collected.finish()
    return collected


FRAMINGS: dict[str, tuple[type[Scanner], Callable[[bytes], bytes]]] = {
    "sse": (EventScanner, lambda event: b"data: {}\n\ndata: " + event + b"\n\ndata: [DONE]\n\n"),
    "ndjson": (LineScanner, lambda event: b"{}\n" + event + b"\n{}\n"),
    "json-array": (ArrayScanner, lambda event: b"[{},\n" + event + b",\n{}]"),
}


@pytest.mark.parametrize("framing", FRAMINGS)
@pytest.mark.parametrize("kind", ["text", "base64", "numbers", "words"])
@pytest.mark.parametrize("size", [1400, 10**9])
def test_one_long_event(framing: str, kind: str, size: int) -> None:
    """An event of ten megabytes is read in less than one megabyte of memory, and its model and usage are found."""
    scanning, framed = FRAMINGS[framing]
    content = framed(json.dumps(filled(kind, 10**7)).encode())
    collected = scanning(b'"usage"', True)
    tracemalloc.start()
    fed(collected, content, size)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    last = collected.events[-1]
    assert (last["model"], last["id"], last["usage"]) == ("m", "i", USAGE)
    assert peak < 1024 * 1024


@pytest.mark.parametrize("kind", ["text", "base64", "numbers", "words"])
def test_one_long_body(kind: str) -> None:
    """A body of ten megabytes that comes in pieces is read in less than one megabyte of memory."""
    assert CHAT is not None
    content = json.dumps(filled(kind, 10**7)).encode()
    collected = BodyCollector(CHAT)
    tracemalloc.start()
    for start in range(0, len(content), 1400):
        collected.feed(content[start : start + 1400])
    (reading,) = read_body(CHAT, collected.finish())
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert (reading.model, dict(reading.usage.quantities)) == ("m", {"input": 7, "output": 9})
    assert peak < 1024 * 1024


def test_nothing_of_a_reply_stays_in_memory() -> None:
    """Names of counts that are as long as content are kept nowhere, not even until others take their place."""
    assert CHAT is not None
    tracemalloc.start()
    for number in range(40):
        usage = {**USAGE, f"{number}" + "x" * 100_000: 1}
        (reading,) = read_json(CHAT, {"model": "m", "usage": usage})
        assert reading.usage.raw == USAGE
    del usage, reading
    held = tracemalloc.get_traced_memory()[0]
    tracemalloc.stop()
    assert held < 1024 * 1024


def test_usage_in_the_middle_of_a_long_event() -> None:
    """Even where an event is cut down to its two ends, the last usage object between them is kept."""
    words = b"[" + b"true," * 400_000 + b"1]"
    event = b'{"model": "m", "a": ' + words + b', "usage": {"prompt_tokens": 7}, "b": ' + words + b"}"
    for size in (1000, 65_000):
        collected = fed(EventScanner(b'"usage"', True), b"data: " + event + b"\n\n", size)
        assert collected.events == [{"model": "m", "usage": {"prompt_tokens": 7}}]


@pytest.mark.parametrize("newline", ["\n", "\r\n"])
def test_the_end_of_a_long_event_in_two_pieces(newline: str) -> None:
    """Wherever the end of a long event is split between two looks at the stream, the next event is not part of it."""
    end = (newline * 2).encode()
    for missing in range(6):
        first = b'data: {"model": "m", "numbers": [' + b"0," * 65_000
        first += b"1" * (2 * 65_536 - len(first) - missing - 2) + b"]}"
        stream = first + end + b'data: {"usage": {"prompt_tokens": 7}}' + end
        collected = fed(EventScanner(b'"usage"', True), stream, 65_536)
        assert collected.events[-1] == {"usage": {"prompt_tokens": 7}}
        assert len(collected.events) == 2


def test_long_frames_are_passed_over() -> None:
    """Amazon's frames that are too long to say anything of usage are skipped; broken ones end the reading."""
    metadata = aws_frame("metadata", json.dumps({"usage": {"inputTokens": 1}}).encode())
    long = aws_frame("contentBlockDelta", b'{"text": "' + b"x" * 10**7 + b'"}')
    for size in (1, 1000, 10**9):
        content = metadata + (long if size > 1 else b"") + metadata
        tracemalloc.start()
        collected = fed(FrameScanner(b'"usage"', True), content, size)
        peak = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        assert collected.events == [{"metadata": {"usage": {"inputTokens": 1}}}] * 2
        assert peak < 1024 * 1024
    assert fed(FrameScanner(b'"usage"', True), metadata + b"\xff" * 100 + metadata, 10).events == [
        {"metadata": {"usage": {"inputTokens": 1}}}
    ]
    assert fed(FrameScanner(b'"usage"', True), aws_frame("metadata", b"{}", "exception"), 10).events == []


def test_our_frames_are_amazons() -> None:
    """The frames that the tests send are those that botocore reads."""
    eventstream = pytest.importorskip("botocore.eventstream")
    buffer = eventstream.EventStreamBuffer()
    buffer.add_data(aws_frame("metadata", b'{"a": 1}'))
    (event,) = list(buffer)
    assert (event.headers[":event-type"], event.payload) == ("metadata", b'{"a": 1}')


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(max_size=8) | st.text('ab"\\é\n', min_size=600, max_size=1500),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=5), inner, max_size=4),
    max_leaves=12,
)


def emptied(whole: Any, short: Any) -> bool:
    """Whether *short* is *whole* with nothing but long strings emptied."""
    if isinstance(whole, str):
        return short == whole or (short == "" and len(json.dumps(whole)) > 16)
    if isinstance(whole, dict):
        return (
            isinstance(short, dict) and list(whole) == list(short) and all(emptied(whole[key], short[key]) for key in whole)
        )
    if isinstance(whole, list):
        return isinstance(short, list) and len(whole) == len(short) and all(map(emptied, whole, short))
    return whole == short and type(whole) is type(short)


@given(document=JSON, ascii_only=st.booleans())
@settings(max_examples=150, deadline=None)
@example(document={"a": '\\"' * 400, "usage": {"b": 1}}, ascii_only=True)
def test_shortening_keeps_the_structure(document: Any, ascii_only: bool) -> None:
    """Taking the insides out of long strings changes nothing else of a document."""
    assert emptied(document, json.loads(shortened(json.dumps(document, ensure_ascii=ascii_only).encode())))


def seconds(work: Callable[[], object]) -> float:
    best = math.inf
    for _ in range(3):
        start = time.perf_counter()
        work()
        best = min(best, time.perf_counter() - start)
    return best


@pytest.mark.slow
@pytest.mark.parametrize("framing", FRAMINGS)
@pytest.mark.parametrize("kind", ["text", "base64", "numbers", "words"])
def test_time_grows_with_the_event(framing: str, kind: str) -> None:
    """Eight times the event takes no more than about eight times as long, in pieces of 1,400 bytes."""
    scanning, framed = FRAMINGS[framing]
    contents = [framed(json.dumps(filled(kind, size)).encode()) for size in (500_000, 4_000_000)]
    small, large = (seconds(lambda content=content: fed(scanning(b'"usage"', True), content, 1400)) for content in contents)
    assert large < 24 * small + 0.05


@pytest.mark.slow
@pytest.mark.parametrize("framing", FRAMINGS)
@pytest.mark.parametrize("every", [False, True])
def test_time_grows_with_the_chunks(framing: str, every: bool) -> None:
    """Eight times the chunks take no more than about eight times as long, and no more memory, also with usage in each."""
    scanning, _ = FRAMINGS[framing]
    event = json.dumps({"id": "i", "text": "hi", "usage": USAGE if every else None}).encode()
    piece = {"sse": b"data: " + event + b"\n\n", "ndjson": event + b"\n", "json-array": event + b","}[framing]

    def work(chunks: int) -> None:
        collected = scanning(b'"usage"', True)
        for _ in range(chunks):
            collected.feed(piece)
        collected.finish()
        assert len(collected.events) <= 2

    small, large = seconds(lambda: work(12_500)), seconds(lambda: work(100_000))
    assert large < 24 * small + 0.05
    tracemalloc.start()
    work(100_000)
    assert tracemalloc.get_traced_memory()[1] < 1024 * 1024
    tracemalloc.stop()
