"""One JSON array whose elements come one after the other: Gemini's streams without ``alt=sse``."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Final

from flask_llm_cost.usage.excerpt import Excerpt, StringEraser
from flask_llm_cost.usage.scanner import Scanner

_TOKEN: Final = re.compile(rb'"[^"\\]*+(?:\\.[^"\\]*+)*+"?|[{}]', re.DOTALL)


class ArrayScanner(Scanner):
    """Each element of the array is an event. A reply that is one object, such as an error, is one event too."""

    __slots__ = ("_depth", "_element", "_strings")

    def __init__(self, mark: bytes, last_only: bool = False, every: bool = False, also: Sequence[bytes] = ()) -> None:
        super().__init__(mark, last_only, every, also)
        self._strings = StringEraser()
        self._depth = 0
        self._element: Excerpt | None = None

    def _scan(self, final: bool) -> None:
        text = self._strings.feed(bytes(self._buffer))
        if final:
            text += self._strings.finish()
        self._buffer = bytearray()
        start = 0
        ended: list[bytes] = []
        for token in _TOKEN.finditer(text):
            kind = text[token.start()]
            if kind == 0x7B:  # {
                if self._element is None:
                    self._element, self._depth, start = Excerpt(self._mark), 0, token.start()
                self._depth += 1
            elif kind == 0x7D and self._element is not None:  # }
                self._depth -= 1
                if self._depth == 0:
                    self._element.keep(text[start : token.end()])
                    ended.append(self._element.finish())
                    self._element = None
        if self._element is not None:
            self._element.keep(text[start:])
            if final:
                ended.append(self._element.finish())
                self._element = None
        self._take(ended)

    def _take(self, ended: list[bytes]) -> None:
        """Keep the elements that matter. Only objects count towards the depth: no element of these streams is an array."""
        while ended and not self._first_seen:
            self._keep(ended.pop(0))
        matching = [element for element in ended if self._matches(element)]
        if self._last_only and matching and not self._also:
            matching = matching[-1:]
        for element in matching:
            self._keep(element)
