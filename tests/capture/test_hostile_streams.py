"""Replies that mean harm, over real HTTP: the app sees what it would have seen, and nothing is billed that was not said."""

from __future__ import annotations

import gzip
import json
import tracemalloc
from collections.abc import Callable
from decimal import Decimal
from typing import Any

import brotli
import httpx
import httpx2
import pytest
import requests
import zstandard
from flask import Flask

from flask_llm_cost.capture import patching
from flask_llm_cost.ledger import Call
from flask_llm_cost.testing.provider import PlayedProvider
from flask_llm_cost.usage import HostMap, route, scanner

Ledger = Callable[[], list[Call]]

ASK: Any = {"model": "gpt-4o", "messages": [{"role": "user", "content": "x"}], "stream": True}
LIBRARIES: Any = [httpx2, *(pytest.param(library, marks=pytest.mark.slow) for library in (httpx, requests))]
USAGE = {"prompt_tokens": 7, "completion_tokens": 5, "total_tokens": 12}


def chunk(content: str = "hi", **more: Any) -> dict[str, Any]:
    return {
        "id": "c",
        "object": "chat.completion.chunk",
        "model": "gpt-4o",
        "choices": [{"index": 0, "delta": {"content": content}}],
        **more,
    }


#: What a token of gpt-4o costs.
PRICE_IN, PRICE_OUT = Decimal("0.0000025"), Decimal("0.00001")

LAST: Any = chunk(choices=[], usage=USAGE)


def name(library: Any) -> str:
    return str(library.__name__)


def read(library: Any, url: str, raw: bool = False) -> tuple[str, bytes]:
    """What the app gets of a stream: the name of the exception that it ends with, and the bytes until then."""
    content = b""
    try:
        if library is requests:
            with requests.post(url, json=ASK, stream=True, timeout=20) as reply:
                for piece in reply.raw.stream(1400, decode_content=False) if raw else reply.iter_content(1400):
                    content += piece
        else:
            with library.Client() as client, client.stream("POST", url, json=ASK) as reply:
                for piece in reply.iter_raw() if raw else reply.iter_bytes():
                    content += piece
    except Exception as error:
        return type(error).__name__, content
    return "", content


def read_bare(library: Any, url: str, raw: bool = False) -> tuple[str, bytes]:
    """The same without us."""
    patching.uninstall()
    try:
        return read(library, url, raw)
    finally:
        patching.install("auto")


@pytest.mark.parametrize("library", LIBRARIES, ids=name)
@pytest.mark.parametrize("size", [1, 2, 3, 5])
def test_characters_that_are_split(app: Flask, calls: Ledger, provider: PlayedProvider, library: Any, size: Any) -> None:
    """Characters of several bytes, split anywhere, arrive as they were sent, also where an event is taken out; one row."""
    words = "naïve 日本語 🙂 \\u0000 \u2028"
    sent = [b"data: " + json.dumps(one, ensure_ascii=False).encode() + b"\n\n" for one in (chunk(words), chunk(words))]
    last = b"data: " + json.dumps(LAST).encode() + b"\n\n"
    headers = {"content-type": "text/event-stream"}
    provider.reply_with("chat/completions", events=[*sent, last], headers=headers, chunk_size=size)
    with app.app_context():
        assert read(library, f"{provider.openai_url}/chat/completions") == ("", b"".join(sent))
    (call,) = calls()
    assert (call.input_tokens, call.output_tokens, call.usage_source) == (7, 5, "stream_final")


PACKED: Any = {
    "gzip": gzip.compress(b"\0" * 30_000_000),
    "br": brotli.compress(b"\0" * 30_000_000, quality=2),
    "zstd": zstandard.compress(b"\0" * 30_000_000),
}


