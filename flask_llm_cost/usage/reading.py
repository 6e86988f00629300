"""From a reply's bytes, or the events of its stream, to readings. Nothing in here raises, whatever was sent."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any, Final

from flask_llm_cost.records import Quantity, Reading, Usage
from flask_llm_cost.usage.format import MalformedUsageError
from flask_llm_cost.usage.recognition import Route
from flask_llm_cost.usage.sse import EventScanner

#: Usage of which nothing is known, with the mark that says that a block was there and made no sense.
MALFORMED_USAGE: Final = Usage(flags=("usage_malformed",))

_NOTHING: Final[Mapping[str, Quantity]] = {}

_LARGE: Final = 64 * 1024
_END_READ: Final = 8 * 1024


def scanner(found: Route, content_type: str) -> EventScanner | None:
    """What collects the events of this reply; ``None`` where it is no stream but one body.

    :param content_type: the reply's header, as it came
    """
    if content_type.partition(";")[0].strip().lower() == "text/event-stream":
        return EventScanner(found.format.mark, found.format.last_event_counts)
    return None


def read_body(found: Route, content: bytes, asked: Mapping[str, Quantity] = _NOTHING) -> list[Reading]:
    """Read a reply's body: one reading for each thing that is billed. Empty when this is not the reply of a call.

    :param asked: what the request itself says is billed, by ``Format.quantities_of_request``
    """
    if found.format.usage_comes_last and len(content) > _LARGE and (body := _end_of_body(content)) is not None:
        return read_json(found, body, asked)
    try:
        body = json.loads(content)
    except (ValueError, RecursionError):
        body = None
    if not isinstance(body, Mapping):
        # A call all the same, if its host says so: one whose usage only the request may tell.
        return [_as_served(found, Reading(), asked)] if found.certain else []
    return read_json(found, body, asked)


def read_json(found: Route, body: Mapping[str, Any], asked: Mapping[str, Quantity] = _NOTHING) -> list[Reading]:
    """Read a reply's parsed body, as :func:`read_body` does."""
    if not found.certain and not found.format.fits(body):
        return []
    return _readings(found, lambda: [found.format.read(body)], asked)


def read_stream(
    found: Route, events: Sequence[Mapping[str, Any]], ended: bool, asked: Mapping[str, Quantity] = _NOTHING
) -> list[Reading]:
    """Read the events of a stream: one reading for each thing that is billed. Empty when it is not the stream of a call.

    :param ended: whether the stream was read to its end
    """
    if not found.certain and not any(found.format.fits(event) for event in events):
        return []
    return _readings(found, lambda: [found.format.read_stream(events, ended)], asked)


def _readings(found: Route, read: Callable[[], list[Reading]], asked: Mapping[str, Quantity]) -> list[Reading]:
    try:
        readings = read()
    except MalformedUsageError as error:
        readings = [Reading(MALFORMED_USAGE, malformed=error.field)]
    return [_as_served(found, reading, asked) for reading in readings]


def _as_served(found: Route, reading: Reading, asked: Mapping[str, Quantity]) -> Reading:
    if found.residency:
        reading = replace(reading, mode="+".join(filter(None, (reading.mode, found.residency))))
    usage = reading.usage
    if usage.billed is not None and not found.believes_cost:
        reading = replace(reading, usage=replace(usage, billed=None))
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
