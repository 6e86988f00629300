"""OpenAI's text formats, and those of everybody who copied them.

Field names and what they include are from OpenAI's API reference and the types of its SDK (``CompletionUsage``,
``CreateEmbeddingResponse``), and from the API references of those who added to them. Cached, written, audio and image tokens
are counted *inside* the prompt.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from decimal import Decimal
from typing import Any, Final

from flask_llm_cost.records import Quantity, Reading, Usage
from flask_llm_cost.usage.format import (
    MAX_COUNT,
    NO_AMOUNT,
    Format,
    MalformedUsageError,
    amount,
    block,
    count,
    counted_or_zero,
    is_object,
    items,
    numbers_only,
    shared_out,
    text,
)

#: Service tiers that are billed at standard rates. Any other that is not a mode of the price book stays unpriced.
_STANDARD_TIERS: Final = frozenset({"auto", "default", "standard", "on_demand"})

#: xAI: a dollar is 10^10 ticks.
_TICK: Final = Decimal("1e-10")


def mode(body: Mapping[str, Any]) -> str | None:
    """The pricing mode that the reply's ``service_tier`` stands for; ``None`` for standard."""
    tier = text(body, "service_tier")
    return None if tier is None or tier in _STANDARD_TIERS else tier[:32]


class ChatCompletions(Format):
    """``/chat/completions`` and ``/completions``."""

    name = "openai.chat"
    takes_stream_options = True

    def fits(self, body: Mapping[str, Any]) -> bool:
        return is_object(_usage_block(body))

    #: Whether what was thought is known to be in the total only, and not in what was answered.
    thinks_beside: bool = False

    def read(self, body: Mapping[str, Any]) -> Reading:
        usage = block({"usage": _usage_block(body)}, "usage")
        return Reading(
            usage=chat_usage(usage, self.thinks_beside) if usage else Usage(),
            model=text(body, "model"),
            response_id=text(body, "id"),
            mode=mode(body) or mode(usage),  # Mistral names the tier beside its counts
        )

    def read_stream(self, events: Sequence[Mapping[str, Any]], ended: bool) -> Reading:
        # The usage event of `include_usage` has no choices and is the last: what came after it does not matter. Others count
        # where they say why the answer ended, and an app that has read that, of all answers, may leave.
        last = events[-1] if events else {}
        told = self.fits(last) and (not last.get("choices") or _all_ended(events))
        return super().read_stream(events, ended or told)


def _all_ended(events: Sequence[Mapping[str, Any]]) -> bool:
    """Whether each of the answers that *events* tell of says why it ended."""
    choices = [choice for event in events for choice in items(event, "choices")]
    begun = {str(choice.get("index")) for choice in choices}
    return begun == {str(choice.get("index")) for choice in choices if choice.get("finish_reason")}


class ChatThinkingBeside(ChatCompletions):
    """The same where thoughts are counted beside the completion, and only the total includes them."""

    name = "openai.chat.thinking_beside"
    thinks_beside = True


def _usage_block(body: Mapping[str, Any]) -> Any:
    """Groq says in ``x_groq`` what others say beside it, and sometimes in both places: one bill."""
    usage = body.get("usage")
    groq = body.get("x_groq")
    return groq.get("usage") if usage is None and is_object(groq) else usage


