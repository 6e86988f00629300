"""The corpus over real HTTP: every client library that can carry a shape gives the records that reading it gives."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from typing import Any

import httpx
import pytest
from clients import CLIENTS, CUT, Carry, carries, headers_of, url_of
from corpus import Shape, shapes
from flask import Flask
from test_shapes import read, routed

from flask_llm_cost.records import CallRecord, Reading, Usage, settled_call_id
from flask_llm_cost.testing import capture_calls
from flask_llm_cost.testing.provider import PlayedProvider

#: Encoding and size of the pieces.
WAYS: Any = ((None, 1), (None, "line"), (None, None), ("gzip", 1), ("gzip", None), ("br", 1), ("br", None), ("zstd", 1))


@pytest.fixture(scope="module")
def proxy() -> Iterator[PlayedProvider]:
    with PlayedProvider() as provider:
        yield provider


def carried(carry: Carry, proxy: PlayedProvider, shape: Shape, encoding: Any = None, size: Any = None) -> list[CallRecord]:
    """The records of one shape, sent and read by a library."""
    pieces: list[Any] = shape.pieces()
    # What is cut ends before bytes that were promised; a whole stream of one piece would look complete.
    cut = {"cut_after": len(shape.content())} if shape.cut else {}
    reply = {"events": [*pieces, b"."] if shape.cut else pieces} if shape.streamed else {"body": shape.content()}
    # The path is left out: a proxy gets whole addresses, and each library escapes them its own way.
    proxy.reply_with("", headers=shape.headers, encoding=encoding, chunk_size=size, **cut, **reply)  # type: ignore[arg-type]
    with capture_calls() as calls:
        if shape.cut:
            with pytest.raises(CUT):
                carry(shape)
        else:
            carry(shape)
    return [call for call in calls if not call.batch_ended]


def expected(shape: Shape) -> list[dict[str, Any]]:
    found = routed(shape)
    if found is None:
        return []
    return [_of_reading(shape, found.provider, reading) for reading in read(shape, [shape.content()])]


def _of_usage(usage: Usage) -> dict[str, Any]:
    return {
        "quantities": dict(usage.quantities),
        "source": usage.source,
        "reasoning": usage.reasoning_tokens,
        "total": usage.total_tokens,
        "billed": usage.billed,
        "flags": tuple(usage.flags),
        "raw": usage.raw,
    }


def _of_reading(shape: Shape, provider: str, reading: Reading) -> dict[str, Any]:
    settled = None if reading.settles is None else settled_call_id(provider, reading.settles, reading.created_at)
    return {
        **_of_usage(reading.usage),
        "provider": provider,
        "model": reading.model,
        "mode": reading.mode,
        "response_id": reading.response_id,
        "settles": settled,
        "outcome": _outcome(shape, reading),
    }


def _outcome(shape: Shape, reading: Reading) -> str:
    if shape.failed or (shape.cut and reading.usage.source != "stream_final"):
        return "interrupted"
    return "error" if reading.failed else "interrupted" if reading.cancelled else "ok"


def _of_record(call: CallRecord, wanted: dict[str, Any]) -> dict[str, Any]:
    return {
        **_of_usage(call.usage),
        "provider": call.provider,
        "model": call.model,
        "mode": call.pricing_mode,
        "response_id": call.provider_response_id,
        "settles": call.id if wanted["settles"] is not None else None,
        "outcome": call.outcome,
    }


def compare(calls: list[CallRecord], wanted: list[dict[str, Any]], case: str) -> None:
    found = [_of_record(call, one) for call, one in itertools.zip_longest(calls[: len(wanted)], wanted) if call]
    assert found == wanted, case
    assert len(calls) == len(wanted), case


def carry_all(name: str, app: Flask, proxy: PlayedProvider, cases: Iterator[tuple[Shape, Any, Any]]) -> int:
    count = 0
    # The context first: an event loop's is a copy of what there is when the loop is made.
    with app.app_context(), CLIENTS[name](proxy.url) as carry:
        for shape, encoding, size in cases:
            if carries(name, shape, encoding):
                case = f"{shape.name} by {name}, encoded as {encoding}, in pieces of {size}"
                compare(carried(carry, proxy, shape, encoding, size), expected(shape), case)
                count += 1
    return count


def test_openrouter_s_usage_is_the_app_s_own(app: Flask, proxy: PlayedProvider) -> None:
    """OpenRouter sends its usage unasked: nothing is added to the request, and nothing taken out of what the app reads."""
    (shape,) = (shape for shape in shapes() if shape.name == "openrouter_stream_unasked")
    proxy.reply_with("", headers=shape.headers, events=shape.pieces())
    with (
        app.app_context(),
        capture_calls() as calls,
        httpx.Client(proxy=proxy.url, trust_env=False) as client,
        client.stream("POST", url_of(shape), content=shape.request_content, headers=headers_of(shape)) as response,
    ):
        content = b"".join(response.iter_bytes())
    assert proxy.requests[-1].body == shape.request_content
    assert content == shape.content()
    assert calls[0].usage.billed is not None


@pytest.mark.parametrize("name", CLIENTS)
def test_a_sample_by_every_client(app: Flask, proxy: PlayedProvider, name: str) -> None:
    """Every eighth shape, and Bedrock's for botocore, gives by each library the records that reading it gives."""
    some = [shape for shape in shapes() if name == "botocore" or not sum(shape.name.encode()) % 8]
    assert carry_all(name, app, proxy, ((shape, None, None) for shape in some)) > 10


@pytest.mark.slow
@pytest.mark.parametrize("name", CLIENTS)
def test_every_shape_by_every_client(app: Flask, proxy: PlayedProvider, name: str) -> None:
    """Each shape of the corpus gives by each library that can carry it the records that reading it gives."""
    assert carry_all(name, app, proxy, ((shape, None, None) for shape in shapes())) >= (14 if name == "botocore" else 240)


@pytest.mark.slow
@pytest.mark.parametrize("name", CLIENTS)
def test_streams_in_every_piece_and_encoding(app: Flask, proxy: PlayedProvider, name: str) -> None:
    """Streams in single bytes, lines and whole, plain and in every encoding, give the same records by each library."""
    cases = (
        (shape, encoding, size)
        for shape in shapes()
        if shape.streamed
        for encoding, size in WAYS
        if encoding is None or not shape.cut
    )
    assert carry_all(name, app, proxy, cases) > (10 if name == "botocore" else 300)
