"""Server-sent events."""

from __future__ import annotations

import json
import re
from codecs import BOM_UTF8
from collections.abc import Mapping
from typing import Any, Final

from flask_llm_cost.usage.scanner import DelimitedScanner

EVENT_END: Final = re.compile(rb"\r\n\r\n|\n\n|\r\r")
_LINES: Final = (b"data:", b"event:", b"id:", b"retry:", b":")
_DONE: Final = re.compile(rb"(?:^|[\r\n])data: ?\[DONE\]")


class EventScanner(DelimitedScanner):
    """``text/event-stream``: an empty line ends an event, its ``data`` lines are JSON."""

    __slots__ = ()

    def _next_end(self, text: bytes, position: int) -> int:
        end = EVENT_END.search(text, position)
        return end.end() if end else -1

    def _last_end(self, text: bytes, floor: int, ceiling: int) -> int:
        return last_event_end(text, floor, ceiling)

    def _json(self, event: bytes) -> bytes:
        return _data(event)

    def _take(self, text: bytes) -> None:
        super()._take(text)
        if _DONE.search(text, max(0, len(text) - 512)):
            self.done = True


def parse_event(event: bytes) -> Mapping[str, Any] | None:
    """The JSON object in an event's ``data`` lines; ``None`` where there is none."""
    try:
        body = json.loads(_data(event))
    except (ValueError, RecursionError):
        return None
    return body if isinstance(body, Mapping) else None


def _data(event: bytes) -> bytes:
    # A stream may begin with a byte order mark, which is none of its text.
    lines = event.removeprefix(BOM_UTF8).splitlines()
    return b"\n".join(line[5:] for line in lines if line.startswith(b"data:"))


def begins_as_events(beginning: bytes) -> bool:
    """Whether a reply is a stream of events by its first bytes, few as they are: JSON begins with none of these."""
    text = beginning.removeprefix(BOM_UTF8)
    return bool(text) and any(text.startswith(word) or word.startswith(text) for word in _LINES)


def last_event_end(text: bytes, floor: int = 0, ceiling: int | None = None) -> int:
    """Where the last finished event of *text* ends; *floor* when none does."""
    # Hardly any server sends carriage returns, and looking for what is not there means reading all of it.
    ends = (b"\n\n", b"\r\n\r\n", b"\r\r") if b"\r" in text else (b"\n\n",)
    ceiling = len(text) if ceiling is None else ceiling
    return max(
        (found + len(end) for end in ends if (found := text.rfind(end, floor, ceiling)) >= 0),
        default=floor,
    )