def chat_usage(usage: Mapping[str, Any], thinks_beside: bool = False) -> Usage:
    """A usage block that counts ``prompt_tokens`` and ``completion_tokens``. Unknown where it counts neither."""
    named = [usage.get(name) is not None for name in ("prompt_tokens", "completion_tokens")]
    if not any(named):
        charged = billed(usage)  # a total alone does not say at which rate it is billed
        return Usage(source="unknown" if charged is None else "response", billed=charged, raw=numbers_only(usage))
    prompt, completion, total = (
        count(usage, "prompt_tokens"),
        count(usage, "completion_tokens"),
        count(usage, "total_tokens"),
    )
    prompt_details, completion_details = block(usage, "prompt_tokens_details"), block(usage, "completion_tokens_details")
    # DeepSeek counts cache hits at the top level, Anthropic's and Databricks' OpenAI-style endpoints too.
    cached = (
        count(prompt_details, "cached_tokens")
        or count(usage, "prompt_cache_hit_tokens")
        or count(usage, "cached_tokens")
        or count(usage, "cache_read_input_tokens")
    )
    cache_write, cache_write_12h, lifetimes_fit = cache_writes(usage, prompt_details)
    written = cache_write + cache_write_12h
    audio_input, audio_output = count(prompt_details, "audio_tokens"), count(completion_details, "audio_tokens")
    image_input, image_output = count(prompt_details, "image_tokens"), count(completion_details, "image_tokens")
    cached_details = block(prompt_details, "cached_tokens_details")
    cached_audio, cached_image = count(cached_details, "audio_tokens"), count(cached_details, "image_tokens")
    if not cached_details:
        cached_audio, cached_image = shared_out(
            cached - max(0, prompt - written - audio_input - image_input), audio_input, image_input
        )
    audio_input, image_input = max(0, audio_input - cached_audio), max(0, image_input - cached_image)
    reasoning = count(completion_details, "reasoning_tokens")
    missed = None if usage.get("prompt_cache_miss_tokens") is None else count(usage, "prompt_cache_miss_tokens")
    # Mistral says ``{}`` where there was no audio.
    audio_seconds = amount(usage, "prompt_audio_seconds") or 0 if usage.get("prompt_audio_seconds") else 0

    # xAI, and Gemini behind its OpenAI-style host, count reasoning beside the completion: only the total includes it.
    # Mistral's total includes audio, which it bills by the second.
    beside = 0 if audio_seconds or not all(named) else max(0, total - prompt - completion)
    plain = prompt - cached - written - audio_input - image_input
    text_output = completion + beside - audio_output - image_output
    consistent = (
        (all(named) or total == prompt + completion)
        and plain >= 0
        and text_output >= 0
        and cached >= cached_audio + cached_image
        and (not total or total >= prompt + completion)
        and (thinks_beside or beside in (0, reasoning))
        and reasoning <= completion + beside
        and lifetimes_fit
        and missed in (None, prompt - cached)
    )

    # Perplexity counts what it thought, quoted and searched beside all of these.
    thought = count(usage, "reasoning_tokens") if not reasoning else 0
    return Usage(
        quantities=counted_or_zero(
            input=max(0, plain),
            cache_read=max(0, cached - cached_audio - cached_image),
            cache_write=cache_write,
            cache_write_12h=cache_write_12h,
            audio_input=audio_input,
            audio_cache_read=cached_audio,
            image_input=image_input,
            image_cache_read=cached_image,
            output=max(0, text_output) + (0 if beside else thought),
            audio_output=audio_output,
            image_output=image_output,
            citation=count(usage, "citation_tokens"),
            web_search=count(usage, "num_search_queries"),
            audio_seconds=audio_seconds,
        ),
        source="response",
        reasoning_tokens=reasoning or thought or None,
        total_tokens=total or None,
        billed=billed(usage),
        flags=() if consistent else ("usage_inconsistent",),
        raw=numbers_only(usage),
    )


def cache_writes(usage: Mapping[str, Any], details: Mapping[str, Any]) -> tuple[int, int, bool]:
    """What was written to the cache for 30 minutes and for 12 hours, and whether these fit what was written altogether."""
    lifetimes = block(details, "cache_write_tokens_details") or block(usage, "cache_write_tokens_details")
    short, long = count(lifetimes, "ttl_30m_tokens"), count(lifetimes, "ttl_12h_tokens")
    # Databricks and LiteLLM count at the top level, in Anthropic's word, what is in the prompt as well.
    told = "cache_write_tokens" in details
    owner, name = (details, "cache_write_tokens") if told else (usage, "cache_creation_input_tokens")
    written = short + long if owner.get(name) is None else count(owner, name)
    return max(0, written - long), min(written, long), short + long <= written


