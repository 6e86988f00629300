"""Anthropic's Messages API.

Field names and what they include are from Anthropic's API reference and the types of its SDK (``Usage``,
``MessageDeltaUsage``). Cached input is counted *beside* ``input_tokens``, and a stream's counts are cumulative.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Final

from flask_llm_cost.records import Reading, Usage
from flask_llm_cost.usage.format import Format, block, count, numbers_only, quantities, text, with_source

_STANDARD: Final = frozenset({"standard", "default", "auto"})
_ANYWHERE: Final = frozenset({"global", "not_available"})


class Messages(Format):
    """``/v1/messages``."""

    name = "anthropic.messages"
    last_event_counts = False

    def fits(self, body: Mapping[str, Any]) -> bool:
        return body.get("type") in ("message", "message_start", "message_delta")

    def read(self, body: Mapping[str, Any]) -> Reading:
        usage = block(body, "usage")
        return Reading(
            usage=_usage(usage) if usage else Usage(),
            model=text(body, "model"),
            response_id=text(body, "id"),
            mode=_mode(usage),
        )

    def read_stream(self, events: Sequence[Mapping[str, Any]], ended: bool) -> Reading:
        message: dict[str, Any] = {}
        usage: dict[str, Any] = {}
        final = False
        for event in events:
            if event.get("type") == "message_start":
                message = dict(block(event, "message"))
                usage = dict(block(message, "usage"))
            elif event.get("type") == "message_delta":
                # Cumulative: replace, never add. It leaves out what it does not know, such as the cache lifetimes.
                usage.update({key: value for key, value in block(event, "usage").items() if value is not None})
                final = final or block(event, "delta").get("stop_reason") is not None
        reading = self.read({**message, "usage": usage or None})
        return with_source(reading, "stream_final" if final else "stream_partial")


def _usage(usage: Mapping[str, Any]) -> Usage:
    written = count(usage, "cache_creation_input_tokens")
    lifetimes = block(usage, "cache_creation")
    written_1h = count(lifetimes, "ephemeral_1h_input_tokens")
    written_5m = count(lifetimes, "ephemeral_5m_input_tokens")
    # The split may cover only part of what was written: the rest has the default lifetime.
    consistent = not lifetimes or written_1h + written_5m <= written
    output = count(usage, "output_tokens")
    server_tools = block(usage, "server_tool_use")
    counted = quantities(
        input=count(usage, "input_tokens"),
        cache_read=count(usage, "cache_read_input_tokens"),
        cache_write=max(written - written_1h, written_5m),
        cache_write_1h=written_1h,
        output=output,
        web_search=count(server_tools, "web_search_requests"),
        web_fetch=count(server_tools, "web_fetch_requests"),
    )
    # A compaction ran beside the message, on the same model, and is billed on top of it.
    iterations = usage.get("iterations")
    for iteration in iterations if isinstance(iterations, list) else ():
        if isinstance(iteration, Mapping) and iteration.get("type") == "compaction":
            for name, quantity in _usage({**iteration, "iterations": None}).quantities.items():
                counted[name] = counted.get(name, 0) + quantity
    return Usage(
        quantities=counted or {"input": 0, "output": 0},
        source="response",
        reasoning_tokens=count(block(usage, "output_tokens_details"), "thinking_tokens") or None,
        flags=() if consistent else ("usage_inconsistent",),
        raw=numbers_only(usage),
    )


def _mode(usage: Mapping[str, Any]) -> str | None:
    """Speed or tier, and the geography that inference was held to."""
    tier, speed, geo = text(usage, "service_tier"), text(usage, "speed"), text(usage, "inference_geo")
    parts = []
    if speed is not None and speed not in _STANDARD:
        parts.append(speed[:32])
    elif tier is not None and tier not in _STANDARD:
        parts.append(tier[:32])
    if geo is not None and geo not in _ANYWHERE:
        parts.append(f"residency:{geo[:32]}")
    return "+".join(parts) or None
