"""Replies in OpenAI's shapes.

Source: OpenAI's API reference and the type definitions of the ``openai`` package (3.x).
"""

from __future__ import annotations

import base64
import math
import time
import zlib
from array import array
from typing import Any

from flask_llm_cost.testing.exchange import (
    REASONING_TOKENS,
    Exchange,
    Json,
    answer_to,
    count_tokens,
    event,
    new_id,
    pieces,
    served_model,
)


def chat(request: Json, usage: Json | None = None) -> Exchange:
    """``POST /v1/chat/completions``. A stream carries usage only where the request asks, and is billed all the same."""
    answer = answer_to(request.get("messages"))
    reasoning = REASONING_TOKENS.get(str(request.get("reasoning_effort")), 0)
    usage = usage or _chat_usage(request, answer, reasoning)
    model, response_id = served_model(request), new_id("chatcmpl-")
    head = {
        "id": response_id,
        "created": int(time.time()),
        "model": model,
        "service_tier": _served_tier(request),
        "system_fingerprint": "fp_played",
    }
    if not request.get("stream"):
        message: Json = {"role": "assistant", "content": answer, "refusal": None, "annotations": []}
        choice = {"index": 0, "message": message, "logprobs": None, "finish_reason": "stop"}
        body = {"object": "chat.completion", **head, "choices": [choice], "usage": usage}
        return Exchange(model, body=body, usage=usage, response_id=response_id)

    asked = bool((request.get("stream_options") or {}).get("include_usage"))
    head["object"] = "chat.completion.chunk"
    none_yet = {"usage": None} if asked else {}

    def chunk(delta: Json, finish_reason: str | None = None) -> bytes:
        choice = {"index": 0, "delta": delta, "logprobs": None, "finish_reason": finish_reason}
        return event({**head, "choices": [choice], **none_yet})

    events = [chunk({"role": "assistant", "content": "", "refusal": None})]
    events += [chunk({"content": piece}) for piece in pieces(answer)]
    events.append(chunk({}, "stop"))
    if asked:
        events.append(event({**head, "choices": [], "usage": usage}))
    events.append(b"data: [DONE]\n\n")
    return Exchange(model, events=events, usage=usage, response_id=response_id)


def responses(request: Json, usage: Json | None = None) -> Exchange:
    """``POST /v1/responses``. A background response answers ``queued`` without usage; a later GET has the rest."""
    answer = answer_to(request.get("input"))
    usage = usage or _responses_usage(request, answer)
    model, response_id = served_model(request), new_id("resp_")
    item: dict[str, Any] = {"id": new_id("msg_"), "type": "message", "status": "completed", "role": "assistant"}
    part = {"type": "output_text", "text": answer, "annotations": [], "logprobs": []}
    body: dict[str, Any] = {
        "id": response_id,
        "object": "response",
        "created_at": int(time.time()),
        "status": "completed",
        "background": bool(request.get("background")),
        "error": None,
        "incomplete_details": None,
        "instructions": request.get("instructions"),
        "metadata": request.get("metadata") or {},
        "model": model,
        "output": [{**item, "content": [part]}],
        "parallel_tool_calls": True,
        "service_tier": _served_tier(request),
        "tool_choice": "auto",
        "tools": [],
        "usage": usage,
    }
    if not request.get("stream"):
        return Exchange(model, body=body, usage=usage, response_id=response_id)

    started = {**body, "status": "in_progress", "output": [], "usage": None}
    place = {"item_id": item["id"], "output_index": 0, "content_index": 0}
    steps: list[tuple[str, Json]] = [
        ("response.created", {"response": started}),
        ("response.in_progress", {"response": started}),
        ("response.output_item.added", {"output_index": 0, "item": {**item, "status": "in_progress", "content": []}}),
        ("response.content_part.added", {**place, "part": {**part, "text": ""}}),
        *(("response.output_text.delta", {**place, "delta": piece, "logprobs": []}) for piece in pieces(answer)),
        ("response.output_text.done", {**place, "text": answer, "logprobs": []}),
        ("response.content_part.done", {**place, "part": part}),
        ("response.output_item.done", {"output_index": 0, "item": {**item, "content": [part]}}),
        ("response.completed", {"response": body}),
    ]
    events = [event({"type": name, "sequence_number": n, **data}, name) for n, (name, data) in enumerate(steps)]
    return Exchange(model, events=events, usage=usage, response_id=response_id)


