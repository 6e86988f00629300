"""Replies that are too long to keep: what they bill is counted all the same, or marked as unknown, never passed over."""

from __future__ import annotations

import json
import math
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from flask_llm_cost.records import Reading
from flask_llm_cost.usage import BodyCollector, HostMap, Route, read_body, read_stream, route, scanner
from flask_llm_cost.usage.excerpt import Excerpt

VECTOR = [round(math.sin(number), 12) for number in range(1536)]
WORD = {"token": "abc", "logprob": -0.1234567, "bytes": [97, 98, 99], "top_logprobs": [{"token": "abc", "bytes": [1]}] * 20}


def found(method: str, host: str, path: str) -> Route:
    matched = route(HostMap({}, True), method, host, path, {}, marked=False)
    assert matched is not None
    return matched


def in_pieces(where: Route, content: bytes, content_type: str = "application/json", size: int = 65_536) -> list[Reading]:
    """What a client's pieces come to, as a stream of events or as one body."""
    pieces = [content[start : start + size] for start in range(0, len(content), size)]
    collected = scanner(where, content_type, pieces[0])
    taking = BodyCollector(where) if collected is None else collected
    for piece in pieces:
        taking.feed(piece)
    if isinstance(taking, BodyCollector):
        return read_body(where, taking.finish())
    taking.finish()
    return read_stream(where, taking.events, True)


def counted(readings: list[Reading]) -> list[dict[str, Any]]:
    return [dict(reading.usage.quantities) for reading in readings]


def lines(*bodies: Any) -> bytes:
    return b"".join(json.dumps(body).encode() + b"\n" for body in bodies)


OPENAI_FILE = found("GET", "api.openai.com", "/v1/files/file-1/content")
CHAT_USAGE = {"prompt_tokens": 10, "completion_tokens": 120, "total_tokens": 130}


def openai_line(number: int, body: Any) -> dict[str, Any]:
    return {"id": f"batch_req_{number}", "custom_id": f"c{number}", "response": {"status_code": 200, "body": body}}


def embeddings(vectors: int) -> dict[str, Any]:
    usage = {"prompt_tokens": 80, "total_tokens": 80}
    data = [{"object": "embedding", "index": index, "embedding": VECTOR} for index in range(vectors)]
    return {"object": "list", "data": data, "model": "text-embedding-3-small", "usage": usage}


def chat(words: int) -> dict[str, Any]:
    choice = {"index": 0, "message": {"content": "hi"}, "logprobs": {"content": [WORD] * words}}
    return {"id": "x", "object": "chat.completion", "model": "gpt-4o", "choices": [choice], "usage": CHAT_USAGE}


@pytest.mark.parametrize("size", [1_000, 65_536])
@pytest.mark.parametrize(
    ("body", "quantities"), [(embeddings(10), {"input": 80}), (chat(200), {"input": 10, "output": 120})]
)
def test_long_lines_of_a_batch(body: Any, quantities: dict[str, int], size: int) -> None:
    """Ten vectors, or probabilities of each word: every line of the file is counted, by its own name."""
    content = lines(*(openai_line(number, body) for number in range(3)))
    assert len(content) > 3 * 128 * 1024
    readings = in_pieces(OPENAI_FILE, content, "application/octet-stream", size)
    assert counted(readings) == [quantities] * 3
    assert [reading.settles for reading in readings] == [f"file-1/batch_req_{number}" for number in range(3)]
    assert not any(reading.usage.flags for reading in readings)


def test_the_pieces_do_not_decide_what_a_line_is_called() -> None:
    """A line is the same bill however it comes in, also where it is about as long as what is looked at at once."""
    for words in range(130, 260, 10):
        content = lines(openai_line(1, chat(words) | {"created": 1790000000}), openai_line(2, chat(1)))
        in_sizes = [in_pieces(OPENAI_FILE, content, "application/octet-stream", size) for size in (1_000, 65_536, 131_000)]
        first, *others = [[(one.settles, one.created_at) for one in readings] for readings in in_sizes]
        assert others == [first, first]


#: So long that only names and usage are left of a line.
ENDLESS = [WORD] * 600


