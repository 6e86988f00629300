"""Cohere's formats, and those of everybody who ranks documents as Cohere does.

Field names and what they include are from Cohere's API reference: ``billed_units`` is what is billed, ``tokens`` what the
model saw. No reply names its model.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from flask_llm_cost.records import Reading, Usage
from flask_llm_cost.usage.excerpt import Salvaged
from flask_llm_cost.usage.format import Format, block, count, counted_or_zero, doubted, numbers_only, text
from flask_llm_cost.usage.openai import billed


class Chat(Format):
    """``/v1/chat`` and ``/v2/chat``. A stream ends with an event that holds what a body holds."""

    name = "cohere.chat"
    mark = b'"billed_units"'

    def fits(self, body: Mapping[str, Any]) -> bool:
        return bool(_block(body))

    def read(self, body: Mapping[str, Any]) -> Reading:
        found = _block(body)
        if not found:
            return self.name_of(body)
        units, tokens = block(found, "billed_units"), block(found, "tokens")
        counts = units or tokens
        # What was read from the cache is part of what is billed as input.
        cached = min(count(found, "cached_tokens"), count(counts, "input_tokens"))
        usage = Usage(
            quantities=counted_or_zero(
                input=count(counts, "input_tokens") - cached,
                cache_read=cached,
                output=count(counts, "output_tokens"),
                rerank_query=count(units, "search_units"),
                image_input=count(units, "image_tokens"),
            ),
            source="response",
            raw=numbers_only(found),
        )
        names = self.name_of(body)
        return Reading(doubted(usage, body), names.model, names.response_id)

    def name_of(self, body: Mapping[str, Any]) -> Reading:
        return Reading(
            model=text(body, "model"),
            response_id=text(body, "id") or text(body, "response_id") or text(body, "generation_id"),
        )


class Embed(Chat):
    """``/v1/embed`` and ``/v2/embed``: everything is input."""

    name = "cohere.embed"

    def read(self, body: Mapping[str, Any]) -> Reading:
        reading = super().read(body)
        if not reading.usage.known:
            return reading
        counted = {name: quantity for name, quantity in reading.usage.quantities.items() if name != "output"}
        return replace(reading, usage=replace(reading.usage, quantities=counted))


def _block(body: Mapping[str, Any]) -> Mapping[str, Any]:
    """Where the counts are: ``usage`` in version 2, ``meta`` in version 1; inside ``delta`` or ``response`` of an event."""
    for owner in (body, body.get("delta"), body.get("response")):
        if isinstance(owner, Mapping):
            for key in ("usage", "meta"):
                found = owner.get(key)
                if isinstance(found, Mapping) and ("billed_units" in found or "tokens" in found):
                    return found
    if isinstance(body, Salvaged) and "billed_units" in body:
        return {"billed_units": body["billed_units"]}
    return {}


class Rerank(Format):
    """``/rerank``: billed by the search with Cohere, by the token with others."""

    name = "cohere.rerank"

    def fits(self, body: Mapping[str, Any]) -> bool:
        return isinstance(body.get("results", body.get("data")), list) and bool(
            _block(body) or isinstance(body.get("usage"), Mapping)
        )

    def read(self, body: Mapping[str, Any]) -> Reading:
        units, usage = block(_block(body), "billed_units"), block(body, "usage")
        searches = count(units, "search_units") or count(usage, "search_units")
        tokens = count(usage, "total_tokens") or count(usage, "prompt_tokens")
        raw = numbers_only(units or usage) or None
        names = Reading(model=text(body, "model"), response_id=text(body, "id"))
        if not raw:
            return names
        counted = {"rerank_query": searches} if searches else {"input": tokens}
        return Reading(
            Usage(counted, "response", total_tokens=tokens or None, billed=billed(usage), raw=raw),
            names.model,
            names.response_id,
        )