def billed(usage: Mapping[str, Any]) -> Decimal | None:
    """What the provider says it charged, in US dollars; on an own key only if it also says what the one behind it charged.

    Sources: OpenRouter's usage accounting (``cost``, ``cost_details.upstream_inference_cost``), xAI's cost tracking
    (``cost_in_usd_ticks``), Perplexity's ``cost.total_cost``. What is no amount is ``NO_AMOUNT``: gateways write there
    what they like.
    """
    try:
        return _charged(usage)
    except MalformedUsageError:
        return NO_AMOUNT


def _charged(usage: Mapping[str, Any]) -> Decimal | None:
    ticks = amount(usage, "cost_in_usd_ticks", MAX_COUNT * 10**10)
    if ticks is not None:
        return ticks * _TICK
    if is_object(usage.get("cost")):
        return amount(block(usage, "cost"), "total_cost")
    cost = amount(usage, "cost")
    if cost is not None and usage.get("is_byok") is True:
        upstream = amount(block(usage, "cost_details"), "upstream_inference_cost")
        return None if upstream is None else cost + upstream
    return cost


class Embeddings(Format):
    """``/embeddings``: everything is input. Replies may be megabytes of numbers, with the usage after them."""

    name = "openai.embeddings"
    usage_comes_last = True

    def read(self, body: Mapping[str, Any]) -> Reading:
        usage = block(body, "usage")
        return Reading(
            usage=_embedding_usage(usage) if usage else Usage(), model=text(body, "model"), response_id=text(body, "id")
        )


def _embedding_usage(usage: Mapping[str, Any]) -> Usage:
    prompt, total = count(usage, "prompt_tokens"), count(usage, "total_tokens")
    return Usage(
        quantities={"input": prompt or total},
        source="response",
        total_tokens=total or None,
        billed=billed(usage),
        flags=() if not total or not prompt or total == prompt else ("usage_inconsistent",),
        raw=numbers_only(usage),
    )


def image_quantities(body: Mapping[str, Any], usage: Mapping[str, Any]) -> tuple[dict[str, Quantity], bool]:
    """Components of a usage block of OpenAI's image models, and whether they add up."""
    details, output_details = block(usage, "input_tokens_details"), block(usage, "output_tokens_details")
    cached = block(usage, "cached_tokens_details") or block(details, "cached_tokens_details")
    total_input, output = count(usage, "input_tokens"), count(usage, "output_tokens")
    cached_image = count(cached, "cached_image_tokens") or count(cached, "image_tokens")
    cached_text = count(cached, "cached_text_tokens") or count(cached, "text_tokens")
    image_input = count(details, "image_tokens")
    if not cached:
        all_cached = count(usage, "cached_tokens") + count(details, "cached_tokens")
        (cached_image,) = shared_out(all_cached - max(0, total_input - image_input), image_input)
        cached_text = all_cached - cached_image
    plain = total_input - image_input - cached_text
    words = count(output_details, "text_tokens")
    pictures = count(output_details, "image_tokens") or max(0, output - words)
    total = count(usage, "total_tokens")
    consistent = (
        plain >= 0
        and image_input >= cached_image
        and pictures + words == output
        and (not total or total == total_input + output)
    )
    return counted_or_zero(
        input=max(0, plain),
        cache_read=cached_text,
        image_input=max(0, image_input - cached_image),
        image_cache_read=cached_image,
        output=words,
        image_output=pictures,
    ), consistent


def svg_usage(owner: Mapping[str, Any]) -> Reading | None:
    """What drawing an SVG took of a language model, beside the picture: a bill of its own, on a model of its own."""
    usage = block(owner, "svg_usage")
    if not usage:
        return None
    spent, output, total = count(usage, "input_tokens"), count(usage, "output_tokens"), count(usage, "total_tokens")
    return Reading(
        Usage(
            quantities=counted_or_zero(input=spent, output=output),
            source="response",
            reasoning_tokens=count(usage, "reasoning_tokens") or None,
            total_tokens=total or None,
            flags=() if not total or total == spent + output else ("usage_inconsistent",),
            raw=numbers_only(usage),
        ),
        text(usage, "model"),
    )


def listed(body: Mapping[str, Any], key: str, kind: str) -> list[Mapping[str, Any]]:
    """The objects of one ``type`` in the list at *key*."""
    return [item for item in items(body, key) if item.get("type") == kind]