@pytest.mark.parametrize(
    ("method_and_place", "line", "expected"),
    [
        (("api.openai.com", "/v1/files/f/content"), openai_line(1, chat(600)), ("f/batch_req_1", "gpt-4o")),
        (
            ("acme.openai.azure.com", "/openai/files/f/content"),
            {name: value for name, value in openai_line(1, chat(600)).items() if name != "id"},
            ("f/c1", "gpt-4o"),
        ),
        (
            ("api.anthropic.com", "/v1/messages/batches/b/results"),
            {
                "custom_id": "a",
                "result": {
                    "type": "succeeded",
                    "message": {
                        "id": "m",
                        "type": "message",
                        "model": "claude-sonnet-4-6",
                        "content": ENDLESS,
                        "usage": {"input_tokens": 10, "output_tokens": 120},
                    },
                },
            },
            ("b/a", "claude-sonnet-4-6"),
        ),
        (
            ("generativelanguage.googleapis.com", "/download/v1beta/files/f:download"),
            {
                "key": "k",
                "response": {
                    "candidates": [{"logprobsResult": ENDLESS}],
                    "usageMetadata": {"promptTokenCount": 10, "candidatesTokenCount": 120, "totalTokenCount": 130},
                    "modelVersion": "gemini-2.5-flash",
                },
            },
            ("f/k", "gemini-2.5-flash"),
        ),
    ],
    ids=["openai", "azure", "anthropic", "gemini"],
)
def test_a_line_of_which_only_the_names_are_left(
    method_and_place: tuple[str, str], line: Any, expected: tuple[str, str]
) -> None:
    """However long a line is, it is counted by its own name; the next one too."""
    where = found("GET", *method_and_place)
    other = json.loads(json.dumps(line).replace(json.dumps(ENDLESS)[1:-1], ""))
    readings = in_pieces(where, lines(line, other), "application/octet-stream")
    assert len(readings) == 2
    for reading in readings:
        assert dict(reading.usage.quantities) == {"input": 10, "output": 120}
        assert (reading.settles, reading.model, reading.mode) == (*expected, "batch")


def test_a_line_whose_counts_are_lost_is_a_row_that_says_so() -> None:
    """The batch counts as read then: what could not be is unknown under its own name, not nothing."""
    body = chat(600) | {"usage": {"note": [[0]] * 2_000, **CHAT_USAGE}, "more": ENDLESS}
    (reading,) = in_pieces(OPENAI_FILE, lines(openai_line(7, body)), "application/octet-stream")
    assert (reading.usage.known, reading.usage.flags, reading.malformed) == (False, ("usage_malformed",), "usage")
    assert reading.settles == "file-1/batch_req_7"


def test_a_long_file_that_is_no_batch_is_no_call() -> None:
    """Only lines with a name that a batch gives are bills, also where little is left of them."""
    assert in_pieces(OPENAI_FILE, lines({"id": "x", "usage": CHAT_USAGE, "all": ENDLESS}), "application/octet-stream") == []


def gemini_item(number: int) -> dict[str, Any]:
    usage = {"promptTokenCount": 10, "candidatesTokenCount": 5, "totalTokenCount": 15}
    answer = {"content": {"parts": [{"text": "answer " * 40}], "role": "model"}, "finishReason": "STOP"}
    return {"response": {"candidates": [answer], "usageMetadata": usage, "modelVersion": "m", "responseId": f"r{number}"}}


@pytest.mark.parametrize("size", [1_000, 65_536])
@pytest.mark.parametrize(
    ("method", "host", "path", "body", "quantities"),
    [
        (
            "GET",
            "generativelanguage.googleapis.com",
            "/v1beta/batches/abc",
            {
                "name": "batches/abc",
                "done": True,
                "response": {"inlinedResponses": {"inlinedResponses": [gemini_item(number) for number in range(400)]}},
            },
            [{"input": 10, "output": 5}] * 400,
        ),
        (
            "POST",
            "us-central1-aiplatform.googleapis.com",
            "/v1/projects/p/locations/l/publishers/google/models/text-embedding-005:predict",
            {"predictions": [{"embeddings": {"values": VECTOR, "statistics": {"token_count": 7.0}}}] * 20},
            [{"input": 140}],
        ),
        (
            "POST",
            "api.cohere.com",
            "/v2/embed",
            {"id": "e", "embeddings": {"float": [VECTOR] * 20}, "meta": {"billed_units": {"input_tokens": 40}}},
            [{"input": 40}],
        ),
        (
            "POST",
            "api.cohere.com",
            "/v2/embed",
            {"id": "e", "echo": [[WORD] * 500], "meta": {"billed_units": {"input_tokens": 40}}},
            [{"input": 40}],
        ),
    ],
    ids=["gemini-batch", "vertex", "cohere", "cohere-cut"],
)
def test_long_bodies_in_pieces(
    method: str, host: str, path: str, body: Any, quantities: list[dict[str, int]], size: int
) -> None:
    """What a whole body says is counted, is counted where it comes in pieces."""
    content = json.dumps(body).encode()
    assert len(content) > 128 * 1024
    where = found(method, host, path)
    assert counted(read_body(where, content)) == counted(in_pieces(where, content, size=size)) == quantities


