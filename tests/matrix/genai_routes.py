"""Every billed call of the ``google-genai`` package, 1 to 3. With aiohttp installed its async calls go there."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from driver import Provider, Routes, consume, consume_async
from gemini_replies import MODEL, embedding, function_call, stream, whole
from google import genai

ROUTES = Routes(("google-genai",))

Call = Callable[[Any], Any]
Reply = Callable[[Provider], None]


def client(provider: Provider) -> genai.Client:
    return genai.Client(api_key="test", http_options={"base_url": provider.at("gemini")})


def both(name: str, call: Call, reply: Reply) -> None:
    """One call, by the sync client and by the async one."""

    def sync(provider: Provider) -> None:
        reply(provider)
        with client(provider) as made:
            consume(call(made))

    async def twin(provider: Provider) -> None:
        reply(provider)
        async with client(provider).aio as made:
            await consume_async(call(made))

    ROUTES.add(name, sync)
    ROUTES.add(f"async {name}", twin)


both("generate", lambda c: c.models.generate_content(model=MODEL, contents="hello there"), whole)
both("generate stream", lambda c: c.models.generate_content_stream(model=MODEL, contents="hello there"), stream)
both("chat", lambda c: c.chats.create(model=MODEL).send_message("hello there"), whole)
both("chat stream", lambda c: c.chats.create(model=MODEL).send_message_stream("hello there"), stream)
both("embed", lambda c: c.models.embed_content(model="gemini-embedding-001", contents=["one", "two"]), embedding)


def price(item: str) -> str:
    """The price of an item."""
    return f"{item}: 3"


both(
    "function calling",
    lambda c: c.models.generate_content(model=MODEL, contents="what is tea?", config={"tools": [price]}),
    function_call,
)


@ROUTES
def retried(provider: Provider) -> None:
    provider.reply_with(":generateContent", status=503, body={"error": {"code": 503, "message": "busy"}})
    whole(provider)
    options: Any = {"base_url": provider.at("gemini"), "retry_options": {"attempts": 2, "initial_delay": 0.01}}
    with genai.Client(api_key="test", http_options=options) as made:
        made.models.generate_content(model=MODEL, contents="hello there")


@ROUTES
def free(provider: Provider) -> None:
    provider.reply_with(":countTokens", body={"totalTokens": 3})
    with client(provider) as made:
        made.models.count_tokens(model=MODEL, contents="hello there")
