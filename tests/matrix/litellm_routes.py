"""``litellm``, over OpenAI, Anthropic and Gemini. Its own clients send by httpx, its async ones by httpx on aiohttp."""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import Any

os.environ["LITELLM_LOCAL_MODEL_COST_MAP"] = "True"  # else its import downloads one

import litellm
from driver import Provider, Routes, break_off, break_off_async
from gemini_replies import MODEL, stream, whole

ROUTES = Routes(("litellm",))

QUESTION: Any = [{"role": "user", "content": "what does it cost to ask a question?"}]

Reply = Callable[[Provider], None]


def add(
    name: str,
    options: Callable[[Provider], Any],
    reply: Reply = lambda provider: None,
    reply_stream: Reply = lambda provider: None,
) -> None:
    """One model, by the four ways to ask it."""

    def ask(provider: Provider) -> None:
        reply(provider)
        litellm.completion(messages=QUESTION, **options(provider))

    def streamed(provider: Provider) -> None:
        reply_stream(provider)
        assert list(litellm.completion(messages=QUESTION, stream=True, **options(provider)))

    async def ask_async(provider: Provider) -> None:
        reply(provider)
        await litellm.acompletion(messages=QUESTION, **options(provider))

    async def streamed_async(provider: Provider) -> None:
        reply_stream(provider)
        answer: Any = await litellm.acompletion(messages=QUESTION, stream=True, **options(provider))
        assert [piece async for piece in answer]

    def broken(provider: Provider) -> None:
        reply_stream(provider)
        break_off(litellm.completion(messages=QUESTION, stream=True, **options(provider)))

    async def broken_async(provider: Provider) -> None:
        reply_stream(provider)
        await break_off_async(litellm.acompletion(messages=QUESTION, stream=True, **options(provider)))

    ROUTES.add(f"{name} stream broken off", broken, broken=True)
    ROUTES.add(f"async {name} stream broken off", broken_async, broken=True)
    ROUTES.add(name, ask)
    ROUTES.add(f"{name} stream", streamed)
    ROUTES.add(f"async {name}", ask_async)
    ROUTES.add(f"async {name} stream", streamed_async)


add("openai", lambda p: {"model": "openai/gpt-4o", "api_base": p.openai_url, "api_key": "test"})
add("anthropic", lambda p: {"model": "anthropic/claude-sonnet-4-6", "api_base": p.anthropic_url, "api_key": "test"})
add(
    "gemini",
    lambda p: {"model": f"gemini/{MODEL}", "api_base": p.at(f"gemini/v1beta/models/{MODEL}"), "api_key": "test"},
    whole,
    stream,
)


@ROUTES
def embedding(provider: Provider) -> None:
    litellm.embedding(model="openai/text-embedding-3-small", input=["one"], api_base=provider.openai_url, api_key="test")


@ROUTES
def responses(provider: Provider) -> None:
    litellm.responses(model="openai/gpt-4o-mini", input="hello there", api_base=provider.openai_url, api_key="test")