def deep_research(searches: int) -> dict[str, Any]:
    sources = [{"type": "url", "url": "https://example.com/" + "a" * 100}] * 8
    call = {"type": "web_search_call", "status": "completed", "action": {"type": "search", "sources": sources}}
    usage = {"input_tokens": 100, "output_tokens": 50, "total_tokens": 150}
    return {"id": "r", "object": "response", "model": "o3", "output": [call] * searches, "usage": usage}


@pytest.mark.parametrize("streamed", [False, True])
@pytest.mark.parametrize(("searches", "whole"), [(200, True), (2_000, False)])
def test_tools_of_a_long_response(searches: int, whole: bool, streamed: bool) -> None:
    """Two hundred searches are counted. Where more were than can be kept, the row says that it may not be all."""
    response: Any = deep_research(searches)
    content, content_type = json.dumps(response).encode(), "application/json"
    if streamed:
        event = {"type": "response.completed", "response": response}
        content, content_type = b"data: " + json.dumps(event).encode() + b"\n\n", "text/event-stream"
    (reading,) = in_pieces(found("POST", "api.openai.com", "/v1/responses"), content, content_type)
    tools = {"web_search": searches} if whole else {}
    assert dict(reading.usage.quantities) == {"input": 100, "output": 50, **tools}
    assert reading.usage.flags == (() if whole else ("usage_inconsistent",))


def test_searches_that_were_cut_out_of_gemini_s_answer() -> None:
    """What an answer was grounded in may have stood in what is gone: the row says that it may not be all."""
    body = gemini_item(1)["response"] | {"candidates": [{"logprobsResult": [WORD] * 500, "groundingMetadata": {}}]}
    content = json.dumps(body).encode()
    where = found("POST", "generativelanguage.googleapis.com", "/v1beta/models/gemini-2.5-flash:generateContent")
    (reading,) = in_pieces(where, content)
    assert (dict(reading.usage.quantities), reading.usage.flags) == ({"input": 10, "output": 5}, ("usage_inconsistent",))
    assert read_body(where, content)[0].usage.flags == ()


NUMBERS = st.lists(st.integers(-9, 9) | st.floats(-1, 1), min_size=120, max_size=400)
DOCUMENTS = st.recursive(
    st.none() | st.booleans() | st.integers() | st.sampled_from(["[1, 2", '"[', "]", "é" * 9]) | NUMBERS,
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.sampled_from(["a", "[0,", "b]"]), inner, max_size=3),
    max_leaves=12,
)


def without_numbers(whole: Any, short: Any) -> bool:
    """Whether *short* is *whole* with nothing but long arrays of numbers emptied."""
    if isinstance(whole, dict):
        return (
            isinstance(short, dict)
            and whole.keys() == short.keys()
            and all(without_numbers(whole[k], short[k]) for k in whole)
        )
    if isinstance(whole, list) and len(json.dumps(whole)) > 256 and not isinstance(short, list):
        return False
    if isinstance(whole, list) and short == []:
        return all(isinstance(item, int | float) for item in whole)
    if isinstance(whole, list):
        return len(whole) == len(short) and all(map(without_numbers, whole, short))
    return bool(whole == short)


@given(document=DOCUMENTS, size=st.integers(1, 700), indent=st.sampled_from([None, 2]))
@settings(max_examples=200, deadline=None)
def test_emptying_arrays_keeps_the_structure(document: Any, size: int, indent: int | None) -> None:
    """Whatever the pieces, taking the insides out of long arrays of numbers changes nothing else of a document."""
    text = json.dumps(document, indent=indent, ensure_ascii=False).encode()
    excerpt = Excerpt(b'"usage"')
    for start in range(0, len(text), size):
        excerpt.feed(text[start : start + size])
    short = excerpt.finish()
    assert without_numbers(document, json.loads(short))
    if isinstance(document, list) and len(document) >= 260 and all(isinstance(item, int | float) for item in document):
        assert len(short) < 260
