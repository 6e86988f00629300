"""OpenAI's wire formats, and those of everybody who copied them.

Field names and what they include are from OpenAI's API reference and the types of its SDK (``CompletionUsage``,
``ResponseUsage``, ``CreateEmbeddingResponse``). Cached, written, audio and image tokens are counted *inside* the prompt.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from decimal import Decimal
from typing import Any, Final

from flask_llm_cost.records import Quantity, Reading, Usage
from flask_llm_cost.usage.format import (
    MAX_COUNT,
    Format,
    MalformedUsageError,
    block,
    count,
    numbers_only,
    quantities,
    text,
    with_source,
)

#: Service tiers that are billed at standard rates. Any other that is not a mode of the price book stays unpriced.
_STANDARD_TIERS: Final = frozenset({"auto", "default", "standard", "on_demand"})

_FINAL_EVENTS: Final = frozenset({"response.completed", "response.incomplete", "response.failed"})


def mode(body: Mapping[str, Any]) -> str | None:
    """The pricing mode that the reply's ``service_tier`` stands for; ``None`` for standard."""
    tier = text(body, "service_tier")
    return None if tier is None or tier in _STANDARD_TIERS else tier[:32]


class ChatCompletions(Format):
    """``/chat/completions`` and ``/completions``."""

    name = "openai.chat"

    def read(self, body: Mapping[str, Any]) -> Reading:
        names = Reading(model=text(body, "model"), response_id=text(body, "id"), mode=mode(body))
        usage = block(body, "usage")
        if not usage:
            return names
        return Reading(_chat_usage(usage), names.model, names.response_id, names.mode)

    def read_stream(self, events: Sequence[Mapping[str, Any]], ended: bool) -> Reading:
        # The usage event of `include_usage` has no choices and is the last: what came after it does not matter.
        last = events[-1] if events else {}
        return super().read_stream(events, ended or (self.fits(last) and not last.get("choices")))


def _chat_usage(usage: Mapping[str, Any]) -> Usage:
    prompt, completion, total = (
        count(usage, "prompt_tokens"),
        count(usage, "completion_tokens"),
        count(usage, "total_tokens"),
    )
    prompt_details, completion_details = block(usage, "prompt_tokens_details"), block(usage, "completion_tokens_details")
    # DeepSeek counts cache hits at the top level, Anthropic's and Databricks' OpenAI-style endpoints too.
    cache_read = (
        count(prompt_details, "cached_tokens")
        or count(usage, "prompt_cache_hit_tokens")
        or count(usage, "cached_tokens")
        or count(usage, "cache_read_input_tokens")
    )
    cache_write = count(prompt_details, "cache_write_tokens")
    audio_input, audio_output = count(prompt_details, "audio_tokens"), count(completion_details, "audio_tokens")
    image_input = count(prompt_details, "image_tokens")
    reasoning = count(completion_details, "reasoning_tokens")

    # xAI, and Gemini behind its OpenAI-style host, count reasoning beside the completion: only the total includes it.
    beside = max(0, total - prompt - completion)
    plain = prompt - cache_read - cache_write - audio_input - image_input
    text_output = completion + beside - audio_output
    consistent = plain >= 0 and text_output >= 0 and (not total or total >= prompt + completion) and beside in (0, reasoning)
    return Usage(
        quantities=_zero_if_empty(
            input=max(0, plain),
            cache_read=cache_read,
            cache_write=cache_write,
            audio_input=audio_input,
            image_input=image_input,
            output=max(0, text_output),
            audio_output=audio_output,
        ),
        source="response",
        reasoning_tokens=reasoning or None,
        total_tokens=total or None,
        billed=_billed(usage),
        flags=() if consistent else ("usage_inconsistent",),
        raw=numbers_only(usage),
    )


def _billed(usage: Mapping[str, Any]) -> Decimal | None:
    """What OpenRouter says it charged, in dollars; on own-key calls plus what the provider behind it charged.

    Source: OpenRouter's usage accounting, ``usage.cost`` and ``usage.cost_details.upstream_inference_cost``.
    """
    if "cost" not in usage:
        return None
    cost = _amount(usage, "cost")
    if cost is not None and usage.get("is_byok") is True:
        upstream = _amount(block(usage, "cost_details"), "upstream_inference_cost")
        return None if upstream is None else cost + upstream
    return cost