@pytest.mark.parametrize("encoding", PACKED)
@pytest.mark.parametrize("library", LIBRARIES, ids=name)
def test_a_bomb_that_the_app_passes_on(
    app: Flask, calls: Ledger, provider: PlayedProvider, library: Any, encoding: str
) -> None:
    """A proxy that never unpacks a reply is not made to: its bytes pass, our copy stops, and usage stays unknown."""
    headers = {"content-type": "text/event-stream", "content-encoding": encoding}
    provider.reply_with("messages", events=[PACKED[encoding]], headers=headers)
    with app.app_context():
        tracemalloc.start()
        found = read(library, f"{provider.anthropic_url}/v1/messages", raw=True)
        peak = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
    assert found == ("", PACKED[encoding])
    assert peak < 4_000_000
    (call,) = calls()
    assert (call.usage_source, call.total_cost) == ("unknown", None)


@pytest.mark.parametrize("said", ["gzip", "deflate", "br", "zstd", "gzip, br", "secret"])
@pytest.mark.parametrize("library", LIBRARIES, ids=name)
def test_a_codec_that_is_not_the_one_that_was_said(
    app: Flask, calls: Ledger, provider: PlayedProvider, library: Any, said: str
) -> None:
    """The app gets its client's own error or bytes, as without us; there is one row, and no cost that nobody said."""
    content = b"".join(b"data: " + json.dumps(one).encode() + b"\n\n" for one in (chunk(), LAST))
    headers = {"content-type": "text/event-stream", "content-encoding": said}
    url = f"{provider.openai_url}/chat/completions"
    provider.reply_with("chat/completions", events=[content], headers=headers, times=2)
    bare = read_bare(library, url)
    with app.app_context():
        watched = read(library, url)
    assert watched[0] == bare[0]
    assert watched[1] in (bare[1], bare[1].replace(b"data: " + json.dumps(LAST).encode() + b"\n\n", b""))
    (call,) = calls()
    assert (call.usage_source, call.total_cost) == ("unknown", None) or (call.input_tokens, call.output_tokens) == (7, 5)


MESSAGES: Any = [
    {
        "type": "message_start",
        "message": {"id": "m", "model": "claude-sonnet-4-5", "usage": {"input_tokens": 7, "output_tokens": 1}},
    },
    {"type": "message_delta", "delta": {"stop_reason": "end_turn"}, "usage": {"output_tokens": 5}},
    {"type": "message_stop"},
]
TEXTS = [b"data: " + json.dumps(one).encode() + b"\n\n" for one in MESSAGES]
TEXT = b"".join(TEXTS)
FRAMES = b"".join(zstandard.compress(text) for text in TEXTS)
SPOILT: Any = {
    "checksum": ("gzip", [gzip.compress(TEXT)[:-8] + b"12345678"], 5),
    "after br": ("br", [brotli.compress(TEXT), b"xx"], 5),
    "after zstd": ("zstd", [zstandard.compress(TEXT), b"xxxx"], 5),
    "within": ("zstd", [zstandard.compress(TEXTS[0]), b"xxxx"], 1),
}


@pytest.mark.parametrize("how", SPOILT)
@pytest.mark.parametrize("library", LIBRARIES, ids=name)
def test_an_encoding_that_goes_wrong_on_the_way(
    app: Flask, calls: Ledger, provider: PlayedProvider, library: Any, how: str
) -> None:
    """Where an encoding goes wrong, what came before counts, and is called partial where the end is missing."""
    encoding, pieces, output = SPOILT[how]
    headers = {"content-type": "text/event-stream", "content-encoding": encoding}
    provider.reply_with("messages", events=pieces, headers=headers)
    with app.app_context():
        assert read(library, f"{provider.anthropic_url}/v1/messages", raw=True) == ("", b"".join(pieces))
    (call,) = calls()
    source = "stream_final" if output == 5 else "stream_partial"
    assert (call.input_tokens, call.output_tokens, call.usage_source) == (7, output, source)


