"""The wire formats, without a wire: what each provider's words come to in ours."""

from __future__ import annotations

import json
from typing import Any

import pytest

from flask_llm_cost.errors import UsageError
from flask_llm_cost.records import Reading
from flask_llm_cost.usage import HostMap, Route, read_body, read_stream, route
from flask_llm_cost.usage.manual import usage_from
from flask_llm_cost.usage.sse import EventScanner

HOSTS = HostMap({"gateway.example/anthropic": "anthropic", "gateway.example": "internal_gateway"}, True)


def found(host: str, path: str) -> Route:
    matched = route(HOSTS, "POST", host, path, {}, marked=False)
    assert matched is not None
    return matched


CHAT = found("api.openai.com", "/v1/chat/completions")
RESPONSES = found("api.openai.com", "/v1/responses")
MESSAGES = found("api.anthropic.com", "/v1/messages")


def read(where: Route, **body: Any) -> Reading:
    (reading,) = read_body(where, json.dumps(body).encode())
    return reading


def counted(where: Route, usage: dict[str, Any], **body: Any) -> dict[str, Any]:
    return dict(read(where, usage=usage, **body).usage.quantities)


CHAT_SHAPES: list[tuple[dict[str, Any], dict[str, int], tuple[str, ...]]] = [
    # Cached, written, audio and image tokens are inside the prompt; reasoning and audio inside the completion.
    ({"prompt_tokens": 10, "completion_tokens": 4, "total_tokens": 14}, {"input": 10, "output": 4}, ()),
    (
        {
            "prompt_tokens": 100,
            "completion_tokens": 4,
            "prompt_tokens_details": {"cached_tokens": 60, "cache_write_tokens": 30},
        },
        {"input": 10, "cache_read": 60, "cache_write": 30, "output": 4},
        (),
    ),
    (
        {
            "prompt_tokens": 100,
            "completion_tokens": 50,
            "total_tokens": 150,
            "prompt_tokens_details": {"audio_tokens": 20, "image_tokens": 30},
            "completion_tokens_details": {"reasoning_tokens": 8, "audio_tokens": 10},
        },
        {"input": 50, "audio_input": 20, "image_input": 30, "output": 40, "audio_output": 10},
        (),
    ),
    # xAI: reasoning beside the completion, only the total has it.
    (
        {
            "prompt_tokens": 10,
            "completion_tokens": 4,
            "total_tokens": 34,
            "completion_tokens_details": {"reasoning_tokens": 20},
        },
        {"input": 10, "output": 24},
        (),
    ),
    # Gemini behind its OpenAI-style host: the same, and nobody says what the rest is.
    (
        {"prompt_tokens": 10, "completion_tokens": 4, "total_tokens": 34},
        {"input": 10, "output": 24},
        ("usage_inconsistent",),
    ),
    # DeepSeek.
    (
        {"prompt_tokens": 10, "completion_tokens": 4, "prompt_cache_hit_tokens": 6, "prompt_cache_miss_tokens": 4},
        {"input": 4, "cache_read": 6, "output": 4},
        (),
    ),
    ({"prompt_tokens": 10, "completion_tokens": 4, "cached_tokens": 6}, {"input": 4, "cache_read": 6, "output": 4}, ()),
    # What does not add up is flagged.
    (
        {"prompt_tokens": 10, "completion_tokens": 4, "prompt_tokens_details": {"cached_tokens": 60}},
        {"cache_read": 60, "output": 4},
        ("usage_inconsistent",),
    ),
    (
        {"prompt_tokens": 10, "completion_tokens": 4, "total_tokens": 9},
        {"input": 10, "output": 4},
        ("usage_inconsistent",),
    ),
    # Zero, said by the provider, is known.
    ({"prompt_tokens": 0, "completion_tokens": 0, "total_tokens": 0}, {"input": 0, "output": 0}, ()),
]


@pytest.mark.parametrize(("usage", "quantities", "flags"), CHAT_SHAPES, ids=range(len(CHAT_SHAPES)))
def test_chat_completions(usage: dict[str, Any], quantities: dict[str, int], flags: tuple[str, ...]) -> None:
    """Every shape of a chat completion's usage becomes disjoint components."""
    reading = read(CHAT, usage=usage, model="m")
    assert (dict(reading.usage.quantities), reading.usage.flags) == (quantities, flags)


