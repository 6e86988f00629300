"""From a reply's bytes, or the events of its stream, to readings. Nothing in here raises, whatever was sent."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any, Final

from flask_llm_cost.records import BatchNews, Quantity, Reading, Usage
from flask_llm_cost.usage.aws import FrameScanner
from flask_llm_cost.usage.excerpt import Excerpt, salvaged
from flask_llm_cost.usage.format import NO_AMOUNT, Format, MalformedUsageError, quantities
from flask_llm_cost.usage.json_array import ArrayScanner
from flask_llm_cost.usage.lines import LineScanner
from flask_llm_cost.usage.recognition import Route
from flask_llm_cost.usage.scanner import Scanner, says_failure
from flask_llm_cost.usage.sse import EventScanner, begins_as_events

#: Usage of which nothing is known, with the mark that says that a block was there and made no sense.
MALFORMED_USAGE: Final = Usage(flags=("usage_malformed",))

_NOTHING: Final[Mapping[str, Quantity]] = {}
_NO_HEADERS: Final[Mapping[str, str]] = {}

#: What a content type says of a stream's framing.
_FRAMINGS: Final[Mapping[str, str]] = {
    "text/event-stream": "sse",
    "application/x-ndjson": "ndjson",
    "application/jsonl": "ndjson",
    "application/x-jsonl": "ndjson",
    "application/stream+json": "ndjson",
    "application/vnd.amazon.eventstream": "aws",
}
_SCANNERS: Final[Mapping[str, type[Scanner]]] = {
    "sse": EventScanner,
    "ndjson": LineScanner,
    "json-array": ArrayScanner,
    "aws": FrameScanner,
}

#: What a header calls the tier that has no price of its own.
_STANDARD_TIERS: Final = frozenset({"standard", "default", "unspecified"})

_LARGE: Final = 64 * 1024
_END_READ: Final = 8 * 1024
_MANY: Final = 1024
_BEGINNING: Final = 16
_JSON: Final = (b"", b"{", b"[")


def scanner(found: Route, content_type: str, beginning: bytes = b"") -> Scanner | None:
    """What collects the events of this reply; ``None`` where it is no stream but one body.

    :param content_type: the reply's header, as it came
    :param beginning: the reply, or what is there of it: some servers send events and call them something else
    """
    kind = content_type.partition(";")[0].strip().lower()
    name = _FRAMINGS.get(kind) or found.events
    if kind not in _FRAMINGS and beginning[:1] not in _JSON and begins_as_events(beginning[:_BEGINNING]):
        name = "sse"
    framing = _SCANNERS.get(name or "")
    wire = found.format
    return None if framing is None else _made(framing, wire)


def fed_scanner(wire: Format, beginning: bytes) -> Scanner:
    """What collects the events of a stream of which only the first bytes say how it is framed."""
    first = beginning.lstrip()[:1]
    framing = {b"{": "ndjson", b"[": "json-array", b"\0": "aws"}.get(first, "sse")
    return _made(_SCANNERS[framing], wire)


def _made(framing: type[Scanner], wire: Format) -> Scanner:
    made = framing(wire.mark, wire.last_event_counts, wire.each_event_counts, wire.also_kept, wire.each_kept)
    made.most_kept = wire.most_kept
    return made


class BodyCollector:
    """Collects a body that comes in pieces, however long it is, in bounded memory: long strings lose their insides."""

    __slots__ = ("_pieces", "_size", "_text")

    def __init__(self, found: Route) -> None:
        self._text = Excerpt(found.format.mark, found.format.most_kept)
        self._pieces: list[bytes] | None = []
        self._size = 0

    @property
    def empty(self) -> bool:
        """Whether nothing came yet."""
        return self._pieces is not None and not self._size

    def feed(self, piece: bytes) -> None:
        if self._pieces is None:
            self._text.feed(piece)
            return
        self._pieces.append(piece)
        self._size += len(piece)
        if self._size > _LARGE or len(self._pieces) > _MANY:
            whole, self._pieces = b"".join(self._pieces), None if self._size > _LARGE else []
            if self._pieces is None:
                self._text.feed(whole)
            else:
                self._pieces.append(whole)

    def finish(self) -> bytes:
        """The body, or what :func:`read_body` needs of it."""
        return self._text.finish() if self._pieces is None else b"".join(self._pieces)


def read_body(
    found: Route,
    content: bytes,
    asked: Mapping[str, Quantity] = _NOTHING,
    headers: Mapping[str, str] = _NO_HEADERS,
) -> list[Reading]:
    """Read a reply's body: one reading for each thing that is billed. Empty when this is not the reply of a call.

    :param asked: what the request itself says is billed, by ``Format.quantities_of_request``
    :param headers: the reply's, by lower-case name; some of Bedrock's models count nowhere else, and Gemini's tier is there
    """
    wire = found.format
    if found.events is not None and (lines := scanner(found, "")) is not None:
        lines.feed(content)
        lines.finish()
        return read_stream(found, lines.events, not lines.failed, asked, headers)
    if wire.usage_comes_last and len(content) > _LARGE and (end := _end_of_body(content)) is not None:
        return read_json(found, end, asked, headers)
    if (lines := _undeclared_lines(found, content)) is not None:
        return read_stream(found, lines.events, not lines.failed, asked, headers)
    body = _parsed(content, wire.mark)
    if body is None:
        # A call all the same, if its host says so: one whose usage only the request may tell.
        return [_as_served(found, Reading(), asked)] if found.certain and not wire.shape_only else []
    readings = read_json(found, body, asked, headers)
    if wire.header_counts and len(readings) == 1 and not readings[0].usage.known and not readings[0].malformed:
        return [replace(readings[0], usage=_usage_of_headers(wire, headers))]
    return readings


def _parsed(content: bytes, mark: bytes) -> Mapping[str, Any] | None:
    try:
        body = json.loads(content)
    except (ValueError, RecursionError):
        # Too deep, a number too long, or cut off: names and usage may be there all the same.
        return salvaged(content, mark) if content[:64].lstrip()[:1] == b"{" else None
    return body if isinstance(body, Mapping) else None


def _undeclared_lines(found: Route, content: bytes) -> Scanner | None:
    """The lines of a stream that its server did not call one: what stands after the first is no JSON body."""
    if b"}\n{" not in content:
        return None
    lines = fed_scanner(found.format, content)
    lines.feed(content)
    lines.finish()
    return lines


def _usage_of_headers(wire: Format, headers: Mapping[str, str]) -> Usage:
    counted = {
        component: int(headers[name])
        for name, component in wire.header_counts.items()
        if headers.get(name, "").isascii() and headers.get(name, "").isdigit() and len(headers[name]) <= 12
    }
    return Usage(quantities(**counted) or {"input": 0, "output": 0}, "response", raw=dict(counted)) if counted else Usage()


def read_json(
    found: Route,
    body: Mapping[str, Any],
    asked: Mapping[str, Quantity] = _NOTHING,
    headers: Mapping[str, str] = _NO_HEADERS,
) -> list[Reading]:
    """Read a reply's parsed body, as :func:`read_body` does."""
    wire = found.format
    if not _proven(found, [body]):
        return []
    readings = _readings(found, lambda: wire.read_all(body), [body], asked, headers)
    if len(readings) == 1 and says_failure(body):
        return [replace(readings[0], failed=True)]
    return readings


