"""Replies whose path says nothing: their shape does. For gateways that the app named, which may speak several formats."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from flask_llm_cost.records import Reading
from flask_llm_cost.usage.format import Format


class AnyShape(Format):
    """Whichever of several formats fits.

    :param formats: those that say most about themselves first; the last is what a reply is read as that fits none
    """

    name = "any"
    takes_stream_options = True
    mark = b'"usage'
    last_event_counts = False

    def __init__(self, formats: Sequence[Format]) -> None:
        self._formats = tuple(formats)
        # A shape whose mark is its own word, and not on every event.
        marks = (wire.mark for wire in formats if not wire.mark.startswith(self.mark) and not wire.also_kept)
        also = (key for wire in formats for key in wire.also_kept)
        self.also_kept = tuple(dict.fromkeys((*marks, *also)))
        self.each_kept = next((wire.each_kept for wire in formats if wire.each_kept), b"")

    def fits(self, body: Mapping[str, Any]) -> bool:
        return any(wire.fits(body) for wire in self._formats)

    def read(self, body: Mapping[str, Any]) -> Reading:
        return self.read_all(body)[0]

    def read_all(self, body: Mapping[str, Any]) -> list[Reading]:
        return self._fitting([body]).read_all(body)

    def read_stream(self, events: Sequence[Mapping[str, Any]], ended: bool) -> Reading:
        return self.read_stream_all(events, ended)[0]

    def read_stream_all(self, events: Sequence[Mapping[str, Any]], ended: bool) -> list[Reading]:
        return self._fitting(events).read_stream_all(events, ended)

    def _fitting(self, events: Sequence[Mapping[str, Any]]) -> Format:
        for wire in self._formats:
            if any(wire.fits(event) for event in events):
                return wire
        return self._formats[-1]
