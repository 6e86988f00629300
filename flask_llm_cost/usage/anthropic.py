"""Anthropic's Messages API.

Field names and what they include are from Anthropic's API reference and the types of its SDK (``Usage``, ``BetaUsage``,
``MessageDeltaUsage``). Cached input is counted *beside* ``input_tokens``, and a stream's counts are cumulative.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Final

from flask_llm_cost.records import Quantity, Reading, Usage
from flask_llm_cost.usage.format import Format, block, count, in_stream, items, numbers_only, quantities, text
from flask_llm_cost.usage.openai import billed

_STANDARD: Final = frozenset({"standard", "standard_only", "default", "auto"})
_ANYWHERE: Final = frozenset({"global", "not_available"})


class Messages(Format):
    """``/v1/messages``."""

    name = "anthropic.messages"
    last_event_counts = False

    def fits(self, body: Mapping[str, Any]) -> bool:
        return body.get("type") in ("message", "message_start", "message_delta")

    def read(self, body: Mapping[str, Any]) -> Reading:
        return self.read_all(body)[0]

    def read_all(self, body: Mapping[str, Any]) -> list[Reading]:
        usage = block(body, "usage")
        if not usage:
            return [self.name_of(body)]
        iterations, response_id, served_as = items(usage, "iterations"), text(body, "id"), mode(usage)
        model = _served_by(iterations) or text(body, "model")
        readings = [Reading(_usage(usage, iterations), model, response_id, served_as)]
        declined = _declined(iterations, model)
        if declined:
            readings = _by_model(readings[0], declined, _alone(usage, iterations, declined))
        for adviser in iterations:
            # Another model was asked on the way, and counts beside the message.
            if adviser.get("type") == "advisor_message":
                readings.append(Reading(_usage(adviser, ()), text(adviser, "model"), response_id, served_as))
        return readings

    def read_stream(self, events: Sequence[Mapping[str, Any]], ended: bool) -> Reading:
        return self.read_stream_all(events, ended)[0]

    def read_stream_all(self, events: Sequence[Mapping[str, Any]], ended: bool) -> list[Reading]:
        message: dict[str, Any] = {}
        usage: dict[str, Any] = {}
        final = False
        for event in events:
            if event.get("type") == "message_start":
                message = dict(block(event, "message") or event)
                usage = dict(block(message, "usage"))
            elif event.get("type") == "message_delta":
                # Cumulative: replace, never add. It leaves out what it does not know, such as the cache lifetimes.
                usage.update({key: value for key, value in block(event, "usage").items() if value is not None})
                final = final or block(event, "delta").get("stop_reason") is not None
        readings = self.read_all({**message, "usage": usage or None})
        return [in_stream(reading, final) for reading in readings]

    def name_of(self, body: Mapping[str, Any]) -> Reading:
        message = body.get("message")
        return super().name_of(message if isinstance(message, Mapping) else body)


def _usage(usage: Mapping[str, Any], iterations: Sequence[Mapping[str, Any]]) -> Usage:
    lifetimes = block(usage, "cache_creation")
    written_1h = count(lifetimes, "ephemeral_1h_input_tokens")
    written_5m = count(lifetimes, "ephemeral_5m_input_tokens")
    total_known = usage.get("cache_creation_input_tokens") is not None
    written = count(usage, "cache_creation_input_tokens") if total_known else written_1h + written_5m
    # The split may cover only part of what was written: the rest has the default lifetime.
    consistent = not lifetimes or written_1h + written_5m <= written
    output = count(usage, "output_tokens")
    thought = count(block(usage, "output_tokens_details"), "thinking_tokens")
    server_tools = block(usage, "server_tool_use")
    counted: dict[str, Quantity] = quantities(
        input=count(usage, "input_tokens"),
        cache_read=count(usage, "cache_read_input_tokens"),
        cache_write=max(written - written_1h, written_5m),
        cache_write_1h=written_1h,
        output=output,
        web_search=count(server_tools, "web_search_requests"),
        web_fetch=count(server_tools, "web_fetch_requests"),
    )
    # A compaction ran beside the message, on the same model, and is billed on top of it.
    for iteration in iterations:
        if iteration.get("type") == "compaction":
            for name, quantity in _usage(iteration, ()).quantities.items():
                counted[name] = counted.get(name, 0) + quantity
    return Usage(
        quantities={name: quantity for name, quantity in counted.items() if quantity} or {"input": 0, "output": 0},
        source="response",
        reasoning_tokens=thought or None,
        billed=billed(usage),
        flags=() if consistent and thought <= output else ("usage_inconsistent",),
        raw=numbers_only(usage),
    )


def _served_by(iterations: Sequence[Mapping[str, Any]]) -> str | None:
    """The model that a request fell back to. A stream's first event names the one that was asked, and may have declined."""
    hops = [text(hop, "model") for hop in iterations if hop.get("type") == "fallback_message"]
    return hops[-1] if hops else None


def _declined(iterations: Sequence[Mapping[str, Any]], model: str | None) -> list[Mapping[str, Any]]:
    """The hops of a fallback that another model than *model* took."""
    if not any(iteration.get("type") == "fallback_message" for iteration in iterations):
        return []
    return [hop for hop in iterations if hop.get("type") == "message" and text(hop, "model") not in (None, model)]


def _alone(usage: Mapping[str, Any], iterations: Sequence[Mapping[str, Any]], declined: Sequence[Mapping[str, Any]]) -> bool:
    """Whether the total is of the model alone that served, so that what others declined is billed beside it."""
    names = ("input_tokens", "output_tokens", "cache_read_input_tokens", "cache_creation_input_tokens")
    served = [hop for hop in iterations if hop.get("type") in ("message", "fallback_message") and hop not in declined]
    return all(count(usage, name) == sum(count(hop, name) for hop in served) for name in names)


def _by_model(whole: Reading, hops: Sequence[Mapping[str, Any]], alone: bool) -> list[Reading]:
    """A message's total, split among the models that took part in it.

    :param alone: whether the hops of others are not in the total
    """
    rest = dict(whole.usage.quantities)
    parts: dict[str | None, dict[str, Quantity]] = {}
    for hop in hops:
        part = parts.setdefault(text(hop, "model"), {})
        for name, quantity in _usage(hop, ()).quantities.items():
            part[name] = part.get(name, 0) + quantity
            rest[name] = rest.get(name, 0) - quantity
    usage = whole.usage
    if alone or any(quantity < 0 for quantity in rest.values()):
        rest = dict(usage.quantities)
    rest = {name: quantity for name, quantity in rest.items() if quantity} or {"input": 0, "output": 0}
    served = Usage(rest, usage.source, usage.reasoning_tokens, None, usage.billed, usage.flags, usage.raw)
    return [
        Reading(served, whole.model, whole.response_id, whole.mode),
        *(Reading(Usage(part, usage.source), model, whole.response_id, whole.mode) for model, part in parts.items()),
    ]


def mode(usage: Mapping[str, Any]) -> str | None:
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
