"""What only Mistral has: reading documents, and conversations that the provider keeps and runs tools in.

Field names are from Mistral's API reference and the types of its SDK (``OCRUsageInfo``, ``ConversationUsageInfo``,
``ConversationResponse``, ``ResponseDoneEvent``).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any, Final

from flask_llm_cost.records import Reading, Usage
from flask_llm_cost.usage.format import Format, block, count, in_stream, items, numbers_only, quantities, text
from flask_llm_cost.usage.openai import chat_usage

#: Mistral's own connectors, and what each of their calls is billed as. Those of others bill nothing here.
_CONNECTORS: Final[Mapping[str, str]] = {
    "web_search": "web_search",
    "web_search_premium": "web_search",
    "document_library": "file_search",
    "code_interpreter": "container_session",
    "image_generation": "image_generation",
}

#: Where agents on several models took part, nothing says which of them used what: no price fits, rather than a wrong one.
_SEVERAL_MODELS: Final = "several_models"


class Ocr(Format):
    """``/ocr``: billed by the page."""

    name = "mistral.ocr"
    mark = b'"usage_info"'

    def fits(self, body: Mapping[str, Any]) -> bool:
        usage = body.get("usage_info")
        return isinstance(usage, Mapping) and "pages_processed" in usage

    def read(self, body: Mapping[str, Any]) -> Reading:
        if not self.fits(body):
            return self.name_of(body)
        usage = block(body, "usage_info")
        counted = Usage({"pages": count(usage, "pages_processed")}, "response", raw=numbers_only(usage))
        return Reading(counted, text(body, "model"), text(body, "id"))


class Conversations(Format):
    """``/conversations``: one bill for all that models and connectors did until the answer. Its parts name the model."""

    name = "mistral.conversations"
    each_kept = b'"model"'

    def fits(self, body: Mapping[str, Any]) -> bool:
        return body.get("object") == "conversation.response" or (text(body, "type") or "").startswith(
            "conversation.response."
        )

    def read(self, body: Mapping[str, Any]) -> Reading:
        usage = block(body, "usage")
        return replace(self.name_of(body), usage=_conversation_usage(usage) if usage else Usage())

    def read_stream(self, events: Sequence[Mapping[str, Any]], ended: bool) -> Reading:
        # The usage comes with the last event: what came after it does not matter.
        nothing: Mapping[str, Any] = {}
        done = next((event for event in reversed(events) if isinstance(event.get("usage"), Mapping)), nothing)
        said = {"conversation_id": _first(events, "conversation_id"), "outputs": list(events), "usage": done.get("usage")}
        return in_stream(self.read(said), ended or text(done, "type") == "conversation.response.done")

    def name_of(self, body: Mapping[str, Any]) -> Reading:
        models = {text(entry, "model") for entry in (body, *items(body, "outputs"))} - {None}
        model = _SEVERAL_MODELS if len(models) > 1 else next(iter(models), None)
        return Reading(model=model, response_id=text(body, "conversation_id"))


def _first(events: Sequence[Mapping[str, Any]], key: str) -> str | None:
    return next((found for event in events if (found := text(event, key)) is not None), None)


def _conversation_usage(usage: Mapping[str, Any]) -> Usage:
    """What connectors brought to read is input beside the prompt, unless the total says that the prompt includes it."""
    prompt, completion, total = (count(usage, name) for name in ("prompt_tokens", "completion_tokens", "total_tokens"))
    brought = count(usage, "connector_tokens")
    beside = 0 if brought and total == prompt + completion else brought
    counted = chat_usage({**usage, "prompt_tokens": prompt + beside} if beside else usage)
    if not counted.known:
        return counted
    calls = block(usage, "connectors")
    tools: dict[str, int] = {}
    for connector, component in _CONNECTORS.items():
        tools[component] = tools.get(component, 0) + count(calls, connector)
    flags = counted.flags if beside or brought <= prompt else ("usage_inconsistent",)
    return replace(counted, quantities={**counted.quantities, **quantities(**tools)}, flags=flags, raw=numbers_only(usage))
