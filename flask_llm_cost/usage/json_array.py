"""One JSON array whose elements come one after the other: Gemini's streams without ``alt=sse``."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Final

from flask_llm_cost.usage.excerpt import Excerpt, StringEraser
from flask_llm_cost.usage.scanner import Scanner

#: The next brace, past whatever is no brace and past whole strings.
_BRACE: Final = re.compile(rb'(?:[^"{}]++|"[^"\\]*+(?:\\.[^"\\]*+)*+"?)*+([{}])', re.DOTALL)


class ArrayScanner(Scanner):
    """Each element of the array is an event. A reply that is one object, such as an error, is one event too."""

    __slots__ = ("_begun", "_depth", "_strings")

    def __init__(
        self, mark: bytes, last_only: bool = False, every: bool = False, also: Sequence[bytes] = (), each: bytes = b""
    ) -> None:
        super().__init__(mark, last_only, every, also, each)
        self._strings = StringEraser()
        self._depth = 0
        self._begun: Excerpt | None = None

    def _scan(self, final: bool) -> None:
        text = self._strings.feed(bytes(self._buffer))
        if final:
            text += self._strings.finish()
        self._buffer = bytearray()
        start = 0
        ended: list[bytes] = []
        brace = _BRACE.match(text)
        while brace is not None:
            if brace[1] == b"{":
                if self._depth == 0:
                    start = brace.start(1)
                self._depth += 1
            elif self._depth:
                self._depth -= 1
                if self._depth == 0:
                    ended.append(self._whole(text[start : brace.end()]))
            # Never a search: where no brace is left, each place would be tried in turn.
            brace = _BRACE.match(text, brace.end())
        if self._depth:
            if final:
                ended.append(self._whole(text[start:]))
            else:
                self._begun = self._begun or Excerpt(self._mark, self.most_kept)
                self._begun.keep(text[start:])
        self._take(ended)

    def _whole(self, end: bytes) -> bytes:
        """An element, with what came of it before."""
        if self._begun is None:
            return end
        self._begun.keep(end)
        element, self._begun = self._begun.finish(), None
        return element

    def _take(self, ended: list[bytes]) -> None:
        """Keep the elements that matter. Only objects count towards the depth: no element of these streams is an array."""
        if ended:
            self._note_failure(ended[-1])
        while ended and not self._first_seen:
            self._keep(ended.pop(0))
        matching = [element for element in ended if self._matches(element)]
        if self._last_only and matching and not (self._also or self._each):
            matching = matching[-1:]
        for element in matching:
            self._keep(element)
