"""``langchain-openai``, ``-anthropic`` and ``-google-genai``."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from driver import Provider, Routes, break_off, break_off_async
from gemini_replies import MODEL, stream, whole
from langchain_anthropic import ChatAnthropic
from langchain_google_genai import ChatGoogleGenerativeAI
from langchain_openai import ChatOpenAI, OpenAIEmbeddings

ROUTES = Routes(("langchain-openai", "langchain-anthropic", "langchain-google-genai"))

QUESTION = "what does it cost to ask a question?"


def openai(provider: Provider) -> Any:
    return ChatOpenAI(model="gpt-4o", base_url=provider.openai_url, api_key="test")


def responses(provider: Provider) -> Any:
    return ChatOpenAI(model="gpt-4o", base_url=provider.openai_url, api_key="test", use_responses_api=True)


def anthropic(provider: Provider) -> Any:
    return ChatAnthropic(model="claude-sonnet-4-6", base_url=provider.anthropic_url, api_key="test")


def gemini(provider: Provider) -> Any:
    return ChatGoogleGenerativeAI(model=MODEL, base_url=provider.at("gemini"), api_key="test")


def add(
    name: str,
    make: Callable[[Provider], Any],
    reply: Callable[[Provider], None] = lambda provider: None,
    reply_stream: Callable[[Provider], None] = lambda provider: None,
) -> None:
    """One model, by the four ways to ask it."""

    def invoke(provider: Provider) -> None:
        reply(provider)
        make(provider).invoke(QUESTION)

    def streamed(provider: Provider) -> None:
        reply_stream(provider)
        assert list(make(provider).stream(QUESTION))

    async def ainvoke(provider: Provider) -> None:
        reply(provider)
        await make(provider).ainvoke(QUESTION)

    async def astreamed(provider: Provider) -> None:
        reply_stream(provider)
        assert [piece async for piece in make(provider).astream(QUESTION)]

    def broken(provider: Provider) -> None:
        reply_stream(provider)
        break_off(make(provider).stream(QUESTION))

    async def abroken(provider: Provider) -> None:
        reply_stream(provider)
        await break_off_async(make(provider).astream(QUESTION))

    ROUTES.add(f"{name} stream broken off", broken, broken=True)
    ROUTES.add(f"async {name} stream broken off", abroken, broken=True)
    ROUTES.add(name, invoke)
    ROUTES.add(f"{name} stream", streamed)
    ROUTES.add(f"async {name}", ainvoke)
    ROUTES.add(f"async {name} stream", astreamed)


add("openai", openai)
add("openai responses", responses)
add("anthropic", anthropic)
add("gemini", gemini, whole, stream)


@ROUTES
def embeddings(provider: Provider) -> None:
    made: Any = OpenAIEmbeddings(
        model="text-embedding-3-small", base_url=provider.openai_url, api_key="test", check_embedding_ctx_length=False
    )
    made.embed_documents(["one", "two"])
