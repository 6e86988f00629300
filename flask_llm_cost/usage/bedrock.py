"""Amazon Bedrock's formats: Converse, and the models' own JSON in InvokeModel.

Field names and what they include are from AWS's API reference and botocore's service model (``TokenUsage``, ``CacheDetail``,
``ServiceTier``, ``PerformanceConfiguration``). Cached input is counted *beside* ``inputTokens``. Only
the URL names the model.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Final

from flask_llm_cost.records import Reading, Usage
from flask_llm_cost.usage.anthropic import Messages
from flask_llm_cost.usage.format import Format, block, count, counted_or_zero, in_stream, items, numbers_only, text
from flask_llm_cost.usage.openai import ChatCompletions

_STANDARD: Final = frozenset({"default", "standard"})
_METRICS: Final = "amazon-bedrock-invocationMetrics"


class Converse(Format):
    """``/model/{id}/converse`` and ``/converse-stream``."""

    name = "bedrock.converse"

    def fits(self, body: Mapping[str, Any]) -> bool:
        usage = _converse_part(body).get("usage")
        return isinstance(usage, Mapping) and "inputTokens" in usage

    def read(self, body: Mapping[str, Any]) -> Reading:
        body = _converse_part(body)
        usage = block(body, "usage")
        return Reading(converse_usage(usage) if usage else Usage(), mode=_mode(body))


def _converse_part(body: Mapping[str, Any]) -> Mapping[str, Any]:
    """A stream says in its ``metadata`` event what a body says itself."""
    metadata = body.get("metadata")
    return metadata if isinstance(metadata, Mapping) and "usage" in metadata else body


def converse_usage(usage: Mapping[str, Any]) -> Usage:
    """A ``TokenUsage`` block."""
    spent, output, total = count(usage, "inputTokens"), count(usage, "outputTokens"), count(usage, "totalTokens")
    cache_read = count(usage, "cacheReadInputTokens") or count(usage, "cacheReadInputTokenCount")
    written = count(usage, "cacheWriteInputTokens") or count(usage, "cacheWriteInputTokenCount")
    by_lifetime = [(text(detail, "ttl"), count(detail, "inputTokens")) for detail in items(usage, "cacheDetails")]
    written_1h = sum(tokens for lifetime, tokens in by_lifetime if lifetime == "1h")
    listed = sum(tokens for _, tokens in by_lifetime)
    whole = spent + output + cache_read + max(written, listed)
    return Usage(
        quantities=counted_or_zero(
            input=spent,
            cache_read=cache_read,
            cache_write=max(written, listed) - written_1h,
            cache_write_1h=written_1h,
            output=output,
        ),
        source="response",
        total_tokens=total or None,
        # Some models leave what was cached out of the total.
        flags=() if listed <= written and total in (0, whole, spent + output) else ("usage_inconsistent",),
        raw=numbers_only(usage),
    )


def _mode(body: Mapping[str, Any]) -> str | None:
    tier = text(block(body, "serviceTier"), "type")
    if tier is not None and tier not in _STANDARD:
        return tier[:32]
    latency = text(block(body, "performanceConfig"), "latency")
    return latency[:32] if latency is not None and latency not in _STANDARD else None


_MESSAGES, _CHAT, _CONVERSE = Messages(), ChatCompletions(), Converse()


class Invoke(Format):
    """``/model/{id}/invoke`` and ``/invoke-with-response-stream``: whatever the model speaks.

    Where that has no counts, Bedrock's own stand in the reply's headers, or in the last event of the stream.
    """

    name = "bedrock.invoke"
    mark = b'"usage"'
    also_kept = (b'"' + _METRICS.encode() + b'"', b'"prompt_token_count"', b'"inputTextTokenCount"')
    last_event_counts = False
    header_counts: Mapping[str, str] = {
        "x-amzn-bedrock-input-token-count": "input",
        "x-amzn-bedrock-output-token-count": "output",
        "x-amzn-bedrock-cache-read-input-token-count": "cache_read",
        "x-amzn-bedrock-cache-write-input-token-count": "cache_write",
    }

    tier_headers = ("x-amzn-bedrock-service-tier", "x-amzn-bedrock-performanceconfig-latency")

    def fits(self, body: Mapping[str, Any]) -> bool:
        return _MESSAGES.fits(body) or _CHAT.fits(body) or _METRICS in body or bool(_own_counts(body))

    def read(self, body: Mapping[str, Any]) -> Reading:
        return self.read_all(body)[0]

    def read_all(self, body: Mapping[str, Any]) -> list[Reading]:
        if _MESSAGES.fits(body):
            return [*_MESSAGES.read_all(body)]
        if _CONVERSE.fits(body):
            return [_CONVERSE.read(body)]
        if _CHAT.fits(body):
            return [_CHAT.read(body)]
        counted = _own_counts(body)
        if not counted:
            return [Reading(response_id=text(body, "id"))]
        return [Reading(Usage(counted_or_zero(**counted), "response", raw=dict(counted)), response_id=text(body, "id"))]

    def read_stream(self, events: Sequence[Mapping[str, Any]], ended: bool) -> Reading:
        return self.read_stream_all(events, ended)[0]

    def read_stream_all(self, events: Sequence[Mapping[str, Any]], ended: bool) -> list[Reading]:
        if any(_MESSAGES.fits(event) for event in events):
            return _MESSAGES.read_stream_all(events, ended)
        for event in reversed(events):
            if isinstance(event.get(_METRICS), Mapping):
                return [in_stream(Reading(_metered(block(event, _METRICS)), response_id=text(event, "id")), ended=True)]
            if self.fits(event) and not _own_counts(event):
                return [in_stream(reading, ended) for reading in self.read_all(event)]
        # Only the first event of Llama and Titan counts the prompt, and the last one the answer.
        told: dict[str, Any] = {}
        for event in events:
            told.update({key: value for key, value in event.items() if value is not None})
        return [in_stream(self.read(told), ended)]


def _metered(metrics: Mapping[str, Any]) -> Usage:
    """Bedrock's own count, in the last event of a stream."""
    return converse_usage(
        {**metrics, "inputTokens": metrics.get("inputTokenCount"), "outputTokens": metrics.get("outputTokenCount")}
    )


def _own_counts(body: Mapping[str, Any]) -> dict[str, int]:
    """What Meta's and Amazon's older models count: Llama's ``prompt_token_count``, Titan's ``inputTextTokenCount``."""
    if "prompt_token_count" in body or "generation_token_count" in body:
        return {"input": count(body, "prompt_token_count"), "output": count(body, "generation_token_count")}
    if "inputTextTokenCount" in body:
        results = items(body, "results")
        output = sum(count(result, "tokenCount") for result in results) or count(body, "totalOutputTextTokenCount")
        return {"input": count(body, "inputTextTokenCount"), "output": output}
    return {}