def _amount(body: Mapping[str, Any], key: str) -> Decimal | None:
    value = body.get(key)
    if isinstance(value, bool) or not isinstance(value, int | float):
        return None
    if not 0 <= value <= MAX_COUNT:
        raise MalformedUsageError(key)
    return Decimal(str(value))


class Responses(Format):
    """``/responses``. Its stream ends with an event that holds the whole response."""

    name = "openai.responses"

    def fits(self, body: Mapping[str, Any]) -> bool:
        return body.get("object") == "response" or isinstance(body.get("response"), Mapping)

    def read(self, body: Mapping[str, Any]) -> Reading:
        usage = block(body, "usage")
        return Reading(
            usage=_responses_usage(usage, body) if usage else Usage(),
            model=text(body, "model"),
            response_id=text(body, "id"),
            mode=mode(body),
        )

    def read_stream(self, events: Sequence[Mapping[str, Any]], ended: bool) -> Reading:
        last = next((event for event in reversed(events) if isinstance(event.get("response"), Mapping)), None)
        if last is None:
            return Reading()
        final = last.get("type") in _FINAL_EVENTS
        return with_source(self.read(last["response"]), "stream_final" if final else "stream_partial")


def _responses_usage(usage: Mapping[str, Any], body: Mapping[str, Any]) -> Usage:
    input_tokens, output, total = count(usage, "input_tokens"), count(usage, "output_tokens"), count(usage, "total_tokens")
    details, lifetimes = block(usage, "input_tokens_details"), block(usage, "cache_write_tokens_details")
    lifetimes = lifetimes or block(details, "cache_write_tokens_details")
    cache_read, written = count(details, "cached_tokens"), count(details, "cache_write_tokens")
    written_12h = min(written, count(lifetimes, "ttl_12h_tokens"))
    plain = input_tokens - cache_read - written
    reasoning = count(block(usage, "output_tokens_details"), "reasoning_tokens")
    consistent = plain >= 0 and (not total or total == input_tokens + output)
    return Usage(
        quantities=_zero_if_empty(
            input=max(0, plain),
            cache_read=cache_read,
            cache_write=written - written_12h,
            cache_write_12h=written_12h,
            output=output,
            **_hosted_tools(body),
        ),
        source="response",
        reasoning_tokens=reasoning or None,
        total_tokens=total or None,
        flags=() if consistent else ("usage_inconsistent",),
        raw=numbers_only(usage),
    )


def _hosted_tools(body: Mapping[str, Any]) -> dict[str, Quantity]:
    """Calls of OpenAI's hosted tools, which are billed beside the tokens.

    Only searches are billed, not opening or searching inside a page; a container once, however often it is used.
    """
    output = body.get("output")
    items = [item for item in output if isinstance(item, Mapping)] if isinstance(output, list) else []
    searches = count(block(block(body, "tool_usage"), "web_search"), "num_requests") or sum(
        1
        for item in items
        if item.get("type") == "web_search_call" and block(item, "action").get("type", "search") == "search"
    )
    tools = body.get("tools")
    preview = any(
        isinstance(tool, Mapping) and str(tool.get("type", "")).startswith("web_search_preview")
        for tool in (tools if isinstance(tools, list) else ())
    )
    containers = {item.get("container_id") for item in items if item.get("type") == "code_interpreter_call"}
    return {
        "web_search_preview" if preview else "web_search": searches,
        "file_search": sum(1 for item in items if item.get("type") == "file_search_call"),
        "container_session": len(containers),
        "image_generation": sum(1 for item in items if item.get("type") == "image_generation_call"),
    }


class Embeddings(Format):
    """``/embeddings``: everything is input. Replies may be megabytes of numbers, with the usage after them."""

    name = "openai.embeddings"
    usage_comes_last = True

    def read(self, body: Mapping[str, Any]) -> Reading:
        usage = block(body, "usage")
        names = Reading(model=text(body, "model"), response_id=text(body, "id"))
        if not usage:
            return names
        prompt, total = count(usage, "prompt_tokens"), count(usage, "total_tokens")
        return Reading(
            Usage(
                quantities={"input": prompt or total},
                source="response",
                total_tokens=total or None,
                flags=() if not total or total == prompt else ("usage_inconsistent",),
                raw=numbers_only(usage),
            ),
            names.model,
            names.response_id,
        )


def _zero_if_empty(**counted: Quantity) -> Mapping[str, Quantity]:
    """The components that were counted; a provider that counted nothing at all said zero, which is known."""
    return quantities(**counted) or {"input": 0, "output": 0}
