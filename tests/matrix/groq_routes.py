"""``groq``: generated like OpenAI's package, on httpx."""

from __future__ import annotations

from typing import Any

import groq
from driver import Provider, Routes, consume, consume_async

ROUTES = Routes(("groq",))

CHAT: Any = {"model": "llama-3.3-70b-versatile", "messages": [{"role": "user", "content": "what does it cost?"}]}


@ROUTES
def chat(provider: Provider) -> None:
    with groq.Groq(base_url=provider.at("groq"), api_key="test") as made:
        made.chat.completions.create(**CHAT)


@ROUTES
def chat_stream(provider: Provider) -> None:
    """Groq's usage comes beside the last choice, in a place of its own."""
    head = {"id": "chatcmpl-1", "object": "chat.completion.chunk", "created": 1, "model": CHAT["model"]}
    usage = {"prompt_tokens": 9, "completion_tokens": 4, "total_tokens": 13, "queue_time": 0.1}
    events = [
        {**head, "choices": [{"index": 0, "delta": {"role": "assistant", "content": "3"}, "finish_reason": None}]},
        {**head, "choices": [{"index": 0, "delta": {}, "finish_reason": "stop"}], "x_groq": {"id": "1", "usage": usage}},
        "[DONE]",
    ]
    provider.reply_with("chat/completions", events=events, usage=usage)
    with groq.Groq(base_url=provider.at("groq"), api_key="test") as made:
        consume(made.chat.completions.create(**CHAT, stream=True))


@ROUTES
async def async_chat(provider: Provider) -> None:
    async with groq.AsyncGroq(base_url=provider.at("groq"), api_key="test") as made:
        await made.chat.completions.create(**CHAT)
        await consume_async(made.chat.completions.create(**CHAT, stream=True))
