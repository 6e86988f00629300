"""The results of batches: each line is a bill of its own, counted once however often the results are read.

Shapes are from the providers' API references: OpenAI's batch output file (and Azure's, Groq's, Mistral's, which copy it),
Anthropic's batch results, Gemini's batch with inlined responses. The batch object's own totals are the same money: not read.
Creating a batch is a pending call, which says whose its lines are.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any, Final

from flask_llm_cost.records import BatchNews, Reading, Usage
from flask_llm_cost.usage.anthropic import Messages
from flask_llm_cost.usage.excerpt import MAX_KEPT, Salvaged
from flask_llm_cost.usage.format import LARGE_BODY, Format, MalformedUsageError, block, items, moment, text
from flask_llm_cost.usage.gemini import EmbedContent, GenerateContent
from flask_llm_cost.usage.openai import ChatCompletions, Embeddings
from flask_llm_cost.usage.openai_media import Images
from flask_llm_cost.usage.openai_responses import Responses

_CHAT, _EMBEDDINGS, _IMAGES, _RESPONSES = ChatCompletions(), Embeddings(), Images(), Responses()
_MESSAGES, _CONTENT, _EMBED = Messages(), GenerateContent(), EmbedContent()
_BATCH: Final = "batch"


class BatchLines(Format, ABC):
    """Results with one line for each request."""

    each_event_counts = True
    # More than a line may have that is read whole from the buffer: the pieces that it comes in must not decide what is left.
    most_kept = 2 * MAX_KEPT
    shape_only = True

    def fits(self, body: Mapping[str, Any]) -> bool:
        return self.is_line(self._whole(body))

    def read(self, body: Mapping[str, Any]) -> Reading:
        return self.read_all(body)[0]

    def read_all(self, body: Mapping[str, Any]) -> list[Reading]:
        return self.read_line(self._whole(body)) if self.fits(body) else [Reading()]

    @abstractmethod
    def is_line(self, line: Mapping[str, Any]) -> bool:
        """Whether *line* bills anything."""

    @abstractmethod
    def read_line(self, line: Mapping[str, Any]) -> list[Reading]:
        """What one line bills. ``settles`` is what the provider calls the line.

        :raises MalformedUsageError: when its usage block says something impossible
        """

    def read_stream(self, events: Sequence[Mapping[str, Any]], ended: bool) -> Reading:
        return self.read_stream_all(events, ended)[0]

    def read_stream_all(self, events: Sequence[Mapping[str, Any]], ended: bool) -> list[Reading]:
        lines = [line for line in map(self._whole, events) if self.is_line(line)]
        return [reading for line in lines for reading in _guarded(self.read_line, self.name_of, line)]

    def _whole(self, line: Mapping[str, Any]) -> Mapping[str, Any]:
        return self.rebuilt(line) if isinstance(line, Salvaged) else line

    @abstractmethod
    def rebuilt(self, left: Salvaged) -> Mapping[str, Any]:
        """What is left of a line that was too long to keep, in the shape of a whole one; empty where it bills nothing.

        Once all lines are read nobody waits for the batch any more: not even one whose counts are lost may be passed over.
        """


def _guarded(
    read: Callable[[Mapping[str, Any]], list[Reading]],
    name_of: Callable[[Mapping[str, Any]], Reading],
    line: Mapping[str, Any],
) -> list[Reading]:
    """One line that makes no sense leaves the others as they are."""
    try:
        return read(line)
    except MalformedUsageError as error:
        return [replace(name_of(line), usage=Usage(flags=("usage_malformed",)), mode=_BATCH, malformed=error.field)]


def _settled(readings: list[Reading], key: str | None, created: Any = None) -> list[Reading]:
    return [
        replace(
            reading,
            usage=replace(reading.usage, source="batch") if reading.usage.known else reading.usage,
            mode=_as_batch(reading.mode),
            settles=f"{key}/{number}" if number and key else key,
            created_at=created,
        )
        for number, reading in enumerate(readings)
    ]


def _as_batch(mode: str | None) -> str:
    """The mode of a line, which is a batch whatever tier its reply names."""
    zone = "+".join(part for part in (mode or "").split("+") if part.startswith("residency:"))
    return f"{_BATCH}+{zone}" if zone else _BATCH


def _created(key: str | None, model: str | None = None) -> Reading:
    return Reading(Usage(source="pending"), model, key, _BATCH, key)


class OpenAIBatchCreation(Format):
    """``POST /batches``."""

    name = "openai.batch_creation"
    shape_only = True

    def fits(self, body: Mapping[str, Any]) -> bool:
        return body.get("object") == "batch" and text(body, "id") is not None

    def read(self, body: Mapping[str, Any]) -> Reading:
        return _created(text(body, "id"), text(body, "model"))


_OVER: Final = frozenset({"completed", "failed", "expired", "cancelled"})


def _openai_news(body: Mapping[str, Any]) -> list[BatchNews]:
    """Which file the lines of one batch, or of those in a list, are in."""
    states = [(text(batch, "id"), batch) for batch in (body, *items(body, "data")) if batch.get("object") == "batch"]
    return [
        BatchNews(key, text(batch, "output_file_id"))
        for key, batch in states
        if key and (text(batch, "output_file_id") or batch.get("status") in _OVER)
    ]


class OpenAIBatch(BatchLines):
    """``GET /files/{id}/content`` of a batch's output. Any other file is not a call."""

    name = "openai.batch"

    def is_line(self, line: Mapping[str, Any]) -> bool:
        response = line.get("response")
        if "custom_id" not in line or not isinstance(response, Mapping):
            return False
        status = response.get("status_code")
        return isinstance(response.get("body"), Mapping) and (not isinstance(status, int) or status < 400)

    def rebuilt(self, left: Salvaged) -> Mapping[str, Any]:
        if "custom_id" not in left or "usage" not in left:
            return {}
        names, body = list(left), dict(left)
        # The first id is the line's where it stands before the line's other name, else that of the answer in it.
        own = {"id": body.pop("id")} if "id" in names[: names.index("custom_id")] else {}
        return {"custom_id": left["custom_id"], **own, "response": {"body": Salvaged(body)}}

    def read_line(self, line: Mapping[str, Any]) -> list[Reading]:
        body = block(block(line, "response"), "body")
        created = moment(body, "created_at") or moment(body, "created")
        return _settled(_format_of(body).read_all(body), _line_key(line), created)

    def name_of(self, body: Mapping[str, Any]) -> Reading:
        named = super().name_of(block(block(body, "response"), "body"))
        return replace(named, settles=_line_key(body))