@pytest.mark.parametrize(
    ("encoding", "content"),
    [("zstd", FRAMES), ("gzip, br", brotli.compress(gzip.compress(TEXT))), ("br, identity", brotli.compress(TEXT))],
    ids=["frames", "list", "identity"],
)
@pytest.mark.parametrize("raw", [False, True], ids=["read", "passed on"])
def test_encodings_of_several_parts(
    app: Flask, calls: Ledger, provider: PlayedProvider, encoding: str, content: bytes, raw: bool
) -> None:
    """Several frames of zstd, and several encodings one upon another, are read as the app's client reads them."""
    headers = {"content-type": "text/event-stream", "content-encoding": encoding}
    provider.reply_with("messages", events=[content], headers=headers)
    with app.app_context():
        assert read(httpx, f"{provider.anthropic_url}/v1/messages", raw) == ("", content if raw else TEXT)
    (call,) = calls()
    assert (call.outcome, call.input_tokens, call.output_tokens, call.usage_source) == ("ok", 7, 5, "stream_final")


@pytest.mark.parametrize(
    ("events", "wanted"),
    [
        ([chunk(usage=USAGE), chunk(usage=USAGE), LAST, LAST, LAST], (7, 5)),
        (
            [chunk(usage=USAGE), chunk(), chunk(choices=[], usage={**USAGE, "completion_tokens": 3, "total_tokens": 10})],
            (7, 3),
        ),
        ([chunk(), LAST, chunk(choices=[], usage=None)], (7, 5)),
        ([chunk('"usage": {"prompt_tokens": 1000000, "completion_tokens": 1}'), LAST], (7, 5)),
        ([chunk(), chunk(choices=[], usage={**USAGE, "prompt_tokens": -7})], None),
        ([chunk(), chunk(choices=[], usage={**USAGE, "prompt_tokens": float("nan")})], None),
        ([chunk(), chunk(choices=[], usage={**USAGE, "prompt_tokens": 10**30})], None),
        ([chunk(), LAST, chunk(choices=[], usage=[USAGE])], (7, 5)),
        ([chunk(model=""), chunk(model=None), {**LAST, "model": "m" * 10**5}], (7, 5)),
        ([chunk(model="<script>alert(1)</script>"), {**LAST, "model": "<script>alert(1)</script>"}], (7, 5)),
    ],
    ids=["again", "changed", "null after", "in a text", "negative", "nan", "huge", "list after", "no model", "script"],
)
def test_usage_that_is_said_in_strange_ways(
    app: Flask, calls: Ledger, provider: PlayedProvider, events: Any, wanted: tuple[int, int] | None
) -> None:
    """Said twice it counts once, the last word counts, a text is no word, and what is impossible is unknown."""
    provider.reply_with("chat/completions", events=[*events, "[DONE]"])
    with app.app_context():
        assert read(httpx2, f"{provider.openai_url}/chat/completions")[0] == ""
    (call,) = calls()
    if wanted is None:
        assert (call.usage_source, call.total_cost, call.input_tokens) == ("unknown", None, None)
    else:
        assert (call.input_tokens, call.output_tokens) == wanted
    if call.model and call.model.startswith("<script>"):
        assert call.total_cost is None
    elif wanted:
        assert call.total_cost == wanted[0] * PRICE_IN + wanted[1] * PRICE_OUT


@pytest.mark.parametrize("framing", ["text/event-stream", "application/x-ndjson"])
def test_a_million_chunks_take_no_memory(framing: str) -> None:
    """A stream of a million chunks, each with an error inside that is not its own, is followed in less than a megabyte."""
    found = route(HostMap({}, True), "POST", "api.openai.com", "/v1/chat/completions", {}, marked=False)
    assert found is not None
    collected = scanner(found, framing)
    assert collected is not None
    piece = b'{"item": {"error": {}}, "usage": null}'
    piece = b"data: " + piece + b"\n\n" if "event" in framing else piece + b"\n"
    pieces = piece * 100
    tracemalloc.start()
    for _ in range(10_000):
        collected.feed(pieces)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    collected.finish()
    assert not collected.failed
    assert peak < 1024 * 1024
