"""``pydantic-ai``, over OpenAI, Anthropic and Gemini."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from driver import Provider, Routes
from gemini_replies import MODEL, stream, whole
from pydantic_ai import Agent
from pydantic_ai.models.anthropic import AnthropicModel
from pydantic_ai.models.google import GoogleModel
from pydantic_ai.models.openai import OpenAIChatModel, OpenAIResponsesModel
from pydantic_ai.providers.anthropic import AnthropicProvider
from pydantic_ai.providers.google import GoogleProvider
from pydantic_ai.providers.openai import OpenAIProvider

ROUTES = Routes(("pydantic-ai-slim",))

Reply = Callable[[Provider], None]


def openai(provider: Provider) -> Any:
    return OpenAIChatModel("gpt-4o", provider=OpenAIProvider(base_url=provider.openai_url, api_key="test"))


def responses(provider: Provider) -> Any:
    return OpenAIResponsesModel("gpt-4o", provider=OpenAIProvider(base_url=provider.openai_url, api_key="test"))


def anthropic(provider: Provider) -> Any:
    made = AnthropicProvider(base_url=provider.anthropic_url, api_key="test")
    return AnthropicModel("claude-sonnet-4-6", provider=made)


def gemini(provider: Provider) -> Any:
    return GoogleModel(MODEL, provider=GoogleProvider(base_url=provider.at("gemini"), api_key="test"))


def add(
    name: str,
    make: Callable[[Provider], Any],
    reply: Reply = lambda provider: None,
    reply_stream: Reply = lambda provider: None,
) -> None:
    """One model, run and streamed."""

    def ask(provider: Provider) -> None:
        reply(provider)
        assert Agent(make(provider)).run_sync("hello there").output

    async def streamed(provider: Provider) -> None:
        reply_stream(provider)
        async with Agent(make(provider)).run_stream("hello there") as answer:
            assert [text async for text in answer.stream_text()]

    ROUTES.add(name, ask)
    ROUTES.add(f"{name} stream", streamed)


add("openai", openai)
add("openai responses", responses)
add("anthropic", anthropic)
add("gemini", gemini, whole, stream)
