"""Keeping from the app the event with the usage that it did not ask for, whatever goes wrong in doing so."""

from __future__ import annotations

from flask_llm_cost.capture.guard import report
from flask_llm_cost.log import log
from flask_llm_cost.usage.stream_options import UsageEventFilter


class Withheld:
    """Takes that event out of a stream. Nothing here raises, and no other byte is lost."""

    __slots__ = ("_events",)

    def __init__(self) -> None:
        self._events: UsageEventFilter | None = UsageEventFilter()

    def feed(self, piece: bytes) -> bytes:
        """What the app may see now that this piece is there."""
        events = self._events
        if events is None:
            return piece
        for last in (False, True):
            try:
                return events.feed(piece)
            except Exception as error:
                if last:
                    log.warning("taking our event out of a stream failed with %s: it passes", type(error).__name__)
        self._events = None
        return b"".join(events.pieces) + piece

    def rest(self) -> bytes:
        """What the app has still to see when the body has ended."""
        events = self._events
        try:
            return b"" if events is None else events.finish()
        except Exception as error:
            report(error)
            return b"" if events is None else b"".join(events.pieces)

    def whole(self, content: bytes) -> bytes:
        """What the app may see of a body that somebody has read to its end already."""
        return self.feed(content) + self.rest()
