"""Every shape of the corpus, as it is read without a wire."""

from __future__ import annotations

import codecs
import importlib
from collections.abc import Iterator
from decimal import Decimal
from typing import Any

import pytest
from corpus import Shape, shapes
from pydantic import TypeAdapter

from flask_llm_cost.records import COMPONENTS, Reading
from flask_llm_cost.usage import HostMap, Route, read_body, read_stream, route, scanner

SHAPES = [pytest.param(shape, id=shape.name) for shape in shapes()]
CALLS = [pytest.param(shape, id=shape.name) for shape in shapes() if shape.expected is not None]
STREAMED = [pytest.param(shape, id=shape.name) for shape in shapes() if shape.streamed and shape.expected is not None]
TYPED = [
    pytest.param(shape, id=shape.name)
    for shape in shapes()
    if shape.sdk is not None and all(map(shape.known_to, shape.since))
]


def routed(shape: Shape) -> Route | None:
    return route(HostMap(shape.hosts, True), shape.method, shape.host, shape.path, {}, marked=False)


def read(shape: Shape, pieces: list[bytes]) -> list[Reading]:
    found = routed(shape)
    assert found is not None
    asked = found.format.quantities_of_request(shape.request_content) if found.format.reads_request else {}
    collected = scanner(found, shape.content_type, pieces[0])
    if collected is None:
        return read_body(found, b"".join(pieces), asked, shape.headers)
    for piece in pieces:
        collected.feed(piece)
    collected.finish()
    assert collected.failed == shape.failed
    ended = (collected.done or not shape.cut) and not collected.failed
    return read_stream(found, collected.events, ended, asked, shape.headers)


def said(reading: Reading, keys: set[str]) -> dict[str, Any]:
    """A reading in the words of the corpus: what is always said, and *keys*."""
    usage = reading.usage
    values = {
        "components": {name: quantity for name, quantity in usage.quantities.items() if quantity},
        "model": reading.model,
        "mode": reading.mode,
        "source": usage.source,
        "flags": list(usage.flags),
        "response_id": reading.response_id,
        "reasoning_tokens": usage.reasoning_tokens,
        "total_tokens": usage.total_tokens,
        "billed": usage.billed,
        "settles": reading.settles,
        "created_at": reading.created_at.isoformat() if reading.created_at else None,
        "malformed": reading.malformed,
        "failed": reading.failed,
        "cancelled": reading.cancelled,
    }
    return {key: value for key, value in values.items() if key in keys}


#: What the route says, not the reading.
OF_THE_ROUTE = {"operation", "url_model", "requested_model"}


def check(shape: Shape, readings: list[Reading]) -> None:
    assert shape.expected is not None
    wanted = [{key: value for key, value in one.items() if key not in OF_THE_ROUTE} for one in shape.expected]
    for one in wanted:
        one["components"] = {
            name: Decimal(quantity) if isinstance(quantity, str) else quantity
            for name, quantity in one["components"].items()
            if quantity
        }
        if one.get("billed") is not None:
            one["billed"] = Decimal(one["billed"])
    assert [said(reading, set(one)) for reading, one in zip(readings, wanted, strict=False)] == wanted
    assert len(readings) == len(wanted)


@pytest.mark.parametrize("shape", SHAPES)
def test_the_request_is_recognised(shape: Shape) -> None:
    """Host, path and method say whose call it is and what it does; what is free is no call."""
    found = routed(shape)
    if shape.expected is None:
        assert found is None
        return
    assert found is not None
    assert found.provider == shape.provider
    for wanted in shape.expected[:1]:
        assert found.operation == wanted.get("operation", found.operation)
        assert found.model == wanted.get("url_model", found.model)


@pytest.mark.parametrize("shape", CALLS)
def test_what_is_read(shape: Shape) -> None:
    """Each shape becomes its components, mode, model, source and flags."""
    check(shape, read(shape, [shape.content()]))


def pieces_of(content: bytes) -> Iterator[list[bytes]]:
    yield [content[start : start + 1] for start in range(len(content))]
    yield content.splitlines(keepends=True)
    yield [content[start : start + 4093] for start in range(0, len(content), 4093)]


@pytest.mark.parametrize("shape", STREAMED)
def test_pieces_make_no_difference(shape: Shape) -> None:
    """A stream is read the same byte by byte, line by line, in odd pieces, and as its server sends it."""
    for pieces in (*pieces_of(shape.content()), shape.pieces()):
        check(shape, read(shape, pieces))


@pytest.mark.parametrize(
    "shape", [param for param in STREAMED if param.values[0].content_type.startswith("text/event-stream")]
)
def test_line_ends_make_no_difference(shape: Shape) -> None:
    """Server-sent events may end their lines with a carriage return."""
    for newline in (b"\r\n", b"\r"):
        check(shape, read(shape, [shape.content().replace(b"\n", newline)]))


def test_a_byte_order_mark_makes_no_difference() -> None:
    """Server-sent events, and JSON, may begin with a byte order mark."""
    for shape in shapes():
        if shape.expected and shape.reply.get("framing", "json") in ("sse", "json") and "base64" not in shape.reply:
            content = codecs.BOM_UTF8 + shape.content()
            check(shape, read(shape, [content]))
            check(shape, read(shape, [content[:4], content[4:]]))


@pytest.mark.parametrize("shape", CALLS)
def test_a_reading_holds_no_content(shape: Shape) -> None:
    """What is kept of a reply is numbers and enum words, and every component is one of ours."""
    for reading in read(shape, [shape.content()]):
        assert set(reading.usage.quantities) <= set(COMPONENTS)
        assert all(quantity >= 0 for quantity in reading.usage.quantities.values())
        assert not {"Hello", "weather", "hello"} & set(_words(reading.usage.raw))


def _words(value: Any) -> Iterator[str]:
    if isinstance(value, str):
        yield value
    elif isinstance(value, dict):
        for key, inner in value.items():
            yield key
            yield from _words(inner)
    elif isinstance(value, list):
        for inner in value:
            yield from _words(inner)


@pytest.mark.parametrize("shape", TYPED)
def test_the_sdk_agrees(shape: Shape) -> None:
    """The corpus says what the provider's own SDK says: each body and event is an instance of its type."""
    assert shape.sdk is not None
    module, _, name = shape.sdk.partition(":")
    adapter = TypeAdapter(getattr(importlib.import_module(module), name))
    for document in shape.reply.get("events", [shape.reply.get("body")]):
        if set(document) != {"comment"} and document.get("type") != "ping":
            adapter.validate_python(document)


def test_the_corpus_covers_the_providers() -> None:
    """At least 110 shapes; each known provider and each framing is among them."""
    from flask_llm_cost.usage import _HOSTS

    assert len(shapes()) >= 110
    assert {shape.provider for shape in shapes()} >= set(_HOSTS.values()) - {"dashscope"}
    assert {shape.reply.get("framing") for shape in shapes()} == {None, "sse", "ndjson", "json-array", "aws"}
