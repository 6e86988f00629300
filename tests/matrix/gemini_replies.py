"""What Gemini answers, for the packages that speak to it."""

from __future__ import annotations

from typing import Any

from driver import Provider

MODEL = "gemini-2.5-flash"


def part(text: str, candidates: int, finish: str | None = None) -> dict[str, Any]:
    content = {"role": "model", "parts": [{"text": text}]}
    return {
        "candidates": [{"content": content, "index": 0, **({"finishReason": finish} if finish else {})}],
        "usageMetadata": {
            "promptTokenCount": 11,
            "candidatesTokenCount": candidates,
            "thoughtsTokenCount": 5,
            "totalTokenCount": 16 + candidates,
        },
        "modelVersion": MODEL,
        "responseId": "gemini-1",
    }


def whole(provider: Provider) -> None:
    provider.reply_with(":generateContent", body=part("hello", 7, "STOP"), usage={"input": 11, "output": 12})


def stream(provider: Provider) -> None:
    events = [part("hel", 3), part("lo", 7, "STOP")]
    provider.reply_with(":streamGenerateContent", events=events, usage={"input": 11, "output": 12})


def embedding(provider: Provider) -> None:
    body = {"embeddings": [{"values": [0.25, 0.5]}], "usageMetadata": {"promptTokenCount": 6}}
    provider.reply_with(":batchEmbedContents", body=body, usage={"input": 6, "output": 0})


def function_call(provider: Provider) -> None:
    """The model asks for a function once, then answers: two bills for one SDK call."""
    first = part("", 7, "STOP")
    first["candidates"][0]["content"]["parts"] = [{"functionCall": {"name": "price", "args": {"item": "tea"}}}]
    provider.reply_with(":generateContent", body=first, usage={"input": 11, "output": 12})
    whole(provider)
