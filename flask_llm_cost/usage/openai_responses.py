"""OpenAI's Responses API: hosted tools, background responses, and a stream whose last event holds the whole response.

Field names and what they include are from OpenAI's API reference and the types of its SDK (``Response``, ``ResponseUsage``,
``ToolUsage``).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any, Final

from flask_llm_cost.records import Quantity, Reading, Usage
from flask_llm_cost.usage.format import (
    Format,
    block,
    count,
    counted_or_zero,
    doubted,
    in_stream,
    items,
    moment,
    numbers_only,
    text,
)
from flask_llm_cost.usage.openai import billed, cache_writes, image_quantities, listed, mode, svg_usage

_FINAL_EVENTS: Final = frozenset({"response.completed", "response.incomplete", "response.failed"})
_UNFINISHED: Final = frozenset({"queued", "in_progress"})

#: The image tool's reply does not name its model, unless the request did: then no price fits, rather than a wrong one.
_IMAGE_MODEL: Final = "image_generation"


class Responses(Format):
    """``/responses``. What runs in the background is pending until a later reply, or another process, settles it."""

    name = "openai.responses"
    most_kept = 1024 * 1024  # each call of a hosted tool is in it

    def fits(self, body: Mapping[str, Any]) -> bool:
        return body.get("object") == "response" or isinstance(body.get("response"), Mapping) or _names_end(body)

    def read(self, body: Mapping[str, Any]) -> Reading:
        return self.read_all(body)[0]

    def read_all(self, body: Mapping[str, Any]) -> list[Reading]:
        usage = block(body, "usage")
        tool = block(block(body, "tool_usage"), "image_gen")
        drawn, adds_up = image_quantities(body, tool) if tool else ({}, True)
        paints = any(drawn.values())
        readings = [
            Reading(
                usage=doubted(_usage(usage, body, paints), body) if usage else Usage(),
                model=text(body, "model"),
                response_id=text(body, "id"),
                mode=mode(body),
            )
        ]
        if paints:
            models = {text(tool, "model") for tool in listed(body, "tools", "image_generation")} - {None}
            flags = () if adds_up else ("usage_inconsistent",)
            painted = Usage(
                drawn, "response", total_tokens=count(tool, "total_tokens") or None, flags=flags, raw=numbers_only(tool)
            )
            readings.append(Reading(painted, models.pop() if len(models) == 1 else _IMAGE_MODEL, readings[0].response_id))
        for call in listed(body, "output", "image_generation_call"):
            if (svg := svg_usage(call)) is not None:
                readings.append(replace(svg, response_id=readings[0].response_id))
        return _settled(readings, body) if body.get("background") is True else readings

    def read_stream(self, events: Sequence[Mapping[str, Any]], ended: bool) -> Reading:
        return self.read_stream_all(events, ended)[0]

    def read_stream_all(self, events: Sequence[Mapping[str, Any]], ended: bool) -> list[Reading]:
        last = next((event for event in reversed(events) if self.fits(event)), None)
        if last is None:
            return [Reading()]
        response = last["response"] if isinstance(last.get("response"), Mapping) else last
        final = text(last, "type") in _FINAL_EVENTS or (last is response and ended)
        return [in_stream(reading, final) for reading in self.read_all(response)]

    def name_of(self, body: Mapping[str, Any]) -> Reading:
        response = body.get("response")
        return super().name_of(response if isinstance(response, Mapping) else body)


class SettledResponses(Responses):
    """``GET /responses/{id}``: only what ran in the background is a bill; anything else was one when it was made."""

    name = "openai.responses.settled"
    shape_only = True

    def fits(self, body: Mapping[str, Any]) -> bool:
        response = body.get("response") if isinstance(body.get("response"), Mapping) else body
        return isinstance(response, Mapping) and super().fits(body) and response.get("background") is True


def _names_end(body: Mapping[str, Any]) -> bool:
    """Whether this is what is left of a last event that was too long to keep."""
    return text(body, "type") in _FINAL_EVENTS and isinstance(body.get("usage"), Mapping)


def _settled(readings: list[Reading], body: Mapping[str, Any]) -> list[Reading]:
    key, created_at = text(body, "id"), moment(body, "created_at")
    if text(body, "status") in _UNFINISHED and not readings[0].usage.known:
        readings = [replace(readings[0], usage=Usage(source="pending"))]
    return [
        replace(reading, settles=f"{key}/{number}" if number and key else key, created_at=created_at)
        for number, reading in enumerate(readings)
    ]


def _usage(usage: Mapping[str, Any], body: Mapping[str, Any], paints: bool) -> Usage:
    input_tokens, output, total = count(usage, "input_tokens"), count(usage, "output_tokens"), count(usage, "total_tokens")
    details = block(usage, "input_tokens_details")
    cache_read, (cache_write, cache_write_12h, lifetimes_fit) = count(details, "cached_tokens"), cache_writes(usage, details)
    plain = input_tokens - cache_read - cache_write - cache_write_12h
    reasoning = count(block(usage, "output_tokens_details"), "reasoning_tokens")
    consistent = plain >= 0 and reasoning <= output and (not total or total == input_tokens + output) and lifetimes_fit
    return Usage(
        quantities=counted_or_zero(
            input=max(0, plain),
            cache_read=cache_read,
            cache_write=cache_write,
            cache_write_12h=cache_write_12h,
            output=output,
            **_hosted_tools(body, paints),
        ),
        source="response",
        reasoning_tokens=reasoning or None,
        total_tokens=total or None,
        billed=billed(usage),
        flags=() if consistent else ("usage_inconsistent",),
        raw=numbers_only(usage),
    )


def _hosted_tools(body: Mapping[str, Any], paints: bool) -> dict[str, Quantity]:
    """Calls of OpenAI's hosted tools, which are billed beside the tokens.

    Only searches are billed, not opening or searching inside a page; a container once, however often it is used.

    :param paints: whether the image tool's tokens are known, so that its calls are not counted beside them
    """
    searched = block(body, "tool_usage").get("web_search")
    if isinstance(searched, Mapping) and searched.get("num_requests") is not None:
        searches = count(searched, "num_requests")
    else:
        calls = listed(body, "output", "web_search_call")
        searches = sum(1 for call in calls if block(call, "action").get("type", "search") == "search")
    preview = any((text(tool, "type") or "").startswith("web_search_preview") for tool in items(body, "tools"))
    containers = {text(call, "container_id") for call in listed(body, "output", "code_interpreter_call")}
    pictures = 0 if paints else len(listed(body, "output", "image_generation_call"))
    return {
        "web_search_preview" if preview else "web_search": searches,
        "file_search": len(listed(body, "output", "file_search_call")),
        "container_session": len(containers),
        "image_generation": pictures,
    }