def read_stream(
    found: Route,
    events: Sequence[Mapping[str, Any]],
    ended: bool,
    asked: Mapping[str, Quantity] = _NOTHING,
    headers: Mapping[str, str] = _NO_HEADERS,
) -> list[Reading]:
    """Read the events of a stream: one reading for each thing that is billed. Empty when it is not the stream of a call.

    Where the format's ``each_event_counts``, events may be read as they come, some at a time.

    :param ended: whether the stream was read to its end
    """
    wire = found.format
    if not _proven(found, events):
        return []
    return _readings(found, lambda: wire.read_stream_all(events, ended), events, asked, headers)


def batch_news(found: Route, content: bytes) -> list[BatchNews]:
    """What a reply's body says of batches that were created earlier. Empty for almost all."""
    if found.operation != "batch" or found.events is not None:
        return []
    try:
        body = json.loads(content)
        return found.format.batch_news(body) if isinstance(body, Mapping) else []
    except (ValueError, RecursionError):
        return []


def _proven(found: Route, events: Sequence[Mapping[str, Any]]) -> bool:
    """Whether this is a call: by host or SDK, else by the shape of the reply."""
    if found.certain and not found.format.shape_only:
        return True
    try:
        return any(found.format.fits(event) for event in events)
    except Exception:
        return False


