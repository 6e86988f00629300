"""Newline-delimited JSON: Ollama's streams, and the results of batches."""

from __future__ import annotations

from flask_llm_cost.usage.scanner import DelimitedScanner


class LineScanner(DelimitedScanner):
    """Each line is a JSON object."""

    __slots__ = ()

    def _next_end(self, text: bytes, position: int) -> int:
        return text.find(b"\n", position) + 1 or -1

    def _last_end(self, text: bytes, floor: int, ceiling: int) -> int:
        end = text.rfind(b"\n", floor, ceiling)
        return end + 1 if end >= 0 else floor

    def _json(self, event: bytes) -> bytes:
        return event.strip()