@pytest.mark.parametrize(
    ("tier", "mode"),
    [("default", None), ("auto", None), (None, None), ("flex", "flex"), ("priority", "priority"), ("scale", "scale")],
)
def test_the_served_tier_is_the_mode(tier: str | None, mode: str | None) -> None:
    """The tier in the reply is the pricing mode; one that nobody knows is not taken for standard."""
    assert read(CHAT, usage={"prompt_tokens": 1}, service_tier=tier).mode == mode


@pytest.mark.parametrize("host", ["eu.api.openai.com", "eu.api.openai.com:443"])
def test_a_regional_host_is_a_mode(host: str) -> None:
    """OpenAI's regional hosts imply a residency, beside the tier, also where the URL names the port."""
    regional = found(host, "/v1/chat/completions")
    assert (regional.provider, read(regional, usage={"prompt_tokens": 1}, service_tier="flex").mode) == (
        "openai",
        "flex+residency:eu",
    )


def test_responses_with_their_tools() -> None:
    """The Responses API: cache lifetimes, and hosted tools counted as they are billed."""
    usage = {
        "input_tokens": 1000,
        "input_tokens_details": {"cached_tokens": 600, "cache_write_tokens": 300},
        "cache_write_tokens_details": {"ttl_30m_tokens": 200, "ttl_12h_tokens": 100},
        "output_tokens": 50,
        "output_tokens_details": {"reasoning_tokens": 30},
        "total_tokens": 1050,
    }
    output = [
        {"type": "web_search_call", "action": {"type": "search"}},
        {"type": "web_search_call", "action": {"type": "open_page"}},
        {"type": "web_search_call", "action": {"type": "find_in_page"}},
        {"type": "file_search_call"},
        {"type": "code_interpreter_call", "container_id": "a"},
        {"type": "code_interpreter_call", "container_id": "a"},
        {"type": "code_interpreter_call", "container_id": "b"},
    ]
    expected = {
        "input": 100,
        "cache_read": 600,
        "cache_write": 200,
        "cache_write_12h": 100,
        "output": 50,
        "web_search": 1,
        "file_search": 1,
        "container_session": 2,
    }
    assert counted(RESPONSES, usage, output=output) == expected
    preview = counted(RESPONSES, usage, output=output, tools=[{"type": "web_search_preview"}])
    assert "web_search" not in preview
    assert preview["web_search_preview"] == 1
    requests = {"web_search": {"num_requests": 4}}
    assert counted(RESPONSES, usage, output=output, tool_usage=requests)["web_search"] == 4


def test_anthropic_counts_cached_input_beside() -> None:
    """Anthropic: additive cache counts with lifetimes, server tools, and what changes the price."""
    usage = {
        "input_tokens": 10,
        "cache_read_input_tokens": 100,
        "cache_creation_input_tokens": 184,
        "cache_creation": {"ephemeral_5m_input_tokens": 31, "ephemeral_1h_input_tokens": 50},
        "output_tokens": 20,
        "output_tokens_details": {"thinking_tokens": 5},
        "server_tool_use": {"web_search_requests": 2, "web_fetch_requests": 1},
        "service_tier": "standard",
        "speed": "fast",
        "inference_geo": "us",
    }
    reading = read(MESSAGES, type="message", usage=usage)
    assert dict(reading.usage.quantities) == {
        "input": 10,
        "cache_read": 100,
        "cache_write": 134,
        "cache_write_1h": 50,
        "output": 20,
        "web_search": 2,
        "web_fetch": 1,
    }
    assert (reading.mode, reading.usage.reasoning_tokens, reading.usage.flags) == ("fast+residency:us", 5, ())
    compacted = {
        **usage,
        "iterations": [{"type": "message", "output_tokens": 20}, {"type": "compaction", "output_tokens": 7}],
    }
    assert counted(MESSAGES, compacted)["output"] == 27


def test_an_anthropic_stream_is_merged_key_by_key() -> None:
    """Cumulative deltas replace what they name, and leave what only the start knows."""
    start = {
        "type": "message_start",
        "message": {
            "id": "msg",
            "model": "claude",
            "usage": {"input_tokens": 10, "cache_read_input_tokens": 4, "output_tokens": 1, "inference_geo": "us"},
        },
    }
    deltas = [
        {"type": "message_delta", "delta": {"stop_reason": None}, "usage": {"output_tokens": 8, "input_tokens": None}},
        {"type": "message_delta", "delta": {"stop_reason": "end_turn"}, "usage": {"output_tokens": 20, "input_tokens": 15}},
    ]
    (whole,) = read_stream(MESSAGES, [start, *deltas], True)
    (cut,) = read_stream(MESSAGES, [start, deltas[0]], False)
    assert dict(whole.usage.quantities) == {"input": 15, "cache_read": 4, "output": 20}
    assert (whole.mode, whole.model, whole.usage.source) == ("residency:us", "claude", "stream_final")
    assert (dict(cut.usage.quantities)["output"], cut.usage.source) == (8, "stream_partial")


