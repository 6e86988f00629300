"""What else the ``openai`` package has that is billed: pictures, sound, compaction, responses in the background."""

from __future__ import annotations

import functools
import time
from collections.abc import Callable
from typing import Any

from driver import Provider, Routes
from openai_routes import both as both_into
from openai_routes import client

ROUTES = Routes(("openai",))
both = functools.partial(both_into, routes=ROUTES)

PIXEL = ("pixel.png", b"\x89PNG", "image/png")
SOUND = ("hello.wav", b"RIFF", "audio/wav")
DRAWN = {
    "input_tokens": 9,
    "output_tokens": 40,
    "total_tokens": 49,
    "input_tokens_details": {"text_tokens": 9, "image_tokens": 0},
}
HEARD = {
    "type": "tokens",
    "input_tokens": 14,
    "input_token_details": {"text_tokens": 0, "audio_tokens": 14},
    "output_tokens": 5,
    "total_tokens": 19,
}


def reply(path: str, body: Any, usage: Any) -> Callable[[Provider], None]:
    return lambda provider: provider.reply_with(path, body=body, usage=usage)


def picture(path: str) -> Callable[[Provider], None]:
    return reply(path, {"created": 1, "data": [{"b64_json": "AA=="}], "usage": DRAWN}, {"input": 9, "output": 40})


def picture_stream(provider: Provider) -> None:
    head = {
        "b64_json": "AA==",
        "created_at": 1,
        "size": "auto",
        "quality": "low",
        "background": "auto",
        "output_format": "png",
    }
    events = [
        {"type": "image_generation.partial_image", "partial_image_index": 0, **head},
        {"type": "image_generation.completed", "usage": DRAWN, **head},
    ]
    provider.reply_with("/images/generations", events=events, usage={"input": 9, "output": 40})


both("images", lambda c: c.images.generate(model="gpt-image-1", prompt="a tree"), reply=picture("/images/generations"))
both(
    "images stream",
    lambda c: c.images.generate(model="gpt-image-1", prompt="a tree", stream=True),
    reply=picture_stream,
)
both(
    "images edit",
    lambda c: c.images.edit(model="gpt-image-1", image=PIXEL, prompt="a tree"),
    reply=picture("/images/edits"),
)
both(
    "transcription",
    lambda c: c.audio.transcriptions.create(model="gpt-4o-transcribe", file=SOUND),
    reply=reply("/audio/transcriptions", {"text": "hello", "usage": HEARD}, {"input": 14, "output": 5}),
)
both(
    "transcription by length",
    lambda c: c.audio.transcriptions.create(model="whisper-1", file=SOUND),
    reply=reply(
        "/audio/transcriptions", {"text": "hello", "usage": {"type": "duration", "seconds": 7}}, {"audio_seconds": 7.0}
    ),
)
both(
    "speech",
    lambda c: c.audio.speech.create(model="tts-1", voice="alloy", input="hello"),
    reply=lambda provider: provider.reply_with(
        "/audio/speech", body=b"ID3", headers={"Content-Type": "audio/mpeg"}, usage={"characters": 5.0}
    ),
)

COMPACTED = {"input_tokens": 30, "output_tokens": 6, "total_tokens": 36}
both(
    "responses compact",
    lambda c: c.responses.compact(model="gpt-5.1", input="hello there"),
    "responses.compact",
    reply=reply(
        "/responses/compact",
        {"id": "resp_1", "object": "response.compaction", "created_at": 1, "output": [], "usage": COMPACTED},
        {"input": 30, "output": 6},
    ),
)


@ROUTES
def background(provider: Provider) -> None:
    """Made once, asked for three times: one bill."""
    with client(provider) as made:
        response = made.responses.create(model="gpt-4o-mini", input="hello there", background=True)
        for _ in range(3):
            time.sleep(0.01)
            assert made.responses.retrieve(response.id).status == "completed"
