"""Gemini's formats, on Google's own host and on Vertex AI.

Field names and what they include are from Google's API reference and the types of its SDK
(``GenerateContentResponseUsageMetadata``, ``EmbedContentResponse``, ``GroundingMetadata``, ``TrafficType``): the prompt
includes what was cached; thoughts and the results of tools are counted beside candidates and prompt, and billed as output
and input.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from operator import sub
from typing import Any, Final

from flask_llm_cost.records import Quantity, Reading, Usage
from flask_llm_cost.usage.format import (
    LARGE_BODY,
    Format,
    block,
    count,
    counted_or_zero,
    doubted,
    in_stream,
    items,
    numbers_only,
    shared_out,
    text,
)

_STANDARD: Final = frozenset(
    {"ON_DEMAND", "TRAFFIC_TYPE_UNSPECIFIED", "STANDARD", "UNSPECIFIED", "SERVICE_TIER_UNSPECIFIED", "DEFAULT"}
)

#: Modalities with a price of their own. Whatever else is in a prompt is billed as text.
_APART: Final = ("AUDIO", "IMAGE", "VIDEO")


class GenerateContent(Format):
    """``:generateContent`` and ``:streamGenerateContent``, as events or as one JSON array."""

    name = "gemini.generate_content"
    mark = b'"usageMetadata"'
    also_kept = (b'"groundingMetadata"',)
    tier_headers = ("x-gemini-service-tier",)

    def fits(self, body: Mapping[str, Any]) -> bool:
        return isinstance(body.get("usageMetadata"), Mapping) or (
            isinstance(body.get("candidates"), list) and ("modelVersion" in body or "responseId" in body)
        )

    def read(self, body: Mapping[str, Any]) -> Reading:
        usage = block(body, "usageMetadata")
        names = self.name_of(body)
        if not usage:
            return names
        counted = doubted(content_usage(usage, grounding([body])), body)
        return Reading(counted, names.model, names.response_id, mode(usage))

    def read_stream(self, events: Sequence[Mapping[str, Any]], ended: bool) -> Reading:
        # Each chunk repeats a running block: the last one counts. What was searched may stand in any of them.
        last = next((event for event in reversed(events) if isinstance(event.get("usageMetadata"), Mapping)), None)
        names = next((named for event in events if (named := self.name_of(event)).model), Reading())
        if last is None:
            return names
        usage = block(last, "usageMetadata")
        finished = ended or any("finishReason" in candidate for candidate in items(last, "candidates"))
        counted = doubted(content_usage(usage, grounding(events)), *events)
        reading = Reading(counted, names.model, names.response_id, mode(usage))
        return in_stream(reading, finished)

    def name_of(self, body: Mapping[str, Any]) -> Reading:
        return Reading(model=text(body, "modelVersion"), response_id=text(body, "responseId"))


def content_usage(usage: Mapping[str, Any], searched: Mapping[str, Quantity]) -> Usage:
    """A ``usageMetadata`` block. Its details by modality need not add up to the totals: these rule, the rest is text."""
    prompt, cached, tools = (
        count(usage, "promptTokenCount"),
        count(usage, "cachedContentTokenCount"),
        count(usage, "toolUsePromptTokenCount"),
    )
    candidates = count(usage, "candidatesTokenCount") or count(usage, "responseTokenCount")
    thoughts, total = count(usage, "thoughtsTokenCount"), count(usage, "totalTokenCount")
    of_prompt = _by_modality(usage, "promptTokensDetails", "toolUsePromptTokensDetails")
    of_cache = _by_modality(usage, "cacheTokensDetails")
    of_answer = _by_modality(usage, "candidatesTokensDetails", "responseTokensDetails")
    told = [of_prompt.get(name, 0) for name in _APART]
    whole = shared_out(prompt + tools, *told)
    told_cached = [of_cache.get(name, 0) for name in _APART]
    if of_cache:
        in_cache = shared_out(cached, *map(min, told_cached, whole))
    else:
        in_cache = shared_out(cached - (prompt + tools - sum(whole)), *whole)
    (sound, pictures, film), (cached_sound, cached_pictures, _) = map(sub, whole, in_cache), in_cache
    plain = prompt + tools - cached - sound - pictures - film
    answered = [of_answer.get(name, 0) for name in _APART[:2]]
    spoken, drawn = shared_out(candidates, *answered)
    consistent = (
        plain >= 0
        and whole == told
        and (in_cache == told_cached or not of_cache)
        and [spoken, drawn] == answered
        and (not total or total == prompt + tools + candidates + thoughts)
    )
    return Usage(
        quantities=counted_or_zero(
            input=max(0, plain),
            cache_read=cached - cached_sound - cached_pictures,
            audio_input=sound,
            audio_cache_read=cached_sound,
            image_input=pictures,
            image_cache_read=cached_pictures,
            video_input=film,
            output=candidates - spoken - drawn + thoughts,
            audio_output=spoken,
            image_output=drawn,
            **searched,
        ),
        source="response",
        reasoning_tokens=thoughts or None,
        total_tokens=total or None,
        flags=() if consistent else ("usage_inconsistent",),
        raw=numbers_only(usage),
    )


def _by_modality(usage: Mapping[str, Any], *keys: str) -> dict[str, int]:
    found: dict[str, int] = {}
    for key in keys:
        for detail in items(usage, key):
            modality = text(detail, "modality") or "TEXT"
            found[modality.upper()] = found.get(modality.upper(), 0) + count(detail, "tokenCount")
    return found


def grounding(bodies: Iterable[Mapping[str, Any]]) -> dict[str, Quantity]:
    """What was looked up. Some models are billed by the query, others by the prompt that was grounded: both are counted."""
    queries: set[str] = set()
    maps = False
    for body in bodies:
        for candidate in items(body, "candidates"):
            found = candidate.get("groundingMetadata")
            if isinstance(found, Mapping):
                for key in ("webSearchQueries", "imageSearchQueries"):
                    asked = found.get(key)
                    queries.update(query for query in asked if isinstance(query, str) and query) if isinstance(
                        asked, list
                    ) else None
                maps = maps or "googleMapsWidgetContextToken" in found
                maps = maps or any("maps" in chunk for chunk in items(found, "groundingChunks"))
    counted: dict[str, Quantity] = {}
    if queries:
        counted = {"grounding_query": len(queries), "grounded_prompt": 1}
    if maps:
        counted["maps_grounding"] = 1
    return counted


def mode(usage: Mapping[str, Any]) -> str | None:
    """Vertex's traffic type, or the service tier: ``ON_DEMAND_PRIORITY`` is ``priority``. Prepaid traffic has no price."""
    kind = text(usage, "trafficType") or text(usage, "serviceTier")
    if kind is None or kind.upper() in _STANDARD:
        return None
    return kind.upper().removeprefix("ON_DEMAND_").lower()[:32]


