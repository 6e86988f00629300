"""What OpenAI sends over websockets: the events of a Realtime session, and those of responses.

Field names and what they include are from OpenAI's API reference and the types of its SDK (``RealtimeResponse``,
``RealtimeResponseUsage``, ``ConversationItemInputAudioTranscriptionCompletedEvent``, ``SessionCreatedEvent``). Cached, audio
and image tokens are counted *inside* the input. A usage block is that of one response, or of one transcription, never a sum.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any, Final

from flask_llm_cost.records import Reading, Usage
from flask_llm_cost.usage.format import Format, block, count, is_object, numbers_only, text
from flask_llm_cost.usage.lines import LineScanner
from flask_llm_cost.usage.openai import chat_usage
from flask_llm_cost.usage.openai_media import Transcriptions

_TRANSCRIBED: Final = "conversation.item.input_audio_transcription.completed"
_TRANSCRIPTIONS: Final = Transcriptions()

#: The events that matter, and what they are to us.
_KINDS: Final[Mapping[str, str]] = {
    **dict.fromkeys(("session.created", "session.updated"), "session"),
    **dict.fromkeys(("transcription_session.created", "transcription_session.updated"), "session"),
    "response.created": "begun",
    **dict.fromkeys(("response.done", "response.completed", "response.incomplete", "response.failed"), "billed"),
    _TRANSCRIBED: "transcribed",
}
_TYPE: Final = '"type"\\s{0,16}:\\s{0,16}"(' + "|".join(map(re.escape, _KINDS)) + ')"'
_TYPE_OF_TEXT: Final = re.compile(_TYPE)
_TYPE_OF_BYTES: Final = re.compile(_TYPE.encode())

#: How much of a message is looked at, at its beginning and at its end: servers differ in where they write the type.
_LOOK: Final = 256

_ENDS: Final = re.compile(r"/(?:realtime|responses)/?\Z")


def may_bill(path: str) -> bool:
    """Whether what comes over a websocket to *path*, without its query, may be billed."""
    return _ENDS.search(path) is not None


def kind(message: str | bytes) -> str | None:
    """What a message is, by its beginning or its end: ``session`` where it says which models are at work, ``begun`` where a
    response begins, ``billed`` where one ends, ``transcribed`` where sound became text. ``None`` for nearly all."""
    if isinstance(message, str):
        of_text = _TYPE_OF_TEXT.search(message[:_LOOK]) or _TYPE_OF_TEXT.search(message[-_LOOK:])
        return _KINDS[of_text[1]] if of_text else None
    of_bytes = _TYPE_OF_BYTES.search(message[:_LOOK]) or _TYPE_OF_BYTES.search(message[-_LOOK:])
    return _KINDS[of_bytes[1].decode()] if of_bytes else None


def line(message: str | bytes) -> bytes:
    """A message as a line of newline-delimited JSON: its own newlines stand between tokens, where a space is as good."""
    content = message.encode() if isinstance(message, str) else bytes(message)
    return content.replace(b"\n", b" ") + b"\n"


def parsed(message: bytes) -> Mapping[str, Any]:
    """What is in a :func:`line`, without the insides of long strings; empty where it is no object."""
    scanner = LineScanner(Realtime.mark, also=Realtime.also_kept)
    scanner.feed(message)
    scanner.finish()
    return scanner.events[0] if scanner.events else {}


def response_id(event: Mapping[str, Any]) -> str | None:
    """The id of the response that an event is about."""
    return text(_response(event), "id")


def models_line(event: Mapping[str, Any], before: bytes) -> bytes:
    """The models that a ``session`` event names, as a :func:`line` to be read before the events that they are billed for.

    :param before: the same of the last such event; what this one leaves out is taken from there
    """
    known = parsed(before) if before else {}
    transcribing = {"model": _transcribing_model(event) or _transcribing_model(known)}
    session = {"model": _session_model(event) or _session_model(known), "input_audio_transcription": transcribing}
    return line(json.dumps({"session": session}))


class Realtime(Format):
    """The events of a Realtime session. The model is the session's: the first event may be one that names it."""

    name = "openai.realtime"
    last_event_counts = False
    also_kept = (b'"response.done"',)

    def fits(self, body: Mapping[str, Any]) -> bool:
        if text(body, "type") == _TRANSCRIBED:
            return is_object(body.get("usage"))
        return text(body, "type") == "response.done" and (is_object(body.get("response")) or is_object(body.get("usage")))

    def read(self, body: Mapping[str, Any]) -> Reading:
        response = _response(body)
        usage, status = block(response, "usage"), text(response, "status")
        return Reading(
            usage=_usage(usage) if usage else Usage(),
            model=text(response, "model"),
            response_id=text(response, "id"),
            failed=status == "failed",
            cancelled=status == "cancelled",
        )

    def read_stream_all(self, events: Sequence[Mapping[str, Any]], ended: bool) -> list[Reading]:
        """Each response and each transcription is a bill of its own."""
        return [self._read_event(event, events[0]) for event in events if self.fits(event)] or [Reading()]

    def _read_event(self, event: Mapping[str, Any], session: Mapping[str, Any]) -> Reading:
        if text(event, "type") == _TRANSCRIBED:
            read = _TRANSCRIPTIONS.read({"usage": event.get("usage")})
            return replace(read, model=_transcribing_model(session), response_id=text(event, "item_id"))
        read = self.read(event)
        return replace(read, model=read.model or _session_model(session))

    def name_of(self, body: Mapping[str, Any]) -> Reading:
        if text(body, "type") == _TRANSCRIBED:
            return Reading(response_id=text(body, "item_id"))
        return Reading(model=text(_response(body), "model") or _session_model(body), response_id=response_id(body))


def _response(event: Mapping[str, Any]) -> Mapping[str, Any]:
    response = event.get("response")
    return response if is_object(response) else event


def _session_model(event: Mapping[str, Any]) -> str | None:
    return text(block(event, "session"), "model")


def _transcribing_model(event: Mapping[str, Any]) -> str | None:
    """The model that writes down what is said, in the session of today's API, and of its beta."""
    session = block(event, "session")
    now, beta = block(block(block(session, "audio"), "input"), "transcription"), block(session, "input_audio_transcription")
    return text(now, "model") or text(beta, "model")


def _usage(usage: Mapping[str, Any]) -> Usage:
    """The same counts as in a chat completion, by other names, and the text of each side beside them."""
    inside, outside = block(usage, "input_token_details"), block(usage, "output_token_details")
    read = chat_usage(
        {
            "prompt_tokens": usage.get("input_tokens"),
            "completion_tokens": usage.get("output_tokens"),
            "total_tokens": usage.get("total_tokens"),
            "prompt_tokens_details": inside,
            "completion_tokens_details": outside,
        }
    )
    cached = block(inside, "cached_tokens_details")
    answered, reasoning = count(usage, "output_tokens"), count(outside, "reasoning_tokens")
    consistent = (
        _parts(inside) in (None, count(usage, "input_tokens"))
        and _parts(cached) in (None, count(inside, "cached_tokens"))
        and _parts(outside) in (None, answered, answered - reasoning)
    )
    return replace(read, flags=read.flags if consistent else ("usage_inconsistent",), raw=numbers_only(usage))


def _parts(details: Mapping[str, Any]) -> int | None:
    """Text, sound and pictures together; ``None`` where the text is not counted apart."""
    if details.get("text_tokens") is None:
        return None
    return sum(count(details, f"{part}_tokens") for part in ("text", "audio", "image"))
