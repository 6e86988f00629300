"""Server-sent events: find the few that matter in a stream without looking at each piece of it.

Pieces are appended and scanned 64 KiB at a time; an event larger than that doubles the threshold, so that the work stays
linear. Only the first event and those that match the format's marks are parsed.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from typing import Any, Final

_SCAN_AT: Final = 64 * 1024

#: The longest unfinished event that is kept. Beyond it, its beginning (names, ids) and its end (usage) are.
_MAX_PENDING: Final = 768 * 1024
_HEAD: Final = 8 * 1024
_TAIL: Final = 256 * 1024

_OBJECT: Final = re.compile(rb"\s*:\s*\{")
_EVENT_END: Final = re.compile(rb"\r\n\r\n|\n\n|\r\r")
_DONE: Final = re.compile(rb"(?:^|[\r\n])data: ?\[DONE\]")
_MAX_EVENTS: Final = 10_000


class EventScanner:
    """Collects the events of one stream that a format marks. Feed it decoded bytes, in pieces of any size."""

    __slots__ = ("_first_seen", "_last_only", "_mark", "_pieces", "_scan_at", "_size", "done", "events")

    def __init__(self, mark: bytes, last_only: bool = False) -> None:
        self._mark = mark
        self._last_only = last_only
        self._pieces: list[bytes] = []
        self._size = 0
        self._scan_at = _SCAN_AT
        self._first_seen = False
        #: The first event, and every later one that matched.
        self.events: list[Mapping[str, Any]] = []
        #: Whether the stream said ``[DONE]``.
        self.done = False

    def feed(self, piece: bytes) -> None:
        self._pieces.append(piece)
        self._size += len(piece)
        if self._size >= self._scan_at:
            self._scan(final=False)

    def finish(self) -> None:
        """Scan what is left. The last event counts even if the blank line after it never came."""
        self._scan(final=True)
        self._pieces = []

    def _scan(self, final: bool) -> None:
        text = b"".join(self._pieces)
        end = len(text) if final else last_event_end(text)
        if end:
            self._take(text[:end])
        rest = text[end:]
        if len(rest) > _MAX_PENDING:
            rest = rest[:_HEAD] + rest[-_TAIL:]
        self._pieces = [rest] if rest else []
        self._size = len(rest)
        self._scan_at = max(_SCAN_AT, 2 * len(rest))

    def _take(self, text: bytes) -> None:
        """Parse the events of *text*, which begins at the beginning of one, that matter."""
        position = 0
        if not self._first_seen:
            position = self._take_first(text)
        marks = self._last_mark(text, position) if self._last_only else self._all_marks(text, position)
        for mark in marks:
            if mark >= position:  # else it is one more in the event that was just kept
                start, position = _event_around(text, mark, position)
                self._keep(text[start:position])
        if _DONE.search(text, max(0, len(text) - 512)):
            self.done = True

    def _all_marks(self, text: bytes, floor: int) -> list[int]:
        """Where usage objects are. Searching for plain bytes is many times quicker than for a pattern."""
        found = []
        place = text.find(self._mark, floor)
        while place >= 0:
            if _OBJECT.match(text, place + len(self._mark)):
                found.append(place)
            place = text.find(self._mark, place + 1)
        return found

    def _last_mark(self, text: bytes, floor: int) -> list[int]:
        place = text.rfind(self._mark, floor)
        while place >= 0 and not _OBJECT.match(text, place + len(self._mark)):
            place = text.rfind(self._mark, floor, place)
        return [place] if place >= 0 else []

    def _take_first(self, text: bytes) -> int:
        """Parse up to the first event with data, for the names and ids in it. Returns where it ends."""
        position = 0
        while position < len(text):
            end = _next_end(text, position)
            position, found = end, self._keep(text[position:end])
            if found:
                self._first_seen = True
                break
        return position

    def _keep(self, event: bytes) -> bool:
        body = parse_event(event)
        if body is None:
            return False
        if len(self.events) < _MAX_EVENTS:
            self.events.append(body)
        else:
            self.events[-1] = body
        return True


def parse_event(event: bytes) -> Mapping[str, Any] | None:
    """The JSON object in an event's ``data`` lines; ``None`` where there is none."""
    lines = [line[5:] for line in event.splitlines() if line.startswith(b"data:")]
    if not lines:
        return None
    try:
        body = json.loads(b"\n".join(lines))
    except (ValueError, RecursionError):
        return None
    return body if isinstance(body, Mapping) else None


def last_event_end(text: bytes) -> int:
    """Where the last finished event ends; 0 when none is."""
    return _end_before(text, 0, len(text))


def _next_end(text: bytes, position: int) -> int:
    end = _EVENT_END.search(text, position)
    return end.end() if end else len(text)


def _event_around(text: bytes, mark: int, floor: int) -> tuple[int, int]:
    """Beginning and end of the event that *mark* is in."""
    return _end_before(text, floor, mark), _next_end(text, mark)


def _end_before(text: bytes, floor: int, ceiling: int) -> int:
    """Where the last event between the two ends; *floor* when none does."""
    # Hardly any server sends carriage returns, and looking for what is not there means reading all of it.
    ends = (b"\n\n", b"\r\n\r\n", b"\r\r") if b"\r" in text else (b"\n\n",)
    return max(
        (found + len(end) for end in ends if (found := text.rfind(end, floor, ceiling)) >= 0),
        default=floor,
    )