def _line_key(line: Mapping[str, Any]) -> str | None:
    # Azure's lines have no id of their own.
    return text(line, "id") or text(line, "custom_id")


def _format_of(body: Mapping[str, Any]) -> Format:
    if body.get("object") == "response":
        return _RESPONSES
    if body.get("object") == "list":
        return _EMBEDDINGS
    return _IMAGES if _IMAGES.fits(body) else _CHAT


class AnthropicBatchCreation(Format):
    """``POST /v1/messages/batches``."""

    name = "anthropic.batch_creation"
    shape_only = True

    def fits(self, body: Mapping[str, Any]) -> bool:
        return body.get("type") == "message_batch" and text(body, "id") is not None

    def read(self, body: Mapping[str, Any]) -> Reading:
        return _created(text(body, "id"))


class AnthropicBatchState(AnthropicBatchCreation):
    """``GET /v1/messages/batches/{id}`` and the list of them: no bill, but they say when a batch has come to nothing."""

    name = "anthropic.batch_state"

    def fits(self, body: Mapping[str, Any]) -> bool:
        return False

    def batch_news(self, body: Mapping[str, Any]) -> list[BatchNews]:
        ended = [batch for batch in (body, *items(body, "data")) if batch.get("processing_status") == "ended"]
        names = [text(batch, "id") for batch in ended if block(batch, "request_counts").get("succeeded") == 0]
        return [BatchNews(name) for name in names if name]


class AnthropicBatch(BatchLines):
    """``GET /v1/messages/batches/{id}/results``. Only what succeeded is billed."""

    name = "anthropic.batch"

    def is_line(self, line: Mapping[str, Any]) -> bool:
        result = line.get("result")
        return "custom_id" in line and isinstance(result, Mapping) and result.get("type") == "succeeded"

    def rebuilt(self, left: Salvaged) -> Mapping[str, Any]:
        if "custom_id" not in left or "usage" not in left:
            return {}
        return {"custom_id": left["custom_id"], "result": {"type": "succeeded", "message": left}}

    def read_line(self, line: Mapping[str, Any]) -> list[Reading]:
        return _settled(_MESSAGES.read_all(block(block(line, "result"), "message")), text(line, "custom_id"))

    def name_of(self, body: Mapping[str, Any]) -> Reading:
        return replace(super().name_of(block(block(body, "result"), "message")), settles=text(body, "custom_id"))


