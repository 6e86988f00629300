"""OpenAI's formats of pictures and sound.

Field names and what they include are from OpenAI's API reference and the types of its SDK (``ImagesResponse``,
``Transcription``, ``TranscriptionVerbose``, the events of their streams). None of the replies names its model.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from decimal import Decimal
from typing import Any, Final

from flask_llm_cost.records import Quantity, Reading, Usage
from flask_llm_cost.usage.format import (
    Format,
    amount,
    block,
    count,
    counted_or_zero,
    form_field,
    in_stream,
    items,
    numbers_only,
    text,
)
from flask_llm_cost.usage.openai import billed, chat_usage, image_quantities, svg_usage


class Images(Format):
    """``/images/generations``, ``/images/edits`` and ``/images/variations``."""

    name = "openai.images"
    last_event_counts = False
    reads_request = True

    def quantities_of_request(self, content: bytes) -> Mapping[str, Quantity]:
        """How many pictures were asked for."""
        asked = _field(content, "n")
        number = asked if isinstance(asked, int) and not isinstance(asked, bool) else None
        if isinstance(asked, str) and asked.isascii() and asked.isdigit() and len(asked) < 4:
            number = int(asked)
        return {"images": number if number is not None and 0 < number <= 100 else 1}

    def fits(self, body: Mapping[str, Any]) -> bool:
        kind = body.get("type")
        if isinstance(kind, str):
            return kind.startswith(("image_generation.", "image_edit."))
        return isinstance(body.get("created"), int) and any(
            "b64_json" in item or "url" in item for item in items(body, "data")
        )

    def read(self, body: Mapping[str, Any]) -> Reading:
        return self.read_all(body)[0]

    def read_all(self, body: Mapping[str, Any]) -> list[Reading]:
        usage, pictures = block(body, "usage"), items(body, "data")
        if not usage and not pictures:
            return [self.name_of(body)]
        if any(name in usage for name in ("input_tokens", "output_tokens")):
            counted, consistent = image_quantities(body, usage)
        else:
            # DALL-E and its like say nothing, and are billed by the picture.
            counted, consistent = {"images": len(pictures)}, True
        total = count(usage, "total_tokens")
        readings = [
            Reading(
                Usage(
                    quantities=counted,
                    source="response",
                    total_tokens=total or None,
                    billed=billed(usage),
                    flags=() if consistent else ("usage_inconsistent",),
                    raw=numbers_only(usage) if usage else None,
                ),
                model=text(body, "model"),
            )
        ]
        drawn = svg_usage(body)
        return readings if drawn is None else [*readings, drawn]

    def read_stream(self, events: Sequence[Mapping[str, Any]], ended: bool) -> Reading:
        """Each picture ends with an event of its own, which says what it took."""
        done = [event for event in events if (text(event, "type") or "").endswith(".completed") and event.get("usage")]
        if not done:
            return Reading()
        total: dict[str, Quantity] = {}
        flags: tuple[str, ...] = ()
        for event in done:
            counted, consistent = image_quantities(event, block(event, "usage"))
            flags = flags if consistent else ("usage_inconsistent",)
            for name, quantity in counted.items():
                total[name] = total.get(name, 0) + quantity
        blocks = [block(event, "usage") for event in done]
        whole = sum(count(usage, "total_tokens") for usage in blocks)
        drawn = Usage(total, "response", total_tokens=whole or None, flags=flags, raw=numbers_only(blocks[-1]))
        return in_stream(Reading(drawn), ended=True)


class Transcriptions(Format):
    """``/audio/transcriptions`` and ``/audio/translations``: billed by tokens, or by the length of the sound."""

    name = "openai.transcriptions"

    def fits(self, body: Mapping[str, Any]) -> bool:
        kind = body.get("type")
        if isinstance(kind, str):
            return kind.startswith("transcript.text.")
        return isinstance(body.get("text"), str) and (isinstance(body.get("usage"), Mapping) or "duration" in body)

    def read(self, body: Mapping[str, Any]) -> Reading:
        return Reading(_transcribed(body), model=text(body, "model"), response_id=text(body, "id"))


class TranscriptionEvents(Transcriptions):
    """The events of a transcription's stream, which say what they are; its body may be anybody's."""

    name = "openai.transcription_events"

    def fits(self, body: Mapping[str, Any]) -> bool:
        return (text(body, "type") or "").startswith("transcript.text.")


def _transcribed(body: Mapping[str, Any]) -> Usage:
    usage = block(body, "usage")
    if "prompt_tokens" in usage:
        return chat_usage(usage)
    if "input_tokens" in usage:
        details = block(usage, "input_token_details") or block(usage, "input_tokens_details")
        spent, output, total = count(usage, "input_tokens"), count(usage, "output_tokens"), count(usage, "total_tokens")
        sound = count(details, "audio_tokens")
        consistent = sound <= spent and (not total or total == spent + output)
        return Usage(
            quantities=counted_or_zero(input=max(0, spent - sound), audio_input=sound, output=output),
            source="response",
            total_tokens=total or None,
            flags=() if consistent else ("usage_inconsistent",),
            raw=numbers_only(usage),
        )
    seconds = amount(usage, "seconds")
    if seconds is None:
        seconds = _duration(body)
    return Usage() if seconds is None else Usage({"audio_seconds": seconds}, "response", raw=numbers_only(usage) or None)


def _duration(body: Mapping[str, Any]) -> Decimal | None:
    """The length of the sound, which older replies give as text."""
    value = body.get("duration")
    return Decimal(value) if isinstance(value, str) and _DECIMAL.match(value) else amount(body, "duration")


_DECIMAL: Final = re.compile(r"[0-9]{1,9}(?:\.[0-9]{1,9})?\Z")


class Speech(Format):
    """``/audio/speech``: sound, which says nothing, or a stream of events that ends with its usage."""

    name = "openai.speech"
    reads_request = True

    def quantities_of_request(self, content: bytes) -> Mapping[str, Quantity]:
        """How many characters are to be spoken."""
        words = _field(content, "input")
        return {"characters": len(words)} if isinstance(words, str) and words else {}

    def fits(self, body: Mapping[str, Any]) -> bool:
        return (text(body, "type") or "").startswith("speech.audio.")

    def read(self, body: Mapping[str, Any]) -> Reading:
        usage = block(body, "usage")
        if not usage:
            return Reading()
        spent, output, total = count(usage, "input_tokens"), count(usage, "output_tokens"), count(usage, "total_tokens")
        return Reading(
            Usage(
                quantities=counted_or_zero(input=spent, audio_output=output),
                source="response",
                total_tokens=total or None,
                flags=() if not total or total == spent + output else ("usage_inconsistent",),
                raw=numbers_only(usage),
            )
        )


def _field(content: bytes, name: str) -> Any:
    """A field of a JSON request, or of a form."""
    if content[:1] == b"{":
        try:
            body = json.loads(content)
        except (ValueError, RecursionError):
            return None
        return body.get(name) if isinstance(body, dict) else None
    return form_field(content, name)
