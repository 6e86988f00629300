"""What the played provider answers to one request, and what it bills for it. Everything follows from the request alone."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final, TypeAlias
from uuid import uuid4

Json: TypeAlias = Mapping[str, Any]

#: Names that providers answer with another name than the one they were asked for (as their model pages listed them in 2025).
SERVED_AS: Final[Mapping[str, str]] = {
    "gpt-4o": "gpt-4o-2024-08-06",
    "gpt-4o-mini": "gpt-4o-mini-2024-07-18",
    "gpt-4.1": "gpt-4.1-2025-04-14",
    "gpt-4.1-mini": "gpt-4.1-mini-2025-04-14",
    "gpt-4.1-nano": "gpt-4.1-nano-2025-04-14",
    "gpt-5": "gpt-5-2025-08-07",
    "gpt-5-mini": "gpt-5-mini-2025-08-07",
    "gpt-5-nano": "gpt-5-nano-2025-08-07",
    "o3": "o3-2025-04-16",
    "o3-mini": "o3-mini-2025-01-31",
    "o4-mini": "o4-mini-2025-04-16",
    "omni-moderation-latest": "omni-moderation-2024-09-26",
    "claude-opus-4-1": "claude-opus-4-1-20250805",
    "claude-opus-4-5": "claude-opus-4-5-20251101",
    "claude-sonnet-4-5": "claude-sonnet-4-5-20250929",
    "claude-haiku-4-5": "claude-haiku-4-5-20251001",
}

#: Reasoning tokens by the effort that a request asks for.
REASONING_TOKENS: Final[Mapping[str, int]] = {"minimal": 0, "low": 32, "medium": 128, "high": 512}


@dataclass(frozen=True, slots=True)
class Exchange:
    """One answer.

    :param body: the JSON body, ``None`` for a stream
    :param events: the pieces of a stream, server-sent events as bytes; ``None`` for a plain reply
    :param usage: the usage block as billed, ``None`` where the call is free
    """

    model: str
    body: Json | None = None
    events: Sequence[bytes] | None = None
    usage: Json | None = None
    response_id: str | None = None


def served_model(request: Json) -> str:
    """The model's name in the reply."""
    asked = str(request.get("model", ""))
    return SERVED_AS.get(asked, asked)


def new_id(prefix: str) -> str:
    return prefix + uuid4().hex[:24]


def texts(value: Any) -> Iterator[str]:
    """Every text in a prompt, whatever its shape: a string, blocks with ``text``, messages with ``content``."""
    if isinstance(value, str):
        yield value
    elif isinstance(value, Mapping):
        for key in ("instructions", "system", "content", "text", "input", "arguments"):
            yield from texts(value.get(key))
    elif isinstance(value, Iterable) and not isinstance(value, (bytes, bytearray)):
        for item in value:
            yield from texts(item)


def count_tokens(value: Any) -> int:
    """Four bytes of text are a token; at least one."""
    return max(1, sum(len(text.encode()) for text in texts(value)) // 4)


def answer_to(messages: Any) -> str:
    """An answer that repeats the last words of the prompt, so that a test finds them again."""
    last = messages
    if isinstance(messages, Sequence) and not isinstance(messages, str) and messages:
        last = messages[-1]
    words = " ".join(texts(last)).split()
    return "You asked: " + " ".join(words[-200:]) + "\nThis answer was played, no model was asked."


def pieces(answer: str) -> list[str]:
    """The answer word by word, as a stream sends it."""
    return [word + " " for word in answer.split(" ")[:-1]] + answer.split(" ")[-1:]


def event(data: Json, name: str | None = None) -> bytes:
    """One server-sent event."""
    head = f"event: {name}\n" if name else ""
    return f"{head}data: {json.dumps(data, separators=(',', ':'))}\n\n".encode()
