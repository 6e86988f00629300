"""Finding the few events of a stream that matter, without looking at each piece of it.

Pieces are collected and scanned 64 KiB at a time, so that the work stays linear and memory bounded. Only the first event and
those that match the format's marks are parsed. What an event too long to keep comes down to is in ``excerpt.py``.
"""

from __future__ import annotations

import functools
import json
import re
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from typing import Any, Final

from flask_llm_cost.usage.excerpt import CUT, MAX_KEPT, Excerpt, all_marks, last_mark, salvaged, shortened

_SCAN_AT: Final = 64 * 1024
_SHORT: Final = 2 * 1024
_MAX_EVENTS: Final = 256

#: How a provider may say, inside a stream, that it failed. Whether it speaks of the stream itself, the parsed event tells.
_FAILURES: Final = frozenset({"error", "response.failed", "conversation.response.error"})
_FAILING: Final = (b'"error"', b'"response.failed"', b'"conversation.response.error"')
_FAILURE: Final = re.compile(
    rb'"error"\s{0,64}:\s{0,64}[{"]|"type"\s{0,64}:\s{0,64}"(?:error|response\.failed|conversation\.response\.error)"'
)

#: How many texts at one key an event is kept for.
_MAX_TEXTS: Final = 64


def says_failure(body: Mapping[str, Any]) -> bool:
    """Whether a reply, or an event of one, says what went wrong."""
    kind = body.get("type")
    return (isinstance(kind, str) and kind in _FAILURES) or bool(body.get("error"))


class Scanner(ABC):
    """Collects the events of one stream that a format asks for. Feed it decoded bytes, in pieces of any size.

    :param mark: the key of the usage object
    :param last_only: whether the last marked event says it all
    :param every: whether each marked event is a bill of its own, so that all are kept, however many there are
    :param also: further keys whose events are kept
    :param each: a key of which an event is kept for each text that stands there
    """

    __slots__ = (
        "_also", "_buffer", "_each", "_every", "_first_seen", "_last_only", "_mark", "_texts", "done", "events", "failed",
        "most_kept",
    )  # fmt: skip

    def __init__(
        self, mark: bytes, last_only: bool = False, every: bool = False, also: Sequence[bytes] = (), each: bytes = b""
    ) -> None:
        self._mark = mark
        self._last_only = last_only and not every
        self._every = every
        self._also = tuple(also)
        self._each = _text_at(each) if each else None
        self._texts: set[bytes] = set()
        self._buffer = bytearray()
        self._first_seen = False
        #: How much of an event is kept: a format's ``most_kept``.
        self.most_kept = MAX_KEPT
        #: The first event, and later ones that matched.
        self.events: list[Mapping[str, Any]] = []
        #: Whether the stream itself said that it is done.
        self.done = False
        #: Whether the stream itself said that it failed, with an event in place of its end.
        self.failed = False

    def feed(self, piece: bytes) -> None:
        if len(piece) > 2 * _SCAN_AT:
            for start in range(0, len(piece), _SCAN_AT):
                self.feed(piece[start : start + _SCAN_AT])
            return
        self._buffer += piece
        if len(self._buffer) >= _SCAN_AT:
            self._scan(final=False)

    def finish(self) -> None:
        """Scan what is left. The last event counts even if its end never came."""
        self._scan(final=True)
        self._buffer = bytearray()

    @abstractmethod
    def _scan(self, final: bool) -> None:
        """Take the events out of the buffer that have ended, or all that is left."""

    def _matches(self, event: bytes | bytearray) -> bool:
        return (
            bool(all_marks(event, self._mark)) or any(key in event for key in self._also) or bool(self._new_texts(event, 0))
        )

    def _new_texts(self, text: bytes | bytearray, floor: int) -> list[int]:
        """Where texts stand at the key of which each counts that did not stand there before."""
        places = []
        for found in self._each.finditer(text, floor) if self._each is not None else ():
            if found.group(1) not in self._texts and len(self._texts) < _MAX_TEXTS:
                self._texts.add(found.group(1))
                places.append(found.start())
        return places

    def _note_failure(self, event: bytes) -> None:
        """Take note of an event that says that the stream failed. The lines of a batch fail each for itself."""
        if self.failed or self._every or not any(word in event for word in _FAILING):
            return
        try:
            body = json.loads(shortened(event) if len(event) > _SHORT else event) if _FAILURE.search(event) else None
        except (ValueError, RecursionError):
            return
        if isinstance(body, Mapping):
            self.failed = says_failure(body)

    def _keep(self, event: bytes) -> bool:
        """Parse an event and keep it. Whether it was one."""
        if len(event) > _SHORT and CUT not in event:  # else its long strings are empty, and its quotes no longer pair
            event = shortened(event)
        try:
            body = json.loads(event)
        except (ValueError, RecursionError):
            body = salvaged(event, self._mark)
            if body is None or (self._first_seen and self._mark not in event):
                return False
        if not isinstance(body, Mapping):
            return False
        events = self.events
        if self._every or len(events) < (2 if self._last_only and not (self._also or self._each) else _MAX_EVENTS):
            events.append(body)
        else:
            events[-1] = body
        self._first_seen = True
        return True