class GeminiBatchFile(BatchLines):
    """``GET /download/v1beta/files/{id}:download``: a batch's results where they were asked for as a file."""

    name = "gemini.batch_file"
    mark = b'"usageMetadata"'

    def is_line(self, line: Mapping[str, Any]) -> bool:
        response = line.get("response")
        return "key" in line and isinstance(response, Mapping) and (_CONTENT.fits(response) or _EMBED.fits(response))

    def rebuilt(self, left: Salvaged) -> Mapping[str, Any]:
        if "key" not in left or "usageMetadata" not in left:
            return {}
        return {"key": left["key"], "response": Salvaged({"candidates": [], "modelVersion": None, **left})}

    def read_line(self, line: Mapping[str, Any]) -> list[Reading]:
        response = block(line, "response")
        return _settled([_gemini(response)], text(line, "key") or text(response, "responseId"))

    def name_of(self, body: Mapping[str, Any]) -> Reading:
        return replace(_CONTENT.name_of(block(body, "response")), settles=text(body, "key"))


_LINES: Final = GeminiBatchFile()
_FAILED: Final = frozenset({"FAILED", "CANCELLED", "EXPIRED"})


class GeminiBatchCreation(Format):
    """``POST …:batchGenerateContent`` and ``…:asyncBatchEmbedContent``: the reply is an operation."""

    name = "gemini.batch_creation"
    shape_only = True

    def fits(self, body: Mapping[str, Any]) -> bool:
        return (text(body, "name") or "").startswith("batches/")

    def read(self, body: Mapping[str, Any]) -> Reading:
        return _created((text(body, "name") or "").removeprefix("batches/"))


class BatchState(Format):
    """``GET /batches/{id}``: Gemini's operation that, once done, has the responses in it, or OpenAI's object, which names
    the file that they are in."""

    name = "batch_state"
    mark = b'"usageMetadata"'
    most_kept = LARGE_BODY
    shape_only = True

    def fits(self, body: Mapping[str, Any]) -> bool:
        return next(_inlined(body), None) is not None

    def read(self, body: Mapping[str, Any]) -> Reading:
        return (self.read_all(body) or [Reading()])[0]

    def read_all(self, body: Mapping[str, Any]) -> list[Reading]:
        readings: list[Reading] = []
        for number, item in enumerate(_inlined(body)):
            line = {"key": str(number), "response": item.get("response")}
            if _LINES.is_line(line):
                readings += _guarded(_LINES.read_line, _LINES.name_of, line)
        return readings

    def batch_news(self, body: Mapping[str, Any]) -> list[BatchNews]:
        if not (text(body, "name") or "").startswith("batches/"):
            return _openai_news(body)
        key, state = (text(body, "name") or "").removeprefix("batches/"), text(block(body, "metadata"), "state") or ""
        for owner in (block(body, "response"), block(block(body, "metadata"), "output")):
            if file := text(owner, "responsesFile"):
                return [BatchNews(key, file.removeprefix("files/"))]
        ended = self.fits(body) or isinstance(body.get("error"), Mapping) or state.rpartition("_")[2] in _FAILED
        return [BatchNews(key)] if ended else []


def _inlined(body: Mapping[str, Any]) -> Iterator[Mapping[str, Any]]:
    """The items of a finished batch: in the operation's ``response``, or in the ``output`` of its metadata."""
    metadata = body.get("metadata")
    for owner in (body.get("response"), metadata.get("output") if isinstance(metadata, Mapping) else None):
        if isinstance(owner, Mapping):
            for key in ("inlinedResponses", "inlinedEmbedContentResponses"):
                found = items(owner[key], "inlinedResponses") if isinstance(owner.get(key), Mapping) else []
                if found:
                    yield from found
                    return


def _gemini(response: Mapping[str, Any]) -> Reading:
    return (_CONTENT if _CONTENT.fits(response) else _EMBED).read(response)
