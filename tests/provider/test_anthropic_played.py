"""The played provider speaks Anthropic's shapes well enough for the real SDK, and its truth is what it sent."""

import asyncio
import json

import anthropic

from flask_llm_cost.testing.provider import PlayedProvider

MESSAGES = [{"role": "user", "content": "Sum up MARKER for me, please."}]


def test_message_and_its_truth(provider: PlayedProvider, anthropic_client: anthropic.Anthropic) -> None:
    """A plain message echoes the prompt, names the served model, and its usage is what the truth says was billed."""
    reply = anthropic_client.messages.create(model="claude-haiku-4-5", max_tokens=100, messages=MESSAGES)

    assert "MARKER" in reply.content[0].text
    assert reply.model == "claude-haiku-4-5-20251001"
    (billed,) = provider.truth
    assert (billed.path, billed.model, billed.response_id) == ("/anthropic/v1/messages", reply.model, reply.id)
    assert billed.usage == reply.usage.model_dump(exclude_unset=True)


def test_stream_counts_as_anthropic_does(provider: PlayedProvider, anthropic_client: anthropic.Anthropic) -> None:
    """message_start has the input and one output token, message_delta running totals, and both make the truth."""
    stream = anthropic_client.messages.create(model="claude-sonnet-4-6", max_tokens=100, messages=MESSAGES, stream=True)
    events = list(stream)

    kinds = [event.type for event in events]
    assert kinds[:2] == ["message_start", "content_block_start"]
    assert kinds[-3:] == ["content_block_stop", "message_delta", "message_stop"]
    (billed,) = provider.truth
    assert events[0].message.model == "claude-sonnet-4-6"
    assert events[0].message.usage.output_tokens == 1 < billed.usage["output_tokens"]
    assert events[0].message.usage.input_tokens == events[-2].usage.input_tokens == billed.usage["input_tokens"]
    assert events[-2].usage.output_tokens == billed.usage["output_tokens"]


def test_marked_blocks_are_written_to_the_cache_and_read_from_it(
    provider: PlayedProvider, anthropic_client: anthropic.Anthropic
) -> None:
    """A block with cache_control counts as written by its lifetime at first, as read later, and never as plain input."""
    system = [{"type": "text", "text": "manual " * 100, "cache_control": {"type": "ephemeral", "ttl": "1h"}}]
    first, second = (
        anthropic_client.messages.create(model="claude-sonnet-4-6", max_tokens=100, messages=MESSAGES, system=system)
        for _ in range(2)
    )

    assert (first.usage.cache_creation.ephemeral_1h_input_tokens, first.usage.cache_read_input_tokens) == (175, 0)
    assert (second.usage.cache_creation_input_tokens, second.usage.cache_read_input_tokens) == (0, 175)
    assert first.usage.input_tokens == second.usage.input_tokens == len(MESSAGES[0]["content"]) // 4


def test_counting_tokens_is_free(provider: PlayedProvider, anthropic_client: anthropic.Anthropic) -> None:
    """count_tokens and models answer, and nothing is billed for them."""
    counted = anthropic_client.messages.count_tokens(model="claude-sonnet-4-6", messages=MESSAGES)

    assert counted.input_tokens == len(MESSAGES[0]["content"]) // 4
    assert "claude-sonnet-4-6" in [model.id for model in anthropic_client.models.list()]
    assert provider.truth == []


def test_async_stream(provider: PlayedProvider) -> None:
    """The async SDK reads a stream to its end, thinking tokens inside the output."""

    async def final() -> anthropic.types.Message:
        async with anthropic.AsyncAnthropic(base_url=provider.anthropic_url, api_key="any") as client:
            thinking = {"type": "enabled", "budget_tokens": 1024}
            async with client.messages.stream(
                model="claude-sonnet-4-6", max_tokens=2048, messages=MESSAGES, thinking=thinking
            ) as stream:
                return await stream.get_final_message()

    message = asyncio.run(final())
    assert "MARKER" in message.content[0].text
    assert json.loads(provider.requests[0].body)["stream"] is True
    assert message.usage.output_tokens == provider.truth[0].usage["output_tokens"] > 128