class DelimitedScanner(Scanner):
    """A stream whose events end with a delimiter that cannot stand inside one."""

    __slots__ = ("_long",)

    def __init__(
        self, mark: bytes, last_only: bool = False, every: bool = False, also: Sequence[bytes] = (), each: bytes = b""
    ) -> None:
        super().__init__(mark, last_only, every, also, each)
        self._long: Excerpt | None = None

    @abstractmethod
    def _next_end(self, text: bytes, position: int) -> int:
        """Where the event ends that *position* is in; -1 when it has not ended."""

    @abstractmethod
    def _last_end(self, text: bytes, floor: int, ceiling: int) -> int:
        """Where the last event before *ceiling* ends; *floor* when none does."""

    @abstractmethod
    def _json(self, event: bytes) -> bytes:
        """The JSON text of an event; empty where it has none."""

    def _scan(self, final: bool) -> None:
        text = bytes(self._buffer)
        if self._long is not None:
            end = self._next_end(text, 0)
            if end < 0 and not final:
                # Should this end in half a delimiter, the next event is fed in as well, and told apart below.
                self._long.feed(text)
                self._buffer = bytearray()
                return
            end = len(text) if end < 0 else end
            self._long.feed(text[:end])
            self._take(self._long.finish())
            self._long = None
            text = text[end:]
        end = len(text) if final else self._last_end(text, 0, len(text))
        if end:
            self._take(text[:end])
        if len(text) - end >= _SCAN_AT:
            self._long = Excerpt(self._mark, self.most_kept)
            self._long.feed(text[end:])
            end = len(text)
        self._buffer = bytearray(text[end:])

    def _take(self, text: bytes) -> None:
        """Parse the events of *text*, which begins at the beginning of one, that matter."""
        if not self.failed:
            self._look_for_failure(text)
        position = 0
        while not self._first_seen and position < len(text):
            end = self._end(text, position)
            self._keep_json(text[position:end])
            position = end
        for mark in self._marks(text, position):
            if mark >= position:  # else it is one more in the event that was just kept
                start, position = self._last_end(text, position, mark), self._end(text, mark)
                self._keep_json(text[start:position])

    def _look_for_failure(self, text: bytes) -> None:
        # A failure ends a stream, so only the last event that may be one is parsed: others may name errors by the thousand.
        place = max(text.rfind(word) for word in _FAILING)
        if place >= 0:
            self._note_failure(self._json(text[self._last_end(text, 0, place) : self._end(text, place)]))

    def _end(self, text: bytes, position: int) -> int:
        end = self._next_end(text, position)
        return len(text) if end < 0 else end

    def _keep_json(self, event: bytes) -> None:
        if content := self._json(event):
            self._keep(content)

    def _marks(self, text: bytes, floor: int) -> list[int]:
        """Where the events are that matter."""
        if self._last_only:
            place = last_mark(text, self._mark, floor)
            marks = [place] if place >= 0 else []
        else:
            marks = all_marks(text, self._mark, floor)
        for key in self._also:
            place = text.find(key, floor)
            while place >= 0:
                marks.append(place)
                place = text.find(key, self._end(text, place))
        marks += self._new_texts(text, floor)
        return sorted(marks) if self._also or self._each else marks


@functools.lru_cache(maxsize=16)
def _text_at(key: bytes) -> re.Pattern[bytes]:
    return re.compile(re.escape(key) + rb'\s{0,64}:\s{0,64}"([^"\\]{1,256})"')