def input_tokens(request: Json, usage: Json | None = None) -> Exchange:
    """``POST /v1/responses/input_tokens``: counts, bills nothing."""
    tokens = count_tokens([request.get("instructions"), request.get("input")])
    return Exchange(served_model(request), body={"object": "response.input_tokens", "input_tokens": tokens})


def embeddings(request: Json, usage: Json | None = None) -> Exchange:
    """``POST /v1/embeddings``. Texts that share words have vectors that point the same way."""
    inputs = request.get("input") or ""
    if isinstance(inputs, str) or (inputs and isinstance(inputs[0], int)):
        inputs = [inputs]
    tokens = sum(count_tokens(text) if isinstance(text, str) else len(text) for text in inputs)
    usage = usage or {"prompt_tokens": tokens, "total_tokens": tokens}
    model = served_model(request)
    size = int(request.get("dimensions") or (3072 if "large" in model else 1536))
    data = []
    for index, text in enumerate(inputs):
        vector = _vector(str(text), size)
        packed = base64.b64encode(vector.tobytes()).decode()
        embedding = packed if request.get("encoding_format") == "base64" else vector.tolist()
        data.append({"object": "embedding", "index": index, "embedding": embedding})
    return Exchange(model, body={"object": "list", "data": data, "model": model, "usage": usage}, usage=usage)


def moderations(request: Json, usage: Json | None = None) -> Exchange:
    """``POST /v1/moderations``: free, the reply has no usage."""
    names = ("harassment", "hate", "illicit", "self-harm", "sexual", "violence")
    model = served_model(request) or "omni-moderation-2024-09-26"
    result = {"flagged": False, "categories": dict.fromkeys(names, False), "category_scores": dict.fromkeys(names, 0.0)}
    return Exchange(model, body={"id": new_id("modr-"), "model": model, "results": [result]})


def models() -> Json:
    """``GET /v1/models``."""
    names = ("gpt-4o", "gpt-4o-mini", "gpt-4.1-mini", "text-embedding-3-small")
    data = [{"id": name, "object": "model", "created": 1700000000, "owned_by": "played"} for name in names]
    return {"object": "list", "data": data}


def error(status: int, message: str) -> Json:
    kind = "server_error" if status >= 500 else "invalid_request_error"
    return {"error": {"message": message, "type": kind, "param": None, "code": None}}


def _served_tier(request: Json) -> str:
    tier = request.get("service_tier")
    return "default" if tier in (None, "auto") else str(tier)


def _chat_usage(request: Json, answer: str, reasoning: int) -> Json:
    prompt, completion = count_tokens(request.get("messages")), count_tokens(answer) + reasoning
    return {
        "prompt_tokens": prompt,
        "completion_tokens": completion,
        "total_tokens": prompt + completion,
        "prompt_tokens_details": {"cached_tokens": _cached(request, prompt), "audio_tokens": 0},
        "completion_tokens_details": {
            "reasoning_tokens": reasoning,
            "audio_tokens": 0,
            "accepted_prediction_tokens": 0,
            "rejected_prediction_tokens": 0,
        },
    }


def _responses_usage(request: Json, answer: str) -> Json:
    reasoning = REASONING_TOKENS.get(str((request.get("reasoning") or {}).get("effort")), 0)
    prompt = count_tokens([request.get("instructions"), request.get("input")])
    output = count_tokens(answer) + reasoning
    return {
        "input_tokens": prompt,
        "input_tokens_details": {"cached_tokens": _cached(request, prompt), "cache_write_tokens": 0},
        "output_tokens": output,
        "output_tokens_details": {"reasoning_tokens": reasoning},
        "total_tokens": prompt + output,
    }


def _cached(request: Json, prompt: int) -> int:
    return prompt // 2 if request.get("prompt_cache_key") else 0


def _vector(text: str, size: int) -> array[float]:
    vector = array("f", bytes(4 * size))
    for word in text.lower().split():
        vector[zlib.crc32(word.strip(".,;:!?").encode()) % size] += 1.0
    length = math.sqrt(sum(x * x for x in vector)) or 1.0
    return array("f", [x / length for x in vector])