def test_a_chunk_that_says_why_the_answer_ended_has_the_whole_usage() -> None:
    """Who counts in the chunk with the finish reason has counted all: an app that leaves there has cut nothing."""
    usage = {"prompt_tokens": 10, "completion_tokens": 8, "total_tokens": 18}
    for reason, source in ((None, "stream_partial"), ("stop", "stream_final")):
        chunk = {"model": "mistral", "choices": [{"index": 0, "delta": {}, "finish_reason": reason}], "usage": usage}
        (reading,) = read_stream(CHAT, [{"model": "mistral"}, chunk], False)
        assert (dict(reading.usage.quantities)["output"], reading.usage.source) == (8, source)


def test_one_of_two_answers_that_has_ended_is_not_all() -> None:
    """Of several answers each has to have ended: who leaves when the first one has cuts the other."""
    usage = {"prompt_tokens": 10, "completion_tokens": 8, "total_tokens": 18}

    def chunk(index: int, reason: str | None) -> dict[str, Any]:
        return {"choices": [{"index": index, "delta": {}, "finish_reason": reason}], "usage": usage}

    first: list[Any] = [{"model": "mistral"}, chunk(0, None), chunk(1, None), chunk(0, "stop")]
    (odd,) = read_stream(CHAT, [{"choices": [{"index": [], "finish_reason": "stop"}], "usage": usage}], False)
    assert odd.usage.source == "stream_final"
    for events, source in ((first, "stream_partial"), ([*first, chunk(1, "stop")], "stream_final")):
        (reading,) = read_stream(CHAT, events, False)
        assert reading.usage.source == source


def test_a_tier_that_only_the_first_event_names_is_the_mode() -> None:
    """The event with the usage may say ``null`` of what the first one told: null is no word for standard."""
    first = {"id": "x", "model": "gpt-5", "service_tier": "flex", "choices": [{"index": 0, "delta": {"content": "a"}}]}
    last = {"id": "x", "model": None, "service_tier": None, "choices": [], "usage": {"prompt_tokens": 1}}
    (reading,) = read_stream(CHAT, [first, last], True)
    assert (reading.mode, reading.model) == ("flex", "gpt-5")
    (told,) = read_stream(CHAT, [first, {**last, "service_tier": "default"}], True)
    assert told.mode is None


def test_billed_amounts_count_where_the_provider_sends_them() -> None:
    """OpenRouter's cost is the bill, with the upstream cost on own keys; the same field of anybody else is not believed."""
    router = found("openrouter.ai", "/api/v1/chat/completions")
    usage = {"prompt_tokens": 1, "completion_tokens": 1, "cost": 0.0123}
    assert str(read(router, usage=usage).usage.billed) == "0.0123"
    own_key = {**usage, "is_byok": True, "cost_details": {"upstream_inference_cost": 0.5}}
    assert str(read(router, usage=own_key).usage.billed) == "0.5123"
    assert read(CHAT, usage=usage).usage.billed is None


@pytest.mark.parametrize("cost", ["0.001", -1, True, [], {"total_cost": "0.001"}])
@pytest.mark.parametrize("ticks", [{}, {"cost_in_usd_ticks": "5"}])
def test_an_amount_that_is_none_spoils_only_a_bill_that_is_believed(cost: Any, ticks: dict[str, Any]) -> None:
    """A gateway may write into ``cost`` what it likes: the tokens count. Where it would be the bill, nothing is believed."""
    usage = {"prompt_tokens": 10, "completion_tokens": 4, "cost": cost, **ticks}
    reading = read(CHAT, usage=usage)
    assert (dict(reading.usage.quantities), reading.usage.billed, reading.malformed) == (
        {"input": 10, "output": 4},
        None,
        None,
    )
    refused = read(found("openrouter.ai", "/api/v1/chat/completions"), usage=usage)
    assert (refused.usage.known, refused.usage.flags, refused.malformed) == (False, ("usage_malformed",), "cost")
    with pytest.raises(UsageError, match="cost"):
        usage_from("openai", usage)