class EmbedContent(Format):
    """``:embedContent`` and ``:batchEmbedContents``: everything is input."""

    name = "gemini.embed_content"
    mark = b'"usageMetadata"'

    def fits(self, body: Mapping[str, Any]) -> bool:
        return "embedding" in body or isinstance(body.get("embeddings"), list)

    def read(self, body: Mapping[str, Any]) -> Reading:
        usage = block(body, "usageMetadata")
        names = Reading(model=text(body, "modelVersion"), response_id=text(body, "responseId"))
        if usage:
            return Reading(_embedded(usage), names.model, names.response_id, mode(usage))
        return Reading(_counted_characters(body), names.model, names.response_id)


def _embedded(usage: Mapping[str, Any]) -> Usage:
    usage = dict(usage)
    if not count(usage, "promptTokenCount"):
        usage["promptTokenCount"] = count(usage, "totalTokenCount")
    usage["totalTokenCount"] = usage.get("totalTokenCount") or usage["promptTokenCount"]
    read = content_usage(usage, {})
    counted = {name: quantity for name, quantity in read.quantities.items() if name != "output"}
    return Usage(counted, "response", None, read.total_tokens, None, read.flags, read.raw)


class Predict(Format):
    """Vertex's ``:predict`` of text embeddings, which counts tokens by instance, as floats."""

    name = "vertex.predict"
    mark = b'"predictions"'
    most_kept = LARGE_BODY
    shape_only = True

    def fits(self, body: Mapping[str, Any]) -> bool:
        return any(isinstance(prediction.get("embeddings"), Mapping) for prediction in items(body, "predictions"))

    def read(self, body: Mapping[str, Any]) -> Reading:
        statistics = [block(block(prediction, "embeddings"), "statistics") for prediction in items(body, "predictions")]
        tokens = sum(count(counted, "token_count") for counted in statistics)
        if not tokens:
            return Reading(_counted_characters(body))
        raw = {"token_count": tokens, **numbers_only(block(body, "metadata"))}
        return Reading(Usage({"input": tokens}, "response", raw=raw))


def _counted_characters(body: Mapping[str, Any]) -> Usage:
    """The characters that Vertex bills where it counts no tokens."""
    metadata = block(body, "metadata")
    characters = count(metadata, "billableCharacterCount")
    return Usage({"characters": characters}, "response", raw=numbers_only(metadata)) if characters else Usage()