def _readings(
    found: Route,
    read: Callable[[], list[Reading]],
    events: Sequence[Mapping[str, Any]],
    asked: Mapping[str, Quantity],
    headers: Mapping[str, str],
) -> list[Reading]:
    try:
        readings = read()
    except Exception as error:
        # A format that an app taught may raise anything: it is a call all the same.
        field = error.field if isinstance(error, MalformedUsageError) else type(error).__name__
        readings = [replace(_names(found.format, events), usage=MALFORMED_USAGE, malformed=field)]
    told = (headers.get(name, "").lower() for name in found.format.tier_headers)
    if tier := next((tier for tier in told if tier and tier not in _STANDARD_TIERS), None):
        readings = [reading if reading.mode else replace(reading, mode=tier[:32]) for reading in readings]
    return [_as_served(found, reading, asked) for reading in readings]


def _names(wire: Format, events: Sequence[Mapping[str, Any]]) -> Reading:
    """Model and id where they are sane, of a reply whose usage is not."""
    model = response_id = None
    for event in events:
        try:
            named = wire.name_of(event)
        except Exception:
            continue
        model, response_id = model or named.model, response_id or named.response_id
    return Reading(model=model, response_id=response_id)


def _as_served(found: Route, reading: Reading, asked: Mapping[str, Quantity]) -> Reading:
    if found.operation == "batch" and found.subject:
        reading = replace(
            reading, settles=f"{found.subject}/{reading.settles}" if reading.settles else None, batch=found.subject
        )
    if found.provider == "bedrock" and found.model and reading.model:
        # The reply has the model's own name; what is billed, with its region and profile, is the one in the URL.
        reading = replace(reading, model=found.model)
    if found.residency:
        reading = replace(reading, mode="+".join(filter(None, (reading.mode, found.residency))))
    usage = reading.usage
    if usage.billed is not None and not found.believes_cost:
        reading = replace(reading, usage=replace(usage, billed=None))
    elif usage.billed is NO_AMOUNT:
        reading = replace(reading, usage=MALFORMED_USAGE, malformed="cost")
    if asked and not usage.known and not usage.flags:
        reading = replace(reading, usage=Usage(dict(asked), "response"))
    return reading


_MODEL: Final = re.compile(rb'"model"\s*:\s*("(?:[^"\\]|\\.){0,512}")')
_USAGE: Final = re.compile(rb'"usage"\s*:\s*(?=\{)')


def _end_of_body(content: bytes) -> dict[str, Any] | None:
    """Usage and model from the end of a large body; ``None`` where they are not there, so that all of it must be read."""
    end = content[-_END_READ:]
    places = list(_USAGE.finditer(end))
    models = list(_MODEL.finditer(end)) or list(_MODEL.finditer(content[:_END_READ]))
    if not places or not models:
        return None
    try:
        usage, _ = json.JSONDecoder().raw_decode(end[places[-1].end() :].decode())
        return {"usage": usage, "model": json.loads(models[-1].group(1))}
    except ValueError:
        return None
