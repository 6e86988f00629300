"""Replies in Anthropic's shapes.

Source: Anthropic's API reference and the type definitions of the ``anthropic`` package (2.x).
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from flask_llm_cost.testing.exchange import (
    Exchange,
    Json,
    answer_to,
    count_tokens,
    event,
    new_id,
    pieces,
    served_model,
    texts,
)


def messages(request: Json, usage: Json | None = None, cached: set[str] | None = None) -> Exchange:
    """``POST /v1/messages``.

    A stream says the input and one output token in ``message_start`` and running totals in ``message_delta``.

    :param cached: texts in the provider's cache; those that this request marks with ``cache_control`` are added
    """
    answer = answer_to(request.get("messages"))
    usage = usage or _usage(request, answer, cached if cached is not None else set())
    model, response_id = served_model(request), new_id("msg_")
    body: dict[str, Any] = {
        "id": response_id,
        "type": "message",
        "role": "assistant",
        "model": model,
        "content": [{"type": "text", "text": answer}],
        "stop_reason": "end_turn",
        "stop_sequence": None,
        "usage": usage,
    }
    if not request.get("stream"):
        return Exchange(model, body=body, usage=usage, response_id=response_id)

    first = {**usage, "output_tokens": min(1, int(usage.get("output_tokens") or 0))}
    first.pop("output_tokens_details", None)
    start = {**body, "content": [], "stop_reason": None, "usage": first}
    running = {key: value for key, value in usage.items() if key in _CUMULATIVE}
    steps: list[Json] = [
        {"type": "message_start", "message": start},
        {"type": "content_block_start", "index": 0, "content_block": {"type": "text", "text": ""}},
        {"type": "ping"},
        *(
            {"type": "content_block_delta", "index": 0, "delta": {"type": "text_delta", "text": piece}}
            for piece in pieces(answer)
        ),
        {"type": "content_block_stop", "index": 0},
        {"type": "message_delta", "delta": {"stop_reason": "end_turn", "stop_sequence": None}, "usage": running},
        {"type": "message_stop"},
    ]
    events = [event(step, step["type"]) for step in steps]
    return Exchange(model, events=events, usage=usage, response_id=response_id)


def count(request: Json, usage: Json | None = None) -> Exchange:
    """``POST /v1/messages/count_tokens``: counts, bills nothing."""
    tokens = count_tokens([request.get("system"), request.get("messages")])
    return Exchange(served_model(request), body={"input_tokens": tokens})


def models() -> Json:
    """``GET /v1/models``."""
    names = ("claude-sonnet-4-6", "claude-haiku-4-5")
    created = "2025-01-01T00:00:00Z"
    data = [{"type": "model", "id": name, "display_name": name, "created_at": created} for name in names]
    return {"data": data, "has_more": False, "first_id": names[0], "last_id": names[-1]}


def error(status: int, message: str) -> Json:
    kinds = {400: "invalid_request_error", 401: "authentication_error", 404: "not_found_error", 429: "rate_limit_error"}
    kind = kinds.get(status, "overloaded_error" if status == 529 else "api_error")
    return {"type": "error", "error": {"type": kind, "message": message}, "request_id": new_id("req_")}


_CUMULATIVE = frozenset(
    {
        "input_tokens",
        "cache_creation_input_tokens",
        "cache_read_input_tokens",
        "output_tokens",
        "output_tokens_details",
        "server_tool_use",
    }
)


def _usage(request: Json, answer: str, cached: set[str]) -> Json:
    prompt = [request.get("system"), request.get("messages")]
    read, written = 0, {"5m": 0, "1h": 0}
    for lifetime, text in _marked(prompt):
        tokens = count_tokens(text)
        if text in cached:
            read += tokens
        else:
            written[lifetime] += tokens
            cached.add(text)
    uncached = max(1, count_tokens(prompt) - read - sum(written.values()))
    output = count_tokens(answer)
    usage: dict[str, Any] = {
        "input_tokens": uncached,
        "cache_creation_input_tokens": sum(written.values()),
        "cache_read_input_tokens": read,
        "cache_creation": {"ephemeral_5m_input_tokens": written["5m"], "ephemeral_1h_input_tokens": written["1h"]},
        "output_tokens": output,
        "service_tier": "standard",
    }
    thinking = request.get("thinking") or {}
    if thinking.get("type") == "enabled":
        tokens = min(128, int(thinking.get("budget_tokens") or 0))
        usage |= {"output_tokens": output + tokens, "output_tokens_details": {"thinking_tokens": tokens}}
    return usage | {key: request[key] for key in ("speed", "inference_geo") if request.get(key)}


def _marked(value: Any) -> Iterator[tuple[str, str]]:
    """Lifetime and text of every block that asks to be cached."""
    if isinstance(value, Mapping):
        if isinstance(mark := value.get("cache_control"), Mapping):
            yield ("1h" if mark.get("ttl") == "1h" else "5m"), " ".join(texts(value))
        yield from _marked(value.get("content"))
    elif isinstance(value, list):
        for item in value:
            yield from _marked(item)
