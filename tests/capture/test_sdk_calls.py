"""Calls of the real SDKs, over real HTTP."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from decimal import Decimal
from typing import Any

import anthropic
import openai
import pytest
from flask import Flask

from flask_llm_cost.ledger import Call
from flask_llm_cost.testing.provider import Billed, PlayedProvider

Ledger = Callable[[], list[Call]]

QUESTION: Any = [{"role": "user", "content": "what does it cost to ask a question?"}]


def chat(client: openai.OpenAI) -> None:
    client.chat.completions.create(model="gpt-4o", messages=QUESTION)


def chat_streamed(client: openai.OpenAI) -> None:
    list(client.chat.completions.create(model="gpt-4o", messages=QUESTION, stream=True))


def chat_streamed_with_usage(client: openai.OpenAI) -> None:
    options: Any = {"include_usage": True}
    list(client.chat.completions.create(model="gpt-4o", messages=QUESTION, stream=True, stream_options=options))


def chat_stream_helper(client: openai.OpenAI) -> None:
    with client.chat.completions.stream(model="gpt-4o", messages=QUESTION) as stream:
        list(stream)


def chat_parsed(client: openai.OpenAI) -> None:
    client.chat.completions.parse(model="gpt-4o", messages=QUESTION)


def chat_raw(client: openai.OpenAI) -> None:
    client.chat.completions.with_raw_response.create(model="gpt-4o", messages=QUESTION).parse()


def chat_streaming_response(client: openai.OpenAI) -> None:
    with client.chat.completions.with_streaming_response.create(model="gpt-4o", messages=QUESTION) as response:
        response.read()


def responses(client: openai.OpenAI) -> None:
    client.responses.create(model="gpt-4o-mini", input="hello there")


def responses_streamed(client: openai.OpenAI) -> None:
    list(client.responses.create(model="gpt-4o-mini", input="hello there", stream=True))


def embeddings(client: openai.OpenAI) -> None:
    client.embeddings.create(model="text-embedding-3-small", input=["one", "two", "three"])


OPENAI = {
    chat: ("chat.completions", False),
    chat_streamed: ("chat.completions", True),
    chat_streamed_with_usage: ("chat.completions", True),
    chat_stream_helper: ("chat.completions", True),
    chat_parsed: ("chat.completions", False),
    chat_raw: ("chat.completions", False),
    chat_streaming_response: ("chat.completions", False),
    responses: ("responses", False),
    responses_streamed: ("responses", True),
    embeddings: ("embeddings", False),
}


def tokens(billed: Billed) -> tuple[int, int]:
    """All input and all output tokens, by what the provider says it billed."""
    usage = billed.usage
    if "cache_read_input_tokens" in usage:
        cached = usage["cache_read_input_tokens"] + usage["cache_creation_input_tokens"]
        return usage["input_tokens"] + cached, usage["output_tokens"]
    if "input_tokens" in usage:
        return usage["input_tokens"], usage["output_tokens"]
    return usage["prompt_tokens"], usage.get("completion_tokens", 0)


def check(found: list[Call], billed: list[Billed], operation: str, stream: bool) -> None:
    assert len(found) == len(billed) == 1
    (call,), (truth,) = found, billed
    assert (call.input_tokens, call.output_tokens) == tokens(truth)
    assert (call.operation, call.stream, call.model) == (operation, stream, truth.model)
    assert (call.outcome, call.http_status, call.cost_status) == ("ok", 200, "priced")
    assert call.usage_source == ("stream_final" if stream else "response")
    assert call.provider_response_id == truth.response_id
    assert call.total_cost == sum((line.cost or Decimal(0) for line in call.line_items), Decimal(0))
    assert call.total_cost is not None
    assert call.total_cost > 0


@pytest.mark.parametrize("make", OPENAI, ids=lambda make: make.__name__)
def test_openai_calls_are_counted_as_billed(
    app: Flask, calls: Ledger, provider: PlayedProvider, openai_client: openai.OpenAI, make: Callable[[openai.OpenAI], None]
) -> None:
    """Each OpenAI route gives one row with the tokens that the provider billed, priced."""
    with app.app_context():
        make(openai_client)
    check(calls(), provider.truth, *OPENAI[make])


@pytest.mark.parametrize("streamed", [False, True])
def test_async_openai_calls_are_counted_as_billed(
    app: Flask, calls: Ledger, provider: PlayedProvider, streamed: bool
) -> None:
    """The async OpenAI client gives the same row as the sync one."""

    async def make() -> None:
        async with openai.AsyncOpenAI(base_url=provider.openai_url, api_key="test") as client:
            if streamed:
                async for _ in await client.chat.completions.create(model="gpt-4o", messages=QUESTION, stream=True):
                    pass
            else:
                await client.chat.completions.create(model="gpt-4o", messages=QUESTION)

    with app.app_context():
        asyncio.run(make())
    check(calls(), provider.truth, "chat.completions", streamed)


def messages(client: anthropic.Anthropic) -> None:
    client.messages.create(model="claude-sonnet-4-6", max_tokens=100, messages=QUESTION)


def messages_streamed(client: anthropic.Anthropic) -> None:
    list(client.messages.create(model="claude-sonnet-4-6", max_tokens=100, messages=QUESTION, stream=True))


def messages_stream_helper(client: anthropic.Anthropic) -> None:
    with client.messages.stream(model="claude-sonnet-4-6", max_tokens=100, messages=QUESTION) as stream:
        stream.get_final_message()


def beta_messages(client: anthropic.Anthropic) -> None:
    client.beta.messages.create(model="claude-sonnet-4-6", max_tokens=100, messages=QUESTION)


ANTHROPIC = {messages: False, messages_streamed: True, messages_stream_helper: True, beta_messages: False}


@pytest.mark.parametrize("make", ANTHROPIC, ids=lambda make: make.__name__)
def test_anthropic_calls_are_counted_as_billed(
    app: Flask,
    calls: Ledger,
    provider: PlayedProvider,
    anthropic_client: anthropic.Anthropic,
    make: Callable[[anthropic.Anthropic], None],
) -> None:
    """Each Anthropic route gives one row with the tokens that the provider billed, priced."""
    with app.app_context():
        make(anthropic_client)
    check(calls(), provider.truth, "messages", ANTHROPIC[make])


@pytest.mark.parametrize("streamed", [False, True])
def test_async_anthropic_calls_are_counted_as_billed(
    app: Flask, calls: Ledger, provider: PlayedProvider, streamed: bool
) -> None:
    """The async Anthropic client gives the same row as the sync one."""

    async def make() -> None:
        async with anthropic.AsyncAnthropic(base_url=provider.anthropic_url, api_key="test") as client:
            if streamed:
                async with client.messages.stream(model="claude-sonnet-4-6", max_tokens=9, messages=QUESTION) as stream:
                    await stream.get_final_message()
            else:
                await client.messages.create(model="claude-sonnet-4-6", max_tokens=9, messages=QUESTION)

    with app.app_context():
        asyncio.run(make())
    check(calls(), provider.truth, "messages", streamed)


def test_cached_tokens_are_priced_apart(
    app: Flask, calls: Ledger, provider: PlayedProvider, openai_client: openai.OpenAI, anthropic_client: anthropic.Anthropic
) -> None:
    """Cached tokens, inside OpenAI's prompt and beside Anthropic's input, are a component of their own with its own rate."""
    provider.reply_with(
        "chat/completions",
        usage={
            "prompt_tokens": 1000,
            "completion_tokens": 50,
            "total_tokens": 1050,
            "prompt_tokens_details": {"cached_tokens": 600},
            "completion_tokens_details": {"reasoning_tokens": 20},
        },
    )
    provider.reply_with(
        "messages",
        usage={
            "input_tokens": 400,
            "cache_read_input_tokens": 600,
            "cache_creation_input_tokens": 300,
            "cache_creation": {"ephemeral_5m_input_tokens": 200, "ephemeral_1h_input_tokens": 100},
            "output_tokens": 50,
        },
    )
    with app.app_context():
        chat(openai_client)
        messages(anthropic_client)
    first, second = calls()
    assert {line.component: int(line.quantity) for line in first.line_items} == {
        "input": 400,
        "cache_read": 600,
        "output": 50,
    }
    assert (first.input_tokens, first.cache_read_tokens, first.reasoning_tokens) == (1000, 600, 20)
    # gpt-4o: 2.50 in, 1.25 cached, 10.00 out per million.
    assert first.total_cost == Decimal("0.00225")
    assert {line.component: int(line.quantity) for line in second.line_items} == {
        "input": 400,
        "cache_read": 600,
        "cache_write": 200,
        "cache_write_1h": 100,
        "output": 50,
    }
    assert (second.input_tokens, second.cache_write_tokens) == (1300, 300)
    # claude-sonnet-4-6: 3.00 in, 0.30 read, 3.75 and 6.00 written, 15.00 out per million.
    assert second.total_cost == Decimal("0.00348")


def test_free_calls_leave_no_row(
    app: Flask, calls: Ledger, openai_client: openai.OpenAI, anthropic_client: anthropic.Anthropic
) -> None:
    """What the providers do for nothing is not in the ledger."""
    with app.app_context():
        openai_client.moderations.create(input="hello")
        openai_client.models.list()
        anthropic_client.messages.count_tokens(model="claude-sonnet-4-6", messages=QUESTION)
    assert calls() == []