@pytest.mark.parametrize(("seconds", "counted_too"), [({}, {}), (None, {}), (0, {}), (3, {"audio_seconds": 3})])
def test_mistral_s_empty_count_of_audio_is_none(seconds: Any, counted_too: dict[str, int]) -> None:
    """``"prompt_audio_seconds": {}`` says that there was no audio; the tokens beside it count."""
    mistral = found("api.mistral.ai", "/v1/chat/completions")
    usage = {"prompt_tokens": 24, "completion_tokens": 27, "total_tokens": 51, "prompt_audio_seconds": seconds}
    assert counted(mistral, usage) == {"input": 24, "output": 27, **counted_too}


def test_nothing_but_numbers_and_enum_words_is_kept() -> None:
    """The stored usage block has no text but the known enum words, whatever was sent."""
    usage = {
        "prompt_tokens": 1,
        "note": "SECRET",
        "service_tier": "flex",
        "type": "a sentence with SECRET",
        "list": ["SECRET", 1, {"modality": "AUDIO", "SECRET words": 2}],
        "deep": {"a": {"b": {"c": {"d": {"e": {"f": {"g": 1}}}}}}},
    }
    raw = json.dumps(read(CHAT, usage=usage).usage.raw)
    assert "SECRET" not in raw
    assert '"service_tier": "flex"' in raw
    assert '"modality": "AUDIO"' in raw


@pytest.mark.parametrize(
    ("host", "path", "provider", "operation"),
    [
        ("api.openai.com", "/v1/embeddings", "openai", "embeddings"),
        ("acme.openai.azure.com", "/openai/deployments/x/chat/completions", "azure", "chat.completions"),
        ("gateway.example", "/v1/chat/completions", "internal_gateway", "chat.completions"),
        ("gateway.example", "/anthropic/v1/messages", "anthropic", "messages"),
        ("gateway.example:8443", "/anthropic/v1/messages", "anthropic", "messages"),
        ("gateway.example", "/anthropicish/v1/messages", "internal_gateway", "messages"),
        ("gateway.example", "/anthropic/ask", "anthropic", "ask"),
        ("gateway.example", "/v1/threads/thread_1/runs", "internal_gateway", "runs"),
        ("gateway.example", "/agents/threads/42/answer", "internal_gateway", "answer"),
        ("unknown.example", "/v1/chat/completions", "unknown.example", "chat.completions"),
    ],
)
def test_host_and_path_say_whose_call_it_is(host: str, path: str, provider: str, operation: str) -> None:
    """The host decides the provider, the longest configured prefix first; the path decides the format."""
    matched = found(host, path)
    assert (matched.provider, matched.operation) == (provider, operation)


@pytest.mark.parametrize(
    ("method", "host", "path"),
    [
        ("GET", "api.openai.com", "/v1/chat/completions"),
        ("POST", "api.openai.com", "/v1/moderations"),
        ("POST", "api.anthropic.com", "/v1/messages/count_tokens"),
        ("POST", "gateway.example", "/v1/files"),
        ("POST", "gateway.example", "/v1/chat/completions/chatcmpl-1"),
        ("POST", "gateway.example", "/v1/threads/thread_1/runs/run_1"),
        ("POST", "gateway.example", "/v1beta/cachedContents"),
        ("POST", "shop.example", "/orders"),
    ],
)
def test_what_costs_nothing_is_not_watched(method: str, host: str, path: str) -> None:
    """Other traffic, and the providers' free endpoints, are let pass."""
    assert route(HOSTS, method, host, path, {}, marked=True) is None


@pytest.mark.parametrize("newline", ["\n", "\r\n", "\r"])
@pytest.mark.parametrize("size", [1, 3, 64, 100_000])
def test_events_are_found_in_pieces_of_any_size(newline: str, size: int) -> None:
    """Comments, names, line ends and pieces of any kind: the first event and those with usage are found."""
    first = {"id": "1", "text": '"usage": {"fake": 1}'}
    last = {"usage": {"n": 2}, "text": "é"}
    lines = [": comment", "", f"data: {json.dumps(first)}", "", "event: x", 'data: {"usage": null}', ""]
    lines += [f"data:{json.dumps(last)}", "", "data: [DONE]", "", ""]
    stream = newline.join(lines).encode()
    scanner = EventScanner(b'"usage"')
    for start in range(0, len(stream), size):
        scanner.feed(stream[start : start + size])
    scanner.finish()
    assert scanner.events == [first, last]
    assert scanner.done
