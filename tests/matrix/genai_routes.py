"""Every billed call of the ``google-genai`` package, 1 to 3. With aiohttp installed its async calls go there."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from driver import Provider, Routes, break_off, break_off_async, consume, consume_async
from gemini_replies import MODEL, embedding, function_call, stream, whole
from google import genai

ROUTES = Routes(("google-genai",))

Call = Callable[[Any], Any]
Reply = Callable[[Provider], None]


def client(provider: Provider) -> genai.Client:
    return genai.Client(api_key="test", http_options={"base_url": provider.at("gemini")})


def both(name: str, call: Call, reply: Reply, broken: bool = False) -> None:
    """One call, by the sync client and by the async one."""

    def sync(provider: Provider) -> None:
        reply(provider)
        with client(provider) as made:
            (break_off if broken else consume)(call(made))

    async def twin(provider: Provider) -> None:
        reply(provider)
        async with client(provider).aio as made:
            await (break_off_async if broken else consume_async)(call(made))

    ROUTES.add(name, sync, broken=broken)
    ROUTES.add(f"async {name}", twin, broken=broken)


both("generate", lambda c: c.models.generate_content(model=MODEL, contents="hello there"), whole)
both("generate stream", lambda c: c.models.generate_content_stream(model=MODEL, contents="hello there"), stream)
both("chat", lambda c: c.chats.create(model=MODEL).send_message("hello there"), whole)
both("chat stream", lambda c: c.chats.create(model=MODEL).send_message_stream("hello there"), stream)
both(
    "generate stream broken off",
    lambda c: c.models.generate_content_stream(model=MODEL, contents="hello there"),
    stream,
    broken=True,
)
both("embed", lambda c: c.models.embed_content(model="gemini-embedding-001", contents=["one", "two"]), embedding)


def price(item: str) -> str:
    """The price of an item."""
    return f"{item}: 3"


both(
    "function calling",
    lambda c: c.models.generate_content(model=MODEL, contents="what is tea?", config={"tools": [price]}),
    function_call,
)


def busy(provider: Provider) -> Any:
    """500, 503, and only then an answer; a client that asks three times."""
    for status in (500, 503):
        provider.reply_with(":generateContent", status=status, body={"error": {"code": status, "message": "busy"}})
    whole(provider)
    options: Any = {"base_url": provider.at("gemini"), "retry_options": {"attempts": 3, "initial_delay": 0.01}}
    return genai.Client(api_key="test", http_options=options)


@ROUTES
def retried(provider: Provider) -> None:
    with busy(provider) as made:
        made.models.generate_content(model=MODEL, contents="hello there")


@ROUTES
async def async_retried(provider: Provider) -> None:
    async with busy(provider).aio as made:
        await made.models.generate_content(model=MODEL, contents="hello there")


@ROUTES
def free(provider: Provider) -> None:
    provider.reply_with(":countTokens", body={"totalTokens": 3})
    with client(provider) as made:
        made.models.count_tokens(model=MODEL, contents="hello there")
